"""Carry out a study's plan in a folder: every stage, then figures, seal, report."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from rich.console import Console

from sharpjax import data, runtime, tree, workdir
from sharpjax.driver import interrupt
from sharpjax.driver.progress import Progress, duration
from sharpjax.runs import conclude, draw, evidence, loading, models, read, record, report, standing
from sharpjax.runs.console import print_table, verdict_table
from sharpjax.runs.console import table as drawn
from sharpjax.runs.models import Model
from sharpjax.runs.study import Arrays, code_of, study_of
from sharpjax.schema import Config
from sharpjax.train import planning, task, units
from sharpjax.train.library import Library
from sharpjax.train.plan import Compare, Derive, Draw, Plan, Stage, Train
from sharpjax.train.task import Setting

Say = Callable[[str], None]


def run(config: Config, plan: Plan, folder: workdir.Run) -> None:
    """Run a study in `folder`, or resume it, and print its tables."""
    console = Console(highlight=False, soft_wrap=True)
    if folder.is_done:
        console.print(f"{folder.path} is complete; nothing to run")
        if not (folder.path / report.PAGE).exists():  # it was killed after it was sealed
            report.write(folder.path)
    else:
        _run(config, plan, folder, console)
    rows = list(read.in_order(folder.rows(), planning.arms(plan)))
    wide = Console(width=None if console.is_terminal else 140, highlight=False)
    tables = study_of(config.study).tables(rows)
    for table in tables:
        wide.print(drawn(table))
    if not tables:
        print_table(rows)
    _print_verdicts(config, folder)
    console.print(f"report: {report.from_here(folder.path / report.PAGE)}", markup=False)
    console.print(f"figures, rows and checkpoints: {folder.path}")


def _print_verdicts(config: Config, folder: workdir.Run) -> None:
    """Print the verdicts of a finished run, and the warnings about its evidence."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    found = conclude.conclude(folder.path, config.to_dict(), folder.rows())
    there = found.registered
    title = f"registered {there.time}, seal {there.seal[:12]}" if there else standing.UNREGISTERED
    if found.judgements:
        console.print(verdict_table(found.judgements, title))
    shown = evidence.evidence(read.read(folder.path))
    for warning in (*shown.failures, *(shown.caveats if there else ())):
        console.print(f"warning: {warning}", markup=False)


def _run(config: Config, plan: Plan, folder: workdir.Run, console: Console) -> None:
    started = time.time()

    def say(line: str) -> None:
        console.print(f"[{duration(time.time() - started)}] {line}", markup=False)

    device = jax.devices()[0]
    say(
        f"{jax.device_count()} x {device.device_kind} ({jax.default_backend()}), "
        f"jax {jax.__version__}"
    )
    loaded = loading.load(plan)
    standing.hold_data(folder.path, loading.digests(loaded))
    found = models.distinct(plan)
    for line in (*described(plan, found), *map(models.parameters, found)):
        say(line)
    if found:
        say("compiling; the first step of each arm takes longest")
    progress = Progress(work(plan), say)
    outcomes: dict[str, Any] = {}
    with (
        record.recorded(folder, code_of(config), progress.seconds, say),
        interrupt.handled() as signals,
    ):
        setting = Setting(
            config.study, plan, loading.on_device(loaded), folder,
            Library(plan, folder.path, folder.rows), signals, progress, say,
        )  # fmt: skip
        for stage in planning.ordered(plan):
            outcomes[planning.name_of(stage)] = execute(setting, stage)
    rows = list(read.in_order(folder.rows(), planning.arms(plan)))
    arrays = stored(plan, Library(plan, folder.path, folder.rows))
    draw.draw(folder, study_of(config.study).figures(rows, arrays), say)
    concluded = conclude.conclude(folder.path, config.to_dict(), rows)
    folder.seal(
        record.manifest(config.to_dict(), folder)
        | {
            "verdicts": conclude.words(concluded.judgements),
            "arm_order": list(planning.arms(plan)),
            "data": {
                name: {"spec": data.describe(plan.data[name]), "digests": loading.digests_of(found)}
                for name, found in loaded.items()
            },
            "arms": {name: outcomes[name] for name in planning.arms(plan)},
            "seconds_of_last_process": progress.seconds | {"total": time.time() - started},
        }
    )
    report.write(folder.path, leased=True)
    for name, outcome in outcomes.items():
        for model, step in outcome.get("stopped", {}).items():
            say(f"arm {name}: model {model} turned non-finite at step {step} and was frozen there")
    say(f"done: {progress.shares()}")


def execute(setting: Setting, stage: Stage) -> dict[str, Any]:
    """Carry out one stage. Returns what the manifest records of it."""
    runtime.make_room()
    match stage:
        case Train():
            return task.train(setting, stage)
        case Derive():
            units.derive(setting, stage)
        case Compare():
            units.compare(setting, stage)
        case Draw():
            units.draw(setting, stage)
    return {}


def work(plan: Plan) -> Counter[str]:
    """The total work of a plan, by kind, in the counts of `Progress`."""
    total: Counter[str] = Counter()
    for stage in plan.stages:
        match stage:
            case Train():
                total += task.work(plan, stage)
            case Derive():
                for evaluator in stage.evaluators:
                    total[evaluator.kind] += len(planning.members(plan, stage.arm))
            case Compare():
                total["comparison"] += len(stage.measures)
            case Draw():
                total["drawing"] += len(stage.seeds)
    return total


def described(plan: Plan, found: Iterable[Model]) -> Iterable[str]:
    """A line for each stage: models, parameters and epochs, or what it is made of."""
    sizes = {arm: tree.size(model.params) for model in found for arm in model.arms}
    for stage in planning.ordered(plan):
        if isinstance(stage, Train):
            yield (
                f"arm {stage.arm}: {len(stage.members)} models of {sizes[stage.arm]:,} parameters, "
                f"{stage.epochs:,} epochs at the most, {stage.step.gradients} gradient(s) a step"
            )
        elif isinstance(stage, Derive):
            yield f"arm {stage.arm}: made of {stage.source}"
        elif isinstance(stage, Compare):
            yield f"{stage.name}: {len(stage.measures)} measures of {', '.join(stage.reads)}"
        else:
            yield f"arm {stage.arm}: {len(stage.seeds)} seeds drawn"


def stored(plan: Plan, library: Library) -> Arrays:
    """Access to the arrays that arms stored, by member."""

    def arrays(arm: str, name: str, *, every_step: bool = False) -> dict[str, Mapping[str, Any]]:
        read = library.trajectory if every_step else library.arrays
        found = {m.key: read(arm, name, m) for m in planning.members(plan, arm)}
        return {key: own for key, own in found.items() if own}

    return arrays
