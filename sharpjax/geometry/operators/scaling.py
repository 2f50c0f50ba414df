"""Curvature in other units of the weights: `T A T`, as adaptive sharpness and optimisers see it."""

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


@jax.tree_util.register_dataclass
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
    """`T A T` with a diagonal `T`: curvature where each weight is measured in a unit of its own.

    With `u = e / T`, `e'A e = u'(T A T) u`. So the largest eigenvalue of
    `congruence(hessian(loss, params, batch), perturbation.element())` is twice the adaptive
    sharpness per squared radius (ASAM; Kwon et al., 2021, arXiv 2102.11600), to second order and at
    a stationary point: it does not change under rescalings that leave a ReLU network as it is.

    Costs a product of A and two passes over a vector.

    Args:
        operator: any operator A.
        scale: T, a tree like its vectors whose leaves broadcast against theirs; or a rule of
            `sharpjax.perturbation`, which is resolved on `operator.like`: the parameters, for
            operators that this library makes.

    Raises:
        UserError: T has another structure, or a leaf does not broadcast.

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
    return Congruence(operator, _diagonal("congruence", "scale", scale, like))


def preconditioned(
    operator: Operator,
    nu: Params,
    *,
    count: int | jax.Array | None = None,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
) -> Congruence:
    """`P^-1/2 A P^-1/2` with the preconditioner of Adam, `P = diag(sqrt(nu_hat) + eps)`.

    It has the eigenvalues of `P^-1 A`. Full-batch Adam with learning rate `lr` and decay `b1` of
    its first moment is stable where the largest is below `(2 + 2 b1) / ((1 - b1) lr)`: 38 / lr for
    b1 = 0.9; RMSProp, where it is below 2 / lr (Cohen et al., 2022, arXiv 2207.14484).

    Args:
        operator: any operator A, such as a Hessian.
        nu: the second moments, a tree like its vectors: `optax.tree.get(opt_state, "nu")`.
        count: steps that were taken; then `nu_hat = nu / (1 - b2^count)`, as Adam corrects its
            bias. None where nu is used as it is (RMSProp).
        b2, eps: of the optimiser.

    Raises:
        UserError: nu has another structure, or a leaf does not broadcast.

    >>> from sharpjax.geometry import hessian
    >>> operator = hessian(lambda w, batch: jnp.sum(w**2) / 2, jnp.ones(2), None)
    >>> scaled = preconditioned(operator, jnp.array([16.0, 256.0]), eps=0.0)
    >>> scaled.linearize()(jnp.ones(2)).tolist()
    [0.25, 0.0625]
    """
    caller = "preconditioned"
    check_operator(caller, operator)
    if count is not None and not isinstance(count, Tracer) and jnp.any(count < 1):
        raise UserError(
            f"{caller}: count={count}; the second moments mean nothing before the first step."
        )
    nu = _diagonal(caller, "nu", nu, operator.like)
    steps = None if count is None else jnp.asarray(count, float)
    corrected = None if steps is None else -jnp.expm1(steps * jnp.log(jnp.asarray(b2, float)))

    def scale(n):
        n = n if corrected is None else n / corrected.astype(n.dtype)
        return 1 / jnp.sqrt(jnp.sqrt(n) + jnp.asarray(eps, n.dtype))

    return Congruence(operator, jax.tree.map(scale, nu))


def _diagonal(caller, argument, scale, like):
    def ones(leaves):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((), jnp.float32), leaves)

    tree.check_same_structure(caller, argument, ones(scale), ones(like))
    tree.check_floating(f"{caller}: {argument}", scale)
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
    # Ranks are named, for promotion may be strict.
    return jax.tree.map(
        lambda t, x: t.reshape((1,) * (x.ndim - t.ndim) + t.shape).astype(x.dtype) * x,
        scale,
        vector,
    )
