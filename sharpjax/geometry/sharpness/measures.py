"""How far the loss rises near the parameters: in the worst case, and after one ascent step.

The neighbourhood is the ball `{e : ||e / T|| <= rho}` of a scaling `T` (`sharpjax.perturbation`),
in the Euclidean norm unless another is named. The loss is used as it is given, so pass it in
evaluation mode, with frozen statistics. Everything is computed at `highest` matmul precision and in
at least float32. Narrower parameters are widened first, because most of a perturbation of bfloat16
weights would be lost to rounding. Differences of losses carry the rounding of the losses
themselves: in float32 about 1e-7 of `loss`; `standard_error` counts 16 times that.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from sharpjax import loops, perturbation, tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.loss import checks, closures, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.loss.axes import refuse_sharded
from sharpjax.geometry.loss.composed import chunk_weights
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.sharpness import ascent, worst_case
from sharpjax.geometry.status import Status, if_finite

Params = Any

LOST = 0.1  # share of a perturbation that may have no effect

_NO_SCALING = perturbation.none()


class Sharpness(NamedTuple):
    """How far the loss rises in a ball, and where.

    Attributes:
        value: the rise `L(w + e) - L(w)`, averaged over chunks. A worst case is never negative.
        standard_error: of `value` as the rise at this perturbation: the rounding of the two losses,
            and to first order that of the weights. It does not say how much higher another point
            may be.
        loss: `L(w)`, averaged over chunks.
        perturbed_loss: the loss at the perturbation, averaged over chunks.
        perturbation: `e`, a tree like the parameters, in at least float32. None if each chunk has
            its own; these are not kept.
        per_chunk: the rise of each chunk, [chunks]; with `m=1` that of each example. None for one
            ascent step.
        num_gradients: number of gradients over all examples that were computed (int32).
        status: `Status`, int32. If it is `NON_FINITE` and the value is a number, the loss or its
            gradient was not finite at some points, and the value comes from the others.
            `BREAKDOWN`: to first order, more than 10 % of the rise is lost or added because `w + e`
            is rounded to the type of `w`, in at least one chunk; the radius is then below the
            resolution of the parameters.
    """

    value: jax.Array
    standard_error: jax.Array
    loss: jax.Array
    perturbed_loss: jax.Array
    perturbation: Params
    per_chunk: jax.Array | None
    num_gradients: jax.Array
    status: jax.Array

    measure = "worst_case_sharpness"

    def estimates(self) -> dict[str, Estimate]:
        """The value under the measure's name. Its error is that of rounding: nothing is sampled."""
        return {self.measure: Estimate(self.value, self.standard_error, self.num_gradients)}


class AdaptiveSharpness(Sharpness):
    """`Sharpness` in the units `T = |w|`."""

    measure = "adaptive_sharpness"


class SamSharpness(Sharpness):
    """`Sharpness` after one ascent step."""

    measure = "sam_sharpness"


