"""The state of one seed in training. A population is the same with a leading axis, or a tuple of
them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sharpjax.optim import OptimizerSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One seed.

    Attributes:
        params: the model's parameters, float32.
        variables: its other collections (`batch_stats`), or an empty dict.
        opt_state: the state of the optimiser.
        alive: False once loss or update was not finite; the state is then the last finite one, for
            good.
        stopped_at: the step at which that happened, or -1.
        loss_sum, correct_sum, num_steps: sums over the steps since they were last read.
    """

    params: Any
    variables: Any
    opt_state: Any
    alive: jax.Array
    stopped_at: jax.Array
    loss_sum: jax.Array
    correct_sum: jax.Array
    num_steps: jax.Array


def initial_state(
    key: jax.Array, model: nn.Module, optimizer: OptimizerSpec, shape: tuple[int, ...]
) -> TrainState:
    """A fresh state for images of `shape`. Pure: jit and vmap over `key` as you like."""
    variables = dict(model.init(key, jnp.zeros((1, *shape), jnp.float32), train=False))
    params = variables.pop("params")
    zero = jnp.zeros((), jnp.float32)
    return TrainState(
        params=params,
        variables=variables,
        opt_state=optimizer.build().init(params),
        alive=jnp.ones((), bool),
        stopped_at=jnp.full((), -1, jnp.int32),
        loss_sum=zero,
        correct_sum=zero,
        num_steps=zero,
    )


def reset_sums(state: TrainState) -> TrainState:
    """The state with its running sums at zero."""
    zeros = {
        name: jnp.zeros_like(getattr(state, name))
        for name in ("loss_sum", "correct_sum", "num_steps")
    }
    return dataclasses.replace(state, **zeros)
