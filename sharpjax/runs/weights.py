"""Load the weights of one model from a run or from a plain file of arrays. No data are needed.

A state that the run stored is a file of arrays, which is safe to read from anybody. A checkpoint is
read by a large C++ library, so it is loaded only if the user says that they trust its maker. It is
loaded from a copy, since Orbax may delete files where it reads.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from sharpjax import workdir
from sharpjax.errors import UserError, nearest
from sharpjax.runs import read, rebuild
from sharpjax.train import planning
from sharpjax.train.library import Library
from sharpjax.train.plan import Derive, Member, Plan, Ref, Train

_PARAMS = "params."  # prefix of names in a state that a run stored
_NAMED_STEPS = ("start", "end", "best")


class Weights(NamedTuple):
    """The parameters of one model.

    Attributes:
        params: a tree of arrays.
        source: where they come from, in words.
        others: the run's other arms and models, in words; '' for a file.
    """

    params: Any
    source: str
    others: str


def weights(
    path: os.PathLike | str,
    *,
    arm: str = "",
    model: str = "",
    step: str = "",
    trust_checkpoints: bool = False,
) -> Weights:
    """Read the parameters of one model.

    Args:
        path: the folder of a run, finished or not; `checkpoints/ARM` in it, or one step of that; or
            an `.npz` file of arrays, whose names may be paths in a tree, such as `Dense_0/kernel`.
        arm: of the run; '': the first that has models.
        model: the seed, with further coordinates if it has any, such as `3-noise=0_5`; '': the
            first.
        step: 'start' (drawn again), 'best', a step, or 'end'; '': 'end', or the newest checkpoint
            if that is not stored.
        trust_checkpoints: whether checkpoints may be loaded; otherwise only stored states are.

    Raises:
        UserError: there is no such file, folder, arm, model or step; it is damaged; it is a
            checkpoint and `trust_checkpoints` is False.
    """
    place = _place(path)
    if isinstance(place, epath.Path):
        if arm or model or step:
            raise UserError(
                f"'{path}' is one file of arrays; it has no arm, seed or step to choose."
            )
        return Weights(_tree(place), str(path), "")
    folder, below = place
    plan = rebuild.plan_here(rebuild.config_of(folder), "", "")
    arm, step = _agreed(path, "arm", arm, below[0]), _agreed(path, "step", step, below[1])
    arms = [a for a, stage in planning.arms(plan).items() if isinstance(stage, Train | Derive)]
    arm = _chosen(folder, "arm", arm, arms)
    members = planning.members(plan, arm)
    keys = [member.key for member in members]
    model = _chosen(folder, f"model of arm '{arm}' of seed", model, keys)
    params, step = _found(
        folder, plan, arm, members[keys.index(model)], keys, step, trust_checkpoints
    )
    others = {"arms": [a for a in arms if a != arm], "seeds": [k for k in keys if k != model]}
    said = [f"other {what}: {', '.join(rest)}" for what, rest in others.items() if rest]
    return Weights(params, f"{path}: arm {arm}, seed {model}, {step}", "; ".join(said))


def _place(path: os.PathLike | str) -> epath.Path | tuple[read.Folder, tuple[str, str]]:
    """A file of arrays, or the folder of a run with the arm and step that the path names."""
    there = epath.Path(path)
    if "://" not in os.fspath(path):
        there = epath.Path(os.path.realpath(there.expanduser()))
    try:
        if there.exists() and not there.is_dir():
            if there.suffix != ".npz":
                raise UserError(f"'{path}' is a file, but none of arrays; give an .npz file.")
            return there
        if not there.exists():
            raise UserError(
                f"'{path}' does not exist; name the folder of a run, or an .npz file of arrays."
            )
        for root in (there, *list(there.parents)[:3]):
            if (root / workdir.CONFIG).exists():
                parts = there.relative_to(root).parts
                if not parts or (parts[0] == workdir.CHECKPOINTS and len(parts) <= 3):
                    arm, step = (*parts[1:], "", "")[:2]
                    return read.read(root), (arm, step)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from error
    raise UserError(
        f"'{path}' is no checkpoint: name the folder of a run (it holds {workdir.CONFIG}), "
        f"{workdir.CHECKPOINTS}/ARM or {workdir.CHECKPOINTS}/ARM/STEP in it, or an .npz file of "
        "arrays."
    )


def _agreed(path: Any, what: str, asked: str, named: str) -> str:
    """The name that the user gives or that is in the path; an error if the two differ."""
    if asked and named and asked != named:
        raise UserError(f"'{path}' is {what} '{named}', and --{what}={asked} names another.")
    return asked or named


def _chosen(folder: read.Folder, what: str, name: str, known: Sequence[str]) -> str:
    if not known:
        raise UserError(f"'{folder.path}': study '{folder.study}' trains no models.")
    if name and name not in known:
        hint = nearest(name, known) or "."
        raise UserError(
            f"'{folder.path}' has no {what} '{name}'{hint} There are: {', '.join(known)}."
        )
    return name or known[0]


def _found(
    folder: read.Folder,
    plan: Plan,
    arm: str,
    member: Member,
    keys: Sequence[str],
    step: str,
    trusted: bool,
) -> tuple[Any, str]:
    """The parameters, and their step in words."""
    if step and step not in _NAMED_STEPS and not step.isdecimal():
        raise UserError(f"--step={step}: give a step, or one of {', '.join(_NAMED_STEPS)}.")
    at: Any = int(step) if step.isdecimal() else step or "end"
    try:
        library = Library(plan, folder.path, lambda _: [])
        state = library.state(Ref(arm, member.seed, member.of, at))
        return state.params, f"step {at}" if step.isdecimal() else f"{at} of training"
    except UserError as error:
        steps = sorted(map(int, _steps(folder.path / workdir.CHECKPOINTS / arm)))
        last = planning.last_step(plan, arm)
        wanted = {"": steps[-1:], "end": [last], "start": [], "best": []}.get(step, [at])
        if not set(wanted) & set(steps):
            raise UserError(f"{str(error)[:-1]}, and {_said(steps)}.") from None
    there = folder.path / workdir.CHECKPOINTS / arm / str(wanted[0])
    if not trusted:
        raise UserError(
            f"'{there}' is a checkpoint, and one that somebody else made may do harm; if this run "
            "is yours, or you know who made it, give --trust-checkpoints."
        )
    return _loaded(there, keys.index(member.key), len(keys)), f"step {wanted[0]} of {last}"


def _steps(folder: epath.Path) -> Iterable[str]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return (name for name in names if name.isascii() and name.isdecimal())


def _said(steps: Sequence[int]) -> str:
    if not steps:
        return "there is no checkpoint of this arm; what is published holds no weights"
    return f"its checkpoints are of the steps {', '.join(map(str, steps))}"


def _loaded(there: epath.Path, place: int, count: int) -> Any:
    """The parameters of one of the models in a checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = epath.Path(scratch) / there.name
        try:
            for path in workdir.walk(there):
                target = copy / path.relative_to(there)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.copy(target)
        except OSError as error:  # a running process deletes old checkpoints
            raise UserError(f"{there} cannot be read: {error.strerror}.") from error
        if (reason := workdir.damage(copy)) is not None:
            raise UserError(f"{there} is damaged: {reason}.")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(min(verbosity, logging.WARNING))  # Orbax logs every step
        try:
            population = _population(copy)
            if isinstance(population, Mapping):
                return jax.tree.map(lambda x: np.asarray(x)[place], population["params"])
            if len(population) == count:
                return jax.tree.map(np.asarray, population[place]["params"])
        except (LookupError, TypeError):
            raise UserError(f"{there} is no checkpoint of models.") from None
        finally:
            logging.set_verbosity(verbosity)
    raise UserError(f"{there} holds {len(population)} models, and its config has {count}.")


def _population(copy: epath.Path) -> Any:
    """The parameters of the models in a checkpoint, on one device; nothing else is read."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def wanted(path: Any, leaf: Any) -> Any:
        names = [jax.tree_util.keystr((part,), simple=True) for part in path]
        if names[:1] == ["population"] and "params" in (
            names[1],
            *names[2:3] * names[1].isdecimal(),
        ):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        return ocp.PLACEHOLDER

    structure = ocp.metadata(copy).metadata
    return ocp.load(copy, jax.tree_util.tree_map_with_path(wanted, structure))["population"]


def _tree(path: epath.Path) -> Any:
    """The arrays of a file as a tree, by the paths in their names."""
    arrays = workdir.load_arrays(path, slashes=True)
    if own := {n.removeprefix(_PARAMS): x for n, x in arrays.items() if n.startswith(_PARAMS)}:
        arrays = own
    separator = "/" if any("/" in name for name in arrays) else "."
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, last = name.split(separator)
        node = tree
        for part in above:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise UserError(f"{path}: '{name}' lies below, or above, another array.")
        node[last] = array
    return tree
