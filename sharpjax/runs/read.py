"""A run's folder as somebody may have sent it: read, bounded, and never written to."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError

CAPTIONS = f"{workdir.FIGURES}/captions.json"  # what is on each figure
JOINT = "joint.json"  # over which runs a form is judged that nobody runs: see `joint`


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

    @property
    def arms(self) -> list[str]:
        """The arms in the order of the plan, where the manifest names it."""
        named, own = self.recorded("arm_order"), self.config.get("arms")
        if isinstance(named, list) and all(isinstance(name, str) for name in named):
            return named
        return list(own) if isinstance(own, dict) else []

    @property
    def commit(self) -> str:
        """That of the code that ran; '' where the manifest names none."""
        commit = self.recorded("code", "commit")
        return commit if isinstance(commit, str) else ""

    def recorded(self, *names: str) -> Any:
        """The manifest's entry by the names of the tables that lead to it; None: it has none."""
        value: Any = self.manifest
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def tables(self, name: str) -> list[dict[str, Any]]:
        """The tables that a file lists, as `processes.json`; none where it does not."""
        value = _json(self.path / name)
        return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []

    def table(self, name: str) -> dict[str, Any]:
        """The table that a file holds, as `overrides.json`; an empty one where it does not."""
        value = _json(self.path / name)
        return value if isinstance(value, dict) else {}


def _json(path: epath.Path) -> Any:
    return workdir.read_json(path) if path.exists() else None


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
            raise UserError(f"'{path}' holds no {workdir.CONFIG}: it is not the folder of a run.")
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
    manifest = workdir.read_manifest(folder) if (folder / workdir.DONE).exists() else None
    registration = _json(folder / workdir.REGISTRATION)
    if registration is not None and not isinstance(registration, dict):
        raise UserError(f"{folder / workdir.REGISTRATION} is no registration.")
    return Folder(folder, config, manifest, registration)


def rows(folder: epath.Path) -> Iterator[workdir.Row]:
    """All rows of a finished run; of another, those of its published segments; of a form that is
    judged over other runs, theirs."""
    done = [folder] if (folder / workdir.DONE).exists() else joined(folder)
    for path in [path / workdir.RESULTS for path in done] or segments(folder):
        yield from workdir.rows_in(path)


def joined(folder: epath.Path) -> tuple[epath.Path, ...]:
    """The folders of the runs that a form is judged over; of a run, none.

    Raises:
        UserError: the list is none, or one of them is the folder of no run.
    """
    if (folder / workdir.DONE).exists() or not (folder / JOINT).exists():
        return ()
    listed = _json(folder / JOINT)
    runs = listed.get("runs") if isinstance(listed, dict) else None
    if not isinstance(runs, dict) or not runs or not all(isinstance(x, str) for x in runs.values()):
        raise UserError(f"{folder / JOINT} lists no runs.")
    return tuple(folder_at(folder / name) for name in runs)


def in_order(rows: Iterable[workdir.Row], arms: Iterable[str]) -> Iterator[workdir.Row]:
    """Rows with their arms in the order of the plan; others after them, as they come."""
    place = {name: i for i, name in enumerate(arms)}
    yield from sorted(rows, key=lambda row: place.get(row["arm"], len(place)))


def segments(folder: epath.Path) -> Iterable[epath.Path]:
    """The published segments of all stages."""
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
