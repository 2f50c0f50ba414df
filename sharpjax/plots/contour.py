"""Loss around a point: along two directions, along one, and along many."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.geometry.sharpness.landscape import Landscape, Slices
from sharpjax.plots import figure
from sharpjax.plots.line import Panel, lines
from sharpjax.plots.series import Curves
from sharpjax.plots.style import styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS = 12


class Surface(NamedTuple):
    """Values on a grid: x [W], y [H], values [H, W]."""

    x: Any
    y: Any
    values: Any


def landscape(
    surfaces: Mapping[str, Surface | Landscape],
    *,
    label: str,
    xlabel: str = "first direction",
    ylabel: str = "second direction",
    log: bool = False,
    paths: Mapping[str, Any] | None = None,
) -> "Figure":
    """Contours of one or several surfaces, all on the same levels; a cross marks (0, 0).

    For a `geometry.Landscape` the labels of the axes state the lengths of the two directions and
    their cosine.

    Args:
        surfaces: by title. The title should name the arm and seed, or how many were averaged.
        label: of the colours.
        log: whether the levels are spaced logarithmically; all values must be positive.
        paths: by the same titles, points [points, 2] to join by a line, such as those of
            `geometry.plane_through`. The last point is marked.

    Raises:
        UserError: shapes do not fit; nothing is finite; `log` with values that are not positive; a
            path whose title is that of no surface.
    """
    from matplotlib import cm, colors, patheffects, ticker

    every = {name: _checked(name, surface) for name, surface in surfaces.items()}
    ways = {name: np.asarray(path, float) for name, path in (paths or {}).items()}
    for name, path in ways.items():
        if name not in every or path.ndim != 2 or path.shape[1] != 2:
            raise UserError(
                f"plots.landscape: path '{name}' of shape {path.shape}: give [points, 2], by the "
                f"title of a surface."
            )
    values = np.concatenate([s.values[np.isfinite(s.values)] for s in every.values()] or [[]])
    if not values.size:
        raise UserError("plots.landscape: there is no finite value to draw.")
    low, high = float(values.min()), float(values.max())
    if log and low <= 0:
        raise UserError(f"plots.landscape: log=True needs values > 0; got {low:g}.")
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant surface spans no levels
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    levels = np.geomspace(low, high, _LEVELS) if log else np.linspace(low, high, _LEVELS)
    levels[[0, -1]] = low, high
    norm = colors.LogNorm(low, high) if log else colors.Normalize(low, high)
    drawn, axes = figure.axes(len(every), size=(3.6, 3.2))
    for axis, (name, (x, y, z)) in zip(axes, every.items(), strict=True):
        z = np.ma.masked_invalid(z)
        axis.contourf(x, y, z, levels=levels, norm=norm, cmap="cividis")
        found = axis.contour(x, y, z, levels=levels, colors="white", linewidths=0.5)
        for text in axis.clabel(found, levels[::2], fontsize=6, fmt="%.2g"):
            text.set_path_effects([patheffects.withStroke(linewidth=1, foreground="0.2")])
        if x.min() <= 0 <= x.max() and y.min() <= 0 <= y.max():
            axis.plot(0, 0, "+", color="white", ms=8, mew=1.5)
        if name in ways:
            limits = {"xlim": axis.get_xlim(), "ylim": axis.get_ylim()}
            axis.plot(*ways[name].T, ".-", color="white", lw=1, ms=4, mec="black", mew=0.4)
            axis.plot(*ways[name][-1], "o", color="white", ms=5, mec="black")
            axis.set(**limits)
        scale = _scale_of(surfaces[name])
        axis.set(xlabel=xlabel + scale[0], ylabel=ylabel + scale[1])
        axis.set_title(name, fontsize=9)
    ticks = ticker.FixedLocator(levels[::2].tolist())
    shown = cm.ScalarMappable(norm=norm, cmap="cividis")
    words = f"{label}, logarithmic" if log else label
    bar = drawn.colorbar(shown, ax=axes, label=words, ticks=ticks, format="%.2g")
    bar.ax.minorticks_off()
    return drawn


def profiles(
    curves: Curves, *, label: str, xlabel: str = "distance", log: bool = False
) -> "Figure":
    """Values along one direction through 0: a thin line for each seed, and the mean of each arm.

    Args:
        curves: distance and value, [length] each, by arm and seed.
        label: of the values.
        log: whether the axis of the values is logarithmic.

    Raises:
        UserError: as `plots.lines`.
    """
    drawn = lines([Panel(label, curves, log=log)], xlabel=xlabel, mean="all")
    drawn.axes[0].axvline(0, color="black", lw=0.5)
    return drawn


def slices(
    found: Mapping[str, Slices],
    *,
    label: str,
    xlabel: str = "distance, in units of the directions",
    share: float = 0.8,
    expected: Mapping[str, Any] | None = None,
    log: bool = False,
) -> "Figure":
    """Results of `geometry.slices`: the mean over directions, and a band that holds most of them.

    Args:
        found: by arm.
        label: of the values.
        share: the fraction of directions within the band, at each distance.
        expected: by the same arms, values [length] that are drawn dotted. What curvature predicts
            is `L + x^2 / 2 trace(congruence(hessian, direction_units(params)))`.
        log: whether the axis of the values is logarithmic.

    Raises:
        UserError: there is nothing to draw; `share` is outside (0, 1); an entry of `expected` has
            an unknown arm or another length.
    """
    if not found or not 0 < share < 1:
        raise UserError(f"plots.slices: share={share} of {len(found)} arms; give arms, and 0 to 1.")
    known = styles(found)
    names = {name: f"{name}, {len(one.values)} directions" for name, one in found.items()}
    drawn, (axis,) = figure.axes(names=[*names.values(), "by curvature"])
    handles: dict[str, Any] = {}
    for name, style in known.items():
        x, values = (np.asarray(part, float) for part in (found[name].x, found[name].values))
        low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2], axis=0)
        axis.fill_between(x, low, high, color=style.color, alpha=0.2, lw=0)
        (line,) = axis.plot(x, values.mean(0), color=style.color, ls=style.dash, lw=1.5)
        handles[names[name]] = line
    for name, curve in (expected or {}).items():
        if name not in found or np.shape(curve) != np.shape(found[name].x):
            raise UserError(f"plots.slices: expected['{name}'] is not of an arm and its length.")
        (line,) = axis.plot(found[name].x, curve, color=known[name].color, ls=(0, (1, 1)), lw=2)
        handles["by curvature"] = line
    axis.set(xlabel=xlabel, ylabel=label, yscale="log" if log else "linear")
    axis.axvline(0, color="black", lw=0.5)
    figure.legend(drawn, handles, f"mean, and {share:.0%} of directions")
    return drawn


def _scale_of(surface: Surface | Landscape) -> tuple[str, str]:
    """What the labels of the axes add for a landscape: lengths and cosine of its directions."""
    if not isinstance(surface, Landscape) or surface.cosine is None:
        return "", ""
    one, other = np.asarray(surface.lengths, float)
    return f", |d| = {one:.3g}", f", |d| = {other:.3g}, cosine {float(surface.cosine):.2f}"


def _checked(name: str, surface: Surface | Landscape) -> Surface:
    if isinstance(surface, Landscape):
        surface = Surface(surface.x, surface.y, np.asarray(surface.values, float).T)
    x, y, values = (np.asarray(part, float) for part in surface)
    if x.ndim != 1 or y.ndim != 1 or values.shape != (len(y), len(x)) or min(values.shape) < 2:
        raise UserError(
            f"plots.landscape: '{name}': x [W], y [H] and values [H, W] with H, W >= 2 are wanted; "
            f"got shapes {x.shape}, {y.shape} and {values.shape}."
        )
    return Surface(x, y, values)
