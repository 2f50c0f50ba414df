"""Rulings where the numbers say nothing, or where claim and refutation contradict each other."""

import pytest

from sharpjax.protocol.judging.verdicts import decide
from tests.protocol_cases import contrast, hypothesis, rows


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
