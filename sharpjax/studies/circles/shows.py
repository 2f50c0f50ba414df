"""Tables and figures: sharpness by factor and by epoch, the authors' numbers, the boundaries."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sharpjax import plots
from sharpjax.plots import Figure, Panel, Surface, last_of, n_of, series_of
from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.runs.study import Arrays
from sharpjax.studies.circles import asks
from sharpjax.train.results import Row

SIDE = 1.4  # half the width of the picture of a boundary
CAPTION = (
    "Means over seeds at the end: accuracies, training loss, and measures as they are defined, "
    "three of them beside the authors' conventions."
)
# Metric and heading.
COLUMNS = {
    "test/accuracy": "test accuracy",
    "train/fitted": "training accuracy",
    "train/nll": "training loss",
    "train/lambda_1": "λ₁",
    "train/fisher_rao": "Fisher-Rao",
    "authors/fisher_rao": "authors'",
    "train/relative_flatness_normalised": "relative flatness",
    "authors/relative_flatness": "authors' sum",
    "train/average_sharpness": "average sharpness",
    "authors/noise_sharpness": "authors' noise",
}


def grid(resolution: int) -> np.ndarray:
    """Coordinates along one side of the picture of a boundary."""
    return np.linspace(-SIDE, SIDE, resolution)


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row per arm: its means at the end."""
    found = {(s.arm, s.metric): s for s in summarize_last(rows) if s.n}
    arms = dict.fromkeys(row["arm"] for row in rows)

    def line(arm: str) -> tuple[str, ...]:
        every = [found.get((arm, metric)) for metric in COLUMNS]
        return (arm, *(f"{x.mean:.4g}" if x else "" for x in every))

    return (Table(CAPTION, ("arm", *COLUMNS.values()), tuple(map(line, arms))),)


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """The figures whose rows and arrays are present."""
    factors = [row for row in rows if row["arm"].startswith("factor_")]
    labels = [row for row in rows if row["arm"].startswith("labels_")]
    if factors:
        yield _by_factor("sharpness-factor", factors, "train", asks.MEASURES, "perfect")
        yield _by_factor("authors-factor", factors, "authors", asks.AUTHORS, "authors")
    if labels:
        yield _by_epoch(labels)
    for prefix, own in (("factor", factors), ("labels", labels)):
        if surfaces := _surfaces(dict.fromkeys(row["arm"] for row in own), arrays):
            yield Figure(
                f"boundary-{prefix}",
                "Probability of the inner circle's class after training: of each arm the model of "
                "the first seed. The circles have radius 1 and the arm's factor.",
                lambda surfaces=surfaces: plots.landscape(
                    surfaces, label="probability of the inner class", xlabel="x", ylabel="y"
                ),
            )


def _by_factor(
    name: str, rows: Sequence[Row], prefix: str, measures: Mapping[str, str], asked: str
) -> Figure:
    panels = {words: last_of(rows, f"{prefix}/{measure}") for measure, words in measures.items()}
    return Figure(
        name,
        "Sharpness of all models at the end, against the factor (the inner radius in per cent of "
        f"the outer): a dot for each seed, their mean and its interval; "
        f"{n_of(next(iter(panels.values())))}.",
        lambda: plots.points(panels, log=_all_positive(panels)),
        tuple(f"{asked}/{measure}" for measure in measures),
    )


def _all_positive(panels: Mapping[str, Mapping[str, Mapping[Any, float]]]) -> bool:
    values = [x for panel in panels.values() for arm in panel.values() for x in arm.values()]
    return all(x > 0 for x in values if math.isfinite(x))


def _by_epoch(rows: Sequence[Row]) -> Figure:
    panels = [Panel("training accuracy", series_of(rows, "train/fitted"), limits=(0, 1.02))]
    panels += [
        Panel(words, series_of(rows, f"train/{measure}"), log=True)
        for measure, words in asks.MEASURES.items()
    ]
    return Figure(
        "random-labels",
        "True labels and draws of random ones: training accuracy and sharpness against epochs, a "
        "line for each seed, and their mean (on logarithmic axes the median); "
        f"{n_of(panels[0].curves)}.",
        lambda: plots.lines(panels, xlabel="epoch", log=True, mean="all"),
        tuple(f"fitted/{measure}" for measure in asks.MEASURES),
    )


def _surfaces(arms: Mapping[str, Any], arrays: Arrays) -> dict[str, Surface]:
    """The surfaces of the first, the middle and the last arm."""
    names = list(arms)
    chosen = dict.fromkeys(names[i] for i in (0, len(names) // 2, -1)) if names else {}
    found = {name: list(arrays(name, "boundary").values()) for name in chosen}
    return {
        name: Surface(grid(len(own[0]["inner"])), grid(len(own[0]["inner"])), own[0]["inner"])
        for name, own in found.items()
        if own
    }
