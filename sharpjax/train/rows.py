"""From estimates to lines of the results table."""

from typing import Any

import numpy as np

from sharpjax.estimate import Estimate
from sharpjax.train.evaluators import Results


def row(
    arm: Any, seed: int, step: int, metric: str, estimate: Estimate, **of: Any
) -> dict[str, Any]:
    """One line of the results table.

    Args:
        arm: anything with the attributes `study` and `name`.
        of: further coordinates.
    """
    return {
        "study": arm.study,
        "arm": arm.name,
        "seed": seed,
        "step": step,
        "of": of,
        "metric": metric,
        "value": float(np.asarray(estimate.value)),
        "standard_error": float(np.asarray(estimate.standard_error)),
    }


def rows_of(arm: Any, seed: int, step: int, results: Results) -> list[dict[str, Any]]:
    """The lines that an evaluator's results become."""
    rows = [row(arm, seed, step, name, found) for name, found in results.estimates.items()]
    return rows + [
        row(arm, seed, step, name, found, layer=layer)
        for (name, layer), found in results.by_layer.items()
    ]


def exact(value: Any) -> Estimate:
    """What is known and not estimated.

    >>> print(exact(2.5).value, exact(2.5).standard_error)
    2.5 0.0
    """
    return Estimate(np.asarray(value), np.float32(0), np.int32(1))
