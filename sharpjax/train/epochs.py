"""Whole epochs as one program, for small models on data that lie on the device.

An epoch is a permutation, a scan over its batches, and the test set. A call runs as many epochs as
are asked for without leaving the device, and ends early if no seed has anything left to learn. The
results of each epoch are kept in arrays with one entry per epoch. A scan is slow for convolutions
on CPU (`sharpjax.loops`), so this is for models without them.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from sharpjax import loops, runtime, tree
from sharpjax.data import DataSpec, Splits
from sharpjax.estimate import Estimate
from sharpjax.optim import OptimizerSpec
from sharpjax.train import population, state
from sharpjax.train.plan import Cost, Member
from sharpjax.train.population import Layout
from sharpjax.train.results import exact
from sharpjax.train.state import TrainState

# Epochs that one call can record. Fixed, so that calls of different lengths share one program.
MOST_EPOCHS = 256


class Tally(NamedTuple):
    """What a model has reached so far.

    Attributes:
        epoch: int32, number of epochs done.
        best, best_epoch: the best test accuracy so far, and the epoch that first had it; -1 and 0
            before the first epoch.
        fitted_epoch: the first epoch in which every training example was right when its batch came;
            0: none yet.
    """

    epoch: jax.Array
    best: jax.Array
    best_epoch: jax.Array
    fitted_epoch: jax.Array


class Curves(NamedTuple):
    """Float32 arrays of jax or numpy, one entry for each epoch, NaN for epochs that did not run.

    `train_loss` and `train_accuracy` are means over the examples of the epoch, each measured when
    its batch comes, before the update. The test set is measured after the epoch.
    """

    train_loss: Any
    train_accuracy: Any
    test_loss: Any
    test_accuracy: Any


@dataclasses.dataclass(frozen=True)
class Epochs:
    """One epoch of one model: every training example once; the last batch may be shorter. A model
    is done at its first test accuracy of 1, unless `all_epochs` is set.

    Cost: a gradient for each batch, and the test set once.

    Attributes:
        loss_dtype: of the cross-entropy, 'float32' or 'float64'. In float32 a cross-entropy below
            6e-8 is 0, and so is its gradient (arXiv 2501.04697). Parameters, gradients and updates
            are float32 in both cases.
        all_epochs: whether it is trained for all epochs, whatever its test accuracy.
    """

    model: nn.Module
    optimizer: OptimizerSpec
    batch_size: int
    loss_dtype: str = "float32"
    all_epochs: bool = False

    roles: ClassVar[tuple[str, ...]] = ("order",)
    unit: ClassVar[str] = "epoch"
    metrics: ClassVar[tuple[str, ...]] = (
        *("train/loss", "train/accuracy", "test/loss", "test/accuracy", "train/alive"),
    )
    gradients: ClassVar[int] = 1

    def steps_per_epoch(self, num_train: int) -> int:
        """Here a step of an arm is an epoch."""
        return 1

    def cost(self, spec: DataSpec) -> Cost:
        """The cost of an epoch: its batches, a forward pass of the test set, its stored curves."""
        batches = -(-spec.num_train // self.batch_size)
        forwards = 3 * batches * self.batch_size + spec.num_test
        return Cost(forwards, batches, stored=4 * len(Curves._fields))

    def layout(self, mode: str, example: Any, num_seeds: int) -> Layout:
        """On CPU the models run side by side, each as its own program; elsewhere they are lanes.

        Measured on two cores with the dense token MLP at 80 % of the data: one seed alone takes
        8.1 ms per epoch, on one core or on two; two lanes take 6.5 ms each, and two programs side
        by side 5.1 ms each. At a rank of 12.5 % these are 4.6, 4.4 and 2.7 ms.
        """
        if mode == "auto":
            mode = "loop" if jax.default_backend() == "cpu" else "vmap"
        return population.lay_out(mode, num_seeds=num_seeds)

    def init(self, example: Any, key: jax.Array) -> TrainState:
        """A fresh state. Pure, so it can be used under jit and under vmap over `key`."""
        return self.begin(self.model.init(key, example)["params"], {})

    def begin(self, params: Any, variables: Any) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        tally = Tally(zero, jnp.full((), -1, jnp.float32), zero, zero)
        return state.fresh(params, variables, self.optimizer.build().init(params), tally)

    def refuses(self, members: Sequence[Member], spec: DataSpec) -> str:
        """Why it cannot train these members on such data; '' if it can."""
        whole = "trains by whole epochs, and these"
        if any(member.teacher or member.mask for member in members):
            return f"{whole} take no teacher and no mask; use steps.Steps."
        if getattr(self.model, "dropout", 0) or self.optimizer.uses_sam:
            return f"{whole} know neither dropout nor SAM; use steps.Steps."
        if spec.input_dtype == "uint8" or not spec.num_classes:
            return f"{whole} normalise no images and fit no targets; use steps.Steps."
        if not spec.num_test:
            return f"{whole} are tested after each epoch, but the data have no test examples."
        return ""

    def weights(self, one: TrainState) -> Any:
        """The part of the state that digests cover."""
        return one.params

    def loop(self, *operands: Any) -> "EpochLoop":
        return EpochLoop(self, *operands)

    def __call__(
        self, before: TrainState, data: Splits, key: jax.Array
    ) -> tuple[TrainState, Curves]:
        """The state after its next epoch. If `is_learning` is False, the state stays as it is and
        its curves are NaN."""
        tally, train = before.tally, data.train
        index, here = self.batches(key, tally.epoch, len(train.label))
        batches = (train.input[index], train.label[index], here)
        start = (before.params, before.opt_state)
        (params, opt_state), (loss, right) = jax.lax.scan(self._step, start, batches)
        test_loss, test_right = self._measure(params, data.test.input, data.test.label)
        num_train, num_test = len(train.label), len(data.test.label)
        curves = Curves(
            _mean(loss, num_train), _accuracy(right, num_train), _mean(test_loss, num_test),
            _accuracy(test_right, num_test),
        )  # fmt: skip
        # A test loss of NaN or infinity alone does not stop the training: the state is sound.
        finite = jnp.isfinite(curves.train_loss) & jnp.isfinite(tree.norm(params))
        epoch, best = tally.epoch + 1, curves.test_accuracy > tally.best
        fitted = (curves.train_accuracy == 1) & (tally.fitted_epoch == 0)
        new = dataclasses.replace(
            before,
            params=params,
            opt_state=opt_state,
            tally=Tally(
                epoch=epoch,
                best=jnp.where(best, curves.test_accuracy, tally.best),
                best_epoch=jnp.where(best, epoch, tally.best_epoch),
                fitted_epoch=jnp.where(fitted, epoch, tally.fitted_epoch),
            ),
        )
        going = self.is_learning(before)
        good = going & finite
        frozen = dataclasses.replace(
            before,
            alive=before.alive & (finite | ~going),
            stopped_at=jnp.where(going & ~finite, tally.epoch, before.stopped_at),
        )
        return _select(good, new, frozen), _select(good, curves, _nothing(()))

    def batches(self, key: jax.Array, epoch: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """The examples of each batch of an epoch, int32 [steps, batch_size], and which of these
        entries are examples: bool, False for the padding of a short last batch.

        The result depends only on the key and the epoch, which counts from 0.
        """
        steps = -(-count // self.batch_size)
        order = _shuffled(jax.random.fold_in(key, epoch), count)
        order = jnp.pad(order, (0, steps * self.batch_size - count))
        here = jnp.arange(order.size, dtype=jnp.int32) < count
        shape = (steps, self.batch_size)
        return order.reshape(shape), here.reshape(shape)

    def is_learning(self, one: TrainState) -> jax.Array:
        """Whether anything is left to learn: until test accuracy 1, or always with `all_epochs`."""
        return one.alive if self.all_epochs else one.alive & (one.tally.best < 1)

    def _step(self, state, batch):
        params, opt_state = state
        inputs, label, here = batch

        def loss_fn(params):
            losses, right = self._measure(params, inputs, label)
            loss = jnp.sum(jnp.where(here, losses, 0))
            # Divided by the number of examples: `here` has the fixed size of a batch.
            return loss / jnp.sum(here, dtype=loss.dtype), (loss, jnp.sum(right & here))

        grads, (loss, right) = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = self.optimizer.build().update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), (loss, right)

    def _measure(self, params, inputs, label):
        """The cross-entropy of each example, and whether it is right: its logit is above all
        others.

        This is `argmax`, except that equal largest logits never count as right. For XLA on CPU a
        maximum is a loop over vectors, and an `argmax` is not: it took a fifth of the time of an
        epoch, and a third for decomposed models.
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

    It sorts random bits that hold the number itself in their last places: on CPU a sort of single
    numbers takes a fifth of the time of an `argsort`. For 10,000 numbers 18 bits are random, so a
    pair stays in its order with probability 1/2 + 2^-19. More than 2^14 numbers use `argsort`.
    """
    bits = jax.random.bits(key, (count,), jnp.uint32)
    places = max(count - 1, 1).bit_length()
    if places > 14:
        return jnp.argsort(bits).astype(jnp.int32)
    last = jnp.uint32(2**places - 1)
    tagged = jnp.sort(bits & ~last | jnp.arange(count, dtype=jnp.uint32))
    return (tagged & last).astype(jnp.int32)


def advance(
    step: Epochs,
    learner: TrainState,
    data: Splits,
    key: jax.Array,
    *,
    num_epochs: int,
    lanes: bool,
) -> tuple[TrainState, Curves]:
    """Runs `num_epochs` epochs, or fewer if no model is learning any more.

    Args:
        step: compared by value, so a second call compiles nothing, whatever `num_epochs`.
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
    # The same precision on all devices: the default of an accelerator would round the factors.
    with double, jax.default_matmul_precision("highest"):
        return _run(step, learner, data, key, jnp.int32(num_epochs), lanes)


