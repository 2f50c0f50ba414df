"""How far the top eigenspaces of two operators agree, if gaps in both spectra define them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.status import Status, tells_unknown


class Overlap(NamedTuple):
    """The overlap of two eigenspaces of dimension `rank`.

    Attributes:
        value: `|V_a' V_b|_F^2 / rank`, the mean squared cosine of the principal angles: 1 for equal
            spaces, `rank / n` on average for unrelated ones. NaN if `rank` is 0.
        error: a bound on how far errors of the vectors may change `value`.
        cosines: (k - 1,), cosines of the principal angles, descending; NaN from index `rank` on.
        rank: int32, the dimension of the spaces compared.
        num_products: int32, of both results together.
        status: `Status`, int32. If `rank` is 0: `NOT_CONVERGED`, or the status of an input result
            if that is worse.
    """

    value: jax.Array
    error: jax.Array
    cosines: jax.Array
    rank: jax.Array
    num_products: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`overlap`, with the bound `error` as its `standard_error`, and `overlap_rank`."""
        count, rank = self.num_products, self.rank.astype(self.value.dtype)
        return {
            "overlap": Estimate(self.value, self.error, count),
            "overlap_rank": Estimate(rank, jnp.zeros_like(rank), count),
        }


def subspace_overlap(pairs_a: Eigenpairs, pairs_b: Eigenpairs) -> Overlap:
    """The overlap of the top eigenspaces of two operators, such as Hessians at two checkpoints.

    The overlap is `|V_a' V_b|_F^2 / k' = tr P_a P_b / k'`, for the largest `k' < k` after which
    both spectra have a gap. An eigenspace that ends inside a cluster of eigenvalues is not a
    property of the operator: any rotation within the cluster is as good, and the overlap with
    another space is chance. So `k'` must meet two conditions. All values up to `k' + 1` have
    converged, and the gap between values `k'` and `k' + 1` exceeds the sum of their `value_errors`.
    (Two values of opposite sign count as no further apart than their magnitudes, since they may
    change places in the order of `which="LM"`.) To compare spaces of k dimensions, ask for k + 1
    pairs or more.

    The error bound is that of Davis and Kahan (1970) for each space, `|sin|_F <= |R|_F / gap`. R
    holds the residuals of the vectors of the space; the gap is that after value `k'`, less the
    error of value `k' + 1`. The bound holds if no eigenvalue was skipped.

    Cost: `k^2` inner products and no product with the operator.

    Args:
        pairs_a, pairs_b: results of `top_eigenpairs` with vectors, for the same k >= 2, the same
            order ("LA", "SA" or "LM") and parameters of the same structure.

    Raises:
        UserError: the results cannot be compared.

    >>> from sharpjax.geometry import hessian, top_eigenpairs
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(1.0, 6.0) * w**2) / 2
    >>> operator = hessian(loss, jnp.ones(5), jnp.ones(8))
    >>> one, two = (top_eigenpairs(operator, key=jax.random.key(i), k=3) for i in range(2))
    >>> found = subspace_overlap(one, two)
    >>> round(float(found.value), 3), int(found.rank)
    (1.0, 2)
    """
    caller = "subspace_overlap"
    for name, pairs in (("pairs_a", pairs_a), ("pairs_b", pairs_b)):
        if not isinstance(pairs, Eigenpairs):
            raise UserError(
                f"{caller}: {name} must be a result of top_eigenpairs, got {type(pairs).__name__}."
            )
        if pairs.vectors is None:
            raise UserError(f"{caller}: {name} has no vectors; solve again with vectors=True.")
        if jnp.ndim(pairs.values) != 1 or pairs.values.shape[0] < 2:
            raise UserError(
                f"{caller}: {name} has values of shape {jnp.shape(pairs.values)}; a space of one "
                f"dimension needs two values, k=2, to show that a gap follows it. Several results: "
                f"jax.vmap."
            )
    _check_alike(caller, pairs_a, pairs_b)
    return _compare(pairs_a, pairs_b)


@tells_unknown
@jax.jit
def _compare(a: Eigenpairs, b: Eigenpairs) -> Overlap:
    (ok_a, error_a), (ok_b, error_b) = _resolve(a), _resolve(b)
    places = jnp.arange(1, a.values.shape[0], dtype=jnp.int32)
    rank = jnp.max(jnp.where(ok_a & ok_b, places, 0))
    last = jnp.maximum(rank - 1, 0)
    inside = places <= rank

    def dots(x):
        return jax.vmap(lambda y: tree.vdot(x, y))(b.vectors)

    gram = jax.vmap(dots)(a.vectors)[:-1, :-1]
    both = jnp.expand_dims(inside, 0) & jnp.expand_dims(inside, 1)
    cosines = jnp.linalg.svd(jnp.where(both, gram, 0), compute_uv=False)
    cosines = jnp.where(inside, jnp.minimum(cosines, 1), jnp.nan)
    found = rank > 0
    size = jnp.maximum(rank, 1).astype(cosines.dtype)
    value = jnp.sum(jnp.where(inside, jnp.square(cosines), 0)) / size
    # tr (P - P~) Q <= the sum of the sines between P and P~ <= sqrt(rank) |sin|_F, if 0 <= Q <= I.
    error = (error_a[last] + error_b[last]) / jnp.sqrt(size)
    # The reason if rank is 0. It may be worse than NOT_CONVERGED, such as NON_FINITE.
    why = jnp.maximum(jnp.maximum(a.status, b.status), Status.NOT_CONVERGED)
    return Overlap(
        value=jnp.where(found, value, jnp.nan),
        error=jnp.where(found, jnp.minimum(error, 1), jnp.nan),
        cosines=cosines,
        rank=rank,
        num_products=a.num_products + b.num_products,
        status=jnp.where(found, Status.OK, why).astype(jnp.int32),
    )


def _resolve(pairs: Eigenpairs) -> tuple[jax.Array, jax.Array]:
    """For each k' in 1 .. k - 1: whether a gap follows value k', and the bound on `|sin|_F`."""
    values, errors = pairs.values, pairs.value_errors
    next_value, next_error = values[1:], errors[1:]
    places = jnp.arange(len(values), dtype=jnp.int32)
    before = jnp.expand_dims(places, 0) < jnp.expand_dims(places[1:], 1)  # (k - 1, k)
    # The nearest of all k' values, not only the last: an order by magnitude is not monotone.
    distance = _distance(jnp.expand_dims(values, 0), jnp.expand_dims(next_value, 1))
    gaps = jnp.min(jnp.where(before, distance, jnp.inf), axis=1) - next_error
    largest = jnp.max(jnp.where(before, jnp.expand_dims(errors, 0), 0), axis=1)
    converged = jnp.cumprod(pairs.converged)[1:] == 1
    unit = units.known(units.power_of_two(values))
    residual = unit * jnp.sqrt(jnp.cumsum(jnp.square(pairs.residuals / unit))[:-1])
    resolved = converged & (gaps > largest)
    return resolved, residual / jnp.where(resolved, gaps, 1)


def _distance(a, b):
    return jnp.abs(jnp.where(jnp.sign(a) * jnp.sign(b) < 0, jnp.abs(a) - jnp.abs(b), a - b))


def _check_alike(caller: str, a: Any, b: Any) -> None:
    if a.values.shape != b.values.shape:
        raise UserError(
            f"{caller}: pairs_a holds {a.values.shape[0]} values and pairs_b {b.values.shape[0]}; "
            f"solve both with the same k."
        )
    tree.check_same_structure(caller, "vectors of pairs_b", b.vectors, a.vectors)
