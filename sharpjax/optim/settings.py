"""The values that `config.optim` may have. Used by the command line before jax is imported, and by
the factory."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from sharpjax import catalog
from sharpjax.errors import UserError, given, is_real, unknown

SCHEDULES = ("constant", "cosine", "linear")

_NAMES = {
    "name": ("optimiser", catalog.OPTIMIZERS),
    "schedule": ("schedule", SCHEDULES),
    "scaling": ("scaling", catalog.SCALINGS),
}


def _real(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: is_real(value, holds)


def _is_count_or_0(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_NOT_NEGATIVE = _real(lambda x: x >= 0), "a number of 0 or more"

_NUMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (_real(lambda x: x > 0), "a number above 0"),
    "momentum": (_real(lambda x: 0 <= x < 1), "a number in [0, 1)"),
    "weight_decay": _NOT_NEGATIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "rho": (_real(lambda x: x >= 0), "a number of 0 (no SAM) or more"),
    "eta": _NOT_NEGATIVE,
    "m": (_is_count_or_0, "an integer of 0 (the whole batch) or more"),
}


def _is_count(value: Any) -> bool:
    return _is_count_or_0(value) and value > 0


def _one_of(*words: str) -> tuple[Callable[[Any], bool], str]:
    allowed = "one of " + ", ".join(repr(word) for word in words)
    return lambda value: isinstance(value, str) and value in words, allowed


_COUNT = _is_count, "an integer of 1 or more"
_OPTIONAL: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "b2": (_real(lambda x: 0 <= x < 1), "a number in [0, 1)"),
    "eps": (_real(lambda x: x > 0), "a number above 0"),
    "bias": _one_of("scaled", "unit", "frozen"),
    "only": (lambda value: isinstance(value, str), "a glob of names of parameters, or ''"),
    "norm": _one_of("l2", "linf", "none"),
    "ascent_steps": _COUNT,
    "rho_schedule": _one_of("constant", "learning_rate"),
    "gap_weight": _NOT_NEGATIVE,
    "every": _COUNT,
    "reuse": _NOT_NEGATIVE,
    "friendly": _NOT_NEGATIVE,
    "friendly_decay": (_real(lambda x: 0 <= x < 1), "a number in [0, 1)"),
}
_OF_ADAM = ("b2", "eps")

FIELDS = (*_NAMES, *_NUMBERS)
"""The fields that `config.optim` must have."""

ALLOWED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **{
        name: (lambda v: isinstance(v, str), f"one of {', '.join(_NAMES[name][1])}")
        for name in _NAMES
    },
    **_NUMBERS,
    **_OPTIONAL,
}
"""What each field may be, and the words for it; `check` knows the names, too."""

OPTIONAL: Mapping[str, Any] = {
    "b2": 0.999,
    "eps": 1e-8,
    "bias": "scaled",
    "only": "",
    "norm": "l2",
    "ascent_steps": 1,
    "rho_schedule": "constant",
    "gap_weight": 0.0,
    "every": 1,
    "reuse": 0.0,
    "friendly": 0.0,
    "friendly_decay": 0.9,
}
"""The optional fields with their defaults: those of the Adam family, and of the methods of the SAM
family."""


def optional(optim: Any, field: str) -> Any:
    """The value of a field of `OPTIONAL` in the block, or its default."""
    return getattr(optim, field, OPTIONAL[field])


def check(optim: Any, *, batch_size: int, epochs: float = math.inf) -> None:
    """Checks that an optimiser can be built from the block `config.optim`.

    Args:
        optim: the block, an object with the attributes `FIELDS`, and optionally those of
            `OPTIONAL`.
        batch_size: examples of a training step.
        epochs: length of the training, if known; the warm-up must not be longer.

    Raises:
        UserError: a value is not allowed. The message names the field, its value and the allowed
            values.
    """
    for field, (what, known) in _NAMES.items():
        value = getattr(optim, field)
        if not isinstance(value, str) or value not in known:
            raise unknown(f"{what} (config.optim.{field})", str(value), known)
    for field, (holds, words) in _NUMBERS.items():
        value = getattr(optim, field)
        if not holds(value):
            raise UserError(f"config.optim.{field}={given(value)}: give {words}.")
    for field, (holds, words) in _OPTIONAL.items():
        value = optional(optim, field)
        if not holds(value):
            raise UserError(f"config.optim.{field}={given(value)}: give {words}.")
        if field in _OF_ADAM and optim.name == "sgd" and value != OPTIONAL[field]:
            raise UserError(
                f"config.optim.{field}={value!r} is for adam, adamax and adamw, and "
                f"config.optim.name is 'sgd'; leave it at {OPTIONAL[field]}."
            )
    if optim.warmup_epochs > epochs:
        raise UserError(
            f"config.optim.warmup_epochs={optim.warmup_epochs} is longer than the training, "
            f"{epochs:g} epochs; lower it, or train longer."
        )
    if optim.eta > 0 and optim.scaling == "none":
        raise UserError(
            f"config.optim.eta={optim.eta} is for scaling 'element' (ASAM), 'filter' and 'layer', "
            "and config.optim.scaling is 'none'; set eta to 0.0, or scaling to 'element'."
        )
    for field, needs, remedy in (
        ("bias", optim.scaling != "none", "scaling 'element', 'filter' or 'layer'"),
        ("reuse", optional(optim, "every") > 1, "every of 2 or more (LookSAM)"),
        ("friendly_decay", optional(optim, "friendly") > 0, "friendly above 0 (F-SAM)"),
    ):
        if optional(optim, field) != OPTIONAL[field] and not needs:
            raise UserError(
                f"config.optim.{field}={optional(optim, field)!r} would be ignored: it needs "
                f"{remedy}; leave it at {OPTIONAL[field]!r}, or give that."
            )
    if optim.m and batch_size % optim.m:
        raise UserError(
            f"config.optim.m={optim.m} does not divide the batch of {batch_size} examples "
            f"(config.train.batch_size); give a divisor of {batch_size}, or 0 for the whole batch."
        )
