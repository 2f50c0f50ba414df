"""Power, numbers of seeds and detectable effects: against closed forms, statsmodels, simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.protocol.planning import (
    equivalence,
    formulas,
    power,
    sensitivity,
    simulation,
)
from sharpjax.protocol.planning.formulas import Plan, of_means
from sharpjax.protocol.planning.sensitivity import (
    detectable_effect,
    num_seeds,
    power_of,
    smallest_p,
)
from sharpjax.protocol.tests.catalog import TESTS, run
from sharpjax.protocol.tests.result import Samples

ALTERNATIVES = ("two-sided", "greater", "less")
LOSS = Quantity("test/loss")


# t tests.


def pairs(effect, n, **plan):
    return of_means(effect, Plan((n, n), **plan), paired=True)


def test_known_powers():
    """The numbers of functional.md section 6.2."""
    powers = [of_means(1.0, Plan((n, n))) for n in (3, 5, 10)]
    np.testing.assert_allclose(powers, [0.159, 0.286, 0.562], atol=5e-4)
    assert [num_seeds(d, test="welch") for d in (0.5, 0.8, 1.0)] == [64, 26, 17]
    assert num_seeds(0.5, test="paired-t") == 34


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_power_at_no_effect_is_alpha(alternative, alpha):
    np.testing.assert_allclose(of_means(0.0, Plan((7, 7), alternative, alpha)), alpha, rtol=1e-9)


def test_against_the_noncentral_t():
    """In both tails and for unequal groups, where statsmodels need not be there."""
    for n, other, d in [(2, 2, 1.0), (3, 9, 0.7), (40, 12, 0.1), (10, 10, 8.0)]:
        freedom, shift = n + other - 2, d * math.sqrt(n * other / (n + other))
        critical = stats.t.isf(0.025, freedom)
        wanted = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
        np.testing.assert_allclose(of_means(d, Plan((n, other))), wanted, rtol=1e-9)


def test_against_statsmodels():
    models = pytest.importorskip("statsmodels.stats.power")
    two, one = models.TTestIndPower(), models.TTestPower()
    names = {"two-sided": "two-sided", "greater": "larger"}
    compared = 0
    for d, n, alternative, alpha in itertools.product(
        (0.2, 0.5, 1.0, 2.0), (3, 5, 10, 50), names, (0.05, 0.01)
    ):
        for paired, model in ((False, two), (True, one)):
            wanted = model.power(d, n, alpha, alternative=names[alternative])
            if not math.isnan(wanted):  # its lower tail is NaN for large effects
                found = of_means(d, Plan((n, n), alternative, alpha), paired=paired)
                np.testing.assert_allclose(found, wanted, atol=1e-6)
                compared += 1
    assert compared > 115
    for n in (4, 17):
        wanted = two.solve_power(nobs1=n, alpha=0.05, power=0.8)
        # Its search for the root ends within some 2e-6.
        np.testing.assert_allclose(detectable_effect("welch", Plan((n, n))), wanted, atol=1e-5)


def test_power_rises_with_the_effect_to_one():
    """Also where scipy's lower tail is NaN."""
    for n in (2, 5, 17, 1000):
        powers = [of_means(d, Plan((n, n))) for d in np.geomspace(0.01, 100, 300)]
        assert (np.diff(powers) >= -1e-12).all()
        assert powers[-1] > 1 - 1e-6 or n == 2


def test_detectable_and_seeds_invert_power():
    for n in (2, 3, 10, 100):
        np.testing.assert_allclose(
            pairs(detectable_effect("paired-t", Plan((n, n))), n), 0.8, atol=1e-9
        )
    for d in (0.13, 0.7, 3.0):
        n = num_seeds(d, 0.9, test="welch")
        assert of_means(d, Plan((n, n))) >= 0.9 > of_means(d, Plan((n - 1,) * 2)) or n == 2
    assert math.isnan(pairs(1.0, 1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: num_seeds(0.0, test="welch"), ["effect must be above 0", "0.0"]),
        (lambda: num_seeds(math.nan, test="welch"), ["effect must be above 0", "nan"]),
        (lambda: num_seeds(1.0, 0.05, test="welch"), ["power must be in (alpha, 1)", "0.05"]),
        (lambda: num_seeds(1e-4, test="welch"), ["welch cannot see", "1,000,000 units"]),
        (lambda: num_seeds(1.0, test="welsh"), ["test 'welsh'", "did you mean 'welch'"]),
        (lambda: num_seeds(1.0, 1.0, test="welch"), ["power must be in (alpha, 1)"]),
        (lambda: power_of("welch", 1.0, Plan((5, 5), alpha=0.0)), ["alpha", "0.0"]),
        (lambda: num_seeds(0.001, test="wilcoxon"), ["wilcoxon cannot see", "512"]),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError) as error:
        call()
    for word in words:
        assert word in str(error.value)


