"""A study as data: what is trained, derived, compared and drawn, and what each stage reads.

A plan only describes; it loads no data and computes nothing. `planning` puts its stages in order,
and refuses a plan that cannot run.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from flax import linen as nn

from sharpjax.data import DataSpec, Splits
from sharpjax.estimate import Estimate
from sharpjax.train.results import Of, Results
from sharpjax.train.state import TrainState
from sharpjax.train.streams import stream

At = Literal["start", "end", "best"] | int
"""Which state of a model: before its first step (drawn again, not stored), after its last step, the
one that `Train.best` chose, or the one after a step that `Train.snapshots` keeps."""

ROLES = ("init", "order", "augmentation", "dropout", "teacher")
PRIORS = ("uniform", "labels")


class Ref(NamedTuple):
    """A state that an earlier stage left behind."""

    arm: str
    seed: int
    of: Of = ()
    at: At = "end"


class Teacher(NamedTuple):
    """What a model is taught by; `losses.Teacher` explains the kinds.

    Attributes:
        refs: the models that teach: one, several for an ensemble, none for a kind without models.
        temperature, weight: of the teacher's part of the loss.
        fresh: whether a random kind draws anew at every step.
        divergence, inputs: as in `losses.Teacher`.
        prior: of kind 'constant': 'uniform' over the classes, or 'labels', their shares among the
            training labels.
    """

    kind: str
    refs: tuple[Ref, ...] = ()
    temperature: float = 1.0
    weight: float = 1.0
    fresh: bool = True
    divergence: str = "kl"
    inputs: str = "logits"
    prior: str = "uniform"

    @property
    def structure(self) -> tuple[Any, ...]:
        """What the members of one arm must share, so that their teachers fit into one program."""
        own = self.kind, len(self.refs), self.fresh
        return (*own, self.divergence, self.inputs, self.prior)


class Member(NamedTuple):
    """One model of an arm.

    Attributes:
        of: coordinates that tell it from other models of the same arm and seed. They appear in rows
            and digests, but do not change its streams.
        streams: (role, (seed, stream)) pairs. A role of `ROLES` that is not named has the stream of
            its own name and of `seed`.
        start: None: initial weights are drawn. Else the params and variables of this state, with a
            fresh optimiser at step 0.
        mask: a state; weights are pruned where its params are 0.
    """

    seed: int
    of: Of = ()
    streams: tuple[tuple[str, tuple[int, str]], ...] = ()
    start: Ref | None = None
    teacher: Teacher | None = None
    mask: Ref | None = None

    @property
    def key(self) -> str:
        """Its name within the arm, which can be part of a file name.

        >>> Member(3).key, Member(3, (("noise", "0.5"),)).key
        ('3', '3-noise=0_5')
        """
        name = "-".join([str(self.seed), *(f"{name}={value}" for name, value in self.of)])
        return re.sub("[^A-Za-z0-9_=+-]", "_", name)

    def stream(self, role: str) -> jax.Array:
        """The key of one of its streams."""
        return stream(*self.decides(role))

    def decides(self, role: str) -> tuple[int, str]:
        return dict(self.streams).get(role, (self.seed, role))

    @property
    def reads(self) -> tuple[Ref, ...]:
        taught = self.teacher.refs if self.teacher else ()
        return (*filter(None, (self.start, self.mask)), *taught)


@dataclasses.dataclass(frozen=True)
class When:
    """The steps at which something is due.

    Attributes:
        start: before the first step; `end`: after the last, independent of the other fields.
        every_epochs: at the end of every so many epochs; 0: never.
        epochs: after these epochs.
        per_decade: after steps 10^(i / per_decade), i = 0, 1, ..., and before the first step; 0:
            never. A step of an arm that trains by whole epochs is an epoch.
    """

    start: bool = False
    end: bool = True
    every_epochs: int = 0
    epochs: tuple[int, ...] = ()
    per_decade: int = 0

    def steps(self, total_steps: int, steps_per_epoch: int) -> frozenset[int]:
        """The steps that are due in a training of `total_steps`.

        >>> sorted(When(per_decade=3).steps(100, 1))
        [0, 1, 2, 5, 10, 22, 46, 100]
        """
        due = {epoch * steps_per_epoch for epoch in self.epochs}
        if self.every_epochs:
            period = self.every_epochs * steps_per_epoch
            due |= set(range(period, total_steps + 1, period))
        if self.per_decade:
            exponents = range(self.per_decade * len(str(total_steps)))
            due |= {0} | {round(10 ** (i / self.per_decade)) for i in exponents}
        due |= {0} if self.start else set()
        due |= {total_steps} if self.end else set()
        return frozenset(step for step in due if step <= total_steps)


class Best(NamedTuple):
    """Which state of a model is its best: the first with the least (or most) of a metric. With a
    `target` it is the first state whose metric is at most (at least) the target, or the best of all
    if none reaches it. Values and target are compared in float32, in which accuracies and losses
    are computed. NaN values are skipped; if all are NaN, it is the state before the first step."""

    metric: str
    direction: Literal["least", "most"]
    target: float | None = None

    def better(self, value: float, than: float) -> bool:
        """Whether `value` replaces the best so far, `than`, which is NaN if there is none yet."""
        sign = 1 if self.direction == "least" else -1
        new, old = float(np.float32(value)), float(np.float32(than))
        if math.isnan(new):
            return False
        if self.target is not None and sign * (old - float(np.float32(self.target))) <= 0:
            return False
        return math.isnan(old) or sign * (new - old) < 0


class Snapshots(NamedTuple):
    """The states of an arm that are kept, and the bytes that all of them may take on disk."""

    when: When
    most_bytes: int = 2**31


class Subject(NamedTuple):
    """What an evaluator or a transform sees: one model and its origin.

    Attributes:
        step: how many steps it was trained for. At the end of an arm this is less than the arm's
            last step if the model was done earlier, or if the state is from an earlier step.
        model: the Flax module.
        at: gives another state of the same model, or of the trained model that it is derived from:
            'start', and the states that were kept.
        teacher: the model that teaches it, the first if there are several; None: none.
        source: in a derived arm, the model that it was made from.
    """

    seed: int
    of: Of
    step: int
    model: nn.Module
    state: TrainState
    at: Callable[[At], TrainState]
    teacher: "Subject | None" = None
    source: "Subject | None" = None


class Cost(NamedTuple):
    """The most that an epoch of a step, or a call of an evaluator, costs for one model.

    Attributes:
        forwards: forward passes of one example; a gradient counts as three.
        gradients: evaluations of the gradient of a batch.
        stored: bytes of arrays that are kept.
    """

    forwards: int = 0
    gradients: int = 0
    stored: int = 0


class Evaluator(Protocol):
    """One kind of measurement.

    `name` names its stream of randomness, `kind` the work that it counts as, and `metrics` all that
    it may measure. Each call takes a carry and returns it for the next call; the carry is kept in
    the checkpoint. A method `cost(spec) -> Cost` may say what a call costs on such data. `counted`
    may name a split that must have all `num_examples` of it, from `first` on if it has this.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def when(self) -> When: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...

    def init(self, subject: Subject, data: Splits) -> Any: ...
    def __call__(
        self, carry: Any, subject: Subject, data: Splits, key: jax.Array
    ) -> tuple[Any, Results]: ...


