"""New measures of a run that is done, labelled exploratory, from its own checkpoints.

A checkpoint is read by a large C++ library, to which files of somebody else are not given. So who
calls this has verified the whole folder, and been told by the user that they trust its maker. It is
loaded from a copy, since Orbax may tidy up where it reads.
"""

import ast
import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sharpjax import catalog, data, workdir
from sharpjax.errors import UserError
from sharpjax.runs import rebuild, record, schema, sources
from sharpjax.studies.sharpness import plan as sharpness
from sharpjax.runs.read import Folder
from sharpjax.runs.schema import Config
from sharpjax.train import checkpoint, loop, population
from sharpjax.train.evaluators import Data
from sharpjax.train.streams import stream

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
    """Evaluate the last checkpoint of each arm by other settings of its evaluators.

    Args:
        overrides: fields of `config.evaluate` by dotted path, as `geometry.num_examples`, with
            their values as text.
        name: of the folder in `exploratory/`; default: a digest of the overrides.

    Returns:
        The folder that holds `rows.jsonl` and `measure.json`.

    Raises:
        UserError: a field is none of the evaluators; the name is taken; there is no checkpoint, or
            one of other parameters than were sealed.
    """
    config = rebuild.config_of(folder)
    if f"{catalog.STUDIES[config.study]}.plan" != sharpness.__name__:
        raise UserError(f"study '{config.study}' has no checkpoints to measure.")
    changed = changed_config(config, overrides)
    own = dict(overrides)
    name = name or workdir.config_digest({"overrides": own})[:8]
    if (folder.path / workdir.EXPLORATORY / name).exists():
        raise UserError(f"'{folder.path}' has such measures already, exploratory/{name}.")
    dataset = rebuild.dataset_of(folder, config, data_dir, manual_dir)
    split = sharpness.on_device(dataset)
    rows, steps = [], {}
    for arm_name in schema.resolve_arms(config):
        arm = rebuild.arm_of(config, arm_name, dataset)
        step, saved = _restored(folder, arm, dataset)
        steps[arm_name] = step
        say(f"arm {arm_name}: measuring {len(arm.seeds)} seeds at step {step}")
        rows += _measured(rebuild.arm_of(changed, arm_name, dataset), step, saved, split)
    about = {
        "label": "exploratory: measured after the run was sealed",
        "overrides": own,
        "steps": steps,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": sources.state(config.study),
        "environment": record.environment(),
    }
    files = {
        f"{name}/rows.jsonl": workdir.lines_of(rows).encode(),
        f"{name}/measure.json": workdir.json_file(about).encode(),
    }
    workdir.add(folder.path, files)
    return folder.path / workdir.EXPLORATORY / name


def changed_config(config: Config, overrides: Mapping[str, str]) -> Config:
    """The config with other evaluators, in every arm.

    Raises:
        UserError: a field is none of the evaluators, or its value cannot be.
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


def _restored(folder: Folder, arm: loop.Arm, dataset: data.Dataset) -> tuple[int, loop.Saved]:
    """The last checkpoint of an arm, its parameters compared with those that were sealed."""
    shape = dataset.train_image.shape[1:]
    seeds = population.initial(arm.seeds, arm.step, shape, arm.layout)
    carries = {
        e.name: [e.init(s) for s in population.members(seeds, arm.layout)] for e in arm.evaluators
    }
    like = loop.Saved(seeds, carries, jax.numpy.ones((), bool))
    there = folder.path / workdir.CHECKPOINTS / arm.name / str(arm.total_steps)
    if not there.is_dir():
        raise UserError(f"'{folder.path}' has no checkpoint of arm '{arm.name}' at its end.")
    with tempfile.TemporaryDirectory() as scratch:
        copy = epath.Path(scratch) / arm.name / there.name
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
    arms = (folder.manifest or {}).get("arms")
    own = arms.get(arm.name) if isinstance(arms, dict) else None
    if not isinstance(own, dict) or own.get("params_at_end") != loop.digests(arm, saved.population):
        raise UserError(f"{there} holds other parameters than the manifest names.")
    return step, saved


def _measured(arm: loop.Arm, step: int, saved: loop.Saved, split: Data) -> Iterator[workdir.Row]:
    """Rows of every evaluator and seed, by the keys that the run itself used."""
    states = population.members(saved.population, arm.layout)
    alive = population.alive(saved.population, arm.layout)
    for evaluator in arm.evaluators:
        for i in np.flatnonzero(alive):
            seed, state = arm.seeds[i], states[i]
            key = jax.random.fold_in(stream(seed, f"evaluate/{evaluator.name}"), step)
            _, results = evaluator(evaluator.init(state), state, split, key)
            for name, estimate in results.estimates.items():
                yield loop.row(arm, seed, step, name, estimate)
