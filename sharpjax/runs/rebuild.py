"""From the files of a run back to what it trained: config, data, arms. Nothing stored is loaded."""

import math

import jax
from ml_collections import ConfigDict

from sharpjax import data, workdir
from sharpjax.errors import UserError
from sharpjax.runs import read, record, schema
from sharpjax.studies.sharpness import plan as sharpness
from sharpjax.runs.read import Folder
from sharpjax.runs.schema import Config
from sharpjax.train import loop, population

# Of the states of all seeds of an arm together: a config may ask for a model of any width.
MAX_STATE_BYTES = 2**36


def config_of(folder: Folder) -> Config:
    """The config of a run, checked as that of a new one would be.

    Raises:
        UserError: it is none that this version can run.
    """
    try:
        config = ConfigDict(read.tuples(folder.config)).lock()
        schema.check(config, {})
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UserError(
            f"the config of '{folder.path}' is none that this version runs ({error}); go back to "
            f"the code of its time: {commit_of(folder) or 'it says not which'}."
        ) from error
    return config


def commit_of(folder: Folder) -> str | None:
    """The commit that a manifest names; anything else in its place is none."""
    code = (folder.manifest or {}).get("code")
    commit = code.get("commit") if isinstance(code, dict) else None
    return commit if isinstance(commit, str) else None


def dataset_of(folder: Folder, config: Config, data_dir: str, manual_dir: str) -> data.Dataset:
    """The data that a run was trained on, from where they lie here.

    The folders that its own config names are those of another machine, and not looked into.

    Raises:
        UserError: they are not to be had, or other data than those of the run.
    """
    dataset = data.load(
        config.data.name,
        data_dir=data_dir,
        manual_dir=manual_dir,
        num_train=config.data.num_train,
    )
    recorded = (folder.manifest or {}).get("data")
    there = recorded.get("digests") if isinstance(recorded, dict) else None
    if there != dataset.digests:
        raise UserError(
            f"{dataset.name} here is not what '{folder.path}' was trained on: SHA-256 of its "
            f"splits {dataset.digests} here, {there} there."
        )
    return dataset


def arm_of(config: Config, name: str, dataset: data.Dataset) -> loop.Arm:
    """An arm as it is trained.

    Raises:
        UserError: its seeds would take more than `MAX_STATE_BYTES`.
    """
    arm = sharpness.make_arm(config, name, schema.resolve_arms(config)[name], dataset)
    shape = dataset.train_image.shape[1:]
    states = jax.eval_shape(lambda: population.initial(arm.seeds, arm.step, shape, arm.layout))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(states))
    if size > MAX_STATE_BYTES:
        raise UserError(f"arm '{name}' would take {size:,} bytes, and {MAX_STATE_BYTES:,} are let.")
    return arm


def difference_of_machines(folder: Folder) -> str:
    """How this machine differs from those that the run was on, in words; '' where it does not."""
    recorded = (folder.manifest or {}).get("environments")
    if not isinstance(recorded, list) or not recorded:
        return "it says not on which"
    here = record.bits(record.environment())
    for there in recorded:
        if not isinstance(there, dict):
            return "it says not on which"
        if differs := workdir.difference(record.bits(there), here):
            return differs
    return ""
