"""Lanczos without a stored basis: it keeps two vectors and the tridiagonal matrix.

The three-term recurrence `A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}` needs only the
last two vectors (Paige, J. Inst. Maths Applics 10, 1972). Without reorthogonalisation the vectors
lose orthogonality as Ritz values converge, and copies of these values appear. Extreme values and
quadrature are not affected: the copies share the weight of one value (Greenbaum, Linear Algebra
Appl. 113, 1989). Anything that counts values is affected.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import tree
from sharpjax.geometry.lanczos import units

Params = Any


class Recurrence(NamedTuple):
    """The state of a process without a basis. `krylov.ritz` also accepts it.

    Attributes:
        vector: the next vector, of norm 1; the operator is applied to it next.
        previous: the vector before it; zero at the start.
        unit: the unit of the values below; 0 until a product is not zero (`lanczos.units`).
        alpha, beta: (m,); `beta[j]` couples vectors j and j + 1. It is 0 if the space spanned so
            far is invariant.
        scale: the largest `|A q_j|`.
        leak: the largest `|q_{j-1}'A q_j - beta_{j-1}|`, which is 0 except for the noise of
            products, and once copies of a value appear.
        noise: the same, but each is first multiplied by `beta_{j-1}` over the scale so far. A small
            beta magnifies the noise of earlier products, by no more than this.
        num_products: int32; no longer increases once the space is invariant.
        finite: no product has held a NaN or an infinity.
        invariant: nothing was left of the last product: `vector` is zero, and no further values can
            be found from this start.
    """

    vector: Params
    previous: Params
    unit: jax.Array
    alpha: jax.Array
    beta: jax.Array
    scale: jax.Array
    leak: jax.Array
    noise: jax.Array
    num_products: jax.Array
    finite: jax.Array
    invariant: jax.Array


def start(key: jax.Array, like: Params, num_steps: int) -> Recurrence:
    """A process at a random vector, with room for `num_steps` products; compiled once per
    structure.

    Args:
        key: random key.
        like: tree of arrays; only shapes, types and shardings matter.
        num_steps: largest number of products.
    """
    return _start(key, like, num_steps, shardings(like))


def begin(vector: Params, num_steps: int) -> Recurrence:
    """As `start`, at a given vector of norm 1; for use inside a trace."""
    zero = 0 * tree.vdot(vector, vector)  # with the sharding of a sum
    return Recurrence(
        vector=vector,
        previous=tree.zeros_like(vector),
        unit=zero,
        alpha=jnp.full(num_steps, zero),
        beta=jnp.full(num_steps, zero),
        scale=zero,
        leak=zero,
        noise=zero,
        num_products=zero.astype(jnp.int32),
        finite=jnp.isfinite(zero),
        invariant=~jnp.isfinite(zero),
    )


def random_unit(key: jax.Array, like: Params) -> Params:
    """A vector of uniform direction and norm 1, in the types of `like`; for use inside a trace."""
    # A sum with zeros of the leaf takes the sharding of the leaf, if types carry it.
    vector = tree.add_scaled(tree.zeros_like(like), 1.0, tree.random_normal(key, like))
    return tree.scale(1 / tree.norm(vector), vector)


@dataclasses.dataclass(frozen=True)
class RecurrenceStep:
    """One product, for `sharpjax.loops.iterate`. Memory: three vectors."""

    def propose(self, state: Recurrence) -> Params:
        return state.vector

    def absorb(self, state: Recurrence, product: Params) -> Recurrence:
        q = state.vector
        here = jnp.arange(len(state.alpha), dtype=jnp.int32) - state.num_products
        product = jax.tree.map(lambda p, x: p.astype(x.dtype), product, q)
        unit, product = units.scale(state.unit, product)
        beta = jnp.sum(jnp.where(here == -1, state.beta, 0))  # 0 in the first step
        # In this order, alpha after beta: the other order loses more digits (Paige, 1972).
        w = tree.add_scaled(product, -beta, state.previous)
        defect = jnp.abs(tree.vdot(state.previous, w))
        alpha = tree.vdot(q, w)
        w = tree.add_scaled(w, -alpha, q)
        norm = tree.norm(w)
        scale = jnp.maximum(state.scale, jnp.hypot(jnp.hypot(alpha, beta), norm))
        # Near the noise of a product no direction is left, as in `krylov`. False for NaN.
        gone = norm <= 50 * jnp.finfo(norm.dtype).eps * scale
        return Recurrence(
            vector=tree.scale(jnp.where(gone, 0, 1 / jnp.where(gone, 1, norm)), w),
            previous=q,
            unit=unit,
            alpha=jnp.where(here == 0, alpha, state.alpha),
            beta=jnp.where(here == 0, jnp.where(gone, 0, norm), state.beta),
            scale=scale,
            leak=jnp.maximum(state.leak, defect),
            noise=jnp.maximum(state.noise, defect * beta / jnp.where(beta > 0, state.scale, 1)),
            num_products=state.num_products + jnp.where(state.invariant, 0, 1).astype(jnp.int32),
            finite=state.finite & jnp.isfinite(alpha) & jnp.isfinite(norm),
            invariant=state.invariant | gone,
        )


def shardings(like: Params) -> tuple[jax.NamedSharding | None, ...]:
    """The sharding of each concrete leaf on a mesh with Auto axes, which its type does not show."""
    return tuple(map(_auto_sharding, jax.tree.leaves(like)))


def constrain(vector: Params, lie: tuple[jax.NamedSharding | None, ...]) -> Params:
    """The same tree with the shardings from `shardings`; for use inside a trace."""
    leaves, treedef = jax.tree.flatten(vector)
    pairs = zip(leaves, lie, strict=True)
    placed = [x if s is None else jax.lax.with_sharding_constraint(x, s) for x, s in pairs]
    return jax.tree.unflatten(treedef, placed)


@functools.partial(jax.jit, static_argnames=("num_steps", "lie"))
def _start(key, like, num_steps, lie) -> Recurrence:
    return begin(constrain(random_unit(key, tree.widen(like)), lie), num_steps)


def _auto_sharding(leaf) -> jax.NamedSharding | None:
    sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    if isinstance(sharding, jax.NamedSharding) and any(sharding.spec):
        if all(kind == jax.sharding.AxisType.Auto for kind in sharding.mesh.axis_types):
            return sharding
    return None
