"""Paper 1 as a study: six conditions, and random labels (OpenReview AiRU8ZxQii, H1.1 to H1.11).

Arms: `<data set>-<net>-<condition>`. The conditions are base, aug and wd, each alone and with SAM,
or `random_<per cent>`: so many of the labels are drawn anew. Arms of one seed share initial weights
and order, and augmentation if they augment. Arms `...-matched` are the same models after the first
epoch with a training loss of at most `evaluate.matched.nll`. If there is no such epoch, they are
those with the least loss.

All metrics are measured at the end. `<set>` is the first `evaluate.sharpness.num_examples` training
images:

    test/accuracy, ece, gap, ...        `train.calibration`
    test[:n]/corrupted_accuracy         `train.corruption`
    <set>/..., <set>/normalised/...     `train.sharpness`, without augmentation; for random labels
                                        `<set>/true/...`, with the true ones
    <set>/authors/...                   `studies.papers.authors`
    <set>/augmented/authors/..., <set>/resampled/authors/noise_sharpness
                                        for augmented arms: augmented once, and anew at each draw
    <set>/authors/gradient_share        sqrt(2 / (pi P)) |g|, over their noise sharpness
    fit/nll                             loss on the first `evaluate.matched.num_examples` training
                                        images with the labels used in training; after each epoch
    test/disagreement, test/mean_rank   between models of an arm, and between arms
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import data, schema, tree
from sharpjax.data import DataSpec, Splits, corruption
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.metrics import scores
from sharpjax.metrics.functional import disagreement
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.geometric_reappraisal import asks, shows
from sharpjax.studies.papers import authors, cells, paper1
from sharpjax.studies.papers.authors import AuthorsSharpness
from sharpjax.train import configured
from sharpjax.train.calibration import Calibration
from sharpjax.train.corruption import Corrupted
from sharpjax.train.evaluators import Outputs, logits_of
from sharpjax.train.landscape import Landscape
from sharpjax.train.measures import Found, MeanRank, Within, at_end
from sharpjax.train.plan import (
    Best,
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
from sharpjax.train.results import exact, results
from sharpjax.train.sharpness import Augmentation, Sharpness
from sharpjax.train.steps import Steps

END = When()


def plan(config: Config) -> Plan:
    """The trained nets, for each condition the arm at equal training loss, and for each net what
    compares its arms.

    Raises:
        UserError: a model cannot be built, or the authors' code cannot measure it; an unknown
            corruption, or one of colours for images that have none.
    """
    members = tuple(map(Member, config.seeds))
    specs: dict[str, DataSpec] = {}
    stages: list[Stage] = []
    places: dict[str, dict[str, int]] = {}
    for name, arm in schema.complete_arms(config).items():
        place, condition = name.rsplit("-", 1)
        key = f"{arm.data.name}, {arm.data.label_noise:g} of the labels drawn anew"
        key, spec = configured.images(arm, specs, name, key=key)
        step = configured.steps(arm, spec)
        is_random = condition.startswith("random_")
        if not is_random:
            _check(name, arm, step, spec)
        measured = tuple(_of_labels(arm) if is_random else _evaluators(arm, step, spec))
        followed = Best("fit/nll", "least", arm.evaluate.matched.nll or None)
        stages.append(
            Train(
                arm=name,
                members=members,
                data=key,
                step=step,
                epochs=arm.train.epochs,
                checkpoint_epochs=arm.train.checkpoint_epochs,
                evaluators=measured,
                best=None if is_random or not arm.evaluate.matched.nll else followed,
                population=arm.train.population,
            )
        )
        if is_random:
            continue
        size = tree.size(_shapes(step.model, spec.input_shape))
        places.setdefault(place, {})[name] = size
        if arm.evaluate.matched.nll:
            again = (_sharpness(arm),)
            stages.append(Derive(f"{name}-{asks.MATCHED}", name, as_is, again, at="best"))
    for place, sizes in places.items():
        stages.append(_compared(place, sizes, config))
    return Plan(specs, tuple(stages))


@functools.cache
def _shapes(model: Any, shape: tuple[int, ...]) -> Any:
    """The shapes of the parameters of a net."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def _check(name: str, arm: Config, step: Steps, spec: data.Images) -> None:
    """Refuse now, not after training, what cannot be measured."""
    where = f"arm '{name}': config"
    shapes = _shapes(step.model, spec.input_shape)
    authors.check(shapes, AuthorsSharpness.head, f"{where}.model.name={arm.model.name}")
    if "saturate" in arm.evaluate.test.kinds and not _in_colour(spec):
        raise UserError(
            f"{where}.evaluate.test.kinds={arm.evaluate.test.kinds}: the images of {spec.name} "
            "have no colours that 'saturate' could change; leave it out."
        )


def _in_colour(spec: data.Images) -> bool:
    return spec.input_shape[2] == 3


def _sharpness(arm: Config, **more: Any) -> Sharpness:
    return Sharpness(END, **arm.evaluate.sharpness.to_dict(), **more)


