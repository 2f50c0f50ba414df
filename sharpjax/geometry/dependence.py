"""What a jaxpr tells of a function: whether its value depends on an argument, and on nothing else
but its arguments."""

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
)


def reaches(jaxpr: Jaxpr, inputs: Iterable[int]) -> bool:
    """Whether a derivative can get from one of these inputs to an output.

    Equations that hold a jaxpr (loops, calls) hand on whatever they get, so this errs on the side
    of yes.

    >>> jaxpr = jax.make_jaxpr(lambda x, y: jnp.sum(x) + jnp.argmax(y))(jnp.ones(2), jnp.ones(2))
    >>> reaches(jaxpr.jaxpr, [0]), reaches(jaxpr.jaxpr, [1])
    (True, False)
    """
    reached = {jaxpr.invars[i] for i in inputs}
    for eqn in jaxpr.eqns:
        variables = (v for v in eqn.invars if not isinstance(v, Literal))
        if eqn.primitive.name != "stop_gradient" and any(v in reached for v in variables):
            reached.update(v for v in eqn.outvars if _is_float(v.aval))
    return any(not isinstance(v, Literal) and v in reached for v in jaxpr.outvars)


def differ(closed: ClosedJaxpr, other: ClosedJaxpr) -> bool:
    """Whether two traces of one function hold different numbers.

    Such a function draws from a generator that jax knows nothing of.

    >>> rng = np.random.default_rng(0)
    >>> first, second = (jax.make_jaxpr(lambda x: x + rng.normal())(1.0) for _ in range(2))
    >>> differ(first, first), differ(first, second)
    (False, True)
    """
    return any(
        a is not b and np.shape(a) == np.shape(b) and not np.array_equal(a, b, _is_float(a))
        for a, b in zip(_numbers(closed), _numbers(other), strict=False)
    )


def _numbers(jaxpr: Any) -> Iterator[Any]:
    """The constants of a jaxpr and of those within it, in their order."""
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


def _type(x):
    return getattr(x, "dtype", type(x))
