"""What SAM finds, and how sharp it is: train each arm, and measure it during training.

Measured are accuracy, calibration, curvature and sharpness. Arms of one seed share start, order and
augmentation.
"""

import jax
import jax.numpy as jnp

from sharpjax import data, schema, tree
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.sharpness import asks, shows
from sharpjax.train import configured
from sharpjax.train.curvature import Curvature
from sharpjax.train.evaluators import SplitMetrics
from sharpjax.train.plan import Evaluator, Member, Plan, Train, When
from sharpjax.train.steps import Steps


def plan(config: Config) -> Plan:
    """An arm for each arm of the config, and the data that they name.

    Raises:
        UserError: a glob of parameters matches none; a model cannot be built.
    """
    members = tuple(map(Member, config.seeds))
    specs: dict[str, data.DataSpec] = {}
    stages = []
    for name, arm in schema.complete_arms(config).items():
        key, spec = configured.images(arm, specs, name)
        stages.append(_arm(name, arm, key, spec, members))
    return Plan(specs, tuple(stages))


def _arm(name: str, arm: Config, key: str, spec: data.Images, members: tuple[Member, ...]) -> Train:
    epochs = arm.train.epochs * arm.train.epoch_factor
    step = configured.steps(arm, spec, epochs=epochs)
    return Train(
        arm=name,
        members=members,
        data=key,
        step=step,
        epochs=epochs,
        checkpoint_epochs=arm.train.checkpoint_epochs,
        evaluators=_evaluators(arm, step, spec),
        population=arm.train.population,
    )


def _evaluators(arm: Config, step: Steps, spec: data.Images) -> tuple[Evaluator, ...]:
    """The test set and the first measurement set, each at its own period; further disjoint sets
    only at the end."""
    image = jnp.zeros((1, *spec.input_shape))
    shapes = jax.eval_shape(lambda: step.init(image, jax.random.key(0)).params)
    tree.select(shapes, arm.evaluate.geometry.where)  # refused now, not after training
    test, curvature = arm.evaluate.test.to_dict(), arm.evaluate.geometry.to_dict()
    num_sets, period = curvature.pop("num_sets"), curvature.pop("every_epochs")
    every = When(every_epochs=test.pop("every_epochs"))
    sets = tuple(
        Curvature(
            When(every_epochs=0 if i else period),
            first=i * curvature["num_examples"],
            **curvature,
        )
        for i in range(num_sets)
    )
    return SplitMetrics(**test, when=every), *sets


STUDY = Study(plan=plan, hypotheses=asks.hypotheses, figures=shows.figures)
