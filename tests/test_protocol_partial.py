"""Correlations with covariates, and granulated ones: against residuals, scipy, brute force; levels.

A simulated share of n studies is held to four standard errors of a binomial share, sqrt(p q / n).
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.protocol.planning import power, simulation
from sharpjax.protocol.planning.formulas import Plan
from sharpjax.protocol.planning.sensitivity import power_of, smallest_p
from sharpjax.protocol.samples import gather
from sharpjax.protocol.tests import association, partial_correlation
from sharpjax.protocol.tests import granulated as granulation
from sharpjax.protocol.tests.catalog import PARTIAL, TESTS
from sharpjax.protocol.tests.result import Samples
from sharpjax.report import words
from tests.simulated import named, rates

stats: Any = scipy.stats  # whose annotations do not know its results' fields

pearson, spearman, kendall = (named(name) for name in PARTIAL)
granulated = named("granulated-kendall")
STUDIES = 400


def within(share, p, studies=STUDIES, more=0.0):
    return abs(share - p) <= 4 * math.sqrt(p * (1 - p) / studies) + more


def left(v, covariates):
    """By numpy: what least squares leaves, with an intercept."""
    design = np.column_stack([np.ones(v.size), *covariates])
    return v - design @ np.linalg.lstsq(design, v, rcond=None)[0]


def drawn(n, covariates, seed=0, ties=False):
    x, y, *z = np.random.default_rng(seed).normal(size=(2 + covariates, n))
    groups = (x + sum(z), y - sum(z), *z)
    return tuple(np.round(g) for g in groups) if ties else groups


def confounded(n, clusters=0, depth=5):
    """x and y have z in common, and nothing else."""

    def draw(generator):
        size = (clusters or n, depth if clusters else 1)
        z = generator.normal(size=size) + (2 * np.arange(size[1]) if clusters else 0)
        of_seeds = float(clusters > 0) * generator.normal(size=(2, size[0], 1))
        x, y = (z + generator.normal(size=size) + of_seeds[i] for i in range(2))
        labels = np.repeat(np.arange(size[0]), size[1]) if clusters else None
        return Samples((x.ravel(), y.ravel(), z.ravel()), clusters=labels)

    return draw


# Coefficients.


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("covariates", [1, 2, 3])
def test_effect_is_that_of_residuals(covariates, ties):
    groups = drawn(20, covariates, ties=ties)
    ranks = [stats.rankdata(group) for group in groups]
    wanted = {
        pearson: np.corrcoef(*(left(v, groups[2:]) for v in groups[:2]))[0, 1],
        spearman: np.corrcoef(*(left(v, ranks[2:]) for v in ranks[:2]))[0, 1],
        # Rounded, so that units that are alike in all ranks are ties in scipy too.
        kendall: stats.kendalltau(*(left(v, ranks[2:]).round(9) for v in ranks[:2])).statistic,
    }
    for test, value in wanted.items():
        found = test(Samples(groups), alternative="greater").effect
        assert found == pytest.approx(value, abs=1e-11)


def test_one_covariate_by_the_textbook():
    groups = drawn(15, 1, seed=1)
    for test, r in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        xy, xz, yz = (r(*two).statistic for two in itertools.combinations(groups, 2))
        wanted = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
        assert test(Samples(groups), alternative="less").effect == pytest.approx(wanted, rel=1e-10)


def test_several_covariates_by_the_inverse_of_the_correlations():
    groups = drawn(25, 3, seed=2)
    inverse = np.linalg.inv(np.corrcoef(groups))
    wanted = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
    found = pearson(Samples(groups), alternative="less").effect
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", PARTIAL)
def test_a_covariate_that_says_nothing_new_changes_nothing(name):
    """Constant, given twice, or twice as large."""
    x, y, z = drawn(12, 1, seed=3)
    once = named(name)(Samples((x, y, z)), alternative="greater")
    for more in (np.full(12, 0.1), z, 2 * z + 1):
        again = named(name)(Samples((x, y, z, more)), alternative="greater")
        assert again.effect == pytest.approx(once.effect, rel=1e-9)
        assert again.p == pytest.approx(once.p, rel=1e-9)
        np.testing.assert_allclose(again.interval(0.9), once.interval(0.9), rtol=1e-9)
    plain = named(name.removeprefix("partial-"))(Samples((x, y)), alternative="greater")
    constant = named(name)(Samples((x, y, np.ones(12))), alternative="greater")
    assert constant.effect == pytest.approx(plain.effect, rel=1e-12)
    np.testing.assert_allclose(constant.interval(0.9), plain.interval(0.9), rtol=1e-9)


@pytest.mark.parametrize("name", PARTIAL)
def test_coefficient_of_a_resample(name):
    """From counts, what comes of the resample written out; NaN where nothing is left."""
    groups = drawn(7, 1, seed=4, ties=True)
    coefficient = getattr(partial_correlation, f"_{name.removeprefix('partial-').upper()}")
    counts = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=60).astype(float)
    counts[0] = [7, 0, 0, 0, 0, 0, 0]
    found = partial_correlation._statistic(groups, coefficient)(counts)
    compared = 0
    for value, times in zip(found, counts.astype(int), strict=True):
        resample = [np.repeat(group, times) for group in groups]
        if (times > 0).sum() < 4:
            assert math.isnan(value)
            continue
        again = partial_correlation._statistic(resample, coefficient)(np.ones(7))
        np.testing.assert_allclose(value, float(again), rtol=1e-9, atol=1e-12)
        compared += not math.isnan(value)
    assert compared > 20


def test_kendalls_own_formula_sees_what_is_not_there():
    """The 1/9 of the docstring, and that of residual ranks, of 800 units: standard error .024."""
    x, y, z = confounded(800)(np.random.default_rng(0)).groups
    xy, xz, yz = (stats.kendalltau(*two).statistic for two in ((x, y), (x, z), (y, z)))
    own = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert own == pytest.approx(1 / 9, abs=0.1)
    (ours,) = partial_correlation._statistic((x, y, z), partial_correlation._KENDALL)(
        np.ones((1, 800))
    )
    assert abs(ours) < 0.01 + 4 * 0.024


# p and intervals of independent units.


@pytest.mark.parametrize("covariates", [1, 2])
def test_p_of_pearson_is_that_of_the_regression(covariates):
    """t of the coefficient of x beside the covariates: the same test (Fisher, 1924)."""
    x, y, *z = drawn(14, covariates, seed=5)
    design = np.column_stack([x, np.ones(14), *z])
    beta, squares = np.linalg.lstsq(design, y, rcond=None)[:2]
    freedom = 14 - design.shape[1]
    error = math.sqrt(squares[0] / freedom * np.linalg.inv(design.T @ design)[0, 0])
    result = pearson(Samples((x, y, *z)), alternative="greater")
    assert result.p == pytest.approx(stats.t.sf(beta[0] / error, freedom), rel=1e-9)
    assert result.opposite_p == pytest.approx(1 - result.p)
    r, reach = result.effect, stats.norm.isf(0.05) / math.sqrt(14 - covariates - 3)
    wanted = np.tanh([math.atanh(r) - reach, math.atanh(r) + reach])
    np.testing.assert_allclose(result.interval(0.9), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", PARTIAL)
def test_level(name):
    """Of a common cause: exact for Pearson; ranks leave .012, .3 standard errors of 12 units."""
    found = rates(named(name), confounded(12), studies=STUDIES)
    more = 0.0 if name == "partial-pearson" else 0.03
    assert within(found.level, 0.05, more=more) and within(found.opposite, 0.05, more=more)
    assert found.coverage >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / STUDIES)
    plain = rates(named(name.removeprefix("partial-")), two(confounded(12)), studies=100)
    assert plain.level > 0.05 and not within(plain.level, 0.05, 100)


def two(draw):
    return lambda generator: Samples(draw(generator).groups[:2])


@pytest.mark.parametrize("name", PARTIAL)
def test_level_of_clusters(name):
    """Eight seeds of four layers, whose size is the common cause; the bootstrap costs .04."""
    studies = 50 if name == "partial-kendall" else 200
    found = rates(named(name), confounded(0, clusters=8, depth=4), studies=studies)
    assert within(found.level, 0.05, studies, 0.04) and within(found.opposite, 0.05, studies, 0.04)
    assert within(found.coverage, 0.95, studies, 0.04)


def test_clusters_see_what_holds_in_every_seed():
    x, z = np.tile(np.arange(5.0), 8), np.tile([0.0, 1, 0, 1, 1], 8)
    seeds = np.repeat(np.arange(8), 5)
    for name in PARTIAL:
        result = named(name)(Samples((x, x + 3 * z, z), clusters=seeds), alternative="greater")
        assert result.p <= 2.0**-7 and result.effect > 0.5
        assert result.min_attainable_p == 2.0**-8


# What cannot be said.


@pytest.mark.parametrize("name", PARTIAL)
def test_what_follows_from_the_covariates(name):
    x = np.arange(8.0)
    noise = np.random.default_rng(0).normal(size=8)
    for groups in ((3 * x + 1, noise, x), (noise, x, x), (np.full(8, 0.1), noise, x)):
        for clusters in (None, np.repeat(np.arange(4), 2)):
            result = named(name)(Samples(groups, clusters=clusters), alternative="greater")
            assert math.isnan(result.effect) and result.p == 1
            assert result.nothing == partial_correlation.NOTHING_LEFT
            assert result.interval(0.95) == (-1, 1)
    few = named(name)(Samples((noise[:4], x[:4], noise[4:], x[:4] ** 2)), alternative="less")
    assert few.p == 1 and few.nothing == "4 units are too few to hold 2 covariates"
    with pytest.raises(UserError, match="2 groups; it takes 3 to"):
        named(name)(Samples((noise, x)), alternative="less")


# Granulated.


def grid(*levels, seeds=1):
    """All settings of some hyperparameters, once for each seed."""
    axes = np.meshgrid(*(np.arange(float(n)) for n in levels), indexing="ij")
    settings = tuple(np.tile(axis.ravel(), seeds) for axis in axes)
    return settings, np.repeat(np.arange(seeds), math.prod(levels))


def by_hand(x, y, settings, seeds):
    """Jiang et al., (5) to (7), with loops."""
    psi = []
    for i in range(len(settings)):
        groups: dict[Any, list[int]] = {}
        for unit in range(x.size):
            fixed = tuple(float(s[unit]) for j, s in enumerate(settings) if j != i)
            groups.setdefault((seeds[unit], *fixed), []).append(unit)
        taus = [
            np.mean([np.sign(x[a] - x[b]) * np.sign(y[a] - y[b]) for a, b in
                     itertools.permutations(group, 2)])
            for group in groups.values()
        ]  # fmt: skip
        psi.append(np.mean(taus))
    return np.mean(psi)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_granulated_is_the_mean_over_groups(seeds, ties):
    settings, labels = grid(3, 2, 2, seeds=seeds)
    x, y = np.random.default_rng(seeds).normal(size=(2, labels.size))
    if ties:
        x, y = x.round(), y.round()
    wanted = by_hand(x, y, settings, labels)
    clusters = labels if seeds > 1 else None
    result = granulated(Samples((x, y, *settings), clusters=clusters), alternative="greater")
    assert result.effect == pytest.approx(wanted, abs=1e-12)


def test_granulated_of_one_hyperparameter_is_kendalls():
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    samples = Samples((x, y, np.arange(9.0)))
    wanted = stats.kendalltau(x, y).statistic
    assert granulated(samples, alternative="less").effect == pytest.approx(wanted, abs=1e-12)


def test_granulated_of_a_resample():
    """Independent units: pairs of units that were drawn, each as often as both were."""
    settings, labels = grid(2, 3)
    x, y = np.random.default_rng(1).normal(size=(2, 6))
    statistic = association_of(x, y, settings)
    for times in np.random.default_rng(2).multinomial(6, np.full(6, 1 / 6), size=20):
        unit = np.repeat(np.arange(6), times)
        values = []
        for i in range(2):
            taus = []
            for fixed in np.unique(settings[1 - i]):
                inside = [u for u in unit if settings[1 - i][u] == fixed]
                signs = [
                    np.sign(x[a] - x[b]) * np.sign(y[a] - y[b])
                    for a, b in itertools.combinations(inside, 2)
                    if a != b
                ]
                taus += [np.mean(signs)] if signs else []
            values.append(np.mean(taus) if taus else np.nan)
        np.testing.assert_allclose(statistic(times.astype(float)), np.mean(values), atol=1e-12)


def association_of(x, y, settings):
    axes = [granulation._groups(x, y, settings, i, None) for i in range(2)]
    parts = [granulation._independent(groups) for groups in axes]
    return lambda counts: np.mean([psi(counts) for psi in parts], axis=0)


def confounded_grid(generator, seeds=8):
    """One hyperparameter moves both, the others neither; noise is the seed's and the model's."""
    settings, labels = grid(2, 2, 2, seeds=seeds)
    x, y = (
        generator.normal(size=seeds)[labels] + generator.normal(size=labels.size) for _ in range(2)
    )
    return Samples((x, y, *settings), clusters=labels)


def test_one_axis_cannot_carry_it():
    """Both follow the first hyperparameter alone: tau of all is near 1/2, psi (1 + 0 + 0) / 3."""
    generator = np.random.default_rng(0)
    settings, labels = grid(2, 2, 2, seeds=30)
    x, y = (10 * settings[0] + generator.normal(size=labels.size) for _ in range(2))
    result = granulated(Samples((x, y, *settings), clusters=labels), alternative="greater")
    # 120 pairs of each of two axes: a standard error of .09, of their third .03.
    assert result.effect == pytest.approx(1 / 3, abs=0.12)
    assert named("kendall")(Samples((x, y)), alternative="greater").effect > 0.45


def test_granulated_level():
    found = rates(granulated, confounded_grid, studies=STUDIES)
    assert within(found.level, 0.05, more=0.02) and within(found.opposite, 0.05, more=0.02)
    assert found.coverage >= 0.9


def test_granulated_sees_what_holds_in_every_seed():
    settings, labels = grid(2, 3, seeds=6)
    x = settings[0] + 5 * settings[1]
    result = granulated(Samples((x, x**2, *settings), clusters=labels), alternative="greater")
    assert result.effect == 1 and result.p == result.min_attainable_p == 2.0**-6
    low, high = result.interval(0.9)
    assert high == 1 and low == pytest.approx(1 - 2 * (1 - 0.05 ** (1 / 6)))


def test_granulated_says_which_hyperparameter_never_varies_alone():
    settings, labels = grid(2, 2, seeds=4)
    x, y = np.random.default_rng(0).normal(size=(2, 16))
    together = Samples((x, y, settings[0], settings[1], settings[1]), clusters=labels)
    result = granulated(together, alternative="greater")
    assert math.isnan(result.effect) and result.p == 1
    assert result.nothing == "no two units differ in group 4 and in no other hyperparameter"
    assert result.min_attainable_p == 2.0**-4
    constant = granulated(Samples((np.ones(16), y, *settings), clusters=labels), alternative="less")
    assert constant.nothing == association.CONSTANT and constant.p == 1
    one_seed = granulated(Samples((x, y, *settings), clusters=0 * labels), alternative="less")
    assert one_seed.p == 1 and "one unit" in one_seed.nothing


# From a contrast to a page.

LAYERS = tuple(
    Quantity(metric, over=("seed", "layer"))
    for metric in ("layer/alpha", "layer/accuracy", "layer/num_params")
)


def test_covariates_are_further_quantities():
    rng = np.random.default_rng(0)
    rows = [
        {"study": "s", "arm": "mlp", "seed": seed, "step": 9, "of": {"layer": layer},
         "metric": quantity.metric, "value": float(value)}
        for seed in range(6) for layer in range(4)
        for quantity, value in zip(LAYERS, (*rng.normal(size=2), layer), strict=True)
    ]  # fmt: skip
    contrast = Contrast(LAYERS, ("mlp",) * 3, "greater", "partial-spearman")
    samples = gather(rows, contrast).samples
    assert samples is not None and [g.size for g in samples.groups] == [24] * 3
    assert samples.clusters is not None and np.unique(samples.clusters).size == 6
    assert samples.groups[2].tolist() == list(range(4)) * 6
    wanted = "layer/alpha rises with layer/accuracy, with layer/num_params held fixed, in mlp"
    assert words.comparison(contrast) == wanted
    one = contrast.__class__(LAYERS, ("mlp",) * 3, "less", "granulated-kendall")
    assert "where one of layer/num_params differs" in words.comparison(one)
    assert spearman(samples, alternative="greater").min_attainable_p == 2.0**-6


# Power.


@pytest.mark.parametrize("name", PARTIAL)
def test_power_by_simulation(name):
    """12 units and two covariates: the formula against 300 calls; approximations cost .06."""
    found = power_of(name, 1.8, Plan((12,) * 4, "greater"))
    rng = np.random.default_rng(7)
    p = [
        named(name)(simulation.draw(name, 1.8, (12,) * 4, rng), alternative="greater").p
        for _ in range(300)
    ]
    assert within(np.mean(np.array(p) <= 0.05), found, 300, more=0.06)
    assert 0.3 < found < 0.95
    assert found < power_of(name, 1.8, Plan((12,) * 3, "greater"))


def test_power_of_a_granulated_correlation():
    """8 seeds of a grid of 2 x 2 x 2, by the test itself."""
    plan = Plan((8,) * 5, "greater", cluster=8)
    assert power_of("granulated-kendall", 2.0, plan) > 0.9
    assert smallest_p("granulated-kendall", plan) == 2.0**-8
    (row,) = power.table(
        [Hypothesis("S.1", "x", (Contrast(LAYERS, ("mlp",) * 3, "less", "partial-kendall"),))],
        range(3),
    )
    assert row.rejects == "never" and row.smallest_p == 0.125
    assert TESTS["granulated-kendall"].clusters
