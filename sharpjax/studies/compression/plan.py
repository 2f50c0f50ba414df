"""Paper 7 as a study: what compression does to a model's function (OpenReview Q7GXKjmCSB).

Arms: `<data set>-<net>-<condition>`. In each place the models of `base` are trained first. Students
(`kd_*`) start from the same weights; `independent` are other models. The arms that are made from an
arm without training are named after it, except that `base` is left out of the name:

    init, or sam_init                   the models before training
    pruned_<per cent>, sam_pruned_...   the smallest weights of all kernels set to 0
    everything_<per cent>               the smallest of all numbers, BatchNorm statistics included
    int<bits>, float16                  kernels in so many bits; all parameters in a shorter type
    tflite_int<bits>                    only kernels of 1,024 numbers or more, as TFLite does
    layers_int<bits>                    one model per layer, with only this layer in so many bits

All metrics are measured at the end:

    test/accuracy, ece, nll                 on the whole test set
    base/<d>, init/activation_distance      distances to the base model of the seed and to its
                                            start, on the first `evaluate.test.num_outputs` test
                                            images; the mean if a seed has several models
    size/parameters, bytes, flops           what a model takes: `compressing.Size`
    test/accuracy_change                    in per cent of the base model's, as in the paper
    test/nll_rise                           for derived arms: over the arm that they are made from
    train[:n]/...                           `train.sharpness`, for arms that are compressed and for
                                            the arms made from them
    source/noise_sharpness                  for derived arms: that of the arm they are made from
    layer/noise_sharpness                   for arms that are compressed: only the kernel of one
                                            layer is moved
    layer/sharpness, layer/nll_rise         for `layers_*`: that number, and the rise
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sharpjax import data, geometry, perturbation, schema, tree
from sharpjax.compress.scope import in_scope
from sharpjax.data import DataSpec, Splits
from sharpjax.losses import Classification
from sharpjax.metrics import functional
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.compression import asks, shows
from sharpjax.studies.compression.schema import BASE
from sharpjax.studies.papers import cells
from sharpjax.train import configured
from sharpjax.train.compressing import Cast, Form, Quantise, Size
from sharpjax.train.evaluators import Outputs, SplitMetrics
from sharpjax.train.measures import Found, ToReference, at_end
from sharpjax.train.plan import (
    Compare,
    Cost,
    Derive,
    Evaluator,
    Member,
    Plan,
    Stage,
    Subject,
    Train,
    View,
    When,
    as_is,
)
from sharpjax.train.pruning import Prune
from sharpjax.train.results import Results, exact, of
from sharpjax.train.sharpness import Sharpness, as_measured
from sharpjax.train.steps import Steps

END = When()
TFLITE = 1024  # numbers; TFLite leaves smaller arrays in floating point
DISTANCES: Mapping[str, Any] = {
    "disagreement": functional.disagreement,
    "activation_distance": functional.activation_distance,
    "cosine_distance": functional.cosine_distance,
    "jsd": functional.jensen_shannon,
    "l1": functional.l1,
}


def plan(config: Config) -> Plan:
    """The arms of the config, those made from them, and for each net what compares them.

    Raises:
        UserError: a model cannot be built.
    """
    specs: dict[str, data.DataSpec] = {}
    stages: list[Stage] = []
    made: dict[str, dict[str, str]] = {}  # for each place, arms and what they are made from
    for name, arm in schema.complete_arms(config).items():
        place = "-".join(cells.place(name))
        key, spec = configured.images(arm, specs, name)
        step = configured.steps(arm, spec)
        measured = _evaluators(arm)
        derived = _derived(name, arm, step, spec, (*measured, _sharpness(arm)))
        layers = _layers(step, spec) if derived else ()
        own = (*measured, Size(END), *(_of_compressed(arm, layers) if derived else ()))
        stages.append(
            Train(
                arm=name,
                members=_members(config, arm, f"{place}-{BASE}"),
                data=key,
                step=step,
                epochs=arm.train.epochs,
                checkpoint_epochs=arm.train.checkpoint_epochs,
                evaluators=own,
                population=arm.train.population,
            )
        )
        stages += derived
        sources = made.setdefault(place, {})
        sources |= {name: ""} | {stage.arm: name for stage in derived}
    for place, sources in made.items():
        if f"{place}-{BASE}" in sources:
            stages.append(_compared(place, sources, config))
    return Plan(specs, tuple(stages))


def _members(config: Config, arm: Config, base: str) -> tuple[Member, ...]:
    """One model per seed, or several copies, each with its own start and order of data."""
    one = (configured.member(seed, arm, base) for seed in config.seeds)
    copies = arm.train.copies
    if copies == 1:
        return tuple(one)
    return tuple(
        own._replace(
            of=of(copy=copy),
            streams=tuple(
                (role, (seed, f"{stream}/copy-{copy}")) for role, (seed, stream) in own.streams
            ),
        )
        for own in one
        for copy in range(1, copies + 1)
    )


def _evaluators(arm: Config) -> tuple[Evaluator, ...]:
    test = arm.evaluate.test
    return (
        SplitMetrics(test.batch_size, test.num_bins, END),
        Outputs(END, num_examples=test.num_outputs, batch_size=test.batch_size),
    )


def _sharpness(arm: Config) -> Sharpness:
    asked = arm.evaluate.sharpness
    return Sharpness(
        END, asked.num_examples, noise_rho=asked.noise_rho, noise_pairs=asked.noise_pairs,
        sam_rho=0.0, head="",
    )  # fmt: skip


def _of_compressed(arm: Config, layers: tuple[str, ...]) -> tuple[Evaluator, ...]:
    """The evaluators of an arm before it is compressed."""
    own, rho = _sharpness(arm), arm.evaluate.sharpness.layer_rho
    if not arm.compress.by_layer:
        return (own,)
    return own, LayerNoise(END, layers, own.num_examples, rho, own.noise_pairs)


def _derived(
    name: str, arm: Config, step: Steps, spec: data.Images, measured: tuple[Evaluator, ...]
) -> list[Derive]:
    """The arms that are made from one arm."""
    asked, place = arm.compress, "-".join(cells.place(name))
    condition = name.removeprefix(f"{place}-")
    prefix = f"{place}-" if condition == BASE else f"{name}_"
    every: dict[str, Form] = {
        **{f"pruned_{p}": Prune((p,), named=False) for p in asked.pruned},
        **{f"everything_{p}": Prune((p,), scope="variables", named=False)
           for p in asked.everything},
        **{f"int{b}": Quantise(b) for b in asked.bits},
        **{f"tflite_int{b}": Quantise(b, min_numbers=TFLITE) for b in asked.tflite},
        **{t: Cast(t) for t in asked.types},
    }  # fmt: skip
    found = [
        Derive(f"{prefix}{end}", name, form, (*measured, Size(END, form)))
        for end, form in every.items()
    ]
    for bits in asked.by_layer:
        one = Quantise(bits, _layers(step, spec))
        arm_name = f"{prefix}layers_int{bits}"
        found.append(Derive(arm_name, name, one, measured[:1], outputs=one.outputs))
    if found:
        found.insert(0, Derive(f"{prefix}init", name, as_is, measured, at="start"))
    return found


def _layers(step: Steps, spec: data.Images) -> tuple[str, ...]:
    image = jnp.zeros((1, *spec.input_shape))
    shapes = jax.eval_shape(lambda: step.init(image, jax.random.key(0)).params)
    chosen = in_scope("compression", shapes, "kernels")
    return tuple(n for n, own in zip(tree.path_names(shapes), chosen, strict=True) if own)


def _compared(place: str, sources: Mapping[str, str], config: Config) -> Compare:
    """Distances to the base and to its start, changes of accuracy, and rises of the loss."""
    base, sharp = f"{place}-{BASE}", config.evaluate.sharpness
    outputs = tuple(arm for arm in sources if "layers_int" not in arm)
    others = tuple(arm for arm in outputs if arm != base)
    measures: list[Any] = [
        ToReference(f"base/{name}", distance, others, reference=base, by_seed=True)
        for name, distance in DISTANCES.items()
    ]
    if (start := f"{place}-init") in sources:
        distance = DISTANCES["activation_distance"]
        away = tuple(arm for arm in outputs if arm != start)
        measures.append(
            ToReference("init/activation_distance", distance, away, reference=start, by_seed=True)
        )
    measures.append(Change(others, base))
    derived = tuple((a, s) for a, s in sources.items() if s and not a.endswith("init"))
    if derived:
        where = f"train[:{sharp.num_examples}]/noise_sharpness"
        measures.append(Rise(derived, where))
    return Compare(f"compared-{place}", tuple(sources), tuple(measures))


@dataclasses.dataclass(frozen=True)
class LayerNoise:
    """For each layer, the mean rise of the loss if only its kernel is moved to random points of a
    sphere of radius `rho`. On the first training images, in eval mode.

    Cost: two forward passes of the set per pair and layer.
    """

    when: When
    layers: tuple[str, ...]
    num_examples: int
    rho: float
    pairs: int
    kind: str = "geometry"

    counted: ClassVar[str] = "train"

    @property
    def name(self) -> str:
        return "layer-noise"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (asks.OF_LAYER,)

    def cost(self, spec: DataSpec) -> Cost:
        return Cost(2 * self.pairs * self.num_examples * len(self.layers))

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        return carry, self._measured(subject, data.train, key)

    def _measured(self, subject: Subject, train: data.Examples, key: jax.Array) -> Results:
        loss = Classification(as_measured(subject.model), subject.state.variables)
        batch = data.batch(train, jnp.arange(self.num_examples))
        found = {}
        for number, layer in enumerate(self.layers):
            one = geometry.average_sharpness(
                loss, subject.state.params, batch, key=jax.random.fold_in(key, number),
                rho=self.rho, noise="sphere", scaling=perturbation.only(layer),
                max_pairs=self.pairs,
            )  # fmt: skip
            found[asks.OF_LAYER, of(layer=layer)] = one.estimates()["average_sharpness"]
        return Results(found)


@dataclasses.dataclass(frozen=True)
class Change:
    """How much more accurate a model is than the base model of its seed, in per cent of the base's
    accuracy. If a seed has several base models, it is that with the same coordinates."""

    arms: tuple[str, ...]
    base: str

    @property
    def name(self) -> str:
        return "accuracy-change"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("test/accuracy_change",)

    def __call__(self, view: View) -> Found:
        base = at_end(view, self.base, "test/accuracy")
        for arm in self.arms:
            for (seed, own), value in at_end(view, arm, "test/accuracy").items():
                if known := base.get((seed, own), base.get((seed, ()))):
                    change = exact(100 * (value - known) / known)
                    yield arm, Member(seed, own), self.metrics[0], (), change


@dataclasses.dataclass(frozen=True)
class Rise:
    """For models made from others: the rise of the test loss, and the sharpness of the source, both
    for whole models and for layers.

    Attributes:
        sources: arms, and the arm that each is made from.
        sharpness: the metric of whole models.
    """

    sources: tuple[tuple[str, str], ...]
    sharpness: str

    @property
    def name(self) -> str:
        return "rise"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("test/nll_rise", "source/noise_sharpness", "layer/nll_rise", "layer/sharpness")

    def __call__(self, view: View) -> Found:
        for arm, source in self.sources:
            before = at_end(view, source, "test/nll")
            sharp = at_end(view, source, self.sharpness)
            by_layer = at_end(view, source, asks.OF_LAYER)
            for (seed, own), value in at_end(view, arm, "test/nll").items():
                # The model that it is made from has the same coordinates, but no layer.
                model = seed, tuple((name, x) for name, x in own if name != "layer")
                if model not in before:
                    continue
                member, rise = Member(seed, own), value - before[model]
                if model == (seed, own):
                    yield arm, member, "test/nll_rise", (), exact(rise)
                    if model in sharp:
                        yield arm, member, "source/noise_sharpness", (), exact(sharp[model])
                elif (seed, own) in by_layer:
                    yield arm, member, "layer/nll_rise", (), exact(rise)
                    yield arm, member, "layer/sharpness", (), exact(by_layer[seed, own])


def hypotheses(config: Config) -> tuple:
    """The hypotheses of paper 7, and our own; see `asks`."""
    made = [stage for stage in plan(config).stages if isinstance(stage, Train | Derive)]
    return asks.hypotheses(config, [stage.arm for stage in made])


STUDY = Study(plan, hypotheses, tables=shows.tables, figures=shows.figures)