# Other formulas.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize(("n", "null"), [(1, 0.5), (10, 0.3), (25, 0.06), (40, 0.5)])
def test_binomial_power_is_that_of_the_outcomes_which_reject(n, null, alternative):
    counts = np.arange(n + 1)
    sides = ("greater", "less") if alternative == "two-sided" else (alternative,)
    tails = [[stats.binomtest(k, n, null, side).pvalue for side in sides] for k in counts]
    p = len(sides) * np.min(tails, axis=1)
    truth = simulation.proportion(-0.7 if alternative == "less" else 0.7, null)
    wanted = stats.binom.pmf(counts, n, truth)[p <= 0.05].sum()
    found = power_of("binomial", 0.7, Plan((n,), alternative, null=null))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-15)


def test_binomial_power_sums_outcomes():
    """By hand: 5 of 5 alone rejects p = 1/2 one-sided at .05 (1/32)."""
    truth = simulation.proportion(1.0, 0.5)
    found = power_of("binomial", 1.0, Plan((5,), "greater"))
    np.testing.assert_allclose(found, truth**5, rtol=1e-12)
    assert power_of("binomial", 1.0, Plan((4,), "greater")) == 0  # 1/16 is too much


def test_tost_power_against_simulation():
    rng = np.random.default_rng(0)
    n, margin = 8, 1.2
    x, y = rng.standard_normal((2, 40_000, n))
    error = np.sqrt((x.var(1, ddof=1) + y.var(1, ddof=1)) / n)
    upper = np.abs(x.mean(1) - y.mean(1)) + stats.t.isf(0.05, 2 * n - 2) * error
    share = (upper < margin).mean()
    found = power_of("tost", margin, Plan((n, n)))
    assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / 40_000)
    assert power_of("tost", 0.01, Plan((n, n))) < 1e-6
    np.testing.assert_allclose(power_of("tost", 30.0, Plan((n, n))), 1, atol=1e-9)


def studies(test, effect, sizes, number, seed=0):
    rng = np.random.default_rng(seed)
    return [simulation.draw(test, effect, sizes, rng) for _ in range(number)]


def simulated(test, effect, sizes, number, **options):
    """Power by calling the test itself, whatever formula there is."""
    options = {"alternative": "two-sided"} | options
    every = enumerate(studies(test, effect, sizes, number, seed=7))
    return float(np.mean(np.array([run(test, s, seed=i, **options).p for i, s in every]) <= 0.05))


@pytest.mark.parametrize(
    ("test", "effect", "sizes", "within"),
    [
        ("spearman", 1.5, (20, 20), 0.09),
        ("kendall", 1.5, (20, 20), 0.09),
        ("pearson", 1.5, (20, 20), 0.09),
        ("mean", 1.0, (9,), 0.09),
        ("mean-difference", 1.2, (9, 9), 0.09),
        ("ratio-of-means", 1.2, (9, 9), 0.12),  # the denominator has a spread too
    ],
)
def test_formulas_against_their_tests(test, effect, sizes, within):
    """Three standard errors of 300 studies, .087, and what an approximation may cost."""
    found = power_of(test, effect, Plan(sizes))
    assert abs(found - simulated(test, effect, sizes, 300)) < within
    assert 0.3 < found < 0.95  # where it can differ


# Simulation.


