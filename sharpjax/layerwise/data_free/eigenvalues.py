"""Eigenvalues of layers, lambda = s^2, and the metrics that need no fit."""

import jax
import jax.numpy as jnp

from sharpjax.metrics import spectra

# Range of the largest absolute weight of a layer. Within it, float64 can hold the eigenvalues,
# their products, and the values that count as 0 beside them.
LEAST, MOST = 1e-100, 1e100


def widened(values: jax.Array) -> jax.Array:
    """Floats, in float32 if their type is narrower: sums and logarithms need its digits.

    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def eigenvalues(matrices: jax.Array, factor: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """The eigenvalues of W'W of each of k matrices [m, n], times `factor`, in ascending order.

    Not divided by n. Types narrower than float32 are computed in float32. Cost: k singular value
    decompositions.

    >>> eigenvalues(jnp.array([[[3.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])).tolist()
    [0.0, 1.0, 4.0, 9.0]
    """
    s = jnp.linalg.svd(widened(matrices), compute_uv=False)
    return jnp.multiply(factor, jnp.sort(jnp.square(jnp.ravel(s))))


def moments(values: jax.Array, *, longest: int, eps: float) -> dict[str, jax.Array]:
    """Norms, ranks and entropies of ascending eigenvalues [n], by the names of WeightWatcher.

    `norm` is sum lambda = ||W||_F^2 and `spectral_norm` is lambda_max, both squared norms;
    logarithms are to base 10. `entropy` is -sum p ln p / ln rank with p = lambda / sum lambda, and
    0 at rank 1. `matrix_rank` counts s > s_max N eps. For `detX_num` the eigenvalues are divided by
    their mean: it is the smallest number of largest ones whose product is below 1. `detX_val` is
    the least of these, in the units of the weights like `xmin`.

    Further columns: `nuclear_norm` sum s, `effective_rank` exp of the entropy of s / sum s (Roy and
    Vetterli, 2007), `participation_ratio` (sum lambda)^2 / sum lambda^2, `condition_number`
    s_max / s_min, infinite for a singular matrix.

    Args:
        longest: N, the longer side of the matrices.
        eps: for the rank.

    >>> found = moments(jnp.ones(4), longest=4, eps=1e-7)
    >>> print(found["stable_rank"], found["entropy"], found["effective_rank"])
    4.0 1.0 4.0
    """
    s, n = jnp.sqrt(values), values.size
    top, total = values[-1], jnp.sum(values)
    rank = jnp.sum(s > s[-1] * longest * eps)
    p = values / total
    logs = jnp.cumsum(jnp.log(values[::-1] / total * n))
    below = logs < 0
    num = jnp.where(jnp.any(below), jnp.argmax(below) + 1, n)
    return {
        "norm": total,
        "log_norm": jnp.log10(total),
        "spectral_norm": top,
        "log_spectral_norm": jnp.log10(top),
        "stable_rank": total / top,
        "matrix_rank": rank,
        "rank_loss": n - rank,
        "weak_rank_loss": jnp.sum(values < 1e-6),
        "entropy": jnp.sum(jax.scipy.special.entr(p)) / jnp.log(jnp.maximum(rank, 2)),
        "xmax": top,
        "sv_max": s[-1],
        "sv_min": s[0],
        "detX_num": num,
        "detX_val": values[n - num],
        "nuclear_norm": jnp.sum(s),
        "effective_rank": spectra.effective_rank(s),
        "participation_ratio": 1 / jnp.sum(jnp.square(p)),
        "condition_number": s[-1] / s[0],
    }


def log_power_sum(values: jax.Array, alpha: jax.Array) -> jax.Array:
    """log10 sum lambda^alpha, without overflow for any alpha.

    >>> print(log_power_sum(jnp.array([0.0, 10.0]), 50.0))
    50.0
    """
    logs = jnp.where(values > 0, jnp.log(jnp.where(values > 0, values, 1)), -jnp.inf)
    return jax.scipy.special.logsumexp(alpha * logs) / jnp.log(10.0)