class _Segment(NamedTuple):
    index: jax.Array
    learner: TrainState
    curves: Curves


@dataclasses.dataclass(frozen=True)
class _EpochLoop:
    """`Epochs` in the form that `loops.iterate` runs."""

    step: Epochs
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
    shape = (len(learner.alive), MOST_EPOCHS) if lanes else (MOST_EPOCHS,)
    carry = _Segment(jnp.zeros((), jnp.int32), learner, _nothing(shape))
    carry, _ = loops.iterate(
        _EpochLoop(step, lanes), carry, (data, key), max_steps=num_epochs, until=_IsOver(step)
    )
    return carry.learner, carry.curves


def _nothing(shape: tuple[int, ...]) -> Curves:
    """Curves in which no epoch has run."""
    return Curves(*(jnp.full(shape, jnp.nan, jnp.float32) for _ in Curves._fields))


def _put(index, curve, value):
    return jax.lax.dynamic_update_index_in_dim(curve, value, index, curve.ndim - 1)


@dataclasses.dataclass(frozen=True)
class _IsOver:
    """Whether no model has anything left to learn."""

    step: Epochs

    def __call__(self, carry: _Segment) -> jax.Array:
        return ~jnp.any(self.step.is_learning(carry.learner))


def _mean(losses, count: int) -> jax.Array:
    return jnp.sum(losses).astype(jnp.float32) / jnp.float32(count)


