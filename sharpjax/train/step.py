"""One training step of one seed, and of a population: a pure function, equal by value, that `loops`
can run."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from sharpjax import data, optim, tree
from sharpjax.losses import TrainingClassification
from sharpjax.train.state import TrainState


class Shared(NamedTuple):
    """What all seeds read: the training set on the device, as bytes, and how to normalise it."""

    image: jax.Array
    label: jax.Array
    mean: jax.Array
    std: jax.Array


class Own(NamedTuple):
    """What belongs to one seed: the order of this epoch's examples, and the key of its
    augmentation."""

    order: jax.Array
    augmentation: jax.Array


class Carry(NamedTuple):
    """`step` counts from the start of training, `offset` from the start of the epoch; neither has
    lanes."""

    step: jax.Array
    offset: jax.Array
    state: Any


@dataclasses.dataclass(frozen=True)
class SeedStep:
    """Step one seed: batch, augmentation, gradient, SAM, update, and the freeze of a seed that blew
    up.

    `pad` and `flip` describe the augmentation (`pad=0, flip=False`: none); `placement` spreads the
    examples of a batch over devices. Cost: one gradient, two with SAM.
    """

    model: nn.Module
    optimizer: optim.OptimizerSpec
    batch_size: int
    label_smoothing: float = 0.0
    pad: int = 0
    flip: bool = False
    placement: jax.sharding.NamedSharding | None = None

    def __call__(
        self, state: TrainState, step: jax.Array, offset: jax.Array, shared: Shared, own: Own
    ) -> TrainState:
        batch = self.batch(step, offset, shared, own)
        loss = TrainingClassification(self.model, state.variables, self.label_smoothing)
        grad_fn = jax.value_and_grad(loss, has_aux=True)
        chunk_grads = None
        if self.optimizer.m:
            (value, aux), grads, chunk_grads = optim.sam_value_and_grad(loss, m=self.optimizer.m)(
                state.params, batch
            )
        else:
            (value, aux), grads = grad_fn(state.params, batch)
        updates, opt_state = self.optimizer.build().update(
            grads,
            state.opt_state,
            state.params,
            value=value,
            grad_fn=grad_fn,
            batch=batch,
            chunk_grads=chunk_grads,
        )
        new = dataclasses.replace(
            state,
            params=tree.add_scaled(state.params, 1.0, updates),
            variables=aux["variables"],
            opt_state=opt_state,
            loss_sum=state.loss_sum + value,
            correct_sum=state.correct_sum + aux["accuracy"],
            num_steps=state.num_steps + 1,
        )
        # A seed that turns non-finite keeps its last finite state; the others go on.
        finite = jnp.isfinite(value) & jnp.isfinite(tree.norm(updates))
        good = state.alive & finite
        frozen = dataclasses.replace(
            state,
            alive=good,
            stopped_at=jnp.where(state.alive, step, state.stopped_at),
        )
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, frozen)

    def batch(
        self, step: jax.Array, offset: jax.Array, shared: Shared, own: Own
    ) -> dict[str, jax.Array]:
        start = offset * self.batch_size
        index = jax.lax.dynamic_slice_in_dim(own.order, start, self.batch_size)
        image = shared.image[index]
        if self.pad or self.flip:
            key = jax.random.fold_in(own.augmentation, step)
            image = data.augment(key, image, pad=self.pad, flip=self.flip)
        image = data.normalize(image, shared.mean, shared.std)
        batch = {"image": image, "label": shared.label[index]}
        if self.placement is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, self.placement)


@dataclasses.dataclass(frozen=True)
class LoopStep:
    """`SeedStep` in the form that `loops.iterate` runs; `lanes` says whether the state has a seed
    axis."""

    seed_step: SeedStep
    lanes: bool

    def __call__(self, carry: Carry, operands: tuple[Shared, Own]) -> Carry:
        shared, own = operands
        step = self.seed_step
        if self.lanes:
            # The axis is named so that shardings inside the step leave it on the mesh's `seed`
            # axis.
            step = jax.vmap(step, in_axes=(0, None, None, None, 0), spmd_axis_name="seed")
        state = step(carry.state, carry.step, carry.offset, shared, own)
        return Carry(carry.step + 1, carry.offset + 1, state)
