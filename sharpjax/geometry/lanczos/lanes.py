"""What the lanes of a vmap decide together.

Under vmap a condition that differs between lanes turns a branch into both branches, and an index
that does turns a slice into a gather. The lanes of a solver move in step, and a lane that has
stopped is left as it was: so what any of them needs, and the row that the furthest has reached,
serve them all. Outside of vmap these are the identity.
"""

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_lane(condition: jax.Array) -> jax.Array:
    """Whether a condition holds in any lane: one boolean for all of them."""
    return condition


@any_lane.def_vmap
def _(_axis_size, _in_batched, condition):
    return any_lane(jnp.any(condition, axis=0)), False


@jax.custom_batching.custom_vmap
def of_furthest(count: jax.Array, value: jax.Array) -> jax.Array:
    """The value in the lane with the largest count: one for all of them."""
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
    """The largest index of any lane: one for all of them."""
    return of_furthest(index, index)
