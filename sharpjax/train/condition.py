"""Train the seeds of one condition by whole epochs, each until it generalises or its budget ends.

A step of the run, and the `step` of its rows, is an epoch. All seeds that are still learning are at
the same one; a seed that is done waits as it is, and its record ends there. Rows are written at a
few epochs on the way, and at the last epoch of the budget, whenever the seeds stopped, for all of
them; the curves of each seed, one entry an epoch, lie in `arrays/<arm>/<budget>/curves-<seed>.npz`.
How it is stopped and goes on is `driver`'s.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import tree, workdir
from sharpjax.estimate import Estimate
from sharpjax.train import epoch_population, epochs, population
from sharpjax.train.driver import Rows, Saved, drive
from sharpjax.train.epochs import Curves, Epoch, Examples, Learner
from sharpjax.train.interrupt import Interrupt
from sharpjax.train.progress import Progress
from sharpjax.train.rows import exact, row, rows_of
from sharpjax.train.streams import stream
from sharpjax.train.trajectory import Trajectory

STREAM = "evaluate/trajectory"


@dataclasses.dataclass(frozen=True)
class Condition:
    """What is trained, for how long at the most, and what is measured.

    Attributes:
        budget: epochs of a seed that does not generalise.
        checkpoint_epochs: from one checkpoint to the next.
        measured: epochs after which `trajectory` is measured; 0 is before the first.
    """

    study: str
    name: str
    seeds: tuple[int, ...]
    step: Epoch
    budget: int
    checkpoint_epochs: int
    measured: tuple[int, ...]
    trajectory: Trajectory
    layout: population.Layout

    @property
    def stops(self) -> tuple[int, ...]:
        """Epochs after which rows are due."""
        return tuple(sorted({*self.measured, self.budget}))

    def work(self, steps: range) -> Counter[str]:
        """What `Progress` counts for these epochs, if no seed stops early."""
        due = sum(step in steps for step in self.stops)
        return Counter(training=len(steps) * len(self.seeds), geometry=due * len(self.seeds))


class Progressed(NamedTuple):
    """The learners, and the curves of each so far: [seeds, budget]."""

    learners: Any
    curves: Curves


def train(
    condition: Condition,
    examples: Sequence[Examples],
    run: workdir.Run,
    *,
    interrupt: Interrupt,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train a condition to its end, from its newest checkpoint if there is one.

    Args:
        examples: of each seed.

    Returns:
        What the manifest records of it: parameter digests at start and end, the epochs of each
        seed, and seeds that stopped early for being non-finite.

    Raises:
        RunFailed: every seed turned non-finite.
        Interrupted: a signal came; the state is saved.
    """
    layout = condition.layout
    keys = population.gather([stream(seed, "init") for seed in condition.seeds], layout)
    data = population.gather(list(examples), layout)
    learners = epoch_population.initial(condition.step, keys, data, layout)
    start_digests = _digests(condition, learners)
    shape = (len(condition.seeds), condition.budget)
    curves = Curves(*(jnp.full(shape, jnp.nan, jnp.float32) for _ in Curves._fields))
    carries = [
        condition.trajectory.init(learner.params, own)
        for learner, own in zip(population.members(learners, layout), examples, strict=True)
    ]
    due = 0 in condition.measured
    saved = Saved(Progressed(learners, curves), {"trajectory": carries}, jnp.asarray(not due))
    task = _Task(condition, examples, data, run, progress)
    saved = drive(task, saved, run, interrupt=interrupt, progress=progress, say=say)
    ended = population.members(saved.population.learners, layout)
    named = list(zip(map(str, condition.seeds), ended, strict=True))
    return {
        "params_at_start": start_digests,
        "params_at_end": _digests(condition, saved.population.learners),
        "epochs": {seed: int(learner.epoch) for seed, learner in named},
        "stopped": {seed: int(learner.epoch) for seed, learner in named if not learner.alive},
    }


