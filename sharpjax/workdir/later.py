"""Adding to a run that is sealed: beside the seal, with separate sums."""

import contextlib
from collections.abc import Callable, Mapping

from etils import epath

from sharpjax.errors import UserError
from sharpjax.workdir import lease, seal
from sharpjax.workdir.files import publish


def add(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    """Write new files below `exploratory/`, and their sums into `derived.json`.

    Raises:
        UserError: one of them exists, or nothing can be written. Nothing was overwritten.
    """
    _change(folder, lambda: _add(folder, files), seal.EXPLORATORY)


def replace_reports(
    folder: epath.Path, files: Mapping[str, bytes], *, leased: bool = False
) -> None:
    """Write the reports of a finished run again, and their sums into `derived.json`.

    Args:
        leased: whether the caller holds the lease of the folder, as a run does.

    Raises:
        UserError: nothing can be written.
    """
    if strangers := files.keys() - set(seal.REPORTS):
        raise ValueError(f"{sorted(strangers)} are no reports")

    def replace() -> None:
        for name, content in files.items():
            publish(folder / name, content)

    _change(folder, replace, *seal.REPORTS, leased=leased)


def append_amendment(folder: epath.Path, extend: Callable[[bytes], bytes]) -> None:
    """Replace the bytes of `amendments.jsonl` by `extend(bytes)`, which checks and adds a line.

    Raises:
        UserError: `extend` refuses, or nothing can be written.
    """
    path = folder / seal.AMENDMENTS

    def append() -> None:
        publish(path, extend(path.read_bytes() if path.exists() else b""))

    _change(folder, append, seal.AMENDMENTS)


def _change(
    folder: epath.Path, change: Callable[[], None], *entries: str, leased: bool = False
) -> None:
    try:
        with contextlib.nullcontext() if leased else lease.held(folder):
            change()
            if (folder / seal.DONE).exists():
                seal.write_derived(folder, changed=entries)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error.strerror or error}.") from error


def _add(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    paths = {name: folder / seal.EXPLORATORY / name for name in files}
    if there := [str(path) for path in paths.values() if path.exists()]:
        raise UserError(f"{there[0]} is there; give another --name.")
    for name, content in files.items():
        publish(paths[name], content)
