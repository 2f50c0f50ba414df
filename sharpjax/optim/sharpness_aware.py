"""Sharpness-aware minimisation as an optax transform: SAM, ASAM and m-SAM in two passes.

The caller's own gradient is the first pass; `update` runs the second, at the perturbed weights. The
parameters that anyone can see are never perturbed, nothing is added and subtracted again, and there
is no epsilon and no branch: a zero gradient gives a zero perturbation.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from sharpjax import loops, perturbation, tree
from sharpjax.errors import UserError

Params = Any
GradFn = Callable[[Params, Any], tuple[tuple[jax.Array, Any], Params]]

SAM_STATIC_ARGS = ("scaling", "m", "ascent")
"""What `optax.inject_hyperparams(sam, static_args=SAM_STATIC_ARGS)` must leave alone: else `m` is
traced, and a callable `scaling` or `ascent` taken for a schedule."""


class SamStatistics(NamedTuple):
    """What the last step saw: scalars in float32, zero before the first step.

    `optax.tree.get(opt_state, "statistics")` finds them in the state of any chain. Norms are roots
    of float32 sums of squares: below some 1e-19 they read 0, whereas the
    perturbation knows no such bound.

    Attributes:
        loss: at the weights, as the caller gave it.
        perturbed_loss: at the perturbed weights; for m-SAM the mean over chunks.
        grad_norm: Euclidean norm of the gradient as the caller gave it.
        perturbed_grad_norm: that of the gradient that the base optimiser got.
        cosine: of the angle between these two; 0 where one of them is zero.
        lost_fraction: share of the perturbed weights that rounding put back where they were.
    """

    loss: jax.Array
    perturbed_loss: jax.Array
    grad_norm: jax.Array
    perturbed_grad_norm: jax.Array
    cosine: jax.Array
    lost_fraction: jax.Array


class SamState(NamedTuple):
    """State of `sam`: the number of steps taken (int32), what the last one saw, the base's own."""

    count: jax.Array
    statistics: SamStatistics
    base: optax.OptState


