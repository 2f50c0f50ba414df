"""Each of the five words by data made for it; families, composites, and answers one to one."""

import dataclasses
import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from sharpjax.errors import UserError
from sharpjax.protocol.attrition import Funnel, funnel
from sharpjax.protocol.claims import Composite, Hypothesis, Quantity
from sharpjax.protocol.judging import rules
from sharpjax.protocol.judging.verdicts import decide
from sharpjax.protocol.planning import power
from sharpjax.protocol.tests.catalog import TESTS
from sharpjax.protocol.tests.catalog import Test as CatalogTest
from sharpjax.protocol.tests.result import TestResult as Result
from tests.protocol_cases import LOSS, SEEDS, contrast, hypothesis, rows
from tests.simulated import plain


def told(question):
    """A test that says what its samples tell it: p, opposite p, centre and scale of the interval,
    which is a normal one."""
    p, opposite_p, centre, scale = question.groups[0][:4]

    def interval(confidence):
        width = scale * stats.norm.ppf((1 + confidence) / 2)
        return centre - width, centre + width

    return Result(centre, interval, p, opposite_p, 0.001, question.sizes)


def failing(question):
    raise UserError("cannot.")


TOLD = {
    "told": CatalogTest(told, "paired", "effect", 0.0, (1, 2)),
    "tost": CatalogTest(told, "paired", "effect", 0.0, (1, 2), margin=True, equivalence=True),
    "non-inferiority": CatalogTest(told, "paired", "effect", 0.0, (1, 2), margin=True),
    "failing": CatalogTest(failing, "paired", "effect", 0.0, (1, 2)),
}


def telling(p, opposite_p=None, centre=0.0, scale=1.0, arm="sam", metric="test/loss"):
    opposite_p = 1 - p if opposite_p is None else opposite_p
    return rows(arm, [p, opposite_p, centre, scale, 0.0], metric)


def one(test="told", direction="less", **fields):
    return contrast(("sam",), direction, test, **fields)


def judged(table, *given, **options):
    options = {"seeds": range(5), "detectable": None} | options
    with mock.patch.dict(TESTS, options.pop("tests", TOLD)):
        return decide(given, table, **options)


def finding(table, member, **fields):
    (judgement,) = judged(table, hypothesis(member, **fields))
    assert judgement.findings[0].verdict == judgement.verdict
    assert judgement.reason == judgement.findings[0].reason and "\n" not in judgement.reason
    return judgement.findings[0]


def word(table, member, **fields):
    return finding(table, member, **fields).verdict


NOISE = np.random.default_rng(0).normal(size=(2, 8))
NOISE -= NOISE.mean(axis=1, keepdims=True)
FAR = rows("sam", NOISE[0]) + rows("sgd", NOISE[1] + 4)
NEAR = rows("sam", 1 + 0.01 * NOISE[0]) + rows("sgd", 1 + 0.01 * NOISE[1])


@pytest.mark.parametrize(
    ("expected", "table", "member"),
    [
        ("supported", FAR, contrast()),
        ("supported", FAR, contrast(direction="two-sided", test="welch")),
        ("supported", NEAR, contrast(test="tost", direction="two-sided", margin=0.1)),
        ("supported", NEAR, contrast(test="ratio-of-means", direction="two-sided", margin=0.1,
                                     within=True)),
        ("refuted", FAR, contrast(direction="greater")),
        ("refuted", FAR, contrast(test="tost", direction="two-sided", margin=0.1)),
        ("refuted", FAR, contrast(test="non-inferiority", direction="greater", margin=0.1)),
        ("refuted", FAR, contrast(test="mean-difference", direction="two-sided", margin=0.1,
                                  within=True)),
        ("equivalent", NEAR, contrast(test="welch", margin=0.1)),
        ("inconclusive", NEAR, contrast(test="welch")),
        ("inconclusive", NEAR, contrast(test="welch", margin=0.001)),
        ("inconclusive", FAR[:11], contrast()),
        ("not run", FAR, contrast(quantity=Quantity("test/accuracy"))),
        ("not run", [], contrast()),
    ],
)  # fmt: skip
def test_five_words_of_real_tests(expected, table, member):
    (judgement,) = decide([hypothesis(member)], table, seeds=SEEDS)
    assert judgement.verdict == expected
    found = judgement.findings[0]
    assert found.contrast == member and found.reason == judgement.reason != ""
    assert (found.result is None) == (expected == "not run")


