r"""Simulated studies with a known effect, each tested by the registered test.

There is one model for each kind of test in `protocol.tests.catalog`. In it, an effect of d is a
shift of d standard deviations, always of the first group and upwards:

    one           zeros and ones; P(1) = sin^2(asin sqrt(p0) + d / 2), p0 the null (Cohen's h)
    independent   normal, standard deviation 1, the first group d higher
    paired        the same, units correlated by 0.5, so that differences have standard deviation 1
                  (one group: d above the null)
    many          the means fall in equal steps over a range of d ('ratio' tests: only the first
                  group is d higher)
    many-paired   the same, units correlated by 0.5
    correlation   the first and the last group are bivariate normal with r = d / sqrt(d^2 + 4), the
                  correlation of a difference of d with membership of two equal groups; groups
                  between them are independent of both. With covariates, the first two groups are
                  correlated like this, and the covariates are independent of both. The
                  hyperparameters of a granulated correlation are a grid: two values each, except
                  the last, which has as many as the units of a cluster leave
    times         exponential times, all seen; those of the first group exp(d) times as long
    pairwise      (a_i + a_j) / 2 for models i, j, with a normal, standard deviation 1; d higher

Shifted means lie around 5 (a single group: around the null), which matters only to ratios. Units of
a cluster are drawn independently. Real ones have something in common, so their power is smaller.
"""

import functools
import math

import numpy as np

from sharpjax.errors import unknown
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Alternative, Samples

LEVEL = 5.0
PAIR_CORRELATION = 0.5
QUICK = ("wilcoxon", "mann-whitney", "auc", "pairwise-difference", "jonckheere", "page")
OVER_ARMS = ("spearman-over-arms",)  # an arm is one unit
# Their data have no chance in them, or no model here defines an effect for them.
NO_MODEL = ("identical", "kendall-difference", "fit-error")


def lookup(test: str) -> catalog.Test:
    """The entry of a test in the catalog; an unknown name raises a `UserError`."""
    if test not in catalog.TESTS:
        raise unknown("test", test, catalog.TESTS)
    return catalog.TESTS[test]


def num_studies(test: str) -> int:
    """How many studies are simulated: 1000 if a call of the test takes .1 ms, else 100."""
    return 1000 if test in QUICK else 100


@functools.lru_cache(maxsize=512)
def p_values(
    test: str,
    effect: float,
    sizes: tuple[int, ...],
    *,
    alternative: Alternative = "two-sided",
    null: float | None = None,
    cluster: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Simulate studies under an effect in the direction of the alternative, and test each.

    Args:
        test: one that needs no margin; those with a margin have formulas.
        effect: d.
        seed: of noise and resampling; studies with the same seed share their noise, whatever the
            effect.

    Raises:
        UserError: the test is unknown, or cannot take such units.

    >>> p = p_values("wilcoxon", 1.0, (8, 8), alternative="greater")
    >>> float((p <= 0.05).mean()) > 0.7
    True
    """
    rng, d = np.random.default_rng(seed), -effect if alternative == "less" else effect
    p = []
    for i in range(num_studies(test)):
        samples = draw(test, d, sizes, rng, null=null, cluster=cluster)
        p.append(catalog.run(test, samples, alternative=alternative, null=null, seed=seed + i).p)
    return np.array(p)


def draw(
    test: str,
    effect: float,
    sizes: tuple[int, ...],
    rng: np.random.Generator,
    *,
    null: float | None = None,
    cluster: int = 1,
) -> Samples:
    """The samples of one study.

    Args:
        effect: d; negative for an effect of the other sign.
        sizes: number of units in each group (for 'pairwise': models); with `cluster`, of clusters.
        null: None: the test's own.
        cluster: number of units in each cluster; 1: units are independent.

    >>> x, y = draw("welch", 1.0, (2000, 2000), np.random.default_rng(0)).groups
    >>> round(float(x.mean() - y.mean()), 1)
    1.0
    """
    entry, clusters = lookup(test), None
    kind, null = entry.kind, entry.null if null is None else null
    if cluster > 1:
        labels = [np.repeat(np.arange(n), cluster) for n in sizes]
        clusters = np.concatenate(labels) if kind == "independent" else labels[0]
        sizes = tuple(n * cluster for n in sizes)
    if kind == "one":
        chance = proportion(effect, null)
        return Samples(tuple((rng.random(n) < chance).astype(float) for n in sizes))
    if kind == "times":
        first, *others = (rng.standard_exponential(n) for n in sizes)
        return Samples((first * math.exp(effect), *others), tuple(np.ones(n, bool) for n in sizes))
    noise = [rng.standard_normal(n) for n in sizes]
    if kind == "correlation":
        r = correlation(effect)
        place = 1 if test in (*catalog.PARTIAL, *catalog.GRANULATED) else len(noise) - 1
        noise[place] = r * noise[0] + math.sqrt(1 - r**2) * noise[place]
        if test in catalog.GRANULATED:
            each = cluster if cluster > 1 else sizes[0]
            noise[2:] = _grid(np.arange(sizes[0]) % each, len(noise) - 2)
        return Samples(tuple(noise), clusters=clusters)
    if kind == "pairwise":
        noise = [(a[:, None] + a) / 2 + np.where(np.eye(a.size), np.nan, 0.0) for a in noise]
    if kind in ("paired", "many-paired"):
        shared = math.sqrt(PAIR_CORRELATION) * rng.standard_normal(sizes[0])
        noise = [shared + math.sqrt(1 - PAIR_CORRELATION) * z for z in noise]
    level, last = (null if len(sizes) == 1 else LEVEL), max(len(sizes) - 1, 1)
    steps = [float(i == 0) if "ratio" in test else 1 - i / last for i in range(len(sizes))]
    shifted = [level + z + effect * step for z, step in zip(noise, steps, strict=True)]
    return Samples(tuple(shifted), clusters=clusters)


def _grid(units: np.ndarray, axes: int) -> list[np.ndarray]:
    """The bits of a unit's number, one axis for each; the last axis has the bits that remain."""
    bits = [(units >> axis) & 1 for axis in range(axes - 1)]
    return [values.astype(float) for values in (*bits, units >> (axes - 1))]


def proportion(effect: float, null: float) -> float:
    """The proportion at Cohen's h = `effect` from `null`, kept within [0, 1].

    >>> round(proportion(0.5, 0.5), 3)
    0.74
    """
    angle = math.asin(math.sqrt(null)) + effect / 2
    return math.sin(min(max(angle, 0.0), math.pi / 2)) ** 2


def correlation(effect: float) -> float:
    """Pearson's r for an effect of d standard deviations: d / sqrt(d^2 + 4)."""
    return effect / math.hypot(effect, 2)


def spearman_rho(effect: float) -> float:
    """Spearman's rho of the same bivariate normal distribution: 6 / pi asin(r / 2)."""
    return 6 / math.pi * math.asin(correlation(effect) / 2)


def kendall_tau(effect: float) -> float:
    """Kendall's tau of the same bivariate normal distribution: 2 / pi asin(r)."""
    return 2 / math.pi * math.asin(correlation(effect))
