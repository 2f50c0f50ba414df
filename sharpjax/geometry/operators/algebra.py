"""Operators, and their sums and multiples.

An operator computes nothing until a solver linearises it. It is a registered frozen dataclass whose
arrays are leaves, so one compilation serves every checkpoint, and one vmap a whole population.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss import closures
from sharpjax.geometry.loss.assumptions import renewed
from sharpjax.geometry.operators import matrix

Params = Any
Matvec = Callable[[Params], Params]

REGISTER = (
    "Make it a frozen dataclass, and put @sharpjax.tree.register_dataclass above that, in place of "
    "jax's own."
)


def _compiled(method):
    """Wraps a method `linearize`: it checks the loss again if that changed, and is compiled if it
    is called outside of a trace."""

    @functools.wraps(method)
    def linearize(self):
        check_class("linearize", self)
        self = renewed("linearize", self)
        is_off = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        inside = is_off or loops.is_traced(self) or loops.inside_jit()
        if inside:
            return method(self)
        product = method(self) if loops.holds_host_code(self) else _linearize(self)
        return _Kept(product, closures.reads(product))

    return linearize


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """A product that a caller may keep.

    It may call the loss again later, for example for each microbatch. The loss must then still be
    the one that was linearised and checked."""

    product: Any
    reads: frozenset[Any] = dataclasses.field(repr=False, metadata={"static": True})

    def __call__(self, vector: Params) -> Params:
        if closures.reads(self.product) != self.reads:
            raise UserError(
                "product: the loss reads something else than when linearize() was called. Call "
                "operator.linearize() again."
            )
        return loops.call(self.product, vector)


class Operator(abc.ABC):
    """A symmetric linear map from trees like `like` to trees like `like`.

    Operators can be added, and multiplied by numbers: `A + B`, `A - B`, `-A`, `2 * A`, `A / 2`,
    and `A + 0.1` for `A + 0.1 I`. A number is a Python or numpy number or a jax scalar, traced ones
    included. It is a leaf, so another number compiles nothing new. Both operators of a sum must act
    on the same vectors.

    `A @ v` is one product: linearised and applied in one program, compiled once for each
    structure. For many products use `product = A.linearize()`, which is also compiled.

    **An operator of your own**: `operator(matvec, like=params)` makes one from a function. If part
    of the product does not depend on the vector, subclass `Operator` instead. The subclass is a
    frozen dataclass, registered by `sharpjax.tree.register_dataclass`, with arrays as leaves and
    functions and options static. It defines `like` and `linearize()`.

    Attributes:
        like: the structure of a vector: a tree of arrays. Only shapes, types and shardings are
            read. Vectors are in float32 if a leaf of `like` is narrower.

    Raises:
        UserError: the operators of a sum act on different spaces, or v does not match `like`.
        TypeError: the other operand is neither an operator nor a real scalar.

    >>> from sharpjax.geometry import hessian
    >>> A = hessian(lambda w, batch: jnp.sum(w**2), jnp.ones(2), None)
    >>> ((3 * A - A + 0.5) @ jnp.array([1.0, 2.0])).tolist()
    [4.5, 9.0]
    """

    # Not an abstract property: a dataclass would take that for the default of a field `like`.
    like: Any

    @abc.abstractmethod
    def linearize(self) -> Matvec:
        """The product `v -> A v`; everything that does not depend on v is computed once.

        Use it for many products of your own. Called outside of any trace, it is compiled once for
        each structure, and so is the product. A solver jits this method and calls it once per
        solve. A subclass therefore returns a `jax.tree_util.Partial` of a module-level function: a
        closure cannot leave a jit.
        """

    __array_ufunc__ = None  # so that numpy scalars leave `2 * A` to this class

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "linearize" in vars(cls):
            cls.linearize = _compiled(cls.linearize)

    def __matmul__(self, vector: Params) -> Params:
        return NotImplemented if isinstance(vector, Operator) else matrix.multiply(self, vector)

    def to_dense(self, *, max_bytes: int = 2**30) -> jax.Array:
        """The n x n matrix, in the order of `jax.flatten_util.ravel_pytree`; for small operators.

        Costs n products, 32 at a time. The dtype is float64 if a leaf is float64, else float32.

        Args:
            max_bytes: largest allowed size of the matrix.

        Raises:
            UserError: the matrix would be larger than `max_bytes`.

        >>> from sharpjax.geometry import hessian
        >>> def loss(params, batch):
        ...     return params["a"] * params["b"][0] + params["b"][1] ** 2
        >>> params = {"a": jnp.float32(1), "b": jnp.ones(2)}
        >>> hessian(loss, params, None).to_dense().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
        """
        return matrix.to_dense(self, max_bytes)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` on flat vectors, for scipy's solvers.

        It is symmetric, in the order of `jax.flatten_util.ravel_pytree`, and in float64 if a leaf
        is float64, else in float32. It is the operator as it is now: linearised once, in this call.

        Raises:
            UserError: called inside of jit, grad or vmap.

        >>> from scipy.sparse.linalg import eigsh
        >>> from sharpjax.geometry import hessian
        >>> A = hessian(lambda w, batch: jnp.sum(w**4) / 12, jnp.arange(5.0), None)
        >>> eigsh(A.to_scipy(), k=2, return_eigenvectors=False).round(3).tolist()
        [9.0, 16.0]
        """
        return matrix.to_scipy(self)

    def __add__(self, other):
        if _is_number(other):
            return Damped(self, _as_float(other))
        if not isinstance(other, Operator):
            return NotImplemented
        check_same_space("A + B", self, other)
        return Sum((*_terms(self), *_terms(other)))

    def __radd__(self, other):
        # Python's sum() starts at 0.
        return self if isinstance(other, int) and other == 0 else self + other

    def __sub__(self, other):
        if _is_number(other):
            return Damped(self, -_as_float(other))
        return self + Scaled(other, -1.0) if isinstance(other, Operator) else NotImplemented

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, factor):
        return Scaled(self, _as_float(factor)) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor):
        return Scaled(self, 1 / _as_float(divisor)) if _is_number(divisor) else NotImplemented

    def __neg__(self):
        return Scaled(self, -1.0)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum(Operator):
    """`A + B + ...`, all on the same space; made by `A + B`, which checks the spaces.

    A product costs one product of each operator, and memory for one more vector.
    """

    operators: tuple[Any, ...]

    @property
    def like(self) -> Any:
        return self.operators[0].like

    def linearize(self) -> Matvec:
        return Partial(_sum, tuple(linearize(operator) for operator in self.operators))


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(Operator):
    """`factor A`; made by `factor * A`."""

    operator: Any
    factor: jax.typing.ArrayLike

    @property
    def like(self) -> Any:
        return self.operator.like

    def linearize(self) -> Matvec:
        return Partial(_scale, self.operator.linearize(), self.factor)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Damped(Operator):
    """`A + damping I`; made by `A + damping`."""

    operator: Any
    damping: jax.typing.ArrayLike

    @property
    def like(self) -> Any:
        return self.operator.like

    def linearize(self) -> Matvec:
        return Partial(_damp, self.operator.linearize(), self.damping)