def test_what_could_have_been_seen():
    (judgement,) = decide(
        [hypothesis(contrast(test="welch"))], NEAR, seeds=SEEDS, detectable=power.detectable
    )
    found = judgement.findings[0]
    # Two groups of 8, one-sided at 0.05: the noncentral t says 1.3080 standard deviations.
    assert stats.nct.sf(stats.t.isf(0.05, 14), 14, 1.3080 * 2) == pytest.approx(0.8, abs=1e-4)
    spread = math.sqrt((NOISE[0].var(ddof=1) + NOISE[1].var(ddof=1)) / 2) / 100
    assert found.detectable == pytest.approx(-1.3080 * spread, rel=1e-3)
    assert f"An effect of {-found.detectable:.3g} could have been seen" in judgement.reason
    (judgement,) = decide([hypothesis()], FAR, seeds=SEEDS, detectable=power.detectable)
    assert math.isnan(judgement.findings[0].detectable)
    calls = []
    judged(telling(0.5), hypothesis(one(), alpha=0.01),
           detectable=lambda *given, **options: calls.append(options) or 7.0)  # fmt: skip
    assert calls == [{"alpha": 0.01}]


@pytest.mark.parametrize(("correction", "share"), [("none", 1), ("holm", 2), ("bh", 2), ("by", 3)])
def test_what_could_have_been_seen_in_a_family(correction, share):
    """As the registration says it: at the level of a contrast that alone rejects."""
    calls = []
    members = (one(), one(quantity=Quantity("test/accuracy")))
    judged(telling(0.5) + telling(0.6, metric="test/accuracy"),
           hypothesis(*members, correction=correction),
           detectable=lambda *given, **options: calls.append(options["alpha"]) or 7.0)  # fmt: skip
    assert calls == pytest.approx([0.05 / share] * 2)


def test_alpha_itself_is_enough():
    assert word(telling(0.05), one()) == "supported"
    assert word(telling(np.nextafter(0.05, 1)), one()) == "inconclusive"
    assert word(telling(0.95, 0.05), one()) == "refuted"
    assert word(telling(0.05), one(), alpha=0.01) == "inconclusive"


def test_no_direction_no_refutation():
    assert word(telling(0.5, 0.5), one(direction="two-sided")) == "inconclusive"
    # A deterministic comparison has an opposite p of its own.
    assert word(telling(1.0, 0.0), one(direction="two-sided")) == "refuted"


def test_no_p():
    result = Result(0, lambda confidence: (0.0, 0.0), math.nan, math.nan, 0, (4,))
    nan = TOLD["told"]._replace(function=lambda question: result)
    (judgement,) = judged(telling(0.5), hypothesis(one()), tests={"told": nan})
    assert judgement.verdict == "inconclusive" and "no p" in judgement.reason


@pytest.mark.parametrize(
    ("centre", "scale", "expected"),
    [
        (0.0, 0.5, "equivalent"),  # 1.645 * 0.5 < 1
        (0.0, 0.6, "equivalent"),  # 0.987 at 90 per cent, 1.18 at 95
        (0.0, 0.61, "inconclusive"),
        (0.3, 0.5, "inconclusive"),
        (9.0, 0.1, "inconclusive"),
    ],
)
def test_equivalent_by_the_interval_at_1_minus_2_alpha(centre, scale, expected):
    table = telling(0.5, centre=centre, scale=scale)
    assert word(table, one(margin=1.0)) == expected
    assert word(table, one()) == "inconclusive"  # no margin was named
    shifted = telling(0.5, centre=centre + 5, scale=scale)
    assert word(shifted, one(margin=1.0, null=5.0)) == expected


def test_significant_is_said_before_equivalent():
    assert word(telling(0.01, scale=0.1), one(margin=1.0)) == "supported"
    assert word(telling(0.99, scale=0.1), one(margin=1.0)) == "refuted"


@pytest.mark.parametrize(
    ("direction", "centre", "expected"),
    [
        ("greater", -1.3, "refuted"),  # -1.3 + 1.96 * 0.1 < -1
        ("greater", -1.1, "inconclusive"),
        ("greater", 3.0, "inconclusive"),  # far on the good side, and p says what it says
        ("less", 1.3, "refuted"),
        ("less", -1.3, "inconclusive"),
    ],
)
def test_non_inferiority_is_refuted_beyond_its_margin(direction, centre, expected):
    table = telling(0.5, 0.01, centre=centre, scale=0.1)
    assert word(table, one("non-inferiority", direction, margin=1.0)) == expected
    assert word(telling(0.01, centre=centre), one("non-inferiority", direction, margin=1.0)) == (
        "supported"
    )


