"""The user's own product as an operator."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss import closures, dependence
from sharpjax.geometry.loss.assumptions import Assuming, both, guard, require
from sharpjax.geometry.loss.checks import as_loss
from sharpjax.geometry.operators.algebra import Matvec, Operator, Params


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Custom(Operator, Assuming):
    """`v -> loss(v)`; `operator` makes it and checks it.

    Attributes:
        loss: the product, a callable pytree.
        like: the structure of a vector.
    """

    loss: Any
    like: Any

    def check(self, caller: str) -> dict[str, Any]:
        matvec = _settled(caller, self.loss, self.like)
        return {"loss": matvec, "checked": _check(caller, matvec, self.like)}

    def linearize(self) -> Matvec:
        return guard(Partial(_product, self.loss), self.checked)


def operator(matvec: Callable[[Params], Params], *, like: Params) -> Operator:
    """Your own symmetric product as an operator, for every solver of this library.

    Three products with random vectors u and v check that it is linear and symmetric:
    `u'(A v) = v'(A u)` and `A (u + 2 v) = A u + 2 A v`, up to `100 eps sqrt(n)` of the size of
    products with n numbers. The check misses an asymmetric part whose Frobenius norm is below about
    `200 eps sqrt(n)` of that of A: 2e-3 for 10,000 numbers in float32. Products that are not finite
    pass; the status of a solver is then `NON_FINITE`.

    If part of a product does not depend on the vector, such as a factorisation, compute it
    beforehand and let `matvec` hold it, or subclass `Operator`, whose `linearize` computes it once
    per solve.

    Args:
        matvec: `matvec(vector) -> vector`, on trees like `like`, that jax can trace. A hashable
            function, or a callable pytree such as `jax.tree_util.Partial`, whose arrays are then
            traced: operators that differ in them share one compilation. It runs at `highest`
            matmul precision. Values that it reads besides its argument (globals, closures) are
            looked up at each call; if they changed, it is checked again.
        like: an example of a vector, such as the parameters: a tree of floating arrays. Vectors are
            in float32 where a leaf of `like` is narrower.

    Raises:
        UserError: an argument does not fit, or the product is not linear or not symmetric. Inside
            of jit nothing is raised for the latter; results have the status `ASSUMPTION_FAILED`.

    >>> A = operator(jax.tree_util.Partial(jnp.matmul, jnp.diag(jnp.arange(4.0))), like=jnp.ones(4))
    >>> ((A + 1) @ jnp.ones(4)).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    caller = "operator"
    matvec = as_loss(caller, matvec, "matvec")
    tree.check_floating(caller, like, "like")
    if not tree.size(like):
        raise UserError(f"{caller}: the arrays of like are empty.")
    like = jax.tree.map(jnp.asarray, like)
    matvec = _settled(caller, matvec, like)
    checked = _check(caller, matvec, like)
    return Custom(matvec, like, checked=checked, reads=closures.reads(matvec))


def _check(caller, matvec, like):
    """Checks on random vectors that the product is linear and symmetric."""
    vectors = _draw(like)
    # Three calls of one compiled product.
    linear, symmetric = _hold(vectors, [_jitted_product(matvec, vector) for vector in vectors])
    remedy = (
        "Take jax.linearize or jax.jvp of a function that is not linear. Where products are "
        "only noisy, as those of a model that computes in bfloat16, compute them in float32."
    )
    return both(
        require(caller, linear, f"A (u + 2 v) is not A u + 2 A v: matvec is not linear. {remedy}"),
        require(
            caller,
            symmetric,
            f"u'(A v) is not v'(A u): matvec is not symmetric. Eigenvalues, traces and solves here "
            f"are of symmetric matrices: (A + A') / 2, or A'A. {remedy}",
        ),
    )


def _settled(caller, matvec, like):
    """The product; if it has parts that cannot be inspected, with a token made from a trace, as for
    a loss. Refused if its result is not a vector like its argument."""
    before = jax.tree.structure(matvec)
    wide = jax.eval_shape(tree.widen, like)
    try:
        found = jax.eval_shape(tree.widen, _jitted_product.eval_shape(matvec, wide))
    except jax.errors.TracerArrayConversionError:
        raise UserError(
            f"{caller}: matvec turns its vector into a numpy array, which jax cannot trace. "
            f"Compute with jax.numpy, or call it by jax.pure_callback."
        ) from None
    tree.check_same_structure(caller, "matvec(vector)", found, wide, of="like")
    writes = jax.tree.structure(matvec) != before
    if not writes and not any(map(closures.is_opaque, closures.members(matvec))):
        return matvec
    # A new function each time, since jax caches traces by function.
    token = dependence.digest(jax.make_jaxpr(lambda f, v: f(v))(matvec, wide))
    return closures.replace(matvec, lambda member: member.with_token(token, walked=not writes))


@jax.jit
def _draw(like):
    like = tree.zeros_like(tree.widen(like))
    keys = jax.random.split(jax.random.key(0))
    u, v = (tree.add_scaled(like, 1.0, tree.random_normal(key, like)) for key in keys)
    return u, v, tree.add_scaled(u, 2.0, v)


@jax.jit
def _hold(vectors, products):
    # In units of the largest entry, so that no square over- or underflows.
    sizes = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(products)]
    dtype = tree.vdot(vectors[0], vectors[0]).dtype
    largest = jnp.max(jnp.stack([x.astype(dtype) for x in sizes]))
    finite = jnp.isfinite(largest)
    unit = jnp.where((largest > 0) & finite, largest, 1)
    # In two steps: 1 / unit may be infinite.
    root = 1 / jnp.sqrt(unit)
    au, av, mixed = (tree.scale(root, tree.scale(root, product)) for product in products)
    u, v, _ = vectors
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(u))
    allowed = 100 * eps * tree.size(u) ** 0.5 * (tree.norm(au) + tree.norm(av))
    gap = tree.norm(tree.add_scaled(tree.add_scaled(mixed, -1.0, au), -2.0, av))
    asymmetry = jnp.abs(tree.vdot(u, av) - tree.vdot(v, au))
    return (gap <= allowed) | ~finite, (asymmetry <= allowed) | ~finite


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _product(matvec, vector):
    with jax.default_matmul_precision("highest"):
        return tree.widen(matvec(vector))


_jitted_product = jax.jit(_product)
