"""Granulated correlation: groups x, y, then one or more hyperparameters of the units.

Does a measure say which of two models generalises better if only **one** hyperparameter differs?
Over a grid, a correlation of all units can come from a single axis. So (Jiang et al., 2019, arXiv
1912.02178, section 4.1)

    psi_i = mean of tau over groups of units in which all hyperparameters but the i-th are the same
    Psi   = mean of psi_i over the hyperparameters

The tau of a group is (concordant - discordant) pairs over all pairs (tau-a: a tie in x or y counts
0), of the pairs that differ in hyperparameter i. A group without such a pair does not count.

**Clusters.** The units of one seed are a cluster, and the seed is held fixed too: only models of
one seed are compared with each other. Then Psi is a mean over seeds of what each seed says. Seeds
are drawn for interval and p (`protocol.tests.bootstrap`), and p is never below 2^-seeds, the floor
of a sign test of so many seeds. **Independent units** are drawn one by one. Either way the claim is
about new seeds of these hyperparameters.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sharpjax.protocol.tests import association, bootstrap
from sharpjax.protocol.tests.bootstrap import Statistic
from sharpjax.protocol.tests.question import ONE_UNIT, Question, nothing_known
from sharpjax.protocol.tests.result import TestResult


class _Group(NamedTuple):
    """Units in which all hyperparameters but one are the same.

    Attributes:
        units: their indices, [g].
        concordance: 1, -1 or 0 for each pair that differs in that one, [g, g].
        counted, by_x, by_y: 1 for each such pair; for by_x and by_y only if x, or y, differs too.
    """

    units: np.ndarray
    concordance: np.ndarray
    counted: np.ndarray
    by_x: np.ndarray
    by_y: np.ndarray


def granulated_kendall(question: Question) -> TestResult:
    """Mean of Kendall's tau over groups in which all hyperparameters but one are fixed; null 0."""
    x, y, *settings = question.groups
    floor = bootstrap.units_floor(question.units) if question.units > 1 else 1.0
    axes = [_groups(x, y, settings, i, question.clusters) for i in range(len(settings))]
    if question.units < 2:
        return nothing_known(question, np.nan, ONE_UNIT, floor)
    for number, groups in enumerate(axes, start=3):
        if not groups:
            why = f"no two units differ in group {number} and in no other hyperparameter"
            return nothing_known(question, np.nan, why, floor)
    of = _independent if question.clusters is None else _clustered
    statistics = [of(groups) for groups in axes]
    return association.resampled(
        question, lambda counts: np.mean([psi(counts) for psi in statistics], axis=0), floor
    )


def _groups(
    x: np.ndarray,
    y: np.ndarray,
    settings: Sequence[np.ndarray],
    axis: int,
    clusters: np.ndarray | None,
) -> list[_Group]:
    fixed = [values for i, values in enumerate(settings) if i != axis]
    fixed += [np.zeros(x.size) if clusters is None else clusters]
    label = np.unique(np.stack(fixed), axis=1, return_inverse=True)[1].ravel()
    found = []
    for value in range(int(label.max()) + 1):
        units = np.flatnonzero(label == value)
        varied, a, b = (v[units] for v in (settings[axis], x, y))
        counted = (varied[:, None] != varied[None, :]).astype(np.float64)
        sign_a, sign_b = (counted * np.sign(v[:, None] - v[None, :]) for v in (a, b))
        if counted.any():
            found.append(_Group(units, sign_a * sign_b, counted, np.abs(sign_a), np.abs(sign_b)))
    return found


def _clustered(groups: Sequence[_Group]) -> Statistic:
    """A group lies in one cluster, so it counts as often as that was drawn, and its tau is
    constant."""
    first = np.array([group.units[0] for group in groups])
    tau = np.array([group.concordance.sum() / group.counted.sum() for group in groups])
    vary = [np.array([float(g[i].any()) for g in groups]) for i in (3, 4)]

    def psi(counts: np.ndarray) -> np.ndarray:
        drawn = counts[..., first]
        found = drawn @ tau / drawn.sum(-1)
        return np.where((drawn @ vary[0] > 0) & (drawn @ vary[1] > 0), found, np.nan)

    return psi


def _independent(groups: Sequence[_Group]) -> Statistic:
    """Over the pairs that were drawn; a unit drawn twice is not a pair. Cost: g^2 per group."""

    def psi(counts: np.ndarray) -> np.ndarray:
        total, number, by_x, by_y = (np.zeros(counts.shape[:-1]) for _ in range(4))
        for group in groups:
            drawn = counts[..., group.units]
            concordant, pairs, in_x, in_y = (
                (drawn @ matrix * drawn).sum(-1) for matrix in group[1:]
            )
            total += concordant / np.where(pairs > 0, pairs, 1.0)
            number += pairs > 0
            by_x += in_x
            by_y += in_y
        known = (number > 0) & (by_x > 0) & (by_y > 0)
        return np.where(known, total / np.where(known, number, 1.0), np.nan)

    return psi
