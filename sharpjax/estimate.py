"""A number that is not exact, with what is known of its error."""

from typing import NamedTuple

import jax


class Estimate(NamedTuple):
    """An estimate and its standard error.

    Attributes:
        value: the estimate.
        standard_error: standard deviation of the estimator on the stated data (0 where the value is
            exact, NaN where no standard error is known). Never the spread over seeds: that is for
            the analysis.
        num_evaluations: how many evaluations (products, examples) went into it.
    """

    value: jax.Array
    standard_error: jax.Array
    num_evaluations: jax.Array
