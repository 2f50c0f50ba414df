"""Tests of units in clusters: few, of unequal size; and of values that were rounded."""

import math

import numpy as np
import pytest

from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Samples


def run(name, *groups, alternative="two-sided", clusters=None):
    given = Samples(tuple(np.asarray(group, np.float64) for group in groups), clusters=clusters)
    return catalog.run(name, given, alternative=alternative)


def units(rng, labels, share):
    """Values whose correlation within a cluster is `share`."""
    own, common = rng.normal(size=labels.size), rng.normal(size=labels.max() + 1)
    return common[labels] * math.sqrt(share) + own * math.sqrt(1 - share)


def at_most(level, runs):
    """A share of rejections that a test of this level exceeds once in some 30,000 times."""
    return level + 4 * math.sqrt(level * (1 - level) / runs)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_auc_of_clusters_that_hardly_overlap_knows_no_more_than_of_separate_ones(count):
    x, y = np.arange(20.0 * count) + 20 * count, np.arange(20.0 * count)
    labels = np.tile(np.arange(count), 20)
    apart = run("auc", x, y, alternative="greater", clusters=labels)
    assert apart.p == apart.min_attainable_p
    for rank in (0, 1, 5):  # the smallest of the first group moves below so many of the second
        x[0] = y[-1 - rank] - 0.5
        near = run("auc", x, y, alternative="greater", clusters=labels)
        assert near.effect < 1 and near.min_attainable_p == apart.min_attainable_p <= near.p
        assert near.interval(1 - 1.99 * near.p)[0] <= 0.5


def test_auc_needs_two_clusters_in_each_group():
    """Of one cluster the placements sum to zero, whatever its seed drew."""
    x, y = np.arange(4.0) + 10, np.arange(8.0)
    for own in (np.zeros(4, int), np.full(4, 9)):  # a seed of the second group, and another
        found = run(
            "auc",
            x,
            y,
            alternative="greater",
            clusters=np.concatenate((own, np.repeat([0, 1, 2, 3], 2))),
        )
        assert (found.p, found.interval(0.95)) == (1.0, (0.0, 1.0)) and found.nothing
    rng, runs, rejected = np.random.default_rng(5), 400, 0
    labels = np.concatenate((np.repeat([0, 1], 10), np.repeat(np.arange(10), 10)))
    for _ in range(runs):
        x, y = units(rng, labels[:20], 0.9), units(rng, labels[20:], 0.9)
        rejected += run("auc", x, y, alternative="greater", clusters=labels).p <= 0.05
    assert rejected / runs < at_most(0.05, runs)


def test_differences_of_counts_tie_in_float32():
    """Rows hold what float32 left of a share: equal numbers of images are not equal any more."""
    y = np.array([137, 290, 57, 301, 155, 288, 10])
    x = y + np.array([3, 3, 3, 4, 0, -1, 3])
    shares = [np.float64(np.float32(group / 360)) for group in (x, y)]
    assert np.unique(np.abs(shares[0] - shares[1])).size > np.unique(np.abs(x - y)).size
    for test in ("wilcoxon", "paired-t"):
        in_images, in_shares = run(test, x - y), run(test, *shares)
        assert in_shares.p == pytest.approx(in_images.p, rel=1e-3)
    same = [np.float64(np.float32(group / 360)) for group in (x, x - 3)]
    assert run("paired-t", *same).p == run("paired-t", np.full(7, 3)).p == 2 * 2.0**-7


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "sizes", [(30, 1, 1, 1, 1, 1), (12, 1, 1, 1, 1), (20, 2, 2, 2), (1, 2, 4, 1, 6)]
)
def test_paired_t_of_unequal_clusters_keeps_its_level(sizes, share):
    labels, rng, runs = np.repeat(np.arange(len(sizes)), sizes), np.random.default_rng(3), 800
    draws = (units(rng, labels, share) for _ in range(runs))
    p = [run("paired-t", d, alternative="greater", clusters=labels).p for d in draws]
    assert np.mean(np.array(p) <= 0.05) <= at_most(0.05, runs)
