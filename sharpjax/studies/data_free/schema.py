"""What a config of the data-free study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import COUNT, COUNT_OR_0, POSITIVE, Config, Rule, blocks

BASE = "base"  # the condition of the arms that are trained

FIELDS: Mapping[str, Rule] = {
    **blocks.IMAGES,
    **blocks.MODEL,
    **blocks.OPTIM,
    **blocks.TRAIN,
    "evaluate.test.batch_size": COUNT,
    "evaluate.test.num_bins": COUNT,
    "evaluate.replaced.num_examples": COUNT_OR_0,
    "evaluate.replaced.trials": COUNT,
    "evaluate.curvature.num_examples": COUNT,
    "evaluate.curvature.probes": blocks.PROBES,
    "evaluate.curvature.max_products": COUNT,
    "evaluate.curvature.rho": POSITIVE,
    "evaluate.curvature.num_steps": COUNT,
    "evaluate.same.num_examples": COUNT,
    "evaluate.untrained.draws": COUNT,
}


def _check_arm(arm: Config) -> None:
    num_train = blocks.check_images(arm)
    blocks.check_optim(arm, num_train, arm.train.epochs)
    for block in ("curvature", "same"):
        asked = arm.evaluate[block].num_examples
        if asked > num_train:
            raise UserError(
                f"config.evaluate.{block}.num_examples={asked}: there are {num_train:,} training "
                f"examples."
            )


def _check_name(name: str, arm: Config) -> None:
    why, form = "what is made of an arm is named after it", f"<data set>-<net>-{BASE}"
    example = f"mnist-mlp-{BASE}"
    if not name.endswith(f"-{BASE}"):
        raise UserError(f"config.arms.{name}: {why}; name it {form}, as {example}.")
    blocks.check_place(name, arm, why, form=form, example=example)


RULES = schema.Rules(FIELDS, _check_arm, _check_name)
