"""Which config a folder belongs to."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from sharpjax.errors import UserError
from sharpjax.workdir.files import canonical_json, difference


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a config, in hex.

    Raises:
        UserError: a field is not a finite number, text, truth value, None, or a list or table of
            these.

    >>> config_digest({"seeds": (0, 1), "rho": 0.05})[:8]
    '434662c5'
    """
    return hashlib.sha256(canonical_json(plain(config)).encode()).hexdigest()


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON reads it back: tuples are lists.

    Raises:
        UserError: as `config_digest`.
    """
    for name, value in flat(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config field {name} is {value}; give a finite number.")
        try:
            canonical_json(value)
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise UserError(
                f"config field {name} is a {kind}, which JSON cannot hold; a config is made of "
                f"finite numbers, texts, booleans, None, lists and tables."
            ) from None
    return json.loads(canonical_json(config))


def check_same_config(folder: epath.Path, file: epath.Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose config file holds another (plain) config; a missing file is fine."""
    if not file.exists():
        return
    try:
        there = flat(json.loads(file.read_bytes()))
    except (ValueError, AttributeError):
        raise UserError(
            f"{file} is damaged, so what was run there is not known; bring it back from a copy, or "
            f"give another --workdir."
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    if differs := difference(there, flat(config)):
        raise UserError(
            f"workdir '{folder}' holds a run of another config: {differs}. Give another --workdir, "
            f"or the values it was started with."
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{'optim.rho': 0.05, ...}`: the fields by their names on the command line."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def anywhere(value: Any) -> Any:
    """A config with empty names for the folders in which one machine keeps its data.

    >>> anywhere({"data": {"name": "cifar10", "data_dir": "/data"}})
    {'data': {'name': 'cifar10', 'data_dir': ''}}
    """
    if isinstance(value, Mapping):
        places = ("data_dir", "manual_dir")
        return {name: "" if name in places else anywhere(own) for name, own in value.items()}
    return value
