"""What a config of the sharpness study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import COUNT, COUNT_OR_0, POSITIVE, TEXT, Config, Rule, blocks

FIELDS: Mapping[str, Rule] = {
    **blocks.IMAGES,
    **blocks.MODEL,
    **blocks.OPTIM,
    **blocks.TRAIN,
    **blocks.SMOOTHING,
    "train.epoch_factor": COUNT,
    **blocks.TEST,
    "evaluate.geometry.every_epochs": COUNT_OR_0,
    "evaluate.geometry.where": TEXT,
    "evaluate.geometry.num_examples": COUNT,
    "evaluate.geometry.num_sets": COUNT,
    "evaluate.geometry.microbatch_size": COUNT,
    "evaluate.geometry.num_eigenvalues": COUNT,
    "evaluate.geometry.tol": POSITIVE,
    "evaluate.geometry.max_products": COUNT,
    "evaluate.geometry.trace_error": POSITIVE,
    "evaluate.geometry.max_probes": blocks.PROBES,
    "evaluate.geometry.sam_rho": POSITIVE,
    "evaluate.geometry.adaptive_rho": POSITIVE,
    "evaluate.geometry.adaptive_m": COUNT,
    "evaluate.geometry.adaptive_steps": COUNT,
}


def _check_arm(arm: Config) -> None:
    num_train = blocks.check_images(arm)
    blocks.check_optim(arm, num_train, arm.train.epochs * arm.train.epoch_factor)
    _check_measurement_sets(arm.evaluate.geometry, num_train)


def _check_measurement_sets(geometry: Config, num_train: int) -> None:
    needed = geometry.num_sets * geometry.num_examples
    if needed > num_train:
        raise UserError(
            f"config.evaluate.geometry: num_sets={geometry.num_sets} disjoint sets of "
            f"num_examples={geometry.num_examples} are {needed:,} examples, and there are "
            f"{num_train:,}."
        )
    for field, whole in (
        ("microbatch_size", "num_examples"),
        ("adaptive_m", "num_examples"),
        ("microbatch_size", "adaptive_m"),
    ):
        part, total = geometry[field], geometry[whole]
        if total % min(part, total) or part > geometry.num_examples:
            raise UserError(
                f"config.evaluate.geometry.{field}={part} does not divide {whole}={total}."
            )
    if geometry.max_products < geometry.num_eigenvalues:
        raise UserError(
            f"config.evaluate.geometry.max_products={geometry.max_products} are too few for "
            f"num_eigenvalues={geometry.num_eigenvalues}."
        )


RULES = schema.Rules(FIELDS, _check_arm)
