"""Blocks that the configs of several studies have: their fields, and what must fit together."""

from collections.abc import Mapping

from sharpjax import catalog
from sharpjax.errors import UserError
from sharpjax.optim import settings
from sharpjax.schema.rules import (
    AT_LEAST_0,
    COUNT,
    COUNT_OR_0,
    FLAG,
    FRACTION,
    POSITIVE,
    TEXT,
    Config,
    Rule,
    one_of,
    optional,
)

# Of a search for a trace that says how exact it is.
PROBES = Rule(lambda v: COUNT.holds(v) and v >= 4, "an integer of 4 or more")

IMAGES: Mapping[str, Rule] = {
    "data.name": TEXT,
    "data.num_train": COUNT_OR_0,
    "data.augment": FLAG,
    "data.data_dir": TEXT,
    "data.manual_dir": TEXT,
    "data.num_validation": optional(COUNT_OR_0, 0),
    "data.label_noise": optional(AT_LEAST_0, 0.0),
    "data.noise_seed": optional(COUNT_OR_0, 0),
    "data.noise_kind": optional(one_of("other", "uniform"), "other"),
    "data.image_size": optional(COUNT_OR_0, 0),
    "data.normalization": optional(one_of("measured", "mean_std", "half", "none"), "measured"),
    "data.padding": optional(one_of("zero", "mean"), "zero"),
}
MODEL: Mapping[str, Rule] = {
    "model.name": TEXT,
    "model.width": COUNT_OR_0,
    "model.dtype": one_of("float32", "bfloat16"),
    "model.dropout": optional(FRACTION, 0.0),
    "model.depth": optional(COUNT_OR_0, 0),  # 0: the model's own
}
# `settings.check` checks how they go together.
_OPTIM = {name: Rule(*allowed) for name, allowed in settings.ALLOWED.items()}
OPTIM: Mapping[str, Rule] = {
    **{f"optim.{name}": _OPTIM[name] for name in settings.FIELDS},
    **{f"optim.{name}": optional(_OPTIM[name], v) for name, v in settings.OPTIONAL.items()},
}
TRAIN: Mapping[str, Rule] = {
    "train.epochs": COUNT,
    "train.batch_size": COUNT,
    "train.checkpoint_epochs": COUNT,
    "train.population": one_of("auto", "vmap", "loop"),
}
# How models of an arm are taught; `TEACHERS` are kinds of `losses.Teacher` of one model or none.
TEACHERS = ("model", "shuffled", "permuted", "entropy-matched", "constant", "uniform", "gaussian")
DISTILL: Mapping[str, Rule] = {
    "distill.teacher": one_of("none", *TEACHERS),
    "distill.weight": Rule(lambda v: AT_LEAST_0.holds(v) and v <= 1, "a number in [0, 1]"),
    "distill.temperature": POSITIVE,
    "distill.inputs": one_of("logits", "probabilities"),
    "distill.start": one_of("same", "other"),
    "distill.order": one_of("same", "other"),
}
SMOOTHING: Mapping[str, Rule] = {"train.label_smoothing": FRACTION}
TEST: Mapping[str, Rule] = {
    "evaluate.test.every_epochs": COUNT_OR_0,
    "evaluate.test.batch_size": COUNT,
    "evaluate.test.num_bins": COUNT,
}


def check_parts(name: str, why: str, *, form: str, example: str) -> tuple[str, str, str]:
    """The three parts of an arm's name.

    Args:
        why: what goes by the name.
        form: how it is made, as `<data set>-<net>-<condition>`.
        example: a name of that form, and what else there is to say.

    Raises:
        UserError: the name has not three parts.
    """
    parts = name.split("-")
    if len(parts) != 3:
        raise UserError(f"config.arms.{name}: {why}; name it {form}, as {example}.")
    first, second, third = parts
    return first, second, third


def check_place(
    name: str,
    arm: Config,
    why: str,
    *,
    form: str,
    example: str,
    nets: Mapping[str, str] = {},
) -> None:
    """Refuse the name of an arm that has not three parts, or says another data set or model than it
    has. A net that is no model's name says nothing.

    Args:
        why, form, example: as in `check_parts`.
        nets: the model that a net in a name stands for, if it is not the model of that name.

    Raises:
        UserError: says which name the arm should have.
    """
    first, net, last = check_parts(name, why, form=form, example=example)
    if first != arm.data.name:
        own = "-".join((arm.data.name, net, last))
        raise UserError(
            f"config.arms.{name} has config.data.name={arm.data.name}: {why}; name it {own}, or "
            f"give it the data set {first}."
        )
    model = nets.get(net, net)
    if model in catalog.MODELS and model != arm.model.name:
        raise UserError(
            f"config.arms.{name} has config.model.name={arm.model.name}: {why}; name its net "
            f"otherwise than {net}, or give it the model {model}."
        )


def check_images(arm: Config) -> int:
    """The number of training examples of an arm.

    Raises:
        UserError: there is no such set, no such model, the model takes no images so small, or the
            set has too few examples.
    """
    known = catalog.lookup("data set", catalog.DATA_SETS, arm.data.name)
    catalog.lookup("model", catalog.MODELS, arm.model.name)
    smallest = catalog.SMALLEST_IMAGE.get(arm.model.name, 1)
    height, width = (arm.data.image_size or size for size in known.shape[:2])
    if min(height, width) < smallest:
        raise UserError(
            f"config.model.name={arm.model.name} needs images of {smallest} x {smallest} or more, "
            f"and {arm.data.name} has {height} x {width}."
        )
    if arm.data.num_train > known.num_train:
        raise UserError(
            f"config.data.num_train={arm.data.num_train}: {arm.data.name} has {known.num_train:,} "
            f"training examples; 0 takes all."
        )
    rest = known.num_train - arm.data.num_validation
    if rest < max(arm.data.num_train, 1):
        raise UserError(
            f"config.data.num_validation={arm.data.num_validation} of the {known.num_train:,} "
            f"training examples of {arm.data.name} leaves {max(rest, 0):,} to train on, fewer than "
            f"num_train={arm.data.num_train} (0: all that are left)."
        )
    return arm.data.num_train or rest


def check_optim(arm: Config, num_train: int, epochs: int) -> None:
    """Refuse a batch that is larger than the data, and what no optimiser can be made of."""
    if arm.train.batch_size > num_train:
        raise UserError(
            f"config.train.batch_size={arm.train.batch_size} is larger than the data: "
            f"{num_train:,} training examples."
        )
    settings.check(arm.optim, batch_size=arm.train.batch_size, epochs=epochs)
