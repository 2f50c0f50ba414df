"""The result of a search for eigenvalues."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax.estimate import Estimate
from sharpjax.geometry.status import tells_unknown


class Eigenpairs(NamedTuple):
    """Eigenvalues, their eigenvectors, and bounds on their errors.

    Attributes:
        values: (k,), in the order that `which` names.
        vectors: tree like the parameters with a leading axis of k, each of norm 1; None if they
            were not requested.
        residuals: (k,), `|A y_i - value_i y_i|`; an eigenvalue lies this near to `value_i`.
        value_errors: (k,), the smaller of `residual_i` and `residual_i^2 / gap_i`. An eigenvalue
            lies this near to `value_i` if the gap is what the Ritz values show.
        vector_errors: (k,), `residual_i / gap_i`, at most 1. Under the same condition this bounds
            the sine of the angle between the vector and the eigenspace of its cluster.
        converged: (k,), see `top_eigenpairs`.
        num_products: int32.
        status: `Status`, int32.
        verification: `completeness.Verification` with `verify=True`, else None.
        carried: the start of a later search (`start=`): the vectors of the k values and of two
            values beyond them at each end; None without vectors.
    """

    values: jax.Array
    vectors: Any
    residuals: jax.Array
    value_errors: jax.Array
    vector_errors: jax.Array
    converged: jax.Array
    num_products: jax.Array
    status: jax.Array
    verification: Any = None
    carried: Any = None

    @tells_unknown
    def estimates(self) -> dict[str, Estimate]:
        """`lambda_i` and `lambda_i_residual` for each value, and `num_products`.

        Given the start, an eigenvalue is not random. Its `standard_error` is `value_errors`, the
        bound on its distance to an eigenvalue, if it has converged, and NaN (not known) otherwise.
        Residuals and counts are exact.
        """
        count = self.num_products
        errors = jnp.where(self.converged, self.value_errors, jnp.nan)
        found = {}
        for i in range(self.values.shape[-1]):
            found[f"lambda_{i + 1}"] = Estimate(self.values[..., i], errors[..., i], count)
            residual = self.residuals[..., i]
            found[f"lambda_{i + 1}_residual"] = Estimate(residual, jnp.zeros_like(residual), count)
        products = count.astype(self.values.dtype)
        return found | {"num_products": Estimate(products, jnp.zeros_like(products), count)}
