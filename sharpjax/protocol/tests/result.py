"""What a statistical test takes and gives: the one shape that all of `protocol` shares.

A test is a pure function

    test(samples, *, alternative, margin=0.0, null=None, confidence=0.95, seed=0) -> TestResult

of `Samples`. `alternative` is about the first group against the others ("greater": it is the
larger). `null` is the effect under the null hypothesis, None for the test's own (0 for differences,
1 for ratios, 0.5 for proportions). `margin` is the smallest effect of interest; only tests of
equivalence and non-inferiority use it. `seed` feeds resampling, so that the same samples give the
same numbers. `protocol.tests.catalog` names every test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Alternative = Literal["two-sided", "greater", "less"]
UNKNOWN = (math.nan, math.nan)  # an interval


@dataclass(frozen=True)
class Samples:
    """The numbers that one contrast compares.

    Attributes:
        groups: float64 arrays, one for each group, in the order of the contrast. Paired tests take
            arrays of one length, unit i the same (a seed, say) in all; pairwise tests take square
            arrays, model by model, with NaN on the diagonal.
        seen: for times only: True where the event was seen, False where the unit was censored then.
        clusters: for units that are not independent (layers of one seed): the label of each unit's
            cluster, in every group alike.
    """

    groups: tuple[np.ndarray, ...]
    seen: tuple[np.ndarray, ...] | None = None
    clusters: np.ndarray | None = None


class TestResult(NamedTuple):
    """What a test says of its samples.

    Attributes:
        effect: the estimate, in the units that `protocol.tests.catalog` names for the test.
        interval: for `effect`, at the confidence asked for, two-sided; NaN where none is known.
        p: against the null, in the direction of the alternative.
        opposite_p: in the opposite direction; for a two-sided alternative the same as `p`.
        min_attainable_p: the smallest `p` that any data of these sizes could give (0 where there is
            no such floor).
        n: how many units each group has.
    """

    __test__ = False  # no test for pytest to collect

    effect: float
    interval: tuple[float, float]
    p: float
    opposite_p: float
    min_attainable_p: float
    n: tuple[int, ...]


def nothing_known(effect: float, sizes: Sequence[int]) -> TestResult:
    """The result where units are too few, or too alike, to say anything: p is 1.

    >>> nothing_known(0.5, [1, 1])[:5]
    (0.5, (nan, nan), 1.0, 1.0, 1.0)
    """
    return TestResult(effect, UNKNOWN, 1.0, 1.0, 1.0, tuple(sizes))
