"""Train the first steps of a run again, and compare them with what it recorded.

On the same machine, versions and settings every bit must be equal: the parameters at the start, at
the end of the first epoch and at each checkpoint, and every row up to the last replayed step. On
another machine, or on a GPU without deterministic operations, only training loss and accuracy, the
metrics under `test/` and the rows of arms without models are compared, within `TOLERANCE`. This
shows that the recipe is the same, and proves no more. No checkpoint of the run is read, and nothing
is written into its folder.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.protocol.samples import resting_on
from sharpjax.provenance import machine, sources
from sharpjax.runs import read, rebuild, run, standing, study
from sharpjax.runs.read import Folder
from sharpjax.schema import Config
from sharpjax.train import planning
from sharpjax.train.library import is_state
from sharpjax.train.plan import Compare, Draw, Plan, Stage, Train
from sharpjax.train.task import PARAMS_DIGESTS

# Allowed difference of a and b between machines, after one epoch, over max(|a|, |b|, 1).
TOLERANCE = 0.05
_COMPARED_ELSEWHERE = ("train/loss", "train/accuracy", "test/")

Say = Callable[[str], None]
Row = workdir.Row


class Replay(NamedTuple):
    """The result of a replay.

    Attributes:
        compared: number of rows and digests compared.
        differences: a line for each that differs.
        decisive: of the rows behind the verdicts, the number compared and the number in all; None
            if the run asks nothing.
        is_bitwise: whether every bit was compared; else only what any machine must give.
    """

    compared: int
    differences: tuple[str, ...]
    decisive: tuple[int, int] | None = None
    is_bitwise: bool = True


def replay(
    folder: Folder,
    *,
    steps: int | None = 1,
    data_dir: str = "",
    manual_dir: str = "",
    say: Say = print,
) -> Replay:
    """Train at least `steps` steps of each arm, to the end of an epoch, and compare; None: all.

    What a stage reads from another comes from what the run stored, so each stage is checked on its
    own. Stages that train nothing are repeated in full.

    Raises:
        UserError: the run is not finished, this version cannot run its config, or its data are
            missing or different here.
    """
    if folder.manifest is None:
        raise UserError(f"'{folder.path}' is not finished; the same command goes on with it.")
    config = rebuild.config_of(folder)
    if differs := _why_not_bitwise(folder):
        say(f"not compared bit by bit, but within {TOLERANCE:.0%}: {differs}")
    if folder.recorded("code", "sources") != sources.code_digest():
        there = folder.commit or None
        say(f"the code differs: there commit {there}, here another state")
    plan = rebuild.plan_here(config, data_dir, manual_dir)
    stages = [_shortened(plan, stage, steps) for stage in planning.ordered(plan)]
    with rebuild.setting(folder, config, plan, say) as setting:
        outcomes = {}
        for stage in stages:
            say(_words(plan, stage))
            outcomes[planning.name_of(stage)] = run.execute(setting, stage)
        recorded = list(read.rows(folder.path))
        expected = _expected(plan, stages, recorded)
        if differs:
            expected = _elsewhere(plan, expected)
        decisive = _decisive(folder, config, recorded, expected)
        if differs:
            compared, lines = _compare(setting.run.rows(), expected, _nearly)
            return Replay(compared, tuple(lines), decisive, is_bitwise=False)
        compared, lines = _compare(setting.run.rows(), expected, lambda a, b: a == b)
        for stage in stages:
            if isinstance(stage, Train):
                found = _digests(folder, plan, stage, outcomes[stage.arm], setting.run.path)
                for what, there, here in found:
                    compared += 1
                    lines += [f"arm {stage.arm}: {what} differ"] if there != here else []
    return Replay(compared, tuple(lines), decisive)


def compare_again(folder: Folder) -> tuple[list[str], list[str]]:
    """Compute every measure that compares arms again, from what the run stored.

    Returns:
        A line for each difference, and a line for each stage that cannot be repeated because the
        published folder lacks some of what the run stored.

    Raises:
        UserError: this version cannot run its config, or its data are missing or different here.
    """
    config = rebuild.config_of(folder)
    plan = rebuild.plan_here(config, "", "")
    lacking = {n.split("/")[1] for n in workdir.left_out(folder.path) if _is_output(n)}
    stages, notes = [], []
    for stage in planning.ordered(plan):
        if not isinstance(stage, Compare):
            continue
        if without := sorted(lacking & {*stage.reads}):
            notes.append(
                f"rows of stage '{stage.name}' were not computed again: what was stored of "
                f"{', '.join(without)} is left out"
            )
        else:
            stages.append(stage)
    if not stages:
        return [], notes
    with rebuild.setting(folder, config, plan, lambda line: None) as setting:
        for stage in stages:
            run.execute(setting, stage)
        expected = _expected(plan, stages, read.rows(folder.path), of_all=False)
        bitwise = not _why_not_bitwise(folder)
        agree = (lambda a, b: a == b) if bitwise else _nearly
        return _compare(setting.run.rows(), expected, agree)[1], notes


def _is_output(name: str) -> bool:
    return name.startswith(f"{workdir.ARRAYS}/") and not is_state(name)


def _decisive(
    folder: Folder, config: Config, recorded: list[Row], compared: list[Row]
) -> tuple[int, int] | None:
    there = standing.read(folder.path)
    asked = there.hypotheses if there else study.hypotheses_of(config)
    if not asked:
        return None
    resting = {_coordinates(dict(row)) for row in resting_on(recorded, asked)}
    return len(resting & {_coordinates(row) for row in compared}), len(resting)


def _shortened(plan: Plan, stage: Stage, steps: int | None) -> Stage:
    """The stage, cut to the epochs that are replayed."""
    if not isinstance(stage, Train) or steps is None:
        return stage
    epochs = -(-steps // planning.steps_per_epoch(plan, stage))
    return dataclasses.replace(stage, stop=min(epochs, stage.epochs))


def _last(plan: Plan, stage: Stage) -> int:
    """The last replayed step of a stage."""
    if isinstance(stage, Train):
        epochs = stage.epochs if stage.stop is None else stage.stop
        return epochs * planning.steps_per_epoch(plan, stage)
    return 0 if isinstance(stage, Compare) else planning.last_step(plan, stage.arm)


def _words(plan: Plan, stage: Stage) -> str:
    if isinstance(stage, Train):
        total = planning.num_steps(plan, stage)
        return f"arm {stage.arm}: {stage.step.unit}s 1 to {_last(plan, stage)} of {total}"
    what = "measures" if isinstance(stage, Compare) else "arm"
    return f"{what} {planning.name_of(stage)}: whole"


def _expected(
    plan: Plan, stages: Iterable[Stage], recorded: Iterable[Row], of_all: bool = True
) -> list[Row]:
    """The recorded rows that a replay must give again: those up to its last step, and all rows of
    measures that compare arms.

    Args:
        of_all: whether arms are replayed, too.
    """
    last = {s.arm: _last(plan, s) for s in stages if not isinstance(s, Compare)}
    stages_that_compare = [s for s in stages if isinstance(s, Compare)]
    compared = {(arm, metric) for s in stages_that_compare for arm in s.reads
                for measure in s.measures for metric in measure.metrics}  # fmt: skip
    return [
        row
        for row in recorded
        if (of_all and row["step"] <= last.get(row["arm"], math.inf))
        or (row["arm"], row["metric"]) in compared
    ]


def _why_not_bitwise(folder: Folder) -> str:
    if machines := rebuild.difference_of_machines(folder):
        return f"the run was on another machine: {machines}"
    if not machine.is_deterministic():
        return "this GPU computes with XLA_FLAGS=--xla_gpu_deterministic_ops=true alone the same"
    return ""


def _elsewhere(plan: Plan, rows: Iterable[Row]) -> list[Row]:
    """The rows that another machine must give too, without their standard errors."""
    drawn = {stage.arm for stage in plan.stages if isinstance(stage, Draw)}
    kept = (r for r in rows if r["arm"] in drawn or r["metric"].startswith(_COMPARED_ELSEWHERE))
    return [{name: v for name, v in row.items() if name != "standard_error"} for row in kept]


def _nearly(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b), 1)


def _compare(
    rows: Iterable[Row], recorded: list[Row], agree: Callable[[Any, Any], bool]
) -> tuple[int, list[str]]:
    """Compare every recorded row with the replayed row of the same coordinates. The replay may hold
    further rows."""
    here, lines = {_coordinates(row): row for row in rows}, []
    for row in recorded:
        where = (
            f"arm {row['arm']}, seed {row['seed']}, step {row['step']}: {row['metric']}"
            f"{workdir.canonical_json(row['of']) if row['of'] else ''}"
        )
        other = here.get(_coordinates(row))
        if other is None:
            lines.append(f"{where} is not measured here")
            continue
        for name, words in (("value", ""), ("standard_error", " (standard_error)")):
            if name in row and not agree(row[name], other[name]):
                lines.append(f"{where}{words} is {row[name]!r} there and {other[name]!r} here")
    return len(recorded), lines


def _coordinates(row: Row) -> tuple:
    of = workdir.canonical_json(row["of"])
    return row["arm"], row["seed"], row["step"], of, row["metric"]


def _digests(
    folder: Folder, plan: Plan, stage: Train, outcome: Mapping[str, Any], here: epath.Path
) -> Iterator[tuple[str, Any, Any]]:
    """Name, recorded and replayed digests of the parameters, at each step that has digests."""
    ends = ("start", "end") if _last(plan, stage) == planning.num_steps(plan, stage) else ("start",)
    for end in ends:
        name = f"params_at_{end}"
        yield f"parameters at the {end}", folder.recorded("arms", stage.arm, name), outcome[name]
    for path in workdir.walk(here / workdir.ARRAYS / stage.arm):
        name = path.relative_to(here)
        if path.name == f"{PARAMS_DIGESTS}.npz" and (folder.path / name).exists():
            loaded = (workdir.load_arrays(p / name) for p in (folder.path, here))
            there, found = ({key: a.tobytes() for key, a in own.items()} for own in loaded)
            yield f"parameters at step {path.parent.name}", there, found
