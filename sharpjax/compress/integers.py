"""Arrays as integers of 2 to 8 bits: `quantise`, `dequantise`, and both in `fake_quantise`.

    held = quantise(kernel, 8, axis=-1)     # int8, one step for each output channel
    held.values, held.grid.scale
    dequantise(held)                        # floats again, within half a step and a rounding

Integers of fewer than 8 bits are also stored in int8, since not every backend has the narrower
types of jax. `size` counts only the bits that they need.
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
        grid: scale, zero point and bits; see `grid.Grid`.
        dtype: name of the original dtype of the array.
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
    """The integers q = round(x / s) + z of an array, with the step s set by its range.

    The formulas of s and z are in `grid`. The error of a number, also of a clipped one, is at most
    s / 2 (s if stochastic), plus the rounding of the result to the dtype of x, which in bfloat16
    may be more. Halves round to the even integer. Computed in float32 at least. A block of zeros
    has s = 1.

    Args:
        x: floats.
        bits: b, from 2 to 8.
        symmetric: if True, z = 0; else the range is the smallest that contains all numbers and 0.
        axis: None for one step; or the axis or axes of which each index has its own step, such as
            -1, the output channels of Flax kernels.
        tiles: by axis, how many consecutive indices share a step: {0: 32}.
        bound: for a symmetric grid, how many steps the largest number is. 'integer':
            2^(b-1) - 1, so that it is held exactly (TFLite); 'half': half a step more (qwix,
            torchao).
        rounding: 'nearest', or 'stochastic', which is unbiased for numbers from the lowest to the
            highest level of the grid. Numbers beyond these are clipped: with `bound="half"`, and
            for an asymmetric grid, the ends of the range may lie up to s / 2 beyond.
        key: for stochastic rounding.

    Cost: two passes over the array.

    Raises:
        UserError: an argument that is not allowed; x holds NaN or infinity. Inside a trace, numbers
            that are not finite cannot be raised: their blocks get s = NaN, and are NaN when
            dequantised.

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
    """s (q - z), in the original dtype of the array.

    >>> print(dequantise(quantise(jnp.array([-1.0, 0.5, 0.1]), 2)))
    [-1.  0.  0.]
    """
    value = grids.read(held.grid, held.values.astype(held.grid.scale.dtype))
    return _in_type(value, held.dtype)


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

    The derivative of rounding is 0 or does not exist. The derivative of clipping replaces it (Y.
    Bengio et al., 2013, arXiv 1308.3432): 1 for a number that is rounded, 0 for one that is
    clipped, as in PyTorch. The step counts as a constant. This holds in forward and reverse mode,
    and at any order. Let M be the diagonal matrix of these ones and zeros, f a loss, and g and H
    its gradient and Hessian at q(x). The gradient of f(q(x)) is M g and its Hessian M H M. No
    second derivative of rounding is added: it is 0. With a symmetric grid and `bound="integer"` no
    number is clipped, and M = 1. With an asymmetric grid the largest or the least number of a block
    may be clipped, since its zero point is rounded.

    Args and errors: as in `quantise`; inside a trace, blocks with a number that is not finite are
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
    """`fake_quantise` with a given grid, such as one of observed ranges (`observers`).

    Numbers beyond the grid are clipped to its ends; their derivative is 0. A level beyond the
    greatest number of the type of x becomes that number. Quantising the result
    again does not change it, bit for bit. A number that is not finite becomes NaN, without an
    effect on the others.

    Args:
        x: floats.
        grid: its scale is a scalar, or has as many axes as x, with lengths that divide those of x.
        key: for stochastic rounding.

    Raises:
        UserError: x is not of floats, or the shape of the grid does not match.

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
    """The checked array and number of bits for a quantisation.

    Raises:
        UserError: names `caller`, and says what is not allowed.
    """
    bits = grids.whole_bits(caller, bits)
    grids.check_options(caller, bound, rounding, key)
    if not symmetric and bound != "integer":
        raise UserError(f"{caller}: bound={bound!r} is of symmetric grids; leave it out.")
    tree.check_floating(caller, jnp.asarray(x), argument)
    refuse_non_finite(caller, x, argument)
    return jnp.asarray(x), bits


def refuse_non_finite(caller: str, x: Any, argument: str) -> None:
    """Raises a `UserError` if an array that is not traced holds NaN or infinity."""
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
    """`quantise` for checked arguments, in blocks of shape `sizes`."""
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
    """`fake_quantise` for checked arguments, in blocks of shape `sizes`."""
    _, grid = _grid(x, bits, symmetric, sizes, bound)
    return _straight_through(x, grid, key)


def _straight_through(x, grid, key):
    wide = x.astype(grids.computed_in(x.dtype, grid.scale.dtype))
    fixed, grid = jax.lax.stop_gradient((wide, grid))
    grid = dataclasses.replace(grid, scale=grid.scale.astype(wide.dtype))
    cells = grids.locate(grid, fixed, key)
    value = grids.read(grid, cells.values)
    value = jnp.where(jnp.isfinite(fixed), value, jnp.full_like(value, jnp.nan))
    # This term is 0, and has the straight-through derivative at any order.
    through = jnp.where(cells.inside, x - jax.lax.stop_gradient(x), jnp.zeros_like(x))
    return _in_type(value, x.dtype) + through


def _in_type(value, dtype):
    """`astype`, with the greatest number of the type for levels of a grid beyond it."""
    top = min(float(jnp.finfo(kind).max) for kind in (dtype, value.dtype))
    return jnp.clip(value, -top, top).astype(dtype)