@pytest.mark.parametrize("test", simulation.QUICK)
def test_type_one_error(test):
    """Four standard errors of 1000 studies are .028; a test of few ranks keeps below its level."""
    sizes = (10, 10) if TESTS[test].groups[1] == 2 else (10, 10, 10)
    p = simulation.p_values(test, 0.0, sizes)
    assert 0.01 < (p <= 0.05).mean() < 0.05 + 0.028


def test_every_test_can_be_simulated():
    """Any registered one, in the direction of the alternative."""
    for test in ("log-rank", "pairwise-difference"):
        for alternative in ("greater", "less"):
            large = simulation.p_values(test, 3.0, (8, 8), alternative=alternative)
            assert np.mean(large <= 0.05) > 0.8, (test, alternative)
        wrong = simulation.p_values(test, -3.0, (8, 8), alternative="greater")
        assert np.mean(wrong <= 0.05) < 0.01


def test_same_seed_same_studies():
    first, again, other = (
        studies("paired-t", d, (5, 5), 3, seed=seed)[2].groups
        for d, seed in ((1.0, 4), (0.0, 4), (0.0, 5))
    )
    np.testing.assert_allclose(first[0] - 1, again[0])
    assert not np.allclose(again[0], other[0])


def test_models_have_the_effect_they_promise():
    def drawn(test, d, groups, n=60_000):
        (only,) = studies(test, d, (n,) * groups, 1)
        return only.groups

    first, second = drawn("paired-t", 0.4, 2)
    assert abs((first - second).mean() - 0.4) < 0.02 and abs((first - second).std() - 1) < 0.02
    x, y = drawn("spearman", 2.0, 2)
    assert abs(np.corrcoef(x, y)[0, 1] - math.sqrt(0.5)) < 0.01
    assert abs(stats.spearmanr(x, y).statistic - simulation.spearman_rho(2.0)) < 0.01
    assert abs(stats.kendalltau(x[:4000], y[:4000]).statistic - simulation.kendall_tau(2.0)) < 0.02
    means = [g.mean() - 5 for g in drawn("jonckheere", 1.0, 3)]
    np.testing.assert_allclose(means, [1, 0.5, 0], atol=0.02)
    (one,) = drawn("binomial", 0.5, 1)
    assert abs(one.mean() - simulation.proportion(0.5, 0.5)) < 0.01
    square, _ = drawn("pairwise-difference", 0.0, 2, n=4)
    assert np.isnan(np.diag(square)).all() and np.allclose(square, square.T, equal_nan=True)


# The smallest p.


def test_smallest_p():
    """functional.md section 6.2 and the table of papers.md."""
    assert smallest_p("wilcoxon", Plan((5, 5))) == 0.0625
    assert smallest_p("wilcoxon", Plan((6, 6))) == 0.03125
    assert [smallest_p("mann-whitney", Plan((n, n))) for n in (3, 4)] == [
        pytest.approx(0.1),
        pytest.approx(2 / 70),
    ]
    assert smallest_p("binomial", Plan((10_000,), "less", null=0.05)) < 1e-200


def by_family(n, members, correction):
    quantities = [LOSS, *(Quantity(f"test/loss_{i}") for i in range(1, members))]
    contrasts = tuple(Contrast(q, ("a", "b"), "greater", "wilcoxon") for q in quantities)
    hypothesis = Hypothesis("H.1", "More.", contrasts, correction=correction)
    return power.table([hypothesis], range(n))[0]


def test_families_as_in_the_table_of_papers():
    """BY over three: 5 pairs never reject, 6 only together, 7 alone."""
    assert [by_family(n, 3, "by").rejects for n in (5, 6, 7)] == ["never", "together", "alone"]
    assert [by_family(5, m, "holm").rejects for m in (1, 2)] == ["alone", "never"]
    assert [by_family(5, m, "bh").rejects for m in (1, 2)] == ["alone", "together"]
    assert by_family(5, 40, "none").rejects == "alone"
    np.testing.assert_allclose(by_family(9, 3, "by").alpha, 0.05 / 3 / (1 + 1 / 2 + 1 / 3))


# Contrasts.


