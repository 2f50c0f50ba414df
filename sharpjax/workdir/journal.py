"""Which process wrote which file of results: a chain of lines that only grows.

Each line of `journal.jsonl` is canonical JSON. It names a file of rows or arrays, or the sums of a
checkpoint, and holds the SHA-256 of that file, or `DROPPED`; the number of the process in
`processes.json`; the time; and the SHA-256 of the line before. The first line holds the seal of the
registration instead or, without one, the digest of the config. A line is there before its file is
written or dropped, so a kill leaves no file without a line.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from sharpjax.errors import UserError, printable
from sharpjax.workdir.config import config_digest
from sharpjax.workdir.files import canonical_json, is_remote, publish, timestamp
from sharpjax.workdir.untrusted import read_bytes, read_json

NAME = "journal.jsonl"
MAX_BYTES = 2**28
# Instead of a sum: a process that resumed from an earlier checkpoint removed the file.
DROPPED = ""
_REGISTRATION, _CONFIG = "registration.json", "config.json"


class Entry(NamedTuple):
    """One line of the journal."""

    file: str
    sha256: str
    process: int
    time: str
    previous: str


class Journal:
    """The journal of an open run, for the process of this number."""

    def __init__(self, folder: epath.Path, process: int):
        self._path, self._process = folder / NAME, process
        self._text = self._path.read_bytes() if self._path.exists() else b""
        self._previous = _digest(self._text.splitlines()[-1]) if self._text else root(folder)

    def write(self, file: str, sha256: str) -> None:
        """Record that this process writes a file, before it does so."""
        entry = Entry(file, sha256, self._process, timestamp(), self._previous)
        line = canonical_json(entry._asdict()).encode() + b"\n"
        if is_remote(self._path):
            self._text += line
            publish(self._path, self._text)
        else:
            with open(self._path, "ab") as out:
                out.write(line)
        self._previous = _digest(line[:-1])


def root(folder: epath.Path) -> str:
    """What the first line must hold as `previous`."""
    if (folder / _REGISTRATION).exists():
        sealed = read_json(folder / _REGISTRATION)
        return str(sealed.get("seal")) if isinstance(sealed, dict) else ""
    return config_digest(read_json(folder / _CONFIG))


def read(folder: epath.Path) -> tuple[Entry, ...]:
    """The lines of a journal whose chain holds; none if there is no file.

    Raises:
        UserError: a line is damaged, or does not follow from the one before.
    """
    if not (folder / NAME).exists():
        return ()
    entries, previous = [], root(folder)
    for number, line in enumerate(read_bytes(folder / NAME, most=MAX_BYTES).splitlines(), 1):
        entry = _read(line)
        if entry is None:
            raise UserError(f"{NAME}, line {number}, is damaged.")
        if entry.previous != previous:
            what = "the line before" if number > 1 else "the registration, or the config, here"
            raise UserError(f"{NAME}, line {number}, does not follow from {what}.")
        entries.append(entry)
        previous = _digest(line)
    return tuple(entries)


def latest(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The last line of each file, since a file that was dropped may have been written again."""
    return {entry.file: entry for entry in entries}


def differences(entries: Sequence[Entry], sums: Mapping[str, str]) -> Iterator[str]:
    """A line for each file that is not as a process of the run wrote it.

    Args:
        sums: SHA-256 of the files of rows and arrays.
    """
    written = latest(entries)
    for name in sorted(written.keys() | sums.keys()):
        shown, entry = printable(name), written.get(name)
        if entry is None or (entry.sha256 == DROPPED and name in sums):
            yield f"{shown} was written by none of the run's processes"
        elif entry.sha256 == DROPPED:
            continue
        elif name not in sums:
            yield f"{shown}, which process {entry.process} wrote, is missing"
        elif sums[name] != entry.sha256:
            yield f"{shown} is not what process {entry.process} wrote {entry.time}"


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _read(line: bytes) -> Entry | None:
    try:
        document = json.loads(line)
        entry = Entry(**document)
        texts = (entry.file, entry.sha256, entry.time, entry.previous)
        typed = all(isinstance(value, str) for value in texts) and type(entry.process) is int
        if typed and canonical_json(document).encode() == line:
            return entry
    except (ValueError, TypeError, RecursionError):
        pass
    return None
