"""What a config of the compression study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import COUNT, COUNT_OR_0, POSITIVE, Config, Rule, blocks

BASE = "base"  # the condition that the other arms of its place are compared with


def _is_percent(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 100


_PERCENT = Rule(
    lambda v: isinstance(v, tuple) and all(map(_is_percent, v)), "whole numbers from 0 to 99"
)
_BITS = Rule(
    lambda v: isinstance(v, tuple) and all(isinstance(b, int) and 2 <= b <= 8 for b in v),
    "whole numbers from 2 to 8",
)
_TYPES = Rule(
    lambda v: isinstance(v, tuple) and all(map(schema.one_of("float16", "bfloat16").holds, v)),
    "of 'float16' and 'bfloat16'",
)

FIELDS: Mapping[str, Rule] = {
    **blocks.IMAGES,
    **blocks.MODEL,
    **blocks.OPTIM,
    **blocks.TRAIN,
    **blocks.DISTILL,
    "train.copies": COUNT,
    "compress.pruned": _PERCENT,
    "compress.everything": _PERCENT,
    "compress.bits": _BITS,
    "compress.tflite": _BITS,
    "compress.types": _TYPES,
    "compress.by_layer": _BITS,
    "evaluate.test.batch_size": COUNT,
    "evaluate.test.num_bins": COUNT,
    "evaluate.test.num_outputs": COUNT_OR_0,
    "evaluate.sharpness.num_examples": COUNT,
    "evaluate.sharpness.noise_rho": POSITIVE,
    "evaluate.sharpness.noise_pairs": COUNT,
    "evaluate.sharpness.layer_rho": POSITIVE,
}


def _check_arm(arm: Config) -> None:
    num_train = blocks.check_images(arm)
    blocks.check_optim(arm, num_train, arm.train.epochs)
    measured = arm.evaluate.sharpness.num_examples
    if measured > num_train:
        raise UserError(
            f"config.evaluate.sharpness.num_examples={measured}: there are {num_train:,} training "
            f"examples."
        )


def _check_name(name: str, arm: Config) -> None:
    blocks.check_place(
        name,
        arm,
        "hypotheses go by an arm's name",
        form="<data set>-<net>-<condition>",
        example=f"cifar10-lenet-kd_50. Those of <data set>-<net>-{BASE} are compressed",
    )


RULES = schema.Rules(FIELDS, _check_arm, _check_name, shared=("evaluate",))