def test_rows_of_a_registration():
    contrasts = (
        Contrast(LOSS, ("sam", "sgd"), "less", "welch"),
        Contrast(LOSS, ("sam", "sgd"), "two-sided", "mann-whitney", margin=0.52),
        Contrast(LOSS, ("sam", "sgd"), "two-sided", "tost", margin=0.1),
        Contrast(LOSS, ("sam", "sgd"), "two-sided", "paired-t", margin=0.1, within=True),
    )
    hypotheses = [
        Hypothesis("S.1", "Lower.", contrasts),
        Hypothesis("S.2", "Later.", contrasts, missing="no such arms"),
    ]
    rows = power.table(hypotheses, range(10))
    assert [row.hypothesis for row in rows] == ["S.1"] * 4
    welch, ranks, tost, within = rows
    for name, value in welch.power.items():
        wanted = of_means(float(name), Plan((10, 10), "greater"))
        np.testing.assert_allclose(value, wanted)
    np.testing.assert_allclose(
        welch.detectable, detectable_effect("welch", Plan((10, 10), "greater")), atol=1e-9
    )
    assert math.isnan(welch.power_at_margin)
    # Cliff's delta of .52 is an effect of one standard deviation.
    assert abs(ranks.power_at_margin - ranks.power["1.0"]) < 0.02
    np.testing.assert_allclose(tost.power["1.5"], power_of("tost", 1.5, Plan((10, 10))))
    assert within.power["1.0"] == formulas.tost(1.0, Plan((10, 10)), paired=True)
    assert math.isnan(welch.equivalent) and not welch.warning
    plain = welch.as_json()
    assert plain["n"] == [10, 10] and plain["power_at_margin"] is None


def test_units_of_a_row():
    def sizes(contrast, **units):
        return power.table([Hypothesis("S.1", "x", (contrast,))], range(6), units=units)[0].n

    layers = Quantity("layer/alpha", over=("seed", "layer"))
    draws = Quantity("draw/hit", over=("seed", "draw"), independent=True)
    assert sizes(Contrast(layers, ("a", "b"), "less", "wilcoxon"), layer=5) == (6, 6)
    assert sizes(Contrast(draws, ("a",), "less", "binomial"), draw=100) == (600,)
    pooled = Quantity("test/loss", independent=True)
    assert sizes(Contrast(pooled, ("a|b", "c"), "less", "mann-whitney")) == (12, 6)
    sides = (LOSS, Quantity("test/gap"))
    assert sizes(Contrast(sides, ("a|b", "a|b"), "less", "spearman")) == (6, 6)


def test_within_a_margin_of_the_test():
    """Proportions and correlations have a margin without a unit."""
    rate = Quantity("study/rejected", over=("seed", "study"), independent=True)
    contrast = Contrast(
        rate, ("planned",), "two-sided", "binomial", margin=0.02, null=0.8, within=True
    )
    row = power.table([Hypothesis("H4.4", "x", (contrast,))], range(20), units={"study": 500})[0]
    # z = (.02 - 1.645 s) / s with s = .004
    assert abs(row.power_at_margin - (2 * stats.norm.cdf(5 - 1.645) - 1)) < 0.003
    assert math.isnan(row.power["1.0"])
    assert row.equivalent == row.power_at_margin


def test_a_contrast_that_two_hypotheses_share_is_one_member():
    shared = Contrast(Quantity("test/loss"), ("a", "b"), "greater", "welch")
    pair = [Hypothesis(i, "x", (shared,), family="f", correction="holm") for i in ("H.1", "H.2")]
    assert [row.alpha for row in power.table(pair, range(8))] == [0.05, 0.05]


def test_a_warning_names_the_remedy():
    row = by_family(5, 2, "holm")
    assert "it can never reject: no p of wilcoxon with 5 units is below 0.0312" in row.warning
    assert "0.025 is asked for; 6 units would do" in row.warning and "\n" not in row.warning
    together = by_family(6, 3, "by").warning
    assert "only together with others" in together and "7 units would do alone" in together


# Clusters.


