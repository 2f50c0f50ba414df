"""Tables and figures: what goes with the cost of a replacement, beside what the paper says."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sharpjax import plots
from sharpjax.plots import Figure, n_of
from sharpjax.plots.style import MOST
from sharpjax.report.content import Table
from sharpjax.runs.study import Arrays
from sharpjax.studies.data_free.preserved import CHANGES
from sharpjax.studies.data_free.schema import BASE
from sharpjax.studies.papers import cells
from sharpjax.studies.papers.paper2 import ARMS, DATA_DRIVEN, DATA_FREE
from sharpjax.train.layer_curvature import MEASURES
from sharpjax.train.results import Row

WORDS = {"reinit": "re-initialised", "rerandom": "re-randomised"}
# The paper has no numbers.
SAID = "no consistent sign"
METRICS = (
    "Rank correlations of a metric with the test accuracy after a replacement, over layers and "
    "seeds (Kendall's tau; of curvature, that of the trained net), beside what the paper says; and "
    "median changes of the metric in per cent: of robust layers, and where the weights change and "
    "the function does not (`same/off` of the run says how exactly)."
)
LAYERS = (
    "Means over seeds. Test accuracy after a replacement; in how many of the seeds the layer is "
    "critical, and alpha before and after."
)
UNTRAINED = (
    "Before training: median and 5 to 95 per cent of alpha over draws (means over seeds), and the "
    "share of draws with alpha in [2, 6]; the paper: small but not negligible."
)
ALPHA = "alpha before training"
Values = dict[tuple[int, str], float]  # by seed and layer


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Three tables of all nets: metrics, layers, and layers before training."""
    found = _Found(rows)
    head = ("net", "metric", *(f"tau, {WORDS[arm]}" for arm in ARMS), "the paper",
            *(f"change, robust, {WORDS[arm]}" for arm in ARMS), *CHANGES)  # fmt: skip
    lines = [
        (place, metric, *_line(found, place, metric))
        for place in found.places
        for metric in (*DATA_FREE, *DATA_DRIVEN, *MEASURES)
    ]
    of_layers = [(place, layer, *_layer(found, place, layer)) for place, layer in found.layers()]
    columns = ("net", "layer", "weights", *(f"accuracy, {WORDS[arm]}" for arm in ARMS),
               *(f"critical, {WORDS[arm]}" for arm in ARMS), "alpha",
               *(f"alpha, {WORDS[arm]}" for arm in ARMS))  # fmt: skip
    untrained = [(place, layer, *_untrained(found, place, layer)) for place, layer in found.drawn()]
    made = (
        (METRICS, head, lines),
        (LAYERS, columns, of_layers),
        (UNTRAINED, ("net", "layer", "median", "5 to 95 %", "in [2, 6]"), untrained),
    )
    return tuple(Table(caption, names, tuple(own)) for caption, names, own in made if own)


class _Found:
    """Values of the rows, by arm and metric."""

    def __init__(self, rows: Sequence[Row]):
        self._values: dict[tuple[str, str], dict[tuple[int, Any], float]] = {}
        for row in rows:
            where = tuple(sorted(row["of"].items()))
            if row["value"] is not None:
                own = self._values.setdefault((row["arm"], row["metric"]), {})
                own[row["seed"], where] = row["value"]
        self.places = tuple(dict.fromkeys("-".join(cells.place(row["arm"])) for row in rows))

    def of(self, arm: str, metric: str, **further: Any) -> Values:
        """By seed and layer, from rows whose other coordinates are `further`."""
        found = {}
        for (seed, where), value in self._values.get((arm, metric), {}).items():
            own = dict(where)
            layer = own.pop("layer", "")
            if own == further:
                found[seed, layer] = value
        return found

    def layers(self) -> Iterator[tuple[str, str]]:
        for place in self.places:
            for layer in _names(self.of(f"{place}-{BASE}", "layer/depth")):
                yield place, layer

    def drawn(self) -> Iterator[tuple[str, str]]:
        for place in self.places:
            for layer in _names(self.of(f"{place}-init", "init/alpha", percent=50)):
                yield place, layer

    def inside(self, arm: str, layer: str) -> list[float]:
        """For each draw, whether alpha of a layer is in [2, 6]."""
        values = self._values.get((arm, "init/alpha_in_range"), {})
        return [value for (_, where), value in values.items() if dict(where)["layer"] == layer]

    def against(self, place: str, arm: str, metric: str) -> tuple[Values, Values]:
        """A measure of the layers, and the accuracy after their replacement."""
        where = BASE if metric in MEASURES else arm
        own = self.of(f"{place}-{where}", f"layer/{metric}")
        return own, self.of(f"{place}-{arm}", "layer/accuracy")


def _names(values: Values) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for _, layer in values))


def _line(found: _Found, place: str, metric: str) -> Iterator[str]:
    for arm in ARMS:
        yield _number(_tau(*found.against(place, arm, metric)))
    yield SAID if metric in DATA_FREE else "tracks it" if metric in DATA_DRIVEN else ""
    for arm in ARMS:
        change = found.of(f"{place}-{arm}", f"robust/{metric}/absolute_change")
        yield _percent(change.values())
    for change in CHANGES:
        moved = found.of(f"{place}-same", f"same/{metric}/absolute_change", change=change)
        yield _percent(moved.values())


def _tau(x: Values, y: Values) -> float:
    both = [(value, y[unit]) for unit, value in x.items() if unit in y]
    first, second = np.array(both).T if both else (np.zeros(0), np.zeros(0))
    if len(both) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    tau: Any = stats.kendalltau(first, second)
    return float(tau[0])


