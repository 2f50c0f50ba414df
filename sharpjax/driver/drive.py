"""Drive one arm from checkpoint to checkpoint, so that it can be stopped and resumed at any moment.

The order is fixed. If something is due: evaluators on the current state, then their rows are
published, then the checkpoint. After that come the next steps. Resuming restores the newest sound
checkpoint and drops all later rows, so a run that was killed ends with the same bits as one that
was not. The task decides what a step is, and what is due when.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from sharpjax import workdir
from sharpjax.driver import checkpoint
from sharpjax.driver.interrupt import Interrupt, Interrupted
from sharpjax.driver.progress import Progress
from sharpjax.errors import RunFailed

# Steps run in segments of about this many seconds. After each, the clock and Ctrl-C are checked.
SEGMENT_SECONDS = 1.0

Rows = list[dict[str, Any]]


class Saved(NamedTuple):
    """The content of a checkpoint: the models, the record of the loop, the carry of each evaluator
    and model, the best state of each model so far, and whether the work that is due at its step is
    done."""

    population: Any
    record: Any
    carries: dict[str, list[Any]]
    best: list[Any]
    settled: jax.Array


class Task(Protocol):
    """An arm that can be driven: steps from 0 to `total_steps`, and what is due on the way."""

    @property
    def name(self) -> str: ...
    @property
    def total_steps(self) -> int: ...

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is due."""
        ...

    def room(self, step: int) -> int:
        """How many steps, one or more, it is to the next at which something is due."""
        ...

    def work(self, steps: range) -> Counter[str]:
        """The work that `Progress` counts for these steps (1 is the first)."""
        ...

    def evaluate(self, step: int, saved: Saved) -> tuple[Saved, Rows]:
        """Do what is due at this step; returns the settled state and its rows.

        An exception may leave it at any point, so it writes nothing but arrays, which a second try
        writes again.
        """
        ...

    def publish(self, step: int, saved: Saved) -> None:
        """Write what belongs to the rows of this step, after the rows are written."""
        ...

    def advance(self, step: int, num_steps: int, saved: Saved) -> tuple[int, Saved]:
        """Take `num_steps` steps. It may return a later step at once if nothing is left to do."""
        ...

    def alive(self, saved: Saved) -> np.ndarray:
        """Which seeds are still finite: bool [seeds]. Waits for the population."""
        ...

    def headline(self, step: int, saved: Saved, rows: Rows) -> str:
        """A line for the user."""
        ...


def drive(
    task: Task,
    saved: Saved,
    run: workdir.Run,
    *,
    interrupt: Interrupt,
    progress: Progress,
    say: Callable[[str], None],
) -> Saved:
    """Train to the end, from the newest checkpoint if there is one, else from `saved`.

    Raises:
        RunFailed: every seed turned non-finite.
        Interrupted: a signal came; the state is saved.
    """
    with checkpoint.opened(run.path / "checkpoints" / task.name, say, run) as checkpoints:
        step, restored = checkpoints.restore(saved) or (0, None)
        if restored is None:
            run.discard_after(task.name, None)
        else:
            saved = restored
            run.discard_after(task.name, step if bool(saved.settled) else step - 1)
            say(f"{task.name}: going on from step {step} of {task.total_steps}")
        progress.skip(task.work(range(1, step + 1)))
        return _drive(task, step, saved, run, checkpoints, interrupt, progress, say)


def _drive(
    task: Task,
    step: int,
    saved: Saved,
    run: workdir.Run,
    checkpoints: checkpoint.Checkpoints,
    interrupt: Interrupt,
    progress: Progress,
    say: Callable[[str], None],
) -> Saved:
    """The loop itself, from `step` on."""
    segment_steps = 1
    saved_at = step  # the state at step 0 follows from the seeds

    def save() -> None:
        nonlocal saved_at
        with progress.timed("checkpoints"):
            run.publish_segment(task.name, step if bool(saved.settled) else step - 1)
            checkpoints.save(step, saved)
        saved_at = step

    try:
        while True:
            if not saved.settled:
                with interrupt.abortable():
                    settled, rows = task.evaluate(step, saved)
                run.append(task.name, rows)
                task.publish(step, settled)
                saved = settled
                say(task.headline(step, saved, rows))
                saved_at = None
            if task.is_saved(step) and saved_at != step:
                save()
            if step == task.total_steps:
                return saved
            interrupt.check()
            num_steps = min(segment_steps, task.room(step))
            started, before = time.monotonic(), step
            work = task.work(range(step + 1, step + num_steps + 1))["training"]
            with progress.timed("training", work):
                after, now = task.advance(step, num_steps, saved)
                alive = task.alive(now)  # waits for the device, so that the time is right
            if not alive.any():
                raise RunFailed(
                    f"arm '{task.name}': every seed turned non-finite, the last between steps "
                    f"{before} and {before + num_steps}; try a smaller "
                    f"--config.optim.learning_rate."
                )
            progress.skip(task.work(range(before + num_steps + 1, after)))  # none, except at an end
            step, saved = after, now
            seconds = (time.monotonic() - started) / num_steps
            wanted = int(SEGMENT_SECONDS / max(seconds, 1e-9))
            segment_steps = max(1, min(4 * segment_steps, wanted))
            progress.report(f"{task.name}  step {step}/{task.total_steps}")
    except Interrupted:
        if saved_at != step:
            save()
        say(f"{task.name}: stopped and saved at step {step}; the same command goes on from there")
        raise
