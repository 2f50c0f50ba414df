"""Curvature in other units of the weights, `T A T`, for adaptive sharpness and optimisers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry.operators.algebra import Matvec, Operator, Params
from sharpjax.geometry.operators.arguments import check_operator
from sharpjax.perturbation import Scaling


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Congruence(Operator):
    """`T A T` with a diagonal `T`; `congruence` makes it.

    Attributes:
        operator: any `Operator`.
        scale: the diagonal, a tree like its vectors whose leaves broadcast against theirs.
    """

    operator: Any
    scale: Any

    @property
    def like(self) -> Any:
        return self.operator.like

    def linearize(self) -> Matvec:
        return Partial(_congruent_product, self.operator.linearize(), self.scale)


def congruence(operator: Operator, scale: Params | Scaling) -> Congruence:
    """`T A T` with a diagonal `T`: the curvature if each weight is measured in its own unit.

    With `u = e / T`, `e'A e = u'(T A T) u`. So the largest eigenvalue of
    `congruence(hessian(loss, params, batch), perturbation.element())` is twice the adaptive
    sharpness per squared radius (ASAM; Kwon et al., 2021, arXiv 2102.11600), to second order and at
    a stationary point. It does not change under rescalings that leave the function of a ReLU
    network unchanged.

    A product costs one product of A and two passes over a vector.

    Args:
        operator: any operator A.
        scale: T, a tree like the vectors of A whose leaves broadcast against theirs; or a rule of
            `sharpjax.perturbation`, which is evaluated on `operator.like`. For the operators of a
            loss that this library makes, this is the parameters.

    Raises:
        UserError: T has another structure, a leaf does not broadcast, or it holds a NaN (which a
            traced one may).

    >>> from sharpjax import perturbation
    >>> from sharpjax.geometry import hessian
    >>> operator = hessian(lambda w, batch: jnp.sum(w) ** 2 / 2, jnp.array([1.0, -3.0]), None)
    >>> congruence(operator, perturbation.element()).linearize()(jnp.ones(2)).tolist()
    [4.0, 12.0]
    """
    check_operator("congruence", operator)
    like = operator.like
    # An Equinox module is callable, too.
    if callable(scale) and jax.tree_util.all_leaves([scale]):
        if not all(isinstance(x, jax.Array) for x in jax.tree.leaves(like)):
            raise UserError(
                "congruence: a rule needs the values of the parameters, which this operator does "
                "not hold; pass the tree that the rule gives, such as element()(params)."
            )
        scale = scale(like)
    scale = _diagonal("congruence", "scale", scale, like)
    _refuse("congruence", "scale", scale, jnp.isnan, "may hold no NaN")
    return Congruence(operator, scale)


def preconditioned(operator: Operator, preconditioner: Params) -> Congruence:
    """`P^-1/2 A P^-1/2` with a positive diagonal `P`: it has the eigenvalues of `P^-1 A`.

    The largest of them decides whether an optimiser that divides its step by `P` is stable, with
    learning rate `lr` and decay `b1` of the first moment. Full-batch Adam is stable if it is below
    `(2 + 2 b1) / ((1 - b1) lr)`, which is 38 / lr for b1 = 0.9; RMSProp if it is below 2 / lr
    (Cohen et al., 2022, arXiv 2207.14484); AdamW with decay `g` if it is below
    `(1 + b1) / (1 - b1) (2 / lr - g)`.

    A product costs as in `congruence`.

    Args:
        operator: any operator A, such as a Hessian.
        preconditioner: P, a tree like the vectors of A whose leaves broadcast against theirs. From
            an optimiser's state: `preconditioner(opt_state, ...)`.

    Raises:
        UserError: P has another structure, a leaf does not broadcast, or it holds a number that is
            not above 0 (which a traced one may). Infinity is allowed.

    >>> from sharpjax.geometry import hessian
    >>> operator = hessian(lambda w, batch: jnp.sum(w**2) / 2, jnp.ones(2), None)
    >>> scaled = preconditioned(operator, jnp.array([4.0, 16.0]))
    >>> scaled.linearize()(jnp.ones(2)).tolist()
    [0.25, 0.0625]
    """
    caller = "preconditioned"
    check_operator(caller, operator)
    diagonal = _diagonal(caller, "preconditioner", preconditioner, operator.like)
    _refuse(caller, "preconditioner", diagonal, lambda p: ~(p > 0), "must be above 0 throughout")
    return Congruence(operator, jax.tree.map(lambda p: 1 / jnp.sqrt(p), diagonal))


def _refuse(caller, argument, diagonal, is_bad, fault):
    """A `UserError` if any number is bad; traced ones are not checked."""
    for name, x in zip(tree.path_names(diagonal), jax.tree.leaves(diagonal), strict=True):
        if isinstance(x, Tracer):
            continue
        with jax.ensure_compile_time_eval():
            count = int(jnp.sum(is_bad(x), dtype=jnp.int32))
        if count:
            raise UserError(f"{caller}: '{name}' of {argument} {fault}; {count} of {x.size} fail.")


def _diagonal(caller, argument, scale, like):
    def ones(leaves):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((), jnp.float32), leaves)

    tree.check_same_structure(caller, argument, ones(scale), ones(like))
    tree.check_floating(caller, scale, argument)
    names = tree.path_names(like)
    for name, t, x in zip(names, jax.tree.leaves(scale), jax.tree.leaves(like), strict=True):
        given, shape = jnp.shape(t), jnp.shape(x)
        padded = (1,) * (len(shape) - len(given)) + given
        fits = len(padded) == len(shape) and all(
            a in (1, b) for a, b in zip(padded, shape, strict=True)
        )
        if not fits:
            raise UserError(
                f"{caller}: '{name}' of {argument} has shape {given}, which does not broadcast "
                f"against {shape}, the shape of the parameters."
            )
    return tree.widen(jax.tree.map(jnp.asarray, scale))


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _congruent_product(product, scale, vector):
    return _times(scale, product(_times(scale, vector)))


def _times(scale, vector):
    # Ranks are made equal explicitly, since rank promotion may be disallowed.
    return jax.tree.map(
        lambda t, x: t.reshape((1,) * (x.ndim - t.ndim) + t.shape).astype(x.dtype) * x,
        scale,
        vector,
    )
