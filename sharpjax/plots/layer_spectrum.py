"""Eigenvalues of the weights of layers, and the laws fitted to them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.plots import figure as figures
from sharpjax.plots.style import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The most panels of one figure.
MOST_PANELS = 48


class LayerLaw(NamedTuple):
    """The laws fitted to the eigenvalues of a layer; NaN where there is no fit.

    Attributes:
        values: all eigenvalues of the layer, in any order.
        alpha, xmin: of the power law of their tail.
        low, high: the interval of alpha.
        edge: the upper edge of the bulk of a random matrix.
    """

    values: Any
    alpha: float = float("nan")
    xmin: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    edge: float = float("nan")


def layer_spectra(layers: Mapping[str, LayerLaw], *, num_bins: int = 40) -> "Figure":
    """The exponents of all layers, then a histogram of the eigenvalues of each.

    The first panel has alpha of each layer in order, with its interval, and lines at 2 and 6.
    WeightWatcher calls a layer well trained if alpha is between them. The other panels are as in
    `layer_spectrum`; the dashed line is the edge of a random matrix. At most 47 layers have a
    histogram, and none that has fewer than two eigenvalues above 0 or values that are not finite.

    Raises:
        UserError: there is no layer.
    """
    if not layers:
        raise UserError("plots.layer_spectra: there is no layer to draw.")
    shown = {name: law for name, law in layers.items() if _is_drawn(law.values)}
    shown = dict(list(shown.items())[: MOST_PANELS - 1])
    figure, (first, *others) = figures.axes(1 + len(shown), size=(3.6, 2.8))
    _exponents(first, list(layers.values()))
    for axis, (name, law) in zip(others, shown.items(), strict=True):
        fitted = (law.alpha, law.xmin) if np.isfinite([law.alpha, law.xmin]).all() else None
        _histogram(axis, np.asarray(law.values, float).ravel(), fitted, law.edge, num_bins)
        of = f"\nalpha = {law.alpha:.2f}, xmin = {law.xmin:.3g}" if fitted else "\nno power law"
        axis.set_title(name + of, fontsize=8)
    return figure


def _is_drawn(values: Any) -> bool:
    values = np.asarray(values, float)
    return bool(np.isfinite(values).all() and (values > 0).sum() > 1)


def _exponents(axis: Any, layers: Sequence[LayerLaw]) -> None:
    place = np.arange(1, len(layers) + 1)
    alpha, low, high = (np.array([getattr(x, n) for x in layers]) for n in ("alpha", "low", "high"))
    known = np.isfinite(low) & np.isfinite(high)
    axis.vlines(place[known], low[known], high[known], color=COLORS[0], lw=1.5)
    axis.plot(place, alpha, "o", color=COLORS[0], ms=4)
    for limit in (2, 6):
        axis.axhline(limit, color=COLORS[2], lw=1, ls=(0, (5, 1.5)))
    axis.set_title("alpha of each layer", fontsize=8)
    axis.set(xlabel="layer", ylabel="alpha", xlim=(0.5, len(layers) + 0.5), ylim=(1, None))
    axis.xaxis.get_major_locator().set_params(integer=True)


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

    Bins are equally wide in the logarithm. The line is (m / n) (alpha - 1) / xmin
    (x / xmin)^-alpha from xmin on, with m of the n eigenvalues at or above xmin. A dotted line
    marks xmin. Eigenvalues of 0 are not drawn, but count in n and in the legend.

    Args:
        values: eigenvalues of a layer, in any order.
        alpha, xmin: of the power law; default: none is drawn.
        edge: the upper edge of the bulk of a random matrix, in the units of the eigenvalues.
        name: of the layer, the title of the legend.
        num_bins: of the histogram.

    Raises:
        UserError: fewer than two eigenvalues are above 0; a value is NaN or infinite; only one of
            alpha and xmin is given; no eigenvalue is at or above xmin.
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
    zeros = values.size - positive.size
    label = f"{positive.size:,} eigenvalues" + (f" above 0, {zeros:,} at 0" if zeros else "")
    labels = [
        label,
        f"alpha = {alpha:.2f}" if law else "",
        f"xmin = {xmin:.3g}" if law else "",
        "edge of a random matrix",
    ]
    figure, (axis,) = figures.axes(names=[*labels, name])
    drawn = _histogram(axis, values, law, edge, num_bins)
    handles = {labels[i]: handle for i, handle in drawn.items()}
    figures.legend(figure, handles, name)
    return figure


def _histogram(
    axis: Any,
    values: np.ndarray,
    law: tuple[float, float] | None,
    edge: float | None,
    num_bins: int,
) -> dict[int, Any]:
    """Draw a density and its law. Returns handles: 0 histogram, 1 law, 2 xmin, 3 edge."""
    positive = values[values > 0]
    low, high = positive.min(), positive.max()
    if low == high:
        low, high = low / 2, high * 2
    bins = np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), num_bins + 1)
    count, _ = np.histogram(positive, bins)
    density = count / np.diff(bins) / values.size
    # Bars start at the lower end of the axis, so that a bin without eigenvalues is a gap.
    bottom = density[count > 0].min() / 3
    handles: dict[int, Any] = {
        0: axis.stairs(
            np.maximum(density, bottom), bins, baseline=bottom, fill=True, color=COLORS[0],
            alpha=0.45,
        )
    }  # fmt: skip
    if law:
        exponent, start = law
        x = np.geomspace(start, high, 100)
        share = (values >= start * (1 - 1e-9)).mean()
        y = share * (exponent - 1) / start * (x / start) ** -exponent
        handles[1] = axis.plot(x, y, color=COLORS[1], lw=1.5)[0]
        handles[2] = axis.axvline(start, color=COLORS[1], lw=1, ls=(0, (1, 1)))
    if edge is not None and np.isfinite(edge):
        handles[3] = axis.axvline(edge, color=COLORS[2], lw=1, ls=(0, (5, 1.5)))
    axis.set(xlabel="eigenvalue", ylabel="density", ylim=(bottom, None))
    figures.logarithmic(axis, "x")
    figures.logarithmic(axis, "y")
    axis.set_ylim(bottom, 2 * axis.get_ylim()[1])
    return handles
