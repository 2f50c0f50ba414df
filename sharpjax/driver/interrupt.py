"""Ctrl-C and pre-emption: finish the step, write a checkpoint, report it. A second signal ends the
process at once."""

import contextlib
import os
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """The run was asked to stop. The exit code is 128 plus the signal's number, as in shells."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)


class Interrupt:
    """The state of the signal handlers. Between two `check`s a signal only sets a flag."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._may_raise = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    @contextlib.contextmanager
    def abortable(self) -> Iterator[None]:
        """Work that may be dropped midway (evaluation): a signal raises at once inside it."""
        self.check()
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def handle(self, signum: int, _frame: object) -> None:
        self._signum = signum
        # A second signal ends the process even during a long compilation, when no handler runs.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.write(2, b"stopping after this step; a second time stops at once\n")
        if self._may_raise:
            raise Interrupted(signum)


@contextlib.contextmanager
def handled() -> Iterator[Interrupt]:
    """Handle SIGINT and SIGTERM for the length of the block."""
    interrupt = Interrupt()
    previous = {signum: signal.signal(signum, interrupt.handle) for signum in SIGNALS}
    try:
        yield interrupt
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