def worst_case_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    rho: ArrayLike,
    scaling: perturbation.Scaling = _NO_SCALING,
    norm: ascent.Norm = "l2",
    m: int | None = None,
    num_steps: int = 20,
    restarts: int = 1,
    microbatch_size: int | None = None,
) -> Sharpness:
    """`max L(w + e) - L(w)` over `||e / T|| <= rho`: the highest rise that ascent finds, a lower
    bound of the maximum.

    Use it to see how far the loss can rise within a ball. For one step of SAM `sam_sharpness` is
    far cheaper, and `adaptive_sharpness` does not change with the scale of the weights.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w[0] ** 2 + 3 * w[1] ** 2)
    >>> key = jax.random.key(0)
    >>> at_minimum = worst_case_sharpness(loss, jnp.zeros(2), jnp.ones(4), key=key, rho=0.5)
    >>> print(f"{at_minimum.value:.4f}")
    0.7500

    With `norm="linf"` the ball is the box `|e_i| <= rho T_i`: every weight may move by the full
    radius (Andriushchenko et al., 2023, arXiv 2302.07011, with radii of .0005 to .008). The box
    contains the Euclidean ball of the same radius and lies within the one of radius `rho sqrt(P)`.
    To first order its worst case is `rho |T g|_1`.

    With `m` it is m-sharpness (Foret et al., 2021, arXiv 2010.01412): the worst case of each chunk
    of `m` neighbouring examples is found separately, and the value is their mean, weighted if the
    loss declares weights (`composed`). `per_chunk` holds the value of each chunk, with `m=1` of
    each example. The true mean never falls when chunks are cut into smaller ones; if the values
    found do, the search was too short.

    The search is Auto-PGD (Croce and Hein, 2020, arXiv 2003.01690) in `u = e / T`, which has
    nothing to tune. It starts at SAM's point `rho T^2 g / ||T g||` and keeps the best point, so the
    value is at least 0 and at least the rise there. (In the box it starts at `rho T sign(g)` and
    follows the signs of the gradient.) If the gradient is exactly zero it starts at random. Ascent
    then acts as power iteration and tends to `rho^2 lambda_max(T H T)_+ / 2`, slowly if the
    negative curvature is much larger in size. If a symmetry keeps the gradient orthogonal to the
    steepest direction, only random starts (`restarts`) find it.

    How good it is: on an MLP trained on digits, 20 steps came within 1.2e-3 of 200 at every radius,
    mostly within 1e-5; 10 steps fell up to 0.14 short and 5 up to 0.48. Where the loss rose a
    thousandfold there were several maxima: five searches found up to 25 % more than one.

    Args:
        loss, params, batch: as in `hessian`.
        key: for random starts; all chunks use the same ones.
        rho: radius in units of `T`, >= 0; may be traced. 0 gives exactly 0. For an array of radii
            [R], each is searched separately by the same program, and every number of the result
            gets a leading axis (also the perturbation: R copies of the parameters). A new radius
            compiles nothing.
        scaling: rule for `T`. A weight with `T = 0` stays where it is.
        norm: of the ball, "l2" or "linf".
        m: examples per chunk, which must divide their number; None: all.
        num_steps: gradients per search.
        restarts: number of searches. All but the first start from uniformly random points of the
            sphere, or corners of the box.
        microbatch_size: examples per pass, which must divide those of a chunk; None: a chunk at
            once.

    Raises:
        UserError: an argument does not fit.

    Cost: `1 + num_steps * restarts` gradients over all examples, one chunk after another, in one
    loop. Memory, for any number of chunks: 12 copies of the parameters in a host loop, 16 in a
    device loop (which keeps its first state), and the activations of one chunk or microbatch. On
    CPU, call it outside of your own jit if the loss has convolutions (`sharpjax.loops`).
    """
    how = key, rho, scaling, norm, m, num_steps, restarts, microbatch_size
    return _worst_case("worst_case_sharpness", loss, params, batch, *how)


def adaptive_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    rho: ArrayLike,
    m: int | None = None,
    num_steps: int = 20,
    restarts: int = 1,
    microbatch_size: int | None = None,
) -> AdaptiveSharpness:
    """`max L(w + e) - L(w)` over `||e / |w| ||_2 <= rho`: the worst case in the units `T = |w|`.

    Every weight, biases and normalisation included, moves in proportion to its own size (Kwon et
    al., 2021, arXiv 2102.11600; as a measure, Andriushchenko et al., 2023, arXiv 2302.07011). The
    value is therefore the same for all rescalings of the weights that leave a ReLU network's
    function unchanged. Weights that are exactly zero stay zero. Arguments, cost, memory and errors
    are those of `worst_case_sharpness`.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * w[0] * w[1]
    >>> key, batch = jax.random.key(0), jnp.ones(4)
    >>> one = adaptive_sharpness(loss, jnp.array([1.0, 1.0]), batch, key=key, rho=0.5)
    >>> other = adaptive_sharpness(loss, jnp.array([0.01, 100.0]), batch, key=key, rho=0.5)
    >>> print(f"{one.value:.4f} {other.value:.4f}")
    0.8321 0.8321
    """
    how = key, rho, perturbation.element(), "l2", m, num_steps, restarts, microbatch_size
    return AdaptiveSharpness(*_worst_case("adaptive_sharpness", loss, params, batch, *how))