def clustered(count, n_seeds, *, test="spearman", correction="holm", **units):
    """Layers of one seed: a correlation over all of them is one of as many clusters."""
    layers = [Quantity(f"layer/{i}", over=("seed", "layer")) for i in range(count + 1)]
    asked = tuple(
        Contrast((layers[0], other), ("sgd", "sgd"), "greater", test) for other in layers[1:]
    )
    hypothesis = Hypothesis("H.1", "They go together.", asked, correction=correction)
    return hypothesis, power.table([hypothesis], range(n_seeds), units=units)


@pytest.mark.parametrize("test", ["spearman", "kendall", "pearson"])
def test_clustered_correlations_that_can_never_reject(test):
    """40 contrasts ask for .00125, and 8 clusters have 2^-8 at best, however many layers."""
    hypothesis, rows = clustered(40, 8, test=test, layer=20)
    for row in rows:
        assert (row.n, row.cluster, row.alpha) == ((8, 8), 20, 0.00125)
        assert (row.smallest_p, row.rejects) == (2**-8, "never")
        assert set(row.power.values()) == {0.0}
        assert f"no p of {test} with 8 seeds is below 0.00391, and 0.00125 is ask" in row.warning
        assert "it can never reject" in row.warning and "10 seeds would do" in row.warning
    (line,) = power.hopeless([hypothesis], [row.as_json() for row in rows])
    assert line.startswith("H.1 can never be supported: 40 of its 40 contrasts cannot come out")
    hypothesis, rows = clustered(40, 10, test=test, layer=20)
    assert {row.rejects for row in rows} == {"alone"}
    assert not list(power.hopeless([hypothesis], [row.as_json() for row in rows]))


def test_units_that_are_not_named_are_a_cluster_all_the_same():
    _, (row,) = clustered(1, 4)
    assert (row.cluster, row.smallest_p, row.rejects) == (2, 2**-4, "never")
    sides = (LOSS, Quantity("test/gap"))
    arms = Contrast(sides, ("a|b|c", "a|b|c"), "greater", "spearman")
    (row,) = power.table([Hypothesis("S.1", "x", (arms,))], range(8))
    assert (row.n, row.cluster, row.smallest_p) == ((8, 8), 3, 2**-8)


@pytest.mark.parametrize("test", ["spearman", "pearson"])
def test_power_of_clustered_correlations_by_simulation(test):
    """8 seeds of 5 layers, by the test itself: three standard errors of 100 studies are .15, and
    what the t law of 7 degrees of freedom may miss is .06."""
    plan = Plan((8, 8), "greater", cluster=5)
    found = power_of(test, 0.9, plan)
    p = simulation.p_values(test, 0.9, (8, 8), alternative="greater", cluster=5, seed=3)
    assert abs(found - (p <= 0.05).mean()) < 0.21
    assert found < power_of(test, 0.9, Plan((40, 40), "greater"))  # of as many independent units
    assert 0.3 < found < 0.95


def test_where_an_arm_is_one_unit():
    """5! orders of 5 arms, however many seeds they have."""
    sides, group = (LOSS, Quantity("test/gap")), "a|b|c|d|e"
    member = Contrast(sides, (group, group), "greater", "spearman-over-arms")
    (row,) = power.table([Hypothesis("S.1", "x", (member,))], range(30))
    assert (row.n, row.cluster, row.rejects) == ((5, 5), 1, "alone")
    assert row.smallest_p == pytest.approx(1 / 120)
    rng = np.random.default_rng(0)
    names, seeds = np.repeat(list("abcde"), 6), np.tile(np.arange(6), 5)
    samples = Samples(tuple(rng.standard_normal((2, 30))), clusters=seeds, arms=names)
    d = detectable_effect("spearman", Plan((5, 5), "greater"))
    assert power.detectable(member, samples) == pytest.approx(simulation.spearman_rho(d))


def test_a_test_that_takes_no_clusters_never_rejects():
    pooled = Contrast(LOSS, ("a|b", "c"), "less", "mann-whitney")
    (row,) = power.table([Hypothesis("S.1", "x", (pooled,))], range(6))
    assert row.rejects == "never" and "units come in clusters" in row.warning


