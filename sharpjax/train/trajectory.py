"""What is measured along the training of a decomposed or a dense model, at a few epochs.

Curvature and sharpness are asked in the weights W, so that models of all ranks can be compared, and
for a decomposed model also in its own coordinates (U, s, V), where training lives. The same
function has other curvature in other coordinates.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sharpjax import geometry, tree
from sharpjax.losses import Classification
from sharpjax.metrics import fourier, spectra
from sharpjax.nn import svd
from sharpjax.train.epochs import Examples
from sharpjax.train.evaluators import Results
from sharpjax.train.rows import exact

WEIGHTS = "weights"


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Curvature, sharpness, norms, spectra and Fourier measures of one state.

    On the frozen examples `train[:num_examples]`, in float32, by name:

        <set>/hessian/lambda_1, trace        in W; <set>/factors/... in (U, s, V)
        <set>/adaptive_sharpness             likewise
        weights/norm                         Frobenius norm of all weights; and of {"layer": name}
        weights/parameter_norm               that of the parameters, which weight decay sees
        weights/effective_rank, stable_rank  of {"layer": name}
        weights/orthogonality_error          of {"layer": name}, of factors
        weights/fourier/concentration, gini  of {"layer": name}, of tables of embeddings

    Cost: 10 to 20 products with the Hessian for its first eigenvalue, down to half of that where it
    starts from the measurement before; `max_probes` at the most for its trace; `adaptive_steps`
    gradients for the adaptive sharpness; twice all this for a decomposed model. A product costs
    some three gradients of `num_examples`.

    Attributes:
        model: as it is trained, with a field `decompose`.
        in_factors: whether curvature and sharpness are asked in (U, s, V), too.
        modulus: p; 0: no Fourier measures.
        num_frequencies: whose share of the energy `concentration` is.
        tol, max_products: of the eigenvalue.
        trace_error, max_probes: of the trace, relative.
        adaptive_rho, adaptive_steps: of the adaptive sharpness.
    """

    model: Any
    in_factors: bool
    num_examples: int
    modulus: int
    num_frequencies: int
    tol: float
    max_products: int
    trace_error: float
    max_probes: int
    adaptive_rho: float
    adaptive_steps: int

    @property
    def set_name(self) -> str:
        return f"train[:{self.num_examples}]"

    def init(self, params: Any, data: Examples) -> dict[str, Any]:
        """The carry: by coordinates the last eigenpairs, and whether there are any yet."""
        carry = {}
        for name, (model, point) in self._coordinates(params).items():
            search = _Search(self, model, self._batch(data))
            like = jax.eval_shape(search, point, jax.random.key(0))
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
            carry[name] = {"pairs": nothing, "found": jnp.zeros((), bool)}
        return carry

    def __call__(
        self, carry: Mapping[str, Any], params: Any, data: Examples, key: jax.Array
    ) -> tuple[dict[str, Any], Results]:
        batch = self._batch(data)
        estimates, new = {}, {}
        for name, (model, point) in self._coordinates(params).items():
            before = carry[name]
            start = before["pairs"] if before["found"] else None
            eigen_key, trace_key, ascent_key = jax.random.split(key, 3)
            pairs = _Search(self, model, batch)(point, eigen_key, start)
            loss = Classification(model)
            trace = geometry.trace(
                geometry.hessian(loss, point, batch),
                key=trace_key,
                relative_error=self.trace_error,
                max_probes=self.max_probes,
            )
            adaptive = geometry.adaptive_sharpness(
                loss,
                point,
                batch,
                key=ascent_key,
                rho=self.adaptive_rho,
                steps=self.adaptive_steps,
            )
            # A search that failed is nothing to start from.
            found = jnp.all(jnp.isfinite(pairs.values))
            new[name] = {"pairs": pairs, "found": found}
            where = self.set_name if name == WEIGHTS else f"{self.set_name}/{name}"
            named = pairs.estimates() | trace.estimates()
            estimates |= {f"{where}/hessian/{quantity}": x for quantity, x in named.items()}
            estimates |= {f"{where}/{quantity}": x for quantity, x in adaptive.estimates().items()}
        whole, by_layer, values = jax.device_get(
            _weights(params, self.modulus, self.num_frequencies)
        )
        estimates |= {name: exact(value) for name, value in whole.items()}
        layers = {
            (name, layer): exact(value)
            for name, row in by_layer.items()
            for layer, value in row.items()
        }
        arrays = {name.replace("/", "."): array for name, array in values.items()}
        return new, Results(estimates, arrays, layers)

    def _coordinates(self, params: Any) -> dict[str, tuple[nn.Module, Any]]:
        if self.model.decompose is None:
            return {WEIGHTS: (self.model, params)}
        dense = self.model.clone(decompose=None)
        own = {"factors": (self.model, params)} if self.in_factors else {}
        return {WEIGHTS: (dense, _merge(params))} | own

    def _batch(self, data: Examples) -> dict[str, jax.Array]:
        # `Classification` calls what the model reads `image`; here it is tokens.
        inputs, label = data.train_input, data.train_label
        return {"image": inputs[: self.num_examples], "label": label[: self.num_examples]}


