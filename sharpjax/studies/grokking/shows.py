"""Table 1 of the paper and ours, side by side."""

from collections.abc import Iterable, Mapping
from typing import Any

from sharpjax.protocol.summary import Summary, summarize_last
from sharpjax.report.content import Table
from sharpjax.studies.papers import paper3
from sharpjax.studies.papers.paper3 import TABLE_1, Cell

Row = Mapping[str, Any]

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
