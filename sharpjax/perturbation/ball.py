"""The steepest perturbation in a ball of a scaling, and moves to and within the ball."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sharpjax import tree
from sharpjax.errors import unknown
from sharpjax.perturbation.scaling import Scaling, check_scaling, none, units, wide

Params = Any
Norm = Literal["l2", "linf", "none"]

_NO_SCALING = none()


def ascent(
    grads: Params,
    params: Params,
    *,
    rho: ArrayLike,
    scaling: Scaling = _NO_SCALING,
    norm: Norm = "l2",
) -> Params:
    """The steepest perturbation of radius `rho`: `rho T^2 g / ||T g||_2`.

    In the maximum norm, `|e_i| <= rho |T_i|`, it is `rho |T| sign(g)`. Without normalisation it is
    `rho T^2 g`, whose length grows with the gradient.

    A zero gradient gives exactly zero, also under `grad` and `vmap`. There is no epsilon, so the
    radius is `rho` for every nonzero gradient, however small (`T g` is divided by its size before
    it is squared).

    Args:
        grads: gradient `g` at `params`.
        params: parameters on which the rule is evaluated.
        rho: radius, in units of `T`; may be traced.
        scaling: rule for `T`.
        norm: of the ball, 'l2' or 'linf'; 'none' means no normalisation.

    Returns:
        A tree like `params`, in at least float32.

    Raises:
        UserError: an unknown norm; `scaling` is not a rule, or does not fit the parameters.

    >>> import jax.numpy as jnp
    >>> ascent({"w": jnp.array([3.0, 4.0])}, {"w": jnp.zeros(2)}, rho=10.0)["w"].tolist()
    [6.0, 8.0]
    """
    if norm not in get_args(Norm):
        raise unknown("norm (perturbation.ascent)", str(norm), get_args(Norm))
    check_scaling("perturbation.ascent", scaling)
    scale = units("perturbation.ascent", scaling, params)
    if norm == "linf":
        return jax.tree.map(
            lambda t, g: _times(rho, jnp.abs(t)) * jnp.sign(g).astype(t.dtype), scale, grads
        )
    scaled = jax.tree.map(lambda t, g: t * g.astype(wide(g, t)), scale, grads)
    if norm == "none":
        return jax.tree.map(lambda t, u: _times(rho, t) * u, scale, scaled)
    peaks = [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(scaled) if x.size]
    if not peaks:
        return scaled
    # The size cancels in the direction, so no derivative has to pass through it.
    size = jax.lax.stop_gradient(_mean(peaks))
    # XLA may multiply by 1 / size instead; the cap keeps that number from being subnormal.
    size = jnp.minimum(size, 1 / jnp.finfo(size.dtype).tiny)
    is_zero = size == 0
    unit = jax.tree.map(lambda x: x / jnp.where(is_zero, 1, size).astype(x.dtype), scaled)
    squared = tree.vdot(unit, unit)
    rho = jnp.asarray(rho, squared.dtype)
    factor = jnp.where(is_zero, 0, rho / jnp.sqrt(jnp.where(is_zero, 1, squared)))
    return jax.tree.map(lambda t, u: t * u * factor.astype(u.dtype), scale, unit)


def perturb(params: Params, perturbation: Params) -> Params:
    """`w + e`, added in the wider of the two types (at least float32), rounded once to that of `w`.

    >>> import jax.numpy as jnp
    >>> perturb({"w": jnp.ones(1, jnp.bfloat16)}, {"w": jnp.full(1, 0.01)})
    {'w': Array([1.00781], dtype=bfloat16)}
    """
    return jax.tree.map(lambda w, e: _rounded_sum(w, e).astype(w.dtype), params, perturbation)


def lost_fraction(params: Params, perturbation: Params) -> jax.Array:
    """Share of the perturbed weights (`e != 0`) that do not change: `w + e == w` in their type.

    At `rho` = 0.05 and about ten million weights the typical entry of `e` is 1e-5, below half a
    unit in the last place of most bfloat16 weights. The share is zero if nothing is perturbed.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones(4, jnp.bfloat16)}
    >>> float(lost_fraction(params, {"w": jnp.array([0.0, 1e-3, 1e-3, 1e-2])}))
    0.6666666865348816
    """
    moved = jax.tree.map(lambda w, e: _count(e != 0), params, perturbation)
    lost = jax.tree.map(
        lambda w, e: _count((e != 0) & (_rounded_sum(w, e) == w.astype(wide(w, e)))),
        params,
        perturbation,
    )
    num_moved = tree.total(jax.tree.leaves(moved))
    return tree.total(jax.tree.leaves(lost)) / jnp.maximum(num_moved, 1)


def to_unit(perturbation: Params, scale: Params) -> Params:
    """`u = e / T`, the unit in which the ball is Euclidean; zero where `T` is zero."""

    def divide(t, e):
        return jnp.where(t == 0, 0, e / jnp.where(t == 0, 1, t))

    return jax.tree.map(divide, scale, perturbation)


def from_unit(unit: Params, scale: Params) -> Params:
    """`e = T u`, the inverse of `to_unit` where `T` is not zero."""
    return jax.tree.map(lambda t, u: t * u, scale, unit)


def project(unit: Params, rho: ArrayLike, *, norm: Literal["l2", "linf"] = "l2") -> Params:
    """The point of the ball `||u||_2 <= rho` nearest to `u`: `u min(1, rho / ||u||_2)`.

    In the maximum norm every entry is clipped to `[-rho, rho]`. Otherwise `u` is divided by its
    size before it is squared, so no square underflows or overflows.

    >>> import jax.numpy as jnp
    >>> project({"w": jnp.array([3.0, 4.0])}, 1.0)["w"].round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    >>> project({"w": jnp.array([3.0, -0.5])}, 1.0, norm="linf")["w"].tolist()
    [1.0, -0.5]
    """
    if norm == "linf":
        return jax.tree.map(
            lambda u: jnp.clip(u, -jnp.asarray(rho, u.dtype), jnp.asarray(rho, u.dtype)), unit
        )
    size = _power_of_two(unit)
    scaled = jax.tree.map(lambda u: u.astype(wide(u)) / size.astype(wide(u)), unit)
    squared = tree.vdot(scaled, scaled)
    rho = jnp.asarray(rho, squared.dtype)
    outside = squared > jnp.square(rho / size)
    factor = rho / jnp.sqrt(jnp.where(outside, squared, 1))

    def leaf(u, x):
        return jnp.where(outside, x * factor.astype(x.dtype), u.astype(x.dtype)).astype(u.dtype)

    return jax.tree.map(leaf, unit, scaled)


def _times(rho: ArrayLike, t: jax.Array) -> jax.Array:
    return jnp.asarray(rho).astype(t.dtype) * t


def _mean(values: list[jax.Array]) -> jax.Array:
    """The mean of scalars of several types, without overflow; NaN if one of them is NaN."""
    dtype = wide(*values)
    return tree.total([x.astype(dtype) / len(values) for x in values])


def _rounded_sum(w: jax.Array, e: jax.Array) -> jax.Array:
    """`w + e` rounded to the type of `w`, held in the wider type.

    This uses `reduce_precision`, not a pair of casts. XLA removes such pairs
    (`xla_allow_excess_precision` is on by default), and then no loss would show.
    """
    info = jnp.finfo(w.dtype)
    dtype = wide(w, e)
    return jax.lax.reduce_precision(w.astype(dtype) + e.astype(dtype), info.nexp, info.nmant)


def _count(flags: jax.Array) -> jax.Array:
    # Counted in floats: an int32 overflows at two billion weights.
    return jnp.sum(flags, dtype=jnp.float32)


def _power_of_two(a: Params) -> jax.Array:
    """The one up to the largest entry; dividing by it changes no bit of a mantissa. 1 if that entry
    is not finite."""
    leaves = jax.tree.leaves(a)
    dtype = wide(*leaves)
    peaks = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in leaves]
    peak = jax.lax.stop_gradient(jnp.max(jnp.stack(peaks)) if peaks else jnp.zeros((), dtype))
    mantissa, _ = jnp.frexp(peak)
    limits = jnp.finfo(dtype)
    size = jnp.clip(peak / jnp.where(mantissa == 0, 1, 2 * mantissa), limits.tiny, 1 / limits.tiny)
    return jnp.where(jnp.isfinite(peak), size, 1)
