"""Ctrl-C and pre-emption: finish the step, write a checkpoint, say so; a second signal leaves at
once."""

import contextlib
import os
import signal
from collections.abc import Iterator


class Interrupted(SystemExit):
    """The run was asked to stop. The exit code is 128 plus the signal's number, as in shells."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)


class Interrupt:
    """What the signal handlers know. Between `checkpoint`s a signal only sets a flag."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._may_raise = False

    def check(self) -> None:
        """Raise `Interrupted` where a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    @contextlib.contextmanager
    def abortable(self) -> Iterator[None]:
        """Work that may be dropped half-way (evaluation): a signal raises inside it, at once."""
        self.check()
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def handle(self, signum: int, _frame: object) -> None:
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        if self._may_raise:
            raise Interrupted(signum)


@contextlib.contextmanager
def handled() -> Iterator[Interrupt]:
    """Handle SIGINT and SIGTERM for the length of the block."""
    interrupt = Interrupt()
    previous = {
        signum: signal.signal(signum, interrupt.handle)
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupt
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
