"""A run's folder as somebody may have sent it: read, bounded, and never written to."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError

CAPTIONS = "captions.json"  # in the folder of figures: what is on each


class Folder(NamedTuple):
    """What the files of a run say of it; nothing here has been verified.

    Attributes:
        manifest: None where the run is not finished.
        registration: None where there is none.
    """

    path: epath.Path
    config: dict[str, Any]
    manifest: dict[str, Any] | None
    registration: dict[str, Any] | None

    @property
    def study(self) -> str:
        return self.config["study"]


def folder_at(path: os.PathLike | str) -> epath.Path:
    """The folder that a person names.

    Raises:
        UserError: there is none, or it is that of no run.
    """
    folder = epath.Path(path)
    if "://" not in os.fspath(path):
        folder = epath.Path(os.path.realpath(folder.expanduser()))
    try:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise UserError(f"'{path}' {what}; name the folder of a run.")
        if not (folder / workdir.CONFIG).exists():
            raise UserError(f"'{path}' holds no {workdir.CONFIG}, so it is the folder of no run.")
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from error
    return folder


def read(path: os.PathLike | str) -> Folder:
    """Read config, manifest and registration of a run.

    Raises:
        UserError: it is no folder of a run, or one of the files is damaged.
    """
    folder = folder_at(path)
    config = workdir.read_json(folder / workdir.CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("study"), str):
        raise UserError(f"{folder / workdir.CONFIG} is no config of a study.")
    done = (folder / workdir.DONE).exists()
    manifest = workdir.read_manifest(folder) if done else None
    registered = folder / workdir.REGISTRATION
    registration = workdir.read_json(registered) if registered.exists() else None
    if registration is not None and not isinstance(registration, dict):
        raise UserError(f"{registered} is no registration.")
    return Folder(folder, config, manifest, registration)


def rows(folder: epath.Path) -> Iterator[workdir.Row]:
    """All rows of a finished run; of another, those of its published segments."""
    if (folder / workdir.DONE).exists():
        yield from workdir.rows_in(folder / workdir.RESULTS)
    else:
        for segment in segments(folder):
            yield from workdir.rows_in(segment)


def segments(folder: epath.Path) -> Iterable[epath.Path]:
    """The published segments of all arms."""
    files = workdir.walk(folder / workdir.METRICS)
    return (path for path in files if path.name.removesuffix(".jsonl").isdecimal())


def exploratory(folder: epath.Path) -> Iterator[epath.Path]:
    """The files of rows that were measured later."""
    files = workdir.walk(folder / workdir.EXPLORATORY)
    return (path for path in files if path.name.endswith(".jsonl"))


def tuples(value: Any) -> Any:
    """A config as it was before JSON made lists of its tuples."""
    if isinstance(value, Mapping):
        return {name: tuples(entry) for name, entry in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value
