"""Figures of the sharpness study: the course of training, stability, and final sharpness."""

from collections.abc import Iterator, Sequence

from sharpjax import plots
from sharpjax.plots import Curves, Figure, Panel, first_set, last_of, n_of, series_of
from sharpjax.runs.study import Arrays
from sharpjax.train.results import Row


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """Loss and accuracy, stability, and sharpness against accuracy. Figures without rows are left
    out."""
    loss, accuracy = series_of(rows, "train/loss"), series_of(rows, "test/accuracy")
    if loss and accuracy:
        panels = [Panel("training loss", loss, log=True), Panel("test accuracy", accuracy)]
        yield Figure(
            "curves",
            "Training loss and test accuracy against steps: a thin line for each seed, their mean "
            f"and its standard error; {n_of(accuracy)}.",
            lambda: plots.lines(panels, xlabel="step", band=True),
            ("test/accuracy",),
        )
    if products := _stability(rows):
        panel = Panel(
            "learning rate × λ₁ of the Hessian", products, limits=(0, None), references={"2": 2}
        )
        yield Figure(
            "stability",
            "Learning rate times the largest eigenvalue of the Hessian against steps, and 2: a "
            f"thin line for each seed, their mean and its standard error; {n_of(products)}.",
            lambda: plots.lines([panel], xlabel="step", band=True),
            tuple(filter(None, [first_set(rows, "hessian/lambda_1")])),
        )
    ends = last_of(rows, "test/accuracy")
    beside = [
        (label, last_of(rows, metric), "test accuracy", ends)
        for quantity, label in (
            ("adaptive_sharpness", "adaptive sharpness (worst case)"),
            ("hessian/lambda_1", "λ₁ of the Hessian"),
        )
        if (metric := first_set(rows, quantity))
    ]
    if beside and ends:
        yield Figure(
            "sharpness_accuracy",
            "Adaptive sharpness and the largest eigenvalue of the Hessian against test accuracy: "
            f"a point for each seed; {n_of(ends)}.",
            lambda: plots.scatter(beside),
            tuple(filter(None, [first_set(rows, "adaptive_sharpness")])),
        )


def _stability(rows: Sequence[Row]) -> Curves:
    """Learning rate times the top Hessian eigenvalue (Cohen et al., arXiv 2103.00065).

    2 is the edge of stability of gradient descent without momentum. With momentum beta it is at 2
    (1 + beta), and with small batches the product stays below it. The line is a landmark, not a
    law.
    """
    metric = first_set(rows, "hessian/lambda_1")
    rates = {
        (row["arm"], row["seed"], row["step"]): row["value"]
        for row in rows
        if row["metric"] == "train/learning_rate" and row["value"] is not None
    }
    products = [
        {**row, "value": row["value"] * rates[key]}
        for row in rows
        if row["metric"] == metric and row["value"] is not None
        if (key := (row["arm"], row["seed"], row["step"])) in rates
    ]
    return series_of(products, metric) if metric else {}
