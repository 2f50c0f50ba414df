"""What a statistical test takes and gives.

`protocol.tests.catalog` names every test. `catalog.run` calls one: it makes a checked
`protocol.tests.question.Question` of samples and options, and the test is a pure function of that.
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
            arrays of one length, with unit i the same (a seed, say) in all; pairwise tests take
            square arrays over the models, with NaN on the diagonal.
        seen: for times only: True if the event was seen, False if the unit was censored then.
        clusters: for units that are not independent (layers of one seed): the label of each unit's
            cluster; once for groups that share units, else for one group after the other.
        arms: for units that belong to several arms: the label of each unit's arm, once for all
            groups.
    """

    groups: tuple[np.ndarray, ...]
    seen: tuple[np.ndarray, ...] | None = None
    clusters: np.ndarray | None = None
    arms: np.ndarray | None = None


class TestResult(NamedTuple):
    """The result of a test.

    Attributes:
        effect: the estimate, in the units that `protocol.tests.catalog` names for the test.
        interval: for `effect`, two-sided, at a confidence between 0 and 1; NaN for tests that give
            none. It agrees with p (`question.conclude`).
        p: against the null, in the direction of the alternative.
        opposite_p: in the opposite direction; for a two-sided alternative the same as `p`, except
            in `tost` and `identical`.
        min_attainable_p: the smallest `p` that any data of these sizes could give (0 if there is no
            such floor).
        n: the number of units in each group.
        nothing: why these samples say nothing, in words; '' if they say something.
    """

    __test__ = False  # pytest must not collect it

    effect: float
    interval: Interval
    p: float
    opposite_p: float
    min_attainable_p: float
    n: tuple[int, ...]
    nothing: str = ""
