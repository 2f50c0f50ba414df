"""How far the loss rises near the parameters: worst case, and after one ascent step.

The neighbourhood is the ball `{e : ||e / T|| <= rho}` of a scaling `T` (`sharpjax.perturbation`),
in the Euclidean norm unless another is named. All values are of the loss as it is given: pass it in
evaluation mode, with frozen statistics. Everything is computed at `highest` matmul precision and in
float32 at least: narrower parameters are widened first, because most of a perturbation of bfloat16
weights would be lost to rounding. Differences of losses carry the rounding of the losses
themselves: in float32 about 1e-7 of `loss`.
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
from sharpjax.geometry.status import if_finite

Params = Any

_NO_SCALING = perturbation.none()


class Sharpness(NamedTuple):
    """How far the loss rises in a ball, and where.

    Attributes:
        value: the rise `L(w + e) - L(w)`, the mean over chunks; for a worst case not negative.
        loss: `L(w)`; with chunks the mean of theirs.
        perturbed_loss: the loss at the perturbation, the mean over chunks.
        perturbation: `e`, a tree like the parameters in float32 at least; None where each chunk has
            its own (they are not kept).
        per_chunk: the rise of each chunk, [chunks]: with `m=1` of each example; None for one ascent
            step.
        num_gradients: gradients over all examples that it took (int32).
        status: `Status`, int32. Where it is `NON_FINITE` and the value is a number, the loss or its
            gradient was not finite at some points, and the value is that of the others.
    """

    value: jax.Array
    loss: jax.Array
    perturbed_loss: jax.Array
    perturbation: Params
    per_chunk: jax.Array | None
    num_gradients: jax.Array
    status: jax.Array

    measure = "worst_case_sharpness"

    def estimates(self) -> dict[str, Estimate]:
        """The value by the measure's name. It does not depend on sampling: its error is 0."""
        return {self.measure: _exact(self.value, self.num_gradients)}


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

    Take it for how far the loss can rise within a ball; for one step of SAM `sam_sharpness` is far
    cheaper, and `adaptive_sharpness` does not change with the scale of the weights.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w[0] ** 2 + 3 * w[1] ** 2)
    >>> key = jax.random.key(0)
    >>> at_minimum = worst_case_sharpness(loss, jnp.zeros(2), jnp.ones(4), key=key, rho=0.5)
    >>> print(f"{at_minimum.value:.4f}")
    0.7500

    With `norm="linf"` the ball is the box `|e_i| <= rho T_i`, of which every weight may use the
    whole (Andriushchenko et al., 2023, arXiv 2302.07011, with radii of .0005 to .008). It holds the
    Euclidean ball of the same radius, and lies within that of `rho sqrt(P)`. To first order its
    worst case is `rho |T g|_1`.

    With `m` it is m-sharpness (Foret et al., 2021, arXiv 2010.01412): the mean over chunks of `m`
    neighbouring examples of each chunk's own worst case, by the weights that the loss declares
    (`composed`), if it does. `per_chunk` holds them one by one, with `m=1` for each example. The
    true mean never falls when chunks are cut into smaller ones; found values that do are proof of
    too little search.

    The search is Auto-PGD (Croce and Hein, 2020, arXiv 2003.01690) in `u = e / T`, which has
    nothing to tune. It starts at SAM's point `rho T^2 g / ||T g||` (in the box at `rho T sign(g)`,
    and goes by signs) and keeps the best, so the value is below neither 0 nor the rise there. Where
    the gradient is exactly zero it starts at random: ascent then acts as power iteration and tends
    to `rho^2 lambda_max(T H T)_+ / 2`, slowly if negative curvature is much the larger in size.
    Where a symmetry holds the gradient orthogonal to the steepest direction, only random starts
    (`restarts`) find it.

    How good it is: on an MLP trained on digits, 20 steps came within 1.2e-3 of 200 at every radius,
    mostly within 1e-5; 10 steps fell up to 0.14 short and 5 up to 0.48. Where the loss rose a
    thousandfold there were several maxima: five searches found up to 25 % more than one.

    Args:
        loss, params, batch: as in `hessian`.
        key: for random starts; the same ones serve every chunk.
        rho: radius in units of `T`, >= 0; may be traced. 0 gives exactly 0. Of an array of radii
            [R] each is searched by itself, by the one program, and every number of the result gets
            a leading axis (the perturbation too: R copies of the parameters). No other radius
            compiles anything.
        scaling: rule for `T`. A weight with `T = 0` stays where it is.
        norm: of the ball, "l2" or "linf".
        m: examples per chunk, dividing their number; None: all.
        num_steps: gradients per search.
        restarts: searches, all but the first from uniformly random points of the sphere, or corners
            of the box.
        microbatch_size: examples per pass, dividing those of a chunk; None: a chunk at once.

    Raises:
        UserError: an argument does not fit.

    Cost: `1 + num_steps * restarts` gradients over all examples, chunk after chunk, in one loop.
    Memory, however many the chunks: 12 copies of the parameters in a host loop, 16 in a device loop
    (which keeps its first state), and the activations of one chunk (of one microbatch). On CPU,
    call it outside of your own jit if the loss convolves (`sharpjax.loops`).
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

    Every weight, biases and normalisation included, moves in proportion to itself (Kwon et al.,
    2021, arXiv 2102.11600; as a measure, Andriushchenko et al., 2023, arXiv 2302.07011), so the
    value is the same for all rescalings of the weights that leave a ReLU network as it is. Weights
    that are exactly zero stay so. Arguments, cost, memory and errors are those of
    `worst_case_sharpness`.

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

    To first order `rho |g|`; it may be negative. A zero gradient gives exactly 0. Not the statistic
    of random noise that some papers call by this name. Cost: one gradient and one evaluation.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`.
        rho: radius, >= 0; may be traced. 0 gives exactly 0. An array [R] of radii gives results
            with that axis.

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
    perturbed = objective.value(loss, perturbation.perturb(params, e), batch, microbatch_size)
    # Compiled apart, the two losses may differ in rounding at one and the same point. A radius that
    # was traced could not be checked.
    rise = jnp.where(tree.vdot(e, e) == 0, value - value, perturbed - value)
    rise = jnp.where(radius >= 0, rise, jnp.nan)
    return SamSharpness(
        value=rise,
        loss=value,
        perturbed_loss=value + rise,
        perturbation=e,
        per_chunk=None,
        num_gradients=jnp.int32(1),
        status=if_finite(jnp.isfinite(rise)),
    )


def _worst_case(caller, loss, params, batch, key, rho, *how) -> Sharpness:
    problem = prepare(caller, loss, params, batch, key, rho, *how)
    return mark(over_radii(functools.partial(find, problem), rho), problem.checked)


class Problem(NamedTuple):
    """A search that was checked, and what it reads but for the radius and what moves."""

    search: worst_case.Search
    operands: worst_case.Operands
    keep_point: bool
    checked: Any


def prepare(
    caller, loss, params, batch, key, rho, scaling, norm, m, num_steps, restarts, microbatch_size
) -> Problem:
    """The search for a worst case, with what a user passed checked.

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
        loss=found.loss,
        perturbed_loss=found.loss + found.rise,
        perturbation=found.perturbation,
        per_chunk=found.rises,
        num_gradients=jnp.int32(search.turns),
        status=if_finite(found.finite & jnp.isfinite(found.rise)),
    )


def over_radii(fn: Callable[[ArrayLike], Any], rho: ArrayLike) -> Any:
    """`fn(rho)`; of several radii each by itself, by one and the same program, stacked."""
    if isinstance(rho, Tracer) or (np.ndim(rho) and loops.inside_jit()):
        rho = jnp.asarray(rho)
        return loops.map_over_chunks(lambda _, r: fn(r), (), rho) if rho.ndim else fn(rho)
    return _stack([fn(r) for r in np.asarray(rho)]) if np.ndim(rho) else fn(rho)


_stack = jax.jit(tree.stack)


def _exact(value, num_evaluations) -> Estimate:
    return Estimate(value, jnp.zeros_like(value), num_evaluations)


# What a user passed.


def check_rho(caller, rho, *, several: bool = False):
    """Refuses what is no radius, or, where several are taken, no array of radii [R]."""
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
