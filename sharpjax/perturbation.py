"""Perturbations of the weights: their units, the steepest perturbation, and balls.

A scaling `T` gives every weight its own unit. The ball of radius `rho` is `{e : ||e / T||_2 <=
rho}`, and the worst first-order perturbation in it is `rho T^2 g / ||T g||_2`. A scaling is a
*rule* that is evaluated on parameters. It is a frozen dataclass, hashable and equal by value, so it
can be a static argument and a field of a config. All functions here compute in at least float32 and
are safe at zero gradients and zero weights.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sharpjax import tree
from sharpjax.errors import UserError, unknown

Params = Any
Bias = Literal["scaled", "unit", "frozen"]
Norm = Literal["l2", "linf", "none"]


class Scaling(Protocol):
    """A rule for the units: called with parameters, it returns `T`, a tree like them.

    The leaves of `T` broadcast to those of the parameters and are in at least float32. A weight
    with `T = 0` does not move. The ball does not depend on the sign of `T`: negative entries count
    by their magnitude.
    """

    def __call__(self, params: Params, /) -> Params: ...


@dataclasses.dataclass(frozen=True)
class NoScaling:
    """The rule that `none` returns: one number per leaf, so it takes no memory."""

    def __call__(self, params: Params, /) -> Params:
        return jax.tree.map(lambda w: jnp.ones((), _wide(w)), params)


@dataclasses.dataclass(frozen=True)
class AdaptiveScaling:
    """The rule that `element`, `filters` and `layers` return.

    Attributes:
        per: the weights that share one unit: 'element', 'filter' or 'layer'.
        eta, bias: as in these functions.
    """

    per: str = "element"
    eta: float = 0.0
    bias: Bias = "scaled"

    def __call__(self, params: Params, /) -> Params:
        leaves, treedef = jax.tree.flatten(params)
        names = tree.path_names(params) if self.bias != "scaled" else [""] * len(leaves)
        units = (self._unit(name, w) for name, w in zip(names, leaves, strict=True))
        return jax.tree.unflatten(treedef, units)

    def _unit(self, name: str, w: jax.Array) -> jax.Array:
        if name.rsplit("/", 1)[-1] in BIASES:
            return jnp.full((), float(self.bias == "unit"), _wide(w))
        w = w.astype(_wide(w))
        if self.per == "element" or (self.per == "filter" and w.ndim < 2):
            return jnp.abs(w) + self.eta
        axes = tuple(range(w.ndim - (self.per == "filter")))
        squared = jnp.sum(jnp.square(w), axis=axes, keepdims=self.per == "filter")
        is_zero = squared == 0  # where the root has no derivative
        return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squared))) + self.eta


@dataclasses.dataclass(frozen=True)
class OnlyScaling:
    """The rule that `only` returns."""

    where: tuple[str, ...]
    scaling: Scaling

    def __call__(self, params: Params, /) -> Params:
        return self.within(self.scaling(params), params)

    def within(self, scale: Params, params: Params) -> Params:
        selected = tree.select(params, self.where)
        return jax.tree.map(lambda t, keep: t if keep else jnp.zeros_like(t), scale, selected)


@dataclasses.dataclass(frozen=True)
class SupportScaling:
    """The rule that `support` returns."""

    scaling: Scaling

    def __call__(self, params: Params, /) -> Params:
        return self.within(self.scaling(params), params)

    def within(self, scale: Params, params: Params) -> Params:
        return jax.tree.map(lambda t, w: jnp.where(w == 0, 0, t), scale, params)


def none() -> NoScaling:
    """`T = 1`: the Euclidean ball of SAM (Foret et al., 2021, arXiv 2010.01412).

    >>> none() == none()
    True
    """
    return NoScaling()


BIASES = ("bias", "b")
"""Leaves with this last part of their name are biases (in Flax and Haiku) for the policy `bias`."""


def element(eta: float = 0.0, *, bias: Bias = "scaled") -> AdaptiveScaling:
    """`T = |w| + eta`: each weight moves in proportion to itself (ASAM; Kwon et al., 2021, arXiv
    2102.11600).

    By default it applies to **every** parameter, including biases and normalisation. With `eta = 0`
    the perturbed point then commutes with rescalings of the weights that do not change a ReLU
    network. Any `eta > 0`, or another policy for biases, breaks this. The authors' code corresponds
    to `element(0.01, bias="unit")`.

    Args:
        eta: added to `|w|`, so that weights at zero can move.
        bias: policy for leaves named as in `BIASES`. 'scaled': like all others; 'unit': `T = 1`;
            'frozen': `T = 0`, so they do not move. Scales of normalisation layers are not biases.

    Raises:
        UserError: `eta` is negative or not finite; an unknown policy.

    >>> import jax.numpy as jnp
    >>> element(eta=0.5)({"w": jnp.array([-2.0, 0.0])})["w"].tolist()
    [2.5, 0.5]
    """
    return _adaptive("element", eta, bias)


def filters(eta: float = 0.0, *, bias: Bias = "scaled") -> AdaptiveScaling:
    """`T = ||w_f||_2 + eta` for all weights of a filter (arXiv 2102.11600, section 3).

    A filter is the set of weights of one output: a slice of a Flax kernel at one index of its last
    axis. The paper uses filters of convolutions only; here dense kernels have filters too. Leaves
    with fewer than two axes are scaled by element. With `eta = 0` the perturbed point commutes with
    rescalings of whole layers, but not of single units. In float32 norms below about 1e-19
    underflow to 0.

    Args and errors: as in `element`.

    >>> import jax.numpy as jnp
    >>> filters()({"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]])})["kernel"].tolist()
    [[5.0, 1.0]]
    """
    return _adaptive("filter", eta, bias)


def layers(eta: float = 0.0, *, bias: Bias = "scaled") -> AdaptiveScaling:
    """`T = ||w_l||_2 + eta` for all weights of one leaf: a kernel, a bias, a scale.

    Like `filters`, it is meant for rescalings of whole layers.

    Args and errors: as in `element`.

    >>> import jax.numpy as jnp
    >>> layers()({"kernel": jnp.array([[3.0], [4.0]])})["kernel"].item()
    5.0
    """
    return _adaptive("layer", eta, bias)


def only(where: str | Sequence[str], scaling: Scaling = NoScaling()) -> OnlyScaling:
    """The units of `scaling` for the leaves that match a glob, and `T = 0` for all others.

    So the radius is that of the selected leaves: `only("*BatchNorm*")` is SAM on normalisation
    layers alone (SAM-ON; Mueller et al., 2023, arXiv 2306.04226).

    Args:
        where: one glob or several, as in `tree.select`.
        scaling: the rule for the selected leaves.

    Raises:
        UserError: `scaling` is not a rule; when the result is called, a glob matches no leaf.

    >>> import jax.numpy as jnp
    >>> scale = only("*norm*")({"norm": jnp.ones(2), "dense": jnp.ones(2)})
    >>> float(scale["norm"]), float(scale["dense"])
    (1.0, 0.0)
    """
    check_scaling("perturbation.only", scaling)
    return OnlyScaling((where,) if isinstance(where, str) else tuple(where), scaling)


def support(scaling: Scaling = NoScaling()) -> SupportScaling:
    """The units of `scaling` for weights that are not zero, and `T = 0` for those that are.

    So a pruned network keeps its mask under every perturbation. (`element()` does this by itself;
    `none`, `filters`, `layers` and any `eta > 0` move weights at zero.) Biases that are still at
    zero also stay there.

    Raises:
        UserError: `scaling` is not a rule.

    >>> import jax.numpy as jnp
    >>> support()(jnp.array([2.0, 0.0])).tolist(), support(element(0.5))(jnp.zeros(1)).tolist()
    ([1.0, 0.0], [0.0])
    """
    check_scaling("perturbation.support", scaling)
    return SupportScaling(scaling)


def check_scaling(caller: str, scaling: Any) -> None:
    """Raises a `UserError` if `scaling` is not a rule: a hashable callable."""
    try:
        hash(scaling)
        is_rule = callable(scaling)
    except TypeError:
        is_rule = False
    if not is_rule:
        raise UserError(
            f"{caller}: scaling must be a hashable rule, such as `perturbation.none()`, "
            f"`perturbation.element()` or a function of the parameters; got a "
            f"{type(scaling).__name__}."
        )


def units(caller: str, scaling: Scaling, params: Params) -> Params:
    """`scaling(params)`, checked against the parameters.

    Raises:
        UserError: names `caller` and the leaf; the tree structure differs, or a leaf does not
            broadcast to its parameter.
    """
    if isinstance(scaling, OnlyScaling | SupportScaling):
        return scaling.within(units(caller, scaling.scaling, params), params)
    scale = scaling(params)
    if not isinstance(scaling, NoScaling | AdaptiveScaling):
        _check_shapes(caller, scale, params)
        scale = jax.tree.map(_as_array, scale, params)  # a rule may give plain numbers
    return scale


def check_units(caller: str, scaling: Scaling, params: Params) -> None:
    """The checks of `units` from shapes alone; a rule defined outside this module is traced once.

    Raises:
        UserError: as in `units`.
    """
    rule = scaling
    while isinstance(rule, OnlyScaling | SupportScaling):
        rule = rule.scaling
    if not isinstance(rule, NoScaling | AdaptiveScaling):
        jax.eval_shape(lambda params: units(caller, rule, tree.widen(params)), params)


def _check_shapes(caller: str, scale: Params, params: Params) -> None:
    if jax.tree.structure(scale) != jax.tree.structure(params):
        tree.check_same_structure(caller, "scaling(params)", scale, params)
    leaves = zip(
        *(tree.path_names(params), jax.tree.leaves(scale), jax.tree.leaves(params)), strict=True
    )
    for name, t, w in leaves:
        shape = jnp.shape(t)
        if not _broadcasts(shape, jnp.shape(w)):
            place = f"leaf '{name}'" if name else "what it gives"
            raise UserError(
                f"{caller}: scaling(params) must broadcast to the parameters, but {place} has "
                f"shape {shape} and the parameter {jnp.shape(w)}. Give an array of the parameter's "
                f"shape, or one number for all of it."
            )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, m) for n, m in pairs)


def _adaptive(per: str, eta: float, bias: Bias) -> AdaptiveScaling:
    caller = "element" if per == "element" else f"{per}s"
    try:
        allowed = bool(0 <= eta < float("inf"))
    except (TypeError, ValueError):
        allowed = False
    if not allowed:
        raise UserError(f"perturbation.{caller}: eta must be a number >= 0, got {eta!r}.")
    if bias not in get_args(Bias):
        raise unknown(f"policy for biases (perturbation.{caller})", str(bias), get_args(Bias))
    return AdaptiveScaling(per, float(eta), bias)


def ascent(
    grads: Params,
    params: Params,
    *,
    rho: ArrayLike,
    scaling: Scaling = NoScaling(),
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
    scaled = jax.tree.map(lambda t, g: t * g.astype(_wide(g, t)), scale, grads)
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
        lambda w, e: _count((e != 0) & (_rounded_sum(w, e) == w.astype(_wide(w, e)))),
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
    scaled = jax.tree.map(lambda u: u.astype(_wide(u)) / size.astype(_wide(u)), unit)
    squared = tree.vdot(scaled, scaled)
    rho = jnp.asarray(rho, squared.dtype)
    outside = squared > jnp.square(rho / size)
    factor = rho / jnp.sqrt(jnp.where(outside, squared, 1))

    def leaf(u, x):
        return jnp.where(outside, x * factor.astype(x.dtype), u.astype(x.dtype)).astype(u.dtype)

    return jax.tree.map(leaf, unit, scaled)


def _times(rho: ArrayLike, t: jax.Array) -> jax.Array:
    return jnp.asarray(rho).astype(t.dtype) * t


def _as_array(t: ArrayLike, w: jax.Array) -> jax.Array:
    return jnp.asarray(t, None if hasattr(t, "dtype") else _wide(w))


def _wide(*leaves: jax.Array) -> jnp.dtype:
    """The type to compute in: the widest of the leaves, but at least float32."""
    # Not promote_types: under strict promotion it refuses float64 with float32.
    dtypes = [jnp.dtype(jnp.float32), *(jnp.dtype(x.dtype) for x in leaves)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def _mean(values: list[jax.Array]) -> jax.Array:
    """The mean of scalars of several types, without overflow; NaN if one of them is NaN."""
    dtype = _wide(*values)
    return tree.total([x.astype(dtype) / len(values) for x in values])


def _power_of_two(a: Params) -> jax.Array:
    """The one up to the largest entry; dividing by it changes no bit of a mantissa. 1 if that entry
    is not finite."""
    leaves = jax.tree.leaves(a)
    dtype = _wide(*leaves)
    peaks = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in leaves]
    peak = jax.lax.stop_gradient(jnp.max(jnp.stack(peaks)) if peaks else jnp.zeros((), dtype))
    mantissa, _ = jnp.frexp(peak)
    limits = jnp.finfo(dtype)
    size = jnp.clip(peak / jnp.where(mantissa == 0, 1, 2 * mantissa), limits.tiny, 1 / limits.tiny)
    return jnp.where(jnp.isfinite(peak), size, 1)


def _rounded_sum(w: jax.Array, e: jax.Array) -> jax.Array:
    """`w + e` rounded to the type of `w`, held in the wider type.

    This uses `reduce_precision`, not a pair of casts. XLA removes such pairs
    (`xla_allow_excess_precision` is on by default), and then no loss would show.
    """
    info = jnp.finfo(w.dtype)
    wide = _wide(w, e)
    return jax.lax.reduce_precision(w.astype(wide) + e.astype(wide), info.nexp, info.nmant)


def _count(flags: jax.Array) -> jax.Array:
    # Counted in floats: an int32 overflows at two billion weights.
    return jnp.sum(flags, dtype=jnp.float32)
