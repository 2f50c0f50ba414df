"""Functions computed in bfloat16."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import unknown

Precision = Literal["highest", "bfloat16"]


def lower(fn: Any, precision: str) -> Any:
    """`fn(first, batch)`, a callable pytree, computed in a precision. For "bfloat16", all floating
    arrays that `fn` gets or holds are cast first.

    Raises:
        UserError: the precision is unknown.

    >>> lower(Partial(jnp.add), "bfloat16")(jnp.float32(1), jnp.float32(1 / 512)).item()
    1.0
    """
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    return fn if precision == "highest" else Partial(in_bfloat16, fn)


def in_bfloat16(fn: Any, first: Any, batch: Any) -> Any:
    """`fn(first, batch)` with floating arrays cast to bfloat16; the result is widened."""

    def leaf(x):
        floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.bfloat16) if floating else x

    fn, first, batch = jax.tree.map(leaf, (fn, first, batch))
    return tree.widen(fn(first, batch))
