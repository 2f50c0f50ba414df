"""Writes the files of a run, in an order that survives a kill at any moment."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from sharpjax.errors import UserError
from sharpjax.workdir import journal, seal
from sharpjax.workdir.arrays import npz
from sharpjax.workdir.files import (
    TEMPORARY,
    canonical_json,
    is_remote,
    name_in,
    publish,
    size_and_digest,
    walk,
)
from sharpjax.workdir.journal import Journal
from sharpjax.workdir.rows import Row, lines_of, rows_in

if TYPE_CHECKING:
    import numpy as np


class Run:
    """An open workdir, made by `open_run`; `sharpjax.workdir` says what lies where.

    A row is a dict of `COLUMNS`: `seed` and `step` are whole numbers, `of` is a JSON object of
    further coordinates. A `value` or `standard_error` that is not finite is stored as null and read
    as None, which every analysis treats as missing. All other numbers are read exactly as they were
    written.
    """

    def __init__(self, path: epath.Path, check: Callable[[], None], done: bool):
        self.path = path
        self._check, self._done = check, done
        # On an object store nothing can be appended, so rows wait here for their segment.
        self._waiting: dict[str, list[Row]] = {}
        self._process, self._journal = 0, None
        self._absent: list[str] | None = None

    def enter(self, process: int) -> None:
        """Set which process of `processes.json` writes from now on.

        The rows that an earlier one wrote after its last checkpoint are dropped, and made again.
        """
        self._process, self._journal, self._absent = process, None, None
        for path in () if is_remote(self.path) else walk(self.path / seal.METRICS):
            if path.name == seal.GROWING:
                path.unlink()

    @property
    def is_done(self) -> bool:
        """Whether the run is sealed: it can be read, but nothing can be added."""
        return self._done

    def rows(self, arm: str | None = None) -> list[Row]:
        """All rows so far, or those of one arm, sorted by their columns from the left."""
        if self._done:
            rows = _read(self.path / seal.RESULTS)
            return [row for row in rows if arm in (None, row["arm"])]
        rows = []
        for name in self._writers():
            for _, segment in self._numbered(seal.METRICS, name):
                rows += _read(segment)
            rows += self._growing(name)
        return sorted((row for row in rows if arm in (None, row["arm"])), key=_sort_key)

    def append(self, arm: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to the growing segment of `arm`; on a disk at once, as whole lines."""
        self._check()
        lines = lines_of(rows)
        if is_remote(self.path):
            self._waiting.setdefault(_part(arm), []).extend(map(json.loads, lines.splitlines()))
        elif lines:
            growing = self._growing_file(arm)
            growing.parent.mkdir(parents=True, exist_ok=True)
            with open(growing, "ab") as file:
                file.write(lines.encode())

    def publish_segment(self, arm: str, step: int) -> None:
        """Close the growing segment of `arm` as that of `step`, before the checkpoint of that step.

        So a segment holds the rows after the previous checkpoint. Without rows, nothing is closed.
        """
        self._check()
        rows = self._growing(arm)
        if not rows:
            return
        target = self._folder(seal.METRICS, arm) / f"{step}.jsonl"
        if target.exists():
            raise ValueError(f"{target} is published; its rows would be lost")
        if is_remote(self.path):
            self._publish(target, lines_of(rows).encode())
            self._waiting[arm] = []
        else:
            growing = self._growing_file(arm)
            self._note(target, size_and_digest(growing)[1])
            with open(growing, "rb") as file:
                os.fsync(file.fileno())
            os.replace(growing, target)

    def publish_unit(self, name: str, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one unit of a stage (none or more) as the segment of its number."""
        self._check()
        self._publish(self._folder(seal.METRICS, name) / f"{number}.jsonl", lines_of(rows).encode())

    def resume_units(self, name: str) -> int:
        """How many units of a stage are published, 0 to n - 1; those after a gap are dropped."""
        self._check()
        there = {number for number, _ in self._numbered(seal.METRICS, name)}
        done = next(n for n in range(len(there) + 1) if n not in there)
        self.discard_after(name, done - 1)
        return done

    def publish_arrays(
        self, arm: str, step: int, name: str, arrays: Mapping[str, "np.ndarray"]
    ) -> None:
        """Write `arrays/<arm>/<step>/<name>.npz`; the same arrays give the same bytes.

        Raises:
            ValueError: an array is of a type that the file cannot hold (Python objects, bfloat16),
                or `name`, which may have slashes, is unsafe.
        """
        self._check()
        parts = [_part(part) for part in name.split("/")]
        folder = self._folder(seal.ARRAYS, arm) / str(step)
        self._publish(folder.joinpath(*parts[:-1], f"{parts[-1]}.npz"), npz(arrays))

    def publish_sums(self, folder: epath.Path) -> None:
        """Write the `SHA256SUMS` of a checkpoint, its last file, which makes it valid."""
        self._check()
        self._publish(folder / seal.SUMS, seal.sums_text(folder))

    def wrote(self, file: epath.Path) -> bool:
        """Whether, by the journal, a process of this run wrote `file` as it is now."""
        entry = journal.latest(journal.read(self.path)).get(name_in(self.path, file))
        return entry is not None and size_and_digest(file)[1] == entry.sha256

    def discard_after(self, arm: str, step: int | None) -> None:
        """Drop what `arm` wrote after `step`, from which it continues; None: all that it wrote.

        Rows up to a checkpoint are in segments that were published before it, so nothing of the
        growing segment is kept. The journal records that each published file was dropped.
        """
        self._check()
        last = -1 if step is None else step
        for kind in (seal.METRICS, seal.ARRAYS):
            for number, path in self._numbered(kind, arm):
                if number > last:
                    self._drop(path)
        absent = self._never_written()
        for file in [file for file in absent if _is_after(file, arm, last)]:
            self._note(self.path / file, journal.DROPPED)
            absent.remove(file)
        self._waiting.pop(arm, None)
        if not is_remote(self.path):
            self._growing_file(arm).unlink(missing_ok=True)

    def _never_written(self) -> list[str]:
        """What earlier processes noted in the journal and were killed before they wrote."""
        if self._absent is None:
            noted = journal.latest(journal.read(self.path)).values()
            named = (x.file for x in noted if x.sha256 != journal.DROPPED)
            self._absent = [file for file in named if not (self.path / file).exists()]
        return self._absent

    def seal(self, extra: Mapping[str, Any]) -> None:
        """End the run: `results.jsonl`, `manifest.json` with `extra` in it, `derived.json`, `DONE`.

        Figures and reports must be in place before. Nothing can be added afterwards.
        """
        self._check()
        for arm in self._writers():
            if rows := self._growing(arm):
                self.publish_segment(arm, max(row["step"] for row in rows))
        publish(self.path / seal.RESULTS, lines_of(self.rows()).encode())
        seal.seal(self.path, extra)
        self._check, self._done = sealed, True

    def _publish(self, path: epath.Path, content: bytes) -> None:
        self._note(path, hashlib.sha256(content).hexdigest())
        publish(path, content)

    def _drop(self, path: epath.Path) -> None:
        for file in walk(path) if path.is_dir() else [path]:
            self._note(file, journal.DROPPED)
        path.rmtree() if path.is_dir() else path.unlink()

    def _note(self, path: epath.Path, digest: str) -> None:
        if self._journal is None:
            self._journal = Journal(self.path, self._process)
        self._journal.write(name_in(self.path, path), digest)

    def _folder(self, kind: str, arm: str) -> epath.Path:
        return self.path / kind / _part(arm)

    def _growing_file(self, arm: str) -> epath.Path:
        return self._folder(seal.METRICS, arm) / seal.GROWING

    def _growing(self, arm: str) -> list[Row]:
        if is_remote(self.path):
            return self._waiting.get(arm, [])
        file = self._growing_file(arm)
        return _read(file) if file.exists() else []

    def _writers(self) -> list[str]:
        """Arms and other stages that have written rows."""
        folder = self.path / seal.METRICS
        entries = folder.iterdir() if folder.exists() else ()
        return sorted({p.name for p in entries if p.is_dir()} | self._waiting.keys())

    def _numbered(self, kind: str, arm: str) -> list[tuple[int, epath.Path]]:
        """The entries of an arm that are named after a step, in order."""
        folder = self._folder(kind, arm)
        entries = folder.iterdir() if folder.exists() else ()
        names = ((p.name.removesuffix(".jsonl"), p) for p in entries)
        return sorted((int(name), p) for name, p in names if name.isdecimal())


def _is_after(file: str, arm: str, last: int) -> bool:
    """Whether a file, by its name in the folder, holds rows or arrays of an arm after a step."""
    kind, owner, name, *_ = (*file.split("/"), "", "")
    number = name.removesuffix(".jsonl")
    ours = kind in (seal.METRICS, seal.ARRAYS) and owner == arm and number.isdecimal()
    return ours and int(number) > last


def mend(folder: epath.Path) -> None:
    """Drop what a kill has left half-written: files not yet renamed, a torn last line."""
    if is_remote(folder):
        return
    for name in (*seal.SEALED, seal.AMENDMENTS, *seal.SEAL):
        (folder / (name + TEMPORARY)).unlink(missing_ok=True)
    growing = [folder / journal.NAME] if (folder / journal.NAME).exists() else []
    for path in [*walk(folder / seal.METRICS), *walk(folder / seal.ARRAYS), *growing]:
        if path.name.endswith(TEMPORARY):
            path.unlink()
        elif path.name in (seal.GROWING, journal.NAME):
            with open(path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)


def sealed() -> None:
    """Refuses every attempt to write in a sealed run."""
    raise ValueError("the run is sealed; nothing can be added to it")


def _part(name: str) -> str:
    """`name`, if it is safe as one entry of a folder."""
    if not name or name in (".", "..") or "/" in name or name.endswith((TEMPORARY, "~")):
        raise ValueError(f"'{name}' cannot name a file or folder of a run")
    return name


def _sort_key(row: Row) -> tuple:
    of = [(name, canonical_json(value)) for name, value in sorted(row["of"].items())]
    return row["study"], row["arm"], row["seed"], row["step"], of, row["metric"]


def _read(path: epath.Path) -> list[Row]:
    try:
        return list(rows_in(path, most=math.inf))
    except UserError as error:
        raise UserError(
            f"{path} is damaged: {str(error).removeprefix(f'{path}: ')} Delete the folder to run "
            f"anew."
        ) from None
