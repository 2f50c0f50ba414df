"""Paper 2 as a study: what weights say of layers, and layers replaced (OpenReview J0iFy6BxlC).

Arms: `<data set>-<net>-<condition>`, ten seeds each:

    base        nets that are trained
    reinit      the same nets, with each layer in turn set back to its initial values
    rerandom    the same with fresh draws, `evaluate.replaced.trials` of each layer
    same        the same nets, with changes of the weights that leave the function as it is
    init        nets before training, `evaluate.untrained.draws` for each seed

All rows are taken at the end. They have `{"layer": name}`, for all layers with ten eigenvalues or
more; m is one of `paper2.DATA_FREE`:

    layer/m, num_params, depth      base: `train.layerwise.DataFree`
    layer/trace, lambda_1, sharpness    base: `train.layer_curvature`
    layer/..., trial/accuracy       reinit, rerandom: `train.layerwise.Replaced`
    robust/m/..., critical/m/...    reinit, rerandom: the layers that are so there, see `paper2`
    difference/m, accuracy          reinit: its value less that of rerandom
    same/...                        `preserved`
    init/...                        `untrained`
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from sharpjax import schema
from sharpjax.data import DataSpec
from sharpjax.layerwise.criticality import Initialiser
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.data_free import asks, shows
from sharpjax.studies.data_free.preserved import Preserved, sites_of
from sharpjax.studies.data_free.untrained import Untrained
from sharpjax.studies.papers import cells
from sharpjax.studies.papers.paper2 import CRITICAL_DROP, DATA_FREE
from sharpjax.train import configured
from sharpjax.train.evaluators import SplitMetrics
from sharpjax.train.layer_curvature import LayerCurvature
from sharpjax.train.layerwise import DataFree, Replaced, layers_with_spectra
from sharpjax.train.measures import Found
from sharpjax.train.plan import (
    Compare,
    Derive,
    Draw,
    Member,
    Plan,
    Stage,
    Train,
    View,
    When,
    as_is,
)
from sharpjax.train.results import Of, exact, of
from sharpjax.train.steps import Steps

END = When()
KINDS: Mapping[str, Literal["initial", "fresh"]] = {"reinit": "initial", "rerandom": "fresh"}


def plan(config: Config) -> Plan:
    """For each arm of the config: the trained nets, what is made of them, and what compares it.

    Raises:
        UserError: a model cannot be built.
    """
    specs: dict[str, DataSpec] = {}
    stages: list[Stage] = []
    for name, arm in schema.complete_arms(config).items():
        key, spec = configured.images(arm, specs, name)
        step = configured.steps(arm, spec)
        stages.append(
            Train(
                arm=name,
                members=tuple(map(Member, config.seeds)),
                data=key,
                step=step,
                epochs=arm.train.epochs,
                checkpoint_epochs=arm.train.checkpoint_epochs,
                evaluators=_of_trained(arm, step, spec),
                population=arm.train.population,
            )
        )
        stages += _made(name, arm, step, spec, tuple(config.seeds))
    return Plan(specs, tuple(stages))


def _of_trained(arm: Config, step: Steps, spec: Any) -> tuple[Any, ...]:
    layers = tuple(layers_with_spectra(step.model, spec.input_shape))
    test, curvature = arm.evaluate.test, arm.evaluate.curvature.to_dict()
    return (
        SplitMetrics(test.batch_size, test.num_bins, END),
        DataFree(END, layers, DATA_FREE),
        LayerCurvature(END, layers, **curvature),
    )


def _made(
    name: str, arm: Config, step: Steps, spec: Any, seeds: tuple[int, ...]
) -> list[Derive | Draw | Compare]:
    """The stages made from the models of an arm, and the stage that compares them."""
    place = "-".join(cells.place(name))
    shapes, asked = layers_with_spectra(step.model, spec.input_shape), arm.evaluate
    found: list[Derive | Draw | Compare] = []
    for condition, replacement in KINDS.items():
        replaced = Replaced(
            when=END,
            replacement=replacement,
            layers=tuple(shapes),
            columns=DATA_FREE,
            input_shape=spec.input_shape,
            num_examples=asked.replaced.num_examples,
            threshold=CRITICAL_DROP,
            trials=asked.replaced.trials if replacement == "fresh" else 1,
            batch_size=asked.test.batch_size,
        )
        found.append(Derive(f"{place}-{condition}", name, as_is, (replaced,)))
    sites = tuple(s for s in sites_of(step.model, spec.input_shape) if s.layer in shapes)
    preserved = Preserved(END, sites, DATA_FREE, asked.same.num_examples)
    found.append(Derive(f"{place}-same", name, as_is, (preserved,)))
    layers = tuple((n, shapes[n]) for n in of_each_shape(shapes))
    initialiser = Initialiser(step.model, spec.input_shape)
    fn = Untrained(initialiser, layers, asked.untrained.draws, f"{place}-init")
    said = f"{len(seeds) * asked.untrained.draws:,} draws of each of {len(layers)} shapes of layers"
    metrics = ("init/alpha_in_range", "init/alpha")
    found.append(Draw(f"{place}-init", seeds, fn, metrics, says=said))
    arms = (name, *(f"{place}-{condition}" for condition in KINDS))
    found.append(
        Compare(f"compared-{place}", arms, (Sorted(arms[1:], name), Difference(*arms[1:])))
    )
    return found


def of_each_shape(shapes: dict[str, tuple[int, int, int]]) -> tuple[str, ...]:
    """The first layer of each shape.

    >>> of_each_shape({"a": (1, 4, 2), "b": (1, 2, 2), "c": (1, 2, 2)})
    ('a', 'b')
    """
    first: dict[tuple[int, int, int], str] = {}
    for name, shape in shapes.items():
        first.setdefault(shape, name)
    return tuple(first.values())


@dataclasses.dataclass(frozen=True)
class Sorted:
    """The values of layers and their changes, sorted into rows of `robust/...` and `critical/...`
    by what each layer is in the arm.

    Attributes:
        arms: those in which layers are replaced.
        base: the arm of the trained nets.
    """

    arms: tuple[str, ...]
    base: str

    @property
    def name(self) -> str:
        return "sorted"

    @property
    def metrics(self) -> tuple[str, ...]:
        ends = ("value", "change", "absolute_change")
        return tuple(
            f"{word}/{metric}/{end}"
            for word in ("robust", "critical")
            for metric in DATA_FREE
            for end in ends
        )

    def __call__(self, view: View) -> Found:
        trained = _ends(view, self.base)
        for arm in self.arms:
            replaced = _ends(view, arm)
            words = {
                where: "critical" if value else "robust"
                for where, value in replaced.get("layer/critical", {}).items()
            }
            for metric in DATA_FREE:
                sources = {"value": trained.get(f"layer/{metric}", {})} | {
                    end: replaced.get(f"layer/{metric}/{end}", {})
                    for end in ("change", "absolute_change")
                }
                for end, values in sources.items():
                    for (seed, layer), word in words.items():
                        if (seed, layer) in values:
                            found = exact(values[seed, layer])
                            yield arm, Member(seed), f"{word}/{metric}/{end}", layer, found


@dataclasses.dataclass(frozen=True)
class Difference:
    """The value of a layer after re-initialisation less that after re-randomisation."""

    reinit: str
    rerandom: str

    @property
    def name(self) -> str:
        return "difference"

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"difference/{m}" for m in (*DATA_FREE, "accuracy"))

    def __call__(self, view: View) -> Found:
        first, second = (_ends(view, arm) for arm in (self.reinit, self.rerandom))
        for metric in (*DATA_FREE, "accuracy"):
            there = second.get(f"layer/{metric}", {})
            for (seed, layer), value in first.get(f"layer/{metric}", {}).items():
                if (seed, layer) in there:
                    less = exact(value - there[seed, layer])
                    yield self.reinit, Member(seed), f"difference/{metric}", layer, less


def _ends(view: View, arm: str) -> dict[str, dict[tuple[int, Of], float]]:
    """The values at the last step of an arm, by metric, seed and further coordinates.

    They are read once for all metrics; `at_end` reads them for one metric.
    """
    rows = view.rows(arm)
    last = max((row["step"] for row in rows), default=0)
    found: dict[str, dict[tuple[int, Of], float]] = {}
    for row in rows:
        if row["step"] == last and row["value"] is not None:
            own = found.setdefault(row["metric"], {})
            own[row["seed"], of(**row["of"])] = row["value"]
    return found


def hypotheses(config: Config) -> tuple:
    """The hypotheses of paper 2, and our own; see `asks`."""
    arms = schema.complete_arms(config)
    layers, sites = {}, {}
    for name, arm in arms.items():
        place = "-".join(cells.place(name))
        _, spec = configured.images(arm, {}, name)
        model = configured.steps(arm, spec).model
        layers[place] = of_each_shape(layers_with_spectra(model, spec.input_shape))
        sites[place] = sites_of(model, spec.input_shape)
    return asks.hypotheses(arms, layers, sites)


STUDY = Study(plan, hypotheses, tables=shows.tables, figures=shows.figures)
