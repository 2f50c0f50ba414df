"""The eigenvalues of layers themselves, for pictures and measures of one's own."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sharpjax.layerwise.data_free import layers as found_in
from sharpjax.layerwise.data_free.convention import SCALE_FREE, Convention
from sharpjax.layerwise.data_free.eigenvalues import eigenvalues


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
        [num_evals] by name; without leaves of less than two axes. NaN where weights are not finite.

    Raises:
        UserError: no layer, a glob that matches none, weights that are no floats.

    >>> {name: v.tolist() for name, v in layer_eigenvalues({"kernel": 2 * np.eye(2)}).items()}
    {'kernel': [4.0, 4.0]}
    """
    values = {}
    for layer in found_in.find("layer_eigenvalues", params, layers, axes=0):
        if layer.kind != "none":
            factor = convention.convolution_factor if layer.kind == "convolution" else 1.0
            with jax.enable_x64(True):
                found = eigenvalues(jax.numpy.asarray(found_in.matrices(layer)), factor)
            values[layer.name] = np.asarray(found)
    return values