def _fit(arm: Config) -> "Fit":
    test, matched = arm.evaluate.test, arm.evaluate.matched
    return Fit(When(every_epochs=1), matched.num_examples, test.batch_size)


def _evaluators(arm: Config, step: Steps, spec: data.Images) -> Iterator[Evaluator]:
    test = arm.evaluate.test
    binned: Any = {"batch_size": test.batch_size, "num_bins": test.num_bins}
    every = (kind for kind in corruption.KINDS if kind != "saturate" or _in_colour(spec))
    kinds = test.kinds or tuple(every)
    yield _fit(arm)
    yield Calibration(END, scaled=False, gap_examples=spec.num_train, **binned)
    yield Outputs(END, num_examples=test.num_outputs, batch_size=test.batch_size)
    yield Corrupted(END, num_examples=test.num_corrupted, kinds=kinds, **binned)
    yield _sharpness(arm)
    yield _sharpness(arm, normalised=True)
    yield Landscape(END, **arm.evaluate.landscape.to_dict())
    theirs: dict[str, Any] = arm.evaluate.authors.to_dict() | {
        "num_examples": arm.evaluate.sharpness.num_examples,
        "statistic": "mean_absolute",
        "num_layers": 0,
        "num_batches": -(-spec.num_train // arm.train.batch_size),
    }
    yield AuthorsSharpness(END, **theirs)
    if arm.data.augment:
        augmentation = Augmentation(step.pad, step.flip, step.padding)
        yield AuthorsSharpness(END, augmentation=augmentation, **theirs)
        yield AuthorsSharpness(END, augmentation=augmentation, resampled=True, **theirs)


def _of_labels(arm: Config) -> Iterator[Evaluator]:
    test = arm.evaluate.test
    yield _fit(arm)
    yield Calibration(END, test.batch_size, test.num_bins, scaled=False)
    yield _sharpness(arm, true_labels=True)


def _compared(place: str, sizes: dict[str, int], config: Config) -> Compare:
    """Disagreement of the models of each arm, mean ranks of the conditions, and gradient shares."""
    arms = tuple(sizes)
    own = schema.complete_arms(config)[arms[0]].evaluate
    named = asks.names_of(own.sharpness.num_examples, own.test.num_corrupted)
    ranked: Any = tuple((named.get(m, m), paper1.BETTER[m]) for m in paper1.RANKED)
    where = f"train[:{own.sharpness.num_examples}]"
    return Compare(
        f"compared-{place}",
        arms,
        (
            Within(paper1.DISAGREEMENT.metric, disagreement, arms, by_pair=True),
            MeanRank("test/mean_rank", arms, ranked),
            GradientShare(where, tuple(sizes.items())),
        ),
    )


@dataclasses.dataclass(frozen=True)
class Fit:
    """The loss on the first training images, with the labels used in training: `fit/nll`."""

    when: When
    num_examples: int
    batch_size: int
    name: str = "fit"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ("fit/nll",)

    def cost(self, spec: DataSpec) -> Cost:
        return Cost(-(-self.num_examples // self.batch_size) * self.batch_size)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss, size = Classification(subject.model, subject.state.variables), self.num_examples
        logits = logits_of(loss, subject.state.params, data.train, size, batch_size=self.batch_size)
        label = jnp.asarray(data.train.label[:size])
        return carry, results({"fit/nll": scores.mean(scores.nll(jnp.asarray(logits), label))})


@dataclasses.dataclass(frozen=True)
class GradientShare:
    """The share of the authors' noise sharpness that the gradient g explains. To first order their
    number is `sqrt(2 / pi) |g| / sqrt(P)` with P parameters; `<where>/gradient_share` is this over
    their number.

    Attributes:
        where: the measurement set.
        sizes: arms, and their numbers of parameters.
    """

    where: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        return "gradient-share"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (f"{self.where}/authors/gradient_share",)

    def __call__(self, view: View) -> Found:
        for arm, size in self.sizes:
            lengths = at_end(view, arm, f"{self.where}/gradient_norm")
            noise = at_end(view, arm, f"{self.where}/authors/noise_sharpness")
            for (seed, of), value in noise.items():
                if (seed, of) in lengths and value:
                    share = np.sqrt(2 / (np.pi * size)) * lengths[seed, of] / value
                    yield arm, Member(seed, of), self.metrics[0], (), exact(share)


def hypotheses(config: Config) -> tuple:
    """The hypotheses of paper 1, and our own; see `asks`."""
    arms = schema.complete_arms(config)
    evaluate = next(iter(arms.values())).evaluate
    return asks.hypotheses(
        list(arms),
        examples=evaluate.sharpness.num_examples,
        corrupted=evaluate.test.num_corrupted,
        matched=evaluate.matched.nll > 0,
        differs=cells.differing(arms, arms),
    )


STUDY = Study(plan, hypotheses, tables=shows.tables, figures=shows.figures)
