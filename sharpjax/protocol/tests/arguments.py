"""What the tests of `protocol` ask of their arguments, and how they say what is wrong."""

import math
from typing import NamedTuple, get_args

import numpy as np

from sharpjax.errors import UserError, unknown
from sharpjax.protocol.tests.result import Alternative, Samples

_EPS = float(np.finfo(np.float64).eps)
_LARGEST = 1e150  # squares of larger numbers overflow
MANY = 1_000  # more groups than anybody has


class Pairs(NamedTuple):
    """What a paired test compares.

    Attributes:
        differences: first group less second; of one group, its own values.
        clusters: the number 0, 1, ... of each unit's cluster; None where units are independent.
        num_clusters: how many there are; of independent units, how many units.
        resolution: differences smaller than this are rounding of the values they come from.
        n: units of each group.
    """

    differences: np.ndarray
    clusters: np.ndarray | None
    num_clusters: int
    resolution: float
    n: tuple[int, ...]

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` over each cluster; without clusters, the values."""
        if self.clusters is None:
            return values
        return np.bincount(self.clusters, weights=values, minlength=self.num_clusters)


def check_options(
    test: str,
    alternative: Alternative,
    confidence: float,
    *,
    null: float = 0.0,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """Refuse an unknown alternative, a confidence outside (0, 1), a null outside `within`.

    Raises:
        UserError: names the test, what was given and what is allowed.

    >>> check_options("welch", "two-sided", 1.5)
    Traceback (most recent call last):
        ...
    sharpjax.errors.UserError: welch: confidence=1.5; give a number between 0 and 1.
    """
    if alternative not in get_args(Alternative):
        raise UserError(
            f"{test}: {unknown('alternative', str(alternative), get_args(Alternative))}"
        )
    if not 0 < confidence < 1:
        raise UserError(f"{test}: confidence={confidence}; give a number between 0 and 1.")
    if not within[0] < null < within[1]:
        finite = math.isfinite(within[0])
        allowed = f"between {within[0]:g} and {within[1]:g}" if finite else "that is finite"
        raise UserError(f"{test}: null={null}; give a number {allowed}.")


def read_groups(
    test: str, samples: Samples, least: int, most: int, *, clusters: bool = False
) -> tuple[np.ndarray, ...]:
    """The groups as float64 vectors, none of them empty, all values finite (below 1e150).

    Raises:
        UserError: the number of groups, their shapes or a value are not so; or units come in
            clusters and the test cannot take any (`clusters`).

    >>> read_groups("welch", Samples((np.ones(3),)), 2, 2)
    Traceback (most recent call last):
        ...
    sharpjax.errors.UserError: welch: 1 group; it takes 2.
    """
    if not least <= len(samples.groups) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        given = len(samples.groups)
        raise UserError(f"{test}: {given} group{'s' * (given != 1)}; it takes {wanted}.")
    groups = []
    for number, group in enumerate(samples.groups, start=1):
        values = np.asarray(group, np.float64)
        if values.ndim != 1 or not values.size:
            raise UserError(
                f"{test}: group {number} has shape {values.shape}; give one number for each unit."
            )
        finite = np.abs(values) < _LARGEST
        if not finite.all():
            bad = np.flatnonzero(~finite)
            some = "1 value that is" if bad.size == 1 else f"{bad.size} values that are"
            raise UserError(
                f"{test}: group {number} has {some} not finite (unit {bad[0]} is "
                f"{values[bad[0]]:g}; the limit is {_LARGEST:g}); leave such units out and count "
                "them."
            )
        groups.append(values)
    if not clusters and samples.clusters is not None:
        labels = np.asarray(samples.clusters)
        if np.unique(labels).size < labels.size:
            raise UserError(
                f"{test}: units come in clusters, and it needs independent ones; give one number "
                "for each cluster, or take a paired test or auc."
            )
    return tuple(groups)


def read_pairs(test: str, samples: Samples) -> Pairs:
    """Differences of two paired groups; or one group, which is then taken for the differences.

    Raises:
        UserError: as `read_groups`; or the groups, or the labels of clusters, differ in length.

    >>> read_pairs("paired-t", Samples((np.array([3.0, 1.0]), np.array([1.0, 2.0])))).differences
    array([ 2., -1.])
    """
    groups = read_groups(test, samples, 1, 2, clusters=True)
    first = groups[0]
    if len(groups) == 1:
        differences, scale = first, np.abs(first).max()
    else:
        second = groups[1]
        if first.size != second.size:
            raise UserError(
                f"{test}: groups of {first.size} and {second.size} units; pairs need as many in "
                "both."
            )
        differences = first - second
        scale = max(np.abs(first).max(), np.abs(second).max())
    codes = cluster_codes(test, samples.clusters, first.size)
    num_clusters = first.size if codes is None else int(codes.max()) + 1
    n = (first.size,) * len(groups)
    return Pairs(differences, codes, num_clusters, 8 * _EPS * float(scale), n)


def read_aligned(
    test: str, samples: Samples, least: int, most: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray | None, int]:
    """Groups in which unit i is the same, the number of each unit's cluster, and of how many.

    Raises:
        UserError: as `read_groups`; groups, or labels of clusters, of other lengths.

    >>> clusters = np.array([5, 5, 8])
    >>> read_aligned("spearman", Samples((np.ones(3), np.ones(3)), clusters=clusters), 2, 2)[1:]
    (array([0, 0, 1]), 2)
    """
    groups = read_groups(test, samples, least, most, clusters=True)
    sizes = [group.size for group in groups]
    if len(set(sizes)) > 1:
        raise UserError(f"{test}: groups of {sizes} units; unit i must be the same in all of them.")
    codes = cluster_codes(test, samples.clusters, sizes[0])
    return groups, codes, sizes[0] if codes is None else int(codes.max()) + 1


def cluster_codes(test: str, labels: np.ndarray | None, size: int) -> np.ndarray | None:
    """Labels as numbers 0, 1, ...; None where every unit is a cluster by itself.

    >>> cluster_codes("auc", np.array(["b", "a", "b"]), 3).tolist()
    [1, 0, 1]
    """
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.shape != (size,):
        raise UserError(f"{test}: clusters has shape {labels.shape}; give {size} labels.")
    names, codes = np.unique(labels, return_inverse=True)
    return None if names.size == size else codes


def directed(alternative: Alternative, greater: float, less: float) -> tuple[float, float]:
    """`p` and `opposite_p` from the two one-sided p; two-sided is twice the smaller of them.

    >>> directed("less", 0.9, 0.2), directed("two-sided", 0.9, 0.2)
    ((0.2, 0.9), (0.4, 0.4))
    """
    if alternative == "greater":
        return greater, less
    if alternative == "less":
        return less, greater
    both = min(1.0, 2.0 * min(greater, less))
    return both, both
