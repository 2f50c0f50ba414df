"""Calibration: the range of activations, estimated batch by batch.

    observer = Percentile(0.999)
    state = observer.init()
    for batch in batches:
        state = observer.update(state, batch)
    low, high = observer.range(state)
    grid = grid_of_range(low, high, 8, symmetric=False)

An observer is a frozen dataclass, equal by value, with three pure functions. `init()` returns a
state. `update(state, x)` takes an array of any shape and may be jitted. `range(state)` returns
scalars (low, high) in float32. All numbers of an array count equally. The range is NaN if there
were no numbers, or if one is NaN or infinite; everything quantised with it is NaN too. `MinMax` and
`Percentile` do not depend on the order of the numbers or on how they were batched.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sharpjax.errors import UserError

Range = tuple[jax.Array, jax.Array]
_MOST = 2.0**31 * (1 - 1e-6)  # limit of numbers, which are counted in int32


class Observer(Protocol):
    """The interface of observers for `activations.calibrate`."""

    def init(self) -> Any: ...
    def update(self, state: Any, x: jax.Array) -> Any: ...
    def range(self, state: Any) -> Range: ...


class Ends(NamedTuple):
    """The two ends of the range so far, NaN if a number was not finite, and whether any number was
    seen."""

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
    """`low` and `high`, which combine old and new; only the new ends if nothing was seen before."""
    seen = old.seen
    return Ends(jnp.where(seen, low, new.low), jnp.where(seen, high, new.high), new.seen)


def _if_seen(ends: Ends) -> Range:
    nan = jnp.full((), jnp.nan, jnp.float32)
    return jnp.where(ends.seen, ends.low, nan), jnp.where(ends.seen, ends.high, nan)


@dataclasses.dataclass(frozen=True)
class MinMax:
    """The range from the least to the greatest of all numbers.

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
    """Moving averages of the least and of the greatest number of each batch:
    a <- a + rate (new - a), starting from the first batch. Depends on the order of the batches.

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
    """The count of numbers, and the mean of their squares."""

    count: jax.Array
    mean_square: jax.Array


@dataclasses.dataclass(frozen=True)
class RootMeanSquare:
    """The range from -factor r to factor r, with r the root mean square of all numbers.

    Attributes:
        factor: above 0. For normally distributed numbers the mean error is least near 2.55 at 4
            bits and near 3.92 at 8 (arXiv 1810.05723).

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
    """Counts of numbers in equal bins from -2^e to 2^e, their total, and the two ends."""

    counts: jax.Array
    exponent: jax.Array
    total: jax.Array
    ends: Ends


@dataclasses.dataclass(frozen=True)
class Percentile:
    """The range of the central share of all numbers: at most (1 - share) / 2 lie beyond each end.

    It uses a histogram from -2^e to 2^e, with 2^e the least power of two that holds all numbers.
    When a larger number comes, neighbouring bins are added, which is exact. Each end of the range
    is an edge of a bin. So it is too far out by at most 2^e times 2 / bins, or 4 / bins of the
    largest number, and never beyond the least or the greatest number. The limit is 2^31 numbers;
    with more the range is NaN.

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
        # |x| = m 2^e with m < 1, so 2^e is above |x|. Of 0, frexp gives e = 0, which says nothing.
        top = jnp.max(jnp.abs(flat))
        exponent = jnp.where(top > 0, jnp.frexp(top)[1], state.exponent)
        exponent = jnp.maximum(state.exponent, exponent)
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
        # From each side, the first bin at which the count exceeds `beyond`.
        first = jnp.argmax(below > beyond)
        last = jnp.argmax(below >= below[-1] - beyond)
        half = self.bins // 2
        width = state.exponent - (half.bit_length() - 1)
        low = jnp.ldexp((first - half).astype(jnp.float32), width)
        high = jnp.ldexp((last + 1 - half).astype(jnp.float32), width)
        low, high = jnp.maximum(low, ends[0]), jnp.minimum(high, ends[1])
        sound = state.total < _MOST
        return jnp.where(sound, low, jnp.nan), jnp.where(sound, high, jnp.nan)
