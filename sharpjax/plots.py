"""Pictures of a run, from its rows. Each takes rows and returns a matplotlib figure.

matplotlib is imported when a picture is drawn, and draws to files alone.
"""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.protocol.summary import mean_and_standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

# Okabe and Ito's palette: told apart in print and by the colour-blind.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_all(rows: Iterable[Row]) -> Iterator[tuple[str, bytes]]:
    """Every picture that the rows allow: its name, and the bytes of a PNG."""
    rows = list(rows)
    for draw in (curves, stability, sharpness_accuracy):
        figure = draw(rows)
        if figure is not None:
            png = io.BytesIO()
            figure.savefig(png, format="png")
            yield draw.__name__, png.getvalue()


def curves(rows: Iterable[Row]) -> "Figure | None":
    """Loss on the training batches and test accuracy against steps: mean and standard error."""
    rows = _measured(rows)
    panels = (("train/loss", "training loss"), ("test/accuracy", "test accuracy"))
    figure, axes = _figure(len(panels))
    for axis, (metric, label) in zip(axes, panels, strict=True):
        _lines(axis, rows, metric)
        axis.set(xlabel="step", ylabel=label)
    axes[0].set_yscale("log")
    axes[-1].legend(frameon=False)
    return figure


def stability(rows: Iterable[Row]) -> "Figure | None":
    """Learning rate times the top Hessian eigenvalue, beside 2 (Cohen et al., arXiv 2103.00065).

    2 is the edge of stability of gradient descent without momentum. With momentum beta it lies at
    2 (1 + beta), and under small batches the product stays below: the line is a landmark, no law.
    """
    rows = _measured(rows)
    metric = _first_set(rows, "hessian/lambda_1")
    if metric is None:
        return None
    rates = {
        (row["arm"], row["seed"], row["step"]): row["value"]
        for row in rows
        if row["metric"] == "train/learning_rate"
    }
    products = [
        {**row, "value": row["value"] * rates[key]}
        for row in rows
        if row["metric"] == metric and (key := (row["arm"], row["seed"], row["step"])) in rates
    ]
    figure, (axis,) = _figure(1)
    _lines(axis, products, metric)
    axis.axhline(2, color="black", linewidth=1, linestyle="--", label="2")
    axis.set(xlabel="step", ylabel="learning rate × λ₁ of the Hessian")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return figure


def sharpness_accuracy(rows: Iterable[Row]) -> "Figure | None":
    """Adaptive sharpness and the top eigenvalue against test accuracy, a point for each seed."""
    rows = _measured(rows)
    names = (
        ("adaptive_sharpness", "adaptive sharpness (worst case)"),
        ("hessian/lambda_1", "λ₁ of the Hessian"),
    )
    metrics = [(_first_set(rows, name), label) for name, label in names]
    metrics = [(metric, label) for metric, label in metrics if metric]
    if not metrics:
        return None
    figure, axes = _figure(len(metrics))
    accuracy = _last(rows, "test/accuracy")
    for axis, (metric, label) in zip(axes, metrics, strict=True):
        values = _last(rows, metric)
        for i, arm in enumerate(_arms(rows)):
            seeds = sorted(values[arm].keys() & accuracy[arm].keys())
            axis.scatter(
                [values[arm][seed] for seed in seeds],
                [accuracy[arm][seed] for seed in seeds],
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)],
                label=arm,
            )
        axis.set(xlabel=label, ylabel="test accuracy")
    axes[-1].legend(frameon=False)
    return figure


def _measured(rows: Iterable[Row]) -> list[Row]:
    """Without the values that were not finite."""
    return [row for row in rows if row["value"] is not None]


def _figure(num_panels: int) -> tuple["Figure", list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * num_panels, 3.4), layout="constrained", dpi=150)
    axes = list(np.atleast_1d(figure.subplots(1, num_panels)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(axis: Any, rows: Sequence[Row], metric: str) -> None:
    for i, arm in enumerate(_arms(rows)):
        by_step = defaultdict(list)
        for row in rows:
            if row["arm"] == arm and row["metric"] == metric:
                by_step[row["step"]].append(row["value"])
        if not by_step:
            continue
        steps = sorted(by_step)
        mean, error, _ = np.array([mean_and_standard_error(by_step[s]) for s in steps]).T
        color = COLORS[i % len(COLORS)]
        axis.plot(steps, mean, color=color, label=arm, marker=MARKERS[i % len(MARKERS)], ms=3)
        axis.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, lw=0)


def _arms(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _last(rows: list[Row], metric: str) -> dict[str, dict[int, float]]:
    """Of each arm and seed the value at its last step."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row["step"]):
        if row["metric"] == metric:
            values[row["arm"]][row["seed"]] = row["value"]
    return values


def _first_set(rows: list[Row], quantity: str) -> str | None:
    """The metric of a quantity on the first measurement set."""
    pattern = re.compile(rf"train\[:\d+\]/{re.escape(quantity)}")
    return next((row["metric"] for row in rows if pattern.fullmatch(row["metric"])), None)