def sam(
    base: optax.GradientTransformation,
    *,
    rho: ArrayLike | optax.Schedule,
    scaling: perturbation.Scaling = perturbation.none(),  # noqa: B008 (a value, equal by value)
    m: int | None = None,
    ascent: Callable[[Params, Params], Params] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SAM round any optimiser: it gets the gradient at `w + e`, `e = rho T^2 g / ||T g||_2`.

    `g` is the gradient at `w` and `T` the scaling: 1 is SAM (Foret et al., 2021, arXiv 2010.01412),
    `perturbation.element(eta)` ASAM (Kwon et al., 2021, arXiv 2102.11600). `||.||_2` is one norm
    over all parameters together, and `w + e` is rounded once to the type of `w`.

        tx = sam(optax.sgd(0.1, momentum=0.9), rho=0.05)
        grad_fn = jax.value_and_grad(loss, has_aux=True)     # loss(params, batch) -> (value, aux)
        (value, aux), grads = grad_fn(params, batch)
        updates, state = tx.update(
            grads, state, params, value=value, grad_fn=grad_fn, batch=batch
        )

    Cost: one gradient beside the caller's, so two in all; memory: a perturbed copy of the
    parameters.

    Both passes see what `grad_fn` holds. A dropout key in it gives both the same mask. BatchNorm
    statistics are those in the caller's `aux`, of the clean pass; the second pass's `aux` is
    dropped. In m-SAM each chunk normalises by itself in both passes.

    **m-SAM** (`m` smaller than the batch): examples `[0, m), [m, 2m), ...` of the batch are chunks
    by position, whatever the devices. Each has its own `g` and `e`, and the base gets the mean of
    their gradients, each at its own `w + e`. The clean gradients come from `sam_value_and_grad` as
    `chunk_grads`: two passes again. This is also the way to accumulate gradients over microbatches:
    `optax.MultiSteps` round SAM silently takes only the last one into the second pass.

    **With other transforms.** What stands before it in an `optax.chain` changes the gradient of the
    ascent (not in m-SAM, whose chunk gradients pass it by; and a clip by global norm changes
    nothing). What stands after it, or in `base`, changes that of the descent: weight decay in
    `base` stays out of the ascent. `base` sees SAM's objective, so its `value` is the loss at the
    perturbed weights. `apply_if_finite` round it looks at the clean gradient, in `base` at the
    perturbed one. `masked` and `partition` go into `base`: round it their MaskedNode leaves make it
    fail. `inject_hyperparams` needs `static_args=SAM_STATIC_ARGS`.

    Args:
        base: the optimiser that takes the descent step. Its state is touched once a step.
        rho: radius of the perturbation, in units of `T`; a number, or a schedule of SAM's own step
            count. At 0 no bit of the weights is changed, and the step is that of `base`, as far as
            XLA rounds the gradient alike in both programs.
        scaling: rule for `T`.
        m: examples of a chunk, a divisor of the batch; None: the whole batch.
        ascent: `ascent(grads, params)` gives the gradient to ascend, such as one with weight decay:
            `lambda g, w: tree.add_scaled(g, 5e-4, w)`. For m-SAM it is called on each chunk's.

    Returns:
        A transform with `SamState`, whose `update(grads, state, params, *, value, grad_fn, batch,
        chunk_grads=None)` takes the caller's clean `value` and `grads`, and
        `grad_fn(params, batch) -> ((value, aux), grads)`; batch leaves carry examples on axis 0.

    Raises:
        UserError: `rho` is negative or NaN; `m` is no positive integer, or does not divide the
            batch; `update` lacks what it needs, or gets chunk gradients that do not fit.

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
    # A schedule, or a number that is traced under `inject_hyperparams`, cannot be looked at.
    if isinstance(rho, numbers.Real) and not 0 <= float(rho) < float("inf"):
        raise UserError(f"optim.sam: rho must be a number >= 0 or a schedule, got {rho}.")
    if m is not None:
        _check_chunk_size("optim.sam", m)
    inner = optax.with_extra_args_support(base)

    def init(params: Params) -> SamState:
        _refuse_masked_nodes(params)
        zeros = (jnp.zeros((), jnp.float32) for _ in SamStatistics._fields)
        return SamState(jnp.zeros((), jnp.int32), SamStatistics(*zeros), inner.init(params))

    def update(
        grads: Params,
        state: SamState,
        params: Params | None = None,
        *,
        value: ArrayLike,
        grad_fn: GradFn,
        batch: Any,
        chunk_grads: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, SamState]:
        if params is None:
            raise UserError("optim.sam: update needs params, the weights that are perturbed.")
        radius = jnp.asarray(rho(state.count) if callable(rho) else rho)

        def second_pass(at: tuple, chunk: tuple) -> tuple[jax.Array, Params, jax.Array]:
            (params, radius), (examples, clean) = at, chunk
            direction = clean if ascent is None else ascent(clean, params)
            e = perturbation.ascent(direction, params, rho=radius, scaling=scaling)
            loss, perturbed = _value_and_grads(grad_fn(perturbation.perturb(params, e), examples))
            return loss, perturbed, perturbation.lost_fraction(params, e)

        if m is None:
            if chunk_grads is not None:
                raise UserError("optim.sam: chunk_grads are for m-SAM; give sam the same m.")
            loss, perturbed, lost = second_pass((params, radius), (batch, grads))
        else:
            chunks = loops.split_chunks("optim.sam", batch, m)
            _check_chunk_grads(chunk_grads, grads, m, jax.tree.leaves(chunks)[0].shape[0])
            loss, perturbed, lost = loops.mean_over_chunks(
                second_pass, (params, radius), (chunks, chunk_grads)
            )
        updates, base_state = inner.update(
            perturbed,
            state.base,
            params,
            value=loss,
            grad_fn=grad_fn,
            batch=batch,
            **extra_args,
        )
        norms = _norms_and_cosine(grads, perturbed)
        statistics = (jnp.asarray(x, jnp.float32) for x in (value, loss, *norms, lost))
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, SamState(count, SamStatistics(*statistics), base_state)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def sam_value_and_grad(
    loss: Callable[[Params, Any], tuple[jax.Array, Any]], *, m: int
) -> Callable[[Params, Any], tuple[tuple[jax.Array, Any], Params, Params]]:
    """The clean pass of m-SAM: `jax.value_and_grad(loss, has_aux=True)`, chunk by chunk.

    Each chunk of `m` neighbouring examples is a batch of its own (BatchNorm normalises within it).
    Value, gradients and `aux` are the means over chunks, in float32 at least and then in their own
    types: of equal chunks, so those of the batch where the loss is a mean over examples. What in
    `aux` is not a floating number (a counter, a flag, a key) is the first chunk's: right for what
    does not depend on the examples; a count of examples must be given as a floating mean.

    Cost: one pass over the batch. Memory: the activations of one chunk, and every chunk's gradient:
    (batch size / m) times the parameters (44.7 MB each for a ResNet-18 in float32).

    Args:
        loss: `loss(params, batch) -> (value, aux)`, value the mean over the batch.
        m: examples of a chunk, a divisor of the batch.

    Returns:
        A function of (params, batch) that gives ((value, aux), grads, chunk_grads), whose leaves
        are `[batch size / m, *leaf]`, as `sam(..., m=m).update` takes them.

    Raises:
        UserError: `m` is no positive integer, or does not divide the batch.

    >>> import jax.numpy as jnp
    >>> def loss(w, x):
    ...     return jnp.mean(x * w), {"largest": jnp.max(x)}
    >>> (value, aux), grads, chunks = sam_value_and_grad(loss, m=2)(1.0, jnp.arange(4.0))
    >>> float(value), float(aux["largest"]), float(grads), chunks.tolist()
    (1.5, 2.0, 1.5, [0.5, 2.5])
    """
    _check_chunk_size("optim.sam_value_and_grad", m)
    grad_fn = jax.value_and_grad(loss, has_aux=True)

    def value_and_grad(params: Params, batch: Any) -> tuple[tuple[jax.Array, Any], Params, Params]:
        chunks = loops.split_chunks("optim.sam_value_and_grad", batch, m)
        clean, chunk_grads = loops.map_over_chunks(grad_fn, params, chunks)
        value, aux = jax.tree.map(_mean_or_first, clean)
        return (value, aux), jax.tree.map(_mean_or_first, chunk_grads), chunk_grads

    return value_and_grad


def _mean_or_first(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x[0]
    return jnp.mean(x, axis=0)  # which jax accumulates in float32 at least


def _norms_and_cosine(g: Params, h: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Three sums a leaf and no more: by way of unit vectors, which know no range, what SAM adds to a
    # step of 65 leaves took 10.5 s to compile on CPU, this way 6.6.
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


def _check_chunk_size(caller: str, m: Any) -> None:
    if isinstance(m, bool) or not isinstance(m, numbers.Integral) or m < 1:
        raise UserError(
            f"{caller}: m must be a positive integer, the examples of a chunk, got {m}. "
            f"optax.inject_hyperparams leaves it one with static_args=optim.SAM_STATIC_ARGS."
        )


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
