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
def furthest(index: jax.Array) -> jax.Array:
    """The largest index of any lane: one for all of them."""
    return index


@furthest.def_vmap
def _(_axis_size, _in_batched, index):
    return furthest(jnp.max(index, axis=0)), False
