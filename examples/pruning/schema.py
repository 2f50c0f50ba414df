"""What a config of the study must hold; nothing heavy is imported here."""

from sharpjax import schema
from sharpjax.schema import blocks

PERCENT = schema.Rule(
    lambda v: isinstance(v, tuple) and all(schema.COUNT.holds(x) and x < 100 for x in v),
    "percentages, as (50, 90)",
)


def _check_arm(arm: schema.Config) -> None:
    blocks.check_optim(arm, blocks.check_images(arm), arm.train.epochs)


FIELDS = {**blocks.IMAGES, **blocks.MODEL, **blocks.OPTIM, **blocks.TRAIN, "prune.percent": PERCENT}
RULES = schema.Rules(FIELDS, _check_arm)
