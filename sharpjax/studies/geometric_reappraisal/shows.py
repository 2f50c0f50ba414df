"""Tables and figures: each condition against Base, beside the sign that the paper claims."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sharpjax import plots
from sharpjax.plots import Figure, last_of, n_of
from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.runs.study import Arrays
from sharpjax.studies.papers import cells
from sharpjax.train.calibration import diagram_of
from sharpjax.train.landscape import profiles_of
from sharpjax.train.results import Row

CAPTION = (
    "Means over seeds at the end. Below each metric the sign that the paper claims for every "
    "condition against base; an arrow says on which side of base the mean is here."
)
# Ending of the metric's name, heading, and the sign that the paper claims against base.
COLUMNS = (
    ("/nll", "training loss", 0),
    ("/noise_sharpness", "noise sharpness", 1),
    ("/fisher_rao", "Fisher-Rao", 1),
    ("/relative_flatness_normalised", "relative flatness", 1),
    ("/authors/noise_sharpness", "authors' noise", 1),
    ("/authors/fisher_rao", "authors' Fisher-Rao", 1),
    ("/authors/relative_flatness", "authors' flatness", 1),
    ("/authors/gradient_share", "gradient's share", 0),
    ("test/gap", "gap", -1),
    ("test/accuracy", "accuracy", 1),
    ("test/ece", "ECE", -1),
    ("/corrupted_accuracy", "corrupted accuracy", 1),
    ("test/disagreement", "disagreement", -1),
    ("test/mean_rank", "mean rank", 0),
)
SHARPNESS = {
    "noise_sharpness": "noise sharpness",
    "fisher_rao": "Fisher-Rao norm",
    "relative_flatness_normalised": "relative flatness",
}
OUTCOMES = {"test/error": "test error", "test/ece": "test ECE"}


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row per arm. Those at equal training loss have only sharpness."""
    metrics = dict.fromkeys(row["metric"] for row in rows)
    chosen = {end: _named(metrics, end) for end, *_ in COLUMNS}
    found = {(s.arm, s.metric): s.mean for s in summarize_last(rows) if s.n}

    def cell(arm: str, end: str) -> str:
        value = found.get((arm, chosen[end]))
        base = found.get((_base(arm), chosen[end])) if _base(arm) != arm else None
        if value is None:
            return ""
        arrow = "" if base is None or base == value else " ↑" if value > base else " ↓"
        return f"{value:.4g}{arrow}"

    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if "-random_" not in arm]
    signs = ("paper", *({1: "↑", -1: "↓", 0: ""}[sign] for *_, sign in COLUMNS))
    lines = tuple((arm, *(cell(arm, end) for end, *_ in COLUMNS)) for arm in arms)
    head = ("arm", *(words for _, words, _ in COLUMNS))
    return (Table(CAPTION, head, (signs, *lines)),) if lines else ()


def _base(arm: str) -> str:
    """The base that an arm is compared with; for arms at equal training loss, the base at that
    loss."""
    data, net, condition, *end = arm.split("-")
    return "-".join((data, net, "base", *end)) if condition else arm


def _named(metrics: Mapping[str, Any], end: str) -> str:
    """The metric with this ending, on the plain set."""
    if not end.startswith("/"):
        return end
    where = ("train[:", "test[:")
    fits = (m for m in metrics if m.endswith(f"]{end}") and m.startswith(where))
    return next(fits, end)


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each net: sharpness against error and ECE, reliability diagrams, profiles of the loss,
    and random labels."""
    metrics = dict.fromkeys(row["metric"] for row in rows)
    for place, own in cells.by_place(rows).items():
        conditions = [row for row in own if "-random_" not in row["arm"]]
        if conditions:
            yield from _of_net(place, conditions, metrics, arrays)
        levels = [row for row in own if "-random_" in row["arm"]]
        levels.sort(key=lambda row: int(row["arm"].rpartition("_")[2]))
        if levels:
            yield _of_labels(place, levels, metrics)


def _of_net(
    place: str, rows: Sequence[Row], metrics: Mapping[str, Any], arrays: Arrays
) -> Iterator[Figure]:
    panels = [
        (words, last_of(rows, _named(metrics, f"/{end}")), label, last_of(rows, metric))
        for metric, label in OUTCOMES.items()
        for end, words in SHARPNESS.items()
    ]
    yield Figure(
        f"sharpness-{place}",
        f"{place}. Sharpness on training images without augmentation against test error and ECE: a "
        f"point for each model; {n_of(panels[0][3])}.",
        lambda: plots.scatter(panels, log=(_all_positive(panels, 1), False)),
        tuple(_named(metrics, f"/{end}") for end in SHARPNESS),
    )
    arms = dict.fromkeys(row["arm"] for row in rows if not row["arm"].endswith("-matched"))
    diagrams = {
        arm: found
        for arm in arms
        for stored in list(arrays(arm, "calibration-test").values())[:1]
        if (found := diagram_of(stored))
    }
    if diagrams:
        yield Figure(
            f"reliability-{place}",
            f"{place}. Accuracy against confidence on the test images, of the first seed.",
            lambda: plots.reliability(diagrams),
            ("test/ece",),
        )
    found = {arm: profiles_of(arrays(arm, "landscape")) for arm in arms}
    if curves := {arm: own for arm, own in found.items() if own}:
        yield Figure(
            f"landscape-{place}",
            f"{place}. The loss on training images without augmentation along a random direction "
            f"in units of the filters, one for each model; {n_of(curves)}.",
            lambda: plots.profiles(curves, label="training loss", log=True),
            (_named(metrics, "/noise_sharpness"),),
        )


def _all_positive(panels: Sequence[tuple], side: int) -> bool:
    """Whether an axis can be logarithmic: a mean rise of the loss may be below 0."""
    arms = (arm for panel in panels for arm in panel[side].values())
    return all(value > 0 for arm in arms for value in arm.values())


def _of_labels(place: str, rows: Sequence[Row], metrics: Mapping[str, Any]) -> Figure:
    loss = last_of(rows, "fit/nll")
    true = {
        words: last_of(rows, _named(metrics, f"/true/{end}")) for end, words in SHARPNESS.items()
    }
    panels = [("loss on the labels trained on", loss, words, x) for words, x in true.items()]
    return Figure(
        f"random-labels-{place}",
        f"{place}. Sharpness with the true labels against the training loss, by per cent of labels "
        f"that are drawn anew: a point for each model; {n_of(loss)}.",
        lambda: plots.scatter(panels, log=(True, _all_positive(panels, 3))),
        tuple(_named(metrics, f"/true/{end}") for end in SHARPNESS),
    )
