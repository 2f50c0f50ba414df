"""What is shown beside the verdict on a contrast: an interval, and the difference of two means."""

from typing import NamedTuple

from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Samples

# Tests whose effects are in units of ranks.
RANKS = ("wilcoxon", "mann-whitney", "auc")


class Interval(NamedTuple):
    confidence: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean of the first group less that of the second; for a single group, its mean."""

    estimate: float
    interval: Interval


def difference(test: str, samples: Samples, confidence: float) -> Difference | None:
    """The difference of the means, for tests whose effect is in units of ranks; else None.

    Its interval is that of the t test: paired (each cluster is one unit for the error), or Welch's.
    It is None, too, if units of independent groups come in clusters.

    >>> import numpy as np
    >>> pairs = Samples((np.array([1.0, 2.0, 6.0]), np.array([0.0, 0.0, 1.0])))
    >>> found = difference("wilcoxon", pairs, 0.95)
    >>> round(found.estimate, 3), round(found.interval.low, 3), round(found.interval.high, 3)
    (2.667, -2.504, 7.838)
    """
    if test not in RANKS or (test != "wilcoxon" and samples.clusters is not None):
        return None
    of_means = "paired-t" if test == "wilcoxon" else "welch"
    found = catalog.run(of_means, samples, alternative="two-sided")
    return Difference(found.effect, Interval(confidence, *found.interval(confidence)))
