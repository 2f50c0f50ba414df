"""Tables and figures: the paper's changes of accuracy beside ours, and distances to the base."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sharpjax import plots
from sharpjax.plots import Figure, last_of, n_of
from sharpjax.protocol.summary import Summary, summarize_last
from sharpjax.report.content import Table
from sharpjax.report.words import mean_of
from sharpjax.runs.study import Arrays
from sharpjax.studies.papers import cells, paper7
from sharpjax.train.results import Row

CAPTION = (
    "Means ± standard errors over seeds at the end: accuracy; its change in per cent of the base "
    "model's; the rise of the loss; distances to the base model, where the paper has a t-SNE (in "
    "brackets over those of independent models of the same seed)."
)
PUBLISHED = (
    "The paper's table: changes of the accuracy in per cent of the base model's. The paper trained "
    "on all images; its students are means of three, all else is one model. Beside it the same as "
    "the authors' code does it (a second softmax and Adamax; all numbers pruned, biases and "
    "BatchNorm statistics too; 8 bits of kernels of 1,024 numbers or more), and as it is defined "
    "here (logits and Adam; weights pruned; 8 bits of all kernels). The teacher's weight of 90 is "
    "the authors' alpha of .1. Means ± standard errors over seeds."
)
TAKES = (
    "What each model takes, exactly: parameters that are not pruned; kilobytes of all numbers in "
    "the form in which they can be held (pruned arrays with a bit mask, integers with their "
    "steps), and how many times less that is than the base model's; millions of floating point "
    "operations of a forward pass of one image, in matrix products and convolutions (the depthwise "
    "layers of MobileNet are sums, and not counted). Those do not fall: an array with zeros keeps "
    "its shape, and integers are computed with as floats. Beside them accuracy, distance to the "
    "base model, and noise sharpness: the mean rise of the loss of training images at random "
    "points of a sphere (what was pruned moves, too). Means ± standard errors over seeds."
)
# The order of conditions, by the beginnings of their names.
ORDER = (
    "base", "init", "float16", "int8", "int4", "int3", "tflite", "pruned", "everything", "kd_paper",
    "kd", "independent", "sam_",
)  # fmt: skip
NEAR = "base/activation_distance"
TAKEN = ("parameters", "bytes", "flops")
DISTANCES = {
    NEAR: "activation distance",
    "base/jsd": "JSD",
    "base/disagreement": "disagreement",
}


# Methods of the paper's table: the condition that does it as the authors' code, and the one by our
# definition.
METHODS = {
    **{f"kd_paper_{w}": (f"kd_paper_{w}", f"kd_{w}") for w in paper7.WEIGHTS[::-1]},
    "float16": ("float16", "float16"),
    "int8": ("tflite_int8", "int8"),
    **{p: (p.replace("pruned", "everything"), p) for p in paper7.PRUNED},
}


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Each arm beside its base, the paper's table beside ours, and what each model takes."""
    found = {(s.arm, s.metric): s for s in summarize_last(_by_seed(rows)) if s.n}
    arms = [a for a in dict.fromkeys(row["arm"] for row in rows) if "layers_int" not in a]
    return tuple(
        table
        for table in (_compared(found, arms), _published(found, arms), _takes(found, arms))
        if table.rows
    )


def _compared(found: Mapping[tuple[str, str], Summary], arms: Sequence[str]) -> Table:
    def line(arm: str) -> tuple[str, ...]:
        whole = ("test/accuracy", "test/accuracy_change", "test/nll_rise")
        own = (mean_of(found.get((arm, metric))) for metric in whole)
        return arm, *own, *(_over_independent(found, arm, metric) for metric in DISTANCES)

    columns = ("arm", "accuracy", "change, %", "rise of the loss", *DISTANCES.values())
    return Table(CAPTION, columns, tuple(map(line, arms)))


def _over_independent(found: Mapping[tuple[str, str], Summary], arm: str, metric: str) -> str:
    own, other = found.get((arm, metric)), found.get((f"{_place(arm)}-independent", metric))
    ratio = f" ({own.mean / other.mean:.2f})" if own and other and other.mean else ""
    return mean_of(own) + ratio


def _published(found: Mapping[tuple[str, str], Summary], arms: Sequence[str]) -> Table:
    def line(place: str, method: str) -> tuple[str, ...]:
        said = paper7.CHANGES.get(place, {}).get(method)
        ours = [found.get((f"{place}-{c}", "test/accuracy_change")) for c in METHODS[method]]
        words = method.replace("kd_paper", "student, teacher's weight").replace("_", " ")
        return place, words, "" if said is None else f"{said:+g}", *map(mean_of, ours)

    lines = (line(place, m) for place in dict.fromkeys(map(_place, arms)) for m in METHODS)
    columns = ("data and net", "method", "paper", "as the authors do", "as defined here")
    return Table(PUBLISHED, columns, tuple(own for own in lines if any(own[3:])))


