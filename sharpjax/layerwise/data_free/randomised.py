"""A layer and the same with shuffled entries: structure beyond the distribution of entries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharpjax.errors import UserError
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.layerwise.data_free.eigenvalues import eigenvalues


class Randomised(NamedTuple):
    """A layer compared with its shuffle; the attributes have WeightWatcher's names.

    Attributes:
        max_rand_eval: the largest eigenvalue after the shuffle.
        rand_distance: square root of the Jensen-Shannon divergence, in nats, between the two sorted
            vectors of eigenvalues, each divided by its sum.
        ww_softrank: max_rand_eval / lambda_max.
        ww_maxdist: lambda_max - max_rand_eval.
    """

    max_rand_eval: jax.Array
    rand_distance: jax.Array
    ww_softrank: jax.Array
    ww_maxdist: jax.Array


def randomised(
    key: jax.Array, matrices: jax.Array, factor: jax.typing.ArrayLike = 1.0
) -> Randomised:
    """One shuffle of the entries of each of k matrices [m, n]; the result depends on the key.

    WeightWatcher shuffles with numpy's global state, and five times for `max_rand_eval` if there
    are fewer than 100 eigenvalues. Cost: singular values twice.

    Args:
        key: one random key.
        matrices: [k, m, n].
        factor: multiplies the eigenvalues, as in `eigenvalues`.

    Raises:
        UserError: no key or several, `matrices` without three axes or without entries.

    >>> found = randomised(jax.random.key(0), jnp.eye(20)[None])
    >>> bool(found.rand_distance > 0.3), bool(found.ww_softrank > 1.9)
    (True, True)
    """
    key = check_key("randomised", key)
    if jnp.ndim(matrices) != 3 or not jnp.size(matrices):
        raise UserError(
            f"randomised: matrices must be k matrices [k, m, n], got shape {jnp.shape(matrices)}; "
            "give one matrix as W[None]."
        )
    values = eigenvalues(matrices, factor)
    keys = jax.random.split(key, matrices.shape[0])
    mixed = jax.vmap(lambda k, w: jax.random.permutation(k, w.ravel()).reshape(w.shape))(
        keys, matrices
    )
    others = eigenvalues(mixed, factor)
    top, other = values[-1], others[-1]
    distance = jensen_shannon_distance(values / jnp.sum(values), others / jnp.sum(others))
    return Randomised(other, distance, other / top, top - other)


def jensen_shannon_distance(p: jax.Array, q: jax.Array) -> jax.Array:
    """sqrt(KL(p || m) / 2 + KL(q || m) / 2), m = (p + q) / 2, in nats.

    >>> d = jensen_shannon_distance(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    >>> bool(jnp.isclose(d**2, jnp.log(2.0)))
    True
    """
    middle = (p + q) / 2
    both = jnp.sum(jax.scipy.special.rel_entr(p, middle) + jax.scipy.special.rel_entr(q, middle))
    return jnp.sqrt(jnp.maximum(both / 2, 0))
