"""The data of plots, from the rows of a run: by arm in the order of the rows, then by seed."""

import re
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np

from sharpjax.protocol.summary import Row

Curves = Mapping[str, Mapping[Any, tuple[Any, Any]]]  # arm -> seed -> x and y, [length] each
Values = Mapping[str, Mapping[Any, float]]  # arm -> seed -> value


def series_of(rows: Iterable[Row], metric: str, of: Mapping[str, Any] | None = None) -> Curves:
    """Steps and values of a metric, sorted by step. Values that were not finite are left out.

    Args:
        of: the coordinates, all of them; default: none.
    """
    points: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        if row["metric"] == metric and row["of"] == (of or {}) and row["value"] is not None:
            seeds = points.setdefault(row["arm"], {})
            seeds.setdefault(row["seed"], {})[row["step"]] = row["value"]
    return {
        arm: {
            seed: (np.array(sorted(line)), np.array([line[step] for step in sorted(line)]))
            for seed, line in seeds.items()
        }
        for arm, seeds in points.items()
    }


def last_of(rows: Iterable[Row], metric: str, of: Mapping[str, Any] | None = None) -> Values:
    """The last finite value of each seed."""
    return {
        arm: {seed: float(y[-1]) for seed, (_, y) in seeds.items()}
        for arm, seeds in series_of(rows, metric, of).items()
    }


def first_set(rows: Iterable[Row], quantity: str) -> str | None:
    """A quantity's metric on the first measurement set, such as `train[:512]/hessian/trace`."""
    pattern = re.compile(rf"train\[:\d+\]/{re.escape(quantity)}")
    return next((row["metric"] for row in rows if pattern.fullmatch(row["metric"])), None)


def n_of(groups: Mapping[str, Sized], unit: str = "seed") -> str:
    """How many seeds the arms have, for a caption.

    >>> n_of({"sgd": {0: 0.1, 1: 0.2}, "sam": {0: 0.3}}), n_of({"sgd": {0: 0.1}})
    ('n = 1 to 2 seeds', 'n = 1 seed')
    """
    counts = [len(group) for group in groups.values()] or [0]
    low, high = min(counts), max(counts)
    number = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    return f"n = {number} {unit}{'' if high == 1 else 's'}"


def labels(groups: Mapping[str, Sized]) -> dict[str, str]:
    """The name of each arm, with its n if the arms differ in n.

    >>> labels({"sgd": {0: 0.1, 1: 0.2}, "sam": {0: 0.3}})
    {'sgd': 'sgd (n = 2)', 'sam': 'sam (n = 1)'}
    """
    if len({len(group) for group in groups.values()}) < 2:
        return {arm: arm for arm in groups}
    return {arm: f"{arm} (n = {len(group):,})" for arm, group in groups.items()}
