"""Reliability diagrams."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sharpjax.errors import UserError
from sharpjax.metrics.reliability import Diagram
from sharpjax.plots import figure
from sharpjax.plots.style import styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability(diagrams: Mapping[str, Diagram]) -> "Figure":
    """Accuracy against confidence, bin by bin, and below it the share of predictions in each bin.

    Each bin that is not empty has a marker at its mean confidence, with the Wilson interval of its
    accuracy. A calibrated model lies on the diagonal.

    Args:
        diagrams: of the top class, by arm.

    Raises:
        UserError: there is nothing to draw, or a diagram is of all classes instead of the top one.
    """
    if not any(np.any(d.count) for d in diagrams.values()):
        raise UserError("plots.reliability: there is no prediction to draw.")
    if any(d.count.ndim != 1 for d in diagrams.values()):
        raise UserError("plots.reliability: give diagrams of the top class, reliability.init(...).")
    ideal = "calibrated"
    known = styles(diagrams)
    drawn, (upper, lower) = figure.axes(2, size=(4.5, 2.6), most=1, names=[*known, ideal])
    handles = {ideal: upper.plot([0, 1], [0, 1], color="black", lw=1, ls=(0, (8, 3)))[0]}
    for arm, style in known.items():
        d = diagrams[arm]
        there = d.count > 0
        x, y = d.confidence[there], d.accuracy[there]
        upper.vlines(x, d.low[there], d.high[there], color=style.color, lw=1)
        handles[f"{arm} (n = {int(d.count.sum()):,})"] = upper.plot(
            x, y, ls=style.dash, lw=1.2, **style.marked
        )[0]
        last = len(d.edges) - 2  # merged with the bin for a confidence of 1, if there is one
        count = np.append(d.count[:last], d.count[last:].sum())
        lower.stairs(count / max(count.sum(), 1), d.edges, color=style.color, lw=1.2, ls=style.dash)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="confidence", ylabel="share", xlim=(0, 1))
    figure.legend(drawn, handles, "")
    return drawn
