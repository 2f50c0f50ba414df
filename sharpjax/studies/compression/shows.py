"""What the study shows: the paper's changes of accuracy beside ours, and distances to the base."""

from collections.abc import Iterator, Sequence

from sharpjax import plots
from sharpjax.plots import Figure, last_of, n_of
from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.report.words import mean_of
from sharpjax.runs.study import Arrays
from sharpjax.studies.papers import cells, paper7
from sharpjax.train.results import Row

CAPTION = (
    "Means ± standard errors over seeds at the end: accuracy; its change in per cent of the base "
    "model's, and the paper's, which trained on all images; distances to the base model, where the "
    "paper has a t-SNE (in brackets over those of independent models of the same seed)."
)
# Of conditions, by how their names begin.
ORDER = (
    "base", "init", "float16", "int8", "int4", "int3", "pruned", "everything", "kd_paper", "kd",
    "independent", "sam_",
)  # fmt: skip
DISTANCES = {
    "base/activation_distance": "activation distance",
    "base/jsd": "JSD",
    "base/disagreement": "disagreement",
}


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row for each arm that is compared with a base."""
    found = {(s.arm, s.metric): s for s in summarize_last(rows) if s.n}

    def line(arm: str) -> tuple[str, ...]:
        place = "-".join(cells.place(arm))
        said = paper7.CHANGES.get(place, {}).get(arm.removeprefix(f"{place}-"))
        cells_ = [mean_of(found.get((arm, m))) for m in ("test/accuracy", "test/accuracy_change")]
        cells_.append("" if said is None else f"{said:+g}")
        cells_.append(mean_of(found.get((arm, "test/nll_rise"))))
        for metric in DISTANCES:
            own, other = found.get((arm, metric)), found.get((f"{place}-independent", metric))
            ratio = f" ({own.mean / other.mean:.2f})" if own and other and other.mean else ""
            cells_.append(mean_of(own) + ratio)
        return arm, *cells_

    columns = ("arm", "accuracy", "change, %", "paper, %", "rise of the loss", *DISTANCES.values())
    arms = [a for a in dict.fromkeys(row["arm"] for row in rows) if "layers_int" not in a]
    return (Table(CAPTION, columns, tuple(map(line, arms))),)


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each data set and net: distances to the base, and what sharpness says of the loss."""
    for place, own in cells.by_place(rows).items():
        panels = {
            label: cells.by_condition(values, ORDER)
            for metric, label in DISTANCES.items()
            if (values := last_of(own, metric))
        }
        if panels:
            yield Figure(
                f"distances-{place}",
                f"{place}. Distances of each model to the base model of its seed on test images: a "
                f"dot for each seed, their mean and its interval; "
                f"{n_of(next(iter(panels.values())))}.",
                lambda panels=panels: plots.points(panels),
                tuple(DISTANCES),
            )
        sharp = cells.by_condition(last_of(own, "source/noise_sharpness"), ORDER)
        rise = cells.by_condition(last_of(own, "test/nll_rise"), ORDER)
        if sharp and rise:
            yield Figure(
                f"sharpness-{place}",
                f"{place}. Sharpness of a model before compression against the rise of its test "
                f"loss after it: a point for each model; {n_of(rise)}.",
                lambda sharp=sharp, rise=rise: plots.scatter(
                    [("sharpness before", sharp, "rise of the test loss", rise)]
                ),
                ("source/noise_sharpness", "test/nll_rise"),
            )
