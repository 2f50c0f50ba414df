"""Arrays less their mean, and whether anything but rounding is left."""

import jax
import jax.numpy as jnp


def centred(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x minus its mean, the sum of the squares of this, and whether that sum is more than rounding
    of the mean (True for NaN).

    >>> [part.tolist() for part in centred(jnp.array([[1.0, 3.0], [0.1, 0.1]]), 1)]
    [[[-1.0, 1.0], [0.0, 0.0]], [[2.0], [0.0]], [[True], [False]]]
    """
    apart = x - jnp.mean(x, axis, keepdims=True)
    squared = jnp.sum(jnp.square(apart), axis, keepdims=True)
    rounding = (8 * jnp.finfo(x.dtype).eps) ** 2
    constant = squared <= rounding * jnp.sum(jnp.square(x), axis, keepdims=True)
    return apart, squared, ~constant
