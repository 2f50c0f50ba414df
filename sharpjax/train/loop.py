"""Train the seeds of one arm, measure them on the way, and be able to stop and go on at any moment.

The order is fixed. At each step that is due: evaluators on the state as it is, their rows
published, the checkpoint; then the next steps. Resuming restores the newest sound checkpoint and
drops every row after it, so a run that was killed ends with the bits of one that was not.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from sharpjax import data, tree, workdir
from sharpjax.errors import RunFailed
from sharpjax.estimate import Estimate
from sharpjax.train import checkpoint, population
from sharpjax.train.evaluators import Data, Evaluator, Results
from sharpjax.train.interrupt import Interrupt, Interrupted
from sharpjax.train.progress import Progress
from sharpjax.train.state import TrainState, reset_sums
from sharpjax.train.step import Own, SeedStep
from sharpjax.train.streams import stream

# Steps run in segments of about this many seconds, after each of which the clock and Ctrl-C are
# looked at.
SEGMENT_SECONDS = 1.0

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


class Saved(NamedTuple):
    """What a checkpoint holds. `settled`: the evaluators of its step have run."""

    population: Any
    carries: dict[str, list[Any]]
    settled: jax.Array


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
    with checkpoint.opened(run.path / "checkpoints" / arm.name, say) as checkpoints:
        step, restored = checkpoints.restore(saved) or (0, None)
        if restored is None:
            run.discard_after(arm.name, None)
        else:
            saved = restored
            run.discard_after(arm.name, step if bool(saved.settled) else step - 1)
            say(f"{arm.name}: going on from step {step} of {arm.total_steps}")
        progress.skip(arm.work(range(1, step + 1)))
        saved = _train(arm, split, run, checkpoints, step, saved, interrupt, progress, say)
    return {
        "params_at_start": start_digests,
        "params_at_end": digests(arm, saved.population),
        "stopped": stopped(arm, saved.population),
    }


def _train(
    arm: Arm,
    split: Data,
    run: workdir.Run,
    checkpoints: checkpoint.Checkpoints,
    step: int,
    saved: Saved,
    interrupt: Interrupt,
    progress: Progress,
    say: Callable[[str], None],
) -> Saved:
    """The loop itself, from `step` on."""
    segment_steps, own_epoch, own = 1, -1, None
    saved_at = step  # the state at step 0 is a function of the seeds

    def save() -> None:
        nonlocal saved_at
        with progress.timed("checkpoints"):
            run.publish_segment(arm.name, step if bool(saved.settled) else step - 1)
            checkpoints.save(step, saved)
        saved_at = step

    try:
        while True:
            if not saved.settled:
                with interrupt.abortable():
                    settled, rows = _evaluate(arm, split, run, step, saved, progress)
                run.append(arm.name, rows)
                if step == arm.steps_per_epoch or _is_saved(arm, step):
                    _publish_digests(arm, run, step, settled.population)
                saved = settled
                say(_headline(arm, rows, step))
                saved_at = None
            if _is_saved(arm, step) and saved_at != step:
                save()
            if step == arm.total_steps:
                return saved
            interrupt.check()
            epoch, offset = divmod(step, arm.steps_per_epoch)
            if epoch != own_epoch:
                own_epoch, own = epoch, _own(arm, epoch, len(split.train.label))
            num_steps = min(segment_steps, arm.steps_per_epoch - offset)
            started = time.monotonic()
            with progress.timed("training", num_steps * arm.gradients_per_step):
                seeds = population.advance(
                    arm.step,
                    saved.population,
                    split.train,
                    own,
                    start=step,
                    offset=offset,
                    num_steps=num_steps,
                    layout=arm.layout,
                )
                alive = population.alive(seeds, arm.layout)  # waits, so that the time is right
            if not alive.any():
                raise RunFailed(
                    f"arm '{arm.name}': every seed turned non-finite, the last between steps "
                    f"{step} and {step + num_steps}; try a smaller --config.optim.learning_rate."
                )
            seconds = (time.monotonic() - started) / num_steps
            wanted = int(SEGMENT_SECONDS / max(seconds, 1e-9))
            segment_steps = max(1, min(4 * segment_steps, wanted))
            step += num_steps
            saved = Saved(seeds, saved.carries, jnp.asarray(step % arm.steps_per_epoch != 0))
            progress.report(f"{arm.name}  step {step}/{arm.total_steps}")
    except Interrupted:
        if saved_at != step:
            save()
        say(f"{arm.name}: stopped and saved at step {step}; the same command goes on from there")
        raise


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
        estimates = {"train/alive": _exact(is_alive)}
        if is_alive:
            estimates |= training_estimates(state) | {"train/learning_rate": _exact(rate)}
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
    return [row(arm, seed, step, name, estimate) for name, estimate in results.estimates.items()]


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


def _exact(value: Any) -> Estimate:
    return Estimate(np.asarray(value), np.float32(0), np.int32(1))


def row(arm: Arm, seed: int, step: int, metric: str, estimate: Estimate) -> dict[str, Any]:
    """One line of the results table."""
    return {
        "study": arm.study,
        "arm": arm.name,
        "seed": seed,
        "step": step,
        "of": {},
        "metric": metric,
        "value": float(np.asarray(estimate.value)),
        "standard_error": float(np.asarray(estimate.standard_error)),
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
