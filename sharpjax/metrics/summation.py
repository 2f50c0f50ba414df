"""Compensated sums: they keep rounding errors, and so do not depend on how examples were batched.

A sum is a pair of float32 numbers, `total + rest`. `rest` collects the rounding error of each
addition (Knuth's TwoSum). This gives about 48 bits, also on devices without float64. The pair may
also be of float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Sum(NamedTuple):
    """An unevaluated sum; `value` rounds it to one number."""

    total: jax.Array
    rest: jax.Array


def zero(shape: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> Sum:
    return Sum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def add(a: Sum, b: Sum) -> Sum:
    """a + b, with the exact error of the addition of the totals."""
    total = a.total + b.total
    shadow = total - a.total
    error = (a.total - (total - shadow)) + (b.total - shadow)
    # An infinite total has no rounding error; computing it would give inf - inf.
    rest = a.rest + b.rest + jnp.where(jnp.isfinite(total), error, 0.0)
    return Sum(total, rest)


def over_examples(x: jax.Array, dtype: DTypeLike = jnp.float32) -> Sum:
    """The compensated sum of `x` over axis 0, in pairs of `dtype`.

    >>> print(value(over_examples(jnp.array([1e8, 1.0, -1e8]))))  # a plain float32 sum loses the 1
    1.0
    """
    x = x.astype(dtype)
    nothing = jnp.zeros((), dtype)
    total, rest = jax.lax.reduce((x, jnp.zeros_like(x)), (nothing, nothing), _add_pairs, (0,))
    return Sum(total, rest)


def value(a: Sum) -> jax.Array:
    return a.total + a.rest


def _add_pairs(a, b):
    return tuple(add(Sum(*a), Sum(*b)))
