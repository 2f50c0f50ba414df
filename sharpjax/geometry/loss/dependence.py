"""What a jaxpr tells about a function: whether its value depends on an argument, and whether it
depends on its arguments only."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage] (in jax 0.12 the old name of Jaxpr)
    Jaxpr,
    Literal,
    Var,
)


def reaches(jaxpr: Jaxpr, inputs: Iterable[int], by_any_way: bool = False) -> bool:
    """Whether a derivative can flow from one of these inputs to an output; with `by_any_way`,
    whether a value can, also through integers and `stop_gradient`.

    Equations that hold a jaxpr (loops, calls) are taken to pass on all their inputs, so the answer
    may be a false yes.

    >>> jaxpr = jax.make_jaxpr(lambda x, y: jnp.sum(x) + jnp.argmax(y))(jnp.ones(2), jnp.ones(2))
    >>> reaches(jaxpr.jaxpr, [0]), reaches(jaxpr.jaxpr, [1])
    (True, False)
    """
    reached = {jaxpr.invars[i] for i in inputs}
    for eqn in jaxpr.eqns:
        variables = [v for v in eqn.invars if not isinstance(v, Literal)]
        passes = by_any_way or eqn.primitive.name != "stop_gradient"
        if passes and any(v in reached for v in variables):
            reached.update(v for v in eqn.outvars if by_any_way or _is_float(v.aval))
            # A reference that is written to may be read later on.
            refs = (v for v in variables if _is_ref(v.aval))
            reached.update(v for v in refs if by_any_way or _is_float(v.aval))
    return any(not isinstance(v, Literal) and v in reached for v in jaxpr.outvars)


def differ(closed: ClosedJaxpr, other: ClosedJaxpr) -> bool:
    """Whether two traces of one function hold different numbers.

    Such a function draws from a random generator that jax does not know.

    >>> rng = np.random.default_rng(0)
    >>> first, second = (jax.make_jaxpr(lambda x: x + rng.normal())(1.0) for _ in range(2))
    >>> differ(first, first), differ(first, second)
    (False, True)
    """
    return any(
        a is not b and np.shape(a) == np.shape(b) and not np.array_equal(a, b, _is_float(a))
        for a, b in zip(_numbers(closed), _numbers(other), strict=False)
    )


def digest(closed: ClosedJaxpr) -> str:
    """A hash that is equal for two traces with the same operations and the same constants.

    Functions within a trace, such as the rules of a `custom_jvp`, enter by their names.

    >>> def trace(x):
    ...     return digest(jax.make_jaxpr(lambda y: x * y)(1.0))
    >>> trace(2.0) == trace(2.0), trace(2.0) == trace(3.0)
    (True, False)
    """
    found = hashlib.blake2b(digest_size=16)
    _absorb(found, closed, {})
    return found.hexdigest()


def _absorb(found, x, numbers) -> None:
    if hasattr(x, "eqns"):
        inner = getattr(x, "jaxpr", x)
        found.update(b"jaxpr")
        _absorb(found, (*getattr(x, "consts", ()), *inner.constvars, *inner.invars), numbers)
        for eqn in inner.eqns:
            found.update(eqn.primitive.name.encode())
            _absorb(found, (*eqn.invars, *eqn.params.items(), *eqn.outvars), numbers)
        _absorb(found, inner.outvars, numbers)
    elif isinstance(x, tuple | list):
        found.update(b"(")
        for part in x:
            _absorb(found, part, numbers)
        found.update(b")")
    elif isinstance(x, Literal):
        _absorb(found, x.val, numbers)
    elif isinstance(x, Var):
        found.update(f"{numbers.setdefault(x, len(numbers))}:{x.aval}".encode())
    elif isinstance(x, np.ndarray | np.generic | jax.Array) and _is_readable(x):
        found.update(f"{x.dtype}{np.shape(x)}".encode() + np.asarray(x).tobytes())
    elif callable(x):
        found.update(f"{getattr(x, '__module__', '')}.{getattr(x, '__qualname__', '')}".encode())
    else:
        found.update(re.sub(" at 0x[0-9a-f]+", "", repr(x)).encode())


def _numbers(jaxpr: Any) -> Iterator[Any]:
    """The constants of a jaxpr and of the jaxprs within it, in order."""
    yield from filter(_is_readable, getattr(jaxpr, "consts", ()))
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    yield from _literals(jaxpr.outvars)
    for eqn in jaxpr.eqns:
        yield from _literals(eqn.invars)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    yield from _numbers(inner)


def _literals(variables):
    return (v.val for v in variables if isinstance(v, Literal) and _is_readable(v.val))


def _is_readable(x):
    if isinstance(x, Tracer) or jnp.issubdtype(_type(x), jax.dtypes.extended):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def _is_float(x):
    return jnp.issubdtype(_type(x), jnp.inexact)


def _is_ref(aval):
    return hasattr(aval, "inner_aval")


def _type(x):
    return getattr(x, "dtype", type(x))
