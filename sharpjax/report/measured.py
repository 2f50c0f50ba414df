"""Every metric of a run over its seeds, coordinates kept apart."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sharpjax.protocol.summary import mean_and_standard_error
from sharpjax.report import words
from sharpjax.workdir import canonical_json


class Measured(NamedTuple):
    """One metric of one arm, at the last step at which the arm took it.

    Attributes:
        of: canonical JSON of its coordinates; `{}` where it has none.
        standard_error: sd / sqrt(n) over seeds; NaN for one seed, and for statistics of pairs of
            models, which are not independent (the naive one is several times too small).
        n: seeds; models, for statistics of pairs.
        missing: values that were not finite, in which case they are in no mean.
        at_end: whether the step is the arm's last.
    """

    arm: str
    metric: str
    of: str
    step: int
    mean: float
    standard_error: float
    n: int
    missing: int
    at_end: bool

    @property
    def note(self) -> str:
        """What a reader of the mean must know."""
        notes = [] if self.at_end else [f"at step {self.step}"]
        return "; ".join(notes + ([f"{self.missing} not finite"] if self.missing else []))

    def in_words(self) -> str:
        """Mean, standard error and n."""
        mean = words.mean_and_error(self.mean, self.standard_error)
        return f"{mean} ({self.n:,})" + (f" {self.note}" if self.note else "")


def measured(rows: Iterable[Mapping[str, Any]]) -> tuple[Measured, ...]:
    """One for every arm, metric and coordinates, in order of appearance."""
    last: dict[str, int] = {}
    cells: dict[tuple[str, str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for row in rows:
        arm, step = row["arm"], row["step"]
        last[arm] = max(last.get(arm, step), step)
        of = {name: value for name, value in row["of"].items() if name != "pair"}
        key = (arm, row["metric"], canonical_json(of))
        cells.setdefault(key, {}).setdefault(step, []).append(row)
    return tuple(
        _measured(*key, step, steps[step], at_end=step == last[key[0]])
        for key, steps in cells.items()
        for step in (max(steps),)
    )


def _measured(
    arm: str, metric: str, of: str, step: int, rows: list[Mapping[str, Any]], *, at_end: bool
) -> Measured:
    finite = [row["value"] for row in rows if row["value"] is not None]
    mean, error, n = mean_and_standard_error(finite) if finite else (math.nan, math.nan, 0)
    pairs = [row["of"]["pair"] for row in rows if "pair" in row["of"]]
    if pairs:
        models = {str(m) for pair in pairs for m in (pair if isinstance(pair, list) else [pair])}
        error, n = math.nan, len(models)
    return Measured(arm, metric, of, step, mean, error, n, len(rows) - len(finite), at_end)
