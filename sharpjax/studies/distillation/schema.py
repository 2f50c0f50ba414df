"""What a config of the distillation study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.schema import COUNT, COUNT_OR_0, Config, Rule, blocks

TEACHER = "teacher"  # the condition of the arm that teaches, in each place
CONTROL = "siddo"  # the condition that students are compared with
SIZES = ("half", "double")  # of students whose size differs from the teacher's


def control_of(arm: str) -> str:
    """The arm that a student is compared with: same data set, net and size, no teacher.

    >>> control_of("digits-mlp-kd_90"), control_of("digits-mlp-kd_90_half")
    ('digits-mlp-siddo', 'digits-mlp-siddo_half')
    """
    place = arm.rpartition("-")[0]
    return f"{place}-{CONTROL}" + next(
        (f"_{size}" for size in SIZES if arm.endswith(f"_{size}")), ""
    )


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


def _check_name(name: str, arm: Config) -> None:
    blocks.check_place(
        name,
        arm,
        "hypotheses go by an arm's name",
        form="<data set>-<net>-<condition>",
        example=f"cifar10-resnet18-siddo. Those of <data set>-<net>-{TEACHER} teach",
        nets={"vit": "vit_small"},
    )


# Models are compared by their outputs for the same test images.
RULES = schema.Rules(FIELDS, _check_arm, _check_name, shared=("evaluate.test",))