def sam_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    rho: ArrayLike,
    microbatch_size: int | None = None,
) -> SamSharpness:
    """`L(w + rho g / |g|) - L(w)`: the rise after SAM's ascent step (arXiv 2010.01412).

    To first order it is `rho |g|`; it may be negative. A zero gradient gives exactly 0. Some papers
    use this name for a statistic of random noise, which is not what is computed here. Cost: one
    gradient and one evaluation of the loss.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`.
        rho: radius, >= 0; may be traced. 0 gives exactly 0. An array [R] of radii gives results
            with that leading axis.

    Raises:
        UserError: an argument does not fit.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2)
    >>> print(f"{sam_sharpness(loss, jnp.array([0.6, 0.8]), jnp.ones(4), rho=0.5).value:.4f}")
    1.2500
    """
    batch = checks.as_batch("sam_sharpness", batch)
    loss = checks.check_problem("sam_sharpness", loss, params, batch, microbatch_size)
    check_rho("sam_sharpness", rho, several=True)
    checked = cutting.check_cut("sam_sharpness", loss, params, batch, microbatch_size)
    find = lambda radius: _sam(loss, params, batch, radius, microbatch_size)  # noqa: E731
    return mark(over_radii(find, rho), checked)


@functools.partial(jax.jit, static_argnums=4)
def _sam(loss, params, batch, rho, microbatch_size) -> SamSharpness:
    params = tree.widen(params)
    radius = jnp.asarray(rho, objective.scalar_type(params))
    value, gradient = objective.value_and_grad(loss, params, batch, microbatch_size)
    e = perturbation.ascent(gradient, params, rho=radius)
    moved = perturbation.perturb(params, e)
    perturbed = objective.value(loss, moved, batch, microbatch_size)
    # The two losses are compiled separately, so they may differ by rounding at the same point. A
    # traced radius could not be checked earlier.
    stays = worst_case.is_zero(e)
    rise = jnp.where(stays, value - value, perturbed - value)
    rise = jnp.where(radius >= 0, rise, jnp.nan)
    rounded = worst_case.rounded(params, moved, e, gradient)
    error = worst_case.rounding(params, value, perturbed) + rounded.effect
    return SamSharpness(
        value=rise,
        standard_error=jnp.where(stays, value - value, error),
        loss=value,
        perturbed_loss=value + rise,
        perturbation=e,
        per_chunk=None,
        num_gradients=jnp.int32(1),
        status=_status(jnp.isfinite(rise), rounded.share(rise)),
    )


def _worst_case(caller, loss, params, batch, key, rho, *how) -> Sharpness:
    problem = prepare(caller, loss, params, batch, key, rho, *how)
    return mark(over_radii(functools.partial(find, problem), rho), problem.checked)


class Problem(NamedTuple):
    """A checked search and its operands, without the radius and the choice of leaves that move."""

    search: worst_case.Search
    operands: worst_case.Operands
    keep_point: bool
    checked: Any


