"""A loss that is not finite makes the products of its curvature NaN.

The derivatives of a sum may be finite although the sum is not: a term that is NaN may have a
gradient of zeros. So every product carries the value of the loss, which is computed together with
the gradient that is linearised.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def poison(vector: Any, value: jax.Array) -> Any:
    """The same tree; if `value` is not finite, its smallest nonempty leaf becomes NaN.

    This makes every norm and every inner product NaN, without a pass over the other leaves.

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
