"""Products in units of their own size, so that their squares neither underflow nor overflow.

The unit of a process is the largest power of two up to the largest entry of its first nonzero
product. Dividing by it changes no bit of the mantissa of a result. In float32, operators of any
size from 1e-30 to 1e30 work equally well. A unit of 0 is not known yet, and counts as 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos import lanes

Params = Any

_DIGITS = 2.0**12  # a product needs this times the smallest normal number to keep its digits


def power_of_two(numbers: Params, dtype: Any = None) -> jax.Array:
    """The largest power of two up to the largest entry in magnitude; 0 if that entry is zero or not
    finite.

    Args:
        numbers: a tree of arrays.
        dtype: dtype of the result; default that of the first leaf.

    >>> power_of_two([jnp.array([3.0, -5.0]), jnp.array(0.5)]).item()
    4.0
    """
    leaves = jax.tree.leaves(numbers)
    dtype = leaves[0].dtype if dtype is None else dtype
    sizes = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in leaves]
    largest = jnp.max(jnp.stack(sizes))  # no chain, as in `tree.total`
    limits = jnp.finfo(dtype)
    # The exponent without the bits of the mantissa, in one fusion; `frexp` takes four.
    bits = jnp.dtype(f"uint{limits.bits}")
    exponent = (2 ** (limits.bits - 1) - 1) >> limits.nmant << limits.nmant
    power = jax.lax.bitcast_convert_type(largest, bits) & bits.type(exponent)
    power = jax.lax.bitcast_convert_type(power, largest.dtype)
    # So that 1 / unit is a normal number as well.
    power = jnp.clip(power, limits.tiny, 2.0 ** (limits.maxexp - 2))
    known = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(known, power, 0)


def known(unit: jax.Array) -> jax.Array:
    """The unit, or 1 if it is not known."""
    return jnp.where(unit > 0, unit, 1)


def scale(unit: jax.Array, product: Params) -> tuple[jax.Array, Params]:
    """The unit, found from this product if it was not known, and the product divided by it."""
    unknown = unit == 0
    unit = jax.lax.cond(
        lanes.any_lane(unknown),
        lambda: jnp.where(unknown, power_of_two(product, unit.dtype), unit),
        lambda: unit,
    )
    return unit, tree.scale(1 / known(unit), product)


def grow(unit: jax.Array, value: Params) -> tuple[jax.Array, jax.Array]:
    """The unit of a stream of values, raised if the new value is larger, and a factor.

    The factor, a power of two up to 1, converts numbers from the old unit to the new one. So a
    small first value does not fix the unit.

    >>> grow(jnp.float32(2), jnp.float32(9))
    (Array(8., dtype=float32), Array(0.25, dtype=float32))
    """
    larger = jnp.maximum(unit, power_of_two(value, unit.dtype))
    return larger, jnp.where(larger > unit, unit / known(larger), 1)


def lost(unit: jax.Array, size: int) -> jax.Array:
    """A bound on the norm of what underflowed in a product of `size` entries, in its unit."""
    tiny = float(jnp.finfo(unit.dtype).tiny)
    return jnp.where(unit > 0, size**0.5 * tiny / known(unit), 0)


def has_digits(unit: jax.Array) -> jax.Array:
    """Whether products in this unit stay clear of subnormal numbers, where digits are lost."""
    return (unit == 0) | (unit >= _DIGITS * float(jnp.finfo(unit.dtype).tiny))


def norm(a: Params) -> jax.Array:
    """The Euclidean norm of a tree whose entries may have any size, by two passes.

    `tree.norm` alone squares the entries, which may underflow or overflow.

    >>> print(norm([jnp.array([3e-30]), jnp.array([[4e-30]])]))
    5e-30
    """
    unit = known(power_of_two(a, tree.vdot(a, a).dtype))
    return unit * tree.norm(tree.scale(1 / unit, a))
