"""The p values of simulated studies: the power of tests whose law no formula knows.

Rank tests are evaluated for all studies at once (3 to 30 microseconds a study): Wilcoxon and
Mann-Whitney by scipy, with the p of the registered tests; tests of trend and omnibus tests by
simulation. Under the null ranks are uniform whatever the data, so that studies drawn from one
normal law give the null distribution of a statistic: p = (1 + #{null >= observed}) / (1 + number
of studies). With 4000 of them p is good to a tenth of itself at .025, and to a third at .0025. All
other tests are called study by study.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from sharpjax.errors import unknown
from sharpjax.protocol.planning import generative
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Alternative

Groups = tuple[np.ndarray, ...]  # [study, unit] each
NUM_STUDIES = 100
NUM_STUDIES_AT_ONCE = 4000


def lookup(test: str) -> catalog.Test:
    """The entry of a test in the catalog.

    Raises:
        UserError: there is none of this name.
    """
    if test not in catalog.TESTS:
        raise unknown("test", test, catalog.TESTS)
    return catalog.TESTS[test]


@functools.lru_cache(maxsize=512)
def p_values(
    test: str,
    effect: float,
    sizes: tuple[int, ...],
    *,
    alternative: Alternative = "two-sided",
    margin: float | None = None,
    null: float | None = None,
    cluster: int = 1,
    num_studies: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Simulate studies under an effect in the direction of the alternative, and test each.

    Args:
        test: a name in `catalog.TESTS`.
        effect: d of `generative`; 0 for tests that need a margin, whose claim is its absence.
        margin: in standard deviations, for tests that need one.
        cluster: units of each cluster, see `generative.draw`.
        num_studies: None: 4000 for tests that are evaluated at once, else 100.
        seed: of noise and resampling.

    Raises:
        UserError: the test is not known, or cannot take such units.

    >>> p = p_values("wilcoxon", 1.0, (8, 8), alternative="greater")
    >>> float((p <= 0.05).mean()) > 0.7
    True
    """
    entry = lookup(test)
    at_once = AT_ONCE.get(test) if cluster == 1 and null in (None, entry.null) else None
    batch = generative.draw(
        entry.kind,
        -effect if alternative == "less" else effect,
        sizes,
        num_studies=num_studies or (NUM_STUDIES_AT_ONCE if at_once else NUM_STUDIES),
        seed=seed,
        null=entry.null if null is None else null,
        shift=shift_of(test),
        cluster=cluster,
    )
    if at_once:
        return np.asarray(at_once(batch.groups, alternative), np.float64)
    options: dict[str, Any] = {"alternative": alternative, "null": null, "margin": margin or 0.0}
    every = enumerate(batch.samples())
    return np.array([catalog.run(test, one, seed=seed + i, **options).p for i, one in every])


def shift_of(test: str) -> generative.Shift:
    """Which groups an effect shifts."""
    return "first" if "ratio" in test else "steps"


def _wilcoxon(groups: Groups, alternative: Alternative) -> np.ndarray:
    differences = groups[0] if len(groups) == 1 else groups[0] - groups[1]
    method = "exact" if differences.shape[1] <= EXACT_PAIRS else "asymptotic"
    found: Any = stats.wilcoxon(differences, axis=1, alternative=alternative, method=method)
    return found.pvalue


def _mann_whitney(groups: Groups, alternative: Alternative) -> np.ndarray:
    first, second = groups
    exact = first.shape[1] * second.shape[1] <= EXACT_COMPARISONS
    method = "exact" if exact else "asymptotic"
    return stats.mannwhitneyu(first, second, axis=1, alternative=alternative, method=method).pvalue


def _jonckheere(groups: Groups) -> np.ndarray:
    """Pairs in which the unit of the earlier group is larger, less those where it is smaller."""
    total = np.zeros(len(groups[0]))
    for i, first in enumerate(groups):
        for other in groups[i + 1 :]:
            total += np.sign(first[:, :, None] - other[:, None, :]).sum((1, 2))
    return total


def _page(groups: Groups) -> np.ndarray:
    """Rank of each group within its unit, times its place from the end; larger: falling."""
    ranks = stats.rankdata(np.stack(groups, axis=-1), axis=-1)
    return (ranks * np.arange(len(groups), 0, -1)).sum((1, 2))


def _omnibus(of_scipy: Callable[..., Any]) -> Callable[[Groups], np.ndarray]:
    return lambda groups: of_scipy(*groups, axis=1).statistic


def _by_null(
    statistic: Callable[[Groups], np.ndarray], directed: bool
) -> Callable[[Groups, Alternative], np.ndarray]:
    @functools.lru_cache(maxsize=64)
    def null(sizes: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([len(sizes), *sizes])
        drawn = tuple(rng.standard_normal((NUM_STUDIES_AT_ONCE, n)) for n in sizes)
        return np.sort(statistic(drawn))

    def p(groups: Groups, alternative: Alternative) -> np.ndarray:
        drawn, observed = null(tuple(group.shape[1] for group in groups)), statistic(groups)
        # Statistics are sums of ranks: what differs by rounding is equal.
        rounding = 1e-9 * max(1.0, float(np.abs(drawn).max()))
        above = len(drawn) - np.searchsorted(drawn, observed - rounding, "left")
        below = np.searchsorted(drawn, observed + rounding, "right")
        greater, less = ((1 + count) / (1 + len(drawn)) for count in (above, below))
        if not directed or alternative == "greater":
            return greater
        return less if alternative == "less" else np.minimum(2 * np.minimum(greater, less), 1)

    return p


EXACT_PAIRS = 50
EXACT_COMPARISONS = 2_500
AT_ONCE: Mapping[str, Callable[[Groups, Alternative], np.ndarray]] = {
    "wilcoxon": _wilcoxon,
    "mann-whitney": _mann_whitney,
    "auc": _mann_whitney,
    "jonckheere": _by_null(_jonckheere, directed=True),
    "page": _by_null(_page, directed=True),
    "kruskal-wallis": _by_null(_omnibus(stats.kruskal), directed=False),
    "friedman": _by_null(_omnibus(stats.friedmanchisquare), directed=False),
}
# Their data have no chance in them, or no model here says what an effect would be.
NO_MODEL = ("identical", "kendall-difference", "spearman-pooled", "fit-error")
