"""Paths of models through training in a plane, and distances between their states."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.errors import UserError
from sharpjax.plots import figure
from sharpjax.plots.series import labels, n_of
from sharpjax.plots.style import styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TICKS = 16
_MOST_WITH_STATES = 4  # models whose states are named beside the rows


def trajectories(
    paths: Mapping[str, Mapping[Any, Any]],
    *,
    xlabel: str = "first axis",
    ylabel: str = "second axis",
    share: Sequence[float] | None = None,
) -> "Figure":
    """A line through the states of each model, with a hollow circle at its start and a marker at
    its end.

    Both axes have the same scale, so that distances can be read off. States that are not finite
    are left out. The legend, right of the plot, states n.

    Args:
        paths: by arm and seed, [E, 2], such as those of `metrics.trajectory.by_model`.
        share: of the variation, for each axis: `Embedding.share`.

    Raises:
        UserError: there is nothing to draw; a path is not [E, 2]; there are more than 36 arms.
    """
    found: dict[str, dict[Any, np.ndarray]] = {}
    for arm, by_seed in paths.items():
        for seed, path in by_seed.items():
            points = np.asarray(path, float)
            if points.ndim != 2 or points.shape[1] != 2:
                raise UserError(
                    f"plots.trajectories: arm '{arm}', seed {seed}: a path must be [E, 2]; got "
                    f"shape {points.shape}."
                )
            if len(points := points[np.isfinite(points).all(axis=1)]):
                found.setdefault(arm, {})[seed] = points
    if not found:
        raise UserError("plots.trajectories: there is no finite point to draw.")
    names = labels(found)
    drawn, (axis,) = figure.axes(size=(4.5, 4.0), names=[*names.values(), "start"])
    handles: dict[str, Any] = {}
    for arm, style in styles(found).items():
        for path in found[arm].values():
            axis.plot(*path.T, ".", ls=style.dash, color=style.color, lw=0.8, ms=2.5, alpha=0.7)
        ends = np.array([path[-1] for path in found[arm].values()])
        axis.plot(*ends.T, ls="none", zorder=3, **style.marked)
        handles[names[arm]] = axis.plot([], [], ls=style.dash, lw=0.8, **style.marked)[0]
    starts = np.array([path[0] for by_seed in found.values() for path in by_seed.values()])
    hollow = {"marker": "o", "mfc": "white", "mec": "black", "ms": 5, "mew": 0.8, "ls": "none"}
    (handles["start"],) = axis.plot(*starts.T, zorder=4, **hollow)
    words = [f", {one:.0%}" for one in share] if share is not None else ["", ""]
    axis.set(xlabel=xlabel + words[0], ylabel=ylabel + words[1])
    axis.set_aspect("equal", adjustable="datalim")
    figure.legend(drawn, handles, n_of(found))
    return drawn


def distances(values: Any, states: Mapping[str, Sequence[Any]], *, label: str) -> "Figure":
    """Distances between the states of several models as colours from 0; white lines between models.

    `plots.matrix` writes numbers into its cells and suits about twenty rows; this plot is for more.
    A cell that is not finite stays grey. Rows are labelled by states if there are at most four
    models, else by models.

    Args:
        values: [P, P], such as those of `metrics.trajectory.distances`.
        states: for each model, in order, the names of its states, such as epochs; P in all.
        label: of the colours.

    Raises:
        UserError: names and values differ in number; nothing is finite; a value is negative.
    """
    table = np.asarray(values, float)
    sizes = [len(names) for names in states.values()]
    if table.shape != (sum(sizes), sum(sizes)) or 0 in sizes or not sizes:
        raise UserError(
            f"plots.distances: values of shape {table.shape}, and states of {len(sizes)} models, "
            f"{sum(sizes)} in all; give [P, P] of P states."
        )
    finite = table[np.isfinite(table)]
    if not finite.size or finite.min() < 0:
        raise UserError(
            "plots.distances: there is no finite value to draw."
            if not finite.size
            else f"plots.distances: a distance of {finite.min():g}; give values >= 0."
        )
    drawn, (axis,) = figure.axes(size=(5.2, 4.4))
    high = float(finite.max()) or 1.0
    image = axis.imshow(np.ma.masked_invalid(table), cmap="cividis", vmin=0, vmax=high)
    axis.set_facecolor("0.85")
    axis.spines[:].set_visible(False)
    edges = np.cumsum([0, *sizes])
    for edge in edges[1:-1]:
        axis.axvline(edge - 0.5, color="white", lw=1)
        axis.axhline(edge - 0.5, color="white", lw=1)
    middles = [start + (size - 1) / 2 for start, size in zip(edges, sizes, strict=False)]
    if len(sizes) > _MOST_WITH_STATES:
        axis.set_yticks(middles, list(states), fontsize=8)
    else:
        names = [str(name) for own in states.values() for name in own]
        every = -(-sum(sizes) // _MOST_TICKS)
        kept = [i for start, size in zip(edges, sizes, strict=False)
                for i in range(start, start + size, every)]  # fmt: skip
        axis.set_yticks(kept, [names[i] for i in kept], fontsize=6)
    turned = 90 if max(map(len, states)) > 50 // len(sizes) else 0
    axis.set_xticks(middles, list(states), fontsize=8, rotation=turned)
    axis.tick_params(length=0)
    drawn.colorbar(image, ax=axis, label=label, fraction=0.05, pad=0.02)
    return drawn
