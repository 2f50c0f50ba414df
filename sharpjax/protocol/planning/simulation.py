"""The p values of simulated studies: the power of tests whose law no formula knows.

The registered test is called for each study. Only tests of trend and omnibus tests, which take
milliseconds, are evaluated for all studies at once, by the normal and chi^2 laws of their
statistics: near .05 within .01 of their exact p from 6 units a group on.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special, stats

from sharpjax.errors import unknown
from sharpjax.protocol.planning import generative
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Alternative

Groups = tuple[np.ndarray, ...]  # [study, unit] each


def default_studies(test: str) -> int:
    """How many are simulated: 4000 at once; 1000 where a call takes .1 ms; else 100."""
    return 4000 if test in AT_ONCE else 1000 if test in CHEAP else 100


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
        num_studies: None: `default_studies`.
        seed: of noise and resampling.

    Raises:
        UserError: the test is not known, or cannot take such units.

    >>> p = p_values("wilcoxon", 1.0, (8, 8), alternative="greater")
    >>> float((p <= 0.05).mean()) > 0.7
    True
    """
    entry = lookup(test)
    batch = generative.draw(
        entry.kind,
        -effect if alternative == "less" else effect,
        sizes,
        num_studies=num_studies or default_studies(test),
        seed=seed,
        null=entry.null if null is None else null,
        shift=shift_of(test),
        cluster=cluster,
    )
    if test in AT_ONCE:
        return AT_ONCE[test](batch.groups, alternative)
    options: dict[str, Any] = {"alternative": alternative, "null": null, "margin": margin or 0.0}
    every = enumerate(batch.samples())
    return np.array([catalog.run(test, one, seed=seed + i, **options).p for i, one in every])


def shift_of(test: str) -> generative.Shift:
    """Which groups an effect shifts."""
    return "first" if "ratio" in test else "steps"


def _jonckheere(groups: Groups, alternative: Alternative) -> np.ndarray:
    """Pairs in which the unit of the earlier group is larger, less those where it is smaller."""
    total = np.zeros(len(groups[0]))
    for i, first in enumerate(groups):
        for other in groups[i + 1 :]:
            total += np.sign(first[:, :, None] - other[:, None, :]).sum((1, 2))
    sizes = np.array([group.shape[1] for group in groups])
    n = sizes.sum()
    variance = (n**2 * (2 * n + 3) - (sizes**2 * (2 * sizes + 3)).sum()) / 18
    return _directed(total, 1.0, variance, alternative)


def _page(groups: Groups, alternative: Alternative) -> np.ndarray:
    """Rank of each group within its unit, times its place from the end; larger: falling."""
    ranks = stats.rankdata(np.stack(groups, axis=-1), axis=-1)
    n, k = ranks.shape[1:]
    total = (ranks * np.arange(k, 0, -1)).sum((1, 2)) - n * k * (k + 1) ** 2 / 4
    return _directed(total, 0.5, n * k**2 * (k + 1) ** 2 * (k - 1) / 144, alternative)


def _directed(
    total: np.ndarray, half_step: float, variance: float, alternative: Alternative
) -> np.ndarray:
    greater, less = (
        special.ndtr((half_step - side) / math.sqrt(variance)) for side in (total, -total)
    )
    if alternative == "two-sided":
        return np.minimum(2 * np.minimum(greater, less), 1.0)
    return greater if alternative == "greater" else less


AT_ONCE: Mapping[str, Callable[[Groups, Alternative], np.ndarray]] = {
    "jonckheere": _jonckheere,
    "page": _page,
    "kruskal-wallis": lambda groups, _: stats.kruskal(*groups, axis=1).pvalue,
    "friedman": lambda groups, _: stats.friedmanchisquare(*groups, axis=1).pvalue,
}
CHEAP = ("wilcoxon", "mann-whitney", "auc", "pairwise-difference")
# Their data have no chance in them, or no model here says what an effect would be.
NO_MODEL = ("identical", "kendall-difference", "spearman-pooled", "fit-error")
