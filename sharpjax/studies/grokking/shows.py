"""What the study shows: table 1 of the paper and ours side by side, and figures along training."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sharpjax import plots
from sharpjax.plots import Curves, Figure, Panel, first_set, n_of, series_of
from sharpjax.protocol.summary import Summary, summarize_last
from sharpjax.report.content import Table
from sharpjax.studies.papers import paper3
from sharpjax.studies.papers.paper3 import TABLE_1, Cell

Row = Mapping[str, Any]
Arrays = Callable[[str, str], Mapping[int, Mapping[str, Any]]]

CAPTION = (
    "Best test accuracy in per cent and the first epoch that had it, the paper's and ours: mean ± "
    "standard error over models, n of ours, and how many of them reached 100 per cent."
)
COLUMNS = ("arm", "parameters", "accuracy, paper", "ours", "epoch, paper", "ours", "n",
           "generalised")  # fmt: skip


def beside_the_paper(rows: Iterable[Row]) -> Table:
    """One row for each arm: best test accuracy and its epoch, the paper's and ours.

    Mean and standard error over models; n, and how many of ours reached 100 per cent. The paper's
    are of ten models each, and of addition modulo 97 alone.
    """
    rows = list(rows)
    found = {(s.arm, s.metric): s for s in summarize_last(rows) if s.n}
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        accuracy = found.get((arm, paper3.ACCURACY.metric))
        epoch = found.get((arm, paper3.EPOCH.metric))
        size = found.get((arm, paper3.NUM_PARAMS.metric))
        reached = found.get((arm, "grok/reached_full_test_accuracy"))
        cell = _cell(arm)
        line = (
            arm,
            f"{size.mean:,.0f}" if size else "",
            _format(cell.accuracy, cell.accuracy_error, 3) if cell else "",
            _ours(accuracy, 3, 100),
            _format(cell.epoch, cell.epoch_error, 1) if cell else "",
            _ours(epoch, 1),
            str(epoch.n) if epoch else "",
            f"{round(reached.mean * reached.n)} of {reached.n}" if reached else "",
        )
        lines.append(line)
    return Table(CAPTION, COLUMNS, tuple(lines))


def _cell(arm: str) -> Cell | None:
    for (model, fraction), cell in TABLE_1.items():
        if arm == paper3.arm("add97", model, fraction):
            return cell
    return None


def _ours(summary: Summary | None, digits: int, unit: int = 1) -> str:
    if summary is None:
        return ""
    return _format(unit * summary.mean, unit * summary.standard_error, digits)


def _format(mean: float, standard_error: float, digits: int) -> str:
    error = f" ± {standard_error:.{digits}f}" if standard_error == standard_error else ""
    return f"{mean:.{digits}f}{error}"


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each task and fraction accuracy by epoch, and what was measured along the way.

    Accuracy is drawn as the paper does (OpenReview LVuzwpMovE): of both sets, on a logarithmic
    axis. A seed that is done counts as it ended.

    Args:
        arrays: `curves` of an arm hold `train_accuracy` and `test_accuracy`, [epochs of the seed].
    """
    groups: dict[str, list[str]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        task, *_, fraction = arm.split("-")
        groups.setdefault(f"{task}-{fraction}", []).append(arm)
    for group, arms in groups.items():
        own = [row for row in rows if row["arm"] in arms]
        seeds: dict[str, set[int]] = {}
        for row in own:
            seeds.setdefault(row["arm"], set()).add(row["seed"])
        yield Figure(
            f"accuracy-{group}",
            f"{group}. Training accuracy (dashed) and test accuracy against epochs: a line for "
            f"each seed, to its own end, and their mean; {n_of(seeds)}.",
            lambda arms=arms: _accuracy(arms, arrays),
        )
        if panels := _measures(own):
            yield Figure(
                f"sharpness-{group}",
                f"{group}. Curvature and sharpness against epochs: a line for each seed, and their "
                f"mean where all are there; {n_of(seeds)}.",
                lambda panels=panels: plots.lines(panels, xlabel="epoch", log=True, mean="all"),
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
    """A panel for each measure that there is.

    The last point of a seed lies at its own end, `grok/epochs`. Epoch 0, before the first, is
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

    labels = {
        "hessian/lambda_1": "λ₁ of the Hessian in W",
        "hessian/trace": "trace of the Hessian in W",
        "adaptive_sharpness": "adaptive sharpness in W",
    }
    return [
        Panel(label, placed(series_of(rows, metric)), log=True)
        for quantity, label in labels.items()
        if (metric := first_set(rows, quantity))
    ]