def _layer(found: _Found, place: str, layer: str) -> Iterator[str]:
    def mean(arm: str, metric: str) -> str:
        values = found.of(f"{place}-{arm}", metric)
        own = [value for (_, name), value in values.items() if name == layer]
        return f"{np.mean(own):.4g}" if own else ""

    yield mean(BASE, "layer/num_params")
    for arm in ARMS:
        yield mean(arm, "layer/accuracy")
    for arm in ARMS:
        critical = found.of(f"{place}-{arm}", "layer/critical")
        own = [value for (_, name), value in critical.items() if name == layer]
        yield f"{sum(own):.0f} of {len(own)}" if own else ""
    for arm in (BASE, *ARMS):
        yield mean(arm, "layer/alpha")


def _untrained(found: _Found, place: str, layer: str) -> Iterator[str]:
    arm = f"{place}-init"

    def quantile(percent: int) -> float:
        values = found.of(arm, "init/alpha", percent=percent)
        return float(np.mean([v for (_, name), v in values.items() if name == layer] or [np.nan]))

    yield _number(quantile(50))
    yield f"{quantile(5):.3g} to {quantile(95):.3g}"
    inside = found.inside(arm, layer)
    yield f"{np.mean(inside):.3f} (n = {len(inside):,})"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:z.2f}"


def _percent(values: Iterable[float]) -> str:
    """The median in per cent.

    >>> _percent([0.5, 3.684, 9.0]), _percent([1e-15]), _percent([])
    ('368', '0', '')
    """
    own = list(values)
    median = 100 * np.median(own) if own else np.nan
    return "" if np.isnan(median) else "0" if median < 1e-3 else f"{median:.3g}"


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each net: accuracy after a replacement against each measure, and correlations. For all
    nets: alpha before training."""
    found = _Found(rows)
    for place in found.places:
        for arm in ARMS:
            yield from _criticality(found, place, arm)
        yield from _correlations(found, place)
    yield from _before(found)


def _criticality(found: _Found, place: str, arm: str) -> Iterator[Figure]:
    panels = []
    for metric in (*DATA_FREE, "jsd", "trace"):
        values, accuracy = found.against(place, arm, metric)
        if values and accuracy:
            label = f"{metric}, trained net" if metric in MEASURES else metric
            panels.append(
                (label, _by_layer(values), f"accuracy, {WORDS[arm]}", _by_layer(accuracy))
            )
    if panels:
        whole = f"{place}-{arm}"
        own = list(found.of(f"{place}-{BASE}", "test/accuracy").values())
        trained = {"mean, trained": float(np.mean(own))} if own else {}
        yield Figure(
            f"criticality-{whole}",
            f"{place}. Test accuracy where one layer is {WORDS[arm]}, against what is measured of "
            "that layer afterwards (trace: of the trained net): a point for each layer and seed; "
            "the dashed line is the mean accuracy of the trained nets; "
            f"{n_of(panels[0][1])}.",
            lambda: plots.scatter(panels, references=trained),
            tuple(f"layer/{m}" for m in (*DATA_FREE, "jsd", "trace", "accuracy")),
        )


def _by_layer(values: Values) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for (seed, layer), value in values.items():
        found.setdefault(layer, {})[seed] = value
    return found


def _correlations(found: _Found, place: str) -> Iterator[Figure]:
    measures = (*DATA_FREE, *DATA_DRIVEN, *MEASURES)
    lines: dict[str, list[float]] = {}
    sides: dict[str, tuple[Values, Values]] = {}
    for arm in ARMS:
        sides = {m: found.against(place, arm, m) for m in measures}
        names = dict.fromkeys(layer for _, y in sides.values() for _, layer in y)
        for layer in ("all layers", *names):
            lines[f"{layer}, {WORDS[arm]}"] = [
                _tau(x if layer == "all layers" else _only(x, layer), y) for x, y in sides.values()
            ]
    values = np.array(list(lines.values()))
    if np.isfinite(values).any():
        yield Figure(
            f"correlations-{place}",
            f"{place}. Kendall's tau of what is measured of a layer (curvature: of the trained "
            "one) with the test accuracy after its replacement: over layers and seeds, and of each "
            f"layer over its {n_of(_by_layer(sides['alpha'][1]))}.",
            lambda: plots.matrix(values, list(lines), list(measures), label="tau", center=0.0),
            tuple(f"layer/{m}" for m in (*measures, "accuracy")),
        )


def _only(values: Values, layer: str) -> Values:
    return {unit: value for unit, value in values.items() if unit[1] == layer}


def _before(found: _Found) -> Iterator[Figure]:
    middle, ends = {}, {}
    for place, layer in found.drawn():
        name, arm = f"{place} {layer}", f"{place}-init"
        own = {p: _only(found.of(arm, "init/alpha", percent=p), layer) for p in (5, 50, 95)}
        middle[name] = {seed: value for (seed, _), value in own[50].items()}
        ends[name] = tuple(float(np.mean(list(own[p].values()))) for p in (5, 95))
    for number, start in enumerate(range(0, len(middle), MOST)):
        names = list(middle)[start : start + MOST]
        yield Figure(
            f"untrained-{number}",
            "Alpha of layers before any training, one of each shape: the median over the draws of "
            "a seed, and 5 to 95 per cent of the draws; weights are called well trained from 2 to "
            f"6; {n_of(middle)}.",
            lambda names=names: plots.points(
                {ALPHA: {n: middle[n] for n in names}},
                intervals={ALPHA: {n: ends[n] for n in names}},
                interval="5 to 95 % of draws",
                references={"well trained: from 2": 2.0, "to 6": 6.0},
                log=True,
            ),
            ("init/alpha_in_range",),
        )
