"""Decisions that the lanes of a vmap take together.

Under vmap, a condition that differs between lanes makes both branches run, and an index that
differs turns a slice into a gather. The lanes of a solver advance together, and a lane that has
stopped is left unchanged. So one condition (whether any lane needs a branch) and one index (that of
the furthest lane) serve all lanes. Outside of vmap these functions are the identity.
"""

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_lane(condition: jax.Array) -> jax.Array:
    """Whether a condition holds in any lane: one boolean for all lanes."""
    return condition


@any_lane.def_vmap
def _(_axis_size, _in_batched, condition):
    return any_lane(jnp.any(condition, axis=0)), False


@jax.custom_batching.custom_vmap
def of_furthest(count: jax.Array, value: jax.Array) -> jax.Array:
    """The value in the lane with the largest count: one value for all lanes."""
    del count
    return value


@of_furthest.def_vmap
def _(axis_size, in_batched, count, value):
    def batched(x, is_batched):
        return x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))

    count, value = (batched(x, b) for x, b in zip((count, value), in_batched, strict=True))
    lane = jnp.argmax(count, axis=0)
    return of_furthest(count[lane], value[lane]), False


def furthest(index: jax.Array) -> jax.Array:
    """The largest index of any lane: one index for all lanes."""
    return of_furthest(index, index)
