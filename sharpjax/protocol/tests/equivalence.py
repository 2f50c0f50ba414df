"""Tests whose claim is that an effect is smaller than a margin fixed in advance."""

import math

from sharpjax.errors import UserError
from sharpjax.protocol.tests import location
from sharpjax.protocol.tests.arguments import check_options
from sharpjax.protocol.tests.location import Location
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult


def tost(
    samples: Samples,
    *,
    alternative: Alternative = "two-sided",
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Two one-sided Welch tests: are the means of two groups closer than `margin`?

    p is the larger of the two one-sided p against null - margin and null + margin (Schuirmann
    1987), so p <= alpha is the interval at confidence 1 - 2 alpha inside the margin. opposite_p is
    for a difference beyond the margin: twice the smaller one-sided p outward, so that it is at most
    alpha where the interval at confidence 1 - alpha lies wholly outside. `null` is the centre, 0
    unless given. The effect is the difference of means, first group less second. One unit, or no
    spread: as `two_sample.welch`. `seed` is not used. Cost: .04 ms.

    Raises:
        UserError: no positive margin, an alternative other than 'two-sided', and as `welch`.

    >>> import numpy as np
    >>> x, y = np.array([1.0, 1.1, 0.9, 1.0]), np.array([1.1, 1.0, 1.0, 1.1])
    >>> result = tost(Samples((x, y)), alternative="two-sided", margin=0.2)
    >>> round(result.effect, 4), round(result.p, 4)
    (-0.05, 0.0137)
    """
    null = _centre("tost", alternative, margin, null, confidence)
    return _equivalence(location.of_two_groups("tost", samples), margin, null, confidence)


def paired_tost(
    samples: Samples,
    *,
    alternative: Alternative = "two-sided",
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Two one-sided paired t tests: is the mean difference within `margin` of `null`?

    p and opposite_p as `tost`; the mean, its clusters and its limits as `paired.paired_t`. One
    group is taken for the differences: ratios against `null=1`, say.

    Raises:
        UserError: no positive margin, an alternative other than 'two-sided', and as `paired_t`.

    >>> import numpy as np
    >>> ratios = np.array([0.98, 1.03, 1.01, 1.00])
    >>> round(paired_tost(Samples((ratios,)), margin=0.1, null=1.0).p, 4)
    0.0014
    """
    null = _centre("paired-tost", alternative, margin, null, confidence)
    return _equivalence(location.of_pairs("paired-tost", samples), margin, null, confidence)


def non_inferiority(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """One-sided Welch test that the first group is not worse than the second by the margin.

    'greater' means that larger is better: p is against a difference of null - margin, and small
    where the first group is not lower by as much. 'less' means that smaller is better, against
    null + margin. opposite_p is for its being worse by more than the margin. `null` is 0 unless
    given; effect, limits and cost as `two_sample.welch`. `seed` is not used.

    Raises:
        UserError: no positive margin, the alternative 'two-sided', and as `welch`.

    >>> import numpy as np
    >>> x, y = np.array([0.91, 0.90, 0.92]), np.array([0.92, 0.91, 0.91])
    >>> round(non_inferiority(Samples((x, y)), alternative="greater", margin=0.03).p, 4)
    0.0124
    """
    null = _bound("non-inferiority", alternative, margin, null, confidence)
    mean = location.of_two_groups("non-inferiority", samples)
    return _one_sided(mean, alternative, null, confidence)


def paired_non_inferiority(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """One-sided paired t test that the first group is not worse than the second by the margin.

    p and opposite_p as `non_inferiority`; the mean, its clusters and its limits as
    `paired.paired_t`.

    Raises:
        UserError: no positive margin, the alternative 'two-sided', and as `paired_t`.

    >>> import numpy as np
    >>> samples = Samples((np.array([0.91, 0.90, 0.92]), np.array([0.92, 0.91, 0.91])))
    >>> round(paired_non_inferiority(samples, alternative="greater", margin=0.03).p, 4)
    0.0286
    """
    null = _bound("paired-non-inferiority", alternative, margin, null, confidence)
    mean = location.of_pairs("paired-non-inferiority", samples)
    return _one_sided(mean, alternative, null, confidence)


def _centre(
    test: str, alternative: Alternative, margin: float, null: float | None, confidence: float
) -> float:
    null = 0.0 if null is None else null
    check_options(test, alternative, confidence, null=null)
    if alternative != "two-sided":
        better = test.replace("tost", "non-inferiority")
        raise UserError(
            f"{test}: alternative={alternative!r}; equivalence is 'two-sided', and for one side "
            f"there is {better}."
        )
    _check_margin(test, margin)
    return null


def _bound(
    test: str, alternative: Alternative, margin: float, null: float | None, confidence: float
) -> float:
    null = 0.0 if null is None else null
    check_options(test, alternative, confidence, null=null)
    if alternative == "two-sided":
        other = test.replace("non-inferiority", "tost")
        raise UserError(
            f"{test}: alternative='two-sided'; say which side is better, 'greater' or 'less', or "
            f"take {other}."
        )
    _check_margin(test, margin)
    return null - margin if alternative == "greater" else null + margin


def _check_margin(test: str, margin: float) -> None:
    if not 0 < margin < math.inf:
        raise UserError(f"{test}: margin={margin}; give the smallest effect of interest, > 0.")


def _equivalence(mean: Location, margin: float, null: float, confidence: float) -> TestResult:
    low, high = null - margin, null + margin
    p = max(mean.greater(low), mean.less(high))
    beyond = min(1.0, 2 * min(mean.greater(high), mean.less(low)))
    interval = mean.interval(confidence)
    return TestResult(mean.estimate, interval, p, beyond, mean.attainable, mean.n)


def _one_sided(
    mean: Location, alternative: Alternative, null: float, confidence: float
) -> TestResult:
    p, opposite_p = mean.greater(null), mean.less(null)
    if alternative == "less":
        p, opposite_p = opposite_p, p
    interval = mean.interval(confidence)
    return TestResult(mean.estimate, interval, p, opposite_p, mean.attainable, mean.n)
