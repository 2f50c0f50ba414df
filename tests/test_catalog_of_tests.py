"""The table of tests: that each name is the function it says, and takes what it says."""

import importlib
import inspect
import math

import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.protocol.claims import contrasts
from sharpjax.protocol.planning import simulation
from sharpjax.protocol.tests.catalog import TESTS, Kind, run
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult

NAMES = sorted(TESTS)
# Without a direction, or with one only.
OMNIBUS = ("kruskal-wallis", "friedman")
PAPERS = range(1, 8)


def direction(name):
    """One that the test takes."""
    ways = TESTS[name].directions
    if "greater" not in ways:
        return "two-sided"
    return "less" if name == "fit-error" else "greater"


def num_groups(name):
    least, most = TESTS[name].groups
    return min(max(least, 3 if "many" in TESTS[name].kind else 2), most)


def samples(name, n=8, effect=0.7):
    return simulation.draw(name, effect, (n,) * num_groups(name), np.random.default_rng(0))


def call(name, data, **options):
    margin = 0.5 if TESTS[name].margin else 0.0
    return run(name, data, **({"alternative": direction(name), "margin": margin} | options))


@pytest.mark.parametrize("name", NAMES)
def test_name_is_that_of_the_function(name):
    function = TESTS[name].function
    assert function.__name__ == name.replace("-", "_")
    assert function.__module__.startswith("sharpjax.protocol.tests.")
    assert list(inspect.signature(function).parameters) == ["question"]


@pytest.mark.parametrize("name", NAMES)
def test_says_what_a_correlation_over_arms_is_about(name):
    about = TESTS[name].about
    assert bool(about) == (TESTS[name].kind == "correlation")
    if about:
        assert ("new seeds of these arms" in about) == (name != "spearman-over-arms")


def test_a_test_that_is_not_there():
    with pytest.raises(UserError, match="unknown test 'welsh'.*welch"):
        run("welsh", samples("welch"), alternative="greater")


@pytest.mark.parametrize("name", NAMES)
def test_takes_samples_of_its_kind(name):
    entry = TESTS[name]
    assert entry.kind in Kind.__args__
    result = call(name, samples(name))
    assert isinstance(result, TestResult)
    assert math.isfinite(result.effect) and 0 <= result.p <= 1 and 0 <= result.opposite_p <= 1
    assert 0 <= result.min_attainable_p <= result.p + 1e-12 or name == "identical"
    assert result.n == (8,) * num_groups(name)
    low, high = result.interval(0.95)
    assert math.isnan(low) or low <= result.effect <= high


@pytest.mark.parametrize("name", NAMES)
def test_the_same_samples_give_the_same_numbers(name):
    data = samples(name)
    first, again = (call(name, data, seed=3) for _ in range(2))
    np.testing.assert_equal(first._replace(interval=0), again._replace(interval=0))
    np.testing.assert_equal(first.interval(0.9), again.interval(0.9))


@pytest.mark.parametrize("name", NAMES)
def test_units_are_aligned_where_the_kind_says_so(name):
    """Groups of other lengths: refused where units belong together, and nowhere else."""
    kind, data = TESTS[name].kind, samples(name)
    if len(data.groups) == 1 or kind == "pairwise":
        return
    shorter = Samples(
        (data.groups[0][:-1], *data.groups[1:]),
        None if data.seen is None else (data.seen[0][:-1], *data.seen[1:]),
    )
    if kind in ("paired", "many-paired", "correlation"):
        with pytest.raises(UserError):
            call(name, shorter)
    else:
        assert call(name, shorter).n[0] == 7


@pytest.mark.parametrize("name", NAMES)
def test_number_of_groups(name):
    least, most = TESTS[name].groups
    data = samples(name)
    group, seen = data.groups[0], data.seen

    def of(count):
        return Samples((group,) * count, None if seen is None else (seen[0],) * count)

    for count in {least - 1, most + 1} - {0}:
        if count > 10:
            continue
        with pytest.raises(UserError):
            call(name, of(count))
    call(name, of(least))


@pytest.mark.parametrize("name", NAMES)
def test_null_is_the_tests_own(name):
    data, null = samples(name), TESTS[name].null
    try:
        stated = call(name, data, null=null)
    except UserError:
        assert name in ("fit-error", *OMNIBUS)
        return
    np.testing.assert_allclose(
        np.array([stated.p, stated.effect]), np.array(call(name, data)[2::-2]), rtol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_takes_the_directions_and_gives_the_interval_that_it_says(name):
    data, entry = samples(name), TESTS[name]
    for way in Alternative.__args__:
        if way in entry.directions:
            low, _ = call(name, data, alternative=way).interval(0.9)
            assert math.isnan(low) != entry.interval
        else:
            with pytest.raises(UserError, match="alternative="):
                call(name, data, alternative=way)
    if entry.fixed_null:
        with pytest.raises(UserError, match="its only null is 0"):
            call(name, data, null=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_margin_is_asked_for_where_it_counts(name):
    entry, data = TESTS[name], samples(name, effect=0.0)
    if entry.margin:
        with pytest.raises(UserError, match="margin"):
            call(name, data, margin=0.0)
        small, large = (call(name, data, margin=m).p for m in (0.01, 50.0))
        assert large < 1e-3 < small
    elif name != "identical":
        assert call(name, data, margin=0.3).p == call(name, data).p
    if entry.equivalence:
        assert entry.margin
        with pytest.raises(UserError, match="two-sided"):
            call(name, data, alternative="greater")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("identical", *OMNIBUS)])
def test_greater_is_about_the_first_group(name):
    """A large shift of the first group upwards (of correlations: together)."""
    if TESTS[name].equivalence or name in ("fit-error", "kendall-difference"):
        return
    result = call(name, samples(name, n=12, effect=6.0), alternative="greater")
    assert result.p < 0.05 < result.opposite_p
    if not TESTS[name].margin:
        assert result.effect > TESTS[name].null


@pytest.mark.parametrize("number", PAPERS)
def test_has_every_test_of_the_papers(number):
    paper = importlib.import_module(f"sharpjax.studies.papers.paper{number}")
    for hypothesis in paper.HYPOTHESES:
        for contrast in contrasts(hypothesis):
            assert contrast.test in TESTS, (hypothesis.id, contrast.test)
            least, most = TESTS[contrast.test].groups
            assert least <= len(contrast.groups) <= most
