"""Only one run at a time writes in a workdir.

On a disk the lease is a `flock`, which the kernel frees when the process ends, however it ends. An
object store has no locks. There the lease is an object that names its holder and is renewed; a
holder that died counts as gone `EXPIRE_SECONDS` later.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from sharpjax.errors import RunFailed, UserError
from sharpjax.workdir.files import is_remote, no_link

NAME = "lease"

RENEW_SECONDS = 20.0
EXPIRE_SECONDS = 90.0
# Between writing the object and reading it back: if two start at once, the last writer has it.
SETTLE_SECONDS = 1.0

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def held(folder: epath.Path) -> Iterator[Callable[[], None]]:
    """Hold the lease of `folder` for the length of the block.

    Yields:
        A check to call before each publication; it raises `RunFailed` if the lease was lost.

    Raises:
        UserError: another run holds it.
        OSError: nothing can be written or locked there.
    """
    hold = _renewed_object if is_remote(folder) else _locked_file
    with hold(folder / NAME) as check:
        yield check


@contextlib.contextmanager
def _locked_file(path: epath.Path) -> Iterator[Callable[[], None]]:
    # The file is kept: a process that has it open could otherwise lock it beside a new one.
    with open(path, "a+", opener=no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _in_use(path, file.read().strip()) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            why = "its file system has no locks, so two runs could write there at once"
            raise OSError(error.errno, why) from error
        file.truncate(0)
        file.write(f"{_holder()}\n")
        file.flush()
        try:
            yield _still_ours
        finally:
            file.truncate(0)  # so every byte of a finished run is in some sum


def _still_ours() -> None:
    """The kernel keeps a file lock as long as its holder lives."""


@contextlib.contextmanager
def _renewed_object(path: epath.Path) -> Iterator[Callable[[], None]]:
    other = _read(path)
    if other is not None and other["expires"] > time.time():
        wait = f"{other['holder']}, or by one that ended {EXPIRE_SECONDS:.0f} s ago at the most"
        raise _in_use(path, wait)
    renewal = _Renewal(path)
    renewal.write()
    time.sleep(SETTLE_SECONDS)
    other = _read(path)
    if other is None or other["token"] != renewal.token:
        raise _in_use(path, other["holder"] if other else "")
    thread = threading.Thread(target=renewal.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield renewal.check
    finally:
        renewal.stop.set()
        thread.join()
        if not renewal.lost:
            path.unlink(missing_ok=True)


class _Renewal:
    """The object of one holder, written again and again by a thread."""

    def __init__(self, path: epath.Path):
        self.path, self.token = path, uuid.uuid4().hex
        self.stop, self.lost, self.expires = threading.Event(), False, 0.0

    def write(self) -> None:
        expires = time.time() + EXPIRE_SECONDS
        content = {"token": self.token, "holder": _holder(), "expires": expires}
        self.path.write_text(json.dumps(content))
        self.expires = expires

    def keep(self) -> None:
        while not self.stop.wait(RENEW_SECONDS):
            # The network may fail in many ways; it only matters whether it comes back in time.
            with contextlib.suppress(Exception):
                other = _read(self.path)
                if other is not None and other["token"] != self.token:
                    self.lost = True
                else:
                    self.write()
            if self.lost or time.time() > self.expires:
                self.lost = True
                return

    def check(self) -> None:
        if self.lost or time.time() > self.expires:
            raise RunFailed(
                f"workdir '{self.path.parent}': its lease could not be renewed, so another run may "
                f"have it; nothing more is written. The same command goes on from the checkpoint."
            )


def _read(path: epath.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(path: epath.Path, holder: str) -> UserError:
    return UserError(
        f"workdir '{path.parent}' is in use by {holder or 'another run'}. Wait until that ends, or "
        f"give another --workdir."
    )
