"""Means over seeds: the one place where a spread over seeds becomes a standard error."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Summary(NamedTuple):
    """One metric of one arm over its seeds: `standard_error` is sd / sqrt(n), NaN for one seed."""

    arm: str
    metric: str
    mean: float
    standard_error: float
    n: int


def mean_and_standard_error(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, sample standard deviation over sqrt(n), and n.

    >>> mean_and_standard_error([1.0, 2.0, 3.0])
    (2.0, 0.5773502691896258, 3)
    """
    x = np.asarray(list(values), np.float64)
    spread = float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else math.nan
    return float(x.mean()), spread, x.size


def summarize_last(rows: Iterable[Mapping[str, Any]]) -> list[Summary]:
    """One `Summary` for every arm and metric, at the last step of each arm, in order of appearance.

    Rows whose value is missing (None) do not count.
    """
    rows = list(rows)
    last: dict[str, int] = {}
    for row in rows:
        last[row["arm"]] = max(last.get(row["arm"], 0), row["step"])
    groups = defaultdict(list)
    for row in rows:
        if row["step"] == last[row["arm"]] and row["value"] is not None:
            groups[row["arm"], row["metric"]].append(row["value"])
    return [
        Summary(arm, metric, *mean_and_standard_error(values))
        for (arm, metric), values in groups.items()
    ]
