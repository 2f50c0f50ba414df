"""Keeps trained factors a valid SVD: U and V with orthonormal columns, s not negative.

Decomposed learning requires neither. There are two ways to enforce it: a penalty in the loss, or a
projection after each update.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.nn.svd import is_factors


def penalty(params: Any) -> jax.Array:
    """The sum over decomposed matrices of (||U'U - I||_F^2 + ||V'V - I||_F^2) / k^2.

    From "Learning Low-rank Deep Neural Networks via Singular Vector Orthogonality Regularization"
    (arXiv 2004.09031). Cost: k^2 (m + n) multiplications for each matrix.

    Raises:
        UserError: params holds no factors.

    >>> print(penalty({"kernel": {"U": 2 * jnp.eye(3), "s": jnp.ones(3), "Vt": jnp.eye(3)}}))
    3.0
    """
    terms = []
    for factors in _all_factors("orthogonality.penalty", params):
        for columns in (factors["U"], factors["Vt"].T):
            k = columns.shape[1]
            gram = columns.T @ columns - jnp.eye(k, dtype=columns.dtype)
            terms.append(jnp.sum(jnp.square(gram)) / k**2)
    return tree.total(terms)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Penalised:
    """`loss(params, batch) + weight * penalty(params)`; use it like any other loss.

    Attributes:
        loss: a loss of parameters with factors.
        weight: a number, or an array with a value for each member of a population.
    """

    loss: Callable[[Any, Any], jax.Array]
    weight: jax.typing.ArrayLike

    def __call__(self, params: Any, batch: Any) -> jax.Array:
        return self.loss(params, batch) + self.weight * penalty(params)


def constrain(
    *, orthonormal: bool = False, nonnegative: bool = False
) -> optax.GradientTransformationExtraArgs:
    """An optax transform, last in a chain, that projects updated factors onto the constraints.

    - orthonormal: U and V become the Q of their QR decomposition, with signs such that R has a
      positive diagonal. This is a retraction: to first order in the update it is the projection on
      the tangent space, and U'U = I holds up to rounding at any step size. Cost: 2 (m + n) k^2
      multiplications.
    - nonnegative: s is clipped at 0. A later update may make it positive again. Unlike a softplus,
      this does not change the coordinates of weight decay and curvature.

    Raises:
        UserError: `init` of params without factors; `update` without params.

    >>> params = {"kernel": {"U": jnp.eye(2), "s": jnp.ones(2), "Vt": jnp.eye(2)}}
    >>> optimizer = optax.chain(optax.sgd(1.0), constrain(nonnegative=True))
    >>> grads = jax.tree.map(lambda leaf: 3 * leaf, params)
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"]["s"].tolist()
    [0.0, 0.0]
    """

    def init(params):
        _all_factors("orthogonality.constrain", params)
        return optax.EmptyState()

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise UserError("orthogonality.constrain: update(updates, state, params) needs params.")
        return jax.tree.map(put_back, updates, params, is_leaf=is_factors), state

    def put_back(update, old):
        if not is_factors(update):
            return update
        new = jax.tree.map(jnp.add, dict(old), dict(update))
        if orthonormal:
            new["U"], new["Vt"] = _orthonormal(new["U"]), _orthonormal(new["Vt"].T).T
        if nonnegative:
            new["s"] = jnp.maximum(new["s"], 0)
        return jax.tree.map(jnp.subtract, new, dict(old))

    return optax.GradientTransformationExtraArgs(init, update)


def _orthonormal(columns: jax.Array) -> jax.Array:
    q, r = jnp.linalg.qr(columns)
    sign = jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)
    return q * jnp.expand_dims(sign, 0)


def _all_factors(caller: str, params: Any) -> list[Mapping[str, jax.Array]]:
    found = [node for node in jax.tree.leaves(params, is_leaf=is_factors) if is_factors(node)]
    if not found:
        raise UserError(
            f"{caller}: params holds no factors; give the model `decompose=Decomposition(...)`, or "
            "`svd.decompose` the parameters."
        )
    return found
