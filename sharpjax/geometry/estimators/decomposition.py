"""Traces and diagonals that are exact as far as the structure of an operator allows.

For a loss in parts, `H = G + R + (H - G - R)`. The Gauss-Newton part G is exact. The part R of the
regulariser comes from its own products. The rest, the curvature of the model, is estimated by
probes on one leaf at a time; it is zero on most piecewise linear nets. Multiples, sums, dampings
and means over batches follow from their terms.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.estimators import deflation, hutchinson
from sharpjax.geometry.estimators.request import Found, Request
from sharpjax.geometry.exact import bending
from sharpjax.geometry.exact.cotangents import as_problem, restrict
from sharpjax.geometry.exact.gauss_newton import exact_part, refuse_mixing
from sharpjax.geometry.exact.remainder import remainder
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss import dependence
from sharpjax.geometry.loss.assumptions import Checked, both, require
from sharpjax.geometry.loss.axes import on_auto_axes
from sharpjax.geometry.loss.checks import check_bends, check_model
from sharpjax.geometry.loss.composed import Composed, is_composed
from sharpjax.geometry.loss.implicit import multiplied_out
from sharpjax.geometry.loss.outer_check import check_outer
from sharpjax.geometry.operators.algebra import Damped, Scaled, Sum, linearize
from sharpjax.geometry.operators.averaging import Averaged
from sharpjax.geometry.operators.blocks import BlockDiagonal, Restricted
from sharpjax.geometry.operators.gauss_newton import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    require_parts,
)
from sharpjax.geometry.operators.hessian import Hessian

# How much two products of a regulariser may differ if its Hessian is to count as diagonal, in units
# of rounding. L2 has 0, log(1 + w^2) about 1, and the group lasso, which is not diagonal, 50,000.
_DIAGONAL_ROUNDING = 64


def decompose(request: Request, statistic: Any, operator: Any, key: jax.Array | None) -> Found:
    """The trace or the diagonal of an operator.

    Args:
        request: the accuracy requested here holds for each part that must be probed.
        statistic: that of a trace or a diagonal, with a `kind`.
        operator, key: as in the request.

    Raises:
        UserError: names the caller; the operator has no exact part, a check of its loss fails, or
            something must be probed and there is no key.
    """
    operator = _inwards(operator)
    if isinstance(operator, Scaled):
        return _scaled(decompose(request, statistic, operator.operator, key), operator.factor)
    if isinstance(operator, Damped):
        found = decompose(request, statistic, operator.operator, key)
        return _damped(statistic.kind, found, operator)
    if isinstance(operator, Sum | Averaged):
        return _of_terms(request, statistic, operator, key)
    if isinstance(operator, BlockDiagonal):  # its diagonal blocks are those of the whole matrix
        return decompose(request, statistic, operator.operator, key)
    if isinstance(operator, Hessian | GaussNewton | Fisher | EmpiricalFisher):
        return _of_loss(request, statistic, operator, key)
    raise UserError(
        f"{request.caller}: method='exact' is for Gauss-Newton and Fisher matrices, for Hessians "
        f"of losses that know their parts (geometry.composed), and for their means over batches, "
        f"sums and multiples; got {type(operator).__name__}."
    )


def _inwards(operator):
    """The same operator, with `Restricted` moved from a composition to its terms."""
    if not isinstance(operator, Restricted):
        return operator
    inner, where = _inwards(operator.operator), operator.where
    if isinstance(inner, Scaled | Damped):
        return dataclasses.replace(inner, operator=Restricted(inner.operator, where))
    if isinstance(inner, Sum):
        return Sum(tuple(Restricted(term, where) for term in inner.operators))
    if isinstance(inner, Averaged):
        return dataclasses.replace(inner, operator=_inwards(Restricted(inner.operator, where)))
    if isinstance(inner, Hessian | GaussNewton | Fisher | EmpiricalFisher):
        return restrict(inner, where)
    return operator


def _of_terms(request, statistic, operator: Sum | Averaged, key) -> Found:
    is_sum = isinstance(operator, Sum)
    terms = ((1, term) for term in operator.operators) if is_sum else operator.members()
    weights, found = [], None
    for i, (weight, term) in enumerate(terms):  # one batch at a time
        own = None if key is None else jax.random.fold_in(key, i)
        part = _scaled(decompose(request, statistic, term, own), weight)
        found = part if found is None else _sum(found, part)
        weights.append(jnp.asarray(weight, float))
    assert found is not None
    return found if is_sum else _scaled(found, 1 / jnp.sum(jnp.stack(weights)))


@jax.jit
def _scaled(found: Found, factor) -> Found:
    def times(factor, values):
        # A term with factor 0 may be NaN or infinite.
        return jax.tree.map(
            lambda x: jnp.where(factor == 0, 0, jnp.asarray(factor, x.dtype) * x), values
        )

    return found._replace(
        value=times(factor, found.value),
        error=times(jnp.abs(factor), found.error),
        remainder=times(factor, found.remainder),
    )


@functools.partial(jax.jit, static_argnums=0)
def _damped(kind, found: Found, operator: Damped) -> Found:
    def add(x, like):
        number = like.size if kind == "trace" else 1
        return x + jnp.asarray(operator.damping, x.dtype) * number

    return found._replace(value=jax.tree.map(add, found.value, operator.like))


@jax.jit
def _sum(one: Found, other: Found) -> Found:
    def add(a, b):
        return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)

    checked = both(one.checked, other.checked)
    error = jax.tree.map(lambda x, y: jnp.hypot(x, y.astype(x.dtype)), one.error, other.error)
    one, other = one._replace(checked=None), other._replace(checked=None)
    return add(one, other)._replace(error=error, checked=checked)


def _of_loss(request, statistic, operator, key) -> Found:
    """The exact part from the structure of the loss, plus probes of the rest."""
    kind, around, bends = statistic.kind, operator, ()
    if isinstance(operator, Hessian):
        around = _around(request.caller, operator)
        bends = bending.find_units(around)
    found, regularizer = _exact(request, kind, around), None
    if not isinstance(around, EmpiricalFisher):
        regularizer = getattr(around.loss, "regularizer", None)
    certified = is_diagonal = None
    if regularizer is not None:
        regularizer = Hessian(Partial(_of_params, regularizer), around.params, None)
        certified, is_diagonal = _diagonal(kind, linearize(regularizer), around.params)
        if not loops.is_traced(is_diagonal) and is_diagonal:
            found, regularizer = _sum(found, certified), None
        elif key is None and loops.is_traced(is_diagonal):
            checked = require(request.caller, is_diagonal, "")
            found, regularizer = _sum(found, certified._replace(checked=checked)), None
    parts = len(bends) + (regularizer is not None)
    if not parts:
        return found
    each = request.share(parts)
    assert key is not None
    keys = jax.random.split(key)
    if regularizer is not None:
        state, _ = deflation.run(
            *(statistic, keys[0], regularizer),
            accuracy=request.accuracy,
            max_products=each,
            basis_size=0,
        )
        found = _sum(found, _unless(is_diagonal, certified, _read(statistic, state)))
    if isinstance(around, GaussNewton) and bends:
        value, error, count = remainder(
            *(kind, bends, around, found.value),
            key=keys[1],
            accuracy=request.accuracy,
            max_probes=each,
        )
        probed = _total(value) if kind == "trace" else None
        found = _sum(found, Found(value, error, probed, count))
    return found


def _around(caller: str, operator: Hessian) -> GaussNewton:
    """The Gauss-Newton matrix of a Hessian, with its regulariser."""
    params, batch, size = operator.params, operator.batch, operator.microbatch_size
    loss = require_parts(caller, operator.loss)
    loss, outputs, how = check_model(caller, loss, params, batch, size)
    check_bends(caller, loss, loss.model_fn, params, batch)
    checked = check_outer(caller, loss, params, batch, outputs)
    checked = both(checked, _refuse_other(caller, operator, loss))
    checked = both(checked, operator.checked)
    return GaussNewton(multiplied_out(loss), params, batch, size, how, checked=checked)


def _exact(request, kind, operator) -> Found:
    problem = as_problem(request.caller, operator)
    checked = refuse_mixing(request.caller, problem)
    value, plan = exact_part(kind, problem)
    error, remainder, count = _nothing(kind, value, plan)
    return Found(value, error, remainder, count, both(checked, operator.checked))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _nothing(kind, value, plan):
    """Error and remainder of the exact part, all zero, and its number of back-propagations."""
    zeros = tree.zeros_like(value)
    remainder = _total(zeros) if kind == "trace" else None
    return zeros, remainder, jnp.int32(plan.total)


def _of_params(regularizer, params, batch):
    return regularizer(params)


@functools.partial(jax.jit, static_argnums=0)
def _diagonal(kind, product, params) -> tuple[Found, jax.Array]:
    """The trace or diagonal if the matrix is diagonal, and whether two random products show it."""
    zeros = tree.zeros_like(tree.widen(params))
    one, other = (
        tree.add_scaled(zeros, 1.0, draw(jax.random.key(i), zeros))
        for i, draw in enumerate((tree.random_rademacher, tree.random_normal))
    )
    value = jax.tree.map(jnp.multiply, one, product(one))
    seen = product(other)
    off = tree.add_scaled(seen, -1.0, jax.tree.map(jnp.multiply, value, other))
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(zeros))
    is_diagonal = units.norm(off) <= _DIAGONAL_ROUNDING * eps * units.norm(seen)
    if kind == "trace":
        value = jax.tree.map(jnp.sum, value)
    zeros = tree.zeros_like(value)
    remainder = _total(zeros) if kind == "trace" else None
    return Found(value, zeros, remainder, jnp.int32(2)), is_diagonal


@functools.partial(jax.jit, static_argnums=0)
def _read(statistic, state) -> Found:
    return hutchinson.read(statistic, state, jnp.int32(2))


@jax.jit
def _unless(condition, if_true, if_false):
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), if_true, if_false)


@jax.jit
def _total(leaves):
    each = jax.tree.leaves(leaves)
    return tree.total([x.astype(jnp.result_type(*each)) for x in each])


def _refuse_other(caller, operator: Hessian, loss: Composed) -> Checked | None:
    """Checks that a loss object with its own way of being called agrees with its parts."""
    if is_composed(operator.loss):
        return None
    args = operator.loss, loss, operator.params, operator.batch
    leaves, treedef = jax.tree.flatten(args)
    if _is_same(treedef, tuple(jax.typeof(x) for x in leaves)):
        return None
    return require(
        caller,
        _is_near(*args),
        "calling the loss does not give outer_loss(model_fn(params, batch), batch) + "
        "regularizer(params) of its attributes: on two examples the curvature differs. Let it "
        "have all of its parts, or call it by them.",
    )


@functools.lru_cache(maxsize=256)
def _is_same(treedef, avals) -> bool:
    """Whether both losses trace to the same operations, one by one."""
    loss, other, params, batch = loops.structs(treedef, avals)
    one, another = (
        jax.make_jaxpr(lambda p, b, fn=fn: fn(tree.widen(p), b))(params, batch)
        for fn in (loss, other)
    )
    return str(one) == str(another) and not dependence.differ(one, another)


@jax.jit
def _is_near(loss, other, params, batch):
    return on_auto_axes(_is_near_on_two, loss, other, params, batch)


def _is_near_on_two(loss, other, params, batch):
    few = jax.tree.map(lambda x: jnp.asarray(x)[:2], batch)
    params = tree.widen(params)
    z = tree.random_normal(jax.random.key(0), params)

    def along(fn):
        with jax.default_matmul_precision("highest"):
            return jax.jvp(lambda p: jax.grad(fn)(p, few), (params,), (z,))[1]

    one, another = along(loss), along(other)
    # The distance of their traces, up to the spread of one probe and rounding.
    off = jnp.abs(tree.vdot(z, tree.add_scaled(one, -1.0, another)))
    tolerance = max(300 * jnp.finfo(off.dtype).eps, 1e-6)
    return off <= tolerance * (jnp.abs(tree.vdot(z, one)) + units.norm(one))
