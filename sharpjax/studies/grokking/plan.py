"""Paper 3 as a study: decomposed learning against grokking (OpenReview LVuzwpMovE, H3.1 to H3.7).

Each arm is a task, a model and a share of the pairs to train on. Every seed draws its own split,
initial weights and order of examples. Arms of one task and fraction share the split of a seed, and
decomposed models start as the decomposition of the dense model of the same seed. A seed is trained
until its first test accuracy of 100 per cent, or to the end of the budget.

The `step` of a row is an epoch. At the last epoch of the budget, for every seed, whenever it
stopped:

    grok/*                            as `papers.paper3` says
    grok/epochs                       epochs that the seed was trained for: the time of the event
                                      that `grok/reached_full_test_accuracy` marks as seen or not
    model/num_params, train/alive
    train/accuracy, train/loss        of the seed's last epoch, over the batches as they came
    test/accuracy, test/loss          after it
    the measures of `train.curvature` and `train.weights`, of the last state
    logits/scale                      if a config asks for it: see `LogitScale`

At a few earlier epochs the same metrics, without `grok/`, `model/` and `train/alive`, for the seeds
that are still learning.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import catalog, data, schema, tree
from sharpjax.data import modular
from sharpjax.nn.svd import Decomposition
from sharpjax.optim import OptimizerSpec
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.grokking import asks, shows
from sharpjax.studies.papers import paper3
from sharpjax.train.curvature import Curvature
from sharpjax.train.epochs import Epochs
from sharpjax.train.plan import Member, Plan, Subject, Train, When
from sharpjax.train.results import exact, results
from sharpjax.train.weights import WeightMeasures


def plan(config: Config) -> Plan:
    """The data of each task and fraction, and an arm for each arm of the config.

    In each cell the dense model comes first, then the ranks in turn.

    Raises:
        UserError: a rank fraction leaves nothing of a matrix; a glob matches none.
    """
    members = tuple(map(Member, config.seeds))
    specs, stages = {}, []
    arms = schema.complete_arms(config)
    for name in sorted(arms, key=_place):
        arm = arms[name]
        spec = data.Modular(**arm.data.to_dict())
        key = f"{spec.operation} mod {spec.modulus}, {spec.train_fraction}"
        specs[key] = spec
        stages.append(_arm(name, arm, key, spec, members))
    return Plan(specs, tuple(stages))


def _place(name: str) -> tuple[str, str, int]:
    task, model, fraction = name.split("-")
    known = (paper3.DENSE, *paper3.MODELS)
    return task, fraction, known.index(model) if model in known else len(known)


def _arm(
    name: str, arm: Config, key: str, spec: data.Modular, members: tuple[Member, ...]
) -> Train:
    ranks = arm.model.rank_fraction
    decompose = Decomposition(ranks, arm.model.layers) if ranks else None
    more = {"width": arm.model.width} if arm.model.width else {}
    more |= {"temperature": arm.model.temperature} if arm.model.temperature != 1 else {}
    make = catalog.resolve(catalog.TOKEN_MODELS[arm.model.name])
    model = make(num_classes=spec.num_classes, decompose=decompose, **more)
    optimizer = OptimizerSpec(
        "adamw",
        learning_rate=arm.optim.learning_rate,
        momentum=arm.optim.b1,
        b2=arm.optim.b2,
        weight_decay=arm.optim.weight_decay,
    )
    step = Epochs(model, optimizer, arm.train.batch_size, arm.train.loss_dtype)
    # A rank of 0 is refused now, not hours later.
    tokens = jax.ShapeDtypeStruct((1, *spec.input_shape), spec.input_dtype)
    jax.eval_shape(step.init, tokens, jax.random.key(0))
    measures: dict[str, Any] = arm.evaluate.trajectory.to_dict()
    when = When(per_decade=measures.pop("per_decade"))
    numbers = not modular.OPERATIONS[arm.data.operation].size  # permutations have no frequencies
    frequencies, scale = measures.pop("num_frequencies"), measures.pop("logit_scale")
    measures["in_factors"] = measures["in_factors"] and decompose is not None
    return Train(
        arm=name,
        members=members,
        data=key,
        step=step,
        epochs=arm.train.epochs,
        checkpoint_epochs=arm.train.checkpoint_epochs,
        rows=when,
        evaluators=(
            Curvature(when, continues=True, stream="trajectory", **measures),
            WeightMeasures(when, spec.modulus if numbers else 0, frequencies),
            Outcome(),
            *([LogitScale(when)] if scale else []),
        ),
        population=arm.train.population,
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a seed, under the names that the hypotheses use (`studies.papers.paper3`)."""

    when: When = When()
    name: str = "outcome"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = (
        *("grok/epoch_of_best_test_accuracy", "grok/reached_full_test_accuracy"),
        *("grok/best_test_accuracy", "grok/epoch_of_full_train_accuracy", "grok/delay"),
        *("grok/epochs", "model/num_params"),
    )

    def init(self, subject: Subject, data: Any) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Any, key: jax.Array):
        tally = subject.state.tally
        fitted = int(tally.fitted_epoch) or math.nan
        generalised = int(tally.best_epoch)
        values = {
            "grok/epoch_of_best_test_accuracy": generalised,
            "grok/reached_full_test_accuracy": tally.best == 1,
            "grok/best_test_accuracy": tally.best,
            "grok/epoch_of_full_train_accuracy": fitted,
            "grok/delay": generalised - fitted if tally.best == 1 else math.nan,
            "grok/epochs": tally.epoch,
            "model/num_params": tree.size(subject.state.params),
        }
        return carry, results({name: exact(value) for name, value in values.items()})


@dataclasses.dataclass(frozen=True)
class LogitScale:
    """s = sqrt(mean of (z - mean_k z)^2), over all pairs, of training and test, and all classes k.

    z are the logits as the loss sees them, divided by the model's temperature (the effective logit
    scale of arXiv 2606.18465). The mean over classes is subtracted because a softmax ignores it.
    """

    when: When
    name: str = "logits"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ("logits/scale",)

    def init(self, subject: Subject, data: Any) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Any, key: jax.Array):
        tokens = jnp.concatenate([data.train.input, data.test.input])
        scale = logit_scale(subject.model, subject.state.params, tokens)
        return carry, results({"logits/scale": exact(scale)})


@functools.partial(jax.jit, static_argnums=0)
def logit_scale(model: Any, params: Any, tokens: jax.Array) -> jax.Array:
    """The scale of `LogitScale` for tokens [N, L]."""
    return jnp.sqrt(jnp.mean(jnp.var(model.apply({"params": params}, tokens), axis=1)))


def hypotheses(config: Config) -> tuple:
    """The hypotheses of paper 3, each with what the arms lack, and those on survival, curvature and
    logit scale."""
    budgets = {name: arm.train.epochs for name, arm in schema.complete_arms(config).items()}
    return asks.asked_of(budgets, f"train[:{config.evaluate.trajectory.num_examples}]")


STUDY = Study(plan, hypotheses, tables=shows.tables, figures=shows.figures)
