"""The evenly spaced values that integers q of a few bits represent: s (q - z).

The range [low, high] of the numbers to represent gives the step s and the zero point z:

    symmetric, bound="integer"   s = max(|low|, |high|) / (2^(b-1) - 1)
    symmetric, bound="half"      s = max(|low|, |high|) / (2^(b-1) - 1/2)
    asymmetric                   s = (high - low) / (2^b - 1), z = -2^(b-1) - round(low / s)

A symmetric grid has z = 0 and integers from -(2^(b-1) - 1) to 2^(b-1) - 1. So x and -x are
represented with the same magnitude. With "integer" (TFLite: 127 for 8 bits) the largest number is
represented exactly. With "half" (qwix and torchao: 127.5) it lies at the far edge of the last cell,
half a step off, and all steps are shorter by a factor of (2^b - 2) / (2^b - 1), which is a lot at
few bits. An asymmetric grid uses all 2^b integers. Its range is first widened to contain 0, which
is represented exactly by the integer z (B. Jacob et al., 2018, arXiv 1712.05877).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax import loops, tree
from sharpjax.compress import blocks
from sharpjax.errors import UserError

Bound = Literal["integer", "half"]
Rounding = Literal["nearest", "stochastic"]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The numbers s (q - z) for the integers q from `lowest` to `highest`.

    Attributes:
        scale: s, one for each block (see `blocks`), in float32 at least.
        zero_point: z, int32 in the shape of `scale`; None for a symmetric grid, where it is 0.
        bits: b, from 2 to 8.
    """

    scale: jax.Array
    zero_point: jax.Array | None
    bits: int = dataclasses.field(metadata={"static": True})

    @property
    def highest(self) -> int:
        """2^(b-1) - 1."""
        return 2 ** (self.bits - 1) - 1

    @property
    def lowest(self) -> int:
        """-highest for a symmetric grid, else -2^(b-1)."""
        return -self.highest - (self.zero_point is not None)


class Cells(NamedTuple):
    """Where numbers fall on a grid.

    Attributes:
        values: the integers q, as floats; NaN for a NaN.
        inside: whether the number was rounded and not clipped.
    """

    values: jax.Array
    inside: jax.Array


def whole_bits(caller: str, bits: int) -> int:
    """Checks a number of bits.

    Raises:
        UserError: it is not a whole number from 2 to 8.
    """
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 2 <= bits <= 8:
        why = ""
        if not isinstance(bits, bool) and bits == 1:
            why = " With 1 bit a symmetric grid holds 0 alone."
        if not isinstance(bits, bool) and bits in (16, 32):
            why = " For 16 bits, float16, see `cast`; 32 are the weights as they are."
        raise UserError(f"{caller}: bits={bits!r}; give a whole number from 2 to 8.{why}")
    return int(bits)


def check_options(caller: str, bound: str, rounding: str = "nearest", key: object = None) -> None:
    """Checks `bound` and `rounding`, and that a key is given with 'stochastic' and only then.

    Raises:
        UserError: names the argument that is not allowed.
    """
    if bound not in ("integer", "half"):
        raise UserError(f"{caller}: bound={bound!r}; give 'integer' or 'half'.")
    if rounding not in ("nearest", "stochastic"):
        raise UserError(f"{caller}: rounding={rounding!r}; give 'nearest' or 'stochastic'.")
    if rounding == "stochastic" and key is None:
        raise UserError(f"{caller}: rounding='stochastic' draws; give key=jax.random.key(..).")
    if rounding == "nearest" and key is not None:
        raise UserError(
            f"{caller}: rounding='nearest' draws nothing; leave out key, or give "
            "rounding='stochastic'."
        )


def computed_in(*dtypes: Any) -> Any:
    """float64 if one of the dtypes is, else float32; also under strict type promotion."""
    return jnp.float64 if any(d == jnp.float64 for d in dtypes) else jnp.float32


