"""A loss that is not finite, seen in the products of its curvature.

The derivatives of a sum may be finite where the sum is not: a term that is NaN may have a gradient
of zeros. So every product carries the value of the loss, which comes with the gradient that is
linearised.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def poison(vector: Any, value: jax.Array) -> Any:
    """The same tree, but its smallest leaf with an entry is NaN where `value` is not finite.

    That is enough for every norm and every inner product, and takes no pass over the others.

    >>> poison({"w": jnp.ones((2, 2)), "b": jnp.ones(1)}, jnp.array(jnp.inf))["b"].tolist()
    [nan]
    """
    leaves, treedef = jax.tree.flatten(vector)
    sizes = [x.size or np.inf for x in leaves]
    if leaves and min(sizes) < np.inf:
        i = int(np.argmin(sizes))
        leaves[i] = jnp.where(jnp.isfinite(value), leaves[i], jnp.nan)
    return jax.tree.unflatten(treedef, leaves)


def poisoned(product: Any, value: jax.Array, vector: Any) -> Any:
    """`product(vector)`, poisoned; for use as `Partial(poisoned, product, value)`."""
    return poison(product(vector), value)
