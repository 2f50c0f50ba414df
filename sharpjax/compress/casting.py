"""Casts to shorter floating types: float16, bfloat16, and two of eight bits.

| type | stored bits of the fraction | greatest | least normal | relative error of normals |
|---|---|---|---|---|
| float16 | 10 | 65504 | 6.1e-5 | 2^-11 |
| bfloat16 | 7 | 3.39e38 | 1.2e-38 | 2^-8 |
| float8_e4m3fn | 3 | 448 | 0.016 | 2^-4 |
| float8_e5m2 | 2 | 57344 | 6.1e-5 | 2^-3 |

Rounding is to nearest, halves to even. Numbers below the least normal one lose bits, and the
smallest become 0. See arXiv 2209.05433 for the types of eight bits.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.compress import integers
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError, unknown

FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
Overflow = Literal["refuse", "saturate"]


def cast(x: jax.Array, dtype: str, *, overflow: Overflow = "refuse") -> jax.Array:
    """The array in a shorter type; `.astype` converts it back.

    Args:
        x: floats.
        dtype: one of `FORMATS`.
        overflow: what to do with numbers that would round beyond the greatest of the type: 'refuse'
            raises an error; 'saturate' replaces them by the greatest number with their sign.

    Raises:
        UserError: an argument that is not allowed; x holds NaN or infinity; with 'refuse', a number
            overflows. Inside a trace, values cannot raise: these numbers become NaN.

    >>> print(cast(jnp.array([0.1, 300.0]), "float8_e4m3fn").astype(jnp.float32))
    [1.015625e-01 2.880000e+02]
    """
    return _cast("cast", x, dtype, overflow, "x")


def fake_cast(x: jax.Array, dtype: str, *, overflow: Overflow = "refuse") -> jax.Array:
    """`cast`, then back to the type of x. The derivative is 1, computed in the short type.

    It is 0 for a number that is saturated. Args and errors: as in `cast`.

    >>> print(fake_cast(jnp.array([1.0001]), "float16"))
    [1.]
    """
    x = jnp.asarray(x)
    return _cast("fake_cast", x, dtype, overflow, "x").astype(x.dtype)


def cast_params(
    params: Any, dtype: str, *, scope: Scope = "trainable", overflow: Overflow = "refuse"
) -> Any:
    """The tree with the leaves in scope in a shorter type, by default all, as in TFLite's float16.

    Args:
        params: pytree of floats.
        dtype, overflow: as in `cast`.
        scope: 'trainable' (every leaf), 'kernels', or globs; see `scope.in_scope`.

    Raises:
        UserError: as `cast`, with the name of the leaf; nothing is in scope.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> {name: str(leaf.dtype) for name, leaf in sorted(cast_params(params, "bfloat16").items())}
    {'bias': 'bfloat16', 'kernel': 'bfloat16'}
    """
    return _each("cast_params", params, dtype, scope, overflow)


def fake_cast_params(
    params: Any, dtype: str, *, scope: Scope = "trainable", overflow: Overflow = "refuse"
) -> Any:
    """`cast_params`, then back: parameters in their old types, rounded to the short type.

    Args and errors: as in `cast_params`.
    """
    short = _each("fake_cast_params", params, dtype, scope, overflow)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), short, params)


def _each(caller, params, dtype, scope, overflow):
    leaves, structure = jax.tree.flatten(params)
    chosen = in_scope(caller, params, scope)
    names = tree.path_names(params)
    new = [
        _cast(caller, leaf, dtype, overflow, f"'{name}'") if hit else leaf
        for name, leaf, hit in zip(names, leaves, chosen, strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def _cast(caller: str, x: Any, dtype: str, overflow: str, argument: str) -> jax.Array:
    if dtype not in FORMATS:
        raise UserError(f"{caller}: {unknown('floating type', str(dtype), FORMATS)}")
    if overflow not in ("refuse", "saturate"):
        raise UserError(f"{caller}: overflow={overflow!r}; give 'refuse' or 'saturate'.")
    tree.check_floating(caller, jnp.asarray(x), argument)
    integers.refuse_non_finite(caller, x, argument)
    x = jnp.asarray(x)
    top = float(jnp.finfo(dtype).max)
    short = x.astype(dtype)
    beyond = ~jnp.isfinite(short)
    if overflow == "saturate":
        # Not clip(x), whose derivative at the greatest number is 1/2.
        ends = jnp.where(x > 0, jnp.full_like(short, top), jnp.full_like(short, -top))
        short = jnp.where(beyond, ends, short)
        return jnp.where(jnp.isfinite(x), short, jnp.full_like(short, jnp.nan))
    if not loops.is_traced(beyond) and bool(jnp.any(beyond)):
        largest = np.max(np.abs(np.asarray(x, np.float64)))
        raise UserError(
            f"{caller}: {argument} holds {largest:.6g}, beyond the greatest {dtype}, {top:.6g}; "
            "give overflow='saturate' to hold that instead."
        )
    return jnp.where(beyond, jnp.full_like(short, jnp.nan), short)
