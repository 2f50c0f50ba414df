"""What is said of a model on corrupted images: means over kinds and severities."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sharpjax.errors import UserError

Errors = Mapping[tuple[str, int], float]


class Robustness(NamedTuple):
    """Means over kinds of corruption and their severities.

    Attributes:
        accuracy: the mean of 1 - error over all of them.
        by_kind, by_severity: means of the accuracy, by name and by severity.
        mce: the mean over kinds of sum_s E / sum_s E', E' the baseline's errors (arXiv 1903.12261);
            NaN without a baseline.
        relative_mce: the same of what errors exceed those on clean images by.
    """

    accuracy: float
    by_kind: dict[str, float]
    by_severity: dict[int, float]
    mce: float
    relative_mce: float


def robustness(
    errors: Errors,
    *,
    clean: float,
    baseline: Errors | None = None,
    baseline_clean: float | None = None,
) -> Robustness:
    """The usual numbers, from the error rate at each (kind, severity).

    All kinds must have the same severities, and the baseline the same kinds. On CIFAR-10-C fifteen
    kinds are common, and nineteen there are: say which. Of `data.corruption`'s own images the
    numbers are no numbers of CIFAR-10-C.

    Args:
        errors: error rates in [0, 1].
        clean: the error rate on clean images.
        baseline, baseline_clean: of the model that `mce` divides by.

    Raises:
        UserError: a combination is missing, a rate is none, or one of the two of the baseline is
            lacking.

    >>> errors = {("fog", 1): 0.1, ("fog", 2): 0.3, ("snow", 1): 0.2, ("snow", 2): 0.4}
    >>> baseline = dict.fromkeys(errors, 0.4)
    >>> found = robustness(errors, clean=0.1, baseline=baseline, baseline_clean=0.2)
    >>> round(found.accuracy, 6), round(found.mce, 6), round(found.relative_mce, 6)
    (0.75, 0.625, 0.75)
    """
    table, kinds, severities = _table("errors", errors)
    if (baseline is None) != (baseline_clean is None):
        raise UserError("metrics.robustness: give baseline and baseline_clean, or neither.")
    mce = relative = float("nan")
    if baseline is not None:
        other, *of = _table("baseline", baseline)
        if of != [kinds, severities]:
            raise UserError(
                "metrics.robustness: the baseline has other kinds or severities than the errors."
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            mce = float(np.mean(table.sum(1) / other.sum(1)))
            excess = (table - clean).sum(1) / (other - baseline_clean).sum(1)
            relative = float(np.mean(excess))
    right = 1 - table
    return Robustness(
        float(right.mean()),
        dict(zip(kinds, right.mean(1).tolist(), strict=True)),
        dict(zip(severities, right.mean(0).tolist(), strict=True)),
        mce,
        relative,
    )


def _table(what: str, errors: Errors) -> tuple[np.ndarray, list[str], list[int]]:
    """[kinds, severities], in order of appearance and of size."""
    kinds = list(dict.fromkeys(kind for kind, _ in errors))
    severities = sorted({severity for _, severity in errors})
    missing = [(k, s) for k in kinds for s in severities if (k, s) not in errors]
    if missing or not errors:
        lacks = f"{missing[0]} is missing in {what}" if missing else f"{what} is empty"
        raise UserError(f"metrics.robustness: {lacks}; give every kind at every severity.")
    table = np.array([[errors[k, s] for s in severities] for k in kinds], float)
    if not np.all((table >= 0) & (table <= 1)):
        raise UserError(f"metrics.robustness: {what} are not all rates in [0, 1].")
    return table, kinds, severities
