"""Opening a run's folder: each refusal is one line, and comes before anything is changed."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from sharpjax.errors import UserError
from sharpjax.workdir import lease, seal
from sharpjax.workdir.config import check_same_config, plain
from sharpjax.workdir.files import TEMPORARY, is_remote, json_file, publish
from sharpjax.workdir.run import Run, mend, sealed


@contextlib.contextmanager
def open_run(
    path: os.PathLike | str, *, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Iterator[Run]:
    """Open the workdir `path`, new or to be continued, for the length of the block.

    A run that is done can be opened by any number of readers, even if nothing can be written there.

    Args:
        path: a folder that is new, empty, or holds a run of the same config. `~` is understood.
        config: all of it; tuples count as lists.
        overrides: what the command line changed, for a reader; those of the first start are kept.

    Raises:
        UserError: the folder cannot be written, is not that of a run, holds another config, is in
            use, or is damaged. What lies there is then unchanged.
    """
    folder = _absolute(path)
    config, overrides = plain(config), plain(overrides)
    _check_ours(folder)
    check_same_config(folder, folder / seal.CONFIG, config)
    with contextlib.ExitStack() as stack:
        check = sealed
        if not (folder / seal.DONE).exists():
            made = _make(folder)
            try:
                check = stack.enter_context(lease.held(folder))
                check_same_config(folder, folder / seal.CONFIG, config)
                _begin(folder, config, overrides)
            except OSError as error:
                _unmake(folder, made)
                raise _not_writable(folder, error) from error
        done = (folder / seal.DONE).exists()
        if done and (reason := seal.broken(folder)) is not None:
            raise UserError(
                f"workdir '{folder}' is damaged: {reason}. Bring the file back from a copy; or "
                f"delete DONE and give the same command, which seals again what metrics/ holds."
            )
        yield Run(folder, check, done)


def _absolute(path: os.PathLike | str) -> epath.Path:
    path = epath.Path(path)
    return path if is_remote(path) else epath.Path(os.path.abspath(path.expanduser()))


def _check_ours(folder: epath.Path) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"workdir '{folder}' is a file; give a folder that is new or empty.")
        names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise UserError(f"workdir '{folder}' cannot be read: {error.strerror}.") from error
    # A run that was killed before its config was written can leave only these.
    strangers = sorted(names - {lease.NAME, seal.CONFIG + TEMPORARY})
    if seal.CONFIG not in names and strangers:
        raise UserError(
            f"workdir '{folder}' holds {', '.join(strangers[:3])} but no {seal.CONFIG}, so no run "
            f"was started there; give a folder that is new or empty."
        )


def _make(folder: epath.Path) -> list[epath.Path]:
    """Make the folder and its path, or nothing; returns the folders made, outermost first."""
    made: list[epath.Path] = []
    if is_remote(folder):
        return made
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another run of ours was faster
                os.mkdir(path)
                made.append(path)
    except OSError as error:
        _unmake(folder, made)
        raise _not_writable(folder, error) from error
    return made


def _unmake(folder: epath.Path, made: list[epath.Path]) -> None:
    """If no run was begun, remove the lease and the folders that were made."""
    if is_remote(folder) or (folder / seal.CONFIG).exists():
        return
    with contextlib.suppress(OSError):
        (folder / lease.NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for path in reversed(made):
            os.rmdir(path)


def _not_writable(folder: epath.Path, error: OSError) -> UserError:
    return UserError(
        f"workdir '{folder}' cannot be written: {error.strerror or error}. Give another --workdir."
    )


def _begin(folder: epath.Path, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Write what was asked for, config first, unless it is there; then mend what a kill left."""
    for name, value in ((seal.CONFIG, config), (seal.OVERRIDES, overrides)):
        if not (folder / name).exists():
            publish(folder / name, json_file(value).encode())
    mend(folder)
