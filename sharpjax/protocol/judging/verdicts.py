"""From rows to verdicts: every registered hypothesis ends in one of five words.

`judging.rules` says what each word means. A family counts as it was registered: a member without
numbers has p = 1 in it, so that nothing becomes significant because something else was not run.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from sharpjax.errors import UserError
from sharpjax.protocol.canonical import canonical_json, to_dict
from sharpjax.protocol.claims import (
    Composite,
    Contrast,
    Correction,
    Diverged,
    Hypothesis,
    check,
    contrasts,
    families,
)
from sharpjax.protocol.judging import rules
from sharpjax.protocol.judging.corrections import adjust
from sharpjax.protocol.judging.rules import Verdict
from sharpjax.protocol.judging.shown import Difference, Interval, PValue, difference
from sharpjax.protocol.samples import Row, Table, gather, table
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.catalog import Test
from sharpjax.protocol.tests.result import Samples, TestResult
from sharpjax.protocol.wording import describe, size

Detectable = Callable[..., float]
_LEFT_OUT = "Left out, as it says:"
_Key = tuple[str, float, Diverged]  # a contrast as canonical JSON, and rules of its hypothesis


class Finding(NamedTuple):
    """What one contrast came to.

    Attributes:
        adjusted_p, adjusted_opposite_p: corrected within the family; NaN where not run.
        detectable: the effect that these numbers of units could have seen with power 0.8 if no
            other member of the family rejects, in units of the test's effect; NaN where no formula
            or simulation gives one.
        reason: one line for a person, always there.
        refuting: whether it is one of those which, where supported, refute the hypothesis.
        interval: of the test's effect, at the confidence at which it decides; None where not run.
        difference: of the means, first group less second, in the units of the metric, at the same
            confidence, for tests whose effect is in units of its own; else None.
        decided_by: the p that the verdict rests on: of a refuted contrast that in the opposite
            direction; None where an interval decided, or nothing.
        left_out: the units that a rule of the hypothesis left out, counted, as a sentence.
    """

    contrast: Contrast
    verdict: Verdict
    reason: str
    samples: Samples | None
    result: TestResult | None
    adjusted_p: float
    adjusted_opposite_p: float
    detectable: float
    refuting: bool = False
    interval: Interval | None = None
    difference: Difference | None = None
    decided_by: PValue | None = None
    left_out: str = ""

    @property
    def consistent(self) -> bool | None:
        """Whether the source's number lies in the interval that is shown; None without either."""
        shown = self.interval if self.difference is None else self.difference.interval
        reported = self.contrast.reported
        if reported is None or shown is None or math.isnan(shown.low + shown.high):
            return None
        return shown.low <= reported <= shown.high


class Judgement(NamedTuple):
    """What one hypothesis came to.

    Attributes:
        findings: those of its contrasts, depth first.
        parts: the verdict of each part that was counted; none where nothing was run.
    """

    hypothesis: Hypothesis
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    parts: tuple[Verdict, ...] = ()


class _Measured(NamedTuple):
    """A contrast before correction. `gap`: why it can neither be supported nor refuted."""

    contrast: Contrast
    samples: Samples | None
    result: TestResult | None
    gap: str
    left_out: str


