"""Checked checkpoints: Orbax, with the SHA-256 of every file beside it.

Orbax loads a flipped byte without an error, and reports a wrong structure with pages of text. So
the folder of each step also has `structure.json` and, written last, `SHA256SUMS`. A step that has
no `SHA256SUMS`, or does not match it, is removed, and the step before it is used.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from sharpjax import workdir
from sharpjax.errors import UserError

STRUCTURE = "structure.json"
UNFINISHED = ".orbax-checkpoint-tmp"
KEEP = 2


class Checkpoints:
    """The checkpoints of one arm, in one folder. Open it with `opened`."""

    def __init__(self, directory: epath.Path, write_sums: Callable[[epath.Path], None]):
        self._directory, self._write_sums = directory, write_sums
        self._orbax = ocp.training.Checkpointer(
            directory,
            # Orbax's policies do not fit its own annotation.
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP),  # pyright: ignore[reportArgumentType]
        )

    def save(self, step: int, state: Any) -> None:
        """Writes `state`, then its checksums, and returns when they are on disk.

        An existing checkpoint of this step is replaced. If the process is killed at any moment, the
        unfinished step fails the check, and the one before it is still there.

        Raises:
            ValueError: a leaf is not a jax array, or is weakly typed; it would be restored as
                another type.
        """
        structure = _structure(state)
        self._orbax.save(step, state, force=True, overwrite=True)
        folder = self._directory / str(step)
        workdir.publish(folder / STRUCTURE, json.dumps(structure, indent=0).encode())
        self._write_sums(folder)

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint as `(step, state)`, or None if there is none.

        The state has the structure and the placement of `like`; the numbers of `like` are not read.

        Raises:
            UserError: the checkpoint has another structure, for example because older code wrote
                it.
        """
        newest = self._orbax.latest
        if newest is None:
            return None
        folder = self._directory / str(newest.step)
        there = json.loads((folder / STRUCTURE).read_text())
        if differs := workdir.difference(there, _structure(like), most=4):
            raise UserError(
                f"checkpoint {folder} holds another state than this program trains: {differs}. Go "
                f"on with the version that wrote it, on such devices, or give another --workdir."
            )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return newest.step, self._orbax.load(newest.step, abstract)

    def close(self) -> None:
        self._orbax.close()


@contextlib.contextmanager
def opened(
    directory: epath.Path, say: Callable[[str], None], run: workdir.Run | None = None
) -> Iterator[Checkpoints]:
    """The checkpoints in `directory`, for the length of the block.

    Damaged checkpoints are reported and removed first.

    Args:
        run: the run that they belong to. Its journal names those that are written.

    Raises:
        UserError: a checkpoint was written by none of the run's processes.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.WARNING))  # Orbax logs every step it takes
    try:
        sound = _remove_damaged(directory, say)
        if run is not None:
            _check_own(run, sound)
        checkpoints = Checkpoints(directory, run.publish_sums if run else workdir.write_sums)
        try:
            yield checkpoints
        finally:
            checkpoints.close()
    finally:
        logging.set_verbosity(verbosity)


def _check_own(run: workdir.Run, folders: list[epath.Path]) -> None:
    for folder in folders:
        if not run.wrote(folder / workdir.SUMS):
            raise UserError(
                f"checkpoint {folder} was written by none of the run's processes: it is of another "
                f"run, or of an earlier version. Go on with the version that wrote it; or delete "
                f"it, and the run goes on from the checkpoint before, or anew."
            )


def _remove_damaged(directory: epath.Path, say: Callable[[str], None]) -> list[epath.Path]:
    """Removes damaged checkpoints and returns the sound ones. It runs before Orbax looks, because
    Orbax fails on some damage and accepts the rest."""
    names = [p.name for p in directory.iterdir()] if directory.exists() else []
    for name in names:
        if UNFINISHED in name:  # Orbax itself removes them later, in a thread
            (directory / name).rmtree()
    steps = [int(name) for name in names if name.isdecimal() and name == str(int(name))]
    steps.sort(reverse=True)
    damaged = {step: workdir.damage(directory / str(step)) for step in steps}
    newest = max((step for step in steps if damaged[step] is None), default=None)
    for step in steps:
        if damaged[step] is None:
            continue
        if newest is None:
            instead = "there is no other"
        elif step > newest:
            instead = f"falling back to checkpoint {newest}"
        else:
            instead = f"it is removed, and checkpoint {newest} is newer"
        say(f"{directory.name}: checkpoint {step} is damaged ({damaged[step]}): {instead}")
        (directory / str(step)).rmtree()
    return [directory / str(step) for step in steps if damaged[step] is None]


def _structure(state: Any) -> dict[str, str]:
    """The type and shape of each array of a state, and its empty containers, by name."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda node: not jax.tree.leaves(node)
    )
    named = ((jax.tree_util.keystr(p, simple=True, separator="/"), node) for p, node in nodes)
    return {name: _kind(name, node) for name, node in named}


def _kind(name: str, node: Any) -> str:
    if not jax.tree.leaves(node):
        return type(node).__name__
    if not isinstance(node, jax.Array) or getattr(node, "weak_type", False):
        kind = "a weakly typed array" if isinstance(node, jax.Array) else type(node).__name__
        raise ValueError(
            f"a checkpoint holds jax arrays of a stated type; '{name}' is {kind}. Make it with "
            f"jnp.asarray(x, dtype)."
        )
    return f"{node.dtype}{list(node.shape)}"
