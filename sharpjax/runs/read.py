"""Read a run's folder that may come from anybody. Sizes are bounded, and nothing is written."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError

CAPTIONS = f"{workdir.FIGURES}/captions.json"  # what is on each figure
JOINT = "joint.json"  # of a form that is not run itself, the runs it is judged over: see `joint`


class Folder(NamedTuple):
    """What the files of a run say of it. Nothing here has been verified.

    Attributes:
        manifest: None if the run is not finished.
        registration: None if there is none.
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
        """The arms, in the order of the plan if the manifest names it."""
        named, own = self.recorded("arm_order"), self.config.get("arms")
        if isinstance(named, list) and all(isinstance(name, str) for name in named):
            return named
        return list(own) if isinstance(own, dict) else []

    @property
    def commit(self) -> str:
        """The commit of the code that ran; '' if the manifest names none."""
        commit = self.recorded("code", "commit")
        return commit if isinstance(commit, str) else ""

    def recorded(self, *names: str) -> Any:
        """The entry of the manifest at this path of names; None if there is none."""
        value: Any = self.manifest
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def tables(self, name: str) -> list[dict[str, Any]]:
        """The tables listed in a file such as `processes.json`; empty if it holds no list."""
        value = _json(self.path / name)
        return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []

    def table(self, name: str) -> dict[str, Any]:
        """The table in a file such as `overrides.json`; empty if it holds no table."""
        value = _json(self.path / name)
        return value if isinstance(value, dict) else {}


def _json(path: epath.Path) -> Any:
    return workdir.read_json(path) if path.exists() else None


def folder_at(path: os.PathLike | str) -> epath.Path:
    """The folder of a run at a path that a user gives.

    Raises:
        UserError: there is no such folder, or it is not the folder of a run.
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
        UserError: it is not the folder of a run, or one of the files is damaged.
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
    """All rows of a run: of an unfinished one, those of its published segments; of a form that is
    judged over other runs, the rows of those runs."""
    done = [folder] if (folder / workdir.DONE).exists() else joined(folder)
    for path in [path / workdir.RESULTS for path in done] or segments(folder):
        yield from workdir.rows_in(path)


def joined(folder: epath.Path) -> tuple[epath.Path, ...]:
    """The folders of the runs that a form is judged over; empty for a run.

    Raises:
        UserError: the list is not valid, or one of the folders is not that of a run.
    """
    if (folder / workdir.DONE).exists() or not (folder / JOINT).exists():
        return ()
    listed = _json(folder / JOINT)
    runs = listed.get("runs") if isinstance(listed, dict) else None
    if not isinstance(runs, dict) or not runs or not all(isinstance(x, str) for x in runs.values()):
        raise UserError(f"{folder / JOINT} lists no runs.")
    return tuple(folder_at(folder / name) for name in runs)


def in_order(rows: Iterable[workdir.Row], arms: Iterable[str]) -> Iterator[workdir.Row]:
    """Rows sorted by arm in the order of the plan; rows of other arms follow as they come."""
    place = {name: i for i, name in enumerate(arms)}
    yield from sorted(rows, key=lambda row: place.get(row["arm"], len(place)))


def segments(folder: epath.Path) -> Iterable[epath.Path]:
    """The published segments of rows of all stages."""
    files = workdir.walk(folder / workdir.METRICS)
    return (path for path in files if path.name.removesuffix(".jsonl").isdecimal())


def exploratory(folder: epath.Path) -> Iterator[epath.Path]:
    """The files of rows that were measured later."""
    files = workdir.walk(folder / workdir.EXPLORATORY)
    return (path for path in files if path.name.endswith(".jsonl"))


def tuples(value: Any) -> Any:
    """A config from JSON with its lists turned back into tuples."""
    if isinstance(value, Mapping):
        return {name: tuples(entry) for name, entry in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value
