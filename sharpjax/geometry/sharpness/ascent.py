"""Auto-PGD (Croce and Hein, 2020, arXiv 2003.01690): the highest point of a ball.

Ascent along the normalised gradient (in the maximum norm, along its signs) with momentum, projected
onto the ball. The step size starts at the ball's diameter. At each checkpoint, unless the search
has gained enough, the step size is halved and the search returns to its best point. There is
nothing to tune. The caller evaluates the function and this module only moves the point, so one loop
serves any function.

The coordinates are those of the ball, `u = e / T`. The projection there is radial, or clips every
entry at the same number. (Ascent in `e` with an exact projection onto the ellipsoid was 0 to 0.7 %
lower after 20 steps.)

Every operation here is compiled once for each leaf, so there are few of them.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import perturbation, tree

Params = Any
Norm = Literal["l2", "linf"]

_MOMENTUM = 0.75  # weight of the new step; the last displacement gets the rest
_ENOUGH = 0.75  # share of the steps between checkpoints that must have gone up


class Ascent(NamedTuple):
    """State of a search. It holds four copies of the parameters.

    Attributes:
        point: where the caller evaluates next.
        previous: the point before it.
        value: the loss at `previous`.
        best_point, best_value, best_direction: the highest point of this search so far, and the
            loss and its normalised gradient there.
        step_size: length of the last step.
        increases: number of steps since the last checkpoint that went up.
        checkpoint_value: `best_value` at the last checkpoint.
        halved: whether the last checkpoint halved the step size.
    """

    point: Params
    previous: Params
    value: jax.Array
    best_point: Params
    best_value: jax.Array
    best_direction: Params
    step_size: jax.Array
    increases: jax.Array
    checkpoint_value: jax.Array
    halved: jax.Array


def init(params: Params, radius: jax.Array) -> Ascent:
    """The state before any search. Its point is the centre."""
    zeros, zero = tree.zeros_like(params), jnp.zeros_like(radius)
    never = jnp.bool_(False)
    return Ascent(zeros, zeros, zero, zeros, zero, zeros, zero, jnp.int32(0), zero, never)


def advance(
    state: Ascent,
    value: jax.Array,
    direction: Params,
    *,
    radius: jax.Array,
    interval: jax.Array,
    begin: jax.Array,
    first: Params,
    norm: Norm = "l2",
) -> Ascent:
    """Moves the search on, given the loss and its gradient at `state.point`.

    Args:
        state: the search so far.
        value: the loss, or `-inf` if the loss or its gradient is not finite. In that case the
            search returns to its best point and halves its step.
        direction: the normalised gradient of the loss.
        radius: of the ball.
        interval: 0, or at a checkpoint the number of steps since the last one (`intervals`).
        begin: whether to begin a new search instead. It begins with a step from the centre to where
            `first` leaves the ball, so it can return to the centre.
        first: a direction of length 1.
        norm: of the ball, and of directions.
    """
    increases = state.increases + (value > state.value).astype(jnp.int32)
    better = value > state.best_value
    best_value = jnp.maximum(value, state.best_value)
    at_checkpoint = interval > 0
    too_few = increases.astype(jnp.float32) < _ENOUGH * interval.astype(jnp.float32)
    stalled = ~state.halved & (best_value == state.checkpoint_value)
    halve = (at_checkpoint & (too_few | stalled)) | jnp.isneginf(value)

    step_size = jnp.where(halve, state.step_size / 2, state.step_size)
    step_size = jnp.where(begin, 2 * radius, step_size)
    momentum = jnp.where(begin, 1.0, _MOMENTUM)
    lowest = jnp.full_like(value, -jnp.inf)

    def leaf(u, last, best, d, best_d, d_first):
        best = jnp.where(begin, 0, jnp.where(better, u, best))
        best_d = jnp.where(begin, d_first, jnp.where(better, d, best_d))
        back = begin | halve
        here, last = jnp.where(back, best, u), jnp.where(back, best, last)
        ahead = here + step_size.astype(u.dtype) * jnp.where(back, best_d, d)
        return best, best_d, here, last, ahead

    moved = jax.tree.map(
        leaf, state.point, state.previous, state.best_point, direction, state.best_direction, first
    )
    best_point, best_direction, here, last, ahead = jax.tree.transpose(
        jax.tree.structure(direction), jax.tree.structure((0,) * 5), moved
    )

    def mix(here, last, target):
        a = momentum.astype(here.dtype)
        return here + a * (target - here) + (1 - a) * (here - last)

    mixed = jax.tree.map(mix, here, last, perturbation.project(ahead, radius, norm=norm))
    return Ascent(
        point=perturbation.project(mixed, radius, norm=norm),
        previous=here,
        value=jnp.where(begin, lowest, jnp.where(halve, best_value, value)),
        best_point=best_point,
        best_value=jnp.where(begin, lowest, best_value),
        best_direction=best_direction,
        step_size=step_size,
        increases=jnp.where(begin | at_checkpoint, 0, increases),
        checkpoint_value=jnp.where(
            begin, lowest, jnp.where(at_checkpoint, best_value, state.checkpoint_value)
        ),
        halved=~begin & jnp.where(at_checkpoint, halve, state.halved),
    )


def intervals(steps: int) -> np.ndarray:
    """For each of `steps` evaluations: 0, or at a checkpoint the steps since the last one.

    The checkpoints lie at `ceil(p_j steps)`, with `p_1 = 0.22`. Each interval is 0.03 shorter than
    the one before, down to 0.06 (section 3 of the paper).

    >>> intervals(20).tolist()
    [0, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 3, 0, 2, 0, 2, 0, 2, 1, 1]
    """
    table = np.zeros(steps, np.int32)
    last, width, place = 0, 0.22, 0.22
    while (checkpoint := int(np.ceil(place * steps - 1e-9))) <= steps:
        if checkpoint > last:
            table[checkpoint - 1] = checkpoint - last
            last = checkpoint
        width = max(width - 0.03, 0.06)
        place += width
    return table