@pytest.mark.parametrize(("centre", "scale", "expected"),
                         [(1.3, 0.1, "refuted"), (-1.3, 0.1, "refuted"), (1.1, 0.1, "inconclusive"),
                          (0.0, 0.5, "inconclusive")])  # fmt: skip
def test_equivalence_is_refuted_beyond_its_margin(centre, scale, expected):
    table = telling(0.5, centre=centre, scale=scale)
    assert word(table, one("tost", "two-sided", margin=1.0)) == expected
    assert word(telling(0.04), one("tost", "two-sided", margin=1.0)) == "supported"


@pytest.mark.parametrize(("centre", "scale", "expected"),
                         [(0.0, 0.6, "supported"), (0.0, 0.61, "inconclusive"),
                          (1.3, 0.1, "refuted"), (1.1, 0.1, "inconclusive")])  # fmt: skip
def test_claims_of_lying_within(centre, scale, expected):
    table = telling(0.9, 0.9, centre=centre, scale=scale)  # its p is about something else
    found = finding(table, one(direction="two-sided", margin=1.0, within=True))
    assert found.verdict == expected
    assert math.isnan(found.adjusted_p)


def test_intervals_of_a_corrected_family_are_wider():
    two = (one(direction="two-sided", margin=1.0, within=True), one(margin=1.0))
    table = telling(0.9, 0.9, scale=0.55)  # 1.645 * .55 < 1 < 1.96 * .55
    (alone,) = judged(table, hypothesis(*two))
    (family,) = judged(table, hypothesis(*two, correction="holm"))
    assert [f.verdict for f in alone.findings] == ["supported", "equivalent"]
    assert [f.verdict for f in family.findings] == ["inconclusive", "inconclusive"]


def test_the_interval_that_decided_is_shown():
    """1.645 and 1.96 standard errors: what lies within a margin does so at 90 per cent."""
    table = telling(0.9, 0.9, scale=0.6)
    inside = finding(table, one(direction="two-sided", margin=1.0, within=True)).interval
    assert inside.confidence == pytest.approx(0.9)
    assert inside.high == pytest.approx(stats.norm.ppf(0.95) * 0.6)
    outside = telling(0.9, 0.9, centre=1.3, scale=0.1)
    assert finding(outside, one(direction="two-sided", margin=1.0, within=True)).interval == (
        0.95, pytest.approx(1.3 - 0.1 * stats.norm.ppf(0.975)), pytest.approx(1.3 + 0.19599640)
    )  # fmt: skip
    assert finding(table, one(margin=1.0)).interval.confidence == pytest.approx(0.9)  # equivalent
    assert finding(telling(0.01), one()).interval.confidence == 0.95
    (family,) = judged(table, hypothesis(one(), one(direction="greater"), correction="holm"))
    assert [f.interval.confidence for f in family.findings] == [0.975, 0.975]
    assert "[-1.345, 1.345]" in family.findings[0].reason  # .6 times 2.2414


def test_a_refuted_contrast_shows_the_p_that_refuted_it():
    asked = [hypothesis(metric(i), id=f"S.{i}", family="S", correction="holm") for i in range(2)]
    found = [j.findings[0] for j in judged(told_metrics(0.97, 0.01), *asked)]
    assert [f.verdict for f in found] == ["inconclusive", "supported"]
    assert [f.decided_by for f in found] == [0.97, 0.02]
    (low, _) = judged(told_metrics(0.99, 0.98), *asked)
    assert low.verdict == "refuted"
    assert low.findings[0].decided_by == pytest.approx(0.02)
    assert finding(telling(0.5, scale=0.1), one(margin=1.0)).decided_by is None


