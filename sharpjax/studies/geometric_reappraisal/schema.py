"""What a config of the geometric reappraisal must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import AT_LEAST_0, COUNT, POSITIVE, Config, Rule, blocks

_KINDS = Rule(
    lambda v: isinstance(v, tuple) and all(isinstance(kind, str) for kind in v),
    "names of corruptions, as ('fog', 'frost'), or () for all",
)

FIELDS: Mapping[str, Rule] = {
    **blocks.IMAGES,
    **blocks.MODEL,
    **blocks.OPTIM,
    **blocks.TRAIN,
    "evaluate.test.batch_size": COUNT,
    "evaluate.test.num_bins": COUNT,
    "evaluate.test.num_outputs": COUNT,
    "evaluate.test.num_corrupted": COUNT,
    "evaluate.test.kinds": _KINDS,
    "evaluate.sharpness.num_examples": COUNT,
    "evaluate.sharpness.microbatch_size": COUNT,
    "evaluate.sharpness.noise_rho": POSITIVE,
    "evaluate.sharpness.noise_pairs": COUNT,
    "evaluate.sharpness.sam_rho": POSITIVE,
    "evaluate.authors.rho": POSITIVE,
    "evaluate.authors.num_draws": COUNT,
    "evaluate.landscape.num_points": COUNT,
    "evaluate.landscape.num_examples": COUNT,
    "evaluate.matched.nll": AT_LEAST_0,
    "evaluate.matched.num_examples": COUNT,
}


def _check_arm(arm: Config) -> None:
    num_train = blocks.check_images(arm)
    blocks.check_optim(arm, num_train, arm.train.epochs)
    measured = arm.evaluate.sharpness.num_examples
    for block in ("sharpness", "landscape", "matched"):
        asked = arm.evaluate[block].num_examples
        if asked > num_train:
            raise UserError(
                f"config.evaluate.{block}.num_examples={asked}: there are {num_train:,} training "
                f"examples."
            )
    if measured % min(size := arm.evaluate.sharpness.microbatch_size, measured):
        raise UserError(
            f"config.evaluate.sharpness.microbatch_size={size} does not divide "
            f"num_examples={measured}."
        )


def _check_name(name: str, arm: Config) -> None:
    blocks.check_place(
        name,
        arm,
        "figures and hypotheses go by an arm's name",
        form="<data set>-<net>-<condition>",
        example="cifar10-resnet18-aug_sam",
        nets={"vit": "vit_small"},
    )


RULES = schema.Rules(FIELDS, _check_arm, _check_name)
