r"""Simulated samples with a known effect: what studies would see if the world were so.

One model for each kind of test in `protocol.tests.catalog`, in which an effect of d is a shift of d
standard deviations, always of the first group, upwards:

    one           truth values with chance sin^2(asin sqrt(p0) + d / 2), p0 the null (Cohen's h)
    independent   normal, standard deviation 1, the first group d higher
    paired        the same, units correlated by 0.5, so that differences have standard deviation 1
                  (one group: d above the null)
    many          the means fall in equal steps over a range of d ('ratio' tests: only the first
                  group is d higher)
    many-paired   the same, units correlated by 0.5
    correlation   the first and the last group bivariate normal with r = d / sqrt(d^2 + 4), which
                  is the correlation of a difference of d with membership of two equal groups; those
                  between are independent of both
    times         exponential times, all seen; those of the first group exp(d) times as long
    pairwise      (a_i + a_j) / 2 for models i, j, with a normal, standard deviation 1; d higher

All means are 5 standard deviations above 0, which matters to ratios alone. Units of a cluster are
drawn independently; what they have in common makes the power of real ones smaller.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from sharpjax.protocol.tests.result import Samples

LEVEL = 5.0
PAIR_CORRELATION = 0.5
Shift = Literal["first", "steps"]


class Batch(NamedTuple):
    """Many simulated studies: arrays with a leading axis of studies, one for each group."""

    groups: tuple[np.ndarray, ...]
    timed: bool = False
    clusters: np.ndarray | None = None

    def samples(self) -> Iterator[Samples]:
        """The samples of one study after the other."""
        for study in range(len(self.groups[0])):
            groups = tuple(group[study] for group in self.groups)
            seen = tuple(np.ones(len(g), bool) for g in groups) if self.timed else None
            yield Samples(groups, seen, self.clusters)


def draw(
    kind: str,
    effect: float,
    sizes: tuple[int, ...],
    *,
    num_studies: int,
    seed: int = 0,
    null: float = 0.5,
    shift: Shift = "steps",
    cluster: int = 1,
) -> Batch:
    """Simulate studies. Those of one seed share their noise, whatever the effect.

    Args:
        kind: of the test.
        effect: d; negative for an effect of the other sign.
        sizes: number of units in each group (of models, for 'pairwise'); of clusters.
        null: for 'one': the proportion at no effect; of a single group: its mean at none.
        shift: which groups: the 'first' by d and the others not, or all by equal 'steps' from d
            down to 0.
        cluster: units of each cluster; 1: they are independent.

    >>> batch = draw("independent", 1.0, (2000, 2000), num_studies=1)
    >>> first, second = next(batch.samples()).groups
    >>> round(float(first.mean() - second.mean()), 1)
    1.0
    """
    rng, clusters = np.random.default_rng(seed), None
    if cluster > 1:
        labels = [np.repeat(np.arange(n), cluster) for n in sizes]
        clusters = np.concatenate(labels) if kind == "independent" else labels[0]
        sizes = tuple(n * cluster for n in sizes)
    if kind == "one":
        chance = proportion(effect, null)
        return Batch(tuple((rng.random((num_studies, n)) < chance).astype(float) for n in sizes))
    if kind == "times":
        times = [rng.standard_exponential((num_studies, n)) for n in sizes]
        return Batch((times[0] * math.exp(effect), *times[1:]), timed=True)
    noise = [rng.standard_normal((num_studies, n)) for n in sizes]
    if kind == "pairwise":
        diagonals = [np.where(np.eye(n, dtype=bool), np.nan, 0.0) for n in sizes]
        noise = [(a[:, :, None] + a[:, None, :]) / 2 for a in noise]
        noise = [square + nan for square, nan in zip(noise, diagonals, strict=True)]
    if kind == "correlation":
        r = correlation(effect)
        mixed = r * noise[0] + math.sqrt(1 - r**2) * noise[-1]
        return Batch((*noise[:-1], mixed), clusters=clusters)
    if kind in ("paired", "many-paired"):
        shared = math.sqrt(PAIR_CORRELATION) * rng.standard_normal((num_studies, sizes[0]))
        noise = [shared + math.sqrt(1 - PAIR_CORRELATION) * z for z in noise]
    level, last = (null if len(sizes) == 1 else LEVEL), max(len(sizes) - 1, 1)
    steps = [1 - i / last if shift == "steps" else float(i == 0) for i in range(len(sizes))]
    shifted = (level + z + effect * step for z, step in zip(noise, steps, strict=True))
    return Batch(tuple(shifted), clusters=clusters)


def proportion(effect: float, null: float) -> float:
    """The proportion that lies Cohen's h = `effect` from `null`, kept within [0, 1].

    >>> round(proportion(0.5, 0.5), 3)
    0.74
    """
    angle = math.asin(math.sqrt(null)) + effect / 2
    return math.sin(min(max(angle, 0.0), math.pi / 2)) ** 2


def correlation(effect: float) -> float:
    """Pearson's r of an effect of d standard deviations: d / sqrt(d^2 + 4)."""
    return effect / math.hypot(effect, 2)


def spearman_rho(effect: float) -> float:
    """Spearman's rho of that law: 6 / pi asin(r / 2)."""
    return 6 / math.pi * math.asin(correlation(effect) / 2)


def kendall_tau(effect: float) -> float:
    """Kendall's tau of that law: 2 / pi asin(r)."""
    return 2 / math.pi * math.asin(correlation(effect))
