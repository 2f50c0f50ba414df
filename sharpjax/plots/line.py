"""Curves along training, or along anything else."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.plots import figure
from sharpjax.plots.series import Curves, labels, n_of
from sharpjax.plots.style import Style, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mean = Literal["present", "all", "held"]
_MOST_POINTS = 400  # a line cannot show more than some hundreds


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        label: of the y axis.
        curves: x and y, [length] each, by arm and seed; lengths may differ.
        dashed: further curves of the same arms, drawn dashed.
        log: whether the y axis is logarithmic.
        limits: of the y axis; None: from the values.
        references: horizontal lines, by name.
    """

    label: str
    curves: Curves
    dashed: Curves = {}
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    references: Mapping[str, float] = {}


def lines(
    panels: Sequence[Panel],
    *,
    xlabel: str,
    log: bool = False,
    mean: Mean = "present",
    band: bool = False,
) -> "Figure":
    """A thin line for each seed, to its own end, and a thick line with markers for their mean.

    On a logarithmic y axis it is the median: one large seed would lift the mean above all others.
    The legend, right of all panels, states n. Points that are not finite are left out.

    Args:
        log: whether the x axis is logarithmic.
        mean: "present": over the seeds that have the point; "all": only at points that all seeds
            have; "held": a seed that has ended keeps its last value.
        band: whether to shade one standard error to each side of the mean.

    Raises:
        UserError: there is nothing to draw; x and y of a curve differ in length; there are more
            than 36 arms.
    """
    every = [[_finite(curves) for curves in (panel.curves, panel.dashed)] for panel in panels]
    seeds: dict[str, dict[Any, None]] = {}
    for curves in (curves for pair in every for curves in pair):
        for arm, by_seed in curves.items():
            seeds.setdefault(arm, {}).update(dict.fromkeys(by_seed))
    if not seeds:
        raise UserError("plots.lines: there is no finite point to draw.")
    known, names = styles(seeds), labels(seeds)
    references = {name: None for panel in panels for name in panel.references}
    drawn, axes = figure.axes(len(panels), names=[*names.values(), *references])
    handles: dict[str, Any] = {}
    for axis, panel, (curves, dashed) in zip(axes, panels, every, strict=True):
        positive = any((y > 0).any() for s in (*curves.values(), *dashed.values())
                       for _, y in s.values())  # fmt: skip
        axis.set(xlabel=xlabel, ylabel=panel.label)
        for i, (arm, style) in enumerate(known.items()):
            for of, dash in ((dashed, "--"), (curves, "-" if dashed else style.dash)):
                if arm in of:
                    middle = np.nanmedian if panel.log and positive else np.nanmean
                    line = _draw(axis, of[arm], style._replace(dash=dash), i / len(known), log,
                                 mean, band, middle)  # fmt: skip
                    handles[names[arm]] = line
        for name, value in panel.references.items():
            handles[name] = axis.axhline(value, color="black", lw=1, ls=(0, (8, 3)), label=name)
        if log:
            axis.set_xscale("log")
        if panel.log and positive:
            figure.logarithmic(axis, "y")
        axis.set_ylim(*panel.limits)
    order = [name for name in (*names.values(), *references) if name in handles]
    figure.legend(drawn, {name: handles[name] for name in order}, n_of(seeds))
    return drawn


def average(
    curves: Sequence[tuple[Any, Any]], rule: Mean, middle: Callable[..., Any] = np.nanmean
) -> tuple[np.ndarray, ...]:
    """x, `middle`, and standard error of the mean (0 for one seed), by a rule of `lines`."""
    x = np.unique(np.concatenate([x for x, _ in curves]))
    table = np.full((len(curves), len(x)), np.nan)
    for line, (own, y) in zip(table, curves, strict=True):
        line[np.searchsorted(x, own)] = y
        if rule == "held":
            line[x > own[-1]] = y[-1]
    counts = np.isfinite(table).sum(axis=0)
    there = counts == len(curves) if rule == "all" else counts > 0
    x, table, counts = x[there], table[:, there], counts[there]
    squares = np.nansum((table - np.nanmean(table, axis=0)) ** 2, axis=0)
    return (
        x,
        middle(table, axis=0),
        np.sqrt(squares / np.maximum(counts - 1, 1) / np.maximum(counts, 1)),
    )


def _finite(curves: Curves) -> dict[str, dict[Any, tuple[np.ndarray, np.ndarray]]]:
    """The finite points of each seed, sorted by x; a seed without any is left out."""
    found: dict[str, dict[Any, tuple[np.ndarray, np.ndarray]]] = {}
    for arm, by_seed in curves.items():
        for seed, pair in by_seed.items():
            x, y = (np.asarray(values, float) for values in pair)
            if x.shape != y.shape or x.ndim != 1:
                raise UserError(
                    f"plots.lines: arm '{arm}', seed {seed}: x and y must be of one length; got "
                    f"shapes {x.shape} and {y.shape}."
                )
            there = np.isfinite(x) & np.isfinite(y)
            if there.any():
                order = np.argsort(x[there], kind="stable")
                found.setdefault(arm, {})[seed] = x[there][order], y[there][order]
    return found


def _draw(
    axis: Any,
    by_seed: Mapping[Any, tuple[np.ndarray, np.ndarray]],
    style: Style,
    shift: float,
    log: bool,
    rule: Mean,
    band: bool,
    middle: Callable[..., Any],
) -> Any:
    """Draw the lines of one arm. `shift`, in [0, 1), keeps the markers of arms apart."""
    for x, y in by_seed.values():
        shown = _shown(x, log)
        alone = 0.9 if len(shown) == 1 else 0.35
        axis.plot(x[shown], y[shown], ls=style.dash, color=style.color, lw=0.5, alpha=alone,
                  marker="." if len(shown) == 1 else None, ms=2)  # fmt: skip
    x, means, errors = average(list(by_seed.values()), rule, middle)
    shown = _shown(x, log)
    x, means, errors = x[shown], means[shown], errors[shown]
    every = max(1, len(x) // 7)
    (line,) = axis.plot(
        x, means, ls=style.dash, lw=1.5, markevery=(int(shift * every), every), **style.marked
    )
    if band:
        axis.fill_between(x, means - errors, means + errors, color=style.color, alpha=0.2, lw=0)
    return line


def _shown(x: np.ndarray, log: bool) -> np.ndarray:
    """Indices of the points to draw: of a long curve evenly spaced ones, with both ends."""
    if len(x) <= _MOST_POINTS:
        return np.arange(len(x))
    spaced = np.geomspace if log and x[0] > 0 else np.linspace
    places = np.searchsorted(x, spaced(x[0], x[-1], _MOST_POINTS))
    return np.unique(np.minimum([0, *places, len(x) - 1], len(x) - 1))
