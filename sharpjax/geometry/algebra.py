"""Operators, and their sums and multiples.

An operator computes nothing until a solver linearises it. It is a registered frozen dataclass whose
arrays are leaves, so one compilation serves every checkpoint and one vmap a whole population.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import tree

Params = Any
Matvec = Callable[[Params], Params]


@runtime_checkable
class Operator(Protocol):
    """A symmetric linear map from trees like `like` to trees like `like`.

    Implementations are registered dataclasses (`jax.tree_util.register_dataclass`): arrays as
    leaves, functions and options static.

    Attributes:
        like: the structure of a vector: a tree of arrays of which only shapes, types and places on
            the devices are read. Vectors are in float32 at least where it is narrower.
    """

    @property
    def like(self) -> Any: ...

    def linearize(self) -> Matvec:
        """The product, with all that does not depend on the vector computed once.

        A solver jits this method and calls it once per solve, so the result is a
        `jax.tree_util.Partial` of a module-level function: a closure cannot leave a jit.
        """
        ...


class Composable:
    """What every operator of this library can do: `A + B`, `A - B`, `-A`, `2 * A`, and `A + 0.1`
    for `A + 0.1 I`."""

    def __add__(self, other):
        return Damped(self, other) if _is_number(other) else Sum((self, other))

    __radd__ = __add__

    def __sub__(self, other):
        return self + -1 * other

    def __rsub__(self, other):
        return -1 * self + other

    def __mul__(self, factor):
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __neg__(self):
        return Scaled(self, -1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum(Composable):
    """`A + B + ...`, all on the same space."""

    operators: tuple[Any, ...]

    @property
    def like(self) -> Any:
        return self.operators[0].like

    def linearize(self) -> Matvec:
        return Partial(_sum, tuple(operator.linearize() for operator in self.operators))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(Composable):
    """`factor A`."""

    operator: Any
    factor: jax.typing.ArrayLike

    @property
    def like(self) -> Any:
        return self.operator.like

    def linearize(self) -> Matvec:
        return Partial(_scale, self.operator.linearize(), self.factor)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Damped(Composable):
    """`A + damping I`."""

    operator: Any
    damping: jax.typing.ArrayLike

    @property
    def like(self) -> Any:
        return self.operator.like

    def linearize(self) -> Matvec:
        return Partial(_damp, self.operator.linearize(), self.damping)


@jax.jit
def linearize(operator: Operator) -> Matvec:
    """`operator.linearize()`, compiled once per structure; what a solver calls first.

    The product that it returns keeps its identity as long as the compilation is cached, so loops
    that take it as an operand are compiled once, too.
    """
    return operator.linearize()


def widen(vector: Any) -> Any:
    """The same tree with float32 in place of narrower floating types.

    >>> widen({"w": jnp.ones(2, jnp.bfloat16)})
    {'w': Array([1., 1.], dtype=float32)}
    """

    def leaf(x):
        narrow = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and is_narrow(x)
        return x.astype(jnp.float32) if narrow else x

    return jax.tree.map(leaf, vector)


def is_narrow(x: Any) -> bool:
    """Whether numbers of this array or type are shorter than float32."""
    return x.dtype.itemsize < 4


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _sum(products, vector):
    first, *others = (product(vector) for product in products)
    for other in others:
        first = jax.tree.map(jnp.add, first, other)
    return first


def _scale(product, factor, vector):
    return tree.scale(factor, product(vector))


def _damp(product, damping, vector):
    return tree.add_scaled(product(vector), damping, vector)


def _is_number(x):
    return isinstance(x, int | float) or hasattr(x, "dtype") and jnp.shape(x) == ()
