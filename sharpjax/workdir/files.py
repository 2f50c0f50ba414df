"""Files of a run: published whole, hashed, canonical; on a disk or an object store."""

import datetime
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from etils import epath

from sharpjax.errors import UserError

TEMPORARY = ".tmp"
# For folders in folders; Orbax makes five levels at most.
MAX_FOLDERS_DEEP = 32


def is_remote(path: epath.Path) -> bool:
    """Whether `path` lies on an object store (`gs://...`): no locks, no appending, no renaming."""
    return "://" in os.fspath(path)


def is_link(path: epath.Path) -> bool:
    return not is_remote(path) and os.path.islink(path)


def publish(path: epath.Path, data: bytes) -> None:
    """Write a file so that no reader sees a part of it, even after a kill: one rename or put."""
    if is_remote(path):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb", opener=no_link) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_regular(path: epath.Path) -> bool:
    """Whether `path` is a file with bytes in it: not a link, folder, pipe, socket or device."""
    return is_remote(path) or stat.S_ISREG(os.lstat(path).st_mode)


def open_regular(path: epath.Path) -> IO[bytes]:
    """Open a file for reading; anything else there, even a pipe, is refused without waiting.

    Raises:
        UserError: it is not a regular file, or is a link.
        OSError: it cannot be read.
    """
    if is_remote(path):
        return path.open("rb")
    if not is_regular(path):
        raise UserError(f"{path} is {'a link' if is_link(path) else 'no regular file'}.")
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def no_link(path: str, flags: int) -> int:
    """An opener for `open` that never follows a link in the last part of the path."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def walk(folder: epath.Path, deep: int = MAX_FOLDERS_DEEP) -> Iterator[epath.Path]:
    """Every file below `folder`, in order. Links are given as they are and never followed.

    Raises:
        UserError: folders are nested more than `deep` levels.
    """
    if not folder.exists():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_link(path):
            if not deep:
                raise UserError(f"{path} lies more than {MAX_FOLDERS_DEEP} folders deep.")
            yield from walk(path, deep - 1)
        else:
            yield path


def name_in(folder: epath.Path, path: epath.Path) -> str:
    """`path` relative to `folder`, with slashes."""
    return path.relative_to(folder).as_posix()


def size_of(path: epath.Path) -> int:
    """Bytes of a file, without reading it."""
    if is_remote(path):
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END)
    return os.lstat(path).st_size


def size_and_digest(path: epath.Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file, read in pieces."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
        return file.seek(0, os.SEEK_END), digest


def timestamp(seconds: float | None = None) -> str:
    """A time in the form of all files: UTC, ISO 8601, to the second; default: now."""
    moment = time.time() if seconds is None else seconds
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")


def canonical_json(value: Any) -> str:
    """The JSON text of a value: sorted keys, exact numbers. What is not JSON raises an error.

    >>> canonical_json({"b": (1, 0.1), "a": None})
    '{"a":null,"b":[1,0.1]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_file(value: Any) -> str:
    """The same with indentation, for a file that a person may read."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"


def difference(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 8) -> str:
    """How two flat tables differ, in words; empty if they do not.

    >>> difference({"rho": 0.05, "m": 0}, {"rho": 0.1, "m": 0, "eta": 1})
    'eta is not there and 1 here; rho is 0.05 there and 0.1 here'
    """
    parts = []
    for name in sorted(there.keys() | here.keys()):
        a, b = _shown(there, name), _shown(here, name)
        if a != b:
            a, b = (x if len(x) <= 60 else f"{x[:57]}..." for x in (a, b))
            parts.append(f"{name} is {a} there and {b} here")
    more = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


def _shown(table: Mapping[str, Any], name: str) -> str:
    return json.dumps(table[name], sort_keys=True) if name in table else "not"
