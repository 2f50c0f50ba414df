"""Whole epochs as one program, for small models on data that lie on the device.

A permutation, a scan over its batches, the test set: nothing leaves the device for as many epochs
as are asked for, and it ends early when no seed has anything left to learn. What an epoch showed
stays in arrays, one entry an epoch. A scan is slow for convolutions on CPU (`sharpjax.loops`):
these models have none.
"""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from sharpjax import loops, tree
from sharpjax.optim import OptimizerSpec

# Epochs that one call can record. Fixed, so that calls of different lengths are one program.
MOST_EPOCHS = 256


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
        alive: False once a loss or a weight was not finite; all else is then as it was after the
            epoch before, for good.
        best, best_epoch: the best test accuracy so far, and the epoch that first had it; -1 and 0
            before the first epoch.
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
    """Float32 arrays of jax or numpy, one entry for each epoch, NaN where there was none.

    `train_loss` and `train_accuracy` are means over the epoch's examples, each as its batch came,
    before the update; the test set is seen after the epoch.
    """

    train_loss: Any
    train_accuracy: Any
    test_loss: Any
    test_accuracy: Any


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch of one seed: every training example once, the last batch as short as it comes.

    Cost: a gradient for each batch, and the test set once.

    Attributes:
        loss_dtype: of the cross-entropy, 'float32' or 'float64'. In float32 a cross-entropy below
            6e-8 is 0, and so is its gradient (arXiv 2501.04697); parameters, gradients and updates
            are float32 in either.
    """

    model: nn.Module
    optimizer: OptimizerSpec
    batch_size: int
    loss_dtype: str = "float32"

    def __call__(self, learner: Learner, data: Examples, key: jax.Array) -> tuple[Learner, Curves]:
        """The learner after its next epoch. One that `is_learning` no more is left as it is, and
        its curves are NaN."""
        index, here = self.batches(key, learner.epoch, len(data.train_label))
        batches = (data.train_input[index], data.train_label[index], here)
        start = (learner.params, learner.opt_state)
        (params, opt_state), (loss, right) = jax.lax.scan(self._step, start, batches)
        test_loss, test_right = self._measure(params, data.test_input, data.test_label)
        train, test = len(data.train_label), len(data.test_label)
        curves = Curves(
            _mean(loss, train), _accuracy(right, train), _mean(test_loss, test),
            _accuracy(test_right, test),
        )  # fmt: skip
        # NaN and infinity in the test loss alone are no reason: the state is sound.
        finite = jnp.isfinite(curves.train_loss) & jnp.isfinite(tree.norm(params))
        epoch, best = learner.epoch + 1, curves.test_accuracy > learner.best
        fitted = (curves.train_accuracy == 1) & (learner.fitted_epoch == 0)
        new = Learner(
            params=params,
            opt_state=opt_state,
            epoch=epoch,
            alive=learner.alive,
            best=jnp.where(best, curves.test_accuracy, learner.best),
            best_epoch=jnp.where(best, epoch, learner.best_epoch),
            fitted_epoch=jnp.where(fitted, epoch, learner.fitted_epoch),
        )
        going = is_learning(learner)
        frozen = dataclasses.replace(learner, alive=learner.alive & (finite | ~going))
        nothing = Curves(*(jnp.full_like(curve, jnp.nan) for curve in curves))
        return _select(going & finite, new, frozen), _select(going & finite, curves, nothing)

    def batches(self, key: jax.Array, epoch: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Which examples each batch of an epoch holds, int32 [steps, batch_size], and which of
        these entries are one: bool, False in the last batch where it is short.

        A function of the key and of the epoch, from 0.
        """
        steps = -(-count // self.batch_size)
        order = _shuffled(jax.random.fold_in(key, epoch), count)
        order = jnp.pad(order, (0, steps * self.batch_size - count))
        here = jnp.arange(order.size, dtype=jnp.int32) < count
        shape = (steps, self.batch_size)
        return order.reshape(shape), here.reshape(shape)

    def _step(self, state, batch):
        params, opt_state = state
        inputs, label, here = batch

        def loss_fn(params):
            losses, right = self._measure(params, inputs, label)
            loss = jnp.sum(jnp.where(here, losses, 0))
            # Summed by weight, as `here` has the batch's fixed size.
            return loss / jnp.sum(here, dtype=loss.dtype), (loss, jnp.sum(right & here))

        grads, (loss, right) = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = self.optimizer.build().update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), (loss, right)

    def _measure(self, params, inputs, label):
        """The cross-entropy of each example, and whether it is right: its logit above all others.

        That is `argmax`, but for equal logits, which are never right here. A maximum is a loop over
        vectors for XLA on CPU and an `argmax` is not: it took a fifth of an epoch's time, of
        decomposed models a third.
        """
        logits: Any = self.model.apply({"params": params}, inputs)
        logits = logits.astype(self.loss_dtype)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        classes = jnp.expand_dims(jnp.arange(logits.shape[1], dtype=label.dtype), 0)
        is_own = jnp.expand_dims(label, 1) == classes
        own = jnp.sum(jnp.where(is_own, logits, 0), axis=1)
        return losses, own > jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=1)


