"""Ratios of means, their differences, and differences of their logarithms.

All by the bootstrap of `protocol.bootstrap`: BCa intervals corrected for few units, and p values
that invert them. A ratio is resampled as its logarithm, where it is nearest to symmetric; the BCa
interval does not depend on that, its continuation beyond the outermost replicates does. A resample
whose denominator is not positive counts as an infinite ratio, so that a denominator near 0 makes
the interval wide; samples whose own denominator is not positive have no ratio: NaN, and p = 1. A
ratio that is not positive itself (quantised models that never disagree with their base) has no
logarithm, and is resampled as it is.

In `paired_` tests unit i (a seed, a base model) is the same in every group, and is drawn in all of
them at once; the others draw each group by itself.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sharpjax.protocol.tests import bootstrap
from sharpjax.protocol.tests.arguments import check_options, read_aligned, read_groups
from sharpjax.protocol.tests.bootstrap import weighted_mean
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult, nothing_known


class _Form(NamedTuple):
    """What is made of the means, and how it is resampled."""

    name: str
    of_means: Callable[..., np.ndarray]
    groups: int
    paired: bool
    log: bool = False  # `of_means` is the logarithm of the effect


def ratio_of_means(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """mean(a) / mean(b) of two independent groups; null 1.

    Raises:
        UserError: see `arguments.read_groups`; a null that is not positive.

    >>> fast, slow = np.array([42.0, 178, 90, 60, 120]), np.array([7330.0, 8100, 7900, 8800, 8000])
    >>> result = ratio_of_means(Samples((fast, slow)), alternative="less", null=0.05)
    >>> round(result.effect, 4), result.p < 0.01
    (0.0122, True)
    """
    form = _Form("ratio_of_means", log_ratio, 2, paired=False, log=True)
    return _test(form, samples, alternative, null, confidence, seed)


def paired_ratio_of_means(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """mean(a) / mean(b) over paired units; null 1.

    Raises:
        UserError: as `ratio_of_means`; groups of different lengths.

    >>> near, far = np.array([0.1, 0.2, 0.2, 0.4, 0.5]), np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> round(paired_ratio_of_means(Samples((near, far)), alternative="less").effect, 4)
    0.0933
    """
    form = _Form("paired_ratio_of_means", log_ratio, 2, paired=True, log=True)
    return _test(form, samples, alternative, null, confidence, seed)


def difference_of_ratios(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """mean(a) / mean(b) - mean(c) / mean(d) of four independent groups; null 0.

    Raises:
        UserError: see `arguments.read_groups`.

    >>> a, b, c, d = (np.array([x, x + 1.0, x + 2.0]) for x in (4.0, 1.0, 2.0, 3.0))
    >>> round(difference_of_ratios(Samples((a, b, c, d)), alternative="greater").effect, 6)
    1.75
    """
    form = _Form("difference_of_ratios", _difference, 4, paired=False)
    return _test(form, samples, alternative, null, confidence, seed)


def paired_difference_of_ratios(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """mean(a) / mean(b) - mean(c) / mean(d) over units that all four groups share; null 0.

    Raises:
        UserError: as `difference_of_ratios`; groups of different lengths.
    """
    form = _Form("paired_difference_of_ratios", _difference, 4, paired=True)
    return _test(form, samples, alternative, null, confidence, seed)


def log_ratio_difference(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """log(mean(a) / mean(b)) - log(mean(c) / mean(d)) of four independent groups; null 0.

    Raises:
        UserError: see `arguments.read_groups`.

    >>> a, b, c, d = (np.array([x, x, x]) for x in (8.0, 2.0, 6.0, 3.0))
    >>> round(log_ratio_difference(Samples((a, b, c, d)), alternative="greater").effect, 6)
    0.693147
    """
    form = _Form("log_ratio_difference", _log_difference, 4, paired=False)
    return _test(form, samples, alternative, null, confidence, seed)


def paired_log_ratio_difference(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """log(mean(a) / mean(b)) - log(mean(c) / mean(d)) over units that all groups share; null 0.

    Raises:
        UserError: as `paired_difference_of_ratios`.
    """
    form = _Form("paired_log_ratio_difference", _log_difference, 4, paired=True)
    return _test(form, samples, alternative, null, confidence, seed)


def log_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log(a / b) for positive b: -inf where a is not, inf where b is not, NaN where neither is.

    >>> log_ratio(np.array([1.0, 0.0, 1.0, -1.0]), np.array([1.0, 1.0, -1.0, 0.0]))
    array([  0., -inf,  inf,  nan])
    """
    first, second = (np.log(x, out=np.full(np.shape(x), -np.inf), where=x > 0) for x in (a, b))
    with np.errstate(invalid="ignore"):
        return first - second


def _quotient(a, b) -> np.ndarray:
    return np.where(b > 0, a / b, np.inf)


def _difference(a, b, c, d) -> np.ndarray:
    return _quotient(a, b) - _quotient(c, d)


def _log_difference(a, b, c, d) -> np.ndarray:
    return log_ratio(a, b) - log_ratio(c, d)


def _test(
    form: _Form,
    samples: Samples,
    alternative: Alternative,
    null: float | None,
    confidence: float,
    seed: int,
) -> TestResult:
    if null is None:
        null = 1.0 if form.log else 0.0
    allowed = (0.0, math.inf) if form.log else (-math.inf, math.inf)
    check_options(form.name, alternative, confidence, null=null, within=allowed)
    if form.paired:
        groups, clusters, independent = read_aligned(form.name, samples, form.groups, form.groups)
        strata = (independent,)
        floor = bootstrap.units_floor(independent)
    else:
        groups = read_groups(form.name, samples, form.groups, form.groups)
        clusters, strata = None, tuple(group.size for group in groups)
        floor = bootstrap.strata_floor(strata)
    means = [weighted_mean(group) for group in groups]

    def statistic(*counts: np.ndarray) -> np.ndarray:
        counts = counts * form.groups if form.paired else counts
        return form.of_means(*(mean(c) for mean, c in zip(means, counts, strict=True)))

    sizes = tuple(group.size for group in groups)
    positive = [bool(group.mean() > 0) for group in groups]
    if not all(positive[1::2]) or (form.of_means is _log_difference and not all(positive)):
        return nothing_known(math.nan, sizes)
    if form.log and not positive[0]:
        form = form._replace(of_means=_quotient, log=False)
    if min(strata) < 2:
        effect = float(form.of_means(*(group.mean() for group in groups)))
        return nothing_known(math.exp(effect) if form.log else effect, sizes)
    return bootstrap.infer(
        bootstrap.bca(statistic, strata, clusters=clusters, seed=seed),
        sizes,
        alternative=alternative,
        null=null,
        confidence=confidence,
        floor=floor,
        log=form.log,
    )
