"""Take new measures of a finished run from its own checkpoints. They are labelled exploratory.

Checkpoints are read by a large C++ library, which must not get files from strangers. So the caller
must have verified the whole folder, and the user must have said that they trust its maker. A
checkpoint is loaded from a copy, since Orbax may delete files where it reads.
"""

import ast
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sharpjax import schema, workdir
from sharpjax.driver import checkpoint
from sharpjax.driver.drive import Saved
from sharpjax.errors import UserError
from sharpjax.provenance import machine
from sharpjax.runs import rebuild
from sharpjax.runs.read import Folder
from sharpjax.runs.study import code_of
from sharpjax.schema import Config
from sharpjax.train import planning, task
from sharpjax.train.plan import Train
from sharpjax.train.task import Arm, Setting

Say = Callable[[str], None]


def measure(
    folder: Folder,
    *,
    overrides: Mapping[str, str],
    name: str = "",
    data_dir: str = "",
    manual_dir: str = "",
    say: Say = print,
) -> epath.Path:
    """Evaluate the last checkpoint of each trained arm with other settings of its evaluators.

    Args:
        overrides: fields of `config.evaluate` by dotted path, such as `geometry.num_examples`, with
            their values as text.
        name: of the folder in `exploratory/`; default: a digest of the overrides.

    Returns:
        The folder that holds `rows.jsonl` and `measure.json`.

    Raises:
        UserError: the evaluators have no such field; the name is taken; the study trains no models;
            there is no checkpoint, or its parameters are not those that were sealed.
    """
    config = rebuild.config_of(folder)
    changed = changed_config(config, overrides)
    own = dict(overrides)
    name = name or workdir.config_digest({"overrides": own})[:8]
    if (folder.path / workdir.EXPLORATORY / name).exists():
        raise UserError(f"'{folder.path}' has such measures already, exploratory/{name}.")
    plan = rebuild.plan_here(config, data_dir, manual_dir)
    other = planning.arms(rebuild.plan_here(changed, data_dir, manual_dir))
    trained = [stage for stage in planning.ordered(plan) if isinstance(stage, Train)]
    if not trained:
        raise UserError(f"study '{config.study}' trains no models, so there are none to measure.")
    rows, steps = [], {}
    with rebuild.setting(folder, config, plan, say) as setting:
        for stage in trained:
            step, saved, layout = _restored(folder, setting, stage)
            steps[stage.arm] = step
            say(f"arm {stage.arm}: measuring {len(stage.members)} models at step {step}")
            asked = other[stage.arm]
            assert isinstance(asked, Train)
            arm = Arm(setting, asked, layout)
            carries = arm.begin(saved.population).carries
            for evaluator in asked.evaluators:
                rows += arm.measured(evaluator, step, saved.population, carries[evaluator.name])
    about = {
        "label": "exploratory: measured after the run was sealed",
        "overrides": own,
        "steps": steps,
        "time": workdir.timestamp(),
        "code": code_of(config),
        "environment": machine.environment(),
    }
    files = {
        f"{name}/rows.jsonl": workdir.lines_of(rows).encode(),
        f"{name}/measure.json": workdir.json_file(about).encode(),
    }
    workdir.add(folder.path, files)
    return folder.path / workdir.EXPLORATORY / name


def changed_config(config: Config, overrides: Mapping[str, str]) -> Config:
    """The config with other settings of the evaluators, in every arm.

    Raises:
        UserError: the evaluators have no such field, or the value is not valid.
    """
    changed: Config = ConfigDict(config.to_dict())
    for path, text in overrides.items():
        fields = path.removeprefix("evaluate.").split(".")
        for base in (changed, *changed.arms.values()):
            _set(base.get("evaluate"), path, fields, text, must=base is changed)
    schema.check(changed.lock(), {})
    return changed


def _set(block: Any, path: str, fields: list[str], text: str, *, must: bool) -> None:
    for field in fields[:-1]:
        block = block.get(field) if isinstance(block, ConfigDict) else None
    if not isinstance(block, ConfigDict) or fields[-1] not in block:
        if must:
            raise UserError(f"--set {path}={text}: the evaluators have no field '{path}'.")
        return
    try:
        value = text if isinstance(block[fields[-1]], str) else ast.literal_eval(text)
        block[fields[-1]] = value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        kind = type(block[fields[-1]]).__name__
        raise UserError(f"--set {path}={text}: a {kind} is wanted.") from None


def _restored(folder: Folder, setting: Setting, stage: Train) -> tuple[int, Saved, Any]:
    """The last checkpoint of an arm; its parameters must be those that were sealed."""
    example = planning.example_of(setting.plan, stage)
    layout = stage.step.layout(stage.population, example, len(stage.members))
    like = Arm(setting, stage, layout).begin(task.initial(setting, stage, layout))
    last = planning.num_steps(setting.plan, stage)
    there = folder.path / workdir.CHECKPOINTS / stage.arm / str(last)
    if not there.is_dir():
        raise UserError(f"'{folder.path}' has no checkpoint of arm '{stage.arm}' at its end.")
    with tempfile.TemporaryDirectory() as scratch:
        copy = epath.Path(scratch) / stage.arm / there.name
        for path in workdir.walk(there):
            target = copy / path.relative_to(there)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.copy(target)
        if (reason := workdir.damage(copy)) is not None:
            raise UserError(f"{there}: {reason}.")
        with checkpoint.opened(copy.parent, lambda _: None) as checkpoints:
            restored = checkpoints.restore(like)
    if restored is None:
        raise UserError(f"{there} is no checkpoint.")
    step, saved = restored
    recorded = folder.recorded("arms", stage.arm, "params_at_end")
    if recorded != task.digests(stage, layout, saved.population):
        raise UserError(f"{there} holds other parameters than the manifest names.")
    return step, saved, layout
