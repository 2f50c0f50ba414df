"""A table of numbers as a heat map."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.errors import UserError
from sharpjax.plots import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def matrix(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    center: float | None = None,
    log: bool = False,
    digits: int = 2,
) -> "Figure":
    """A heat map with its numbers, rows from the top; a cell that is not finite stays grey.

    Args:
        values: [rows, columns].
        label: of the colours; state n here or in the caption.
        center: the middle of diverging colours, such as 0 for differences; default: colours from
            dark to light.
        log: whether the colours are logarithmic; all values must be positive.
        digits: significant digits of each number.

    Raises:
        UserError: names and values differ in number; no value is finite; `log` with values that
            are not positive, or with `center`.
    """
    from matplotlib import colors

    table = np.asarray(values, float)
    if table.shape != (len(rows), len(columns)):
        raise UserError(
            f"plots.matrix: {len(rows)} names of rows and {len(columns)} of columns, and values of "
            f"shape {table.shape}."
        )
    finite = table[np.isfinite(table)]
    if not finite.size:
        raise UserError("plots.matrix: there is no finite value to draw.")
    if log and (center is not None or finite.min() <= 0):
        why = "has no center" if center is not None else f"needs values > 0; got {finite.min():g}"
        raise UserError(f"plots.matrix: log=True {why}.")
    cell = 0.52 if max(table.shape) <= 20 else 0.36
    names = 0.075 * max(map(len, (*rows, *columns)))
    high = max(0.62 * cell * len(rows) + names + 0.5, 0.5 + 0.1 * len(label))
    size = (cell * len(columns) + names + 1.4, high)
    drawn, (axis,) = figure.axes(size=size)
    if log:
        norm = colors.LogNorm(finite.min(), finite.max())
    elif center is not None:
        far = float(np.abs(finite - center).max()) or 1.0
        norm = colors.Normalize(center - far, center + far)
    else:
        norm = colors.Normalize(finite.min(), finite.max())
    image = axis.imshow(
        np.ma.masked_invalid(table),
        cmap="cividis" if center is None else "RdBu_r",
        norm=norm,
        aspect="auto",
    )
    axis.set_facecolor("0.85")
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.tick_params(length=0)
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            red, green, blue, _ = image.to_rgba(value)
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"
            number = f"{value:.{digits}g}".replace("-", "−")
            size = 7 if cell > 0.4 else 5
            axis.text(j, i, number, ha="center", va="center", fontsize=size, color=ink)
    drawn.colorbar(image, ax=axis, label=label, fraction=0.05, pad=0.02)
    return drawn