def test_a_hypothesis_that_needs_only_some_of_its_contrasts():
    few = Contrast(LOSS, ("a", "b"), "two-sided", "wilcoxon")  # 5 pairs never reject
    good = Contrast(LOSS, ("a", "b"), "two-sided", "welch")
    for combine, expected in {"all": 1, "any": 0, "majority": 1}.items():
        hypothesis = Hypothesis("S.1", "x", (few, good), combine=combine)
        later = Hypothesis("S.0", "x", (few,), missing="a machine")
        rows = [row.as_json() for row in power.table([later, hypothesis], range(5))]
        assert len(list(power.hopeless([later, hypothesis], rows))) == expected


# Margins.


def signed(n, positive):
    """Differences 1, ..., n in size, those of the given ranks positive."""
    ranks = np.arange(1, n + 1)
    return Samples((np.where(np.isin(ranks, positive), ranks, -ranks).astype(float),))


def balanced(n):
    """As near to R+ = R- as whole ranks allow."""
    left, chosen = n * (n + 1) // 4, []
    for rank in range(n, 0, -1):
        if rank <= left:
            chosen.append(rank)
            left -= rank
    return signed(n, chosen)


def lies_within(samples, margin, alpha):
    low, high = run("wilcoxon", samples, alternative="two-sided").interval(1 - 2 * alpha)
    return -margin < low and high < margin


@pytest.mark.parametrize(("alpha", "possible"), [(0.05, 37), (0.0125, 67)])
def test_when_equivalent_becomes_possible_by_the_test_itself(alpha, possible):
    """Of the most balanced differences there are; the score at z = 1.645 and 2.241 says when."""
    found = equivalence.reach("wilcoxon", Plan((8, 8), alpha=alpha), 0.3)
    assert found.chance == 0.0 and found.possible == possible
    assert not lies_within(balanced(possible - 2), 0.3, alpha)
    assert lies_within(balanced(possible + 2), 0.3, alpha)


@pytest.mark.parametrize(
    ("test", "n", "margin"),
    [
        ("wilcoxon", 120, 0.3),
        ("mann-whitney", 80, 0.3),
        ("auc", 80, 0.15),
        ("spearman", 60, 0.4),
        ("kendall", 60, 0.3),
        ("pearson", 60, 0.4),
    ],
)
def test_the_chance_of_equivalence_by_simulation(test, n, margin):
    """By the test's own intervals of 150 studies without effect: three standard errors are .12,
    and .08 what the normal law of the estimate and intervals that a spread widens may cost."""
    entry = TESTS[test]
    found = equivalence.chance(test, Plan((n, n)), margin)
    inside = []
    for samples in studies(test, 0.0, (n, n), 150, seed=5):
        low, high = run(test, samples, alternative="two-sided").interval(0.9)
        inside.append(entry.null - margin < low and high < entry.null + margin)
    assert abs(found - np.mean(inside)) < 0.2
    assert 0.4 < found < 0.95


def test_the_chance_of_equivalence_of_a_proportion():
    """By hand: every count's own interval."""
    n, null, margin = 200, 0.4, 0.1
    wanted = 0.0
    for count in range(n + 1):
        ones = Samples(((np.arange(n) < count).astype(float),))
        low, high = run("binomial", ones, alternative="two-sided", null=null).interval(0.9)
        if null - margin < low and high < null + margin:
            wanted += stats.binom.pmf(count, n, null)
    np.testing.assert_allclose(
        equivalence.chance("binomial", Plan((n,), null=null), margin), wanted
    )
    assert 0.5 < wanted < 0.99


def test_the_margin_that_means_can_meet_is_that_of_tost():
    margin = equivalence.least_margin("welch", Plan((12, 12)))
    np.testing.assert_allclose(power_of("tost", margin, Plan((12, 12))), 0.8, atol=1e-9)
    assert equivalence.reach("welch", Plan((12, 12)), 0.1) is None  # in units of the metric
    assert math.isnan(equivalence.least_margin("wilcoxon", Plan((12, 12))))


def sam(n, margin=0.3):
    """S.1 to S.4 as they were registered: a rank-biserial correlation of .3 matters."""
    return power.table(
        [
            Hypothesis(
                f"S.{i}", "x",
                (Contrast(Quantity(f"test/{i}"), ("sam", "sgd"), "less", "wilcoxon", margin),),
                family="sam", correction="holm",
            )
            for i in range(4)
        ],
        range(n),
    )  # fmt: skip


