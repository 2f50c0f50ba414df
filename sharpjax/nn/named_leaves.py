"""Finds leaves of parameters by glob, checks them, and replaces them by functions of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.errors import UserError

Params = Any
Where = str | Sequence[str]  # one glob or several


class Chosen(NamedTuple):
    """Leaves that an argument of a public function selects.

    Attributes:
        caller: the function, for errors.
        argument: its argument.
        where: what was given for it, or globs that were made of that.
    """

    caller: str
    argument: str
    where: Where


def change(params: Params, chosen: Chosen, axis: int, values: jax.Array, fn: Callable) -> Params:
    """Replaces the chosen leaves by `fn(leaf, values)`, with the values along axis `axis`."""
    check_axis(params, chosen, axis, values.shape[0] if values.ndim else None)
    check_floats(params, chosen)
    along = values.reshape(-1, *(1,) * (-axis - 1)) if values.ndim else values
    scales = along if fn in (jnp.multiply, jnp.divide) else None
    return mapped(params, chosen, lambda leaf: fn(leaf, along), scales=scales)


def numbers(caller: str, name: str, given: Any) -> jax.Array:
    """One real and finite number, or a list of them, as an array; in a trace they may be anything.

    Raises:
        UserError: it is no such thing.
    """
    try:
        values = jnp.asarray(given)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{caller}: {name} must be numbers, got {given!r}.") from None
    if values.ndim > 1:
        raise UserError(f"{caller}: give one number, or a list of them, not shape {values.shape}.")
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise UserError(f"{caller}: {name} must be real, got {values.dtype}.")
    if not loops.is_traced(values) and not jnp.all(jnp.isfinite(values)):
        raise UserError(f"{caller}: {name} must be finite, got {values.tolist()}.")
    return values


def check_axis(params: Params, chosen: Chosen, axis: int, length: int | None) -> None:
    """Refuses leaves without this axis, or with another length of it (None: any length)."""
    for name, leaf in named(params, chosen):
        shape = jnp.shape(leaf)
        if len(shape) < -axis or (length is not None and shape[axis] != length):
            needs = "exist" if length is None else f"have length {length}"
            raise UserError(
                f"{chosen.caller}: '{name}' has shape {shape}, and axis {axis} must {needs}."
            )


def check_floats(params: Params, chosen: Chosen) -> None:
    """Refuses leaves that would round what is computed to whole numbers."""
    for name, leaf in named(params, chosen):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise UserError(
                f"{chosen.caller}: '{name}' is {jnp.result_type(leaf)}, which would round the "
                "change to whole numbers; give floats."
            )


def named(params: Params, chosen: Chosen) -> Iterator[tuple[str, jax.Array]]:
    """Names and arrays of the leaves that a glob selects."""
    found, _ = tree.partition(params, _selected(params, chosen))
    return zip(tree.path_names(found), jax.tree.leaves(found), strict=True)


def mapped(
    params: Params, chosen: Chosen, fn: Callable, *, scales: jax.Array | None = None
) -> Params:
    """The tree with `fn(leaf)` for the leaves that a glob selects; each keeps its dtype.

    Args:
        scales: the factors or divisors, if `fn` multiplies or divides by numbers. Where they are
            not 0, no weight may become 0, except below eps^2 of the largest weight of the leaf.

    Raises:
        UserError: a result does not fit in the leaf: it is complex, overflows, or underflows.
    """
    found, rest = tree.partition(params, _selected(params, chosen))

    def leaf(x):
        new, dtype = fn(x), jnp.result_type(x)
        kinds = [jnp.issubdtype(t, jnp.complexfloating) for t in (new.dtype, dtype)]
        if kinds == [True, False]:
            raise UserError(
                f"{chosen.caller}: the change is complex, and the leaves of {chosen.argument} are "
                f"{dtype}; give real numbers."
            )
        new = new.astype(dtype)
        is_known = not loops.is_traced((x, new))
        if is_known and jnp.all(jnp.isfinite(x)) and not jnp.all(jnp.isfinite(new)):
            raise UserError(
                f"{chosen.caller}: leaves of {chosen.argument} would be beyond the range of "
                f"{dtype}; give numbers nearer to 1, or parameters of a wider type."
            )
        if is_known and scales is not None and not loops.is_traced(scales):
            # What weight decay leaves of dead weights, near the smallest float, may underflow.
            dead = float(jnp.finfo(dtype).eps) ** 2 * jnp.max(jnp.abs(x), initial=0)
            lost = int(jnp.sum((new == 0) & (jnp.abs(x) > dead) & (scales != 0)))
            if lost:
                raise UserError(
                    f"{chosen.caller}: {lost} weights of {chosen.argument} would become 0 in "
                    f"{dtype}; give numbers nearer to 1, or parameters of a wider type."
                )
        return new

    return tree.combine(jax.tree.map(leaf, found), rest)


def _selected(params: Params, chosen: Chosen) -> Any:
    where = chosen.where
    if not isinstance(where, str) and not (
        isinstance(where, Sequence) and all(isinstance(glob, str) for glob in where)
    ):
        raise UserError(
            f"{chosen.caller}: {chosen.argument} must be a glob or a list of globs, got {where!r}."
        )
    try:
        return tree.select(params, where)
    except UserError as error:
        said = str(error).replace("where:", f"{chosen.argument}:", 1)
        raise UserError(f"{chosen.caller}: {said}") from None
