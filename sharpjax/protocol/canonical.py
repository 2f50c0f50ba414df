"""The one JSON text of a thing, and hypotheses as such text."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from sharpjax.errors import UserError, nearest
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity

Part = Quantity | Contrast | Composite | Hypothesis
_PARTS = {"contrasts", "members", "refuting"}
# Fields of the first registrations, which are always written. A field that is added later is left
# out where it has its default, so that what does not use it keeps its text, digest and seal.
_FIRST: Mapping[type, str] = {
    Quantity: "metric at of over seen independent",
    Contrast: "quantity groups direction test margin null family within",
    Composite: "members supported_by refuted_by name",
    Hypothesis: "id claim contrasts combine refuted_by family correction alpha source status "
    "reference refuted_if uncertain missing refuting",
}


def canonical_json(value: Any) -> str:
    """Keys sorted, numbers exact, nothing that is not JSON.

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
    """A hypothesis, or a part of one, as plain JSON by the names of its fields.

    >>> list(to_dict(Quantity("test/loss")))
    ['metric', 'at', 'of', 'over', 'seen', 'independent']
    """
    first = _first(type(part))
    values = ((field, getattr(part, field.name)) for field in fields(part))
    return {
        field.name: float(value) if _is_number(field, value) else _plain(value)
        for field, value in values
        if field.name in first or value != _default(field)
    }


def _first(kind: type) -> list[str]:
    return next(names.split() for known, names in _FIRST.items() if issubclass(kind, known))


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _is_number(field: Field, value: Any) -> bool:
    return value is not None and float in _types(field.type)


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def from_dict(document: Any) -> Hypothesis:
    """The hypothesis that `to_dict` wrote: `from_dict(to_dict(h)) == h`.

    Raises:
        UserError: a field is missing, not known, or of another type than it should be.
    """
    return _read(Hypothesis, document)


def _read(kind: type, document: Any) -> Any:
    what = kind.__name__.lower()
    if not isinstance(document, Mapping):
        raise UserError(f"a {what} is a table of fields, not {_short(document)}.")
    names = tuple(field.name for field in fields(kind))
    for name in sorted(document.keys() - set(names)):
        raise UserError(f"a {what} has no field {_short(name)}{nearest(str(name), names) or '.'}")
    for name in _first(kind):
        if name not in document:
            raise UserError(f"a {what} lacks the field '{name}'.")
    return kind(**{name: _value(kind, name, value) for name, value in document.items()})


def _value(kind: type, name: str, value: Any) -> Any:
    if name in _PARTS:
        parts = _list(kind, name, value)
        return tuple(_read(Composite if _is_composite(v) else Contrast, v) for v in parts)
    if name == "quantity":
        many = isinstance(value, list)
        return tuple(_read(Quantity, v) for v in value) if many else _read(Quantity, value)
    if name in ("groups", "over"):
        return tuple(_expect(kind, name, item, str) for item in _list(kind, name, value))
    return _expect(kind, name, value, *_types(next(f.type for f in fields(kind) if f.name == name)))


def _types(hint: Any) -> tuple[type, ...]:
    """What JSON has for the type of a field.

    >>> _types(float | None), _types(Literal["all", "any"])
    ((<class 'float'>, <class 'int'>, <class 'NoneType'>), (<class 'str'>,))
    """
    if get_origin(hint) is Literal:
        return (str,)
    if isinstance(hint, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _types(part))
    return {float: (float, int), Mapping[str, Any]: (dict,)}.get(hint, (hint,))


def _list(kind: type, name: str, value: Any) -> list[Any]:
    return _expect(kind, name, value, list)


def _expect(kind: type, name: str, value: Any, *types: type) -> Any:
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        what = kind.__name__.lower()
        raise UserError(f"field '{name}' of a {what} is {_short(value)}, which it cannot be.")
    return value


def _is_composite(document: Any) -> bool:
    return isinstance(document, Mapping) and "members" in document


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
