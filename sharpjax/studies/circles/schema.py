"""What a config of the circles study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import AT_LEAST_0, COUNT, COUNT_OR_0, FRACTION, POSITIVE, Config, Rule, blocks

_FACTOR = Rule(
    lambda v: isinstance(v, float) and FRACTION.holds(v) and v > 0, "a number in (0, 1), as 0.5"
)
_SHARE = Rule(
    lambda v: isinstance(v, float) and AT_LEAST_0.holds(v) and v <= 1, "a number in [0, 1], as 1.0"
)
_EVEN = Rule(lambda v: COUNT.holds(v) and v % 2 == 0, "an even number, as 100")
_EPOCHS = Rule(
    lambda v: isinstance(v, tuple) and all(map(COUNT_OR_0.holds, v)), "epochs, as (0, 10)"
)

FIELDS: Mapping[str, Rule] = {
    "data.num_train": _EVEN,
    "data.factor": _FACTOR,
    "data.label_noise": _SHARE,
    "data.noise_seed": COUNT_OR_0,
    "model.width": COUNT,
    "model.depth": COUNT,
    "optim.learning_rate": POSITIVE,
    "optim.momentum": FRACTION,
    **blocks.TRAIN,
    "evaluate.sharpness.epochs": _EPOCHS,
    "evaluate.sharpness.tol": POSITIVE,
    "evaluate.sharpness.max_products": COUNT,
    "evaluate.sharpness.average_rho": POSITIVE,
    "evaluate.sharpness.num_pairs": COUNT,
    "evaluate.sharpness.noise_rho": POSITIVE,
    "evaluate.sharpness.num_draws": COUNT,
    "evaluate.boundary.resolution": COUNT,
}


def _check_arm(arm: Config) -> None:
    if arm.train.batch_size > arm.data.num_train:
        raise UserError(
            f"config.train.batch_size={arm.train.batch_size} is larger than the data: "
            f"{arm.data.num_train} training examples."
        )


RULES = schema.Rules(FIELDS, _check_arm)
