"""Training step by step: a batch, a gradient, an update, for models and data of any size."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from sharpjax import data, loops, optim, tree
from sharpjax.data import DataSpec, Examples, Splits
from sharpjax.estimate import Estimate
from sharpjax.losses import Objective
from sharpjax.optim.sharpness_aware import SamStatistics
from sharpjax.train import population, state
from sharpjax.train.plan import Cost, Member
from sharpjax.train.population import Layout
from sharpjax.train.results import exact
from sharpjax.train.state import TrainState


class Tally(NamedTuple):
    """Sums over the steps since they were last read and reset."""

    loss: jax.Array
    correct: jax.Array
    steps: jax.Array


class Beside(NamedTuple):
    """What the objective of one model holds beside the model. None is no part of the program."""

    teacher: Any = None
    mask: Any = None


class Own(NamedTuple):
    """The inputs of one model: the order of this epoch's examples, keys, teacher and mask, and the
    values of its optimiser if the step holds only their structure."""

    order: jax.Array
    augmentation: jax.Array
    dropout: jax.Array | None = None
    beside: Beside = Beside()
    values: optim.Hyperparameters | None = None


class Carry(NamedTuple):
    """Without lanes: `step` counts from the start of training, `offset` from that of the epoch."""

    step: jax.Array
    offset: jax.Array
    state: Any


@dataclasses.dataclass(frozen=True)
class Steps:
    """One step of one model: batch, augmentation, gradient, SAM, update; a non-finite model is
    frozen.

    Cost: one gradient, two with SAM; see `OptimizerSpec.gradients`.

    Attributes:
        pad, flip, padding: the augmentation (`pad=0, flip=False`: none); `padding` as in
            `data.Images`.
        placement: spreads the examples of a batch over devices.
    """

    model: nn.Module
    optimizer: optim.OptimizerSpec
    batch_size: int
    label_smoothing: float = 0.0
    pad: int = 0
    flip: bool = False
    padding: str = "zero"
    placement: jax.sharding.NamedSharding | None = None

    unit: ClassVar[str] = "step"

    @property
    def roles(self) -> tuple[str, ...]:
        """The streams that it draws from, besides that of the initial weights."""
        augmented = ("augmentation",) if self.pad or self.flip else ()
        return ("order", *augmented, *(("dropout",) if self.drops else ()))

    @property
    def drops(self) -> bool:
        return bool(getattr(self.model, "dropout", 0))

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ["train/loss", "train/accuracy", "train/learning_rate", "train/alive"]
        if self.optimizer.uses_sam:
            names += [f"train/sam/{name}" for name in SamStatistics._fields]
        return tuple(names)

    @property
    def gradients(self) -> float:
        """The number of gradients per step, on average."""
        return self.optimizer.gradients

    def steps_per_epoch(self, num_train: int) -> int:
        return num_train // self.batch_size

    def cost(self, spec: data.DataSpec) -> Cost:
        """The cost of an epoch."""
        gradients = round(self.gradients * self.steps_per_epoch(spec.num_train))
        return Cost(3 * gradients * self.batch_size, gradients)

    def layout(self, mode: str, example: Any, num_seeds: int) -> Layout:
        """Lanes, except for convolutions on CPU."""
        if mode == "auto":
            convolves = jax.default_backend() == "cpu" and loops.holds_convolution(
                functools.partial(self.model.init, train=False), jax.random.key(0), example
            )
            mode = "loop" if convolves else "vmap"
        return population.lay_out(mode, num_seeds=num_seeds, batch_size=self.batch_size)

    def init(self, example: Any, key: jax.Array) -> TrainState:
        """A fresh state. Pure, so it can be used under jit and under vmap over `key`."""
        variables = dict(self.model.init(key, example, train=False))
        return self.begin(variables.pop("params"), variables)

    def begin(self, params: Any, variables: Any) -> TrainState:
        zero = jnp.zeros((), jnp.float32)
        opt_state = self.optimizer.build().init(params)
        return state.fresh(params, variables, opt_state, Tally(zero, zero, zero))

    def refuses(self, members: Sequence[Member], spec: DataSpec) -> str:
        """Why it cannot train these members on such data; '' if it can."""
        if spec.is_per_seed:
            return "trains step by step, on one set for all models; its data are of each seed."
        if not self.steps_per_epoch(spec.num_train):
            return f"has batches of {self.batch_size}, and {spec.num_train} training examples."
        if not spec.num_classes and (self.label_smoothing or any(m.teacher for m in members)):
            return "smooths labels or has teachers, which are for classes; its data have targets."
        if (self.pad or self.flip) and any(
            m.teacher and m.teacher.kind == "stored" for m in members
        ):
            return "augments, and a 'stored' teacher knows images as they are; take kind 'model'."
        kinds = {(m.mask is None, m.teacher and m.teacher.structure) for m in members}
        if len(kinds) > 1:
            return "has members with masks or teachers of several kinds; make arms of them."
        return ""

    def weights(self, one: TrainState) -> Any:
        """The part of the state that digests cover."""
        return (one.params, one.variables)

    def loop(self, *operands: Any) -> "StepLoop":
        return StepLoop(self, *operands)

    def __call__(
        self, before: TrainState, step: jax.Array, offset: jax.Array, train: Examples, own: Own
    ) -> TrainState:
        batch = self.batch(step, offset, train, own)
        dropout = None if own.dropout is None else jax.random.fold_in(own.dropout, step)
        teacher = own.beside.teacher
        loss = Objective(
            self.model,
            before.variables,
            self.label_smoothing,
            None if teacher is None else teacher.at(step),
            own.beside.mask,
            dropout,
        )
        grad_fn = jax.value_and_grad(loss, has_aux=True)
        chunk_grads = None
        if self.optimizer.m:
            (value, aux), grads, chunk_grads = optim.sam_value_and_grad(loss, m=self.optimizer.m)(
                before.params, batch
            )
        else:
            (value, aux), grads = grad_fn(before.params, batch)
        updates, opt_state = self.optimizer.build(own.values).update(
            grads,
            before.opt_state,
            before.params,
            value=value,
            grad_fn=grad_fn,
            batch=batch,
            chunk_grads=chunk_grads,
        )
        tally = before.tally
        new = dataclasses.replace(
            before,
            params=tree.add_scaled(before.params, 1.0, updates),
            variables=aux["variables"],
            opt_state=opt_state,
            tally=Tally(tally.loss + value, tally.correct + aux["accuracy"], tally.steps + 1),
        )
        finite = jnp.isfinite(value) & jnp.isfinite(tree.norm(updates))
        return state.select(before.alive & finite, new, before, step)

    def batch(self, step: jax.Array, offset: jax.Array, train: Examples, own: Own) -> Any:
        start = offset * self.batch_size
        index = jax.lax.dynamic_slice_in_dim(own.order, start, self.batch_size)
        taken = data.take(train, index)
        if self.pad or self.flip:
            key = jax.random.fold_in(own.augmentation, step)
            fill = 0 if self.padding == "zero" else data.padding_value(self.padding, train.mean)
            image = data.augment(key, taken.input, pad=self.pad, flip=self.flip, fill=fill)
            taken = taken._replace(input=image)
        batch = data.as_batch(taken)
        if own.beside.teacher is not None:
            batch["index"] = index  # a teacher draws by it
        if self.placement is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, self.placement)


@dataclasses.dataclass(frozen=True)
class LoopStep:
    """`Steps` in the form that `loops.iterate` runs. `lanes`: the state has an axis of models."""

    step: Steps
    lanes: bool

    def __call__(self, carry: Carry, operands: tuple[Examples, Own]) -> Carry:
        train, own = operands
        step: Any = self.step
        if self.lanes:
            # Named, so that shardings inside the step keep this axis on the mesh's `seed` axis.
            step = jax.vmap(step, in_axes=(0, None, None, None, 0), spmd_axis_name="seed")
        after = step(carry.state, carry.step, carry.offset, train, own)
        return Carry(carry.step + 1, carry.offset + 1, after)


class StepLoop:
    """The loop over the models of an arm, as `task.Arm` drives it. Their `splits` are all equal."""

    def __init__(
        self,
        step: Steps,
        members: Sequence[Member],
        beside: Sequence[Beside],
        splits: Sequence[Splits],
        layout: Layout,
    ):
        self._layout = layout
        self._train = train = jax.device_put(splits[0].train, layout.everywhere)
        # Arms that differ only in these values share one compilation.
        self._values = step.optimizer.hyperparameters()
        structure = step.optimizer.structure()
        self._step = dataclasses.replace(step, optimizer=structure, placement=layout.batch)
        self._members = list(zip(members, beside, strict=True))
        self._per_epoch = step.steps_per_epoch(len(train.label))
        self._rate = step.optimizer.learning_rate_schedule()
        self._own: tuple[int, Any] = (-1, None)  # the epoch, and what belongs to it

    def record(self, epochs: int) -> tuple:
        """The record that the host keeps of the training: none."""
        return ()

    def advance(self, step: int, num_steps: int, states: Any, record: Any) -> tuple[int, Any, Any]:
        """`num_steps` steps of every model, starting at `step`, all within one epoch."""
        epoch, offset = divmod(step, self._per_epoch)
        if self._own[0] != epoch:
            own = [self._of(member, beside, epoch) for member, beside in self._members]
            self._own = epoch, population.gather(own, self._layout)
        lanes = self._layout.mode == "vmap"

        def run(one: Any, own: Own) -> Any:
            carry = Carry(jnp.int32(step), jnp.int32(offset), one)
            loop_step, operands = LoopStep(self._step, lanes), (self._train, own)
            return loops.iterate(loop_step, carry, operands, max_steps=num_steps)[0].state

        own = self._own[1]
        states = run(states, own) if lanes else tuple(map(run, states, own))
        return step + num_steps, states, record

    def room(self, step: int) -> int:
        """How many steps one call can take: to the end of the epoch."""
        return self._per_epoch - step % self._per_epoch

    def own_step(self, one: TrainState, step: int) -> int:
        return step

    def is_measured(self, one: TrainState, step: int, is_last: bool) -> bool:
        return bool(one.alive)

    def estimates(
        self, one: TrainState, record: Any, i: int, step: int, is_last: bool
    ) -> dict[str, Estimate]:
        """Loss and accuracy on the training batches since the last reading, and SAM's statistics of
        the last step."""
        found = {"train/alive": exact(one.alive)}
        if not one.alive or not step:
            return found
        count = np.asarray(one.tally.steps)
        nan = np.float32(np.nan)
        sam = optax.tree.get(one.opt_state, "statistics", {})
        return found | {
            "train/loss": Estimate(np.asarray(one.tally.loss) / count, nan, count),
            "train/accuracy": Estimate(np.asarray(one.tally.correct) / count, nan, count),
            "train/learning_rate": exact(self._rate(step - 1)),
        } | {
            f"train/sam/{name}": Estimate(np.asarray(value), nan, np.int32(1))
            for name, value in (sam._asdict() if sam else {}).items()
        }  # fmt: skip

    def read(self, states: Any) -> Any:
        """The states with their tallies reset to zero."""
        return population.map_members(_reset, states, self._layout)

    def arrays(self, one: TrainState, record: Any, i: int) -> dict[str, np.ndarray]:
        """The arrays that are stored for a model at the end: none."""
        return {}

    def _of(self, member: Member, beside: Beside, epoch: int) -> Own:
        """The inputs of one model. They depend on the streams and the epoch alone."""
        return Own(
            data.epoch_order(member.stream("order"), epoch, len(self._train.label)),
            member.stream("augmentation"),
            member.stream("dropout") if self._step.drops else None,
            beside,
            self._values,
        )


def _reset(one: TrainState) -> TrainState:
    zeros = jax.tree.map(jnp.zeros_like, one.tally)
    return dataclasses.replace(one, tally=zeros)
