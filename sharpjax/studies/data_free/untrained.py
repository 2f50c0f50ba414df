"""Layers before any training: which power-law exponents they have by chance."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.layerwise.criticality import Initialiser
from sharpjax.layerwise.data_free import WEIGHTWATCHER, power_law
from sharpjax.layerwise.data_free.table import OVER_TRAINED, UNDER_TRAINED
from sharpjax.train.results import Of, of
from sharpjax.train.streams import stream

QUANTILES = (5, 25, 50, 75, 95)  # per cent


@dataclasses.dataclass(frozen=True)
class Untrained:
    """For a `Draw` stage: alpha of the layers of freshly drawn nets, `draws` nets per seed.

        init/alpha_in_range     1 if alpha is in [2, 6], else 0; `of` = {"layer", "draw"}
        init/alpha              quantiles of alpha over these draws; `of` = {"layer", "percent"}

    Alpha follows the convention of WeightWatcher. A layer without a power law (`num_tail` of 0) is
    not in the range. Cost: a draw of the net, and the eigenvalues of W'W of each layer.

    Attributes:
        initialiser: draws the net.
        layers: names, and the matrices (k, m, n) that each is read as; one layer of each shape.
        draws: nets per seed.
        arm: names the stream.
    """

    initialiser: Initialiser
    layers: tuple[tuple[str, tuple[int, int, int]], ...]
    draws: int
    arm: str

    def __call__(self, seed: int) -> Mapping[tuple[str, Of], float]:
        key, found = stream(seed, f"draw/{self.arm}"), {}
        kernels = [self._kernels(jax.random.fold_in(key, i)) for i in range(self.draws)]
        for name, matrices in self.layers:
            stacked = np.stack([own[name] for own in kernels])
            factor = WEIGHTWATCHER.convolution_factor if stacked.ndim > 3 else 1.0
            alphas = _alphas(stacked.reshape(self.draws, *matrices), factor)
            inside = (alphas >= OVER_TRAINED) & (alphas <= UNDER_TRAINED)
            for draw, value in enumerate(inside):
                found["init/alpha_in_range", of(layer=name, draw=draw)] = float(value)
            for percent, value in zip(QUANTILES, _quantiles(alphas), strict=True):
                found["init/alpha", of(layer=name, percent=percent)] = float(value)
        return found

    def _kernels(self, key: jax.Array) -> Mapping[str, np.ndarray]:
        params = self.initialiser(key).params
        return {
            name: np.asarray(
                functools.reduce(lambda tree, part: tree[part], name.split("/"), params)["kernel"]
            )
            for name, _ in self.layers
        }


def _quantiles(alphas: np.ndarray) -> Any:
    there = alphas[np.isfinite(alphas)]
    return np.percentile(there, QUANTILES) if there.size else np.full(len(QUANTILES), np.nan)


def _alphas(matrices: np.ndarray, factor: float) -> np.ndarray:
    """alpha of each of [D, k, m, n]; NaN if there is no tail."""
    with jax.enable_x64(True):
        return np.asarray(_fit(jnp.asarray(matrices, jnp.float64), factor))


@jax.jit
def _fit(matrices: jax.Array, factor: float) -> jax.Array:
    """Alpha from the eigenvalues of W'W in float64, whose error is at most n eps times the largest.

    The smallest eigenvalue of independently drawn weights is far above that error, and this takes a
    fraction of the time of an SVD.
    """

    def alpha(one: jax.Array) -> jax.Array:
        wide = one if one.shape[1] <= one.shape[2] else jnp.swapaxes(one, 1, 2)
        values = jnp.ravel(jnp.linalg.eigvalsh(wide @ jnp.swapaxes(wide, 1, 2)))
        return power_law.fit(factor * values, WEIGHTWATCHER.floor or 0.0).alpha

    return jax.lax.map(alpha, matrices)
