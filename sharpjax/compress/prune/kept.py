"""Training with a mask: pruned weights stay exactly 0, whatever the optimiser."""

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
    """The mask, of booleans in the shapes of the weights: it is stored with the optimiser."""

    mask: Any


class GradualState(NamedTuple):
    """How many updates were made, and the mask in force."""

    count: jax.Array
    mask: Any


def keep_masked(mask: Any) -> optax.GradientTransformation:
    """The transform after which pruned weights are 0: the last one of a chain.

        u -> u where the mask is not 0, -w where it is 0

    so that w + u is exactly 0.0 there, also with momentum, weight decay and adaptive scales before
    it, and also if w was not 0. Updates of kept weights are not changed by a bit. The moments of
    pruned weights go on; nothing reads them.

    With SAM the gradient itself must know the mask, or pruned weights are perturbed and count in
    its norm: give `losses.Objective(..., mask=mask)`, as plans do, or `masked_loss`. Such a
    gradient is 0 there, and no optimiser moves a weight that is 0 and has such gradients; this
    transform then changes nothing.

    Args:
        mask: a tree like the parameters, of booleans or numbers; a leaf may have fewer axes.

    Raises:
        UserError: `init` of parameters that the mask does not fit; `update` without params.

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
    """Magnitude pruning while a model trains: the last transform of a chain.

    At a step of the schedule a new mask is made of |w + u|, the weights as the update would leave
    them; from then on it is kept as by `keep_masked`. Counts are those of `mask`, exactly, and so
    are ties.

    The gradient does not know the mask. With SAM, train in stages with `Member.mask` instead, which
    the objective sees.

    Args:
        schedule: `one_shot`, `polynomial`, `periodic`, `iterative`, or steps and amounts.
        scope: as in `mask`.
        layerwise: the amounts are of each array, and not of all together.
        regrow: whether a pruned weight may be chosen again, by what the optimiser would make of it.
            False: pruned weights go first, so masks are nested if the amounts do not fall.

    Raises:
        UserError: a schedule out of order, an unknown scope; `update` without params.

    Cost: a sort of the weights at each step of the schedule, behind a `lax.cond`; under `vmap`,
    which evaluates both branches, at every step.

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
        moved = [
            jnp.abs(w + u) for w, u in zip(*map(jax.tree.leaves, (params, updates)), strict=True)
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
    """As `masks.keep_highest`, of a count that may be traced."""
    last = jnp.sort(scores)[jnp.maximum(count - 1, 0)]
    equal, below = scores == last, jnp.sum(scores < last)
    kept = (scores > last) | (equal & (jnp.cumsum(equal) > count - below))
    return kept | (count == 0)


def _to_zero(updates: Any, mask: Any, params: Any) -> Any:
    def leaf(u: jax.Array, kept: jax.Array, w: jax.Array) -> jax.Array:
        # Wide enough for -w, so that the sum is 0.
        wide = jnp.promote_types(u.dtype, w.dtype)
        return jnp.where(kept, u.astype(wide), -w.astype(wide))

    return jax.tree.map(leaf, updates, mask, params)


def _need_params(caller: str, params: Any) -> None:
    if params is None:
        raise UserError(f"{caller}: update needs params, the weights that are kept at 0.")
