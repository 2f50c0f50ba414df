"""A trained arm in the form that `driver` takes: its models side by side, and what is due."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import tree, workdir
from sharpjax.data import Splits
from sharpjax.driver import drive
from sharpjax.driver.drive import Saved
from sharpjax.driver.interrupt import Interrupt
from sharpjax.driver.progress import Progress
from sharpjax.errors import RunFailed, UserError
from sharpjax.train import planning, population, teaching
from sharpjax.train.library import BEST, STATE, Library, arrays_of
from sharpjax.train.plan import Evaluator, Member, Plan, Ref, Subject, Train, When
from sharpjax.train.results import Results, Row, results, rows_of
from sharpjax.train.state import TrainState
from sharpjax.train.steps import Beside
from sharpjax.train.streams import stream

# The array of digests of every model, at the end of the first epoch and at each checkpoint.
PARAMS_DIGESTS = "params_sha256"
CURVES = "curves"


class Setting(NamedTuple):
    """What stages need to run.

    Attributes:
        study: its name, for the rows.
        splits: by key of `Plan.data`, on the device; if each seed draws its data, by seed below the
            key.
        library: the states that earlier stages left.
    """

    study: str
    plan: Plan
    splits: Mapping[str, Splits | Mapping[int, Splits]]
    run: workdir.Run
    library: Library
    interrupt: Interrupt
    progress: Progress
    say: Callable[[str], None]

    def split(self, key: str, seed: int) -> Splits:
        found = self.splits[key]
        return found[seed] if isinstance(found, Mapping) else found


class Best(NamedTuple):
    """The best state of one model so far; `value` is NaN if there is none yet."""

    value: jax.Array
    step: jax.Array
    params: Any
    variables: Any


def work(plan: Plan, stage: Train, steps: range | None = None) -> Counter[str]:
    """The work that `Progress` counts for these steps (1 is the first), or for all: gradients of
    one model, and calls of evaluators."""
    total, per_epoch = planning.num_steps(plan, stage), planning.steps_per_epoch(plan, stage)
    counts = Counter({"training": (total if steps is None else len(steps)) * stage.step.gradients})
    for evaluator in stage.evaluators:
        due = evaluator.when.steps(total, per_epoch)
        calls = len(due) if steps is None else sum(step in steps for step in due)
        counts[evaluator.kind] += calls * len(stage.members)
    return counts


def train(setting: Setting, stage: Train) -> dict[str, Any]:
    """Train an arm to its end, from its newest checkpoint if there is one.

    Returns:
        What the manifest records of it: parameter digests at start and end, the number of steps of
        each model, the models that stopped early because they were non-finite, and the layout.

    Raises:
        RunFailed: every model turned non-finite, or all have an unsound teacher.
        Interrupted: a signal came; the state is saved.
    """
    layout = stage.step.layout(
        stage.population, planning.example_of(setting.plan, stage), len(stage.members)
    )
    states = initial(setting, stage, layout)
    start_digests = digests(stage, layout, states)
    task = Arm(setting, stage, layout)
    saved = task.begin(states)
    del states  # so that only one population is on the device
    saved = drive.drive(
        task, saved, setting.run,
        interrupt=setting.interrupt, progress=setting.progress, say=setting.say,
    )  # fmt: skip
    keys = [member.key for member in stage.members]
    ended = dict(zip(keys, population.members(saved.population, layout), strict=True))
    return {
        "params_at_start": start_digests,
        "params_at_end": digests(stage, layout, saved.population),
        f"{stage.step.unit}s": {key: task.own_step(one) for key, one in ended.items()},
        "stopped": {k: int(one.stopped_at) for k, one in ended.items() if not bool(one.alive)},
        "population": layout.mode,
        "mesh": dict(layout.mesh.shape),
    }


def initial(setting: Setting, stage: Train, layout: population.Layout) -> Any:
    """Fresh states, each depending only on its own member. A model with an unsound teacher is not
    alive and takes no step.

    Raises:
        RunFailed: every member has an unsound teacher.
    """
    states = [setting.library.start(stage, member) for member in stage.members]
    train = [setting.split(stage.data, member.seed).train for member in stage.members]
    untaught = teaching.unsound(setting.plan, setting.library, stage.members, train)
    lines = [f"model {stage.members[i].key}: {reason}" for i, reason in untaught.items()]
    if len(lines) == len(states):
        raise RunFailed(f"arm '{stage.arm}' has no sound teacher; {'; '.join(lines)}.")
    for (i, _), line in zip(untaught.items(), lines, strict=True):
        setting.say(f"{stage.arm}: {line}, and it is not trained")
        states[i] = dataclasses.replace(
            states[i], alive=jnp.zeros((), bool), stopped_at=jnp.zeros((), jnp.int32)
        )
    return population.gather(states, layout)


def beside(setting: Setting, stage: Train, member: Member) -> Beside:
    """Teacher and mask of one model."""
    mask = setting.library.state(member.mask).params if member.mask else None
    if mask is not None:
        mask = jax.tree.map(lambda x: (x != 0).astype(x.dtype), mask)
    train = setting.split(stage.data, member.seed).train
    return Beside(teaching.teacher_of(setting.plan, setting.library, stage, member, train), mask)


class Arm:
    """An arm as a `drive.Task`, which explains the methods."""

    def __init__(self, setting: Setting, stage: Train, layout: population.Layout):
        self._setting, self._stage, self._layout = setting, stage, layout
        self.name = stage.arm
        self._end = planning.num_steps(setting.plan, stage)
        self._per_epoch = per_epoch = planning.steps_per_epoch(setting.plan, stage)
        self.total_steps = total = min(self._end, (stage.stop or stage.epochs) * per_epoch)
        self._splits = [setting.split(stage.data, member.seed) for member in stage.members]
        besides = [beside(setting, stage, member) for member in stage.members]
        self._loop = stage.step.loop(stage.members, besides, self._splits, layout)
        self._measured = {e.name: self._steps(e.when) for e in stage.evaluators}
        self._rows = self._steps(stage.rows)
        self._snapshots = {s for s in planning.snapshots(setting.plan, stage) if s <= total}
        # Digests at the end of the first epoch and at checkpoints, for a replay to compare.
        digested = {s for s in range(total + 1) if s == per_epoch or self.is_saved(s)}
        due = set().union(digested, self._rows, self._snapshots, *self._measured.values())
        self._digested, self._due = digested, sorted({*due, total})

    def begin(self, states: Any) -> Saved:
        """What is saved before the first step.

        Raises:
            UserError: the snapshots would take more bytes than allowed.
        """
        each = list(self._each(states))
        self._check_room(each[0][2])
        carries = {
            evaluator.name: [
                evaluator.init(self._subject(m, 0, one), self._splits[i]) for i, m, one in each
            ]
            for evaluator in self._stage.evaluators
        }
        nan, first = jnp.full((), jnp.nan, jnp.float32), jnp.zeros((), jnp.int32)
        best = [Best(nan, first, x.params, x.variables) for *_, x in each if self._stage.best]
        settled = jnp.asarray(0 not in self._due)
        return Saved(states, self._loop.record(self._stage.epochs), carries, best, settled)

    def own_step(self, one: TrainState) -> int:
        """How many steps a model took in total."""
        return self._loop.own_step(one, self.total_steps)

    def is_saved(self, step: int) -> bool:
        period = self._stage.checkpoint_epochs * self._per_epoch
        return step == self.total_steps or (step > 0 and step % period == 0)

    def room(self, step: int) -> int:
        following = next(due for due in self._due if due > step)
        return min(following - step, self._loop.room(step))

    def work(self, steps: range) -> Counter[str]:
        return work(self._setting.plan, self._stage, steps)

    def advance(self, step: int, num_steps: int, saved: Saved) -> tuple[int, Saved]:
        after, states, record = self._loop.advance(step, num_steps, saved.population, saved.record)
        step = min(after, *(s for s in (*self._snapshots, self.total_steps) if s > step))
        settled = jnp.asarray(step not in self._due)
        return step, saved._replace(population=states, record=record, settled=settled)

    def alive(self, saved: Saved) -> np.ndarray:
        return population.alive(saved.population, self._layout)

    def evaluate(self, step: int, saved: Saved) -> tuple[Saved, list[Row]]:
        """For a model that is no longer finite, only this fact is recorded."""
        each = list(self._each(saved.population))
        is_last, rows, carries = step == self._end, list[Row](), dict(saved.carries)
        if step in self._rows:
            for i, member, one in each:
                found = self._loop.estimates(one, saved.record, i, step, is_last)
                rows += self._rows_of(member, step, results(found))
        for evaluator in self._stage.evaluators:
            if step in self._measured[evaluator.name]:
                carries[evaluator.name] = list(carries[evaluator.name])
                with self._setting.progress.timed(evaluator.kind, len(each)):
                    rows += self.measured(
                        evaluator, step, saved.population, carries[evaluator.name]
                    )
        self._check_best(rows)
        best = [self._best(member, one, saved.best[i], step, rows)
                for i, member, one in each if saved.best]  # fmt: skip
        if is_last:
            curves = {m.key: self._loop.arrays(one, saved.record, i) for i, m, one in each}
            self._store(step, CURVES, curves)
        after = self._loop.read(saved.population) if step in self._rows else saved.population
        settled = jnp.ones((), bool)
        return saved._replace(population=after, carries=carries, best=best, settled=settled), rows

    def measured(
        self, evaluator: Evaluator, step: int, states: Any, carries: list[Any]
    ) -> list[Row]:
        """The rows of every model that is measured now. Replaces `carries` and writes arrays."""
        rows, arrays = list[Row](), {}
        for i, member, one in self._each(states):
            if self._loop.is_measured(one, step, step == self._end):
                own = self._loop.own_step(one, step)
                key = jax.random.fold_in(stream(member.seed, f"evaluate/{evaluator.name}"), own)
                subject = self._subject(member, own, one)
                carries[i], found = evaluator(carries[i], subject, self._splits[i], key)
                rows += self._rows_of(member, step, found)
                arrays[member.key] = found.arrays
        self._store(step, evaluator.name, arrays)
        return rows

    def publish(self, step: int, saved: Saved) -> None:
        """The states that are kept, and the digests of parameters."""
        publish, is_last = self._setting.run.publish_arrays, step == self._end
        is_kept = "end" in planning.kept(self._setting.plan, self.name)
        for i, member, one in self._each(saved.population):
            if step in self._snapshots or (is_last and is_kept):
                arrays = arrays_of(one, self._loop.own_step(one, step))
                publish(self.name, step, f"{STATE}-{member.key}", arrays)
            if is_last and saved.best:
                best = saved.best[i]
                chosen = dataclasses.replace(one, params=best.params, variables=best.variables)
                arrays = arrays_of(chosen, int(best.step))
                publish(self.name, step, f"{BEST}-{member.key}", arrays)
        if step in self._digested:
            named = digests(self._stage, self._layout, saved.population)
            arrays = {k: np.frombuffer(bytes.fromhex(d), np.uint8) for k, d in named.items()}
            publish(self.name, step, PARAMS_DIGESTS, arrays)

    def headline(self, step: int, saved: Saved, rows: list[Row]) -> str:
        """Means over models."""
        parts = [f"{self.name}  {self._stage.step.unit} {step}/{self.total_steps}"]
        for name in ("train/loss", "test/accuracy"):
            values = [r["value"] for r in rows if r["metric"] == name]
            if values:  # the mean of non-finite values is shown as it is
                parts.append(f"{name} {np.mean(values):.4f}")
        if done := sum(bool(one.alive) and self._loop.own_step(one, step) < step
                       for *_, one in self._each(saved.population)):  # fmt: skip
            parts.append(f"{done} of {len(self._stage.members)} are done")
        return "  ".join(parts)

    def _each(self, states: Any) -> Iterator[tuple[int, Member, TrainState]]:
        members = population.members(states, self._layout)
        for i, (member, one) in enumerate(zip(self._stage.members, members, strict=True)):
            yield i, member, one

    def _steps(self, when: When) -> frozenset[int]:
        due = when.steps(self._end, self._per_epoch)
        return frozenset(step for step in due if step <= self.total_steps)

    def _check_best(self, rows: Sequence[Row]) -> None:
        rule = self._stage.best
        named = [(r["seed"], r["of"]) for r in rows if rule and r["metric"] == rule.metric]
        own = [(member.seed, dict(member.of)) for member in self._stage.members]
        if rule and named and not any(found in own for found in named):
            raise UserError(
                f"plan: the best state of arm '{self.name}' is chosen by '{rule.metric}', which "
                f"has no value for a whole model, only for coordinates such as {named[0][1]}; name "
                f"another metric in Train.best."
            )

    def _best(
        self, member: Member, one: TrainState, best: Best, step: int, rows: Sequence[Row]
    ) -> Best:
        """The best state of a model, given the new rows of all models."""
        rule = self._stage.best
        assert rule is not None
        for found in rows:
            own = found["seed"], found["of"], found["metric"]
            if own == (member.seed, dict(member.of), rule.metric):
                value = jnp.float32(found["value"])
                if rule.better(float(value), float(best.value)):
                    own_step = jnp.int32(self._loop.own_step(one, step))
                    best = Best(value, own_step, one.params, one.variables)
        return best

    def _subject(self, member: Member, step: int, one: TrainState) -> Subject:
        return self._setting.library.seen(Ref(self.name, member.seed, member.of), step, one)

    def _rows_of(self, member: Member, step: int, found: Results) -> Iterator[Row]:
        return rows_of(self._setting.study, self.name, member.seed, step, found, member.of)

    def _store(self, step: int, name: str, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Stores the arrays of all models in one file; no arrays, no file."""
        if found := {f"{key}.{n}": x for key, own in arrays.items() for n, x in own.items()}:
            self._setting.run.publish_arrays(self.name, step, name, found)

    def _check_room(self, one: TrainState) -> None:
        if (asked := self._stage.snapshots) is None:
            return
        count, members = len(self._snapshots), len(self._stage.members)
        size = sum(x.nbytes for x in jax.tree.leaves((one.params, one.variables)))
        if (total := size * count * members) > asked.most_bytes:
            raise UserError(
                f"plan: {count} snapshots of {members} models of arm '{self.name}' take {total:,} "
                f"bytes, and Snapshots.most_bytes is {asked.most_bytes:,}; keep fewer, or allow "
                f"more."
            )


def digests(stage: Train, layout: population.Layout, states: Any) -> dict[str, str]:
    """SHA-256 of each model's weights: parameters and, with `Steps`, variables."""
    each = zip(stage.members, population.members(states, layout), strict=True)
    return {member.key: tree.digest(stage.step.weights(one)) for member, one in each}
