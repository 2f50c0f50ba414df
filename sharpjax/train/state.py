"""The state of one model in training. A population has a leading axis, or is a tuple of states."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import tree


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One model.

    Attributes:
        params: its parameters, float32.
        variables: its other collections (`batch_stats`), or an empty dict.
        opt_state: the state of the optimiser.
        alive: False once a loss or an update was not finite. From then on, all other fields keep
            the last finite state.
        stopped_at: the step at which that happened, or -1.
        tally: what the loop records of the training: see `Steps` and `Epochs`.
    """

    params: Any
    variables: Any
    opt_state: Any
    alive: jax.Array
    stopped_at: jax.Array
    tally: Any


def fresh(params: Any, variables: Any, opt_state: Any, tally: Any) -> TrainState:
    """The state before the first step."""
    alive, stopped_at = jnp.ones((), bool), jnp.full((), -1, jnp.int32)
    return TrainState(params, variables, opt_state, alive, stopped_at, tally)


def select(good: jax.Array, new: TrainState, old: TrainState, step: jax.Array) -> TrainState:
    """`new` if all was finite so far; else `old` for good, with the step at which it stopped."""
    frozen = dataclasses.replace(
        old, alive=good, stopped_at=jnp.where(old.alive, step, old.stopped_at)
    )
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, frozen)
