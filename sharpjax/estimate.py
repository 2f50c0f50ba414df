"""A number that is not exact, with its standard error."""

from typing import NamedTuple

from jax.typing import ArrayLike


class Estimate(NamedTuple):
    """An estimate and its standard error.

    Attributes:
        value: the estimate.
        standard_error: standard deviation of the estimator on the stated data: 0 if the value is
            exact, NaN if no standard error is known. Never the spread over seeds, which the
            analysis computes.
        num_evaluations: number of evaluations (products, examples) used.
    """

    value: ArrayLike
    standard_error: ArrayLike
    num_evaluations: ArrayLike