@dataclasses.dataclass(frozen=True)
class Train:
    """An arm whose models are trained.

    Attributes:
        data: a key of `Plan.data`.
        step: how to train: `steps.Steps`, `full_batch.FullBatch` or `epochs.Epochs`.
        epochs: the most epochs of training; 0: the models stay as drawn.
        rows: when the loss and accuracy of the training become rows.
        snapshots, best: which states besides the last are kept for later stages.
        population: how its models run: 'auto', 'vmap', 'loop'.
        repeats: whether two models of the plan may be identical.
        stop: the epoch after which a replay stops. Schedules, and what is due, remain those of the
            whole training.
    """

    arm: str
    members: tuple[Member, ...]
    data: str
    step: Any
    epochs: int
    checkpoint_epochs: int
    evaluators: tuple[Evaluator, ...] = ()
    rows: When = When(every_epochs=1)
    snapshots: Snapshots | None = None
    best: Best | None = None
    population: str = "auto"
    repeats: bool = False
    stop: int | None = None


Transform = Callable[[Subject, jax.Array], Iterator[tuple[Of, TrainState]]]
"""Makes models from one model: yields the coordinates that `Derive.outputs` names, in its order,
each with a state of the same structure."""


class Derive(NamedTuple):
    """An arm whose models are made from those of another arm, one by one; nothing is trained.

    Attributes:
        source: the other arm, and `at`: which state of each of its models.
        transform: makes the models; `as_is` evaluates the state itself. Its key is the stream
            `derive/<arm>` of the seed.
        outputs: further coordinates of each model that is made from one.
    """

    arm: str
    source: str
    transform: Transform
    evaluators: tuple[Evaluator, ...]
    at: At = "end"
    outputs: tuple[Of, ...] = ((),)


def as_is(subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
    """The transform that changes nothing."""
    yield (), subject.state


class View(Protocol):
    """What a measure sees of the arms that its stage reads."""

    def members(self, arm: str) -> tuple[Member, ...]: ...
    def rows(self, arm: str) -> list[dict[str, Any]]: ...
    def arrays(self, arm: str, name: str, member: Member) -> Mapping[str, Any]:
        """The arrays that evaluator `name` stored for a member at the arm's end, if any."""
        ...

    def trajectory(self, arm: str, name: str, member: Member) -> Mapping[str, Any]:
        """The same at each step that was due, with a leading axis of steps, and `step`."""
        ...

    def data(self, arm: str, member: Member) -> Splits: ...


class Measure(Protocol):
    """Compares results of arms. Its rows are of its `arms`, else of all that its stage reads."""

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...
    def __call__(self, view: View) -> Iterable[tuple[str, Member, str, Of, Estimate]]:
        """Arm, member, metric, further coordinates and estimate of each row."""
        ...


class Compare(NamedTuple):
    """Measures of the results of several arms, in order: each sees the rows of those before it."""

    name: str
    reads: tuple[str, ...]
    measures: tuple[Measure, ...]


class Draw(NamedTuple):
    """An arm without models: `fn(seed)` gives its rows, by metric and further coordinates.

    If `parallel`, `fn` runs in separate processes, so it must be picklable and import nothing
    heavy.
    """

    arm: str
    seeds: tuple[int, ...]
    fn: Callable[[int], Mapping[tuple[str, Of], float]]
    metrics: tuple[str, ...] = ()
    parallel: bool = False
    says: str = ""


Stage = Train | Derive | Compare | Draw


class Plan(NamedTuple):
    """All that a study does. `data` are specifications by key; `stages` come in any order."""

    data: Mapping[str, DataSpec]
    stages: tuple[Stage, ...]
