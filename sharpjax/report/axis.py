"""The axis of a drawing: maps values to places, with round ticks."""

import math
from collections.abc import Iterable
from typing import NamedTuple

# Beyond these the difference of two numbers, or a tick between them, may overflow or underflow.
_LARGEST, _SMALLEST = 1e300, 1e-300


class Axis(NamedTuple):
    """An axis from `low` at `start` to `high` at `end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; a value outside the axis is put at its end."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(min(max(value, self.low), self.high)) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, most: int = 5) -> list[float]:
        """At most `most` round values within the axis."""
        if self.log:
            exponents = _round_values(math.log10(self.low), math.log10(self.high), most, least=1)
            ticks = [10.0**exponent for exponent in exponents]
        else:
            ticks = _round_values(self.low, self.high, most)
        # Rounding may put a multiple at an end of the axis slightly beyond it.
        return [min(max(tick, self.low), self.high) for tick in ticks]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Axis:
    """An axis for all finite `values`, with a small margin at each end.

    With `log` it is logarithmic if all values are positive and the largest is more than 100 times
    the smallest.

    >>> fit([0.0, 1.0], 0, 100)
    Axis(low=-0.06, high=1.06, start=0, end=100, log=False)
    """
    finite = [_bounded(v) for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    if log and low > 0 and high / 100 > low:
        low, high = math.log10(low), math.log10(high)
        air = 0.06 * (high - low)
        return Axis(10 ** max(low - air, -305), 10 ** min(high + air, 305), start, end, True)
    # A range as small as rounding errors cannot be drawn.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        air = 0.1 * max(abs(low), abs(high)) or 1.0
    else:
        air = 0.06 * (high - low)
    return Axis(low - air, high + air, start, end)


def _bounded(value: float) -> float:
    return 0.0 if abs(value) < _SMALLEST else min(max(value, -_LARGEST), _LARGEST)


def _round_values(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most `most` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        width = max(step * factor, least)
        first, last = math.ceil(low / width), math.floor(high / width)
        if last - first < most:
            return [i * width for i in range(first, last + 1)]
    return []
