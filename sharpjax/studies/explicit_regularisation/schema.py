"""What a config of the study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import AT_LEAST_0, COUNT, COUNT_OR_0, POSITIVE, Config, Rule, blocks

FIELDS: Mapping[str, Rule] = {
    **blocks.IMAGES,
    **blocks.MODEL,
    **blocks.OPTIM,
    **blocks.TRAIN,
    "evaluate.calibration.batch_size": COUNT,
    "evaluate.calibration.num_bins": COUNT,
    "evaluate.calibration.num_examples": COUNT_OR_0,
    "evaluate.sharpness.num_examples": COUNT,
    "evaluate.sharpness.microbatch_size": COUNT_OR_0,
    "evaluate.sharpness.noise_rho": POSITIVE,
    "evaluate.sharpness.noise_pairs": COUNT,
    "evaluate.sharpness.normalised_pairs": COUNT,
    "evaluate.sharpness.sam_rho": AT_LEAST_0,
    "evaluate.sharpness.information_examples": COUNT,
    "evaluate.landscape.num_points": COUNT,
    "evaluate.landscape.num_examples": COUNT,
    "evaluate.authors.rho": POSITIVE,
    "evaluate.authors.num_draws": COUNT,
}


def _check_arm(arm: Config) -> None:
    if not arm.data.num_validation:
        raise UserError(
            "config.data.num_validation=0: early stopping and the temperature are decided on "
            "images that are neither trained nor tested on; give some of the training images, as "
            "400."
        )
    num_train = blocks.check_images(arm)
    blocks.check_optim(arm, num_train, arm.train.epochs)
    measured = arm.evaluate.sharpness
    shown = arm.evaluate.landscape.num_examples
    for field, value, most, what in (
        ("sharpness.num_examples", measured.num_examples, num_train, "training examples"),
        ("sharpness.information_examples", measured.information_examples, measured.num_examples,
         "num_examples"),
        ("landscape.num_examples", shown, num_train, "training examples"),
    ):  # fmt: skip
        if value > most:
            raise UserError(f"config.evaluate.{field}={value} is above the {most:,} {what}.")
    size = measured.microbatch_size
    if size and measured.num_examples % size:
        raise UserError(
            f"config.evaluate.sharpness.microbatch_size={size} does not divide "
            f"num_examples={measured.num_examples}; 0 takes all at once."
        )


def _check_name(name: str, arm: Config) -> None:
    blocks.check_place(
        name,
        arm,
        "figures and hypotheses go by an arm's name",
        form="<data set>-<net>-<regulariser>",
        example="cifar10-vgg19-dropout. Its -es arm is made of it",
    )


RULES = schema.Rules(FIELDS, _check_arm, _check_name, shared=("evaluate",))
