"""All measures by name, with their properties, and a measure for all pairs of models at once."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from sharpjax.errors import UserError, unknown
from sharpjax.metrics.representation import (
    alignment,
    dissimilarity,
    matching,
    neighbours,
    shape,
    subspaces,
)
from sharpjax.metrics.representation.measure import Measure, checked

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        measure.name: measure
        for measure in (
            alignment.UNBIASED,
            alignment.BIASED,
            shape.PROCRUSTES,
            shape.NORMALIZED,
            shape.ANGULAR,
            dissimilarity.RSA,
            neighbours.EUCLIDEAN,
            neighbours.COSINE,
            subspaces.SVCCA,
            subspaces.REGRESSION,
            matching.CORRELATION_MATCH,
        )
    }
)
"""All measures by name, with their properties, such as `MEASURES["cka"].invariances`."""


def all_pairs(
    features: Sequence[Any],
    measure: str | Measure = "cka",
    others: Sequence[Any] | None = None,
    **options: Any,
) -> np.ndarray:
    """A measure for all pairs of M models, [M, M]; or of M models with L `others`, [M, L], such as
    the layers of two networks.

    Everything that needs only one matrix (Gram matrices, ranks, bases) is computed once. The
    diagonal compares each model with itself. A model with a feature that is not finite has NaN in
    its row and column.

    Cost: M times the cost of `prepare`, and M^2 times that of `compare` (M (M + 1) / 2 for a
    symmetric measure). All prepared matrices are in memory, for CKA 8 M N min(N, d) bytes.

    Args:
        features: for each model, [N, d_m] of the same N examples.
        measure: a name in `MEASURES`, or a measure.
        others: like `features`; None: the same models.
        options: options of the measure, such as `k=5` for "neighbour_overlap".

    Raises:
        UserError: an unknown measure or option; no features; otherwise as the measure itself, but
            features that are not finite are allowed.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    >>> all_pairs([x, 2 * x + 1, x[:, ::-1]], "normalized_procrustes").round(12).shape
    (3, 3)
    """
    if not isinstance(measure, Measure):
        if measure not in MEASURES:
            raise unknown("measure of representations", str(measure), MEASURES)
        measure = MEASURES[measure]
    bound = getattr(measure.prepare, "keywords", {})
    allowed = [name for name in inspect.signature(measure.prepare).parameters if name not in bound]
    for name in options:
        if name not in allowed[1:]:
            raise unknown(f"option of '{measure.name}'", name, allowed[1:])
    if not len(features) or (others is not None and not len(others)):
        raise UserError("metrics.representation.all_pairs: no features; give those of one model.")
    every = [*features, *(() if others is None else others)]
    arrays = checked("all_pairs", every, measure.least)
    ready = [measure.prepare(x, **options) if np.isfinite(x).all() else None for x in arrays]
    rows = ready[: len(features)]
    columns = rows if others is None else ready[len(features) :]
    found = np.full((len(rows), len(columns)), np.nan)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            if others is None and measure.symmetric and j < i:
                found[i, j] = found[j, i]
            elif a is not None and b is not None:
                found[i, j] = measure.compare(a, b)
    return found
