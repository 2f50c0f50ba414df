"""Decides every registered hypothesis from the rows, by one of five words.

`judging.rules` says what each word means. A family counts as it was registered: a member without
numbers has p = 1 in it. So nothing becomes significant because something else was not run.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from sharpjax.errors import UserError
from sharpjax.protocol import claims
from sharpjax.protocol.canonical import canonical_json, to_dict
from sharpjax.protocol.claims import Composite, Contrast, Correction, Diverged, Hypothesis
from sharpjax.protocol.judging import rules
from sharpjax.protocol.judging.corrections import adjust
from sharpjax.protocol.judging.rules import Verdict
from sharpjax.protocol.judging.shown import Difference, Interval, difference
from sharpjax.protocol.samples import Gathered, Row, Table, gather, table
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.catalog import Test
from sharpjax.protocol.tests.result import Samples, TestResult
from sharpjax.protocol.wording import describe, size

Detectable = Callable[..., float]
_LEFT_OUT = "Left out, as it says:"
_Key = tuple[str, float, Diverged]  # a contrast as canonical JSON, and rules of its hypothesis
_Measured = tuple[Gathered, TestResult | None]  # before correction


class Finding(NamedTuple):
    """The result of one contrast.

    Attributes:
        adjusted_p: corrected within the family; NaN if it was not counted.
        detectable: for an inconclusive contrast, the effect that these numbers of units could have
            detected with power 0.8 if no other member of the family rejects, in units of the test's
            effect; else, or if not known, NaN.
        reason: one line for a reader, always there.
        refuting: whether it is one of the statements that refute the hypothesis if supported.
        interval: of the test's effect, at the confidence at which it decides; None if not run.
        difference: the mean of the first group less that of the second, in the units of the metric,
            at the same confidence; only for tests whose effect is in units of ranks, else None.
        decided_by: the corrected p on which the verdict rests (for a refuted contrast, that in the
            opposite direction); None if an interval decided, or nothing.
        left_out: the units that a rule of the hypothesis left out, counted, as a sentence.
    """

    contrast: Contrast
    verdict: Verdict
    reason: str
    samples: Samples | None = None
    result: TestResult | None = None
    adjusted_p: float = math.nan
    detectable: float = math.nan
    refuting: bool = False
    interval: Interval | None = None
    difference: Difference | None = None
    decided_by: float | None = None
    left_out: str = ""

    @property
    def consistent(self) -> bool | None:
        """Whether the source's number lies in the interval that is shown; None if either is
        lacking."""
        shown = self.interval if self.difference is None else self.difference.interval
        reported = self.contrast.reported
        if reported is None or shown is None or math.isnan(shown.low + shown.high):
            return None
        return shown.low <= reported <= shown.high


class Judgement(NamedTuple):
    """The result of one hypothesis.

    Attributes:
        findings: those of its contrasts, depth first.
        parts: the verdict on each part that was counted; empty if nothing was run.
        by_refutation: whether it is refuted because a statement that was to refute it is supported;
            the parts may then say anything.
    """

    hypothesis: Hypothesis
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    parts: tuple[Verdict, ...] = ()
    by_refutation: bool = False


def decide(
    hypotheses: Iterable[Hypothesis],
    rows: Iterable[Row] | Table,
    *,
    seeds: Sequence[int] | None,
    detectable: Detectable | None = None,
) -> tuple[Judgement, ...]:
    """Answer every hypothesis, in the given order.

    Args:
        hypotheses: all that were registered.
        rows: the results table.
        seeds: the registered ones; None: nothing was registered, and the seeds that have rows
            count.
        detectable: gives the effect that could have been detected, as `planning.power.detectable`
            does; None: no such effect is given.

    Raises:
        UserError: the hypotheses contradict each other, or rows are duplicated.
    """
    hypotheses = tuple(hypotheses)
    claims.check(hypotheses, sealed=True)
    index = table(rows)
    measured: dict[_Key, _Measured] = {}
    members: dict[str, dict[_Key, Contrast]] = {}  # of each family, in order
    corrections: dict[str, Correction] = {}
    for hypothesis in hypotheses:
        for contrast, family in claims.families(hypothesis):
            key = _key(contrast, hypothesis)
            members.setdefault(family, {})[key] = contrast
            corrections[family] = hypothesis.correction
            if not hypothesis.missing and key not in measured:
                measured[key] = _measure(contrast, index, seeds, hypothesis.diverged)
    adjusted = {
        family: _adjusted(own, measured, corrections[family]) for family, own in members.items()
    }
    judgements = []
    for hypothesis in hypotheses:
        findings = []
        number = sum(1 for _ in claims.contrasts(Composite(hypothesis.contrasts)))
        for i, (contrast, family) in enumerate(claims.families(hypothesis)):
            if hypothesis.missing:
                finding = Finding(contrast, "not run", hypothesis.missing)
            else:
                key = _key(contrast, hypothesis)
                size = len(members[family]) if hypothesis.correction != "none" else 1
                rule = rules.Rule(hypothesis.alpha, hypothesis.correction, size)
                finding = _find(contrast, *measured[key], adjusted[family][key], rule, detectable)
            findings.append(finding._replace(refuting=i >= number))
        judgements.append(_judge(hypothesis, tuple(findings)))
    return tuple(judgements)


def _key(contrast: Contrast, hypothesis: Hypothesis) -> _Key:
    return canonical_json(to_dict(contrast)), hypothesis.alpha, hypothesis.diverged


def _measure(
    contrast: Contrast, index: Table, seeds: Sequence[int] | None, diverged: Diverged
) -> _Measured:
    there = gather(index, contrast, seeds=seeds, diverged=diverged)
    if there.samples is None:
        return there, None
    options = {"margin": contrast.margin or 0.0, "null": contrast.null}
    way = contrast.direction
    try:
        return there, catalog.run(contrast.test, there.samples, alternative=way, **options)
    except UserError as error:
        return there._replace(gap=f"{there.gap} {error}".strip()), None


def _adjusted(
    members: Mapping[_Key, Contrast], measured: Mapping[_Key, _Measured], correction: Correction
) -> dict[_Key, tuple[float, float]]:
    """p and opposite p of the members of a family, corrected; both 1 for members without numbers
    and for claims that an interval decides."""
    pairs = []
    for key, contrast in members.items():
        there, result = measured.get(key, (Gathered(None), None))
        p = (1.0, 1.0)
        if result is not None and not there.gap and not contrast.within:
            p = [1.0 if math.isnan(x) else x for x in (result.p, result.opposite_p)]
        pairs.append(p)
    p, opposite = (adjust(each, correction).tolist() for each in zip(*pairs, strict=True))
    return dict(zip(members, zip(p, opposite, strict=True), strict=True))


def _find(
    contrast: Contrast,
    there: Gathered,
    result: TestResult | None,
    adjusted: tuple[float, float],
    rule: rules.Rule,
    detectable: Detectable | None,
) -> Finding:
    samples, gap, left_out = there
    said = f" {_LEFT_OUT} {left_out}" if left_out else ""
    if samples is None or result is None:
        return Finding(contrast, "not run", gap + said, samples)
    test = catalog.TESTS[contrast.test]
    if gap:
        why = f"Fewer units than were planned: {gap}"
        ruling = rules.Ruling("inconclusive", why, 1 - rule.each)
    else:
        ruling = rules.word(contrast, test, result, adjusted, rule)
    verdict, why, confidence, decided_by = ruling
    effect = math.nan
    if verdict == "inconclusive" and detectable is not None and not contrast.within:
        effect = detectable(contrast, samples, alpha=rule.alone)
        if not math.isnan(effect):
            null = test.null if contrast.null is None else contrast.null
            why += f" An effect of {size(effect, null):.3g} could have been seen with power 0.8."
    shown = Interval(confidence, *result.interval(confidence))
    return Finding(
        contrast,
        verdict,
        f"{why} {_said(test, result, shown, samples)}{said}{_doubt(contrast, test, samples)}",
        samples,
        result,
        math.nan if gap or contrast.within else adjusted[0],
        effect,
        interval=shown,
        difference=difference(contrast.test, samples, confidence),
        decided_by=decided_by,
        left_out=left_out,
    )


def _said(test: Test, result: TestResult, shown: Interval, samples: Samples) -> str:
    """The effect with its interval, and what the claim is about if that could be mistaken."""
    n, effect = rules.units(result), test.effect[:1].upper() + test.effect[1:]
    words = f"{effect}: nothing is known ({result.nothing}), n = {n}."
    if not math.isnan(result.effect):
        ends = "" if math.isnan(shown.low) else f" [{shown.low:.4g}, {shown.high:.4g}]"
        words = f"{effect} {result.effect:.4g}{ends}, n = {n}."
    several_arms = samples.arms is not None and len(np.unique(samples.arms)) > 1
    several_units = samples.clusters is not None or several_arms
    return f"{words} {test.about}" if test.about and several_units else words


def _doubt(contrast: Contrast, test: Test, samples: Samples) -> str:
    """A sentence if the numbers look as if an arm or the seeds had no effect.

    It changes no verdict, because a saturated metric looks the same. Truth values, and times that
    all end with the budget, are equal by nature and give no sentence.
    """
    if test.kind in ("one", "times", "pairwise") or contrast.test == "identical":
        return ""
    first, *others = samples.groups
    if first.size > 1 and any(np.array_equal(first, other) for other in others):
        return " Two groups hold the very same numbers: check that their arms differ."
    for name, group in zip(contrast.groups, samples.groups, strict=True):
        if group.size > 1 and group[0] not in (0.0, 1.0) and (group == group[0]).all():
            return f" All {group.size} units of {name} are {group[0]:.4g}: check that they differ."
    return ""


def _judge(hypothesis: Hypothesis, findings: tuple[Finding, ...]) -> Judgement:
    if hypothesis.missing:
        return Judgement(hypothesis, "not run", hypothesis.missing, findings)
    verdicts: Iterator[Verdict] = (finding.verdict for finding in findings)
    members: list[Verdict] = [rules.answer(member, verdicts) for member in hypothesis.contrasts]
    against = [rules.answer(member, verdicts) for member in hypothesis.refuting]
    parts = _parts(hypothesis, findings)
    verdict = rules.vote(members, hypothesis.combine, hypothesis.refuted_by)
    if "supported" in against:
        found = zip(hypothesis.refuting, against, strict=True)
        shown = [part for part, answer in found if answer == "supported"]
        words = (describe(part) if isinstance(part, Contrast) else part.name for part in shown)
        reason = f"What would refute it is supported: {'; '.join(words)}."
        if verdict == "supported":
            reason += " So is the claim itself; then the refutation decides."
        return Judgement(hypothesis, "refuted", reason, findings, parts, by_refutation=True)
    if isinstance(hypothesis.contrasts[0], Contrast) and len(members) == 1:
        return Judgement(hypothesis, verdict, findings[0].reason, findings, parts)
    words = [f"{parts.count(word)} {word}" for word in get_args(Verdict) if word in parts]
    reason = f"Of {len(parts)} parts, {', '.join(words)}."
    nothing = [finding.reason for finding in findings if finding.verdict == "not run"]
    left_out = dict.fromkeys(finding.left_out for finding in findings if finding.left_out)
    reason += f" Not run: {nothing[0]}" if nothing else ""
    reason += f" {_LEFT_OUT} {' '.join(left_out)}" if left_out else ""
    return Judgement(hypothesis, verdict, reason, findings, parts)


def _parts(hypothesis: Hypothesis, findings: Sequence[Finding]) -> tuple[Verdict, ...]:
    """The verdicts that are counted; if there is only one composite, those on its members."""
    parts = hypothesis.contrasts
    while len(parts) == 1 and isinstance(parts[0], Composite):
        parts = parts[0].members
    verdicts: Iterator[Verdict] = (finding.verdict for finding in findings)
    return tuple(rules.answer(part, verdicts) for part in parts)