def test_a_correlation_over_arms_says_what_it_is_about():
    """Seeds are drawn, arms are not: new seeds of these arms, unless an arm is a unit."""
    table = [row for arm in "abcde" for row in rows(arm, NOISE[0] + ord(arm))]
    table += [row for arm in "abcde" for row in rows(arm, NOISE[1] + ord(arm), "test/gap")]
    sides, group = (LOSS, Quantity("test/gap")), "a|b|c|d|e"

    def reason(test, group):
        member = contrast((group, group), "greater", test, sides)
        return decide([hypothesis(member)], table, seeds=SEEDS)[0].reason

    assert "is about new seeds of these arms and layers, not about other" in reason(
        "spearman", group
    )
    assert "is about other arms that are chosen as" in reason("spearman-over-arms", group)
    assert "is about" not in reason("spearman", "a")


def test_the_difference_in_the_units_of_the_metric():
    x, y = NOISE[0] + 4, NOISE[1]
    (judgement,) = decide([hypothesis()], rows("sam", x) + rows("sgd", y), seeds=SEEDS)
    shown = judgement.findings[0].difference
    assert shown.estimate == pytest.approx(4.0)
    low, high = stats.ttest_rel(x, y).confidence_interval(0.95)
    assert shown.interval == pytest.approx((0.95, low, high))
    member = contrast(test="mann-whitney")
    (judgement,) = decide([hypothesis(member)], rows("sam", x) + rows("sgd", y), seeds=SEEDS)
    low, high = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert judgement.findings[0].difference.interval == pytest.approx((0.95, low, high))
    (judgement,) = decide([hypothesis(contrast(test="welch"))], FAR, seeds=SEEDS)
    assert judgement.findings[0].difference is None  # its effect is in these units


@pytest.mark.parametrize(("reported", "expected"), [(-4.5, True), (4.0, False), (None, None)])
@pytest.mark.parametrize("test", ["wilcoxon", "welch"])
def test_the_number_of_the_source_beside_ours(test, reported, expected):
    member = contrast(test=test, reported=reported)
    (judgement,) = decide([hypothesis(member)], FAR, seeds=SEEDS)
    assert judgement.findings[0].consistent is expected


def metric(number, **fields):
    return one(quantity=Quantity(f"m/{number}"), **fields)


def told_metrics(*ps):
    return [row for i, p in enumerate(ps) for row in telling(p, metric=f"m/{i}")]


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ("none", [0.01, 0.02, 0.03, 0.2]),
        ("holm", [0.04, 0.06, 0.06, 0.2]),
        ("bh", [0.04, 0.04, 0.04, 0.2]),
        ("by", [0.0833, 0.0833, 0.0833, 0.4167]),
    ],
)
def test_a_family_is_corrected_over_hypotheses(correction, expected):
    asked = [
        hypothesis(metric(i), id=f"S.{i}", family="S", correction=correction) for i in range(4)
    ]
    table = told_metrics(0.01, 0.02, 0.03, 0.2)
    found = [j.findings[0] for j in judged(table, *asked)]
    assert [f.adjusted_p for f in found] == pytest.approx(expected, abs=5e-5)
    assert [f.verdict == "supported" for f in found] == [p <= 0.05 for p in expected]
    # A family apart is none of its business; nor do refutations count into it.
    other = hypothesis(metric(0), id="S.9", correction=correction,
                       refuting=(metric(1, family="S"),))  # fmt: skip
    again = judged(table, *asked, other)
    assert [j.findings[0].adjusted_p for j in again[:4]] == pytest.approx(expected, abs=5e-5)
    assert again[4].findings[0].adjusted_p == pytest.approx(0.01)


def test_opposite_directions_are_corrected_too():
    asked = [hypothesis(metric(i), id=f"S.{i}", family="S", correction="holm") for i in range(2)]
    found = [j.findings[0] for j in judged(told_metrics(0.97, 0.98), *asked)]
    assert [f.decided_by for f in found] == pytest.approx([0.04, 0.04])
    assert [f.verdict for f in found] == ["refuted", "refuted"]
    found = [j.findings[0] for j in judged(told_metrics(0.5, 0.97), *asked)]
    assert [f.verdict for f in found] == ["inconclusive", "inconclusive"]


@pytest.mark.parametrize("gap", ["missing metric", "missing seed", "missing part"])
def test_a_family_counts_as_it_was_registered(gap):
    asked = [hypothesis(metric(i), id=f"S.{i}", family="S", correction="holm") for i in range(2)]
    table = told_metrics(0.03, 0.01)
    if gap == "missing metric":
        table = table[:5]
    elif gap == "missing seed":
        table = table[:-1]
    else:
        asked[1] = dataclasses.replace(asked[1], missing="a machine")
    first, second = judged(table, *asked)
    assert first.verdict == "inconclusive"  # not 0.03 by itself
    assert first.findings[0].adjusted_p == pytest.approx(0.06)
    assert second.verdict == ("inconclusive" if gap == "missing seed" else "not run")
    assert math.isnan(second.findings[0].adjusted_p)