class _Task:
    """A condition as `drive` takes it."""

    def __init__(
        self,
        condition: Condition,
        examples: Sequence[Examples],
        data: Any,
        run: workdir.Run,
        progress: Progress,
    ):
        self._condition, self._examples, self._data = condition, examples, data
        self._run, self._progress = run, progress
        keys = [stream(seed, "order") for seed in condition.seeds]
        self._keys = population.gather(keys, condition.layout)

    @property
    def name(self) -> str:
        return self._condition.name

    @property
    def total_steps(self) -> int:
        return self._condition.budget

    def is_saved(self, step: int) -> bool:
        period = self._condition.checkpoint_epochs
        return step == self.total_steps or (step > 0 and step % period == 0)

    def room(self, step: int) -> int:
        stop = next(stop for stop in self._condition.stops if stop > step)
        period = self._condition.checkpoint_epochs
        return min(stop - step, period - step % period, epochs.MOST_EPOCHS)

    def work(self, steps: range) -> Counter[str]:
        return self._condition.work(steps)

    def advance(self, step: int, num_steps: int, saved: Saved) -> tuple[int, Saved]:
        before: Progressed = saved.population
        learners, segment = epoch_population.advance(
            self._condition.step,
            before.learners,
            self._data,
            self._keys,
            num_epochs=num_steps,
            layout=self._condition.layout,
        )
        curves = Curves(*map(np.array, before.curves))
        for whole, part in zip(curves, segment, strict=True):
            whole[:, step : step + num_steps] = part[:, :num_steps]
        now = Progressed(learners, Curves(*map(jnp.asarray, curves)))
        is_going = epoch_population.learning(learners, self._condition.layout).any()
        step = step + num_steps if is_going else self.total_steps
        return step, Saved(now, saved.carries, jnp.asarray(step not in self._condition.stops))

    def alive(self, saved: Saved) -> np.ndarray:
        return population.alive(saved.population.learners, self._condition.layout)

    def evaluate(self, step: int, saved: Saved) -> tuple[Saved, Rows]:
        condition, rows = self._condition, []
        carries, arrays = list(saved.carries["trajectory"]), {}
        learners = population.members(saved.population.learners, condition.layout)
        recorded = Curves(*map(np.asarray, saved.population.curves))
        curves = [tree.index(recorded, i) for i in range(len(learners))]
        is_last = step == condition.budget
        for i, (seed, learner) in enumerate(zip(condition.seeds, learners, strict=True)):
            if is_last or not learner.alive:
                rows.append(row(condition, seed, step, "train/alive", exact(learner.alive)))
            if not learner.alive or not (is_last or learner.epoch == step):
                continue
            estimates = _last_epoch(curves[i], int(learner.epoch))
            estimates |= outcome(learner) if is_last else {}
            rows += [row(condition, seed, step, name, x) for name, x in estimates.items()]
            key = jax.random.fold_in(stream(seed, STREAM), learner.epoch)
            with self._progress.timed("geometry"):
                carries[i], results = condition.trajectory(
                    carries[i], learner.params, self._examples[i], key
                )
            rows += rows_of(condition, seed, step, results)
            arrays |= {f"{seed}.{name}": np.asarray(x) for name, x in results.arrays.items()}
        if arrays:
            self._run.publish_arrays(condition.name, step, "spectra", arrays)
        if is_last:
            for seed, learner, own in zip(condition.seeds, learners, curves, strict=True):
                ended = {n: x[: int(learner.epoch)] for n, x in own._asdict().items()}
                self._run.publish_arrays(condition.name, step, f"curves-{seed}", ended)
        return Saved(saved.population, {"trajectory": carries}, jnp.ones((), bool)), rows

    def publish(self, step: int, saved: Saved) -> None:
        """Nothing stands beside the rows."""

    def headline(self, step: int, saved: Saved, rows: Rows) -> str:
        learners = population.members(saved.population.learners, self._condition.layout)
        done = sum(bool(learner.best == 1) for learner in learners)
        best = np.mean([float(learner.best) for learner in learners])
        return (
            f"{self.name}  epoch {step}/{self.total_steps}  {done} of {len(learners)} seeds have "
            f"generalised" + (f"  best test/accuracy {best:.4f}" if best >= 0 else "")
        )


def outcome(learner: Learner) -> dict[str, Estimate]:
    """What a seed came to, by the names that the hypotheses know (`studies.papers.paper3`)."""
    fitted = int(learner.fitted_epoch) or math.nan
    generalised = int(learner.best_epoch)
    values = {
        "grok/epoch_of_best_test_accuracy": generalised,
        "grok/reached_full_test_accuracy": learner.best == 1,
        "grok/best_test_accuracy": learner.best,
        "grok/epoch_of_full_train_accuracy": fitted,
        "grok/delay": generalised - fitted if learner.best == 1 else math.nan,
        "grok/epochs": learner.epoch,
        "model/num_params": tree.size(learner.params),
    }
    return {name: exact(value) for name, value in values.items()}


def _last_epoch(curves: Curves, epoch: int) -> dict[str, Estimate]:
    """What the epoch before a measurement showed; nothing before the first."""
    if not epoch:
        return {}
    names = {name: name.replace("_", "/") for name in Curves._fields}
    return {names[n]: exact(curve[epoch - 1]) for n, curve in curves._asdict().items()}


def _digests(condition: Condition, learners: Any) -> dict[str, str]:
    states = population.members(learners, condition.layout)
    return {
        str(seed): tree.digest(learner.params)
        for seed, learner in zip(condition.seeds, states, strict=True)
    }
