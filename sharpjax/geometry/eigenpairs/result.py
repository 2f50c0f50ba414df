"""What a search for eigenvalues gives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax.estimate import Estimate
from sharpjax.geometry.status import tells_unknown


class Eigenpairs(NamedTuple):
    """Eigenvalues, their vectors, and how far off they may be.

    Attributes:
        values: (k,), in the order that `which` names.
        vectors: tree like the parameters with a leading axis of k, each of norm 1; None if they
            were not asked for.
        residuals: (k,), `|A y_i - value_i y_i|`: an eigenvalue lies this near.
        value_errors: (k,), `residual_i^2 / gap_i` if it is less: it also lies this near, if the gap
            is what it seems.
        vector_errors: (k,), `residual_i / gap_i`, at most 1: then also a bound on the sine of the
            angle between the vector and the eigenspace of its cluster.
        converged: (k,), see `top_eigenpairs`.
        num_products: int32.
        status: `Status`, int32.
        verification: `completeness.Verification` where `verify=True` asked for it, else None.
        carried: what a later search starts from (`start=`): vectors of the k and of two values
            beyond them at each end; None without vectors.
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
        """`lambda_i`, `lambda_i_residual` for each value, and `num_products`.

        Given the start, an eigenvalue is not random: its `standard_error` is `value_errors`, the
        bound on its distance to an eigenvalue, where it has converged, and NaN (not known) where
        it has not. Residuals and counts are exact.
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
