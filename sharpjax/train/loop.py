"""Train the seeds of one arm step by step, and measure them at the ends of epochs.

How it is stopped and goes on is `driver`'s.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from sharpjax import data, tree, workdir
from sharpjax.estimate import Estimate
from sharpjax.train import population
from sharpjax.train.driver import Saved, drive
from sharpjax.train.evaluators import Data, Evaluator, Results
from sharpjax.train.interrupt import Interrupt
from sharpjax.train.progress import Progress
from sharpjax.train.rows import exact, row, rows_of
from sharpjax.train.state import TrainState, reset_sums
from sharpjax.train.step import Own, SeedStep
from sharpjax.train.streams import stream

# The array of each checkpoint's step, and of the first epoch's last, that names every seed.
PARAMS_DIGESTS = "params_sha256"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm of a study: what is trained, for how long, and what is measured."""

    study: str
    name: str
    seeds: tuple[int, ...]
    step: SeedStep
    epochs: int
    steps_per_epoch: int
    checkpoint_epochs: int
    layout: population.Layout
    evaluators: tuple[Evaluator, ...]

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def gradients_per_step(self) -> int:
        return 2 if self.step.optimizer.uses_sam else 1

    def work(self, steps: range | None = None) -> Counter[str]:
        """What `Progress` counts, after each of `steps` (1 to the last one, where not given)."""
        steps = range(1, self.total_steps + 1) if steps is None else steps
        work = Counter({"training": len(steps) * self.gradients_per_step})
        for evaluator in self.evaluators:
            work[evaluator.kind] += sum(_due(evaluator, self, step) for step in steps)
        return work


