"""What a config of the distillation study must hold; nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import COUNT, COUNT_OR_0, Config, Rule, blocks

TEACHER = "teacher"  # the condition of the arm that teaches, of each place
CONTROL = "siddo"  # what a student is compared with
SIZES = ("half", "double")  # of students that are not of the teacher's size


def control_of(condition: str) -> str:
    """The control of a student: one of its own size.

    >>> control_of("kd_90"), control_of("kd_90_half")
    ('siddo', 'siddo_half')
    """
    return next((f"{CONTROL}_{size}" for size in SIZES if condition.endswith(f"_{size}")), CONTROL)


FIELDS: Mapping[str, Rule] = {
    **blocks.IMAGES,
    **blocks.MODEL,
    **blocks.OPTIM,
    **blocks.TRAIN,
    **blocks.DISTILL,
    "evaluate.test.batch_size": COUNT,
    "evaluate.test.num_bins": COUNT,
    "evaluate.test.num_outputs": COUNT_OR_0,
    "evaluate.trajectory.num_examples": COUNT_OR_0,
}


def _check_arm(arm: Config) -> None:
    blocks.check_optim(arm, blocks.check_images(arm), arm.train.epochs)


def _check_name(name: str) -> None:
    if len(name.split("-")) != 3:
        raise UserError(
            f"config.arms.{name}: hypotheses go by an arm's name; name it <data set>-<net>-"
            f"<condition>, as cifar10-resnet18-siddo. Those of <data set>-<net>-{TEACHER} teach."
        )


RULES = schema.Rules(FIELDS, _check_arm, _check_name)
