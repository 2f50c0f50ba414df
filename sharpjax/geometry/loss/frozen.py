"""A loss as a function of some of its parameters, with the others held fixed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import tree

Params = Any


def freeze(fn: Any, params: Params, where: str | Sequence[str] | None) -> tuple[Any, Params]:
    """`fn(params, batch)` and its parameters, reduced to the leaves that the globs select."""
    params = jax.tree.map(_array, params)
    if where is None:
        return fn, params
    params, frozen = tree.partition(params, tree.select(params, where))
    return Partial(call_with_frozen, fn, tree.widen(frozen)), params


def call_with_frozen(fn: Any, frozen: Params, params: Params, *batch: Any) -> Any:
    """`fn(params, *batch)` with the leaves that are held fixed put back."""
    return fn(tree.combine(params, frozen), *batch)


def _array(x):
    """An array; a shape stays a shape, so that the memory of an operator can be estimated."""
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)
