"""A data set's upstream files: found on disk or downloaded, and checked against their SHA-256."""

import contextlib
import contextvars
import hashlib
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from sharpjax.errors import UserError

BLOCK = 1 << 20
# Seconds to connect, and to wait for a byte. TFDS's own downloader waits without limit, ten times.
TIMEOUT = (10, 60)
SAY_EVERY = 15.0  # seconds between two lines on a download
# The caller that forbids downloads; "": they are allowed.
_REFUSES: contextvars.ContextVar[str] = contextvars.ContextVar("refuses", default="")


class Upstream(NamedTuple):
    """A file as its authors publish it."""

    name: str
    url: str
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes)"


class DownloadFailed(Exception):
    """A file is not on disk and cannot be downloaded."""


@contextlib.contextmanager
def no_downloads(caller: str) -> Iterator[None]:
    """Forbids downloads inside this context, so that a command that inspects a run fetches nothing.

    Files that are not on disk then raise `DownloadFailed`, which names `caller`.
    """
    token = _REFUSES.set(caller)
    try:
        yield
    finally:
        _REFUSES.reset(token)


def obtain(
    files: Iterable[Upstream], *, folders: Sequence[epath.Path], download_dir: epath.Path
) -> dict[str, epath.Path]:
    """A path for each file, by name: in the first of `folders` that has it, else in `download_dir`.

    A file that was downloaded before is downloaded again only if it is damaged.

    Raises:
        UserError: a file in `folders` is not the published one.
        DownloadFailed: a file is in none of the folders, and its host returns none or another one.
        OSError: a folder cannot be read, or `download_dir` cannot be written.
    """
    return {file.name: _obtain(file, folders, download_dir) for file in files}


def _obtain(file: Upstream, folders: Sequence[epath.Path], download_dir: epath.Path) -> epath.Path:
    for folder in folders:
        path = folder / file.name
        if path.exists():
            if (found := sha256(path)) != file.sha256:
                raise UserError(
                    f"{path} is not the published {file}: its SHA-256 is {found}, which should be "
                    f"{file.sha256}. Put the published file there, or take this one away."
                )
            return path
    path = download_dir / file.name
    if not path.exists() or sha256(path) != file.sha256:
        download(file, path)
    return path


def sha256(path: epath.Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def download(file: Upstream, path: epath.Path) -> None:
    """Fetch a file to `path`, which appears only when it is complete and its checksum is right."""
    if caller := _REFUSES.get():
        raise DownloadFailed(f"{caller} downloads nothing")
    import requests  # comes with tensorflow-datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    say(f"downloading {file.url} ({file.size / 1e6:,.1f} MB)")
    total, received, said = hashlib.sha256(), 0, time.monotonic()
    try:
        with requests.get(file.url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            with part.open("wb") as stream:
                for block in response.iter_content(BLOCK):
                    total.update(block)
                    received += stream.write(block)
                    if time.monotonic() - said > SAY_EVERY:
                        said = time.monotonic()
                        say(f"{received / 1e6:,.0f} of {file.size / 1e6:,.0f} MB")
        if total.hexdigest() != file.sha256:
            raise DownloadFailed(
                f"{file.url} gave {received:,} bytes of SHA-256 {total.hexdigest()}, which should "
                f"be {file.sha256}"
            )
        part.replace(path)
    except requests.RequestException as error:  # an OSError itself
        raise DownloadFailed(f"{file.url}: {reason(_origin(error))}") from error
    finally:
        part.unlink(missing_ok=True)


def _origin(error: BaseException) -> BaseException:
    """The first error of a chain; the later ones only repeat it."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def reason(error: BaseException, limit: int = 200) -> str:
    """The message of an error, short enough to be put into a sentence.

    >>> reason(KeyError("train"))
    "KeyError 'train'"
    >>> reason(FileNotFoundError(2, "No such file or directory", "batch.bin"))
    'No such file or directory: batch.bin'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    line = str(error).strip().split("\n", 1)[0].rstrip(" .;:")
    line = line if len(line) <= limit else line[: limit - 3] + "..."
    plain = line and isinstance(error, OSError | RuntimeError | ValueError)
    return line if plain else f"{type(error).__name__} {line}".strip()


def say(line: str) -> None:
    """Prints a line on standard error about something that takes a while."""
    print(line, file=sys.stderr, flush=True)
