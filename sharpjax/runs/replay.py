"""Train the first steps of a run anew, and compare them with what it recorded.

On the machine, versions and settings of the run every bit must be the same: the parameters at the
start, those at the end of the first epoch and of each checkpoint, and every row up to there. Else
only losses and accuracies are compared, within `TOLERANCE`, which shows that the recipe is the one
and proves no more. Nothing is read from the run's checkpoints, nor written into its folder.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from sharpjax import catalog, workdir
from sharpjax.errors import UserError
from sharpjax.runs import read, rebuild, schema, sources
from sharpjax.studies.sharpness import plan as sharpness
from sharpjax.runs.read import Folder
from sharpjax.runs.schema import Config
from sharpjax.train import interrupt, loop
from sharpjax.train.evaluators import Evaluator
from sharpjax.train.progress import Progress

# Between two machines, after one epoch: of the larger value, of 1 at the least.
TOLERANCE = 0.05
_COMPARED_ELSEWHERE = ("train/loss", "train/accuracy", "test/")

Say = Callable[[str], None]


class Replay(NamedTuple):
    """What came of it: how many numbers and digests were compared, and lines on what differs."""

    compared: int
    differences: tuple[str, ...]


def replay(
    folder: Folder, *, steps: int = 1, data_dir: str = "", manual_dir: str = "", say: Say = print
) -> Replay:
    """Train at least `steps` steps of each arm, to the end of an epoch, and compare.

    A study that trains no arms is run as a whole.

    Raises:
        UserError: the run is not finished, or its config or data are none that are had here.
    """
    if folder.manifest is None:
        raise UserError(f"'{folder.path}' is not finished; the same command goes on with it.")
    config = rebuild.config_of(folder)
    differs = _why_not_bitwise(folder)
    if differs:
        say(f"not compared bit by bit, but within {TOLERANCE:.0%}: {differs}")
    code = folder.manifest.get("code")
    if not isinstance(code, dict) or code.get("sources") != sources.code_digest():
        say(f"the code differs: there commit {rebuild.commit_of(folder)}, here another state")
    compare = _nearly if differs else _exactly
    recorded = list(read.rows(folder.path))
    if f"{catalog.STUDIES[config.study]}.plan" != sharpness.__name__:
        return compare(_whole(config), recorded)
    dataset = rebuild.dataset_of(folder, config, data_dir, manual_dir)
    split = sharpness.on_device(dataset)
    compared, lines = 0, []
    for name in schema.resolve_arms(config):
        arm = rebuild.arm_of(config, name, dataset)
        short = _shortened(arm, steps)
        say(f"arm {name}: steps 1 to {short.total_steps} of {arm.total_steps}")
        with tempfile.TemporaryDirectory() as scratch, _run_in(scratch, config) as run:
            progress = Progress(short.work(), say)
            with interrupt.handled() as signals:
                outcome = loop.train(
                    short, split, run, interrupt=signals, progress=progress, say=lambda _: None
                )
            own = [row for row in recorded if row["arm"] == name]
            found = compare(run.rows(), [r for r in own if r["step"] <= short.total_steps])
            compared += found.compared
            lines += found.differences
            if not differs:
                pairs = list(_digests(folder, arm, short, outcome, run.path))
                compared += len(pairs)
                lines += [
                    f"arm {name}: {what} differ" for what, there, here in pairs if there != here
                ]
    return Replay(compared, tuple(lines))


def _run_in(scratch: str, config: Config) -> Any:
    return workdir.open_run(f"{scratch}/run", config=config.to_dict(), overrides={})


def _whole(config: Config) -> list[workdir.Row]:
    with tempfile.TemporaryDirectory() as scratch, _run_in(scratch, config) as run:
        catalog.resolve(f"{catalog.STUDIES[config.study]}.plan:run")(config, run)
        return run.rows()


def _shortened(arm: loop.Arm, steps: int) -> loop.Arm:
    """The arm as it is up to the epoch's end after `steps`; its schedules are those of the whole.

    What it measures at its end alone is left out, unless that is reached.
    """
    epochs = min(-(-steps // arm.steps_per_epoch), arm.epochs)

    def is_due(evaluator: Evaluator) -> bool:
        return epochs == arm.epochs or 0 < evaluator.every_epochs <= epochs

    due = tuple(e for e in arm.evaluators if is_due(e))
    return dataclasses.replace(arm, epochs=epochs, evaluators=due)


def _why_not_bitwise(folder: Folder) -> str:
    if machines := rebuild.difference_of_machines(folder):
        return f"the run was on another machine: {machines}"
    if jax.default_backend() == "gpu" and not _is_deterministic():
        return "this GPU computes with XLA_FLAGS=--xla_gpu_deterministic_ops=true alone the same"
    return ""


def _is_deterministic() -> bool:
    return "--xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", "").split()


def _exactly(rows: list[workdir.Row], recorded: list[workdir.Row]) -> Replay:
    return _compare(rows, recorded, lambda a, b: a == b)


def _nearly(rows: list[workdir.Row], recorded: list[workdir.Row]) -> Replay:
    def agree(a: float | None, b: float | None) -> bool:
        if a is None or b is None:
            return a is b
        return abs(a - b) <= TOLERANCE * max(abs(a), abs(b), 1)

    return _compare(
        [row | {"standard_error": None} for row in rows],
        [
            row | {"standard_error": None}
            for row in recorded
            if row["metric"].startswith(_COMPARED_ELSEWHERE)
        ],
        agree,
    )


def _compare(
    rows: list[workdir.Row],
    recorded: list[workdir.Row],
    agree: Callable[[float | None, float | None], bool],
) -> Replay:
    """Every recorded row with the one of its coordinates. The replay may measure more."""
    here = {_coordinates(row): row for row in rows}
    lines = []
    for row in recorded:
        where = (
            f"arm {row['arm']}, seed {row['seed']}, step {row['step']}: {row['metric']}"
            f"{workdir.canonical_json(row['of']) if row['of'] else ''}"
        )
        other = here.get(_coordinates(row))
        if other is None:
            lines.append(f"{where} is not measured here")
            continue
        for name in ("value", "standard_error"):
            if not agree(row[name], other[name]):
                what = "" if name == "value" else f" ({name})"
                lines.append(f"{where}{what} is {row[name]!r} there and {other[name]!r} here")
    return Replay(len(recorded), tuple(lines))


def _coordinates(row: workdir.Row) -> tuple:
    of = workdir.canonical_json(row["of"])
    return row["arm"], row["seed"], row["step"], of, row["metric"]


def _digests(
    folder: Folder, arm: loop.Arm, short: loop.Arm, outcome: Mapping[str, Any], run: epath.Path
) -> Iterator[tuple[str, Any, Any]]:
    """What was compared, there and here: parameters of all seeds at each step that has digests."""
    arms = (folder.manifest or {}).get("arms")
    own = arms.get(arm.name) if isinstance(arms, dict) else None
    own = own if isinstance(own, dict) else {}
    yield "parameters at the start", own.get("params_at_start"), outcome["params_at_start"]
    if short.total_steps == arm.total_steps:
        yield "parameters at the end", own.get("params_at_end"), outcome["params_at_end"]
    for step in range(arm.steps_per_epoch, short.total_steps + 1, arm.steps_per_epoch):
        name = f"{workdir.ARRAYS}/{arm.name}/{step}/{loop.PARAMS_DIGESTS}.npz"
        if (folder.path / name).exists() and (run / name).exists():
            there, here = (_hex(workdir.load_arrays(base / name)) for base in (folder.path, run))
            yield f"parameters at step {step}", there, here


def _hex(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {seed: array.tobytes().hex() for seed, array in sorted(arrays.items())}
