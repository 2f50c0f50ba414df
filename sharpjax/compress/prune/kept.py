"""Training with a mask: pruned weights stay exactly 0 with any optimiser."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sharpjax.compress.prune import amounts
from sharpjax.compress.prune.schedules import Schedule, check_schedule
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError
from sharpjax.losses.objective import masked


class KeepMaskedState(NamedTuple):
    """The mask, of booleans in the shapes of the weights, stored in the optimiser state."""

    mask: Any


class GradualState(NamedTuple):
    """The number of updates made, and the current mask."""

    count: jax.Array
    mask: Any


def keep_masked(mask: Any) -> optax.GradientTransformation:
    """An optax transform that keeps pruned weights at 0. It must be the last one of a chain.

        u -> u where the mask is not 0, -w where it is 0

    So w + u is exactly 0.0 for pruned weights, even with momentum, weight decay and adaptive scales
    earlier in the chain, and even if w was not 0. Updates of kept weights are unchanged, bit for
    bit. Earlier transforms still update their moments for pruned weights, but nothing reads them.

    With SAM the gradient itself must use the mask; otherwise pruned weights are perturbed and count
    in its norm. Use `losses.Objective(..., mask=mask)`, as plans do, or `masked_loss`. The gradient
    of pruned weights is then 0, and no optimiser moves a weight that is 0 and has only such
    gradients; this transform then changes nothing.

    Args:
        mask: a tree like the parameters, of booleans or numbers; a leaf may have fewer axes.

    Raises:
        UserError: `init` with parameters that do not match the mask; `update` without params.

    >>> tx = optax.chain(optax.adamw(0.1, weight_decay=0.5), keep_masked({"w": jnp.array([1, 0])}))
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()[1]
    0.0
    """

    def init(params: Any) -> KeepMaskedState:
        jax.eval_shape(lambda p: masked(p, mask, caller="prune.keep_masked"), params)
        return KeepMaskedState(
            jax.tree.map(lambda w, m: jnp.broadcast_to(jnp.asarray(m) != 0, w.shape), params, mask)
        )

    def update(
        updates: Any, state: KeepMaskedState, params: Any = None
    ) -> tuple[Any, KeepMaskedState]:
        _need_params("prune.keep_masked", params)
        return _to_zero(updates, state.mask, params), state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def gradual(
    schedule: Schedule, *, scope: Scope = "kernels", layerwise: bool = False, regrow: bool = False
) -> optax.GradientTransformation:
    """Magnitude pruning during training, as an optax transform. It must be the last of a chain.

    At each step of the schedule a new mask is made from |w + u|, the magnitudes of the weights
    after the update. From then on it is applied as in `keep_masked`. Counts and ties are exactly
    those of `mask`.

    The gradient does not use the mask. With SAM, train in stages with `Member.mask` instead, which
    the objective uses.

    Args:
        schedule: from `one_shot`, `polynomial`, `periodic` or `iterative`, or a `Schedule` of steps
            and amounts.
        scope: as in `mask`.
        layerwise: if True, the amounts apply to each array, not to all together.
        regrow: if True, a pruned weight may be kept again, by the magnitude that the update would
            give it. If False, pruned weights are pruned first, so masks are nested if the amounts
            do not decrease.

    Raises:
        UserError: an invalid schedule, an unknown scope; `update` without params.

    Cost: a sort of the weights at each step of the schedule, behind a `lax.cond`. Under `vmap`,
    which evaluates both branches, it is at every step.

    >>> schedule = Schedule(steps=(1,), amounts=(0.5,))
    >>> tx = optax.chain(optax.sgd(0.0), gradual(schedule, scope="trainable"))
    >>> params = jnp.array([1.0, -3.0, 2.0, 4.0])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.ones(4), state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(params.tolist())
    [1.0, -3.0, 2.0, 4.0]
    [0.0, -3.0, 0.0, 4.0]
    """
    check_schedule("prune.gradual", schedule)
    steps = np.array(schedule.steps, np.int32)

    def init(params: Any) -> GradualState:
        in_scope("prune.gradual", params, scope)
        kept = jax.tree.map(lambda w: jnp.ones(jnp.shape(w), bool), params)
        return GradualState(jnp.zeros((), jnp.int32), kept)

    def update(updates: Any, state: GradualState, params: Any = None) -> tuple[Any, GradualState]:
        _need_params("prune.gradual", params)
        due = steps == state.count

        def renew(before: Any) -> Any:
            own = in_scope("prune.gradual", params, scope)
            return _renewed(params, updates, before, own, jnp.argmax(due))

        mask = jax.lax.cond(jnp.any(due), renew, lambda before: before, state.mask)
        count = jnp.asarray(optax.safe_increment(state.count))
        return _to_zero(updates, mask, params), GradualState(count, mask)

    def _renewed(params: Any, updates: Any, before: Any, own: list[bool], i: jax.Array) -> Any:
        leaves, structure = jax.tree.flatten(before)
        # Rounded as optax.apply_updates rounds them, so that ties are those of the new weights.
        moved = [
            jnp.abs((w + u).astype(w.dtype))
            for w, u in zip(*map(jax.tree.leaves, (params, updates)), strict=True)
        ]
        scores = [
            (x if regrow else jnp.where(kept, x, -1)).astype(
                jnp.promote_types(x.dtype, jnp.float32)
            )
            for x, kept in zip(moved, leaves, strict=True)
        ]
        chosen = [j for j, may in enumerate(own) if may]
        groups = [[j] for j in chosen] if layerwise else [chosen]
        for group in groups:
            flat = jnp.concatenate([scores[j].ravel() for j in group])
            counts = [amounts.num_pruned(a, flat.size) for a in schedule.amounts]
            kept = _keep_highest(flat, jnp.asarray(counts, jnp.int32)[i])
            ends = np.cumsum([scores[j].size for j in group])[:-1]
            for j, part in zip(group, jnp.split(kept, ends), strict=True):
                leaves[j] = part.reshape(scores[j].shape)
        return jax.tree.unflatten(structure, leaves)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _keep_highest(scores: jax.Array, count: jax.Array) -> jax.Array:
    """As `masks.keep_highest`, for a count that may be traced."""
    last = jnp.sort(scores)[jnp.maximum(count - 1, 0)]
    equal, below = scores == last, jnp.sum(scores < last)
    kept = (scores > last) | (equal & (jnp.cumsum(equal) > count - below))
    return kept | (count == 0)


def _to_zero(updates: Any, mask: Any, params: Any) -> Any:
    def leaf(u: jax.Array, kept: jax.Array, w: jax.Array) -> jax.Array:
        # Use a type wide enough for -w, so that w + u is exactly 0.
        wide = jnp.promote_types(u.dtype, w.dtype)
        return jnp.where(kept, u.astype(wide), -w.astype(wide))

    return jax.tree.map(leaf, updates, mask, params)


def _need_params(caller: str, params: Any) -> None:
    if params is None:
        raise UserError(f"{caller}: update needs params, the weights that are kept at 0.")
