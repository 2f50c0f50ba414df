"""Units of several groups: the same ones in each, too few of them, or none astray."""

import math
from collections.abc import Sequence

import numpy as np

from sharpjax.errors import UserError
from sharpjax.protocol.arguments import cluster_codes, read_groups
from sharpjax.protocol.result import Alternative, Samples, TestResult

UNKNOWN = (math.nan, math.nan)
MANY = 1_000  # more groups than anybody has


def aligned(
    test: str, samples: Samples, least: int, most: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray | None, int]:
    """Groups in which unit i is the same, the number of each unit's cluster, and of how many.

    Raises:
        UserError: as `arguments.read_groups`; groups, or labels of clusters, of other lengths.

    >>> clusters = np.array([5, 5, 8])
    >>> aligned("spearman", Samples((np.ones(3), np.ones(3)), clusters=clusters), 2, 2)[1:]
    (array([0, 0, 1]), 2)
    """
    groups = read_groups(test, samples, least, most, clusters=True)
    sizes = [group.size for group in groups]
    if len(set(sizes)) > 1:
        raise UserError(f"{test}: groups of {sizes} units; unit i must be the same in all of them.")
    codes = cluster_codes(test, samples.clusters, sizes[0])
    return groups, codes, sizes[0] if codes is None else int(codes.max()) + 1


def undirected(test: str, alternative: Alternative) -> None:
    """Refuses a direction where the question is whether groups differ at all.

    Raises:
        UserError: `alternative` is not 'two-sided'.
    """
    if alternative != "two-sided":
        raise UserError(
            f"{test}: alternative={alternative!r}; that groups differ has no direction: give "
            "'two-sided', or take jonckheere or page for an order of groups."
        )


def nothing_known(effect: float, sizes: Sequence[int]) -> TestResult:
    """The result where units are too few, or too alike, to say anything: p is 1.

    >>> nothing_known(0.5, [1, 1])[:5]
    (0.5, (nan, nan), 1.0, 1.0, 1.0)
    """
    return TestResult(effect, UNKNOWN, 1.0, 1.0, 1.0, tuple(sizes))


def arrangements(sizes: Sequence[int]) -> float:
    """In how many ways N units fall into groups of these sizes: N! / prod n_i!

    >>> arrangements([3, 3]), arrangements([3, 3, 3]), arrangements([5000, 5000])
    (20.0, 1680.0, inf)
    """
    log = math.lgamma(sum(sizes) + 1) - sum(math.lgamma(size + 1) for size in sizes)
    if log < 30:
        return float(round(math.exp(log)))
    return math.exp(log) if log < 700 else math.inf


def unseen(num_units: int, confidence: float) -> float:
    """The largest share of stray units that is compatible with none among `num_units`.

    Clopper and Pearson's 1 - (alpha / 2)^(1 / n). Where groups are wholly apart all resamples say
    so, and a bootstrap interval has no width.

    >>> round(unseen(10, 0.95), 3)
    0.308
    """
    return 1 - ((1 - confidence) / 2) ** (1 / num_units)
