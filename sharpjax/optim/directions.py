"""Ascent directions as optax transforms, the part of a gradient orthogonal to another, and a radius
that follows the learning rate."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sharpjax import perturbation, tree
from sharpjax.errors import UserError

Params = Any


class FriendlyState(NamedTuple):
    """The running mean of the gradients, in at least float32."""

    mean: Params


class RandomState(NamedTuple):
    """The key of the next draw."""

    key: jax.Array


def friendly(sigma: float = 1.0, decay: float = 0.9) -> optax.GradientTransformation:
    """The direction of F-SAM: the gradient minus its running mean (Li et al., 2024, arXiv
    2403.12350).

    With `m_t = decay m_t-1 + (1 - decay) g_t` and `m_-1 = 0`, the direction is `g_t - sigma m_t`,
    which leaves the noise of the batch. The authors' code subtracts `m_t-1` instead, and begins
    with `m_0 = g_0`. At `sigma` = 1 the direction of a step is the same for the same `m_t-1`.

        tx = sam(base, rho=0.05, ascent=friendly(sigma=1.0, decay=0.6))

    Memory: one tree in float32.

    Raises:
        UserError: `sigma` is not a finite number >= 0, or `decay` is not a number in [0, 1).

    >>> import jax.numpy as jnp
    >>> tx = friendly(sigma=1.0, decay=0.5)
    >>> direction, state = tx.update(jnp.float32(4.0), tx.init(jnp.float32(0.0)))
    >>> float(direction), float(state.mean)
    (2.0, 2.0)
    """
    if not _is_number(sigma) or not 0 <= sigma < float("inf"):
        raise UserError(f"optim.friendly: sigma must be a number >= 0, got {sigma!r}.")
    if not _is_number(decay) or not 0 <= decay < 1:
        raise UserError(f"optim.friendly: decay must be a number in [0, 1), got {decay!r}.")

    def init(params: Params) -> FriendlyState:
        return FriendlyState(tree.widen(tree.zeros_like(params)))

    def update(
        grads: Params, state: FriendlyState, params: Params | None = None
    ) -> tuple[Params, FriendlyState]:
        del params
        old = tree.scale(decay, state.mean)
        mean = tree.add_scaled(old, 1 - decay, grads)
        return tree.add_scaled(grads, -sigma, mean), FriendlyState(mean)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def random_direction(key: jax.Array) -> optax.GradientTransformation:
    """Standard normal noise in place of the gradient, drawn anew at every step. It is the control
    for SAM: it perturbs as far, but not uphill (Andriushchenko and Flammarion, 2022, arXiv
    2206.06232).

    In m-SAM all chunks of a step have the same direction.

    Args:
        key: of the first draw. Two states from `init` with the same key draw the same noise.

    >>> import jax.numpy as jnp
    >>> tx = random_direction(jax.random.key(0))
    >>> first, state = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
    >>> second, _ = tx.update(jnp.zeros(2), state)
    >>> bool((first != second).all())
    True
    """

    def init(params: Params) -> RandomState:
        del params
        return RandomState(key)

    def update(
        grads: Params, state: RandomState, params: Params | None = None
    ) -> tuple[Params, RandomState]:
        del params
        after, now = jax.random.split(state.key)
        return tree.random_normal(now, grads), RandomState(after)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def coupled_rho(
    learning_rate: optax.Schedule,
    *,
    rho_max: float,
    lr_max: float,
    rho_min: float = 0.0,
    lr_min: float = 0.0,
) -> optax.Schedule:
    """The radius of GSAM, a linear function of the learning rate (arXiv 2203.08065, section 4).

    `rho_t = rho_min + (rho_max - rho_min) (lr_t - lr_min) / (lr_max - lr_min)`, with the quotient
    clipped to [0, 1]: a warm-up from 0 with `lr_min > 0` gives no negative radius.

    Raises:
        UserError: `lr_min < lr_max` or `0 <= rho_min <= rho_max` does not hold.

    >>> rate = optax.linear_schedule(0.1, 0.0, 4)
    >>> rho = coupled_rho(rate, rho_max=0.6, rho_min=0.2, lr_max=0.1)
    >>> [round(float(rho(step)), 6) for step in (0, 2, 4)]
    [0.6, 0.4, 0.2]
    """
    if not lr_min < lr_max:
        raise UserError(f"optim.coupled_rho: lr_min={lr_min} must be less than lr_max={lr_max}.")
    if not 0 <= rho_min <= rho_max:
        raise UserError(
            f"optim.coupled_rho: give 0 <= rho_min <= rho_max, got {rho_min} and {rho_max}."
        )
    slope = (rho_max - rho_min) / (lr_max - lr_min)

    def rho(count: Any) -> Any:
        return rho_min + slope * jnp.clip(learning_rate(count) - lr_min, 0, lr_max - lr_min)

    return rho


def orthogonal(a: Params, *, to: Params) -> Params:
    """`a - <a, u> u`, `u = to / ||to||_2`: the part of `a` orthogonal to `to`; `a` if `to` is zero.

    >>> import jax.numpy as jnp
    >>> orthogonal(jnp.array([3.0, 4.0]), to=jnp.array([0.0, 1e-30])).tolist()
    [3.0, 0.0]
    """
    unit = perturbation.ascent(to, to, rho=1.0)
    return tree.add_scaled(a, -tree.vdot(a, unit), unit)


def sideways(a: Params, *, to: Params) -> Params:
    """`orthogonal(a, to=to)`, but exactly zero if the result is only rounding: at most 100 units in
    the last place of `||a||_2`. Use it for directions that are normalised afterwards.

    >>> import jax.numpy as jnp
    >>> sideways(jnp.array([0.7, 0.1]), to=jnp.array([2.1, 0.3])).tolist()
    [0.0, 0.0]
    """
    across = orthogonal(a, to=to)
    length = tree.norm(a)
    is_rounding = tree.norm(across) <= 100 * jnp.finfo(length.dtype).eps * length
    return jax.tree.map(lambda x: jnp.where(is_rounding, 0, x), across)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