class _Search:
    """For the first eigenvalue, as it is done each time."""

    def __init__(self, measure: Trajectory, model: nn.Module, batch: Any):
        self._measure, self._model, self._batch = measure, model, batch

    def __call__(self, params: Any, key: jax.Array, start: Any = None) -> geometry.Eigenpairs:
        return geometry.top_eigenpairs(
            geometry.hessian(Classification(self._model), params, self._batch),
            key=key,
            tol=self._measure.tol,
            max_products=self._measure.max_products,
            start=start,
        )


_merge = jax.jit(svd.merge)


def _weights_of(params: Any, modulus: int, num: int) -> tuple[dict, dict, dict]:
    """What the weights alone tell: of all, by layer, and the singular values by layer."""
    norms = spectra.weight_norms(params)
    values = spectra.spectra(params)
    whole = {"weights/norm": norms.pop("total"), "weights/parameter_norm": tree.norm(params)}
    by_layer = {
        "weights/norm": norms,
        "weights/effective_rank": {n: spectra.effective_rank(s) for n, s in values.items()},
        "weights/stable_rank": {n: spectra.stable_rank(s) for n, s in values.items()},
    }
    factors = _named(params, svd.is_factors)
    errors = {name: spectra.orthogonality_error(node) for name, node in factors.items()}
    if errors:
        by_layer["weights/orthogonality_error"] = errors
    tables = {
        name: fourier.energy(table[:modulus])
        for name, table in _named(svd.merge(params), _is_array).items()
        if modulus and name.endswith("embedding") and table.shape[0] >= modulus
    }
    if tables:
        total = {name: jnp.sum(energies, axis=1) for name, energies in tables.items()}
        by_layer["weights/fourier/concentration"] = {
            name: fourier.concentration(energies, num) for name, energies in total.items()
        }
        by_layer["weights/fourier/gini"] = {
            name: fourier.gini(energies) for name, energies in total.items()
        }
    return whole, by_layer, values


_weights = jax.jit(_weights_of, static_argnums=(1, 2))


def _named(params: Any, is_wanted: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): node
        for path, node in jax.tree.leaves_with_path(params, is_leaf=is_wanted)
        if is_wanted(node)
    }


def _is_array(node: Any) -> bool:
    return isinstance(node, jax.Array)


def epochs_measured(budget: int, per_decade: int) -> tuple[int, ...]:
    """Epochs spaced evenly on a logarithmic axis, and 0, before the first one.

    Args:
        budget: epochs of the whole training; its end is measured in any case.
        per_decade: from one power of ten to the next; 0: none of them.

    >>> epochs_measured(100, 3)
    (0, 1, 2, 5, 10, 22, 46)
    """
    if not per_decade:
        return ()
    exponents = range(per_decade * len(str(budget)))
    spaced = {round(10 ** (i / per_decade)) for i in exponents}
    return (0, *sorted(epoch for epoch in spaced if epoch < budget))
