"""A plan as plain JSON, with every field of its parts, so that it can be sealed.

    {"type": "Train", "arm": "sam", "members": [...], "step": {"type": "Steps", ...}, ...}

Fields that belong to one machine (where its data lie) are left out.
"""

import dataclasses
import enum
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from sharpjax.errors import UserError
from sharpjax.train.plan import Plan

_OF_A_MACHINE = ("data_dir", "manual_dir")
_OF_FLAX = ("parent", "name")


def described(plan: Plan, like: Any = None) -> dict[str, Any]:
    """The document of a plan.

    Args:
        like: an earlier document of the plan, perhaps from an earlier version. Fields that it does
            not have, and that have their default value here, are left out.

    Raises:
        UserError: the plan holds something that cannot be written down; use a frozen dataclass or a
            named function instead.
    """
    return _of(plan, like if isinstance(like, Mapping) else None)


def _of(value: Any, like: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case enum.Enum():
            return value.name
        case float():
            return value if math.isfinite(value) else str(value)
        case functools.partial():
            inside = {"function": value.func, "args": value.args, "keywords": value.keywords}
            return {"type": "partial"} | _table(inside, like)
        case Mapping():
            return _table(value, like)
        case frozenset() | set():
            return sorted(_of(item, None) for item in value)
    if (fields := _fields(value)) is not None:
        own = {name: getattr(value, name) for name in fields}
        if isinstance(like, Mapping):
            own = {n: v for n, v in own.items() if n in like or not _is_default(v, fields[n])}
        return {"type": type(value).__name__} | _table(own, like)
    if isinstance(value, list | tuple):
        likes = like if isinstance(like, list) and len(like) == len(value) else [None] * len(value)
        return [_of(item, one) for item, one in zip(value, likes, strict=True)]
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        shape, dtype = list(array.shape), str(array.dtype)
        return {"type": "array", "shape": shape, "dtype": dtype, "sha256": digest}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return str(np.dtype(value))
    name = getattr(value, "__qualname__", "")
    if callable(value) and name and "<" not in name:
        return name
    raise UserError(
        f"plan: {value!r} cannot be registered, because it cannot be written down; say it as a "
        f"frozen dataclass, or as a function with a name."
    )


def _table(value: Mapping[Any, Any], like: Any) -> dict[str, Any]:
    likes = like if isinstance(like, Mapping) else {}
    return {str(name): _of(item, likes.get(str(name))) for name, item in value.items()}


_ABSENT = object()


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass or NamedTuple with their defaults; None if it is neither."""
    if isinstance(value, type):
        return None
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        defaults = getattr(value, "_field_defaults", {})
        return None if names is None else {name: defaults.get(name, _ABSENT) for name in names}
    if not dataclasses.is_dataclass(value):
        return None
    left_out = (*_OF_A_MACHINE, *(_OF_FLAX if isinstance(value, nn.Module) else ()))
    return {f.name: _default(f) for f in dataclasses.fields(value) if f.name not in left_out}


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    if field.default is not dataclasses.MISSING:
        return field.default
    return made() if made is not dataclasses.MISSING else _ABSENT


def _is_default(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default
