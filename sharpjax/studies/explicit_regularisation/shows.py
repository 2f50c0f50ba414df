"""Tables and figures: the paper's numbers and ours, sharpness against error and ECE, diagrams."""

from collections.abc import Iterator, Sequence

import numpy as np

from sharpjax import plots
from sharpjax.metrics.reliability import Diagram
from sharpjax.plots import Figure, Values, first_set, last_of, n_of
from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.report.words import mean_of
from sharpjax.runs.study import Arrays
from sharpjax.studies.papers import cells, paper6
from sharpjax.studies.papers.paper6 import REGULARISERS
from sharpjax.train.calibration import diagram_of
from sharpjax.train.landscape import profiles_of
from sharpjax.train.results import Row

OUTPUTS = "calibration-test"  # the evaluator that stores the bins
SHARPNESS = {
    "noise_sharpness": "noise sharpness",
    "fisher_rao": "Fisher-Rao norm",
    "relative_flatness_normalised": "relative flatness",
}
PERFORMANCE = {"test/error": "test error", "test/ece": "ECE"}
# The metric by definition, the one of the authors' code, and the paper's name.
BOTH = {
    "noise sharpness": ("noise_sharpness", "authors/noise_sharpness", None),
    "Fisher-Rao norm": ("fisher_rao", "authors/fisher_rao", "train/fisher_rao_norm"),
    "relative flatness": (
        "relative_flatness_normalised", "authors/relative_flatness", paper6.FLATNESS
    ),
}  # fmt: skip
ORDER = tuple(f"{name}{end}" for name in REGULARISERS for end in ("", "-es"))  # of conditions
PLAIN = {"test/error": "error", "test/ece": "ECE", "test/scaled/ece": "ECE, scaled"}


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row per arm: errors, ECE, and each measure of sharpness by both conventions. If the paper
    has numbers for the arm, they stand beside ours."""
    found = {(s.arm, s.metric): s for s in summarize_last(rows) if s.n}
    where = _where(rows)
    if where is None:
        return ()

    def line(arm: str) -> tuple[str, ...]:
        said = paper6.TABLES.get(arm, {})
        cells_ = [mean_of(found.get((arm, f"{where}/nll")))]
        for metric in PLAIN:
            cells_ += [mean_of(found.get((arm, metric))), _number(said.get(metric))]
        for own, theirs, name in BOTH.values():
            cells_ += [mean_of(found.get((arm, f"{where}/{metric}"))) for metric in (own, theirs)]
            cells_ += [_number(said.get(name))] if name else []
        return arm, *cells_

    columns = ["arm", "training loss"]
    for label in PLAIN.values():
        columns += [label, "paper"]
    for label, (_, _, name) in BOTH.items():
        columns += [label, "authors' code", *(["paper"] if name else [])]
    caption = (
        f"Means ± standard errors over seeds at the end of each arm, training measures on {where} "
        "without augmentation; each measure of sharpness by its definition and as the authors' "
        "code computes it, and the paper's number of VGG19 (means of 3 seeds)."
    )
    arms = tuple(dict.fromkeys(row["arm"] for row in rows))
    return (Table(caption, tuple(columns), tuple(map(line, arms))),)


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each data set and net: sharpness against error and ECE with a point per model,
    reliability diagrams of the -es arms before and after temperature scaling, and profiles of the
    loss."""
    where = _where(rows)
    for place, own in cells.by_place(rows).items():

        def of_place(metric: str, own: Sequence[Row] = own) -> Values:
            return cells.by_condition(last_of(own, metric), ORDER)

        panels = [
            (label, of_place(f"{where}/{metric}"), said, of_place(performance))
            for performance, said in PERFORMANCE.items()
            for metric, label in SHARPNESS.items()
        ]
        if where and all(panel[1] for panel in panels):
            yield Figure(
                f"sharpness-{place}",
                f"{place}. Three measures of sharpness on {where} against test error (above) and "
                f"expected calibration error (below): a point for each model, -es: stopped early; "
                f"values of sharpness that are not above 0 have none; {n_of(panels[0][1])}.",
                lambda panels=panels: plots.scatter(panels, log=(True, False)),
                (f"{where}/relative_flatness_normalised", "test/error", "test/ece"),
            )
        arms = dict.fromkeys(row["arm"] for row in own)
        stopped = [arm for arm in arms if arm.endswith("-es")]
        for kind, said in (("", "before"), ("scaled-", "after")):
            if diagrams := _diagrams(stopped, arrays, is_scaled=bool(kind)):
                yield Figure(
                    f"reliability-{kind}{place}",
                    f"{place}. Accuracy against confidence on the test set with early stopping, "
                    f"{said} temperature scaling, bin by bin over the models of all seeds: means, "
                    f"and from the least to the most of a seed; below, the share of each bin.",
                    lambda diagrams=diagrams: plots.reliability(diagrams),
                    ("test/scaled/ece" if kind else "test/ece",),
                )
        found = {arm.split("-")[2]: profiles_of(arrays(arm, "landscape")) for arm in stopped}
        if where and (curves := {name: own for name, own in found.items() if own}):
            yield Figure(
                f"landscape-{place}",
                f"{place}. The loss on training images without augmentation, of the models that "
                f"were stopped early, along a random direction in units of the filters, one for "
                f"each model; {n_of(curves)}.",
                lambda curves=curves: plots.profiles(curves, label="training loss", log=True),
                (f"{where}/noise_sharpness",),
            )


def _diagrams(arms: Sequence[str], arrays: Arrays, *, is_scaled: bool) -> dict[str, Diagram]:
    """One diagram per regulariser, over all seeds."""
    found = {}
    for arm in arms:
        each = [diagram_of(x, scaled=is_scaled) for x in arrays(arm, OUTPUTS).values()]
        if there := [diagram for diagram in each if diagram is not None]:
            found[arm.split("-")[2]] = over_seeds(there)
    return found


def over_seeds(diagrams: Sequence[Diagram]) -> Diagram:
    """One diagram from those of several models with the same edges, with all their predictions
    together. In each bin, `low` and `high` are the least and the most accurate model."""
    count, confidence, accuracy = (
        np.stack([getattr(d, name) for d in diagrams])
        for name in ("count", "confidence", "accuracy")
    )
    total = count.sum(0)
    with np.errstate(invalid="ignore"):
        means = [np.nansum(count * x, 0) / total for x in (confidence, accuracy)]
    spread = [
        np.array([pick(column[n > 0], initial=start) if n.any() else np.nan
                  for column, n in zip(accuracy.T, count.T, strict=True)])
        for pick, start in ((np.min, 1.0), (np.max, 0.0))
    ]  # fmt: skip
    return Diagram(diagrams[0].edges, total, *means, *spread)


def _where(rows: Sequence[Row]) -> str | None:
    metric = first_set(rows, "fisher_rao")
    return metric.removesuffix("/fisher_rao") if metric else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
