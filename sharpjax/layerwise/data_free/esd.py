"""The eigenvalues of layers themselves, for figures and measures of your own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.layerwise.data_free import layers as found_in
from sharpjax.layerwise.data_free.convention import SCALE_FREE, Convention, check_convention
from sharpjax.layerwise.data_free.eigenvalues import LEAST, MOST, eigenvalues


def layer_eigenvalues(
    params: Any,
    *,
    layers: Sequence[str] | str | None = None,
    convention: Convention = SCALE_FREE,
) -> dict[str, np.ndarray]:
    """The empirical spectral density of each layer: its eigenvalues, ascending, in float64.

    Args:
        params, layers, convention: as in `data_free`.

    Returns:
        [num_evals] by name, without leaves of less than two axes. NaN if weights are not finite or
        out of range (`Status`).

    Raises:
        UserError: no layer, a glob that matches none, weights that are not floats, anything but a
            `Convention`.

    >>> {name: v.tolist() for name, v in layer_eigenvalues({"kernel": 2 * np.eye(2)}).items()}
    {'kernel': [4.0, 4.0]}
    """
    check_convention("layer_eigenvalues", convention)
    values = {}
    for layer in found_in.find("layer_eigenvalues", params, layers, axes=0):
        if layer.kind != "none":
            factor = convention.convolution_factor if layer.kind == "convolution" else 1.0
            matrices = found_in.matrices(layer)
            with jax.enable_x64(True):
                found = np.asarray(eigenvalues(jnp.asarray(matrices), factor))
            peak = np.max(np.abs(matrices), initial=0)
            known = peak == 0 or LEAST <= peak <= MOST
            values[layer.name] = found if known else np.full_like(found, np.nan)
    return values
