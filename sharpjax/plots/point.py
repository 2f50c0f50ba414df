"""Values of arms: a row for each arm, or one quantity against another."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.plots import figure
from sharpjax.plots.series import Values, labels, n_of
from sharpjax.plots.style import styles
from sharpjax.protocol.summary import mean_and_standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = tuple[float, float]


def points(
    panels: Mapping[str, Values],
    *,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
    interval: str = "95 % t-interval of the mean",
    log: bool = False,
    references: Mapping[str, float] | None = None,
) -> "Figure":
    """A row for each arm, from the top: a dot for each seed, their mean, and its interval.

    The title of the legend states n. Values that are not finite are left out.

    Args:
        panels: values by arm and seed, for each label of an axis.
        intervals: low and high by panel and arm. Default: mean ± t(.975; n - 1) sd / sqrt(n), for
            independent seeds (one seed: no interval).
        interval: what the intervals are, for the legend.
        log: whether the axes of the values are logarithmic.
        references: vertical lines, by name.

    Raises:
        UserError: there is nothing to draw; there are more than 36 arms.
    """
    every = {label: _finite(values) for label, values in panels.items()}
    groups = _groups(every.values())
    if not groups:
        raise UserError("plots.points: there is no finite value to draw.")
    known, names = styles(groups), labels(groups)
    size = (3.6, 0.9 + 0.22 * len(groups))
    drawn, axes = figure.axes(len(every), size=size, names=[f"mean, {interval}"])
    handles: dict[str, Any] = {}
    for axis, (label, values) in zip(axes, every.items(), strict=True):
        for row, (arm, style) in enumerate(known.items()):
            seeds = np.array(list(values.get(arm, {}).values()))
            if not seeds.size:
                continue
            given = (intervals or {}).get(label, {}).get(arm)
            low, high = _t_interval(seeds) if given is None else given
            heights = row + 0.22 * np.linspace(-1, 1, seeds.size) * (seeds.size > 1)
            dots = axis.plot(seeds, heights, ".", color=style.color, ms=4, alpha=0.5, mew=0)
            axis.plot([low, high], [row, row], "-", color=style.color, lw=1.4)
            means = axis.plot(seeds.mean(), row, ls="none", **style.marked)
            handles.setdefault("one seed", dots[0])
            handles.setdefault(f"mean, {interval}", means[0])
        for name, value in (references or {}).items():
            handles[name] = axis.axvline(value, color="black", lw=1, ls=(0, (8, 3)))
        axis.set(xlabel=label, ylim=(len(groups) - 0.5, -0.5))
        if log:
            figure.logarithmic(axis, "x")
        axis.set_yticks(range(len(groups)), [names[arm] for arm in groups] if axis is axes[0]
                        or len(axes) > 3 else [""] * len(groups), fontsize=8)  # fmt: skip
        axis.grid(axis="y", lw=0.3, alpha=0.6)
    figure.legend(drawn, handles, n_of(groups))
    return drawn


def scatter(
    panels: Sequence[tuple[str, Values, str, Values]],
    *,
    log: tuple[bool, bool] = (False, False),
    better: Sequence[Literal["greater", "less"]] = (),
    references: Mapping[str, float] | None = None,
) -> "Figure":
    """One quantity against another, a point for each seed that has both.

    The legend, right of all panels, states n.

    Args:
        panels: for each, label and values of the x axis, then label and values of the y axis.
        log: whether the x and the y axes are logarithmic.
        better: for each panel, which y is better; less x is always better. A line joins the means
            of the arms on the Pareto front: no other mean is at least as good in both.
        references: horizontal lines in every panel, by name.

    Raises:
        UserError: there is nothing to draw; there are more than 36 arms.
    """
    every = [_both(_finite(x), _finite(y)) for _, x, _, y in panels]
    groups = _groups(every)
    if not groups:
        raise UserError("plots.scatter: there is no seed with two finite values to draw.")
    known, names = styles(groups), labels(groups)
    drawn, axes = figure.axes(len(panels), names=list(names.values()))
    handles: dict[str, Any] = {}
    lines: dict[str, Any] = {}
    for axis, values, of_y in zip(axes, every, better, strict=False):
        line = axis.plot(*_front(values, of_y), "-", color="0.6", lw=1, zorder=0)
        lines["no other mean is better in both"] = line[0]
    for axis, (xlabel, _, ylabel, _), values in zip(axes, panels, every, strict=True):
        for arm, style in known.items():
            if pairs := list(values.get(arm, {}).values()):
                marks = axis.plot(*zip(*pairs, strict=True), ls="none", alpha=0.85, **style.marked)
                handles[names[arm]] = marks[0]
        for name, value in (references or {}).items():
            lines[name] = axis.axhline(value, color="black", lw=1, ls=(0, (8, 3)))
        axis.set(xlabel=xlabel, ylabel=ylabel)
        if log[0]:
            figure.logarithmic(axis, "x")
        if log[1]:
            figure.logarithmic(axis, "y")
    figure.legend(drawn, {n: handles[n] for n in names.values()} | lines, n_of(groups))
    return drawn


def _front(
    values: Mapping[str, Mapping[Any, tuple[float, float]]], better: Literal["greater", "less"]
) -> tuple[list[float], list[float]]:
    """The means of the arms on the Pareto front, sorted by x. Of equal means one is kept."""
    sign = 1 if better == "less" else -1
    means = [np.mean(list(pairs.values()), axis=0) for pairs in values.values()]
    found: list[tuple[float, float]] = []
    for x, y in sorted((float(x), sign * float(y)) for x, y in means):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return [x for x, _ in found], [sign * y for _, y in found]


def _finite(values: Values) -> dict[str, dict[Any, float]]:
    finite = {
        arm: {seed: float(v) for seed, v in seeds.items() if math.isfinite(v)}
        for arm, seeds in values.items()
    }
    return {arm: seeds for arm, seeds in finite.items() if seeds}


def _both(x: Values, y: Values) -> dict[str, dict[Any, tuple[float, float]]]:
    found = {
        arm: {seed: (x[arm][seed], y[arm][seed]) for seed in x[arm] if seed in y.get(arm, {})}
        for arm in x
    }
    return {arm: pairs for arm, pairs in found.items() if pairs}


def _groups(every: Any) -> dict[str, dict[Any, None]]:
    """The seeds of each arm, over all panels."""
    groups: dict[str, dict[Any, None]] = {}
    for values in every:
        for arm, seeds in values.items():
            groups.setdefault(arm, {}).update(dict.fromkeys(seeds))
    return groups


def _t_interval(seeds: np.ndarray) -> Interval:
    mean, error, n = mean_and_standard_error(seeds)
    half = float(special.stdtrit(n - 1, 0.975)) * error if n > 1 else math.nan
    return mean - half, mean + half
