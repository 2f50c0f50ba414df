"""The rules that turn the result of a test into one word, and several words into one.

A contrast is

    supported     its adjusted p is at most alpha, in the direction of the claim
    refuted       its adjusted p in the opposite direction is at most alpha
    equivalent    neither, and the interval at confidence 1 - 2 alpha lies within null +- margin
    inconclusive  none of these, or fewer units than were planned
    not run       there is nothing to test, or it cannot be tested

Claims of equivalence and of non-inferiority are supported by their p, and refuted if the interval
at 1 - alpha lies wholly beyond the margin. A claim that an effect lies `within` its margin, by any
test, is supported if the interval at 1 - 2 alpha lies within it (two one-sided tests of level
alpha), and refuted if the interval at 1 - alpha lies wholly beyond it. An interval that is all that
the effect could be knows nothing, and lies within no margin. In a family of m that is corrected,
the alpha of an interval is alpha / m (Bonferroni).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from sharpjax.protocol.claims import Composite, Contrast, Correction
from sharpjax.protocol.judging import corrections
from sharpjax.protocol.tests.catalog import Test
from sharpjax.protocol.tests.result import TestResult

Verdict = Literal["supported", "refuted", "equivalent", "inconclusive", "not run"]


class Rule(NamedTuple):
    """Alpha and correction of a family of `size` members (1: not corrected)."""

    alpha: float
    correction: Correction
    size: int

    @property
    def each(self) -> float:
        """The alpha of one interval."""
        return self.alpha / self.size

    @property
    def alone(self) -> float:
        """What p must not exceed if no other member rejects."""
        return corrections.levels(self.alpha, self.size, self.correction)[0]


class Ruling(NamedTuple):
    """The verdict on a contrast, and the confidence of the interval that decided or is shown.

    `decided_by` is the corrected p on which the verdict rests; None if an interval decided, or
    nothing.
    """

    verdict: Verdict
    why: str
    confidence: float
    decided_by: float | None = None


def word(
    contrast: Contrast, test: Test, result: TestResult, adjusted: tuple[float, float], rule: Rule
) -> Ruling:
    """The verdict on a contrast whose numbers are all there, and why."""
    alpha, (p, opposite_p) = rule.alpha, adjusted
    null = test.null if contrast.null is None else contrast.null
    margin = contrast.margin
    narrow, wide, interval = 1 - 2 * rule.each, 1 - rule.each, result.interval
    if contrast.within and margin is not None:
        within = f"within {margin:g} of {null:g}."
        if _inside(interval(narrow), test, null, margin):
            return Ruling("supported", f"{_named(narrow)} lies {within}", narrow)
        if _beyond(interval(wide), null, margin, "two-sided"):
            why = f"{_named(wide)} lies more than {margin:g} from {null:g}."
            return Ruling("refuted", why, wide)
        why = f"{_named(narrow)} does not lie {within}"
        if interval(narrow) == test.bounds:
            why = f"{_named(narrow)} is all that the effect could be."
        return Ruling("inconclusive", why, narrow)
    if math.isnan(result.p):
        return Ruling("inconclusive", "The test gives no p for these numbers.", wide)
    asked = _p_words(result.p, p, rule)
    if p <= alpha:
        return Ruling("supported", f"{asked} <= {alpha:g}.", wide, p)
    if margin is not None and test.margin:
        if _beyond(interval(wide), null, margin, contrast.direction):
            why = f"{_named(wide)} lies wholly beyond the margin {margin:g}."
            return Ruling("refuted", why, wide)
    elif opposite_p <= alpha and (
        contrast.direction != "two-sided" or result.opposite_p != result.p
    ):
        opposite = _p_words(result.opposite_p, opposite_p, rule)
        why = f"In the opposite direction, {opposite} <= {alpha:g}."
        return Ruling("refuted", why, wide, opposite_p)
    elif margin is not None and _inside(interval(narrow), test, null, margin):
        return Ruling("equivalent", f"{_named(narrow)} lies within {margin:g} of {null:g}.", narrow)
    why = f"{asked} > {alpha:g}."
    if result.min_attainable_p > rule.alone:
        floor = f"{result.min_attainable_p:.2g}"
        why += f" No numbers of {units(result)} units could have given p below {floor}"
        # If others of the family reject, this p might have been small enough.
        needs = f"; alone in its family it needs {rule.alone:.2g}"
        why += "." if result.min_attainable_p > alpha else f"{needs}."
    return Ruling("inconclusive", why, wide, p)


def _named(confidence: float) -> str:
    return f"The {100 * confidence:.4g} % interval"


def _inside(interval: tuple[float, float], test: Test, null: float, margin: float) -> bool:
    within = null - margin < interval[0] and interval[1] < null + margin  # False for NaN
    return within and interval != test.bounds


def _beyond(interval: tuple[float, float], null: float, margin: float, direction: str) -> bool:
    """Whether the whole interval lies beyond the margin, on the side that the claim rules out."""
    below, above = interval[1] < null - margin, interval[0] > null + margin
    return {"two-sided": below or above, "greater": below, "less": above}[direction]


def _p_words(p: float, adjusted: float, rule: Rule) -> str:
    names = {"holm": "Holm", "bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}
    if rule.size == 1 or rule.correction == "none":
        return f"p = {p:.2g}"
    return f"p = {p:.2g}, after {names[rule.correction]} over {rule.size} p = {adjusted:.2g}"


def units(result: TestResult) -> str:
    return f"{result.n[0]}" if len(set(result.n)) == 1 else ", ".join(map(str, result.n))


def answer(member: Contrast | Composite, verdicts: Iterator[Verdict]) -> Verdict:
    """The verdict on a part, from the verdicts on its contrasts in order."""
    if isinstance(member, Contrast):
        return next(verdicts)
    votes: list[Verdict] = [answer(part, verdicts) for part in member.members]
    return vote(votes, member.supported_by, member.refuted_by)


def vote(votes: Sequence[Verdict], supported_by: str | int, refuted_by: str | int) -> Verdict:
    if refuted_by != "never" and votes.count("refuted") >= _needed(refuted_by, len(votes)):
        return "refuted"
    if votes.count("supported") >= _needed(supported_by, len(votes)):
        return "supported"
    if all(vote == "not run" for vote in votes):
        return "not run"
    return "equivalent" if all(vote == "equivalent" for vote in votes) else "inconclusive"


def _needed(rule: str | int, size: int) -> int:
    words = {"all": size, "any": 1, "majority": size // 2 + 1}
    return words[rule] if isinstance(rule, str) else rule