def linearize(operator: Operator) -> Matvec:
    """`operator.linearize()`, compiled once per structure; a solver calls this first.

    The returned product keeps its identity as long as the compilation is cached, so loops that take
    it as an operand are also compiled only once. An operator that holds host code, such as one
    averaged over a data set, compiles its own parts.
    """
    if not loops.holds_host_code(operator):
        return _solved(operator)
    traced = loops.is_traced(operator)
    product = (without_derivative(operator) if traced else operator).linearize()
    return product.product if isinstance(product, _Kept) else product


@jax.jit
def _linearize(operator: Operator) -> Matvec:
    return operator.linearize()


@jax.jit
def _solved(operator: Operator) -> Matvec:
    return without_derivative(operator).linearize()


_names_its_class: dict[type, bool] = {}


def check_class(caller: str, operator: Operator) -> None:
    """Refuses an operator whose class jax may confuse with another.

    Raises:
        UserError: names `caller` and how to register the class.
    """
    kind = type(operator)
    if kind not in _names_its_class:
        _names_its_class[kind] = tree.names_its_class(operator)
    if not _names_its_class[kind]:
        raise UserError(
            f"{caller}: the class of an operator, {kind.__name__}, is registered so that jax now "
            f"and then takes it for another class with such fields. {REGISTER}"
        )


def without_derivative(tree: Any) -> Any:
    """The same tree, for use in a solver; differentiating through it is an error.

    Raises:
        UserError: a derivative is taken through the tree.
    """

    def leaf(x):
        is_float = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return _without_derivative(x) if is_float else x

    return jax.tree.map(leaf, tree)


@jax.custom_jvp
def _without_derivative(x):
    return x


@_without_derivative.defjvp
def _refuse_derivative(primals, tangents):
    raise UserError(
        "a solver has no derivative (jax.grad, jax.jvp): it ends by a condition, after steps whose "
        "number depends on the numbers. Take what it finds as a constant (jax.lax.stop_gradient of "
        "the parameters that it gets). The derivative of an eigenvalue is that of v'Hv = "
        "sharpjax.tree.vdot(v, operator @ v) with its vector v held constant, and that "
        "of a trace the mean of z'Hz over fixed probes z."
    )


def _terms(operator) -> tuple[Any, ...]:
    return operator.operators if isinstance(operator, Sum) else (operator,)


def check_same_space(caller: str, a: Any, b: Any) -> None:
    """Refuses two operators that act on different vectors.

    Raises:
        UserError: names `caller` and the first leaf that differs.
    """
    a, b = (jax.eval_shape(tree.widen, operator.like) for operator in (a, b))
    if jax.tree.structure(a) == jax.tree.structure(b) and _shapes(a) == _shapes(b):
        return
    first, second = _shapes(a), _shapes(b)
    names = [n for n in (*first, *second) if first.get(n) != second.get(n)]
    what = "their containers differ"
    if names:
        here, there = (shapes.get(names[0], "missing") for shapes in (first, second))
        what = f"'{names[0]}' is {here} in the first and {there} in the second"
    raise UserError(
        f"{caller}: the operators act on different vectors: {what}. Make both with the same params "
        f"and the same where, or cut one down by restricted(operator, where)."
    )


def _shapes(like) -> dict[str, str]:
    shapes = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(like)]
    return dict(zip(tree.path_names(like), shapes, strict=True))


def _is_number(x):
    if isinstance(x, int | float):
        return True
    real = hasattr(x, "dtype") and any(
        jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer)
    )
    return real and jnp.shape(x) == ()


def _as_float(x):
    """The same number as a float. For an integer, `-x` may not fit its type, and x may be too large
    for the integer type that jax would choose."""
    if isinstance(x, int | float):
        return float(x)
    return jnp.asarray(x, float) if jnp.issubdtype(x.dtype, jnp.integer) else x


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _sum(products, vector):
    first, *others = (loops.call(product, vector) for product in products)
    for other in others:
        first = jax.tree.map(lambda x, y: x + y.astype(x.dtype), first, other)
    return first


def _scale(product, factor, vector):
    return tree.scale(factor, product(vector))


def _damp(product, damping, vector):
    return tree.add_scaled(product(vector), damping, vector)
