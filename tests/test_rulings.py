"""Rulings where the numbers say nothing, or where claim and refutation contradict each other."""

import pytest

from sharpjax.protocol.claims import Quantity
from sharpjax.protocol.judging.verdicts import decide
from tests.protocol_cases import contrast, hypothesis, rows


def test_a_claim_that_is_supported_and_refuted_is_refuted_and_says_so():
    low, high = [0.1 * seed for seed in range(8)], [9 + 0.1 * seed for seed in range(8)]
    table = [*rows("sam", low), *rows("sgd", high)]
    table += [*rows("sam", high, "test/error"), *rows("sgd", low, "test/error")]
    worse = contrast(quantity=Quantity("test/error"), direction="greater")
    said = "So is the claim itself; then the refutation decides."
    (both,) = decide([hypothesis(refuting=(worse,))], table, seeds=range(8))
    assert both.verdict == "refuted" and both.by_refutation and both.reason.endswith(said)
    against = hypothesis(contrast(direction="greater"), refuting=(worse,))
    (one,) = decide([against], table, seeds=range(8))
    assert one.verdict == "refuted" and one.by_refutation and said not in one.reason


def judged(member, table, seeds):
    """The one contrast of a registration that is older than today's rules."""
    (judgement,) = decide([hypothesis(member)], table, seeds=range(seeds))
    return judgement


@pytest.mark.parametrize(
    ("test", "groups", "margin"),
    [
        ("wilcoxon", ("sam", "sgd"), 1.01),
        ("mann-whitney", ("sam", "sgd"), 1.01),
        ("auc", ("sam", "sgd"), 0.51),
    ],
)
def test_a_test_that_knows_nothing_finds_nothing_equal(test, groups, margin):
    one = rows("sam", [1.0]) + rows("sgd", [0.0])
    options = {"test": test, "margin": margin, "direction": "two-sided"}
    within = judged(contrast(groups, **options, within=True), one, 1)
    assert within.verdict == "inconclusive"
    assert within.reason.startswith("The 90 % interval is all that the effect could be.")
    assert judged(contrast(groups, **options), one, 1).verdict == "inconclusive"
