"""Loss round a point: along two directions, and along one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.plots import figure
from sharpjax.plots.line import Panel, lines
from sharpjax.plots.series import Curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS = 12


class Surface(NamedTuple):
    """Values on a grid: x [W], y [H], values [H, W]."""

    x: Any
    y: Any
    values: Any


def landscape(
    surfaces: Mapping[str, Surface],
    *,
    label: str,
    xlabel: str = "first direction",
    ylabel: str = "second direction",
    log: bool = False,
) -> "Figure":
    """Contours of one surface, or of several by name on the same levels; a cross marks (0, 0).

    Args:
        surfaces: by title, which says of which arm and seed it is, or of how many it is the mean.
        label: of the colours.
        log: whether levels are spaced by their logarithm, for values that are all positive.

    Raises:
        UserError: shapes do not fit; nothing is finite; `log` with values that are not positive.
    """
    from matplotlib import cm, colors, patheffects, ticker

    every = {name: _checked(name, surface) for name, surface in surfaces.items()}
    values = np.concatenate([s.values[np.isfinite(s.values)] for s in every.values()] or [[]])
    if not values.size:
        raise UserError("plots.landscape: there is no finite value to draw.")
    low, high = float(values.min()), float(values.max())
    if log and low <= 0:
        raise UserError(f"plots.landscape: log=True needs values > 0; got {low:g}.")
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a plane has no levels of its own
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
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.set_title(name, fontsize=9)
    ticks = ticker.FixedLocator(levels[::2].tolist())
    shown = cm.ScalarMappable(norm=norm, cmap="cividis")
    bar = drawn.colorbar(shown, ax=axes, label=label, ticks=ticks, format="%.2g")
    bar.ax.minorticks_off()
    return drawn


def profiles(
    curves: Curves, *, label: str, xlabel: str = "distance", log: bool = False
) -> "Figure":
    """Values along one direction through 0: a thin line for each seed, and the mean of each arm.

    Args:
        curves: distance and value, [length] each, by arm and seed.
        label: of the values.
        log: whether their axis is logarithmic.

    Raises:
        UserError: as `plots.lines`.
    """
    drawn = lines([Panel(label, curves, log=log)], xlabel=xlabel, mean="all")
    drawn.axes[0].axvline(0, color="black", lw=0.5)
    return drawn


def _checked(name: str, surface: Surface) -> Surface:
    x, y, values = (np.asarray(part, float) for part in surface)
    if x.ndim != 1 or y.ndim != 1 or values.shape != (len(y), len(x)) or min(values.shape) < 2:
        raise UserError(
            f"plots.landscape: '{name}': x [W], y [H] and values [H, W] with H, W >= 2 are wanted; "
            f"got shapes {x.shape}, {y.shape} and {values.shape}."
        )
    return Surface(x, y, values)
