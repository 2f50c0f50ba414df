"""What the study shows: distances to the teacher beside accuracies, and paths of functions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sharpjax import plots
from sharpjax.plots import Figure, last_of, n_of
from sharpjax.protocol.summary import Summary, summarize_last
from sharpjax.report.content import Table
from sharpjax.runs.study import Arrays
from sharpjax.studies.papers import cells
from sharpjax.train.results import Row

TRAJECTORY = "trajectory"  # the evaluator that stores outputs after each epoch
CAPTION = (
    "Means ± standard errors over seeds at the end: accuracy, distances to the teacher of the seed "
    "(in brackets over that of siddo: the same start and order, and no teacher), and how much "
    "oftener a student predicts as its teacher does than siddo, where the teacher is wrong and "
    "where it is right."
)
# Of conditions, without the weight of the teacher.
ORDER = (
    "teacher", "siddo", "disdo", "kd", "kd_paper", "permuted", "shuffled", "entropy",
    "uniform", "gaussian",
)  # fmt: skip
# Metric, heading, whether it is shown over that of siddo.
COLUMNS = {
    "test/accuracy": ("accuracy", False),
    "test/ece": ("ECE", False),
    "teacher/activation_distance": ("activation distance", True),
    "teacher/jsd": ("JSD", True),
    "teacher/disagreement": ("disagreement", True),
    "wrong/excess_agreement": ("excess, wrong", False),
    "right/excess_agreement": ("excess, right", False),
}


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row for each arm."""
    found = {(s.arm, s.metric): s for s in summarize_last(rows) if s.n}

    def cell(arm: str, metric: str, over: bool) -> str:
        own = found.get((arm, metric))
        if own is None:
            return ""
        control = found.get(("-".join((*cells.place(arm), "siddo")), metric)) if over else None
        return _short(own) + (f" ({own.mean / control.mean:.2f})" if control else "")

    arms = dict.fromkeys(row["arm"] for row in rows)
    lines = tuple((arm, *(cell(arm, m, over) for m, (_, over) in COLUMNS.items())) for arm in arms)
    return (Table(CAPTION, ("arm", *(words for words, _ in COLUMNS.values())), lines),)


def _short(summary: Summary) -> str:
    error = summary.standard_error
    return f"{summary.mean:.4g}" + (f" ± {error:.1g}" if error == error else "")


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each data set and net: distances to the teacher, and against accuracy."""
    by_place: dict[str, list[str]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        by_place.setdefault("-".join(cells.place(arm)), []).append(arm)
    for place, arms in by_place.items():
        own = [row for row in rows if row["arm"] in arms]
        panels = {
            words: _by_condition(own, metric)
            for metric, (words, over) in COLUMNS.items()
            if over and last_of(own, metric)
        }
        if not panels:
            continue
        accuracy = _by_condition(own, "test/accuracy")
        yield Figure(
            f"distances-{place}",
            f"{place}. Distances of the models of each condition to the teacher of their seed, on "
            f"test images: a dot for each seed, their mean and its interval; "
            f"{n_of(next(iter(panels.values())))}.",
            lambda panels=panels: plots.points(panels),
            tuple(metric for metric, (_, over) in COLUMNS.items() if over),
        )
        words, distances = next(iter(panels.items()))
        yield Figure(
            f"accuracy-{place}",
            f"{place}. Accuracy of the models of each condition on the test set, and against their "
            f"{words} to the teacher; {n_of(accuracy)}.",
            lambda accuracy=accuracy, words=words, distances=distances: plots.scatter(
                [(f"{words} to the teacher", distances, "test accuracy", accuracy)]
            ),
            ("test/accuracy",),
        )


def _by_condition(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Values by condition: what has no teacher, then each kind by its weights."""
    found: Mapping[str, Any] = last_of(rows, metric)
    by_name = {arm.split("-", 2)[2]: values for arm, values in found.items()}

    def place(name: str) -> tuple[int, str]:
        kind = name.rpartition("_")[0] or name
        return ORDER.index(kind) if kind in ORDER else len(ORDER), name

    return {name: by_name[name] for name in sorted(by_name, key=place)}
