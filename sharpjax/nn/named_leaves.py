"""Finds leaves of parameters by glob, checks them, and replaces them by functions of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from sharpjax import tree
from sharpjax.errors import UserError

Params = Any
Where = str | Sequence[str]  # one glob or several


def change(
    caller: str, params: Params, where: Where, axis: int, values: jax.Array, fn: Callable
) -> Params:
    """Replaces the chosen leaves by `fn(leaf, values)`, with the values along axis `axis`."""
    if values.ndim > 1:
        raise UserError(f"{caller}: give one number, or a list of them, not shape {values.shape}.")
    check_axis(caller, params, where, axis, values.shape[0] if values.ndim else None)
    along = values.reshape(-1, *(1,) * (-axis - 1)) if values.ndim else values
    return mapped(params, where, lambda leaf: fn(leaf, along))


def check_axis(caller: str, params: Params, where: Where, axis: int, length: int | None) -> None:
    """Refuses leaves without this axis, or with another length of it (None: any length)."""
    for name, leaf in named(params, where):
        if leaf.ndim < -axis or (length is not None and leaf.shape[axis] != length):
            raise UserError(
                f"{caller}: '{name}' has shape {leaf.shape}, and axis {axis} must have length "
                f"{length}."
            )


def named(params: Params, where: Where) -> Iterator[tuple[str, jax.Array]]:
    """Names and arrays of the leaves that a glob selects."""
    chosen, _ = tree.partition(params, tree.select(params, where))
    return zip(tree.path_names(chosen), jax.tree.leaves(chosen), strict=True)


def mapped(params: Params, where: Where, fn: Callable) -> Params:
    """The tree with `fn(leaf)` for the leaves that a glob selects; each keeps its dtype."""
    chosen, rest = tree.partition(params, tree.select(params, where))
    return tree.combine(jax.tree.map(lambda x: fn(x).astype(x.dtype), chosen), rest)
