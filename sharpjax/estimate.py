"""A number that is not exact, with what is known of its error."""

from typing import NamedTuple

from jax.typing import ArrayLike


class Estimate(NamedTuple):
    """An estimate and its standard error.

    Attributes:
        value: the estimate.
        standard_error: standard deviation of the estimator on the stated data (0 where the value is
            exact, NaN where no standard error is known). Never the spread over seeds: that is for
            the analysis.
        num_evaluations: how many evaluations (products, examples) went into it.
    """

    value: ArrayLike
    standard_error: ArrayLike
    num_evaluations: ArrayLike
