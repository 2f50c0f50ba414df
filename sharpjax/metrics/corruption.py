"""Robustness of a model to corrupted images: means over kinds and severities."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sharpjax.errors import UserError

Errors = Mapping[tuple[str, int], float]


class Robustness(NamedTuple):
    """Means over kinds of corruption and their severities.

    Attributes:
        accuracy: the mean of 1 - error over all kinds and severities.
        by_kind, by_severity: mean accuracy of each kind, by name, and of each severity.
        mce: the mean over kinds of sum_s E / sum_s E', with E' the errors of the baseline (arXiv
            1903.12261). NaN without a baseline, and if E' is 0 at all severities of a kind.
        relative_mce: the same, with the error of the same model on clean images subtracted from
            each error. NaN also if E' of a kind is not above the baseline's clean error on average.
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
    """The usual robustness metrics, from the error rate at each (kind, severity).

    All kinds must have the same severities, and the baseline the same kinds and severities.
    CIFAR-10-C has nineteen kinds, of which fifteen are commonly used: say which you use. Results on
    the images of `data.corruption` are not results on CIFAR-10-C.

    Args:
        errors: error rates in [0, 1].
        clean: the error rate on clean images.
        baseline, baseline_clean: the same of the model that `mce` divides by.

    Raises:
        UserError: a (kind, severity) is missing; a rate is outside [0, 1]; the kinds or severities
            of the baseline differ; only one of `baseline` and `baseline_clean` is given.

    >>> errors = {("fog", 1): 0.1, ("fog", 2): 0.3, ("snow", 1): 0.2, ("snow", 2): 0.4}
    >>> baseline = dict.fromkeys(errors, 0.4)
    >>> found = robustness(errors, clean=0.1, baseline=baseline, baseline_clean=0.2)
    >>> round(found.accuracy, 6), round(found.mce, 6), round(found.relative_mce, 6)
    (0.75, 0.625, 0.75)
    """
    table, kinds, severities = _table("errors", errors)
    for what, rate in (("clean", clean), ("baseline_clean", baseline_clean)):
        if rate is not None and not 0 <= rate <= 1:
            raise UserError(f"metrics.robustness: {what}={rate}; give an error rate in [0, 1].")
    if (baseline is None) != (baseline_clean is None):
        raise UserError("metrics.robustness: give baseline and baseline_clean, or neither.")
    mce = relative = float("nan")
    if baseline is not None:
        other, *of = _table("baseline", baseline)
        if of != [kinds, severities]:
            raise UserError(
                "metrics.robustness: the baseline has other kinds or severities than the errors."
            )
        mce = _mean_ratio(table, other)
        relative = _mean_ratio(table - clean, other - baseline_clean)
    right = 1 - table
    return Robustness(
        float(right.mean()),
        dict(zip(kinds, right.mean(1).tolist(), strict=True)),
        dict(zip(severities, right.mean(0).tolist(), strict=True)),
        mce,
        relative,
    )


def _mean_ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean over kinds of sum_s ours / sum_s theirs; NaN if a sum of theirs is not above 0."""
    total = theirs.sum(1)
    # Rates of N images are multiples of 1 / N; a sum below 1e-12 is 0 and its rounding error.
    if np.any(total < 1e-12):
        return float("nan")
    return float(np.mean(ours.sum(1) / total))


def _table(what: str, errors: Errors) -> tuple[np.ndarray, list[str], list[int]]:
    """The table [kinds, severities]: kinds in order of appearance, severities increasing."""
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
