"""Nested tables of anything (configs, environments, manifests) as lines of name and value."""

import re
from collections.abc import Mapping
from typing import Any

from sharpjax.report.words import clean

_DIGEST = re.compile("[0-9a-f]{40,}")


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> flatten({"a": {"b": 1, "c": {}}, "d": (1, 2)})
    {'a.b': 1, 'd': (1, 2)}
    """
    flat = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def title(name: str) -> str:
    """
    >>> title("smallest_p")
    'Smallest p'
    """
    name = clean(name, 60).replace("_", " ")
    return name[:1].upper() + name[1:]


def is_digest(value: object) -> bool:
    """Whether it reads as a SHA: set as code on every page.

    >>> is_digest("5f" * 32), is_digest("deed")
    (True, False)
    """
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None
