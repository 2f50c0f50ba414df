"""The range of activations, from batches that pass by: calibration.

    observer = Percentile(0.999)
    state = observer.init()
    for batch in batches:
        state = observer.update(state, batch)
    low, high = observer.range(state)
    grid = grid_of_range(low, high, 8, symmetric=False)

An observer is a frozen dataclass, equal by value, with three pure functions: `init()`,
`update(state, x)` of an array of any shape, which may be jitted, and `range(state)`, scalars
(low, high) in float32. All numbers of an array count alike. The range of nothing, or of numbers
among which one is NaN or infinite, is NaN, and so is what is quantised with it. `MinMax` and
`Percentile` do not depend on how the numbers were cut into batches, nor on their order.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sharpjax.errors import UserError

Range = tuple[jax.Array, jax.Array]
_MOST = 2.0**31 * (1 - 1e-6)  # counted in an int32


class Observer(Protocol):
    """What `activations.calibrate` takes."""

    def init(self) -> Any: ...
    def update(self, state: Any, x: jax.Array) -> Any: ...
    def range(self, state: Any) -> Range: ...


class Ends(NamedTuple):
    """The least and the greatest number so far, NaN where one was not finite, and whether there was
    any."""

    low: jax.Array
    high: jax.Array
    seen: jax.Array


def _ends(x: jax.Array) -> Ends:
    x = x.astype(jnp.float32)
    unsound = ~jnp.all(jnp.isfinite(x))
    nan = jnp.full((), jnp.nan, jnp.float32)
    low, high = (jnp.where(unsound, nan, fn(x)) for fn in (jnp.min, jnp.max))
    return Ends(low, high, jnp.ones((), bool))


def _nothing() -> Ends:
    zero = jnp.zeros((), jnp.float32)
    return Ends(zero, zero, jnp.zeros((), bool))


def _joined(old: Ends, new: Ends, low: jax.Array, high: jax.Array) -> Ends:
    """`low` and `high`, of the old and the new, or the new alone where nothing was seen before."""
    seen = old.seen
    return Ends(jnp.where(seen, low, new.low), jnp.where(seen, high, new.high), new.seen)


def _if_seen(ends: Ends) -> Range:
    nan = jnp.full((), jnp.nan, jnp.float32)
    return jnp.where(ends.seen, ends.low, nan), jnp.where(ends.seen, ends.high, nan)


@dataclasses.dataclass(frozen=True)
class MinMax:
    """From the least to the greatest number of all.

    >>> observer = MinMax()
    >>> state = observer.update(observer.init(), jnp.array([1.0, -2.0]))
    >>> [float(end) for end in observer.range(observer.update(state, jnp.array([3.0])))]
    [-2.0, 3.0]
    """

    def init(self) -> Ends:
        return _nothing()

    def update(self, state: Ends, x: jax.Array) -> Ends:
        if not x.size:
            return state
        new = _ends(x)
        low, high = jnp.minimum(state.low, new.low), jnp.maximum(state.high, new.high)
        return _joined(state, new, low, high)

    def range(self, state: Ends) -> Range:
        return _if_seen(state)


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """Averages of the least and of the greatest numbers of batches: a <- a + rate (new - a), from
    those of the first batch on. It depends on the order of batches.

    Attributes:
        rate: above 0 and at most 1; PyTorch's default is 0.01.

    >>> observer = MovingAverage(0.5)
    >>> state = observer.update(observer.init(), jnp.array([0.0, 2.0]))
    >>> [float(end) for end in observer.range(observer.update(state, jnp.array([-1.0, 4.0])))]
    [-0.5, 3.0]
    """

    rate: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"MovingAverage: rate={self.rate}; give a number above 0, at most 1.")

    def init(self) -> Ends:
        return _nothing()

    def update(self, state: Ends, x: jax.Array) -> Ends:
        if not x.size:
            return state
        new = _ends(x)
        low = state.low + self.rate * (new.low - state.low)
        high = state.high + self.rate * (new.high - state.high)
        return _joined(state, new, low, high)

    def range(self, state: Ends) -> Range:
        return _if_seen(state)


class Power(NamedTuple):
    """How many numbers, and the mean of their squares."""

    count: jax.Array
    mean_square: jax.Array


@dataclasses.dataclass(frozen=True)
class RootMeanSquare:
    """From -factor r to factor r, r the root of the mean square of all numbers.

    Attributes:
        factor: above 0. For normal numbers the mean error is least near 2.55 at 4 bits and near
            3.92 at 8 (arXiv 1810.05723).

    >>> observer = RootMeanSquare(2.0)
    >>> state = observer.update(observer.init(), jnp.array([3.0, -3.0]))
    >>> [float(end) for end in observer.range(state)]
    [-6.0, 6.0]
    """

    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise UserError(f"RootMeanSquare: factor={self.factor}; give a number above 0.")

    def init(self) -> Power:
        zero = jnp.zeros((), jnp.float32)
        return Power(zero, zero)

    def update(self, state: Power, x: jax.Array) -> Power:
        if not x.size:
            return state
        count = state.count + x.size
        new = jnp.mean(jnp.square(x.astype(jnp.float32)))
        return Power(count, state.mean_square + (new - state.mean_square) * (x.size / count))

    def range(self, state: Power) -> Range:
        root = jnp.sqrt(state.mean_square)
        end = jnp.where((state.count > 0) & jnp.isfinite(root), self.factor * root, jnp.nan)
        return -end, end


class Histogram(NamedTuple):
    """Counts of numbers in equal bins from -2^e to 2^e, beside their ends."""

    counts: jax.Array
    exponent: jax.Array
    total: jax.Array
    ends: Ends


@dataclasses.dataclass(frozen=True)
class Percentile:
    """The central share of all numbers: at most (1 - share) / 2 of them lie beyond each end.

    By a histogram from -2^e to 2^e, the least power of two that holds all numbers; when a larger
    one comes, neighbouring bins are added, which is exact. Each end is that of a bin, so it is at
    most 2 / bins of 2^e, and 4 / bins of the largest number, further out than need be, and never
    beyond the least or the greatest number. Up to 2^31 numbers; of more the range is NaN.

    Attributes:
        share: above 0 and at most 1.
        bins: a power of two, from 4 to 65536.

    >>> observer = Percentile(0.98)
    >>> state = observer.update(observer.init(), jnp.arange(-50.0, 51.0))
    >>> [float(end) for end in observer.range(state)]
    [-49.0, 49.0625]
    """

    share: float
    bins: int = 2048

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"Percentile: share={self.share}; give a number above 0, at most 1.")
        if self.bins not in [2**i for i in range(2, 17)]:
            raise UserError(f"Percentile: bins={self.bins}; give a power of two from 4 to 65536.")

    def init(self) -> Histogram:
        none = jnp.zeros(self.bins, jnp.int32)
        return Histogram(none, jnp.int32(-126), jnp.zeros((), jnp.float32), _nothing())

    def update(self, state: Histogram, x: jax.Array) -> Histogram:
        if not x.size:
            return state
        ends = MinMax().update(state.ends, x)
        flat = x.astype(jnp.float32).reshape(-1)
        finite = jnp.isfinite(flat)
        flat = jnp.where(finite, flat, jnp.zeros_like(flat))
        # |x| = m 2^e with m < 1, so 2^e lies beyond x.
        exponent = jnp.maximum(state.exponent, jnp.frexp(jnp.max(jnp.abs(flat)))[1])
        half = self.bins // 2
        shift = jnp.minimum(exponent - state.exponent, 31)
        old = (jnp.arange(-half, half, dtype=jnp.int32) >> shift) + half
        places = jnp.floor(jnp.ldexp(flat, half.bit_length() - 1 - exponent)).astype(jnp.int32)
        counts = jnp.zeros_like(state.counts).at[old].add(state.counts)
        counts = counts.at[places + half].add(1)
        return Histogram(counts, exponent, state.total + x.size, ends)

    def range(self, state: Histogram) -> Range:
        ends = _if_seen(state.ends)
        below = jnp.cumsum(state.counts)
        beyond = jnp.floor((1 - self.share) / 2 * state.total).astype(jnp.int32)
        # The first bin with which more than `beyond` are counted, from each side.
        first = jnp.argmax(below > beyond)
        last = jnp.argmax(below >= below[-1] - beyond)
        half = self.bins // 2
        width = state.exponent - (half.bit_length() - 1)
        low = jnp.ldexp((first - half).astype(jnp.float32), width)
        high = jnp.ldexp((last + 1 - half).astype(jnp.float32), width)
        low, high = jnp.maximum(low, ends[0]), jnp.minimum(high, ends[1])
        sound = state.total < _MOST
        return jnp.where(sound, low, jnp.nan), jnp.where(sound, high, jnp.nan)
