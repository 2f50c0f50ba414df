"""The p values of simulated studies: power of any test, and where no formula knows it, the only
one.

t and rank tests are evaluated for all studies at once (3 to 30 microseconds a study). The p values
of t, Wilcoxon and Mann-Whitney are those of the registered functions; those of trend and omnibus
tests are near them (`rank_statistics`). All other tests are called study by study.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from sharpjax.errors import unknown
from sharpjax.protocol.planning import generative, rank_statistics
from sharpjax.protocol.planning.rank_statistics import Groups, p_values
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Alternative, Samples

NUM_STUDIES = 100
NUM_STUDIES_AT_ONCE = 4000


class Outcomes(NamedTuple):
    """Of each simulated study: its p value and its estimate (None where that is not computed)."""

    p: np.ndarray
    effect: np.ndarray | None


def lookup(test: str) -> catalog.Test:
    """The entry of a test in the catalog.

    Raises:
        UserError: there is none of this name.
    """
    if test not in catalog.TESTS:
        raise unknown("test", test, catalog.TESTS)
    return catalog.TESTS[test]


def default_studies(test: str) -> int:
    """How many studies are simulated: 4000 where all are evaluated at once, else 100."""
    return NUM_STUDIES_AT_ONCE if test in AT_ONCE else NUM_STUDIES


def outcomes(
    test: str,
    effect: float,
    sizes: tuple[int, ...],
    *,
    alternative: Alternative = "two-sided",
    margin: float | None = None,
    null: float | None = None,
    pilot: Samples | None = None,
    num_studies: int | None = None,
    seed: int = 0,
) -> Outcomes:
    """Simulate studies under an effect in the direction of the alternative, and test each.

    Args:
        test: a name in `catalog.TESTS`.
        effect: d of `generative`; 0 for tests that need a margin, whose claim is its absence.
        margin: in standard deviations, for tests that need one.
        pilot: see `generative.draw`.
        num_studies: 4000 for tests that are evaluated at once, else 100.
        seed: of noise and resampling.

    Raises:
        UserError: the test is not known, or the pilot is of no use.

    >>> p = outcomes("wilcoxon", 1.0, (8, 8), alternative="greater").p
    >>> float((p <= 0.05).mean()) > 0.7
    True
    """
    lookup(test)
    count = default_studies(test) if num_studies is None else num_studies
    arguments = (test, effect, sizes, alternative, margin, null, count, seed)
    if pilot is None:
        return _cached(*arguments)
    return _outcomes(*arguments, pilot)


def _outcomes(
    test: str,
    effect: float,
    sizes: tuple[int, ...],
    alternative: Alternative,
    margin: float | None,
    null: float | None,
    num_studies: int,
    seed: int,
    pilot: Samples | None = None,
) -> Outcomes:
    entry = lookup(test)
    batch = generative.draw(
        entry.kind,
        -effect if alternative == "less" else effect,
        sizes,
        num_studies=num_studies,
        seed=seed,
        null=entry.null if null is None else null,
        shift=shift_of(test),
        pilot=pilot,
    )
    if test in AT_ONCE and null in (None, entry.null):
        p = AT_ONCE[test](batch.groups, alternative)
        return Outcomes(np.asarray(p, np.float64), None)
    options: dict[str, Any] = {"alternative": alternative, "null": null, "margin": margin or 0.0}
    results = [
        catalog.run(test, samples, seed=seed + i, **options)
        for i, samples in enumerate(batch.samples())
    ]
    return Outcomes(np.array([r.p for r in results]), np.array([r.effect for r in results]))


def shift_of(test: str) -> generative.Shift:
    """Which groups an effect shifts."""
    return "first" if "ratio" in test else "steps"


_cached = functools.lru_cache(maxsize=512)(_outcomes)


def _welch(groups: Groups, alternative: Alternative) -> np.ndarray:
    return _p(stats.ttest_ind(*groups, axis=1, equal_var=False, alternative=alternative))


def _paired_t(groups: Groups, alternative: Alternative) -> np.ndarray:
    return _p(stats.ttest_1samp(_differences(groups), 0, axis=1, alternative=alternative))


def _wilcoxon(groups: Groups, alternative: Alternative) -> np.ndarray:
    differences = _differences(groups)
    method = "exact" if differences.shape[1] <= EXACT_PAIRS else "asymptotic"
    return _p(stats.wilcoxon(differences, axis=1, alternative=alternative, method=method))


def _mann_whitney(groups: Groups, alternative: Alternative) -> np.ndarray:
    first, second = groups
    exact = first.shape[1] * second.shape[1] <= EXACT_COMPARISONS
    method = "exact" if exact else "asymptotic"
    return _p(stats.mannwhitneyu(first, second, axis=1, alternative=alternative, method=method))


def _p(result: Any) -> np.ndarray:
    return result.pvalue


def _differences(groups: Groups) -> np.ndarray:
    return groups[0] if len(groups) == 1 else groups[0] - groups[1]


EXACT_PAIRS = 50
EXACT_COMPARISONS = 2_500
AT_ONCE: Mapping[str, Callable[[Groups, Alternative], np.ndarray]] = {
    "welch": _welch,
    "paired-t": _paired_t,
    "wilcoxon": _wilcoxon,
    "mann-whitney": _mann_whitney,
    "auc": _mann_whitney,
    "jonckheere": functools.partial(p_values, rank_statistics.jonckheere),
    "page": functools.partial(p_values, rank_statistics.page),
    "kruskal-wallis": functools.partial(p_values, rank_statistics.kruskal_wallis),
    "friedman": functools.partial(p_values, rank_statistics.friedman),
}
# Their data have no chance in them, or no model here says what an effect would be.
NO_MODEL = ("identical", "kendall-difference", "spearman-pooled")