def train(
    arm: Arm,
    split: Data,
    run: workdir.Run,
    *,
    interrupt: Interrupt,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train `arm` to its end, from its newest checkpoint if there is one.

    Returns:
        What the manifest records of it: parameter digests at start and end, and seeds that stopped
        early.

    Raises:
        RunFailed: every seed turned non-finite.
        Interrupted: a signal came; the state is saved.
    """
    seeds = population.initial(arm.seeds, arm.step, split.train.image.shape[1:], arm.layout)
    start_digests = digests(arm, seeds)
    split = jax.device_put(split, NamedSharding(arm.layout.mesh, PartitionSpec()))
    carries = {
        evaluator.name: [evaluator.init(s) for s in population.members(seeds, arm.layout)]
        for evaluator in arm.evaluators
    }
    saved = Saved(seeds, carries, jnp.ones((), bool))
    del seeds  # so that only one population lies on the device
    task = _Training(arm, split, run, progress)
    saved = drive(task, saved, run, interrupt=interrupt, progress=progress, say=say)
    return {
        "params_at_start": start_digests,
        "params_at_end": digests(arm, saved.population),
        "stopped": stopped(arm, saved.population),
    }


class _Training:
    """An arm as `drive` takes it."""

    def __init__(self, arm: Arm, split: Data, run: workdir.Run, progress: Progress):
        self._arm, self._split, self._run, self._progress = arm, split, run, progress
        self._own_of: tuple[int, Any] = (-1, None)  # the epoch, and what belongs to it

    @property
    def name(self) -> str:
        return self._arm.name

    @property
    def total_steps(self) -> int:
        return self._arm.total_steps

    def is_saved(self, step: int) -> bool:
        return _is_saved(self._arm, step)

    def room(self, step: int) -> int:
        return self._arm.steps_per_epoch - step % self._arm.steps_per_epoch

    def work(self, steps: range) -> Counter[str]:
        return self._arm.work(steps)

    def evaluate(self, step: int, saved: Saved) -> tuple[Saved, list[dict[str, Any]]]:
        return _evaluate(self._arm, self._split, self._run, step, saved, self._progress)

    def publish(self, step: int, saved: Saved) -> None:
        if step == self._arm.steps_per_epoch or self.is_saved(step):
            _publish_digests(self._arm, self._run, step, saved.population)

    def advance(self, step: int, num_steps: int, saved: Saved) -> tuple[int, Saved]:
        epoch, offset = divmod(step, self._arm.steps_per_epoch)
        if self._own_of[0] != epoch:
            self._own_of = epoch, _own(self._arm, epoch, len(self._split.train.label))
        seeds = population.advance(
            self._arm.step,
            saved.population,
            self._split.train,
            self._own_of[1],
            start=step,
            offset=offset,
            num_steps=num_steps,
            layout=self._arm.layout,
        )
        step += num_steps
        is_due = step % self._arm.steps_per_epoch == 0
        return step, Saved(seeds, saved.carries, jnp.asarray(not is_due))

    def alive(self, saved: Saved) -> np.ndarray:
        return population.alive(saved.population, self._arm.layout)

    def headline(self, step: int, saved: Saved, rows: list[dict[str, Any]]) -> str:
        return _headline(self._arm, rows, step)


def _own(arm: Arm, epoch: int, num_examples: int) -> Any:
    """Order and augmentation key of every seed in `epoch`: functions of (seed, epoch) alone."""
    own = [
        Own(
            data.epoch_order(stream(seed, "order"), epoch, num_examples),
            stream(seed, "augmentation"),
        )
        for seed in arm.seeds
    ]
    return population.gather(own, arm.layout)


def _evaluate(
    arm: Arm, split: Data, run: workdir.Run, step: int, saved: Saved, progress: Progress
) -> tuple[Saved, list[dict[str, Any]]]:
    """Run what is due at the end of this epoch: the state with its running sums at zero, and the
    rows. Of a seed that has turned non-finite nothing is measured but that.

    It may be left by an exception at any point, so nothing is written here but arrays, which a
    second try writes again.
    """
    states = population.members(saved.population, arm.layout)
    alive = population.alive(saved.population, arm.layout)
    rate = arm.step.optimizer.learning_rate_schedule()(step - 1)
    rows = []
    for seed, state, is_alive in zip(arm.seeds, states, alive, strict=True):
        estimates = {"train/alive": exact(is_alive)}
        if is_alive:
            estimates |= training_estimates(state) | {"train/learning_rate": exact(rate)}
        rows += [row(arm, seed, step, name, estimate) for name, estimate in estimates.items()]
    carries = dict(saved.carries)
    for evaluator in arm.evaluators:
        if not _due(evaluator, arm, step):
            continue
        with progress.timed(evaluator.kind):
            new = list(carries[evaluator.name])
            for i in np.flatnonzero(alive):
                seed = arm.seeds[i]
                key = jax.random.fold_in(stream(seed, f"evaluate/{evaluator.name}"), step)
                new[i], results = evaluator(new[i], states[i], split, key)
                rows += _publish(arm, run, seed, step, results)
            carries[evaluator.name] = new
    seeds = population.map_members(reset_sums, saved.population, arm.layout)
    return Saved(seeds, carries, jnp.ones((), bool)), rows


def _due(evaluator: Evaluator, arm: Arm, step: int) -> bool:
    if step == arm.total_steps:
        return True
    period = evaluator.every_epochs * arm.steps_per_epoch
    return period > 0 and step % period == 0


def _is_saved(arm: Arm, step: int) -> bool:
    period = arm.checkpoint_epochs * arm.steps_per_epoch
    return step % period == 0 or step == arm.total_steps


def _publish_digests(arm: Arm, run: workdir.Run, step: int, seeds: Any) -> None:
    """SHA-256 of each seed's parameters, for who trains them again to compare."""
    bytes_of = {seed: bytes.fromhex(digest) for seed, digest in digests(arm, seeds).items()}
    arrays = {seed: np.frombuffer(digest, np.uint8) for seed, digest in bytes_of.items()}
    run.publish_arrays(arm.name, step, PARAMS_DIGESTS, arrays)


def _publish(
    arm: Arm, run: workdir.Run, seed: int, step: int, results: Results
) -> list[dict[str, Any]]:
    for name, array in results.arrays.items():
        run.publish_arrays(arm.name, step, f"{name}-{seed}", {"value": np.asarray(array)})
    return rows_of(arm, seed, step, results)


def training_estimates(state: TrainState) -> dict[str, Estimate]:
    """Loss and accuracy on the training batches since the last reading, and what SAM saw in its
    last step."""
    count = np.asarray(state.num_steps)
    nan = np.float32(np.nan)
    sam = optax.tree.get(state.opt_state, "statistics", {})
    return {
        "train/loss": Estimate(np.asarray(state.loss_sum) / count, nan, count),
        "train/accuracy": Estimate(np.asarray(state.correct_sum) / count, nan, count),
    } | {
        f"train/sam/{name}": Estimate(np.asarray(value), nan, np.int32(1))
        for name, value in (sam._asdict() if sam else {}).items()
    }


def _headline(arm: Arm, rows: list[dict[str, Any]], step: int) -> str:
    """Mean over seeds of what a reader watches."""
    parts = []
    for name in ("train/loss", "test/accuracy"):
        values = [r["value"] for r in rows if r["metric"] == name]
        if values:  # a mean of what is not finite is said as such
            parts.append(f"{name} {np.mean(values):.4f}")
    return f"{arm.name}  step {step}/{arm.total_steps}  {'  '.join(parts)}"


def digests(arm: Arm, seeds: Any) -> dict[str, str]:
    states = population.members(seeds, arm.layout)
    return {
        str(seed): tree.digest((state.params, state.variables))
        for seed, state in zip(arm.seeds, states, strict=True)
    }


def stopped(arm: Arm, seeds: Any) -> dict[str, int]:
    states = population.members(seeds, arm.layout)
    return {
        str(seed): int(state.stopped_at)
        for seed, state in zip(arm.seeds, states, strict=True)
        if not bool(state.alive)
    }
