"""Eigenvalues of the weights of one layer, and the laws fitted to them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.errors import UserError
from sharpjax.plots import figure as figures
from sharpjax.plots.style import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_spectrum(
    values: Any,
    *,
    alpha: float | None = None,
    xmin: float | None = None,
    edge: float | None = None,
    name: str = "",
    num_bins: int = 40,
) -> "Figure":
    """The density of eigenvalues on two logarithmic axes, with the power law of their tail.

    Bins are equally wide in the logarithm; the line is (m / n) (alpha - 1) / xmin
    (x / xmin)^-alpha from xmin on, m of the n eigenvalues being there, and the dotted line where
    it begins. Eigenvalues of 0 are left out, and counted in the legend.

    Args:
        values: eigenvalues of a layer, in any order.
        alpha, xmin: of the power law; default: none is drawn.
        edge: upper edge of the bulk of a random matrix, in the units of the eigenvalues.
        name: of the layer, the title of the legend.
        num_bins: of the histogram.

    Raises:
        UserError: there are fewer than two eigenvalues above 0; NaN among them; only one of alpha
            and xmin, or they fit no eigenvalue.
    """
    values = np.asarray(values, float).ravel()
    if not np.isfinite(values).all():
        raise UserError("plots.layer_spectrum: values hold NaN or infinity; look at the status.")
    positive = values[values > 0]
    if positive.size < 2:
        raise UserError(
            f"plots.layer_spectrum: {positive.size} eigenvalues above 0; give two or more."
        )
    law = None
    if alpha is not None and xmin is not None and np.isfinite([alpha, xmin]).all():
        law = float(alpha), float(xmin)
    if (alpha is None) != (xmin is None) or (law and not (positive >= law[1]).any()):
        raise UserError(
            f"plots.layer_spectrum: alpha={alpha}, xmin={xmin}; give both as a fit to these "
            "eigenvalues has them, or neither."
        )
    low, high = positive.min(), positive.max()
    if low == high:
        low, high = low / 2, high * 2
    bins = np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), num_bins + 1)
    count, _ = np.histogram(positive, bins)
    zeros = values.size - positive.size
    label = f"{positive.size:,} eigenvalues" + (f" above 0, {zeros:,} at 0" if zeros else "")
    names = [label, f"alpha = {alpha:.2f}" if law else "", "edge of a random matrix"]
    figure, (axis,) = figures.axes(names=[*names, name])
    density = count / np.diff(bins) / values.size
    # From below the axis on, so that a bin without eigenvalues is a gap.
    bottom = density[count > 0].min() / 3
    handles: dict[str, Any] = {
        label: axis.stairs(
            np.maximum(density, bottom), bins, baseline=bottom, fill=True, color=COLORS[0],
            alpha=0.45,
        )
    }  # fmt: skip
    if law:
        exponent, start = law
        x = np.geomspace(start, high, 100)
        share = (values >= start * (1 - 1e-9)).mean()
        y = share * (exponent - 1) / start * (x / start) ** -exponent
        handles[names[1]] = axis.plot(x, y, color=COLORS[1], lw=1.5)[0]
        handles[f"xmin = {start:.3g}"] = axis.axvline(start, color=COLORS[1], lw=1, ls=(0, (1, 1)))
    if edge is not None and np.isfinite(edge):
        handles[names[2]] = axis.axvline(edge, color=COLORS[2], lw=1, ls=(0, (5, 1.5)))
    axis.set(xlabel="eigenvalue", ylabel="density", ylim=(bottom, None))
    figures.logarithmic(axis, "x")
    figures.logarithmic(axis, "y")
    axis.set_ylim(bottom, 2 * axis.get_ylim()[1])
    figures.legend(figure, handles, name)
    return figure