def test_a_margin_that_cannot_be_met_is_said():
    for row in sam(8):
        assert row.power_at_margin == pytest.approx(0.055, abs=0.015)  # of 4000 studies
        assert (row.equivalent, row.equivalent_possible, row.equivalent_likely) == (0, 67, 172)
        assert row.warning == (
            f"a true effect of the margin 0.3 is seen with power {row.power_at_margin:.2g}; "
            f"'equivalent' within the margin 0.3 is out of reach below 67 units, and needs 172 for "
            f"power 0.8"
        )
        plain = row.as_json()
        assert plain["equivalent"] == 0 and plain["equivalent_likely"] == 172
    for row in sam(200):
        assert row.warning == "" and row.equivalent > 0.8
    (row, *_) = sam(100)
    assert 0 < row.equivalent < 0.5 and "has a chance of" in row.warning


@pytest.mark.parametrize("test", ["mean", "paired-t", "wilcoxon"])
@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_units_that_are_too_few_for_an_interval(test, n):
    """As the test itself has it: an interval without end lies within no margin."""
    (samples,) = studies(test, 0.3, (n,) * max(TESTS[test].groups[0], 1), 1)
    low, high = run(test, samples, alternative="two-sided").interval(0.9)
    endless = max(TESTS[test].bounds[0], -1e9) >= low and high >= min(TESTS[test].bounds[1], 1e9)
    plan = Plan(tuple(len(group) for group in samples.groups))
    assert equivalence.are_too_few(test, plan) == endless
    if endless and test in ("mean", "paired-t"):
        assert equivalence.of_means(test, plan, 50.0) == 0


def test_a_claim_of_few_units_within_a_margin_of_the_metric():
    member = Contrast(LOSS, ("a", "b"), "two-sided", "mean", margin=0.1, within=True)
    hypothesis = Hypothesis("S.1", "They are equal.", (member,))
    rejects = [power.table([hypothesis], range(n))[0].rejects for n in (4, 5)]
    assert rejects == ["never", "alone"]
    assert "4 are too few for an interval at 0.9" in power.table([hypothesis], range(4))[0].warning


def test_a_claim_within_a_margin_that_cannot_be_met_never_comes_out():
    sides = (LOSS, Quantity("test/gap"))
    member = Contrast(sides, ("a", "a"), "two-sided", "kendall", margin=0.3, within=True)
    hypothesis = Hypothesis("S.1", "They have nothing to do with each other.", (member,))
    rows = power.table([hypothesis], range(8))
    assert rows[0].rejects == "never"
    assert "'supported' within the margin 0.3 is out of reach below" in rows[0].warning
    assert list(power.hopeless([hypothesis], [row.as_json() for row in rows]))


def test_detectable_effects_have_the_tests_unit():
    rng = np.random.default_rng(0)
    x, y = 0.2 * rng.standard_normal((2, 9)) + 2
    samples = Samples((x, y))
    spread = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)

    def seen(test, direction="greater", **options):
        return power.detectable(Contrast(LOSS, ("a", "b"), direction, test, **options), samples)

    d = detectable_effect("welch", Plan((9, 9), "greater"))
    np.testing.assert_allclose(seen("welch"), d * spread)
    np.testing.assert_allclose(seen("welch", "less"), -d * spread)
    np.testing.assert_allclose(seen("welch", null=0.3), 0.3 + d * spread)
    np.testing.assert_allclose(seen("ratio-of-means"), 1 + d * spread / y.mean())
    d = detectable_effect("paired-t", Plan((9,), "greater"))
    np.testing.assert_allclose(seen("paired-t"), d * (x - y).std(ddof=1))
    np.testing.assert_allclose(seen("paired-non-inferiority", margin=0.1), d * (x - y).std(ddof=1))
    assert 0.6 < seen("wilcoxon") < 0.9 and -0.9 < seen("mann-whitney", "less") < -0.5
    assert 0.8 < seen("auc") < 0.95


