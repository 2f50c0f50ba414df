"""Copy a run into a folder small enough for a repository: all that a reader can check, no weights.

The seal stays: `DONE`, the manifest and its sums are those of the run. `left_out.json` lists each
missing file with its size, its sum and the reason; `verify` compares the list with the manifest.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.runs import report, verify
from sharpjax.runs.read import Folder

MOST_BYTES = 2**20  # of one file of arrays
MOST_BYTES_OF_ARRAYS = 2**23  # of all of them

_BEFORE = "not in the folder that was published, either"

Say = Callable[[str], None]


class LeftOut(NamedTuple):
    """A file that is missing from a published folder."""

    bytes: int
    sha256: str
    why: str


def publish(path: os.PathLike | str, target: str, say: Say) -> None:
    """Write the published form of a finished run into a new folder, with its report.

    Checkpoints, other states of models and large arrays are left out. Rows, journal, registration,
    amendments, figures and all that is needed to check the verdicts are kept.

    Raises:
        UserError: the run is not finished or not as it was sealed; the target exists already, or
            cannot be written.
    """
    run = verify.sound(path)
    if run.manifest is None:
        raise UserError(f"'{path}' is not finished; the same command goes on with it.")
    there = epath.Path(os.path.abspath(target))
    if there.exists():
        raise UserError(f"publish: '{target}' is there already; name a new folder.")
    kept, left_out = _parted(run)
    try:
        for name in kept:
            workdir.publish(there / name, (run.path / name).read_bytes())
        listed = {"files": {name: entry._asdict() for name, entry in left_out.items()}}
        workdir.publish(there / workdir.LEFT_OUT, workdir.json_file(listed).encode())
        workdir.write_derived(there)
        report.write(there, where=target)
    except BaseException as error:  # an incomplete folder must not stay
        shutil.rmtree(there, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"publish: '{target}' cannot be written: {reason}.") from error
        raise
    size = sum(file.stat().length for file in workdir.walk(there))
    say(f"{target}: {len(kept)} files, {size:,} bytes; left out: {len(left_out)} files")
    for problem in verify.verify(there).problems:
        say(f"warning: {problem}")


def _parted(run: Folder) -> tuple[list[str], dict[str, LeftOut]]:
    """The names of the files that are published, and those left out."""
    kept, left_out, taken = [], {}, 0
    gone = workdir.left_out(run.path)  # not empty if this is a published folder itself
    for name, entry in workdir.listed(run.path).items():
        size = entry.size or 0
        why = _why_not(name, size, taken) or (_BEFORE if name in gone else "")
        if why:
            left_out[name] = LeftOut(size, entry.digest, why)
        else:
            kept.append(name)
            taken += size if name.startswith(f"{workdir.ARRAYS}/") else 0
    return [*kept, *_beside(run.path)], left_out


def _why_not(name: str, size: int, taken: int) -> str:
    from sharpjax.train.library import is_state  # imports jax

    if name.startswith(f"{workdir.CHECKPOINTS}/"):
        return "a checkpoint: weights are trained again by the same command"
    if is_state(name):
        return "a state of a model: it is trained again by the same command"
    if name.startswith(f"{workdir.ARRAYS}/") and (
        size > MOST_BYTES or taken + size > MOST_BYTES_OF_ARRAYS
    ):
        return "arrays: larger than what a repository should hold"
    return ""


def _beside(folder: epath.Path) -> Iterator[str]:
    """Files that the manifest does not list: itself, DONE, figures, amendments, later measures."""
    yield from (workdir.MANIFEST, workdir.DONE)
    for entry in (workdir.FIGURES, workdir.EXPLORATORY):
        yield from (str(path.relative_to(folder)) for path in workdir.walk(folder / entry))
    if (folder / workdir.AMENDMENTS).exists():
        yield workdir.AMENDMENTS