def decide(
    hypotheses: Iterable[Hypothesis],
    rows: Iterable[Row] | Table,
    *,
    seeds: Sequence[int] | None,
    tests: Mapping[str, Test] | None = None,
    detectable: Detectable | None = None,
    seed: int = 0,
) -> tuple[Judgement, ...]:
    """Answer every hypothesis, in its order.

    Args:
        hypotheses: all that were registered.
        rows: the results table.
        seeds: the registered ones; None: nothing was registered, and those count that are there.
        tests: the tests there are; None: `protocol.tests.catalog.TESTS`.
        detectable: the effect that could have been seen, as `planning.power.detectable`; None: left
            out.
        seed: of resampling.

    Raises:
        UserError: the hypotheses contradict each other, or rows are duplicated.
    """
    hypotheses = tuple(hypotheses)
    tests = catalog.TESTS if tests is None else tests
    check(hypotheses, tests=tests, sealed=True)
    index = table(rows)
    measured: dict[_Key, _Measured] = {}
    sizes: dict[str, dict[_Key, None]] = {}  # the members of each family, in order
    for hypothesis in hypotheses:
        for contrast, family in families(hypothesis):
            key = _key(contrast, hypothesis)
            sizes.setdefault(family, {})[key] = None
            if not hypothesis.missing and key not in measured:
                measured[key] = _measure(contrast, index, seeds, tests, hypothesis, seed)
    corrections: dict[str, Correction] = {
        family: h.correction for h in hypotheses for _, family in families(h)
    }
    adjusted = {
        family: _adjusted(keys, measured, corrections[family]) for family, keys in sizes.items()
    }
    judgements = []
    for hypothesis in hypotheses:
        findings = []
        number = sum(1 for member in hypothesis.contrasts for _ in contrasts(member))
        for i, (contrast, family) in enumerate(families(hypothesis)):
            key = _key(contrast, hypothesis)
            if hypothesis.missing:
                finding = _nothing(contrast, hypothesis.missing)
            else:
                members = len(sizes[family]) if hypothesis.correction != "none" else 1
                rule = rules.Rule(hypothesis.alpha, hypothesis.correction, members)
                finding = _find(measured[key], adjusted[family][key], rule, tests, detectable)
            findings.append(finding._replace(refuting=i >= number))
        judgements.append(_judge(hypothesis, tuple(findings)))
    return tuple(judgements)


def require_all(registered: Iterable[Hypothesis], judgements: Iterable[Judgement]) -> None:
    """Refuse answers that are not one to one, and in order, with what was registered.

    Raises:
        UserError: names the first hypothesis that was left out, added, changed or moved.
    """
    asked = list(registered)
    answered = [judgement.hypothesis for judgement in judgements]
    ids, ids_answered = [h.id for h in asked], [h.id for h in answered]
    for name in (*ids, *ids_answered):
        if name not in ids:
            raise UserError(f"hypothesis {name} was not registered; what it finds is exploratory.")
        if (count := ids_answered.count(name)) != 1:
            raise UserError(f"registered hypothesis {name} has {count} verdicts; each has one.")
    for mine, theirs in zip(asked, answered, strict=True):
        if mine != theirs:
            what = "is out of order" if mine.id != theirs.id else "is not as it was registered"
            raise UserError(f"hypothesis {theirs.id} {what}.")


def _key(contrast: Contrast, hypothesis: Hypothesis) -> _Key:
    return canonical_json(to_dict(contrast)), hypothesis.alpha, hypothesis.diverged


def _measure(
    contrast: Contrast,
    index: Table,
    seeds: Sequence[int] | None,
    tests: Mapping[str, Test],
    hypothesis: Hypothesis,
    seed: int,
) -> _Measured:
    kind = tests[contrast.test].kind
    there = gather(index, contrast, seeds=seeds, kind=kind, diverged=hypothesis.diverged)
    samples, gap, left_out = there
    if samples is None:
        return _Measured(contrast, None, None, gap, left_out)
    try:
        result = catalog.run(
            contrast.test,
            samples,
            alternative=contrast.direction,
            margin=contrast.margin or 0.0,
            null=contrast.null,
            seed=seed,
            tests=tests,
        )
    except UserError as error:
        return _Measured(contrast, samples, None, f"{gap} {error}".strip(), left_out)
    return _Measured(contrast, samples, result, gap, left_out)


def _adjusted(
    keys: Iterable[_Key], measured: Mapping[_Key, _Measured], correction: Correction
) -> dict[_Key, tuple[float, float]]:
    """p and opposite p of the members of a family, corrected; 1 for those without."""
    p, opposite = (
        adjust([_p(measured.get(key), name) for key in keys], correction).tolist()
        for name in ("p", "opposite_p")
    )
    return dict(zip(keys, zip(p, opposite, strict=True), strict=True))


def _p(member: _Measured | None, name: str) -> float:
    if member is None or member.result is None or member.gap or member.contrast.within:
        return 1.0
    p = getattr(member.result, name)
    return 1.0 if math.isnan(p) else p


def _nothing(contrast: Contrast, reason: str, samples: Samples | None = None) -> Finding:
    return Finding(contrast, "not run", reason, samples, None, math.nan, math.nan, math.nan)


