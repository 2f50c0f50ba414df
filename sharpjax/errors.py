"""Errors that tell users what they did wrong and how to fix it.

A `UserError` is one paragraph: which public function or flag, what was given, what is allowed, what
to do. The command line prints it as one line and exits with code 2. Library callers can catch it as
a `ValueError`.
"""

import difflib
import math
import numbers
import operator
import struct
from collections.abc import Callable, Iterable
from typing import Any

# Advice for logits with a single class.
TWO_CLASSES = (
    "For two classes by one logit z give [0, z]: `jnp.concatenate([jnp.zeros_like(z), z], axis=1)`."
)


class UserError(ValueError):
    """An error in what the user asked for, not in the program."""


class RunFailed(RuntimeError):
    """A run that cannot go on, although it was requested correctly; the exit code is 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` if a known name is close, else the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table.

    >>> print(unknown("data set", "cifar", ["cifar10", "mnist"]))
    unknown data set 'cifar'; did you mean 'cifar10'? Known: cifar10, mnist.
    """
    known, name = sorted(known), str(name)
    hint = nearest(name, known) or "."
    return UserError(f"unknown {what} '{name}'{hint} Known: {', '.join(known)}.")


def printable(text: str) -> str:
    r"""`text` with control characters, and others that a terminal cannot show, escaped.

    >>> print(printable("a\x1b[2J\nb"))
    a\x1b[2J\nb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_float32(value: Any) -> float:
    """What a real number is on the device, where one that is not normal is 0.

    >>> in_float32(1e-60), in_float32(1e300), in_float32(0.5)
    (0.0, inf, 0.5)
    """
    try:
        (single,) = struct.unpack("f", struct.pack("f", float(value)))
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return 0.0 if abs(single) < 2.0**-126 else single


def is_real(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether a value is a finite real number in a range, and in float32, too.

    Only 0 may be 0 in float32. Booleans do not count.

    >>> is_real(0.1, lambda x: x >= 0), is_real(1e-60, lambda x: x >= 0)
    (True, False)
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    single = in_float32(value)
    return math.isfinite(single) and (single != 0 or value == 0) and holds(value) and holds(single)


def given(value: Any) -> str:
    """A value for a message, on one line, and what float32 makes of it if that is another thing.

    >>> given("x"), given(1e-60)
    ("'x'", '1e-60, which is 0.0 in float32')
    """
    text = " ".join(repr(value).split())
    if isinstance(value, numbers.Real):
        single = in_float32(value)
        if single != value and single in (0, 1, math.inf, -math.inf):
            return f"{text}, which is {single} in float32"
    return text


def whole_number(caller: str, name: str, value: Any, *, least: int = 1) -> int:
    """An integer argument as an `int`.

    Raises:
        UserError: `value` is not an integer (floats and booleans do not count), or is less than
            `least`.

    >>> whole_number("trace", "max_products", 8)
    8
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise UserError(f"{caller}: {name} must be a whole number >= {least}, got {value!r}.")
    return number
