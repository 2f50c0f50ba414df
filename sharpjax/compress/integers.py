"""Arrays as integers of 2 to 8 bits: `quantise`, `dequantise`, and both as `fake_quantise`.

    held = quantise(kernel, 8, axis=-1)     # int8, one step for each output channel
    held.values, held.grid.scale
    dequantise(held)                        # floats again, within half a step

Integers of fewer than 8 bits are kept in int8, too (narrower types of jax are not there for every
backend); `size` counts them as the bits that they need.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.compress import blocks
from sharpjax.compress import grid as grids
from sharpjax.compress.blocks import Axis
from sharpjax.compress.grid import Bound, Grid, Rounding
from sharpjax.errors import UserError


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Quantised:
    """An array as integers on a grid.

    Attributes:
        values: int8, in the shape of the array.
        grid: its scale, zero point and bits; see `grid.Grid`.
        dtype: name of the type that the array had.
    """

    values: jax.Array
    grid: Grid
    dtype: str = dataclasses.field(default="float32", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def quantise(
    x: jax.Array,
    bits: int,
    *,
    symmetric: bool = True,
    axis: Axis = None,
    tiles: Mapping[int, int] | None = None,
    bound: Bound = "integer",
    rounding: Rounding = "nearest",
    key: jax.Array | None = None,
) -> Quantised:
    """The integers q = round(x / s) + z of an array, with the step s that its range asks for.

    The formulas of s and z are in `grid`. Each number that is not clipped is held within s / 2
    (s if stochastic), and with `bound="half"` the clipped ones are, too. Halves go to the even
    integer. Computed in float32 at least. A block of zeros has s = 1.

    Args:
        x: floats.
        bits: b, from 2 to 8.
        symmetric: z = 0; else the range is that from the least to the greatest number and 0.
        axis: None for one step; the axis, or axes, whose every index has its own: -1, the output
            channels, for kernels of Flax.
        tiles: by axis, how many in a row share a step: {0: 32}.
        bound: of a symmetric grid, which number of steps the largest number is: 'integer',
            2^(b-1) - 1, held exactly (TFLite); 'half', half a step more (qwix, torchao).
        rounding: 'nearest', or 'stochastic', unbiased for numbers inside of the range.
        key: for stochastic rounding.

    Cost: two passes over the array.

    Raises:
        UserError: an argument that is not allowed; x holds NaN or infinity. Inside a trace that is
            not raised: the blocks that hold one get s = NaN, and are NaN when dequantised.

    >>> held = quantise(jnp.array([[-1.0, 0.3, 0.7], [2.0, -4.0, 1.0]]), 8, axis=1, bound="half")
    >>> held.values.tolist()
    [[-64, 10, 89], [127, -127, 127]]
    >>> print(held.grid.scale * 127.5)
    [[2. 4. 1.]]
    """
    x, bits = check(
        "quantise", x, bits, symmetric=symmetric, bound=bound, rounding=rounding, key=key
    )
    sizes = blocks.shape_of_blocks("quantise", x.shape, axis, tiles)
    return as_integers(x, key, bits, symmetric, sizes, bound)


def dequantise(held: Quantised) -> jax.Array:
    """s (q - z), in the type that the array had.

    >>> print(dequantise(quantise(jnp.array([-1.0, 0.5, 0.1]), 2)))
    [-1.  0.  0.]
    """
    scale = held.grid.scale
    return grids.read(held.grid, held.values.astype(scale.dtype)).astype(held.dtype)


def fake_quantise(
    x: jax.Array,
    bits: int,
    *,
    symmetric: bool = True,
    axis: Axis = None,
    tiles: Mapping[int, int] | None = None,
    bound: Bound = "integer",
    rounding: Rounding = "nearest",
    key: jax.Array | None = None,
) -> jax.Array:
    """`dequantise(quantise(x, ..))`, with the straight-through derivative.

    The derivative of rounding is 0, or there is none. In its place stands that of clipping (Y.
    Bengio et al., 2013, arXiv 1308.3432): 1 for a number that is rounded, 0 for one that is
    clipped, as in PyTorch; the step counts as a constant. Forwards and backwards, and of any order:
    with M the diagonal matrix of these ones and zeros, and f a loss, the gradient of f(q(x)) is
    M g and its Hessian M H M, with g and H those of f at q(x). No second derivative of rounding is
    added: it is 0. With `bound="integer"` all of the array is inside, and M = 1.

    Args and errors: as of `quantise`; inside a trace, blocks with a number that is not finite are
    NaN.

    >>> x = jnp.array([0.9, 2.0, -0.2])
    >>> fake_quantise(x, 2, bound="half").tolist()  # s = 2 / 1.5
    [1.3333333730697632, 1.3333333730697632, 0.0]
    >>> jax.grad(lambda x: jnp.sum(fake_quantise(x, 2, bound="half")))(x).tolist()
    [1.0, 0.0, 1.0]
    """
    caller = "fake_quantise"
    x, bits = check(caller, x, bits, symmetric=symmetric, bound=bound, rounding=rounding, key=key)
    sizes = blocks.shape_of_blocks(caller, x.shape, axis, tiles)
    return as_rounded(x, key, bits, symmetric, sizes, bound)


def fake_quantise_onto(x: jax.Array, grid: Grid, *, key: jax.Array | None = None) -> jax.Array:
    """`fake_quantise` with a grid that is given, such as one of observed ranges (`observers`).

    Numbers beyond the grid are clipped to its ends, where the derivative is 0. The same numbers
    again are unchanged, bit for bit. No step is found, so nothing but x need be finite; what is not
    becomes NaN.

    Args:
        x: floats.
        grid: its scale is a scalar, or has an axis for each of x, of lengths that divide those.
        key: for stochastic rounding.

    Raises:
        UserError: x is not of floats, or the grid is of another shape.

    >>> fake_quantise_onto(jnp.array([-3.0, 0.3, 0.9]), grids.grid_of_range(-1.0, 1.0, 2)).tolist()
    [-1.0, 0.0, 1.0]
    """
    x = jnp.asarray(x)
    tree.check_floating("fake_quantise_onto", x, "x")
    if grid.scale.ndim == 0:
        grid = jax.tree.map(lambda part: part.reshape((1,) * x.ndim), grid)
    have = grid.scale.shape
    if len(have) != x.ndim or any(c and n % c for n, c in zip(x.shape, have, strict=True)):
        raise UserError(
            f"fake_quantise_onto: a grid {list(have)} for an array {list(x.shape)}; give a scalar "
            "scale, or an axis for each of the array's, of lengths that divide them."
        )
    return _straight_through(x, grid, key)


def check(
    caller: str,
    x: Any,
    bits: int,
    *,
    symmetric: bool,
    bound: str,
    rounding: str,
    key: jax.Array | None,
    argument: str = "x",
) -> tuple[jax.Array, int]:
    """An array and a number of bits that may be quantised so.

    Raises:
        UserError: names `caller`, and what does not fit.
    """
    bits = grids.whole_bits(caller, bits)
    grids.check_options(caller, bound, rounding, key)
    if not symmetric and bound != "integer":
        raise UserError(f"{caller}: bound={bound!r} is of symmetric grids; leave it out.")
    tree.check_floating(caller, jnp.asarray(x), argument)
    refuse_non_finite(caller, x, argument)
    return jnp.asarray(x), bits


def refuse_non_finite(caller: str, x: Any, argument: str) -> None:
    """Raises a `UserError` where an array that is no tracer holds NaN or infinity."""
    if loops.is_traced(x):
        return
    finite = np.isfinite(np.asarray(x))
    if not finite.all():
        raise UserError(
            f"{caller}: {argument} holds NaN or infinity in {finite.size - finite.sum()} of "
            f"{finite.size} places; no step fits those."
        )


def _grid(x, bits, symmetric, sizes, bound) -> tuple[jax.Array, Grid]:
    wide = x.astype(grids.computed_in(x.dtype))
    fixed = jax.lax.stop_gradient(wide)
    low = blocks.reduce(functools.partial(jnp.min, initial=0), fixed, sizes)
    high = blocks.reduce(functools.partial(jnp.max, initial=0), fixed, sizes)
    return wide, grids.make(low, high, bits, symmetric=symmetric, bound=bound)


_STATIC = ("bits", "symmetric", "sizes", "bound")


@functools.partial(jax.jit, static_argnames=_STATIC)
def as_integers(
    x: jax.Array,
    key: jax.Array | None,
    bits: int,
    symmetric: bool,
    sizes: tuple[int, ...],
    bound: Bound,
) -> Quantised:
    """`quantise` of checked arguments, in blocks of the shape `sizes`."""
    wide, grid = _grid(x, bits, symmetric, sizes, bound)
    values = grids.locate(grid, wide, key).values
    values = jnp.where(jnp.isnan(values), jnp.zeros_like(values), values)
    return Quantised(values.astype(jnp.int8), grid, x.dtype.name)


@functools.partial(jax.jit, static_argnames=_STATIC)
def as_rounded(
    x: jax.Array,
    key: jax.Array | None,
    bits: int,
    symmetric: bool,
    sizes: tuple[int, ...],
    bound: Bound,
) -> jax.Array:
    """`fake_quantise` of checked arguments, in blocks of the shape `sizes`."""
    _, grid = _grid(x, bits, symmetric, sizes, bound)
    return _straight_through(x, grid, key)


def _straight_through(x, grid, key):
    wide = x.astype(grids.computed_in(x.dtype, grid.scale.dtype))
    fixed, grid = jax.lax.stop_gradient((wide, grid))
    grid = dataclasses.replace(grid, scale=grid.scale.astype(wide.dtype))
    cells = grids.locate(grid, fixed, key)
    value = grids.read(grid, cells.values)
    value = jnp.where(jnp.isfinite(fixed), value, jnp.full_like(value, jnp.nan)).astype(x.dtype)
    # A term that is 0, and has the derivative that is wanted, however often it is taken.
    through = jnp.where(cells.inside, x - jax.lax.stop_gradient(x), jnp.zeros_like(x))
    return value + through
