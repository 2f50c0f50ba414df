"""Reading what somebody else may have written: strict JSON, no pickle, and limits on all sizes.

A folder that was sent may hold anything, and its sums prove only that its sender made them. So
nothing in it is run or unpickled, no name in it leads out of it, and anything larger than what a
run makes is refused before it is read. Every refusal is a `UserError` of one line.
"""

import json
import math
import re
from typing import Any

from etils import epath

from sharpjax.errors import UserError, printable
from sharpjax.workdir.files import open_regular

MAX_JSON_BYTES = 2**26
MAX_JSON_DEPTH = 64
# The most that `manifest.json` may list, and that a folder may hold.
MAX_FILES = 200_000


def read_json(path: epath.Path, *, most: int = MAX_JSON_BYTES) -> Any:
    """The value that a JSON file holds.

    Raises:
        UserError: the file is not a regular file, is longer than `most` bytes, or is not strict
            JSON: it gives a name twice, or a number that is not finite or too long, or nests values
            deeper than `MAX_JSON_DEPTH`.
    """
    return parse_json(read_bytes(path, most=most), str(path))


def read_bytes(path: epath.Path, *, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        UserError: it is longer, not a regular file, missing, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > most:
        raise UserError(f"{path} is longer than {most:,} bytes, the most such a file may have.")
    return content


def parse_json(text: bytes, where: str) -> Any:
    """The value of strict JSON.

    >>> parse_json(b'{"a": 1, "a": 2}', "x.json")
    Traceback (most recent call last):
    sharpjax.errors.UserError: x.json is no JSON that can be trusted: it names "a" twice.
    """
    try:
        value = _DECODER.decode(text.decode())
        _check_depth(value)
    except RecursionError:
        raise _bad_json(where, f"it is nested deeper than {MAX_JSON_DEPTH}") from None
    except _Untrusted as error:
        raise _bad_json(where, str(error)) from None
    except ValueError as error:
        reason = getattr(error, "msg", None) or f"{type(error).__name__} in it"
        raise _bad_json(where, reason) from None
    return value


class _Untrusted(ValueError):
    """Text that other JSON readers accept and we do not."""


def _bad_json(where: str, reason: str) -> UserError:
    return UserError(printable(f"{where} is no JSON that can be trusted: {reason}."))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Untrusted(f'it names "{twice[:40]}" twice')
    return table


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _Untrusted(f"{digits[:40]} is no finite number")
    return number


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise _Untrusted(f"{digits[:20]}... is too large a number")
    return int(digits)


def _constant(name: str) -> Any:
    raise _Untrusted(f"{name} is no finite number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_real, parse_int=_whole, parse_constant=_constant
)


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_JSON_DEPTH + 1):
        if not level:
            return
        below = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in below for v in values if isinstance(v, dict | list)]
    raise RecursionError


# Names.

_UNSAFE = re.compile(r"(^|/)(\.{0,2})(/|$)|[\\\x00-\x1f\x7f]")


def is_safe(name: str) -> bool:
    """Whether a name in a list of files stays below the folder of the list.

    >>> [is_safe(n) for n in ("a/b.npz", "../a", "/a", "a/./b", "a//b", "")]
    [True, False, False, False, False, False]
    """
    return not _UNSAFE.search(name)
