"""Means over seeds: the one place where a spread over seeds becomes a standard error."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpjax.protocol.canonical import canonical_json

Row = Mapping[str, Any]


class Summary(NamedTuple):
    """One metric of one arm over its seeds, at the last step at which it was measured.

    Attributes:
        of: its coordinates as canonical JSON; `{}` if it has none.
        standard_error: sd / sqrt(n) over seeds. NaN for one seed, and for statistics of pairs of
            models, which are not independent (the naive standard error is several times too small).
        n: number of seeds; for statistics of pairs, number of models.
        missing: number of values that were not finite; they are left out of the mean.
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
    def name(self) -> str:
        """The metric with its coordinates."""
        return self.metric if self.of == "{}" else f"{self.metric} {self.of}"


def mean_and_standard_error(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, sample standard deviation over sqrt(n), and n; no values: NaN, NaN and 0.

    >>> mean_and_standard_error([1.0, 2.0, 3.0])
    (2.0, 0.5773502691896258, 3)
    >>> mean_and_standard_error([0.1, 0.1, 0.1])
    (0.1, 0.0, 3)
    """
    x = np.asarray(list(values), np.float64)
    spread = float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else math.nan
    if x.size > 1 and (x == x[0]).all():  # rounding of the mean would be shown as a spread
        return float(x[0]), 0.0, x.size
    return float(x.mean()) if x.size else math.nan, spread, x.size


def summarize_last(rows: Iterable[Row], arms: Sequence[str] = ()) -> list[Summary]:
    """One `Summary` for every arm, metric and coordinates, at the last step of each.

    Args:
        arms: the order of the arms; arms not named here follow in order of appearance. Within an
            arm, metrics and coordinates are in order of appearance.
    """
    last: dict[str, int] = {}
    cells: dict[tuple[str, str, str], dict[int, list[Row]]] = {}
    for row in rows:
        arm, step = row["arm"], row["step"]
        last[arm] = max(last.get(arm, step), step)
        of = {name: value for name, value in row["of"].items() if name != "pair"}
        key = (arm, row["metric"], canonical_json(of))
        cells.setdefault(key, {}).setdefault(step, []).append(row)
    place = {arm: i for i, arm in enumerate(dict.fromkeys((*arms, *last)))}
    return [
        _summary(*key, step, cells[key][step], at_end=step == last[key[0]])
        for key in sorted(cells, key=lambda key: place[key[0]])
        for step in (max(cells[key]),)
    ]


def _summary(
    arm: str, metric: str, of: str, step: int, rows: Sequence[Row], *, at_end: bool
) -> Summary:
    finite = [row["value"] for row in rows if row["value"] is not None]
    mean, error, n = mean_and_standard_error(finite)
    there = [row["of"] for row in rows if row["value"] is not None]
    pairs = [place["pair"] for place in there if "pair" in place]
    if pairs:
        models = {str(m) for pair in pairs for m in (pair if isinstance(pair, list) else [pair])}
        error, n = math.nan, len(models)
    return Summary(arm, metric, of, step, mean, error, n, len(rows) - len(finite), at_end)


class Grid(NamedTuple):
    """Summaries as a table: a line for each metric with its coordinates, a column for each arm."""

    arms: tuple[str, ...]
    lines: Mapping[str, Mapping[str, Summary]]  # name -> arm -> summary, if there is one


def grid(found: Iterable[Summary]) -> Grid:
    """The summaries as a `Grid`, with arms and names in the order in which they first appear."""
    arms: dict[str, None] = {}
    lines: dict[str, dict[str, Summary]] = {}
    for summary in found:
        arms[summary.arm] = None
        lines.setdefault(summary.name, {})[summary.arm] = summary
    return Grid(tuple(arms), lines)
