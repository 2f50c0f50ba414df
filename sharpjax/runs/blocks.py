"""Blocks that the configs of several studies have: their fields, and what must fit together."""

from collections.abc import Mapping

from sharpjax import catalog
from sharpjax.errors import UserError
from sharpjax.optim import settings
from sharpjax.runs.schema import (
    COUNT,
    COUNT_OR_0,
    FLAG,
    FRACTION,
    TEXT,
    Config,
    Rule,
    one_of,
    optional,
)

ANYTHING = Rule(lambda v: True, "anything")

IMAGES: Mapping[str, Rule] = {
    "data.name": TEXT,
    "data.num_train": COUNT_OR_0,
    "data.augment": FLAG,
    "data.data_dir": TEXT,
    "data.manual_dir": TEXT,
}
MODEL: Mapping[str, Rule] = {
    "model.name": TEXT,
    "model.width": COUNT_OR_0,
    "model.dtype": one_of("float32", "bfloat16"),
}
# Their values are checked by `settings.check`.
OPTIM: Mapping[str, Rule] = {
    **{f"optim.{name}": ANYTHING for name in settings.FIELDS},
    **{f"optim.{name}": optional(ANYTHING, value) for name, value in settings.OPTIONAL.items()},
}
TRAIN: Mapping[str, Rule] = {
    "train.epochs": COUNT,
    "train.batch_size": COUNT,
    "train.checkpoint_epochs": COUNT,
    "train.population": one_of("auto", "vmap", "loop"),
}
SMOOTHING: Mapping[str, Rule] = {"train.label_smoothing": FRACTION}
TEST: Mapping[str, Rule] = {
    "evaluate.test.every_epochs": COUNT_OR_0,
    "evaluate.test.batch_size": COUNT,
    "evaluate.test.num_bins": COUNT,
}


def check_images(arm: Config) -> int:
    """The number of training examples of an arm.

    Raises:
        UserError: there is no such set, no such model, the model takes no images so small, or the
            set has too few examples.
    """
    known = catalog.lookup("data set", catalog.DATA_SETS, arm.data.name)
    catalog.lookup("model", catalog.MODELS, arm.model.name)
    smallest = catalog.SMALLEST_IMAGE.get(arm.model.name, 1)
    if min(known.shape[:2]) < smallest:
        raise UserError(
            f"config.model.name={arm.model.name} needs images of {smallest} x {smallest} or more, "
            f"and {arm.data.name} has {known.shape[0]} x {known.shape[1]}."
        )
    if arm.data.num_train > known.num_train:
        raise UserError(
            f"config.data.num_train={arm.data.num_train}: {arm.data.name} has {known.num_train:,} "
            f"training examples; 0 takes all."
        )
    return arm.data.num_train or known.num_train


def check_optim(arm: Config, num_train: int, epochs: int) -> None:
    """Refuse a batch that is larger than the data, and what no optimiser can be made of."""
    if arm.train.batch_size > num_train:
        raise UserError(
            f"config.train.batch_size={arm.train.batch_size} is larger than the data: "
            f"{num_train:,} training examples."
        )
    settings.check(arm.optim, batch_size=arm.train.batch_size, epochs=epochs)
