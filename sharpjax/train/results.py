"""What a measurement gives, and the rows of the results table that it becomes."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from sharpjax.estimate import Estimate

Of = tuple[tuple[str, int | str | tuple[int | str, ...]], ...]
"""Further coordinates of a row or a model, besides arm and seed: sorted (name, value) pairs."""

Row = dict[str, Any]


def of(**coordinates: Any) -> Of:
    """Further coordinates as a hashable value.

    >>> of(layer="head/kernel", copy=1)
    (('copy', 1), ('layer', 'head/kernel'))
    """
    return tuple(sorted(coordinates.items()))


def joined(own: Of, further: Of) -> Of:
    """The coordinates of both."""
    return tuple(sorted((*own, *further)))


class Results(NamedTuple):
    """Estimates by metric and further coordinates, which become rows; arrays that are stored."""

    rows: Mapping[tuple[str, Of], Estimate]
    arrays: Mapping[str, np.ndarray] = MappingProxyType({})


def results(estimates: Mapping[str, Estimate]) -> Results:
    """Results without further coordinates."""
    return Results({(name, ()): estimate for name, estimate in estimates.items()})


def row(
    study: str, arm: str, seed: int, step: int, metric: str, estimate: Estimate, of: Of = ()
) -> Row:
    """One row of the results table."""
    return {
        "study": study,
        "arm": arm,
        "seed": seed,
        "step": step,
        "of": dict(of),
        "metric": metric,
        "value": float(np.asarray(estimate.value)),
        "standard_error": float(np.asarray(estimate.standard_error)),
    }


def rows_of(
    study: str, arm: str, seed: int, step: int, found: Results, own: Of = ()
) -> Iterator[Row]:
    """The rows of the results of one model; `own` are the model's coordinates."""
    for (metric, of), estimate in found.rows.items():
        yield row(study, arm, seed, step, metric, estimate, joined(own, of))


def exact(value: Any) -> Estimate:
    """A value that is known, not estimated.

    >>> print(exact(2.5).value, exact(2.5).standard_error)
    2.5 0.0
    """
    return Estimate(np.asarray(value), np.float32(0), np.int32(1))
