"""What a search for eigenvalues carries for the next one."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry.eigenpairs.convergence import SearchStep, Which
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.lanczos import krylov, ritz

Params = Any

GUARDS = 2  # vectors carried beyond those asked for, at each end
MOST_DRIFT = 0.2  # of the largest value: how far a guard may move, whatever the last one did

_DRIFT = 0.1  # the same where nothing is known yet


class Start(NamedTuple):
    """What a result carries for the next one.

    Attributes:
        vectors: leaves (t, *shape): the Ritz vectors asked for and two more at each end.
        values: (t,), of the vectors; of those beyond the k rather too far out than too far in.
        drift: how far the values beyond the k may move until the next.
        age: int32, results since the last search from nothing.
    """

    vectors: Params
    values: jax.Array
    drift: jax.Array
    age: jax.Array


def carried(k: int, which: Which, state: krylov.Lanczos) -> Start:
    """What a search from nothing leaves for the next; for use inside a trace."""
    step = SearchStep(k, which, GUARDS)
    found = ritz.bound(state)
    places, exist = step.places(state, found, step.tested)
    weights = jnp.where(jnp.expand_dims(exist, 0), found.weights[:, places], 0)
    values = found.values[places]
    largest = jnp.max(jnp.where(step.is_guard() | ~exist, 0, jnp.abs(values)))
    return Start(
        vectors=krylov.combine_rows(state.basis, weights),
        values=jnp.where(exist, values, innermost(step, values.dtype)),
        drift=_DRIFT * largest,
        age=jnp.zeros_like(state.num_products),
    )


def begin_from(caller: str, start: Any, like: Params, k: int, which: Which) -> Start:
    """What an earlier result has to start from: what it carries, or more pairs than are asked for.

    Raises:
        UserError: names `caller` and what differs.
    """
    if not isinstance(start, Eigenpairs):
        raise UserError(
            f"{caller}: start must be an earlier result of {caller} or None, got "
            f"{type(start).__name__}."
        )
    if start.values.shape == (k,):
        start = start.carried
    elif start.vectors is not None and start.values.shape == (num_carried(k, which),):
        start = from_pairs(start, k, which)
    elif start.vectors is not None:
        count = num_carried(k, which)
        raise UserError(
            f"{caller}: start= holds values of shape {start.values.shape}; for k={k} and "
            f"which={which!r} give a result for the same k and which, or the {count} pairs of "
            f"`subsample_start`. Several starts: jax.vmap."
        )
    else:
        start = None
    check_start(caller, start, like, k, which)
    return start


def num_carried(k: int, which: Which) -> int:
    """The number of vectors to start from: k, and two more at each end."""
    return sum(SearchStep(k, which, GUARDS).tested)


def from_pairs(pairs: Eigenpairs, k: int, which: Which) -> Start:
    """A start from the eigenpairs of another operator, such as that of a few of the examples.

    Nothing is known of how far values beyond the k are from its own: they may have moved by a fifth
    of the largest.

    Args:
        pairs: k + 2 of them ("BE": k + 4) with vectors, in the order of `which`.
        k, which: of the search that is to start from them.

    Raises:
        UserError: `pairs` has no vectors, or not so many.
    """
    step = SearchStep(k, which, GUARDS)
    count = sum(step.tested)
    if pairs.vectors is None or pairs.values.shape != (count,):
        given = "no vectors" if pairs.vectors is None else f"values of shape {pairs.values.shape}"
        raise UserError(
            f"top_eigenpairs: start= has {given}; for k={k} and which={which!r} it must hold "
            f"{count} pairs, two more than are asked for at each end."
        )
    split = step.tested[0]
    order = jnp.array([*range(split), *reversed(range(split, count))], jnp.int32)
    return Start(
        vectors=tree.index(pairs.vectors, order),
        values=pairs.values[order],
        drift=MOST_DRIFT * jnp.max(jnp.abs(pairs.values)),
        age=jnp.zeros_like(pairs.num_products),
    )


def merge(step: SearchStep, start: Start, pairs: Eigenpairs, changed: jax.Array) -> Start:
    """What to carry on where verification has found values that the search had skipped.

    The last value that was asked for is now beyond the k, and no further in than any guard: so all
    guards are set to it.
    """
    index = step.wanted(jnp.arange(len(start.values), dtype=jnp.int32))
    last, (first, second), split = start.values, step.ends, step.tested[0]
    guards = jnp.concatenate(
        [
            jnp.full(split, last[first - 1]),
            jnp.full(len(last) - split, last[split + second - 1] if second else 0),
        ]
    )
    values = jnp.where(step.is_guard(), guards, last).at[index].set(pairs.values)
    vectors = jax.tree.map(lambda a, y: a.at[index].set(y), start.vectors, pairs.vectors)
    merged = start._replace(vectors=vectors, values=values)
    return jax.tree.map(lambda a, b: jnp.where(changed, a, b), merged, start)


def check_start(caller: str, start: Any, like: Params, k: int, which: Which) -> None:
    """Refuses what was not carried by a search for as much on parameters of this structure.

    Raises:
        UserError: names `caller` and what differs.
    """
    if start is None:
        raise UserError(
            f"{caller}: start= carries no vectors; find it with vectors=True and a basis."
        )
    if not isinstance(start, Start):
        raise UserError(
            f"{caller}: start must be an earlier result of {caller} or None, got "
            f"{type(start).__name__}."
        )
    expected = sum(SearchStep(k, which, GUARDS).tested)
    given = jnp.shape(start.values)
    if given != (expected,):
        raise UserError(
            f"{caller}: start= carries values of shape {given}, but k={k} and which={which!r} need "
            f"({expected},); it must come from a search for the same k and which. Several starts: "
            f"jax.vmap."
        )
    row = jax.eval_shape(functools.partial(tree.index, i=0), start.vectors)
    tree.check_same_structure(caller, "each vector of start=", row, tree.widen(like))


def innermost(step: SearchStep, dtype: Any) -> jax.Array:
    """What stands for a value that does not exist: further in than any."""
    first, second = step.tested
    if step.which == "LM":
        return jnp.zeros(first, dtype)
    inner = [jnp.inf if step.which == "SA" else -jnp.inf] * first + [jnp.inf] * second
    return jnp.array(inner, dtype)
