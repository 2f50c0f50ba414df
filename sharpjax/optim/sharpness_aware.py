"""Sharpness-aware minimisation (SAM) and its family as one optax transform.

    SAM        sam(base, rho=0.05)                                                arXiv 2010.01412
    ASAM       sam(base, rho=0.5, scaling=perturbation.element(0.01, bias="unit"))       2102.11600
    SAM-ON     sam(base, rho=0.5, scaling=perturbation.only("*BatchNorm*"))              2306.04226
    GSAM       sam(base, rho=coupled_rho(rate, ...), gap_weight=0.4)                     2203.08065
    LookSAM    sam(base, rho=0.05, every=5, reuse=0.7)                                   2203.02714
    F-SAM      sam(base, rho=0.05, ascent=friendly(sigma=1.0, decay=0.9))                2403.12350
    random     sam(base, rho=0.05, ascent=random_direction(key))                         2206.06232
    USAM       sam(base, rho=0.05, norm="none")                                          2206.06232
    WSAM       sam(base, rho=0.05, sharpness_weight=9)                                   2305.15817

The caller's own gradient is the first pass; `update` runs the second, at the perturbed weights. The
perturbed weights are a separate copy: the caller's parameters are never changed and restored. There
is no epsilon and no branch: a zero gradient gives a zero perturbation.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from sharpjax import loops, perturbation, tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.optim import chunks, directions

Params = Any
GradFn = Callable[[Params, Any], tuple[tuple[jax.Array, Any], Params]]

SAM_STATIC_ARGS = (
    *("scaling", "norm", "steps", "m", "ascent"),
    *("gap_weight", "every", "reuse", "sharpness_weight"),
)
"""The arguments that `optax.inject_hyperparams(sam, static_args=SAM_STATIC_ARGS)` must leave alone:
all but `rho`. Otherwise numbers are traced, and a callable `scaling` is taken for a schedule."""


class SamStatistics(NamedTuple):
    """Statistics of the last step: scalars in float32, zero before the first step.

    `optax.tree.get(opt_state, "statistics")` finds them in the state of any chain. Norms are roots
    of float32 sums of squares, so norms below about 1e-19 read 0. The perturbation itself has no
    such limit.

    Attributes:
        loss: at the weights, as the caller gave it.
        perturbed_loss: at the perturbed weights; for m-SAM the mean over chunks. In a step without
            a second pass (`every`) it is the loss at the weights.
        grad_norm: Euclidean norm of the gradient as the caller gave it.
        perturbed_grad_norm: Euclidean norm of the gradient that the base optimiser received.
        cosine: of the angle between these two gradients; 0 if one of them is zero.
        lost_fraction: share of the perturbed weights that rounding left unchanged; 0 in a step
            without a second pass.
    """

    loss: jax.Array
    perturbed_loss: jax.Array
    grad_norm: jax.Array
    perturbed_grad_norm: jax.Array
    cosine: jax.Array
    lost_fraction: jax.Array


class SamState(NamedTuple):
    """State of `sam`.

    Attributes:
        count: the number of steps taken, int32.
        statistics: of the last step.
        base: the state of the base optimiser.
        ascent: the state of the transform `ascent`.
        sideways: kept for `reuse`: the last perturbed gradient minus its part along the clean
            gradient. None without `reuse`.
    """

    count: jax.Array
    statistics: SamStatistics
    base: optax.OptState
    ascent: optax.OptState = ()
    sideways: Params | None = None


def sam(
    base: optax.GradientTransformation,
    *,
    rho: ArrayLike | optax.Schedule,
    scaling: perturbation.Scaling = perturbation.none(),  # noqa: B008 (a value, equal by value)
    norm: perturbation.Norm = "l2",
    steps: int = 1,
    m: int | None = None,
    ascent: optax.GradientTransformation | None = None,
    gap_weight: float = 0.0,
    every: int = 1,
    reuse: float = 0.0,
    sharpness_weight: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """SAM around any optimiser, which gets the gradient at `w + e`, `e = rho T^2 g / ||T g||_2`.

    `g` is the gradient at `w` and `T` the scaling: `T = 1` gives SAM, `perturbation.element(eta)`
    gives ASAM. `||.||_2` is one norm over all parameters together, and `w + e` is rounded once to
    the dtype of `w`. The other options can be combined with these, and with each other.

        tx = sam(optax.sgd(0.1, momentum=0.9), rho=0.05)
        grad_fn = jax.value_and_grad(loss, has_aux=True)     # loss(params, batch) -> (value, aux)
        (value, aux), grads = grad_fn(params, batch)
        updates, state = tx.update(
            grads, state, params, value=value, grad_fn=grad_fn, batch=batch
        )

    Cost: one gradient besides the caller's, so two per step; `steps` + 1 with several steps, and
    1 + 1 / `every` on average. Memory: a perturbed copy of the parameters; `reuse` and
    `ascent=friendly(...)` keep one more tree each.

    Both passes use whatever `grad_fn` holds: a dropout key in it gives both the same mask.
    BatchNorm statistics are those of the clean pass, in the caller's `aux`; the `aux` of the second
    pass is dropped. In m-SAM each chunk is normalised separately in both passes. The second pass
    reads `batch`; `value` and `grads` may come from another batch.

    **m-SAM** (`m` smaller than the batch): the examples `[0, m), [m, 2m), ...` of the batch are the
    chunks, for any number of devices. Each chunk has its own `g` and `e`. The base gets the mean of
    the chunks' gradients, each at its own `w + e`. The clean gradients come from
    `sam_value_and_grad` as `chunk_grads`, so there are still two passes. Use this to accumulate
    gradients over microbatches: with `optax.MultiSteps` around SAM, the second pass silently uses
    only the last microbatch.

    **Several steps**: `e_0 = 0` and `e_k+1 = e_k + rho / K * T^2 g_k / ||T g_k||_2`, with `g_k` the
    gradient at `w + e_k`, so that `e_K` is in the ball. The steps are unrolled, so compilation
    takes K times as long.

    **GSAM** (`gap_weight` = a): the base gets `p - a (g - <g, p> p / ||p||^2)`, with `p` the
    gradient at `w + e`. In m-SAM, `g` and `p` are means over chunks.

    **WSAM** (`sharpness_weight` = a): the base gets `g + a (p - g)`, the gradient of the loss plus
    a times its rise. 1 gives SAM, 0 the base alone. In the paper `a = gamma / (1 - gamma)`. Its
    main form takes the step along `a (p - g)` outside of the base optimiser, which is not
    implemented here. With GSAM, `p` is GSAM's.

    **LookSAM** (`every` = k, `reuse` = a): steps 0, k, 2k, ... are SAM steps and keep `v`, which is
    `p` minus its part along `g` (0 if the difference is only rounding). In the other steps the base
    gets `g + a ||g|| v / ||v||`, without a second pass; with `reuse=0` they are plain steps. All
    steps cost two gradients under `jax.vmap` over states, and on CPU if the model has convolutions:
    XLA runs these about twenty times slower inside a branch (1.4 s instead of 0.07 for a narrow
    ResNet). To avoid this everywhere, decide outside of the jit, with the static argument
    `second_pass=step % k == 0` of `update`.

    **With other transforms.** A transform before it in an `optax.chain` changes the gradient of the
    ascent. (Not in m-SAM, whose chunk gradients bypass it; and a clip by global norm has no
    effect.) A transform after it, or in `base`, changes the gradient of the descent: weight decay
    in `base` does not enter the ascent. `base` sees SAM's objective, so its `value` is the loss at
    the perturbed weights. `apply_if_finite` checks the clean gradient when it is around `sam`, and
    the perturbed one when it is in `base`. Put `masked` and `partition` into `base`: around `sam`,
    their MaskedNode leaves raise an error. `inject_hyperparams` needs
    `static_args=SAM_STATIC_ARGS`.

    Args:
        base: the optimiser that takes the descent step. Its state is updated once per step.
        rho: radius of the perturbation, in units of `T`; a number, or a schedule of SAM's own step
            count. At 0 the weights are not changed by a single bit. The step is then that of
            `base`, provided that XLA rounds the gradient the same way in both programs.
        scaling: rule for `T`.
        norm: of the ball: 'l2'; 'linf', `e = rho T sign(g)`; or 'none', `e = rho T^2 g`.
        steps: number of ascent steps, K.
        m: examples of a chunk, a divisor of the batch; None: the whole batch.
        ascent: a transform of `g` into the direction of the ascent, such as
            `optax.add_decayed_weights(5e-4)`, `friendly` or `random_direction`. In m-SAM it is
            applied to each chunk's gradient, and its state advances with their mean.
        gap_weight: of GSAM, 0 or more.
        every: number of steps from one second pass to the next.
        reuse: of LookSAM, 0 or more.
        sharpness_weight: of WSAM, 0 or more.

    Returns:
        A transform with `SamState`, whose `update(grads, state, params, *, value, grad_fn, batch,
        chunk_grads=None, second_pass=None)` takes the caller's clean `value` and `grads`, and
        `grad_fn(params, batch) -> ((value, aux), grads)`; batch leaves have examples on axis 0.

    Raises:
        UserError: `rho` is not a single number; `rho`, `gap_weight`, `reuse` or `sharpness_weight`
            is negative, infinite or NaN; `steps`, `every` or `m` is not a positive integer, or `m`
            does not divide the batch; an unknown norm; `reuse` without `every`, which would have no
            effect; `ascent` is not a transform; `update` lacks an argument it needs, or gets chunk
            gradients that do not fit, or a traced `second_pass`.

    >>> import jax, jax.numpy as jnp, optax
    >>> def loss(w, batch):
    ...     return 0.5 * jnp.mean((batch @ w) ** 2), None
    >>> w, batch = jnp.array([2.0]), jnp.array([[1.0]])  # f = w^2 / 2, so the step is -(w + rho)
    >>> grad_fn = jax.value_and_grad(loss, has_aux=True)
    >>> (value, _), grads = grad_fn(w, batch)
    >>> tx = sam(optax.sgd(1.0), rho=0.5)
    >>> updates, state = tx.update(
    ...     grads, tx.init(w), w, value=value, grad_fn=grad_fn, batch=batch
    ... )
    >>> updates.tolist(), float(state.statistics.perturbed_loss)
    ([-2.5], 3.125)
    """
    weights = {"gap_weight": gap_weight, "reuse": reuse, "sharpness_weight": sharpness_weight}
    _check(rho, norm, m, ascent, weights)
    steps = whole_number("optim.sam", "steps", steps)
    every = whole_number("optim.sam", "every", every)
    if every == 1 and reuse:
        raise UserError(
            "optim.sam: reuse is for the steps without a second pass, and with every=1 there are "
            "none; give every, such as 5, or leave reuse out."
        )
    inner, ascend = optax.with_extra_args_support(base), ascent or optax.identity()

    def init(params: Params) -> SamState:
        _refuse_masked_nodes(params)
        zeros = (jnp.zeros((), jnp.float32) for _ in SamStatistics._fields)
        sideways = tree.zeros_like(params) if reuse else None
        return SamState(
            jnp.zeros((), jnp.int32),
            SamStatistics(*zeros),
            inner.init(params),
            ascend.init(params),
            sideways,
        )

    def update(
        grads: Params,
        state: SamState,
        params: Params | None = None,
        *,
        value: ArrayLike,
        grad_fn: GradFn,
        batch: Any,
        chunk_grads: Params | None = None,
        second_pass: bool | None = None,
        **extra_args: Any,
    ) -> tuple[Params, SamState]:
        if params is None:
            raise UserError("optim.sam: update needs params, the weights that are perturbed.")
        if m is None and chunk_grads is not None:
            raise UserError("optim.sam: chunk_grads are for m-SAM; give sam the same m.")
        if second_pass is not None and not isinstance(second_pass, bool | np.bool_):
            raise UserError(
                f"optim.sam: second_pass={second_pass!r}; give True or False, decided outside of "
                "the jit, or None."
            )
        radius = jnp.asarray(rho(state.count) if callable(rho) else rho)
        _check_radius(radius)

        def perturbed_pass(at: tuple, chunk: tuple) -> tuple[jax.Array, Params, jax.Array]:
            (params, radius, kept), (examples, clean) = at, chunk
            unit = perturbation.units("optim.sam", scaling, params)
            moved, gradient, e = params, clean, None
            for _ in range(steps):
                direction, _ = ascend.update(gradient, kept, moved)
                up = perturbation.ascent(
                    direction, params, rho=radius / steps, scaling=lambda _: unit, norm=norm
                )
                e = up if e is None else jax.tree.map(jnp.add, e, up)
                moved = perturbation.perturb(params, e)
                loss, gradient = _value_and_grads(grad_fn(moved, examples))
            return loss, gradient, perturbation.lost_fraction(params, e)

        def sam_step() -> tuple[jax.Array, Params, jax.Array, Params | None]:
            at = params, radius, state.ascent
            if m is None:
                loss, perturbed, lost = perturbed_pass(at, (batch, grads))
            else:
                parts = loops.split_chunks("optim.sam", batch, m)
                _check_chunk_grads(chunk_grads, grads, m, jax.tree.leaves(parts)[0].shape[0])
                loss, perturbed, lost = loops.mean_over_chunks(
                    perturbed_pass, at, (parts, chunk_grads)
                )
            sideways = state.sideways
            if gap_weight:
                across = directions.orthogonal(grads, to=perturbed)
                perturbed = tree.add_scaled(perturbed, -gap_weight, across)
            if sharpness_weight != 1:
                more = jax.tree.map(jnp.subtract, perturbed, grads)
                perturbed = tree.add_scaled(grads, sharpness_weight, more)
            if sideways is not None:
                sideways = directions.sideways(perturbed, to=grads)
            return loss, perturbed, lost, sideways

        def plain_step() -> tuple[jax.Array, Params, jax.Array, Params | None]:
            used = grads
            if state.sideways is not None:
                unit = perturbation.ascent(state.sideways, params, rho=1.0)
                used = tree.add_scaled(grads, reuse * tree.norm(grads), unit)
            return jnp.asarray(value), used, jnp.float32(0), state.sideways

        if every == 1 or second_pass is not None:
            loss, used, lost, sideways = sam_step() if second_pass in (None, True) else plain_step()
        else:
            like = jnp.asarray(value), grads, jnp.float32(0), state.sideways
            due = state.count % every == 0
            loss, used, lost, sideways = _either(
                due, sam_step, plain_step, like, grad_fn, at=(params, batch)
            )
        updates, base_state = inner.update(
            used,
            state.base,
            params,
            value=loss,
            grad_fn=grad_fn,
            batch=batch,
            **extra_args,
        )
        _, ascent_state = ascend.update(grads, state.ascent, params)
        norms = _norms_and_cosine(grads, used)
        statistics = (jnp.asarray(x, jnp.float32) for x in (value, loss, *norms, lost))
        count = jnp.asarray(optax.safe_increment(state.count))
        seen = SamStatistics(*statistics)
        return updates, SamState(count, seen, base_state, ascent_state, sideways)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _norms_and_cosine(g: Params, h: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Only three sums per leaf, to save compilation. With unit vectors, which cannot overflow, SAM's
    # part of a step of 65 leaves took 10.5 s to compile on CPU; this way it takes 6.6.
    norms = tree.norm(g), tree.norm(h)
    product = norms[0] * norms[1]
    cosine = jnp.where(product == 0, 0, tree.vdot(g, h) / jnp.where(product == 0, 1, product))
    return *norms, cosine


def _value_and_grads(result: Any) -> tuple[jax.Array, Params]:
    match result:
        case ((value, _), grads):
            return value, grads
    raise UserError(
        "optim.sam: grad_fn(params, batch) must give ((value, aux), grads), as "
        "`jax.value_and_grad(loss, has_aux=True)` does."
    )


def _check_radius(rho: Any) -> None:
    if jnp.shape(rho):
        raise UserError(
            f"optim.sam: rho must be one number >= 0 or a schedule of such, got an array of shape "
            f"{jnp.shape(rho)}. Other radii for other weights: a rule `scaling`; for other models: "
            f"`jax.vmap` over rho."
        )


def _check(rho: Any, norm: Any, m: Any, ascent: Any, weights: dict[str, Any]) -> None:
    # A schedule, or a number that is traced under `inject_hyperparams`, has no value to check.
    if not callable(rho):
        _check_radius(rho)
    if not callable(rho) and not isinstance(rho, Tracer):
        # Checked as it is: a jax array made from it here would be traced inside a jitted training.
        is_number = isinstance(rho, numbers.Real | np.ndarray | jax.Array)
        is_real = is_number and not np.iscomplexobj(np.asarray(rho))
        if not (is_real and 0 <= float(rho) < float("inf")):
            raise UserError(f"optim.sam: rho must be a number >= 0 or a schedule, got {rho!r}.")
    for name, number in weights.items():
        if not isinstance(number, numbers.Real) or not 0 <= float(number) < float("inf"):
            raise UserError(f"optim.sam: {name} must be a number >= 0, got {number!r}.")
    if norm not in get_args(perturbation.Norm):
        raise unknown("norm (optim.sam)", str(norm), get_args(perturbation.Norm))
    if m is not None:
        chunks.check_size("optim.sam", m)
    if ascent is not None and not (hasattr(ascent, "init") and hasattr(ascent, "update")):
        raise UserError(
            "optim.sam: ascent must be an optax transform of the gradient; wrap a function "
            "f(grads, params) as `optax.stateless(f)`."
        )


def _either(due: jax.Array, first: Any, second: Any, like: Any, grad_fn: Any, at: tuple) -> Any:
    """The result of `first` if `due`, else that of `second`, in the dtypes of `like`."""
    if jax.default_backend() == "cpu" and loops.holds_convolution(grad_fn, *at):
        both = _like(first(), like), _like(second(), like)
        return jax.tree.map(lambda a, b: jnp.where(due, a, b), *both)
    return jax.lax.cond(due, lambda: _like(first(), like), lambda: _like(second(), like))


def _like(values: Any, like: Any) -> Any:
    """The same numbers in the dtypes of `like`, so that both branches of a condition agree."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(y.dtype), values, like)


def _check_chunk_grads(chunk_grads: Params | None, grads: Params, m: int, num_chunks: int) -> None:
    fits = jax.tree.structure(chunk_grads) == jax.tree.structure(grads) and all(
        jnp.shape(c) == (num_chunks, *jnp.shape(g))
        for c, g in zip(jax.tree.leaves(chunk_grads), jax.tree.leaves(grads), strict=True)
    )
    if not fits:
        raise UserError(
            f"optim.sam: with m={m}, update needs chunk_grads, the gradient of each of the "
            f"{num_chunks} chunks on axis 0 of every leaf: ((value, aux), grads, chunk_grads) = "
            f"optim.sam_value_and_grad(loss, m={m})(params, batch)."
        )


def _refuse_masked_nodes(params: Params) -> None:
    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
        raise UserError(
            "optim.sam: optax.masked or optax.partition stands round SAM and hides parameters that "
            "the second pass needs; put it inside, sam(optax.masked(...), rho=...)."
        )
