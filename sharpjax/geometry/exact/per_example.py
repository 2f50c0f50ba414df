"""Finds in a jaxpr where parameters enter a function, and adds a bump at each of these places.

The gradient of one example in the kernel of a layer is its input times its back-propagated error.
Both can be computed without forming this gradient. The error is the gradient in a bump that is
added to the result of the layer, and the input is read on the way. So it is enough to know which
equation uses each parameter.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage] (in jax 0.12 the old name of Jaxpr)
    Jaxpr,
    JaxprEqn,
    Literal,
    jaxpr_as_fun,
)

Path = tuple[int, ...]

# Calls that may be replaced by their body. Not `custom_jvp` and `custom_vjp`, whose body may have
# another derivative than the call; nor loops, whose equations run many times.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
# Operations that only move entries, each to one place. `convert_element_type` to a floating type
# counts as well.
_MOVES = {"reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p"}


class Entry(NamedTuple):
    """One use of a parameter.

    Attributes:
        path: where the equation is: the indices of the calls around it, then its own index.
        eqn: the equation, or None if the parameter is itself an output.
        operand: which operand of the equation the parameter is.
        moves: the equations before it that only move entries of the parameter, in order.
    """

    path: Path
    eqn: JaxprEqn | None
    operand: int
    moves: tuple[ClosedJaxpr, ...]


class _Origin(NamedTuple):
    leaf: int
    moves: tuple[ClosedJaxpr, ...]


def find_entries(jaxpr: Jaxpr, num_params: int) -> list[list[Entry]]:
    """For each of the first `num_params` inputs, the equations that use it.

    >>> closed = jax.make_jaxpr(lambda w, b, x: jnp.tanh(x @ w.T + b))(
    ...     jnp.ones((2, 3)), jnp.ones(2), jnp.ones((1, 3)))
    >>> [[entry.eqn.primitive.name for entry in uses] for uses in find_entries(closed.jaxpr, 2)]
    [['dot_general'], ['add']]
    """
    found: list[list[Entry]] = [[] for _ in range(num_params)]
    origins = [_Origin(i, ()) if i < num_params else None for i in range(len(jaxpr.invars))]
    for i, origin in enumerate(_follow(jaxpr, origins, (), found)):
        if origin is not None:
            found[origin.leaf].append(Entry((), None, i, origin.moves))
    return found


def evaluate(
    closed: ClosedJaxpr, args: Sequence[Any], bumps: Mapping[Path, jax.Array]
) -> tuple[list[Any], dict[Path, list[Any]]]:
    """The outputs, with a bump added to the result of the equation at each path.

    Returns:
        The outputs; for each path, the operands of its equation.
    """
    read: dict[Path, list[Any]] = {}
    return _evaluate(closed.jaxpr, closed.consts, args, (), bumps, read), read


def undo_moves(moves: Sequence[ClosedJaxpr], shape: tuple[int, ...], value: jax.Array) -> jax.Array:
    """An array laid out like the moved parameter, moved back to the layout of the parameter."""

    def move(x):
        for alone in moves:
            (x,) = _apply(alone, [x])
        return x

    # A move is a permutation: its transpose is its inverse.
    like = jax.ShapeDtypeStruct(shape, value.dtype)
    return jax.linear_transpose(move, like)(value)[0] if moves else value


def _follow(jaxpr, origins, path, found):
    at: dict[Any, _Origin] = {}
    at.update((v, o) for v, o in zip(jaxpr.invars, origins, strict=True) if o is not None)

    def origin(v):
        return None if isinstance(v, Literal) else at.get(v)

    for i, eqn in enumerate(jaxpr.eqns):
        origins = [origin(v) for v in eqn.invars]
        first = origins[0] if len(origins) == 1 else None
        if all(o is None for o in origins):
            continue
        if eqn.primitive.name in _CALLS:
            outs = _follow(_body(eqn).jaxpr, origins, (*path, i), found)
            at.update((v, o) for v, o in zip(eqn.outvars, outs, strict=True) if o is not None)
        elif first is not None and _is_move(eqn):
            leaf, moves = first
            if eqn.primitive.name != "convert_element_type":
                moves = (*moves, _alone(jaxpr, eqn))
            at[eqn.outvars[0]] = _Origin(leaf, moves)
        else:
            for k, o in enumerate(origins):
                if o is not None:
                    found[o.leaf].append(Entry((*path, i), eqn, k, o.moves))
    return [origin(v) for v in jaxpr.outvars]


def _is_move(eqn):
    name, value, out = eqn.primitive.name, eqn.invars[0].aval, eqn.outvars[0].aval
    if name == "convert_element_type":
        return jnp.issubdtype(out.dtype, jnp.floating)
    return name in _MOVES or name == "broadcast_in_dim" and value.size == out.size


def _evaluate(jaxpr, consts, args, path, bumps, read):
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def value(v):
        return v.val if isinstance(v, Literal) else values[v]

    for i, eqn in enumerate(jaxpr.eqns):
        place, operands = (*path, i), [value(v) for v in eqn.invars]
        if any(p[: len(place)] == place and p != place for p in bumps):
            body = _body(eqn)
            outs = _evaluate(body.jaxpr, body.consts, operands, place, bumps, read)
        else:
            alone = _alone(jaxpr, eqn)
            outs = _apply(alone, [values[v] for v in alone.jaxpr.invars])
        if place in bumps:
            read[place] = operands
            outs = [outs[0] + bumps[place]]
        values.update(zip(eqn.outvars, outs, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _body(eqn) -> ClosedJaxpr:
    inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())


def _alone(jaxpr, eqn) -> ClosedJaxpr:
    """One equation as a jaxpr, since the way to bind a primitive is not public and changes."""
    inputs = dict.fromkeys(v for v in eqn.invars if not isinstance(v, Literal))
    alone = jaxpr.replace(
        constvars=[], invars=list(inputs), outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects
    )
    return ClosedJaxpr(alone, ())


def _apply(alone, values):
    return jaxpr_as_fun(alone)(*values)
