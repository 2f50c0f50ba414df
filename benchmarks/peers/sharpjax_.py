"""This library. All that the benchmarks know of its interface is in this file."""

import dataclasses
import functools
import inspect

import jax
import numpy as np

from benchmarks.peers import Missing, Outcome
from benchmarks.peers.jax_peer import JaxPeer
from sharpjax import geometry, loops, losses, tree
from sharpjax.errors import UserError
from sharpjax.geometry.operators import algebra


class Peer(JaxPeer):
    name, package = "sharpjax", "sharpjax"

    def __init__(self, workload):
        super().__init__(workload)
        if workload.name.startswith("W1"):  # logits [N, K]: with a square root of its Hessian
            self.outer = losses.CrossEntropy()

    def _hessian(self, batch=None):
        return geometry.hessian(self.loss, self.params, self.batch if batch is None else batch)

    def _gauss_newton(self):
        return geometry.gauss_newton(self._parts(), self.params, self.batch)

    def _parts(self):
        return geometry.composed(self.model, self.outer)

    def _all_batches(self):
        averaged = _public("averaged")
        return averaged(functools.partial(geometry.hessian, self.loss, self.params), self.batches)

    def product(self):
        found = geometry.hvp(self.loss, self.params, self.batch, self.direction)
        return Outcome(None, 1, {"vector": jax.block_until_ready(found)})

    def products(self, count):
        return self._chain(self._hessian(), count)

    def gauss_newton_product(self):
        found = _product(self._gauss_newton(), self.direction)
        return Outcome(None, 1, {"vector": jax.block_until_ready(found)})

    def gauss_newton_products(self, count):
        return self._chain(self._gauss_newton(), count)

    def _chain(self, operator, count):
        product = algebra.linearize(operator)
        found, _ = loops.iterate(_Power(), self.direction, product, max_steps=count)
        return Outcome(None, count, {"vector": jax.block_until_ready(found)})

    def top(self, k, seed, **options):
        return _pairs(geometry.top_eigenpairs(self._hessian(), key=_key(seed), k=k, **options))

    def top_over_batches(self, seed, subsample=True, **options):
        operator = self._all_batches()
        if not subsample:
            return _pairs(geometry.top_eigenpairs(operator, key=_key(seed), **options))
        subsample_start = _public("subsample_start")
        _needs(geometry.top_eigenpairs, "start")
        # Both are counted in seconds; products on all examples in `products`.
        start = subsample_start(operator, key=_key(1000 + seed))
        return _pairs(geometry.top_eigenpairs(operator, key=_key(seed), start=start, **options))

    def trace(self, seed, relative_error, max_products=2000):
        found = geometry.trace(
            *(self._hessian(),),
            key=_key(seed),
            relative_error=relative_error,
            max_products=max_products,
        )
        said = float(found.standard_error) / abs(float(found.value))
        return Outcome(float(found.value), int(found.num_products), {"said": said})

    def exact_trace(self, seed):
        """Of the Hessian: the Gauss-Newton part exactly, the rest certified."""
        operator = geometry.hessian(self._parts(), self.params, self.batch)
        found = geometry.trace(operator, key=_key(seed), method="exact")
        detail = {"remainder": float(found.remainder), "said": float(found.standard_error)}
        return Outcome(float(found.value), int(found.num_products), detail)

    def controlled_trace(self, seed, relative_error):
        found = geometry.trace(
            geometry.hessian(self._parts(), self.params, self.batch),
            key=_key(seed),
            method="exact",
            relative_error=relative_error,
            max_products=2000 * len(jax.tree.leaves(self.params)),
        )
        said = float(found.standard_error) / abs(float(found.value))
        return Outcome(float(found.value), int(found.num_products), {"said": said})

    def gauss_newton_trace(self, seed):
        try:
            found = geometry.trace(self._gauss_newton(), method="exact")
        except UserError as error:
            raise Missing(str(error)) from None
        return Outcome(float(found.value), int(found.num_products))

    def density(self, steps, probes, seed):
        spectral_density = _public("spectral_density")
        found = spectral_density(
            self._hessian(), key=_key(seed), num_steps=steps, num_probes=probes
        )
        return Outcome(None, int(found.num_products), _quadrature(found))

    def report(self, seed, k=10, relative_error=0.03, steps=32, runs=4):
        curvature_report = _public("curvature_report")
        found = curvature_report(
            *(self._hessian(),),
            key=_key(seed),
            k=k,
            relative_error=relative_error,
            num_steps=steps,
            num_probes=runs,
        )
        detail = {
            "top": self.numbers(found.top.values),
            "smallest": float(found.smallest),
            "trace": float(found.trace.value),
            **_quadrature(found.density),
        }
        return Outcome(None, int(found.num_products), detail)

    def track(self, checkpoints, warm, seed=0):
        """The largest eigenvalue at each checkpoint, from the one before or from nothing."""
        values, products, start = [], [], None
        if warm:
            _needs(geometry.top_eigenpairs, "start")
        for i, params in enumerate(checkpoints):
            self.set_params(params)
            options = {"start": start} if warm and start is not None else {}
            key = _key(1000 * seed + i)
            found = geometry.top_eigenpairs(self._hessian(), key=key, **options)
            start = found
            values.append(float(found.values[0]))
            products.append(int(found.num_products))
        self.set_params(self.workload.params)
        return Outcome(values, float(np.mean(products)), {"products": products})

    def temporaries(self, what, steps):
        """Bytes of XLA's temporaries of a whole solve inside one jit."""
        operator, key = self._hessian(), _key(0)
        if what == "top":
            fn = functools.partial(_top_value, steps=steps)
        elif what == "top10":
            fn = functools.partial(_top_ten, steps=steps)
        else:
            _public("spectral_density")
            fn = functools.partial(_density, steps=steps)
        compiled = jax.jit(fn).lower(operator, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def linearization_bytes(self):
        kept = jax.eval_shape(algebra.linearize, self._hessian())
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

    def in_solve_flops(self):
        """Operations of one product with what it re-uses, as XLA counts them."""
        product = algebra.linearize(self._hessian())
        compiled = _apply.lower(product, self.direction).compile()
        analysis = compiled.cost_analysis()
        analysis = analysis[0] if isinstance(analysis, list) else analysis
        return float(analysis["flops"])


@dataclasses.dataclass(frozen=True)
class _Power:
    """A product as a solver meets it, for `sharpjax.loops.iterate`."""

    def propose(self, carry):
        return tree.scale(1 / tree.norm(carry), carry)

    def absorb(self, carry, product):
        return product


@jax.jit
def _product(operator, vector):
    return operator.linearize()(vector)


@jax.jit
def _apply(product, vector):
    return product(vector)


def _top_value(operator, key, *, steps):
    options = {"max_products": steps, "vectors": False, "basis_size": 0}
    return geometry.top_eigenpairs(operator, key=key, **options).values


def _top_ten(operator, key, *, steps):
    found = geometry.top_eigenpairs(operator, key=key, k=10, max_products=steps)
    return found.values, found.vectors


def _density(operator, key, *, steps):
    found = geometry.spectral_density(operator, key=key, num_steps=steps, num_probes=1)
    return found.nodes, found.weights


def _pairs(found):
    certified = bool(np.all(found.converged))
    return Outcome(
        np.asarray(found.values, np.float64).tolist(),
        int(found.num_products),
        {"certified": certified},
    )


def _quadrature(found):
    nodes = np.asarray(found.nodes, np.float64).tolist()
    weights = np.asarray(found.weights, np.float64).tolist()
    atoms = np.asarray(found.atoms, np.float64)
    return {
        "nodes": nodes,
        "weights": weights,
        "atoms": atoms[np.isfinite(atoms)].tolist(),
        "size": int(found.size),
    }


def _key(seed):
    return jax.random.key(seed)


def _public(name):
    if not hasattr(geometry, name):
        raise Missing(f"sharpjax.geometry has no {name}")
    return getattr(geometry, name)


def _needs(function, option):
    if option not in inspect.signature(function).parameters:
        raise Missing(f"{function.__name__} has no option {option}")
