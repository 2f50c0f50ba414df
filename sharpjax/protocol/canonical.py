"""Canonical JSON: the one JSON text of a value, its digest, and hypotheses as such text."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from sharpjax.errors import UserError, nearest
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity

Part = Quantity | Contrast | Composite | Hypothesis
# The fields of the first registrations, which are always written. A field that was added later is
# left out if it has its default, so a hypothesis that does not use it keeps its text, digest and
# seal.
_FIRST: Mapping[type, str] = {
    Quantity: "metric at of over seen independent",
    Contrast: "quantity groups direction test margin null family within",
    Composite: "members supported_by refuted_by name",
    Hypothesis: "id claim contrasts combine refuted_by family correction alpha source status "
    "reference refuted_if uncertain missing refuting",
}


def canonical_json(value: Any) -> str:
    """The JSON text of a value: sorted keys, exact numbers. What is not JSON raises an error.

    >>> canonical_json({"b": (1, 0.1), "a": None})
    '{"a":null,"b":[1,0.1]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex.

    >>> digest({"rho": 0.05})[:8] == digest({"rho": 0.1})[:8]
    False
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def to_dict(part: Part) -> dict[str, Any]:
    """A hypothesis, or a part of one, as plain JSON: its fields by name.

    >>> list(to_dict(Quantity("test/loss")))
    ['metric', 'at', 'of', 'over', 'seen', 'independent']
    """
    first, document = _first(type(part)), {}
    for field in fields(part):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(part, field.name)
        if field.name in first or value != default:
            if value is not None and float in _types(field.type):
                value = float(value)
            document[field.name] = _plain(value)
    return document


def _first(kind: type) -> list[str]:
    return next(names.split() for known, names in _FIRST.items() if issubclass(kind, known))


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def from_dict(document: Any) -> Hypothesis:
    """The hypothesis that `to_dict` wrote: `from_dict(to_dict(h)) == h`.

    Raises:
        UserError: a field is missing, unknown, or of the wrong type.
    """
    return _read(Hypothesis, document)


def _read(kind: type, document: Any) -> Any:
    what = kind.__name__.lower()
    if not isinstance(document, Mapping):
        raise UserError(f"a {what} is a table of fields, not {_short(document)}.")
    names = {field.name: field.type for field in fields(kind)}
    for name in sorted(document.keys() - names.keys()):
        raise UserError(f"a {what} has no field {_short(name)}{nearest(str(name), names) or '.'}")
    for name in _first(kind):
        if name not in document:
            raise UserError(f"a {what} lacks the field '{name}'.")
    return kind(**{name: _value(what, name, names[name], v) for name, v in document.items()})


def _value(what: str, name: str, hint: Any, value: Any) -> Any:
    if name == "quantity":
        many = isinstance(value, list)
        return tuple(_read(Quantity, v) for v in value) if many else _read(Quantity, value)
    if name not in ("contrasts", "members", "refuting", "groups", "over"):
        return _expect(what, name, value, *_types(hint))
    items = _expect(what, name, value, list)
    if name in ("groups", "over"):
        return tuple(_expect(what, name, item, str) for item in items)
    return tuple(
        _read(Composite if isinstance(item, Mapping) and "members" in item else Contrast, item)
        for item in items
    )


@functools.cache
def _types(hint: Any) -> tuple[type, ...]:
    """The types that JSON may give for the type of a field; a float may be written as an int."""
    if get_origin(hint) is Literal:
        return (str,)
    if isinstance(hint, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _types(part))
    return {float: (float, int), Mapping[str, Any]: (dict,)}.get(hint, (hint,))


def _expect(what: str, name: str, value: Any, *types: type) -> Any:
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UserError(f"field '{name}' of a {what} is {_short(value)}, which is not allowed.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