def _takes(found: Mapping[tuple[str, str], Summary], arms: Sequence[str]) -> Table:
    def line(arm: str) -> tuple[str, ...]:
        kept, size, flops = (found[arm, f"size/{what}"].mean for what in TAKEN)
        base = found.get((f"{_place(arm)}-base", "size/bytes"))
        return (
            arm, f"{kept:,.0f}", f"{size / 1e3:,.1f}", f"{base.mean / size:.2f}" if base else "",
            f"{flops / 1e6:,.4g}", mean_of(found.get((arm, "test/accuracy"))),
            _over_independent(found, arm, NEAR), mean_of(found.get((arm, sharp))),
        )  # fmt: skip

    sharp = _sharpness({metric for _, metric in found})
    columns = (
        "arm", "parameters", "kB", "times less", "MFLOP", "accuracy", DISTANCES[NEAR],
        "noise sharpness",
    )  # fmt: skip
    return Table(TAKES, columns, tuple(line(a) for a in arms if (a, "size/bytes") in found))


def _sharpness(metrics: Iterable[str]) -> str:
    """The metric of whole models. Its name says which training images it uses."""
    named = (m for m in metrics if m.startswith("train[") and m.endswith("/noise_sharpness"))
    return next(named, "")


def _by_seed(rows: Sequence[Row]) -> list[Row]:
    """One value per seed: the mean if a seed has several models. Rows of layers are left out."""
    values: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        if {*row["of"]} <= {"copy"}:
            key = row["arm"], row["seed"], row["step"], row["metric"]
            values.setdefault(key, []).append(row["value"])
    return [
        {"arm": arm, "seed": seed, "step": step, "metric": metric, "of": {},
         "value": None if None in found else sum(found) / len(found)}
        for (arm, seed, step, metric), found in values.items()
    ]  # fmt: skip


def _place(arm: str) -> str:
    return "-".join(cells.place(arm))


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each data set and net: distances to the base, sizes, and sharpness against the rise of
    the loss."""
    for place, own in cells.by_place(_by_seed(rows)).items():
        trained = [row for row in own if not row["arm"].endswith("init")]  # far from all others
        panels = {
            label: cells.by_condition(values, ORDER)
            for metric, label in DISTANCES.items()
            if (values := last_of(trained, metric))
        }
        if panels:
            yield Figure(
                f"distances-{place}",
                f"{place}. Distances of each trained model to the base model of its seed on test "
                f"images: a dot for each seed, their mean and its interval; "
                f"{n_of(next(iter(panels.values())))}.",
                lambda panels=panels: plots.points(panels),
                tuple(DISTANCES),
            )
        if (drawn := _sizes(place, own)) is not None:
            yield drawn
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


def _sizes(place: str, rows: Sequence[Row]) -> Figure | None:
    """Size against accuracy, distance to the base, and sharpness; models trained with SAM are left
    out."""
    sharp = _sharpness(row["metric"] for row in rows)
    size, accuracy, distance, sharpness = (
        cells.by_condition(own, ORDER)
        for metric in ("size/bytes", "test/accuracy", NEAR, sharp)
        for own in [{a: x for a, x in last_of(rows, metric).items() if "-sam" not in a}]
    )
    if not size or not distance:
        return None
    size = {name: {seed: x / 1e3 for seed, x in own.items()} for name, own in size.items()}
    distance = {"base": dict.fromkeys(size.get("base", {}), 0.0)} | distance
    return Figure(
        f"size-{place}",
        f"{place}. What each model takes, against its accuracy on the test set, its distance to "
        f"the base model of its seed, which is 0 for that model itself, and its noise sharpness: a "
        f"point for each model; a line joins the methods whose means no other method's mean beats "
        f"in both; {n_of(size)}.",
        lambda: plots.scatter(
            [
                ("kilobytes", size, "test accuracy", accuracy),
                ("kilobytes", size, f"{DISTANCES[NEAR]} to the base", distance),
                *([("kilobytes", size, "noise sharpness", sharpness)] if sharpness else []),
            ],
            log=(True, False),
            better=("greater", "less", "less"),
        ),
        ("size/bytes", "test/accuracy", NEAR),
    )
