"""A regular line with progress, time left and the share of the time of each kind of work."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

# Shown in this order; a plan may have further kinds of work.
KINDS = ("training", "evaluation", "geometry", "checkpoints")


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
    """Measures a run and reports its progress.

    Args:
        work: all work to do, by kind. Training is counted in gradients per seed (a SAM step is
            two), evaluators in calls, by their kind.
        say: prints a line.
        period: least number of seconds between two lines.
    """

    def __init__(self, work: Mapping[str, float], say: Callable[[str], None], period: float = 10.0):
        self.seconds: dict[str, float] = dict.fromkeys((*KINDS, *work), 0.0)
        self._total, self._left = dict(work), defaultdict(float, work)
        self._done: defaultdict[str, float] = defaultdict(float)
        self._say, self._period = say, period
        self._last = time.monotonic()

    @contextlib.contextmanager
    def timed(self, kind: str, work: float = 1.0) -> Iterator[None]:
        """Time a block that does `work` units of a kind."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.monotonic() - start
        self._done[kind] += work
        self._left[kind] -= work

    def skip(self, work: Mapping[str, float]) -> None:
        """Leave out work that an earlier run of the same command has done."""
        for kind, amount in work.items():
            self._left[kind] -= amount

    def report(self, where: str) -> None:
        """Print a line that starts with `where`, if the last one is `period` seconds old."""
        now = time.monotonic()
        if now - self._last >= self._period:
            self._last = now
            self._say(f"{where}  {self.line()}")

    def line(self) -> str:
        """The share of the training that is done, the time left, and where the time went."""
        left, total = self._left["training"], self._total.get("training", 0.0)
        percent = 100 * (1 - left / total) if total else 100.0
        return f"{percent:.0f}% of the training, {self._eta()} left  ({self.shares()})"

    def shares(self) -> str:
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{kind} {100 * s / total:.0f}%" for kind, s in self.seconds.items())

    def _eta(self) -> str:
        """Time left, at the speed of each kind so far; "over" it if a kind has not run yet."""
        left = {kind: n for kind, n in self._left.items() if n > 0}
        known = [kind for kind in left if self._done[kind]]
        seconds = sum(left[kind] * self.seconds[kind] / self._done[kind] for kind in known)
        return ("" if len(known) == len(left) else "over ") + duration(seconds)