def prepare(
    caller, loss, params, batch, key, rho, scaling, norm, m, num_steps, restarts, microbatch_size
) -> Problem:
    """Checks what a user passed and builds the search for a worst case.

    Raises:
        UserError: names `caller`; an argument does not fit.
    """
    check_rho(caller, rho, several=True)
    perturbation.check_scaling(caller, scaling)
    if norm not in get_args(ascent.Norm):
        raise unknown(f"norm ({caller})", str(norm), get_args(ascent.Norm))
    key = check_key(caller, key)
    batch = checks.as_batch(caller, batch)
    search = worst_case.Search(
        scaling=closures.rule(scaling),
        num_steps=whole_number(caller, "num_steps", num_steps),
        restarts=whole_number(caller, "restarts", restarts),
        microbatch_size=microbatch_size,
        norm=norm,
    )
    if m is None:
        first, chunks = batch, jax.tree.map(lambda x: jnp.expand_dims(x, 0), batch)
    else:
        refuse_sharded(caller, batch, "replicate them, jax.reshard(batch, jax.P()).")
        chunks = loops.split_chunks(caller, batch, whole_number(caller, "m", m))
        first = tree.index(chunks, 0)
    loss = checks.check_problem(caller, loss, params, first, microbatch_size)
    perturbation.check_units(caller, scaling, params)
    checked = cutting.check_cut(caller, loss, params, first, microbatch_size)
    weights = None if m is None else chunk_weights(loss, chunks)
    params = jax.tree.map(jnp.asarray, tree.widen(params))
    if loops.is_traced(params):
        params = algebra.without_derivative(params)
    radius = jnp.zeros((), objective.scalar_type(params))
    operands = worst_case.Operands(loss, params, chunks, radius, key, weights)
    return Problem(search, operands, m is None, checked)


def find(problem: Problem, radius: ArrayLike, moves: Any = None) -> Sharpness:
    """The worst case within one radius.

    Args:
        moves: which leaves of the parameters are perturbed, a tree of booleans; None: all.
    """
    search, operands = problem.search, problem.operands
    radius = jnp.asarray(radius, operands.radius.dtype)
    operands = operands._replace(radius=radius, moves=moves)
    found = worst_case.maximize(search, operands, keep_point=problem.keep_point)
    return Sharpness(
        value=found.rise,
        standard_error=found.error,
        loss=found.loss,
        perturbed_loss=found.loss + found.rise,
        perturbation=found.perturbation,
        per_chunk=found.rises,
        num_gradients=jnp.int32(search.turns),
        status=_status(found.finite & jnp.isfinite(found.rise), found.lost),
    )


def over_radii(fn: Callable[[ArrayLike], Any], rho: ArrayLike) -> Any:
    """`fn(rho)`. For several radii, the stacked results of each, all by the same program."""
    if isinstance(rho, Tracer) or (np.ndim(rho) and loops.inside_jit()):
        rho = jnp.asarray(rho)
        return loops.map_over_chunks(lambda _, r: fn(r), (), rho) if rho.ndim else fn(rho)
    return _stack([fn(r) for r in np.asarray(rho)]) if np.ndim(rho) else fn(rho)


_stack = jax.jit(tree.stack)


def _status(finite: jax.Array, lost: jax.Array) -> jax.Array:
    is_lost = finite & (lost > LOST)
    return jnp.where(is_lost, jnp.int32(Status.BREAKDOWN), if_finite(finite))


# Checks of what a user passed.


def check_rho(caller, rho, *, several: bool = False):
    """Raises UserError unless `rho` is a radius or, with `several`, an array of radii [R]."""
    is_traced = isinstance(rho, Tracer)
    try:
        shape = rho.shape if is_traced else np.shape(rho)
        values = np.zeros(shape) if is_traced else np.asarray(rho, float)
    except (TypeError, ValueError):
        shape, values = (), np.full((), np.nan)
    if len(shape) > several or 0 in shape:
        allowed = "be one number, or an array [R] of them" if several else "be one number"
        raise UserError(
            f"{caller}: rho must {allowed}, got an array of shape {shape}; for "
            f"{'arrays of other shapes' if several else 'several radii'} use `jax.vmap`."
        )
    if not np.all((values >= 0) & (values < math.inf)):
        raise UserError(f"{caller}: rho is a radius, a finite number >= 0; got {rho!r}.")
