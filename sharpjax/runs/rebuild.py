"""Rebuild what a run did from its files: config, plan, data. No checkpoint is read."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from sharpjax import schema, workdir
from sharpjax.driver import interrupt
from sharpjax.driver.progress import Progress
from sharpjax.errors import UserError
from sharpjax.provenance import machine
from sharpjax.runs import loading, read
from sharpjax.runs.read import Folder
from sharpjax.runs.study import plan_of
from sharpjax.schema import Config
from sharpjax.train import planning
from sharpjax.train.library import Library
from sharpjax.train.plan import Plan, Train
from sharpjax.train.task import Setting

# Limit for the states of all models of an arm together, since a config may ask for any width.
MAX_STATE_BYTES = 2**36


def config_of(folder: Folder) -> Config:
    """The config of a run, checked like the config of a new run.

    Raises:
        UserError: this version cannot run it.
    """
    try:
        config = ConfigDict(read.tuples(folder.config)).lock()
        schema.check(config, {})
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UserError(
            f"the config of '{folder.path}' is not one that this version runs ({error}); go back "
            f"to the code of its time: {folder.commit or 'not recorded'}."
        ) from error
    return config


def plan_here(config: Config, data_dir: str, manual_dir: str) -> Plan:
    """The plan of a config, with the data folders of this machine.

    The folders that the config names may be those of another machine, and are not used.

    Raises:
        UserError: the models of an arm would take more than `MAX_STATE_BYTES`.
    """
    plan = plan_of(config)
    here = {"data_dir": data_dir, "manual_dir": manual_dir}
    specs: dict[str, Any] = dict(plan.data)
    for name, spec in specs.items():
        own = {f.name: here[f.name] for f in dataclasses.fields(spec) if f.name in here}
        specs[name] = dataclasses.replace(spec, **own)
    for stage in plan.stages:
        if isinstance(stage, Train):
            example = planning.example_of(plan, stage)
            state = jax.eval_shape(lambda s=stage, x=example: s.step.init(x, jax.random.key(0)))
            each = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
            if (size := each * len(stage.members)) > MAX_STATE_BYTES:
                raise UserError(
                    f"arm '{stage.arm}' takes {size:,} bytes; the most is {MAX_STATE_BYTES:,}."
                )
    return plan._replace(data=specs)


@contextlib.contextmanager
def setting(
    folder: Folder, config: Config, plan: Plan, say: Callable[[str], None]
) -> Iterator[Setting]:
    """The setting for repeating stages of a run. They read what the run stored, and write to a
    folder that is removed afterwards.

    Raises:
        UserError: the data are missing here, or are not those of the run.
    """
    splits, recorded = loading.on_device(_load(folder, plan)), list(read.rows(folder.path))
    library = Library(plan, folder.path, lambda arm: [r for r in recorded if r["arm"] == arm])
    with (
        interrupt.handled() as signals,
        tempfile.TemporaryDirectory() as scratch,
        workdir.open_run(f"{scratch}/run", config=config.to_dict(), overrides={}) as there,
    ):
        yield Setting(
            config.study, plan, splits, there, library, signals, Progress({}, say), lambda _: None
        )


def _load(folder: Folder, plan: Plan) -> dict[str, Any]:
    loaded = loading.load(plan)
    for name, found in loaded.items():
        there, here = folder.recorded("data", name, "digests"), loading.digests_of(found)
        if there != here:
            raise UserError(
                f"the data '{name}' here are not what '{folder.path}' was made with: SHA-256 of "
                f"its splits {_brief(here)} here, {_brief(there)} there."
            )
    return loaded


def _brief(digests: Any) -> str:
    text = str(digests)
    return text if len(text) <= 200 else f"{text[:200]}..."


def difference_of_machines(folder: Folder) -> str:
    """How this machine differs from those of the run, in words; '' if it does not."""
    recorded = folder.recorded("environments")
    is_list = isinstance(recorded, list) and all(isinstance(there, dict) for there in recorded)
    if not is_list or not recorded:
        return "it says not on which"
    here = machine.environment()
    return next(filter(None, (machine.difference(there, here) for there in recorded)), "")