def test_a_member_without_p_counts_too():
    def nan(question):
        result = told(question)
        return result._replace(p=math.nan, opposite_p=math.nan) if result.p > 0.9 else result

    asked = [hypothesis(metric(i), id=f"S.{i}", family="S", correction="holm") for i in range(2)]
    tests = {"told": TOLD["told"]._replace(function=nan)}
    first, second = judged(told_metrics(0.03, 0.95), *asked, tests=tests)
    assert first.findings[0].adjusted_p == pytest.approx(0.06)
    assert second.verdict == "inconclusive" and "no p" in second.reason


def test_one_contrast_in_two_hypotheses_counts_once():
    shared = [metric(i, family="S") for i in range(2)]
    asked = (
        hypothesis(*shared, id="S.1", correction="holm"),
        hypothesis(shared[0], id="S.2", correction="holm"),
    )
    first, second = judged(told_metrics(0.02, 0.03), *asked)
    assert [f.adjusted_p for f in first.findings] == pytest.approx([0.04, 0.04])
    assert second.findings == first.findings[:1]


def test_missing_seeds_end_inconclusive_however_small_p_is():
    assert word(telling(1e-9), one()) == "supported"
    (judgement,) = judged(telling(1e-9), hypothesis(one()), seeds=range(6))
    found = judgement.findings[0]
    assert judgement.verdict == "inconclusive"
    assert "Fewer units than were planned: test/loss is missing in" in judgement.reason
    assert found.result is not None and found.result.p == 1e-9  # and is there to be seen
    assert math.isnan(found.adjusted_p)
    (judgement,) = judged(telling(1e-9), hypothesis(one()), seeds=None)
    assert judgement.verdict == "supported"


def test_a_diverged_seed_is_what_the_registration_said():
    table = FAR + rows("sgd", [1] * 7 + [0], "train/alive")
    by_default, stated = (
        decide([hypothesis(diverged=rule)], table, seeds=SEEDS)[0]
        for rule in ("inconclusive", "left out")
    )
    assert by_default.verdict == "inconclusive"
    assert "planned: 1 turned non-finite in training: arm 'sgd' seed 7." in by_default.reason
    assert by_default.findings[0].difference.estimate == pytest.approx(-4, abs=1)  # is shown
    assert stated.verdict == "supported"
    assert stated.findings[0].result.n == (7, 7)
    assert "Left out, as it says: 1 turned non-finite in training: arm" in stated.reason


def test_a_seed_without_a_unit_does_not_stop_a_verdict():
    quantity = Quantity("test/critical", optional=True)
    table = FAR + rows("sam", [1.0] * 6 + [2.0], "test/critical")
    member = contrast(("sam",), "greater", "mean", quantity)
    (judgement,) = decide([hypothesis(member)], table, seeds=SEEDS)
    assert judgement.verdict == "supported" and judgement.findings[0].result.n == (7,)
    assert "Left out, as it says: 1 without test/critical" in judgement.reason
    (whole,) = decide([hypothesis(member, contrast())], table, seeds=SEEDS)
    assert whole.reason.startswith("Of 2 parts, 2 supported. Left out, as it says: 1 without test")


def test_a_test_that_refuses_its_samples():
    (judgement,) = judged(telling(0.5), hypothesis(one("failing")))
    assert (judgement.verdict, judgement.reason) == ("not run", "failing: cannot.")


def test_a_floor_of_p_is_said():
    (judgement,) = decide(
        [hypothesis(contrast(direction="two-sided"))],
        rows("sam", np.arange(5) + 1.0) + rows("sgd", np.zeros(5)),
        seeds=range(5),
    )
    assert judgement.verdict == "inconclusive"
    assert "No numbers of 5 units could have given p below 0.062." in judgement.reason


def test_a_floor_of_p_in_a_family_is_said():
    table = rows("sam", np.arange(5) + 1.0) + rows("sgd", np.arange(5) + [3.0, 0, 3, 0, 3])
    members = (contrast(), contrast(direction="greater"))
    (judgement,) = decide([hypothesis(*members, correction="holm")], table, seeds=range(5))
    assert "below 0.031; alone in its family it needs 0.025." in judgement.findings[0].reason


