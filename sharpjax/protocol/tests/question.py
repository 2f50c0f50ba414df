"""What a test is asked, and how its answer is put together.

`protocol.tests.catalog` makes a `Question` of samples and options, once for all tests. This module
reads the samples and refuses those that no test can use.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sharpjax.errors import UserError
from sharpjax.protocol.tests.result import Alternative, TestResult

ONE_UNIT = "a group has one unit, whose spread nobody knows"
# Share of the larger of two numbers; smaller differences are rounding.
RESOLUTION = 8 * float(np.finfo(np.float64).eps)
RESOLUTION_OF_FLOAT32 = 8 * float(np.finfo(np.float32).eps)  # the same of values in float32
_LARGEST = 1e150  # squares of larger numbers overflow
_ROUNDING = 1e-9  # share of the tail of a confidence


@dataclass(frozen=True)
class Question:
    """Samples and options that a test can rely on.

    Attributes:
        groups: float64 vectors of finite numbers, of one length if units belong together (for
            pairwise tests, square arrays as given).
        alternative: about the first group against the others; 'greater' means that it is larger.
        null: the effect under the null hypothesis.
        margin: the smallest effect of interest; above 0 for the tests that need one.
        bounds: the effect lies between them.
        seed: of resampling, so that the same samples give the same numbers.
        units: how many independent units the first group has: clusters, if there are any.
        clusters: the number 0, 1, ... of each unit's cluster (for `auc`, the labels as given); None
            if units are independent.
        seen: as in `Samples`.
        arms: the number 0, 1, ... of each unit's arm; None if arms are not told apart.
    """

    groups: tuple[np.ndarray, ...]
    alternative: Alternative
    null: float
    margin: float
    bounds: tuple[float, float]
    seed: int
    units: int
    clusters: np.ndarray | None = None
    seen: tuple[np.ndarray, ...] | None = None
    arms: np.ndarray | None = None

    def reach(self, effect: float) -> tuple[float, float]:
        """All that the effect could be: the test's bounds, or from -inf if it is below them."""
        low, high = self.bounds
        return -math.inf if effect < low else low, high

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many units each group has."""
        return tuple(len(group) for group in self.groups)

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` over each cluster; without clusters, the values."""
        if self.clusters is None:
            return values
        return np.bincount(self.clusters, weights=values, minlength=self.units)


def conclude(
    question: Question,
    effect: float,
    interval: Callable[[float], tuple[float, float]],
    greater: float,
    less: float,
    floor: float = 0.0,
    least: tuple[float, float] | None = None,
) -> TestResult:
    """The result of a test, with p and interval made to agree.

    No one-sided p is below `floor`. At a confidence whose tail is below `floor`, the interval is
    everything possible: a test that cannot reject anything does not exclude anything. If p is found
    in another way than the interval (exact beside normal), the interval is extended to the null
    whenever p does not reject it. So if an interval at confidence 1 - 2a leaves out the null, there
    is a one-sided p of at most a. The converse holds up to the difference between the two ways,
    exactly if they are the same.

    Args:
        interval: of a confidence; NaN if the test gives none.
        greater, less: the one-sided p.
        floor: the smallest one-sided p of any samples of these sizes, whatever the null.
        least: the same if it depends on the null, for `greater` and `less`.
    """
    greater, less = (min(1.0, max(floor, p)) for p in (greater, less))
    p, opposite_p = directed(question.alternative, greater, less)
    smallest, _ = directed(question.alternative, *(least or (floor, floor)))

    def ends(confidence: float) -> tuple[float, float]:
        if not 0 < confidence < 1:
            raise UserError(f"interval: confidence={confidence}; give a number between 0 and 1.")
        lowest, highest = question.reach(effect)
        tail = (1 - confidence) / 2 * (1 + _ROUNDING)
        if tail < floor:
            return lowest, highest
        low, high = interval(confidence)
        if greater > tail:
            low = min(low, question.null)
        if less > tail:
            high = max(high, question.null)
        return max(low, lowest), min(high, highest)

    return TestResult(effect, ends, p, opposite_p, smallest, question.sizes)


def nothing_known(question: Question, effect: float, why: str, floor: float = 1.0) -> TestResult:
    """The result if units are too few, or too alike, to say anything: p is 1.

    Args:
        floor: the smallest one-sided p of other samples of these sizes.
    """
    everything = question.reach(effect)
    result = conclude(question, effect, lambda confidence: everything, 1.0, 1.0, floor)
    return result._replace(nothing=why)


def directed(alternative: Alternative, greater: float, less: float) -> tuple[float, float]:
    """`p` and `opposite_p` from the two one-sided p; two-sided is twice the smaller of them.

    >>> directed("less", 0.9, 0.2), directed("two-sided", 0.9, 0.2)
    ((0.2, 0.9), (0.4, 0.4))
    """
    if alternative == "greater":
        return greater, less
    if alternative == "less":
        return less, greater
    both = min(1.0, 2.0 * min(greater, less))
    return both, both


def vector(group: np.ndarray, number: int) -> np.ndarray:
    """A group as float64.

    Raises:
        UserError: it is empty or not a vector, or a value is not finite or not below 1e150.
    """
    values = np.asarray(group, np.float64)
    if values.ndim != 1 or not values.size:
        raise UserError(f"group {number} has shape {values.shape}; give one number for each unit.")
    bad = np.flatnonzero(~(np.abs(values) < _LARGEST))
    if bad.size:
        some = "1 value that is" if bad.size == 1 else f"{bad.size} values that are"
        raise UserError(
            f"group {number} has {some} not finite (unit {bad[0]} is {values[bad[0]]:g}; the limit "
            f"is {_LARGEST:g}); leave such units out and count them."
        )
    return values


def tied(values: np.ndarray) -> np.ndarray:
    """The same, with one number for values that are equal up to rounding, so that they tie.

    >>> tied(np.array([0.3, 5.0, 0.1 + 0.2])).tolist()
    [0.3, 5.0, 0.3]
    """
    order = np.argsort(values)
    ordered = values[order]
    larger = np.maximum(np.abs(ordered[1:]), np.abs(ordered[:-1]))
    first = np.concatenate(([True], np.diff(ordered) > RESOLUTION * larger))
    same = np.empty_like(values)
    same[order] = ordered[first][np.cumsum(first) - 1]
    return same


def codes(what: str, labels: np.ndarray | None, size: int) -> np.ndarray | None:
    """Labels as numbers 0, 1, ...

    Raises:
        UserError: there are not `size` labels.

    >>> codes("clusters", np.array(["b", "a", "b"]), 3).tolist()
    [1, 0, 1]
    """
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.shape != (size,):
        raise UserError(f"{what} has shape {labels.shape}; give {size} labels.")
    return np.unique(labels, return_inverse=True)[1]


def cluster_codes(labels: np.ndarray | None, size: int) -> np.ndarray | None:
    """The same for clusters; None if every unit is one by itself."""
    found = codes("clusters", labels, size)
    return None if found is None or int(found.max()) + 1 == size else found