def grid_of_range(
    low: ArrayLike,
    high: ArrayLike,
    bits: int,
    *,
    symmetric: bool = True,
    bound: Bound = "integer",
) -> Grid:
    """The grid for numbers from `low` to `high`, such as an observed range.

    The formulas are in the module docstring. If s would be below the smallest normal number, it is
    1, and all numbers of the range become 0. If the range is not finite, s is NaN.

    Args:
        low, high: arrays of one shape, with a range for each block; scalars for a whole array, or
            a scalar as the end of all blocks.
        bits: b, from 2 to 8.
        symmetric, bound: as above; `bound` is used only by symmetric grids.

    Raises:
        UserError: invalid `bits` or `bound`; two arrays of different shapes; outside a trace, a
            `low` above its `high`.

    >>> grid = grid_of_range(-0.5, 1.0, 8, symmetric=False)
    >>> print(f"{255 * grid.scale:.4f}", grid.zero_point, grid.lowest, grid.highest)
    1.5000 -43 -128 127
    """
    bits = whole_bits("grid_of_range", bits)
    check_options("grid_of_range", bound)
    shapes = np.shape(low), np.shape(high)
    if shapes[0] != shapes[1] and () not in shapes:
        raise UserError(
            f"grid_of_range: low of shape {list(shapes[0])}, high of shape {list(shapes[1])}; give "
            "arrays of one shape, or a scalar for one of them."
        )
    if not loops.is_traced((low, high)) and np.any(np.asarray(low) > np.asarray(high)):
        raise UserError("grid_of_range: a low end lies above its high end; give low <= high.")
    low, high = jnp.asarray(low), jnp.asarray(high)
    wide = computed_in(low.dtype, high.dtype)
    low, high = low.astype(wide), high.astype(wide)
    return make(low, high, bits, symmetric=symmetric, bound=bound)


def make(low: jax.Array, high: jax.Array, bits: int, *, symmetric: bool, bound: str) -> Grid:
    """`grid_of_range` for floats of one type, without checks."""
    highest = 2 ** (bits - 1) - 1
    if symmetric:
        top = highest if bound == "integer" else highest + 0.5
        return Grid(_sound(jnp.maximum(jnp.abs(low), jnp.abs(high)) / top), None, bits)
    zero = jnp.zeros_like(low)
    low, high, steps = jnp.minimum(low, zero), jnp.maximum(high, zero), 2**bits - 1
    scale = _sound(high / steps - low / steps)
    # Compute in floats first: NaN has no integer value.
    point = -highest - 1 - jnp.round(_in_steps(low, scale))
    point = jnp.where(jnp.isnan(point), zero, jnp.clip(point, -highest - 1, highest))
    return Grid(scale, point.astype(jnp.int32), bits)


def _sound(scale: jax.Array) -> jax.Array:
    one = jnp.ones_like(scale)
    scale = jnp.where(scale < jnp.finfo(scale.dtype).tiny, one, scale)
    return jnp.where(jnp.isfinite(scale), scale, jnp.nan * one)


def _in_steps(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / s, also where 1 / s is below the least normal number, which XLA may multiply by as 0."""
    less = jnp.where(scale > 1, jnp.full_like(scale, 1 / 16), jnp.ones_like(scale))  # exact
    return (x * less) / (scale * less)


def locate(grid: Grid, x: jax.Array, key: jax.Array | None = None) -> Cells:
    """The integers for numbers of the grid's type: round(x / s) + z, clipped to the grid.

    Rounding is to nearest, halves to even. With a key it is stochastic: up with probability equal
    to the fraction, so that the mean is x / s for x from the lowest to the highest level.
    """
    ratio = _in_steps(x, blocks.expand(grid.scale, x.shape))
    if key is None:
        values = jnp.round(ratio)
    else:
        # Not floor(ratio + draw), because that sum may round up to the next integer.
        below = jnp.floor(ratio)
        up = jax.random.uniform(key, x.shape, x.dtype) < ratio - below
        values = below + up.astype(x.dtype)
    if grid.zero_point is not None:
        values = values + blocks.expand(grid.zero_point, x.shape).astype(x.dtype)
    inside = (values >= grid.lowest) & (values <= grid.highest)
    return Cells(jnp.clip(values, grid.lowest, grid.highest), inside)


def read(grid: Grid, values: jax.Array) -> jax.Array:
    """s (q - z), for integers q as floats of the grid's type."""
    if grid.zero_point is not None:
        values = values - blocks.expand(grid.zero_point, values.shape).astype(values.dtype)
    return values * blocks.expand(grid.scale, values.shape)
