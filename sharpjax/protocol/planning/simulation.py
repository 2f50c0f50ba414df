"""The p values of simulated studies, by the registered test: the power of tests whose law no
formula knows."""

import functools
from typing import Any

import numpy as np

from sharpjax.errors import unknown
from sharpjax.protocol.planning import generative
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Alternative

QUICK = ("wilcoxon", "mann-whitney", "auc", "pairwise-difference", "jonckheere", "page")
# Their data have no chance in them, or no model here says what an effect would be.
NO_MODEL = ("identical", "kendall-difference", "spearman-pooled", "fit-error")


def default_studies(test: str) -> int:
    """How many are simulated: 1000 where a call takes .1 ms, else 100."""
    return 1000 if test in QUICK else 100


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
    options: dict[str, Any] = {"alternative": alternative, "null": null, "margin": margin or 0.0}
    every = enumerate(batch.samples())
    return np.array([catalog.run(test, one, seed=seed + i, **options).p for i, one in every])


def shift_of(test: str) -> generative.Shift:
    """Which groups an effect shifts."""
    return "first" if "ratio" in test else "steps"