SAME = np.array([0.3, 0.5, 0.4, 0.7, 0.6, 0.2, 0.9, 0.8])


@pytest.mark.parametrize(
    ("sam", "sgd", "test", "expected"),
    [
        (SAME, SAME, "paired-t", "the very same numbers"),
        (np.full(8, 0.9), SAME, "wilcoxon", "All 8 units of sam are 0.9"),
        (SAME + 1, SAME, "welch", ""),
        (np.ones(8), SAME, "welch", ""),  # a saturated accuracy
        (np.full(8, 0.9), np.full(8, 0.8), "identical", ""),
    ],
)
def test_numbers_that_look_as_if_nothing_varied(sam, sgd, test, expected):
    member = contrast(test=test)
    (judgement,) = decide([hypothesis(member)], rows("sam", sam) + rows("sgd", sgd), seeds=SEEDS)
    assert ("check that" in judgement.reason) == bool(expected)
    assert expected in judgement.reason


def test_the_confidence_of_a_deciding_interval_is_said():
    members = (one(margin=9.0), one(margin=9.0, quantity=Quantity("test/accuracy")))
    table = telling(0.5) + telling(0.6, metric="test/accuracy")
    (judgement,) = judged(table, hypothesis(*members, correction="holm"))
    assert judgement.verdict == "equivalent"
    assert judgement.findings[0].reason.startswith("The 95 % interval lies within 9 of 0.")


VOTES = {"s": "supported", "r": "refuted", "e": "equivalent", "i": "inconclusive", "n": "not run"}


@pytest.mark.parametrize(
    ("votes", "supported_by", "refuted_by", "expected"),
    [
        ("sss", "all", "any", "s"),
        ("ssi", "all", "any", "i"),
        ("ssr", "all", "any", "r"),
        ("ssr", "all", "never", "i"),
        ("sii", "any", "any", "s"),
        ("sir", "any", "any", "r"),  # the refutation was stated to be enough
        ("sir", "any", "all", "s"),
        ("rrr", "any", "all", "r"),
        ("ssii", "majority", "majority", "i"),  # half is no majority
        ("ssi", "majority", "majority", "s"),
        ("rrs", "majority", "majority", "r"),
        ("ssi", 2, 2, "s"),
        ("sri", 2, 2, "i"),
        ("rri", 2, 2, "r"),
        ("nnn", "all", "any", "n"),
        ("sn", "all", "any", "i"),
        ("rn", "all", "any", "r"),
        ("sn", "any", "any", "s"),
        ("ee", "all", "any", "e"),
        ("es", "all", "any", "i"),
        ("en", "all", "any", "i"),
    ],
)
def test_votes(votes, supported_by, refuted_by, expected):
    given: Any = [VOTES[letter] for letter in votes]
    assert rules.vote(given, supported_by, refuted_by) == VOTES[expected]


def test_composites_are_nested():
    table = told_metrics(0.01, 0.99, 0.5)
    good, bad, open_ = (metric(i) for i in range(3))
    inner = Composite((good, bad), 1, "all", name="one of two")
    (judgement,) = judged(table, hypothesis(Composite((inner, good)), open_, combine="any"))
    assert judgement.verdict == "supported"
    assert judgement.reason == "Of 2 parts, 1 supported, 1 inconclusive."
    assert judgement.parts == ("supported", "inconclusive")
    assert [f.contrast for f in judgement.findings] == [good, bad, good, open_]
    (judgement,) = judged(table, hypothesis(Composite((good, Composite((bad,)))), combine="all"))
    assert judgement.verdict == "refuted"
    assert judgement.reason == "Of 2 parts, 1 supported, 1 refuted."


def test_what_was_not_run_is_named_in_the_whole():
    (judgement,) = judged(told_metrics(0.01), hypothesis(metric(0), metric(1)))
    assert judgement.verdict == "inconclusive"
    assert "1 supported, 1 not run. Not run: arm 'sam' has no metric 'm/1'" in judgement.reason


