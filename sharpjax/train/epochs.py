"""Whole epochs as one program, for small models on data that lie on the device.

A permutation, a scan over its batches, the test set: nothing leaves the device for as many epochs
as are asked for, and it ends early when every seed has nothing more to learn. What an epoch showed
stays in arrays, one entry an epoch.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from sharpjax import loops, tree
from sharpjax.optim import OptimizerSpec


class Examples(NamedTuple):
    """What one seed trains on and is tested on: inputs [N, ...] and labels int32 [N]."""

    train_input: jax.Array
    train_label: jax.Array
    test_input: jax.Array
    test_label: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learner:
    """One seed; a population is the same with a leading axis.

    Attributes:
        params, opt_state: of the model and its optimiser.
        epoch: int32, epochs behind it.
        alive: False once a loss or an update was not finite; the state is then that of the last
            epoch before.
        best, best_epoch: the best test accuracy so far, and the epoch that first had it.
        fitted_epoch: the first epoch in which every training example was right when its batch came;
            0: none yet.
    """

    params: Any
    opt_state: Any
    epoch: jax.Array
    alive: jax.Array
    best: jax.Array
    best_epoch: jax.Array
    fitted_epoch: jax.Array


class Curves(NamedTuple):
    """Float32, one entry for each epoch of a segment, NaN where it was not run.

    `train_loss` and `train_accuracy` are means over the epoch's batches, each as it came, before
    its update; the test set is seen after the epoch.
    """

    train_loss: jax.Array
    train_accuracy: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch of one seed: every training example once, the last batch as short as it comes.

    Attributes:
        loss_dtype: of the cross-entropy; 'float64' needs jax_enable_x64.
    """

    model: nn.Module
    optimizer: OptimizerSpec
    batch_size: int
    loss_dtype: str = "float32"

    def __call__(self, learner: Learner, data: Examples, key: jax.Array) -> tuple[Learner, Curves]:
        count = len(data.train_label)
        steps = -(-count // self.batch_size)
        # One sort; equal bits, 1 in 600,000 for 7,500 examples, stay in the order they lie in.
        order = jnp.argsort(jax.random.bits(jax.random.fold_in(key, learner.epoch), (count,)))
        short = steps * self.batch_size - count
        order = jnp.concatenate([order, jnp.zeros(short, order.dtype)])
        index = order.reshape(steps, self.batch_size)
        here = (jnp.arange(steps * self.batch_size) < count).reshape(steps, self.batch_size)
        batches = (data.train_input[index], data.train_label[index], here)
        state = (learner.params, learner.opt_state)
        (params, opt_state), (loss, right) = jax.lax.scan(self._step, state, batches)
        train_loss = jnp.sum(loss) / count
        train_accuracy = jnp.sum(right).astype(jnp.float32) / count
        test_loss, test_right = self._measure(
            params, data.test_input, data.test_label, jnp.ones(data.test_label.shape, bool)
        )
        num_test = len(data.test_label)
        curves = Curves(
            train_loss.astype(jnp.float32),
            train_accuracy,
            (test_loss / num_test).astype(jnp.float32),
            test_right.astype(jnp.float32) / num_test,
        )
        finite = jnp.isfinite(train_loss) & jnp.isfinite(tree.norm(params))
        epoch = learner.epoch + 1
        better, fitted = curves.test_accuracy > learner.best, train_accuracy == 1
        new = Learner(
            params=params,
            opt_state=opt_state,
            epoch=epoch,
            alive=finite,
            best=jnp.where(better, curves.test_accuracy, learner.best),
            best_epoch=jnp.where(better, epoch, learner.best_epoch),
            fitted_epoch=jnp.where(
                fitted & (learner.fitted_epoch == 0), epoch, learner.fitted_epoch
            ),
        )
        stopped = dataclasses.replace(learner, alive=learner.alive & finite)
        going = is_learning(learner)
        new = _select(going & finite, new, stopped)
        return new, _select(going & finite, curves, Curves(*[jnp.float32(jnp.nan)] * 4))

    def _step(self, state, batch):
        params, opt_state = state
        inputs, label, here = batch

        def loss_fn(params):
            loss, right = self._measure(params, inputs, label, here)
            return loss / jnp.sum(here), (loss, right)

        grads, (loss, right) = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = self.optimizer.build().update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), (loss, right)

    def _measure(self, params, inputs, label, here):
        """Sum of cross-entropies, and how many are right, of the examples that are here."""
        logits: Any = self.model.apply({"params": params}, inputs)
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(self.loss_dtype), label
        )
        right = (jnp.argmax(logits, axis=1).astype(label.dtype) == label) & here
        return jnp.sum(jnp.where(here, each, 0)), jnp.sum(right, dtype=jnp.int32)


def initial(key: jax.Array, step: Epoch, inputs: jax.Array) -> Learner:
    """A fresh learner. Pure: jit and vmap over `key` as you like."""
    params = step.model.init(key, inputs[:1])["params"]
    zero = jnp.zeros((), jnp.int32)
    return Learner(
        params=params,
        opt_state=step.optimizer.build().init(params),
        epoch=zero,
        alive=jnp.ones((), bool),
        best=jnp.zeros((), jnp.float32),
        best_epoch=zero,
        fitted_epoch=zero,
    )


def is_learning(learner: Learner) -> jax.Array:
    """Whether anything is left to learn: until the first test accuracy of 1."""
    return learner.alive & (learner.best < 1)


def advance(
    step: Epoch, learner: Learner, data: Examples, key: jax.Array, *, num_epochs: int, lanes: bool
) -> tuple[Learner, Curves]:
    """`num_epochs` epochs, or fewer where no seed is learning any more.

    Args:
        step: equal by value, so that a second call compiles nothing.
        learner, data, key: of one seed, or each with a leading axis of seeds. `key` is the stream
            of the order of examples; an epoch's order is a function of it and of the epoch.
        num_epochs: static.
        lanes: whether there is an axis of seeds.

    Returns:
        The learner, and curves [num_epochs], or [seeds, num_epochs].
    """
    shape = (len(learner.epoch), num_epochs) if lanes else (num_epochs,)
    curves = Curves(*(jnp.full(shape, jnp.nan, jnp.float32) for _ in Curves._fields))
    carry = _Segment(jnp.int32(0), learner, curves)
    carry, _ = loops.iterate(
        _EpochLoop(step, lanes), carry, (data, key), max_steps=num_epochs, until=_is_over
    )
    return carry.learner, carry.curves


class _Segment(NamedTuple):
    index: jax.Array
    learner: Learner
    curves: Curves


@dataclasses.dataclass(frozen=True)
class _EpochLoop:
    """`Epoch` in the form that `loops.iterate` runs."""

    step: Epoch
    lanes: bool

    def __call__(self, carry: _Segment, operands) -> _Segment:
        data, key = operands
        step: Any = self.step
        if self.lanes:
            step = jax.vmap(step, spmd_axis_name="seed")
        learner, now = step(carry.learner, data, key)
        curves = jax.tree.map(functools.partial(_put, carry.index), carry.curves, now)
        return _Segment(carry.index + 1, learner, curves)


def _put(index, curve, value):
    return jax.lax.dynamic_update_index_in_dim(curve, value, index, curve.ndim - 1)


def _is_over(carry: _Segment) -> jax.Array:
    return ~jnp.any(is_learning(carry.learner))


def _select(condition, if_true, if_false):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
