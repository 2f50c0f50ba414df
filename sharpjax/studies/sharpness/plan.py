"""What SAM finds, and how sharp it is: train each arm, and measure on the way.

Accuracy, calibration, curvature and sharpness; arms of one seed share start, order and
augmentation.
"""

import jax
import jax.numpy as jnp

from sharpjax import catalog, data, nn, optim, schema, tree
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.sharpness import asks, shows
from sharpjax.train.curvature import Curvature
from sharpjax.train.evaluators import SplitMetrics
from sharpjax.train.plan import Evaluator, Member, Plan, Train, When
from sharpjax.train.steps import Steps


def plan(config: Config) -> Plan:
    """An arm for each of the config's, and the data that they name.

    Raises:
        UserError: a glob of parameters matches none; a model cannot be built.
    """
    members = tuple(map(Member, config.seeds))
    specs: dict[str, data.Images] = {}
    stages = []
    for name, arm in schema.complete_arms(config).items():
        spec = data.Images(**{n: x for n, x in arm.data.to_dict().items() if n != "augment"})
        # Arms of the same data share them; those of other data of the same set have their own.
        key = spec.name if specs.setdefault(spec.name, spec) == spec else f"{spec.name} of {name}"
        specs.setdefault(key, spec)
        stages.append(_arm(name, arm, key, spec, members))
    return Plan(specs, tuple(stages))


def _arm(name: str, arm: Config, key: str, spec: data.Images, members: tuple[Member, ...]) -> Train:
    known = catalog.DATA_SETS[spec.name]
    model = nn.from_config(arm.model, num_classes=spec.num_classes)
    epochs = arm.train.epochs * arm.train.epoch_factor
    steps_per_epoch = spec.num_train // arm.train.batch_size
    optimizer = optim.from_config(
        arm.optim,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs * steps_per_epoch,
        batch_size=arm.train.batch_size,
    )
    step = Steps(
        model,
        optimizer,
        arm.train.batch_size,
        label_smoothing=arm.train.label_smoothing,
        pad=known.pad if arm.data.augment else 0,
        flip=known.flip and arm.data.augment,
        padding=spec.padding,
    )
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
    """The test set; the first measurement set at its period; the further disjoint ones at the
    end."""
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
