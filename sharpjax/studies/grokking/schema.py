"""What a config of the grokking study must hold. Nothing heavy is imported here."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from sharpjax import catalog, schema
from sharpjax.errors import UserError
from sharpjax.schema import (
    AT_LEAST_0,
    COUNT,
    COUNT_OR_0,
    FLAG,
    POSITIVE,
    TEXT,
    Config,
    Rule,
    blocks,
)

_PROPER = Rule(lambda v: isinstance(v, float) and 0 < v < 1, "a number in (0, 1), as 0.5")
_RANK = Rule(
    lambda v: isinstance(v, float) and 0 <= v <= 1, "a number in (0, 1], as 0.125, or 0.0: dense"
)
_MODULUS = Rule(
    lambda v: COUNT.holds(v) and 2 <= v <= catalog.MAX_MODULUS,
    f"an integer from 2 to {catalog.MAX_MODULUS}",
)

# What tasks are called in the names of arms, by operation.
TASKS: Mapping[str, str] = {"+": "add", "-": "sub", "*": "mul", "/": "div"}

FIELDS: Mapping[str, Rule] = {
    "data.operation": TEXT,
    "data.modulus": _MODULUS,
    "data.train_fraction": _PROPER,
    "model.name": TEXT,
    "model.width": COUNT_OR_0,
    "model.rank_fraction": _RANK,
    "model.layers": TEXT,
    "model.temperature": schema.optional(POSITIVE, 1.0),  # divides the logits
    "optim.learning_rate": POSITIVE,
    "optim.b1": schema.FRACTION,
    "optim.b2": schema.FRACTION,
    "optim.weight_decay": AT_LEAST_0,
    **blocks.TRAIN,
    "train.loss_dtype": schema.one_of("float32", "float64"),
    "evaluate.trajectory.per_decade": COUNT_OR_0,
    "evaluate.trajectory.in_factors": FLAG,
    "evaluate.trajectory.logit_scale": schema.optional(FLAG, False),
    "evaluate.trajectory.num_examples": COUNT,
    "evaluate.trajectory.num_frequencies": COUNT,
    "evaluate.trajectory.tol": POSITIVE,
    "evaluate.trajectory.max_products": COUNT,
    "evaluate.trajectory.trace_error": POSITIVE,
    "evaluate.trajectory.max_probes": blocks.PROBES,
    "evaluate.trajectory.adaptive_rho": POSITIVE,
    "evaluate.trajectory.adaptive_steps": COUNT,
}


def _check_arm(arm: Config) -> None:
    catalog.lookup("operation", catalog.OPERATIONS, arm.data.operation)
    catalog.lookup("model", catalog.TOKEN_MODELS, arm.model.name)
    operation, p = arm.data.operation, arm.data.modulus
    divides, size = catalog.OPERATIONS[operation]
    if size not in (0, p):
        raise UserError(
            f"config.data.modulus={p}: '{operation}' is on the {size} permutations of five things; "
            f"give {size}."
        )
    factor = next((i for i in range(2, math.isqrt(p) + 1) if p % i == 0), p)
    if divides and factor < p:
        raise UserError(
            f"config.data.modulus={p}: '{operation}' divides, and modulo {p} = {factor} x "
            f"{p // factor} not every number has an inverse; give a prime."
        )
    pairs = p * (p - 1) if operation == "/" else p * p
    # The fraction as the decimal number that is written, in the same way as `data.modular.split`.
    num_train = math.ceil(Fraction(repr(arm.data.train_fraction)) * pairs)
    if num_train >= pairs:
        raise UserError(
            f"config.data.train_fraction={arm.data.train_fraction} of the {pairs} pairs modulo {p} "
            f"leaves none to test; give a smaller fraction, or a larger config.data.modulus."
        )
    _check_rank(arm)
    if arm.model.temperature != 1 and arm.model.name != "token_mlp":
        raise UserError(
            f"config.model.temperature={arm.model.temperature}: '{arm.model.name}' has none; give "
            "1.0, or the model token_mlp."
        )
    for field, value in (
        ("train.batch_size", arm.train.batch_size),
        ("evaluate.trajectory.num_examples", arm.evaluate.trajectory.num_examples),
    ):
        if value > num_train:
            raise UserError(f"config.{field}={value}: there are {num_train:,} training examples.")
    frequencies = arm.evaluate.trajectory.num_frequencies
    if size == 0 and frequencies > p // 2:
        raise UserError(
            f"config.evaluate.trajectory.num_frequencies={frequencies}: modulo {p} there are "
            f"{p // 2}."
        )


def _check_rank(arm: Config) -> None:
    """Refuse a rank fraction that leaves rank 0 of the smallest matrix.

    Every matrix of a model reads or writes tokens or units. A glob may leave out the small ones;
    the model itself checks that.
    """
    fraction, tokens = arm.model.rank_fraction, arm.data.modulus + 2
    smallest = min(tokens, arm.model.width or tokens)
    if fraction and arm.model.layers == "*" and Fraction(repr(fraction)) * smallest < 1:
        raise UserError(
            f"config.model.rank_fraction={fraction} leaves rank 0 of a matrix with {smallest} rows "
            f"or columns; give {1 / smallest:.4g} or more, or name others in config.model.layers."
        )


def _check_name(name: str, arm: Config) -> None:
    """Refuse a name that does not say task and fraction of what the arm trains on.

    An operation without a word of its own may have any name but those of the others.
    """
    why = "figures and hypotheses go by an arm's name"
    form = "<task>-<model>-<per cent>"
    task, model, fraction = blocks.check_parts(name, why, form=form, example="add97-dense-80")
    own, per_cent = task, per_cent_of(arm.data.train_fraction)
    operation, modulus = arm.data.operation, arm.data.modulus
    if operation in TASKS:
        own = f"{TASKS[operation]}{modulus}"
    elif re.fullmatch(rf"({'|'.join(TASKS.values())})\d+", task):
        own = f"other{modulus}"
    if (task, fraction) != (own, per_cent):
        raise UserError(
            f"config.arms.{name} has config.data.operation={operation}, modulus={modulus} and "
            f"train_fraction={arm.data.train_fraction}: {why}; name it {own}-{model}-{per_cent}, "
            f"or give it the data that it is named after."
        )


def per_cent_of(fraction: float) -> str:
    """A fraction as the last part of a name.

    >>> per_cent_of(0.8), per_cent_of(0.285)
    ('80', '28_5')
    """
    return f"{float(100 * Fraction(repr(fraction))):g}".replace(".", "_")


RULES = schema.Rules(FIELDS, _check_arm, _check_name)
