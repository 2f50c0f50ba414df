"""The FLOPs of the matrix products and convolutions of a function, found by tracing it."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax


class Count(NamedTuple):
    """Totals over the matrix products and convolutions of a program.

    Attributes:
        flops: a multiplication and an addition count as two.
        output_bytes: the bytes of all their outputs together.
    """

    flops: int
    output_bytes: int


def count(fn: Callable, *args: Any) -> Count:
    """Trace `fn(*args)` and count its matrix products and convolutions.

    The body of a scan counts once per iteration. Of the branches of a cond, the most expensive one
    counts. A while loop and a kernel count as one pass through their bodies. Elementwise operations
    do not count. The products of a convolution with its padding do.

    Args:
        args: arrays, or `jax.ShapeDtypeStruct`s.

    >>> import jax.numpy as jnp
    >>> count(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4))) == Count(2 * 2 * 3 * 4, 4 * 2 * 4)
    True
    """
    return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(jaxpr: Any) -> Count:
    found = [_of_equation(eqn) for eqn in jaxpr.eqns]
    return Count(sum(c.flops for c in found), sum(c.output_bytes for c in found))


def _of_equation(eqn: Any) -> Count:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        terms = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    else:
        inner = [_of(jaxpr) for jaxpr in _jaxprs(params)]
        if name == "cond":
            return max(inner)
        times = params["length"] if name == "scan" else 1
        return Count(*(times * sum(each) for each in zip(Count(0, 0), *inner, strict=True)))
    out = eqn.outvars[0].aval
    size = math.prod(out.shape)
    return Count(2 * size * terms, size * out.dtype.itemsize)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner
