"""What a config of the surfaces study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.schema import AT_LEAST_0, COUNT, POSITIVE, TEXT, Config, Rule, blocks, one_of

_DRAWS = Rule(lambda v: COUNT.holds(v) and v >= 2, "an integer of 2 or more")

FIELDS: Mapping[str, Rule] = {
    "data.name": TEXT,
    "data.num_train": COUNT,
    "data.num_test": COUNT,
    "data.bound": POSITIVE,
    "data.seed": schema.COUNT_OR_0,
    "model.width": COUNT,
    "model.depth": COUNT,
    "optim.learning_rate": POSITIVE,
    "optim.weight_decay": AT_LEAST_0,
    "train.steps": COUNT,
    "train.checkpoint_steps": COUNT,
    "train.population": one_of("auto", "vmap", "loop"),
    "evaluate.num_draws": _DRAWS,
    "evaluate.num_pairs": COUNT,
    "evaluate.tol": POSITIVE,
    "evaluate.max_products": COUNT,
    "evaluate.trace_error": POSITIVE,
    "evaluate.max_probes": blocks.PROBES,
    "evaluate.ascent_steps": COUNT,
}


def _check_arm(arm: Config) -> None:
    """Nothing is checked across fields here. The data check their numbers when the plan is made."""


RULES = schema.Rules(FIELDS, _check_arm)