def _shuffled(key: jax.Array, count: int) -> jax.Array:
    """A random order of 0 to count - 1.

    Random bits with the number itself in their last places are sorted: on CPU a sort of single
    numbers takes a fifth of an `argsort`. For 10,000 numbers 18 bits are random, so a pair stays in
    its order with chance 1/2 + 2^-19.
    """
    bits = jax.random.bits(key, (count,), jnp.uint32)
    places = max(count - 1, 1).bit_length()
    if places > 14:
        return jnp.argsort(bits).astype(jnp.int32)
    last = jnp.uint32(2**places - 1)
    tagged = jnp.sort(bits & ~last | jnp.arange(count, dtype=jnp.uint32))
    return (tagged & last).astype(jnp.int32)


def initial(key: jax.Array, step: Epoch, inputs: jax.Array) -> Learner:
    """A fresh learner. Pure: jit and vmap over `key` as you like."""
    params = step.model.init(key, inputs[:1])["params"]
    zero = jnp.zeros((), jnp.int32)
    return Learner(
        params=params,
        opt_state=step.optimizer.build().init(params),
        epoch=zero,
        alive=jnp.ones((), bool),
        best=jnp.full((), -1, jnp.float32),
        best_epoch=zero,
        fitted_epoch=zero,
    )


def is_learning(learner: Learner) -> jax.Array:
    """Whether anything is left to learn: until the first test accuracy of 1."""
    return learner.alive & (learner.best < 1)


def advance(
    step: Epoch,
    learner: Learner,
    data: Examples,
    key: jax.Array,
    *,
    num_epochs: int,
    lanes: bool,
) -> tuple[Learner, Curves]:
    """`num_epochs` epochs, or fewer where no seed is learning any more.

    Args:
        step: equal by value, so that a second call compiles nothing, whatever `num_epochs`.
        learner, data, key: of one seed, or each with a leading axis of seeds. `key` is the stream
            of the order of examples.
        num_epochs: at most `MOST_EPOCHS`.
        lanes: whether there is an axis of seeds.

    Returns:
        The learner, and curves [MOST_EPOCHS], or [seeds, MOST_EPOCHS].
    """
    if num_epochs > MOST_EPOCHS:
        raise ValueError(f"advance: {num_epochs} epochs; {MOST_EPOCHS} at most")
    double = jax.enable_x64(True) if step.loss_dtype == "float64" else contextlib.nullcontext()
    # One recipe on all devices: an accelerator's default would round what is multiplied.
    with double, jax.default_matmul_precision("highest"):
        return _run(step, learner, data, key, jnp.int32(num_epochs), lanes)


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


@functools.partial(jax.jit, static_argnames=("step", "lanes"))
def _run(step, learner, data, key, num_epochs, lanes):
    shape = (len(learner.epoch), MOST_EPOCHS) if lanes else (MOST_EPOCHS,)
    curves = Curves(*(jnp.full(shape, jnp.nan, jnp.float32) for _ in Curves._fields))
    carry = _Segment(jnp.zeros((), jnp.int32), learner, curves)
    carry, _ = loops.iterate(
        _EpochLoop(step, lanes), carry, (data, key), max_steps=num_epochs, until=_is_over
    )
    return carry.learner, carry.curves


def _put(index, curve, value):
    return jax.lax.dynamic_update_index_in_dim(curve, value, index, curve.ndim - 1)


def _is_over(carry: _Segment) -> jax.Array:
    return ~jnp.any(is_learning(carry.learner))


def _mean(losses, count: int) -> jax.Array:
    return jnp.sum(losses).astype(jnp.float32) / jnp.float32(count)


def _accuracy(right, count: int) -> jax.Array:
    """1 only if all are right, and then exactly: XLA multiplies by 1 / count, and 1571 (1 / 1571)
    is 0.99999994 in float32."""
    total = jnp.sum(right, dtype=jnp.int32)
    return jnp.where(total == count, 1.0, total.astype(jnp.float32) / jnp.float32(count))


def _select(condition, if_true, if_false):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
