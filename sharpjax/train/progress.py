"""Where the time goes: a line now and then with speed, time left, and the share of each kind of
work."""

import contextlib
import time
from collections.abc import Callable, Iterator

KINDS = ("training", "evaluation", "geometry")


def duration(seconds: float) -> str:
    """`'1h02m'`, `'3m07s'`, `'12s'`.

    >>> duration(3725), duration(187), duration(12.4)
    ('1h02m', '3m07s', '12s')
    """
    minutes, s = divmod(int(round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours}h{m:02d}m"
    return f"{m}m{s:02d}s" if m else f"{s}s"


class Progress:
    """Measures a run and says how far it is.

    Args:
        total: all the work there is, in gradients a seed (a SAM step is two).
        say: prints a line.
        period: seconds between two lines.
    """

    def __init__(self, total: float, say: Callable[[str], None], period: float = 10.0):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._total, self._say, self._period = total, say, period
        self._done = self._skipped = 0.0
        self._started = self._last = time.monotonic()

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] += time.monotonic() - start

    def skip(self, work: float) -> None:
        """Count work that an earlier run of the same command has done."""
        self._skipped += work

    def advance(self, work: float, where: str) -> None:
        """Count `work` as done; `where` is the start of the line that may be said."""
        self._done += work
        now = time.monotonic()
        if now - self._last >= self._period:
            self._last = now
            self._say(f"{where}  {self.line(now - self._started)}")

    def line(self, elapsed: float) -> str:
        left = self._total - self._skipped - self._done
        eta = duration(elapsed * left / self._done) if self._done else "?"
        percent = 100 * (self._total - left) / self._total
        return f"{percent:.0f}% of the run, {eta} left  ({self.shares()})"

    def shares(self) -> str:
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{kind} {100 * s / total:.0f}%" for kind, s in self.seconds.items())
