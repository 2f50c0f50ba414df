"""Units of the weights: rules `T` that are evaluated on parameters."""

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
        return jax.tree.map(lambda w: jnp.ones((), wide(w)), params)


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
            return jnp.full((), float(self.bias == "unit"), wide(w))
        w = w.astype(wide(w))
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


def wide(*leaves: jax.Array) -> jnp.dtype:
    """The type to compute in: the widest of the leaves, but at least float32."""
    # Not promote_types: under strict promotion it refuses float64 with float32.
    dtypes = [jnp.dtype(jnp.float32), *(jnp.dtype(x.dtype) for x in leaves)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def _as_array(t: ArrayLike, w: jax.Array) -> jax.Array:
    return jnp.asarray(t, None if hasattr(t, "dtype") else wide(w))
