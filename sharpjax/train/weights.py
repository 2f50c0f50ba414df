"""Measures of the weights alone: norms, spectra, Fourier measures of embedding tables."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.data import Splits
from sharpjax.metrics import fourier, spectra
from sharpjax.nn import svd
from sharpjax.train.plan import Subject, When
from sharpjax.train.results import Results, exact, of


@dataclasses.dataclass(frozen=True)
class WeightMeasures:
    """Measures of the weights, as rows; the singular values of each layer are stored as arrays:

        weights/norm                         Frobenius norm of all weights; and of {"layer": name}
        weights/parameter_norm               that of the parameters, which weight decay sees
        weights/effective_rank, stable_rank  of {"layer": name}
        weights/orthogonality_error          of {"layer": name}, for layers stored as factors
        weights/fourier/concentration, gini  of {"layer": name}, for embedding tables

    Attributes:
        modulus: p of modular arithmetic; 0: no Fourier measures.
        num_frequencies: `concentration` is the share of the energy in so many frequencies.
    """

    when: When
    modulus: int = 0
    num_frequencies: int = 1
    name: str = "spectra"
    kind: str = "evaluation"

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ["norm", "parameter_norm", "effective_rank", "stable_rank", "orthogonality_error"]
        names += ["fourier/concentration", "fourier/gini"] if self.modulus else []
        return tuple(f"weights/{name}" for name in names)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        whole, by_layer, values = jax.device_get(
            _weights(subject.state.params, self.modulus, self.num_frequencies)
        )
        rows = {(name, ()): exact(value) for name, value in whole.items()}
        rows |= {
            (name, of(layer=layer)): exact(value)
            for name, layers in by_layer.items()
            for layer, value in layers.items()
        }
        return carry, Results(rows, {n.replace("/", "."): array for n, array in values.items()})


def _weights_of(params: Any, modulus: int, num: int) -> tuple[dict, dict, dict]:
    """The measures of all weights, those by layer, and the singular values by layer."""
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
        for name, table in _named(
            svd.merge(params), lambda node: isinstance(node, jax.Array)
        ).items()
        if modulus and name.endswith("embedding") and table.shape[0] >= modulus
    }
    if tables:
        total = {name: jnp.sum(energies, axis=1) for name, energies in tables.items()}
        shares = {name: fourier.concentration(x, num) for name, x in total.items()}
        by_layer["weights/fourier/concentration"] = shares
        by_layer["weights/fourier/gini"] = {name: fourier.gini(x) for name, x in total.items()}
    return whole, by_layer, values


_weights = jax.jit(_weights_of, static_argnums=(1, 2))


def _named(params: Any, is_wanted: Callable[[Any], bool]) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): node
        for path, node in jax.tree.leaves_with_path(params, is_leaf=is_wanted)
        if is_wanted(node)
    }