def _accuracy(right, count: int) -> jax.Array:
    """Exactly 1 if all are right, and only then. XLA multiplies by 1 / count, and 1571 (1 / 1571)
    is 0.99999994 in float32."""
    total = jnp.sum(right, dtype=jnp.int32)
    return jnp.where(total == count, 1.0, total.astype(jnp.float32) / jnp.float32(count))


def _select(condition, if_true, if_false):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


class EpochLoop:
    """The loop over the models of an arm, as `task.Arm` drives it; each has its own `splits`."""

    def __init__(
        self,
        step: Epochs,
        members: Sequence[Member],
        beside: Any,
        splits: Sequence[Splits],
        layout: Layout,
    ):
        del beside  # there are no teachers and no masks
        self._step, self._layout, self._count = step, layout, len(members)
        self._data = population.gather(list(splits), layout)
        self._keys = population.gather([m.stream("order") for m in members], layout)

    def record(self, epochs: int) -> Curves:
        """The record that the host keeps of the training: the curves so far, [members, epochs]."""
        return _nothing((self._count, max(epochs, 1)))  # a checkpoint holds no empty arrays

    def advance(
        self, step: int, num_steps: int, states: Any, record: Curves
    ) -> tuple[int, Any, Any]:
        """`num_steps` epochs of every model that is still learning; the others do not change."""
        lanes = self._layout.mode == "vmap"

        def run(*operands: Any) -> tuple[Any, Curves]:
            return jax.block_until_ready(
                advance(self._step, *operands, num_epochs=num_steps, lanes=lanes)
            )

        if lanes:
            states, segment = run(states, self._data, self._keys)
        else:
            # The number of workers does not change the results.
            workers = min(runtime.cores(), self._count) if jax.default_backend() == "cpu" else 1
            each = zip(self._learning(states), states, self._data, self._keys, strict=True)
            with concurrent.futures.ThreadPoolExecutor(workers) as pool:
                futures = [pool.submit(run, *own) if goes else None for goes, *own in each]
            states, curves = zip(
                *(future.result() if future else (before, _nothing((MOST_EPOCHS,)))
                  for future, before in zip(futures, states, strict=True)), strict=True,
            )  # fmt: skip
            segment = Curves(*map(np.stack, zip(*curves, strict=True)))
        whole, after = Curves(*map(np.array, record)), step + num_steps
        for curve, part in zip(whole, segment, strict=True):
            curve[:, step:after] = part[:, :num_steps]
        # What is due after the last epoch of the last model is measured before the jump to the end.
        reached = max(int(one.tally.epoch) for one in population.members(states, self._layout))
        is_over = not self._learning(states).any() and reached < after
        after = whole.train_loss.shape[1] if is_over else after
        return after, states, Curves(*map(jnp.asarray, whole))

    def room(self, step: int) -> int:
        return MOST_EPOCHS

    def own_step(self, one: TrainState, step: int) -> int:
        return int(one.tally.epoch)

    def is_measured(self, one: TrainState, step: int, is_last: bool) -> bool:
        """A model that is done is measured only at the end."""
        return bool(one.alive) and (is_last or int(one.tally.epoch) == step)

    def estimates(
        self, one: TrainState, record: Curves, i: int, step: int, is_last: bool
    ) -> dict[str, Estimate]:
        """The results of its last epoch; none before the first epoch."""
        found = {"train/alive": exact(one.alive)} if is_last or not one.alive else {}
        epoch = int(one.tally.epoch)
        if not epoch or not self.is_measured(one, step, is_last):
            return found
        curves = record._asdict().items()
        last = {n.replace("_", "/"): exact(np.asarray(c)[i, epoch - 1]) for n, c in curves}
        return found | last

    def read(self, states: Any) -> Any:
        return states

    def arrays(self, one: TrainState, record: Curves, i: int) -> dict[str, np.ndarray]:
        """The curves of a model, up to its own last epoch."""
        epoch = int(one.tally.epoch)
        return {name: np.asarray(curve)[i, :epoch] for name, curve in record._asdict().items()}

    def _learning(self, states: Any) -> np.ndarray:
        return np.array(
            [bool(self._step.is_learning(one)) for one in population.members(states, self._layout)]
        )
