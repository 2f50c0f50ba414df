"""The one JSON text of a thing, and hypotheses as such text."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from sharpjax.errors import UserError, nearest
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity

Part = Quantity | Contrast | Composite | Hypothesis
_NUMBERS = {"alpha", "margin", "null", "reported"}
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
        field.name: _plain(field.name, value)
        for field, value in values
        if field.name in first or value != _default(field)
    }


def _first(kind: type) -> list[str]:
    return next(names.split() for known, names in _FIRST.items() if issubclass(kind, known))


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _plain(name: str, value: Any) -> Any:
    if name in _NUMBERS and value is not None:
        return float(value)
    if isinstance(value, Part):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain("", item) for item in value]
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
    return kind(**{name: _value(what, name, value) for name, value in document.items()})


def _value(what: str, name: str, value: Any) -> Any:
    if name in _PARTS:
        _expect(what, name, value, list)
        return tuple(_read(Composite if _is_composite(v) else Contrast, v) for v in value)
    if name == "quantity":
        if isinstance(value, list):
            return tuple(_read(Quantity, item) for item in value)
        return _read(Quantity, value)
    if name in ("groups", "over"):
        _expect(what, name, value, list)
        for item in value:
            _expect(what, name, item, str)
        return tuple(value)
    expected = _TYPES.get(name, (str,))
    _expect(what, name, value, *expected)
    return value


# Fields that are no text.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "alpha": (float, int),
    "margin": (float, int, type(None)),
    "null": (float, int, type(None)),
    "reported": (float, int, type(None)),
    "family": (str, type(None)),
    "seen": (str, type(None)),
    "at": (str, int),
    "of": (dict,),
    "combine": (str, int),
    "supported_by": (str, int),
    "refuted_by": (str, int),
    "within": (bool,),
    "independent": (bool,),
    "optional": (bool,),
}


def _expect(what: str, name: str, value: Any, *kinds: type) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"field '{name}' of a {what} is {_short(value)}, which it cannot be.")


def _is_composite(document: Any) -> bool:
    return isinstance(document, Mapping) and "members" in document


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
