"""All measures by name, with what is declared of them, and all pairs of models at once."""

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
"""Direction, symmetry, invariances and the rest, as `MEASURES["cka"].invariances`."""


def all_pairs(
    features: Sequence[Any],
    measure: str | Measure = "cka",
    others: Sequence[Any] | None = None,
    **options: Any,
) -> np.ndarray:
    """A measure of all pairs of M models, [M, M]; or of M and L `others`, as of the layers of two
    networks, [M, L].

    What can be computed of one matrix alone (Gram matrices, ranks, bases) is computed once. The
    diagonal is that of a model with itself. A model with a feature that is not finite has NaN.

    Cost: M times what `prepare` costs, and M^2 (of a symmetric measure M (M + 1) / 2) times
    `compare`; what is prepared is held, 8 M N min(N, d) bytes of CKA.

    Args:
        features: of each model, [N, d_m] of the same N examples.
        measure: a name of `MEASURES`, or a measure.
        others: like `features`; default: those.
        options: of the measure, as `k=5` for "neighbour_overlap".

    Raises:
        UserError: an unknown measure or option; no features; otherwise as the measure itself.

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