def _find(
    measured: _Measured,
    adjusted: tuple[float, float],
    rule: rules.Rule,
    tests: Mapping[str, Test],
    detectable: Detectable | None,
) -> Finding:
    contrast, samples, result, gap, left_out = measured
    said = f" {_LEFT_OUT} {left_out}" if left_out else ""
    if samples is None or result is None:
        return _nothing(contrast, gap + said, samples)
    test = tests[contrast.test]
    if gap:
        why = f"Fewer units than were planned: {gap}"
        ruling = rules.Ruling("inconclusive", why, 1 - rule.each)
    else:
        ruling = rules.word(contrast, test, result, adjusted, rule)
    if gap or contrast.within:
        adjusted = (math.nan, math.nan)
    verdict, why, confidence, decided_by = ruling
    effect = math.nan
    if verdict == "inconclusive" and detectable is not None and not contrast.within:
        effect = detectable(contrast, samples, alpha=rule.alone)
        if not math.isnan(effect):
            null = test.null if contrast.null is None else contrast.null
            why += f" An effect of {size(effect, null):.3g} could have been seen with power 0.8."
    shown = Interval(confidence, *result.interval(confidence))
    about = f" {test.about}" if test.about and _several(samples) else ""
    reason = f"{why} {_said(test, result, shown)}{about}{said}{_doubt(contrast, test, samples)}"
    return Finding(
        contrast,
        verdict,
        reason,
        samples,
        result,
        *adjusted,
        effect,
        interval=shown,
        difference=difference(contrast.test, samples, confidence),
        decided_by=decided_by,
        left_out=left_out,
    )


def _said(test: Test, result: TestResult, interval: Interval) -> str:
    _, low, high = interval
    words = "" if math.isnan(low) and math.isnan(high) else f" [{low:.4g}, {high:.4g}]"
    effect = test.effect[:1].upper() + test.effect[1:]
    if math.isnan(result.effect):
        return f"{effect}: nothing is known ({result.nothing}), n = {rules.units(result)}."
    return f"{effect} {result.effect:.4g}{words}, n = {rules.units(result)}."


def _several(samples: Samples) -> bool:
    """Whether seeds have several units, or a correlation runs over several arms."""
    arms = () if samples.arms is None else np.unique(samples.arms)
    return samples.clusters is not None or len(arms) > 1


def _doubt(contrast: Contrast, test: Test, samples: Samples) -> str:
    """A sentence where the numbers look as if an arm or the seeds had done nothing.

    No verdict changes: a saturated metric looks the same. Truth values, and times that all end with
    the budget, are alike by their nature.
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
    if "supported" in against:
        what = hypothesis.refuting[against.index("supported")]
        words = describe(what) if isinstance(what, Contrast) else what.name
        reason = f"What would refute it is supported: {words}."
        return Judgement(hypothesis, "refuted", reason, findings, parts)
    verdict = rules.vote(members, hypothesis.combine, hypothesis.refuted_by)
    if isinstance(hypothesis.contrasts[0], Contrast) and len(members) == 1:
        return Judgement(hypothesis, verdict, findings[0].reason, findings, parts)
    reason = _counts(parts)
    nothing = [finding.reason for finding in findings if finding.verdict == "not run"]
    left_out = dict.fromkeys(finding.left_out for finding in findings if finding.left_out)
    reason += f" Not run: {nothing[0]}" if nothing else ""
    reason += f" {_LEFT_OUT} {' '.join(left_out)}" if left_out else ""
    return Judgement(hypothesis, verdict, reason, findings, parts)


def _parts(hypothesis: Hypothesis, findings: Sequence[Finding]) -> tuple[Verdict, ...]:
    """The verdicts that are counted: where there is but one composite, those of its members."""
    parts = hypothesis.contrasts
    while len(parts) == 1 and isinstance(parts[0], Composite):
        parts = parts[0].members
    verdicts: Iterator[Verdict] = (finding.verdict for finding in findings)
    return tuple(rules.answer(part, verdicts) for part in parts)


def _counts(votes: Sequence[Verdict]) -> str:
    words = [f"{votes.count(word)} {word}" for word in get_args(Verdict) if word in votes]
    return f"Of {len(votes)} parts, {', '.join(words)}."
