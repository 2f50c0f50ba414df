"""The single-objective regression study of paper 1's journal version (arXiv 2510.12451).

One net per surface, measured at steps that are powers of ten. Arms are named `<surface>-mlp`. All
starts of all surfaces see the same points, and a seed has the same initial weights on every
surface. Each step uses all points. `measures` explains the rows.
"""

from sharpjax import data, schema
from sharpjax.nn.mlp import MLP
from sharpjax.optim import OptimizerSpec
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.surfaces import asks, shows
from sharpjax.studies.surfaces.measures import Definitions, Errors, Noise
from sharpjax.train.full_batch import FullBatch
from sharpjax.train.plan import Member, Plan, Train, When

MEASURED = When(per_decade=1)


def plan(config: Config) -> Plan:
    """The data of each surface, and an arm for each arm of the config.

    Raises:
        UserError: an unknown surface; a number that its data refuse.
    """
    members = tuple(map(Member, config.seeds))
    specs, stages = {}, []
    for name, arm in schema.complete_arms(config).items():
        spec = data.Surface(**arm.data.to_dict())
        key = spec.name if specs.setdefault(spec.name, spec) == spec else f"{spec.name} of {name}"
        specs.setdefault(key, spec)
        stages.append(_arm(name, arm, key, spec, members))
    return Plan(specs, tuple(stages))


def _arm(name: str, arm: Config, key: str, spec: data.Surface, members: tuple[Member, ...]):
    optimizer = OptimizerSpec(
        "adam",
        learning_rate=arm.optim.learning_rate,
        momentum=0.9,
        b2=0.999,
        weight_decay=arm.optim.weight_decay,
    )
    measures = arm.evaluate.to_dict()
    num_draws = measures.pop("num_draws")
    return Train(
        arm=name,
        members=members,
        data=key,
        step=FullBatch(MLP(1, arm.model.width, arm.model.depth), optimizer, spec.num_train),
        epochs=arm.train.steps,
        checkpoint_epochs=arm.train.checkpoint_steps,
        rows=When(),
        evaluators=(
            Errors(MEASURED),
            Noise(MEASURED, num_draws),
            Definitions(MEASURED, **measures),
        ),
        population=arm.train.population,
    )


STUDY = Study(plan=plan, hypotheses=asks.hypotheses, tables=shows.tables, figures=shows.figures)