def test_a_refutation_of_its_own():
    table = told_metrics(0.01, 0.5, 0.02)
    claim, quiet, against = (metric(i) for i in range(3))

    def verdict(*refuting, refuted_by="never"):
        (judgement,) = judged(table, hypothesis(claim, refuting=refuting, refuted_by=refuted_by))
        flags = [f.refuting for f in judgement.findings]
        assert flags == [False] + [True] * (len(flags) - 1)
        return judgement

    assert verdict(quiet).verdict == "supported"
    judgement = verdict(quiet, against)
    assert judgement.verdict == "refuted"
    too = " So is the claim itself; then the refutation decides."
    assert judgement.reason == f"What would refute it is supported: m/2: sam less (told).{too}"
    assert judgement.by_refutation
    judgement = verdict(Composite((against, quiet), name="both"))
    assert judgement.verdict == "supported"
    judgement = verdict(Composite((against, quiet), "any", name="either"))
    assert judgement.reason == f"What would refute it is supported: either.{too}"
    judgement = verdict(against, quiet, Composite((against, quiet), "any", name="either"))
    assert judgement.reason.endswith(f"is supported: m/2: sam less (told); either.{too}")


def test_reasons_for_not_running():
    asked = [
        hypothesis(one(), id="S.1", missing="A telescope."),
        Hypothesis("S.3", "Nobody can.", (), missing="There is no data."),
        hypothesis(one(), id="S.4"),
    ]
    found = judged(telling(0.01), *asked)
    assert [(j.verdict, j.reason) for j in found[:2]] == [
        ("not run", "A telescope."), ("not run", "There is no data."),
    ]  # fmt: skip
    assert found[2].verdict == "supported"
    assert [len(j.findings) for j in found] == [1, 0, 1]


def test_bad_hypotheses_and_rows_are_refused():
    with pytest.raises(UserError, match="two hypotheses have the id S.1"):
        judged(telling(0.01), hypothesis(one()), hypothesis(one()))
    with pytest.raises(UserError, match="duplicated rows"):
        judged(telling(0.01) + telling(0.02), hypothesis(one()))


def test_answers_are_one_to_one_with_the_questions():
    asked = [hypothesis(one(), id=f"S.{i}") for i in range(3)]
    answers = judged(telling(0.01), *asked)
    assert [j.hypothesis for j in answers] == asked


def test_the_same_rows_in_any_order_give_the_same_answers():
    asked = [hypothesis(contrast(test="ratio-of-means", quantity=LOSS, null=0.5))]
    table = rows("sam", [1.0, 2, 3, 4]) + rows("sgd", [2.0, 5, 6, 9])
    first = decide(asked, table, seeds=range(4))
    again = decide(asked, table[::-1], seeds=range(4))
    one, other = first[0].findings[0], again[0].findings[0]
    assert one.result is not None and other.result is not None
    assert plain(one.result) == plain(other.result) and one.interval == other.interval


def test_funnel():
    table = rows("sgd", [1, 2, 3]) + rows("sgd", [1, 1, 0], "train/alive") + rows("sam", [1, 2])
    table += rows("sam", [3], step=4, seeds=[2]) + rows("sam", [0], seeds=[9])
    found = funnel(table, arms=["sgd", "sam", "late"], seeds=range(4))
    assert found == (
        Funnel("sgd", 4, 2, 2, ("seed 2 turned non-finite in training", "seed 3 has no rows")),
        Funnel("sam", 4, 2, 2, (
            "seed 2 ends at step 4 of 9", "seed 3 has no rows",
            "seed 9 was not planned, and is left out",
        )),
        Funnel("late", 4, 0, 4, tuple(f"seed {i} has no rows" for i in range(4))),
    )  # fmt: skip
    assert all(f.planned == f.done + f.failed for f in found)


def test_nothing_is_known_where_no_event_was_seen():
    """All runs ended with the budget: inconclusive, in words, and no 'nan'."""
    time = Quantity("epochs", seen="generalised")
    table = [row for arm in ("sam", "sgd") for row in rows(arm, [100.0] * 5, "epochs")]
    table += [row for arm in ("sam", "sgd") for row in rows(arm, [0.0] * 5, "generalised")]
    asked = hypothesis(contrast(test="log-rank", quantity=time, margin=0.5))
    (judgement,) = decide((asked,), table, seeds=range(5))
    assert judgement.verdict == "inconclusive" and "nan" not in judgement.reason
    assert "Hazard ratio: nothing is known (no event was seen), n = 5." in judgement.reason
    assert judgement.findings[0].interval == (0.95, 0, math.inf)
