"""What a statistical test takes and gives.

`protocol.tests.catalog` names every test, and `catalog.run` is how one is called: it makes one
checked `protocol.tests.question.Question` of samples and options, and a test is a pure function of
that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Alternative = Literal["two-sided", "greater", "less"]
Interval = Callable[[float], tuple[float, float]]


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
        arms: for units that several arms share out: the label of each unit's arm, in every group
            alike.
    """

    groups: tuple[np.ndarray, ...]
    seen: tuple[np.ndarray, ...] | None = None
    clusters: np.ndarray | None = None
    arms: np.ndarray | None = None


class TestResult(NamedTuple):
    """What a test says of its samples.

    Attributes:
        effect: the estimate, in the units that `protocol.tests.catalog` names for the test.
        interval: for `effect`, two-sided, of a confidence between 0 and 1; NaN for tests that give
            none. It agrees with p (`question.conclude`).
        p: against the null, in the direction of the alternative.
        opposite_p: in the opposite direction; for a two-sided alternative the same as `p`.
        min_attainable_p: the smallest `p` that any data of these sizes could give (0 where there is
            no such floor).
        n: how many units each group has.
        nothing: why these samples say nothing, in words; '' where they say something.
    """

    __test__ = False  # no test for pytest to collect

    effect: float
    interval: Interval
    p: float
    opposite_p: float
    min_attainable_p: float
    n: tuple[int, ...]
    nothing: str = ""
