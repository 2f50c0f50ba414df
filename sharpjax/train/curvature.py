"""Curvature and sharpness of a model during training, on a fixed set of training examples."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sharpjax import data, geometry
from sharpjax.data import Splits
from sharpjax.estimate import Estimate
from sharpjax.losses import Classification
from sharpjax.nn import svd
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import results

WEIGHTS, FACTORS = "weights", "factors"


@dataclasses.dataclass(frozen=True)
class Curvature:
    """Top eigenvalues and trace of the Hessian, and sharpness, on the training examples `first` to
    `first + num_examples`, without augmentation.

    It computes in float32, whatever the training precision, in eval mode with frozen BatchNorm
    statistics. Models are measured one by one: each lane would hold a Krylov basis, and converged
    lanes would wait for the slowest. A decomposed model is measured in its weights W, so that
    models of all ranks can be compared. With `in_factors` it is also measured in the coordinates in
    which it is trained, (U, s, V): the curvature of the same function is different there. The rows,
    with `<set>` for `train[first:last]`:

        <set>/hessian/lambda_1, trace, ...   in W; <set>/factors/... in (U, s, V)
        <set>/adaptive_sharpness             likewise
        <set>/sam_sharpness, loss, gradient_norm, directional_curvature, hessian/converged
                                             if `sam_rho` is above 0

    Cost: 10 to 20 products with the Hessian for its first eigenvalue, down to half of that if the
    search starts from the previous measurement; at most `max_probes` for its trace;
    `adaptive_steps` gradients for the adaptive sharpness; twice all this with two coordinate
    systems. A product costs about three gradients of `num_examples`.

    Attributes:
        where: glob of the leaves whose curvature is measured; None: all.
        microbatch_size: examples per pass; None: all.
        num_eigenvalues, tol, max_products: of the search for eigenvalues.
        trace_error, max_probes: of the trace; the error is relative.
        adaptive_rho, adaptive_m, adaptive_steps: of adaptive sharpness.
        continues: whether a search starts from the eigenpairs of the previous one.
        stream: names the randomness; '': `<set>`.
    """

    when: When
    num_examples: int
    tol: float
    max_products: int
    trace_error: float
    max_probes: int
    adaptive_rho: float
    adaptive_steps: int
    first: int = 0
    where: str | None = None
    microbatch_size: int | None = None
    num_eigenvalues: int = 1
    sam_rho: float = 0.0
    adaptive_m: int | None = None
    continues: bool = False
    in_factors: bool = False
    stream: str = ""
    kind: str = "geometry"

    counted: ClassVar[str] = "train"

    @property
    def set_name(self) -> str:
        return f"train[{self.first or ''}:{self.first + self.num_examples}]"

    @property
    def name(self) -> str:
        return self.stream or self.set_name

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ["adaptive_sharpness", "hessian/num_products", "hessian/trace"]
        for i in range(self.num_eigenvalues):
            names += [f"hessian/lambda_{i + 1}", f"hessian/lambda_{i + 1}_residual"]
        if self.sam_rho:
            names += ["directional_curvature", "gradient_norm", "loss", "sam_sharpness"]
            names.append("hessian/converged")
        sets = [self.set_name] + [f"{self.set_name}/{FACTORS}"] * self.in_factors
        return tuple(f"{where}/{name}" for where in sets for name in names)

    def cost(self, spec: data.DataSpec) -> Cost:
        """An upper bound, with all products used. `sam_rho` adds a product and two gradients."""
        also = self.sam_rho > 0
        gradients = 3 * (self.max_products + self.max_probes + also)
        gradients += self.adaptive_steps + 2 * also
        return Cost(3 * gradients * self.num_examples * (1 + self.in_factors))

    def init(self, subject: Subject, data: Splits) -> dict[str, Any]:
        """The carry: for each coordinate system the last eigenpairs, and whether there are any."""
        if not self.continues:
            return {}
        carry, batch = {}, self._batch(data)
        for name, loss, params in self._coordinates(subject):
            search = _Search(self, loss, batch)
            like = jax.eval_shape(search, params, jax.random.key(0))
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
            carry[name] = {"pairs": nothing, "found": jnp.zeros((), bool)}
        return carry

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        batch, estimates, new = self._batch(data), {}, {}
        for name, loss, params in self._coordinates(subject):
            keys = jax.random.split(key, 3)
            start = carry[name]["pairs"] if carry and carry[name]["found"] else None
            pairs = _Search(self, loss, batch)(params, keys[0], start)
            if self.continues:
                # A failed search is no starting point for the next.
                found = jnp.all(jnp.isfinite(pairs.values))
                new[name] = {"pairs": pairs, "found": found}
            where = self.set_name if name == WEIGHTS else f"{self.set_name}/{name}"
            measured = self._measured(loss, params, batch, pairs, keys)
            estimates |= {f"{where}/{quantity}": x for quantity, x in measured.items()}
        return new, results(estimates)

    def _measured(
        self, loss: Classification, params: Any, batch: Any, pairs: geometry.Eigenpairs, keys: Any
    ) -> dict[str, Estimate]:
        size = self.microbatch_size
        trace = geometry.trace(
            self._hessian(loss, params, batch),
            key=keys[1],
            relative_error=self.trace_error,
            max_products=self.max_probes,
        )
        own = None if size is None else min(size, self.adaptive_m or size)
        found = [
            ("", geometry.adaptive_sharpness(
                loss, params, batch, key=keys[2], rho=self.adaptive_rho, m=self.adaptive_m,
                num_steps=self.adaptive_steps, microbatch_size=own,
            ).estimates()),
            ("hessian/", pairs.estimates()),
            ("hessian/", trace.estimates()),
        ]  # fmt: skip
        if self.sam_rho:
            options: Any = {"microbatch_size": size}
            along = geometry.directional_curvature(loss, params, batch, **options)
            sam = geometry.sam_sharpness(loss, params, batch, rho=self.sam_rho, **options)
            share = Estimate(jnp.mean(pairs.converged), np.float32(0), pairs.num_products)
            found += [("hessian/", {"converged": share})]
            found += [("", along.estimates()), ("", sam.estimates())]
        return {f"{prefix}{n}": x for prefix, each in found for n, x in each.items()}

    def _hessian(self, loss: Classification, params: Any, batch: Any) -> geometry.Operator:
        return geometry.hessian(
            loss, params, batch, where=self.where, microbatch_size=self.microbatch_size
        )

    def _coordinates(self, subject: Subject) -> Iterator[tuple[str, Classification, Any]]:
        """Name, loss and parameters in each coordinate system."""
        model, state = subject.model, subject.state
        if getattr(model, "dtype", jnp.float32) != jnp.float32:
            model = model.clone(dtype=jnp.float32)
        if getattr(model, "decompose", None) is None:
            yield WEIGHTS, Classification(model, state.variables), state.params
            return
        dense: nn.Module = model.clone(decompose=None)
        yield WEIGHTS, Classification(dense, state.variables), _merge(state.params)
        if self.in_factors:
            yield FACTORS, Classification(model, state.variables), state.params

    def _batch(self, splits: Splits) -> dict[str, jax.Array]:
        return data.batch(splits.train, self.first + jnp.arange(self.num_examples))


class _Search:
    """The search for the first eigenvalues, the same each time."""

    def __init__(self, measure: Curvature, loss: Classification, batch: Any):
        self._measure, self._loss, self._batch = measure, loss, batch

    def __call__(self, params: Any, key: jax.Array, start: Any = None) -> geometry.Eigenpairs:
        measure = self._measure
        return geometry.top_eigenpairs(
            measure._hessian(self._loss, params, self._batch),
            key=key,
            k=measure.num_eigenvalues,
            tol=measure.tol,
            max_products=measure.max_products,
            start=start,
            vectors=measure.continues,
        )


_merge = jax.jit(svd.merge)