def test_rank_effects_of_a_shift():
    """The mean of the test's own effect over simulated studies is the closed form."""
    for test in ("wilcoxon", "mann-whitney", "auc"):
        every = studies(test, 0.8, (7, 7), 400)
        effects = [run(test, s, alternative="greater").effect for s in every]
        wanted = sensitivity.in_units_of(test, 0.8, Plan((7, 7)))
        assert abs(np.mean(effects) - wanted) < 4 * np.std(effects) / 20


def test_detectable_by_standard_error():
    """Where no formula is at hand: (z_alpha + z_beta) times the interval's own standard error."""
    rng = np.random.default_rng(1)
    samples = Samples(tuple(rng.standard_normal((3, 8))))
    contrast = Contrast(LOSS, ("a", "b", "c"), "greater", "jonckheere")
    low, high = run("jonckheere", samples, alternative="greater").interval(0.95)
    wanted = (1.6449 + 0.8416) * (high - low) / (2 * 1.95996)
    np.testing.assert_allclose(power.detectable(contrast, samples), wanted, rtol=1e-4)
    times = Samples(tuple(rng.exponential(size=(2, 12))), (np.ones(12, bool),) * 2)
    ratio = power.detectable(Contrast(LOSS, ("a", "b"), "greater", "log-rank"), times)
    inverse = power.detectable(Contrast(LOSS, ("a", "b"), "less", "log-rank"), times)
    assert ratio > 1
    np.testing.assert_allclose(ratio * inverse, 1)


def test_nothing_can_be_detected():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    few = Samples((x, x[::-1]))
    assert math.isnan(power.detectable(Contrast(LOSS, ("a", "b"), "greater", "wilcoxon"), few))
    one = Samples((x[:1], x[:1]))
    assert math.isnan(power.detectable(Contrast(LOSS, ("a", "b"), "greater", "welch"), one))
    many = Samples((x, x + 1, x + 2))
    omnibus = Contrast(LOSS, ("a", "b", "c"), "two-sided", "kruskal-wallis")
    assert math.isnan(power.detectable(omnibus, many))


def test_clusters_are_the_units():
    """Ten layers of three seeds see what three units see."""
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(3), 10)
    samples = Samples(tuple(rng.standard_normal((2, 30))), clusters=clusters)
    contrast = Contrast(LOSS, ("a", "b"), "greater", "paired-t")
    spread = (samples.groups[0] - samples.groups[1]).std(ddof=1)
    d = detectable_effect("paired-t", Plan((3,), "greater"))
    np.testing.assert_allclose(power.detectable(contrast, samples), d * spread)


def test_seeds_for_any_test():
    n = num_seeds(1.0, test="mann-whitney")
    assert 16 <= n <= 20  # 17 by t, and the relative efficiency .955
    assert power_of("mann-whitney", 1.0, Plan((n, n))) >= 0.8
    assert num_seeds(1.0, test="tost") == num_seeds(1.0, test="tost")
    assert num_seeds(0.5, test="binomial") > 20


@pytest.mark.parametrize("test", ["spearman", "kendall", "pearson"])
@pytest.mark.parametrize("alternative", ["less", "greater"])
@pytest.mark.parametrize("null", [0.9, 0.2, -0.5])
def test_a_correlation_that_is_seen_lies_beyond_the_null(test, alternative, null):
    """Against a null of 0.9 a correlation of 0 was said to be the least that could be seen."""
    plan = Plan((100, 100), alternative, null=null)
    effect = detectable_effect(test, plan)
    seen, sign = sensitivity.in_units_of(test, effect, plan), -1 if alternative == "less" else 1
    np.testing.assert_allclose(power_of(test, effect, plan), 0.8, atol=1e-9)
    assert 0 < sign * (seen - null) < 0.3
    # The normal law of Fisher's z, its spread at the correlation that is seen.
    spread = abs(np.arctanh(seen) - np.arctanh(null)) / (special.ndtri(0.95) + special.ndtri(0.8))
    factor = {"spearman": 1 + seen**2 / 2, "kendall": 0.437, "pearson": 1.0}[test]
    lost = 4 if test == "kendall" else 3
    np.testing.assert_allclose(spread, np.sqrt(factor / (100 - lost)), rtol=1e-6)
