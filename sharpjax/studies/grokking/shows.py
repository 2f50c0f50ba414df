"""Table 1 of the paper beside our numbers, and figures of the course of training."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sharpjax import plots
from sharpjax.plots import Curves, Figure, Panel, first_set, n_of, series_of
from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.runs.study import Arrays
from sharpjax.studies.papers import paper3
from sharpjax.train.results import Row

CAPTION = (
    "Best test accuracy in per cent and the first epoch that had it, the paper's and ours: mean ± "
    "standard error over models, n of ours, and how many of them reached 100 per cent."
)
COLUMNS = ("arm", "parameters", "accuracy, paper", "ours", "epoch, paper", "ours", "n",
           "generalised")  # fmt: skip
MEASURES = {
    "hessian/lambda_1": "λ₁ of the Hessian in W",
    "hessian/trace": "trace of the Hessian in W",
    "adaptive_sharpness": "adaptive sharpness in W",
}


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row per arm: best test accuracy and its epoch, the paper's and ours.

    Mean and standard error over models; n, and how many of ours reached 100 per cent. The paper's
    numbers are of ten models each, and only of addition modulo 97.
    """
    published = {paper3.arm("add97", *key): cell for key, cell in paper3.TABLE_1.items()}
    found = {(s.arm, s.metric): s for s in summarize_last(rows) if s.n}

    def line(arm: str) -> tuple[str, ...]:
        accuracy, epoch, size = (
            found.get((arm, quantity.metric))
            for quantity in (paper3.ACCURACY, paper3.EPOCH, paper3.NUM_PARAMS)
        )
        reached = found.get((arm, "grok/reached_full_test_accuracy"))
        cell = published.get(arm)
        return (
            arm,
            f"{size.mean:,.0f}" if size else "",
            _format(cell.accuracy, cell.accuracy_error, 3) if cell else "",
            _format(100 * accuracy.mean, 100 * accuracy.standard_error, 3) if accuracy else "",
            _format(cell.epoch, cell.epoch_error, 1) if cell else "",
            _format(epoch.mean, epoch.standard_error, 1) if epoch else "",
            str(epoch.n) if epoch else "",
            f"{round(reached.mean * reached.n)} of {reached.n}" if reached else "",
        )

    arms = dict.fromkeys(row["arm"] for row in rows)
    return (Table(CAPTION, COLUMNS, tuple(map(line, arms))),)


def _format(mean: float, standard_error: float, digits: int) -> str:
    error = f" ± {standard_error:.{digits}f}" if standard_error == standard_error else ""
    return f"{mean:.{digits}f}{error}"


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each task and fraction: accuracy by epoch, and the measures taken during training.

    Accuracy is drawn as in the paper (OpenReview LVuzwpMovE): of both sets, on a logarithmic axis.
    A seed that has stopped counts with its last value.

    Args:
        arrays: `curves` of an arm hold `train_accuracy` and `test_accuracy`, [epochs of the seed].
    """
    groups: dict[str, dict[str, set[int]]] = {}
    for row in rows:
        task, *_, fraction = row["arm"].split("-")
        group = groups.setdefault(f"{task}-{fraction}", {})
        group.setdefault(row["arm"], set()).add(row["seed"])
    for name, seeds in groups.items():
        yield Figure(
            f"accuracy-{name}",
            f"{name}. Training accuracy (dashed) and test accuracy against epochs: a line for "
            f"each seed, to its own end, and their mean; {n_of(seeds)}.",
            lambda arms=tuple(seeds): _accuracy(arms, arrays),
            ("grok/epochs", paper3.EPOCH.metric, paper3.ACCURACY.metric),
        )
        if panels := _measures([row for row in rows if row["arm"] in seeds]):
            yield Figure(
                f"sharpness-{name}",
                f"{name}. Curvature and sharpness against epochs, epoch 0 drawn at 1/2: a line for "
                "each seed, and their mean (on logarithmic axes the median) where all are there; "
                f"{n_of(seeds)}.",
                lambda panels=panels: plots.lines(panels, xlabel="epoch", log=True, mean="all"),
                tuple(filter(None, (first_set(rows, quantity) for quantity in MEASURES))),
            )


def _accuracy(arms: Sequence[str], arrays: Arrays) -> Any:
    found = {arm: arrays(arm, "curves") for arm in arms}
    test, train = (
        {
            arm: {seed: (np.arange(1, len(y[name]) + 1), y[name]) for seed, y in by_seed.items()}
            for arm, by_seed in found.items()
        }
        for name in ("test_accuracy", "train_accuracy")
    )
    panel = Panel("accuracy (dashed: training)", test, dashed=train, limits=(0, 1.02))
    return plots.lines([panel], xlabel="epoch", log=True, mean="held")


def _measures(rows: Sequence[Row]) -> list[Panel]:
    """A panel for each measure that is present.

    The last point of a seed is at its own last epoch, `grok/epochs`. Epoch 0, before the first, is
    drawn at 1/2.
    """
    ends = {
        (row["arm"], row["seed"], row["step"]): row["value"]
        for row in rows
        if row["metric"] == "grok/epochs" and row["value"] is not None
    }

    def placed(curves: Curves) -> Curves:
        return {
            arm: {
                seed: ([max(ends.get((arm, seed, step), step), 0.5) for step in x.tolist()], y)
                for seed, (x, y) in by_seed.items()
            }
            for arm, by_seed in curves.items()
        }

    return [
        Panel(label, placed(series_of(rows, metric)), log=True)
        for quantity, label in MEASURES.items()
        if (metric := first_set(rows, quantity))
    ]
