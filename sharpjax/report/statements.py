"""What hypotheses and their findings say, as pairs of texts: the same on every page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, quantities
from sharpjax.protocol.judging.verdicts import Finding, Judgement
from sharpjax.protocol.seals.registration import Registration
from sharpjax.protocol.summary import mean_and_standard_error
from sharpjax.protocol.wording import size
from sharpjax.report import marks, words
from sharpjax.report.evidence import Evidence, evidence, least_p_too_large

_MOST_NAMED = 3
_CORRECTIONS = {"holm": "Holm", "bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}


PLANNED = (
    *("Hypothesis", "Contrast", "n", "Level", "Smallest p possible", "Power at 1 sd"),
    *("Detectable with power 0.8, in sd", "Warning"),
)


class Summary(NamedTuple):
    """A hypothesis in one line of a table; `effect` is NaN where there is no single estimate."""

    effect: float
    estimate: str
    adjusted_p: float
    units: str


def summary(judgement: Judgement) -> Summary:
    """Of its one contrast, or of the verdicts of several."""
    findings = [finding for finding in judgement.findings if not finding.refuting]
    if len(findings) == 1:
        found = evidence(findings[0])
        effect = math.nan if found.drawn is None else found.drawn.effect
        return Summary(effect, found.estimate, findings[0].adjusted_p, found.units)
    of = words.counts(finding.verdict for finding in findings)
    several = f"{words.many(len(findings), 'contrast')}: {of}" if of else ""
    return Summary(math.nan, words.MISSING, math.nan, several)


def planned(registration: Registration | None) -> list[list[str | float]]:
    """The rows of `protocol.planning.power.table` as they were sealed, in the columns `PLANNED`."""
    rows = registration.power if registration else ()
    return [
        [
            str(row.get("hypothesis") or ""),
            str(row.get("contrast") or ""),
            ", ".join(map(str, row["n"])) if isinstance(row.get("n"), list) else "",
            *map(_known, (row.get("alpha"), row.get("smallest_p"))),
            _known(power.get("1.0") if isinstance(power := row.get("power"), Mapping) else None),
            _known(row.get("detectable")),
            str(row.get("warning") or ""),
        ]
        for row in rows
        if isinstance(row, Mapping)
    ]


def _known(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def asked(hypothesis: Hypothesis, found: Sequence[Evidence]) -> Iterator[tuple[str, str]]:
    """What the hypothesis says of itself, and the source's number beside ours."""
    if len(hypothesis.contrasts) > 1:
        whole = Composite(hypothesis.contrasts, hypothesis.combine, hypothesis.refuted_by)
        yield "Of its parts", words.rule(whole)
    for part in hypothesis.contrasts:
        if isinstance(part, Composite):
            yield words.clean(part.name or "Of its contrasts", 60), words.rule(part)
    if hypothesis.correction != "none":
        family = f", family {words.clean(hypothesis.family, 60)}" if hypothesis.family else ""
        yield (
            "Level",
            f"{hypothesis.alpha:g}, corrected by {_CORRECTIONS[hypothesis.correction]}{family}",
        )
    else:
        yield "Level", f"{hypothesis.alpha:g}, not corrected"
    yield "Refuted if", words.clean(hypothesis.refuted_if, 600)
    if hypothesis.reference:
        yield "In the source", words.clean(hypothesis.reference, 600)
        ours = [
            f"{e.comparison}: {e.estimate} ({e.effect})" for e in found[:_MOST_NAMED] if e.drawn
        ]
        more = f"; and {len(found) - len(ours)} more below" if len(found) > len(ours) else ""
        yield "Here", "; ".join(ours) + more if ours else "not measured"
    yield "Certainty", f"{hypothesis.status}: {words.CERTAINTY[hypothesis.status]}"
    yield "Left open by it", words.clean(hypothesis.uncertain, 600)
    yield "Source", words.clean(hypothesis.source)
    yield "Still missing", words.clean(hypothesis.missing, 600)


def names(hypothesis: Hypothesis, count: int) -> list[str]:
    """For each contrast, depth first, the composites that it belongs to; `refuting` last."""

    def below(members: Sequence[Contrast | Composite], name: str) -> Iterator[str]:
        for member in members:
            if isinstance(member, Composite):
                yield from below(member.members, " · ".join(filter(None, (name, member.name))))
            else:
                yield name

    found = [*below(hypothesis.contrasts, ""), *below(hypothesis.refuting, "would refute")]
    return found if len(found) == count else [""] * count


def numbers(e: Evidence, hypothesis: Hypothesis) -> Iterator[tuple[str, str]]:
    """Estimate, sizes, p values and what could have been seen; nothing where no test was made."""
    result, finding = e.finding.result, e.finding
    if result is None:
        return
    known = e.drawn is not None and not math.isnan(e.drawn.low)
    interval = f" [{confidence(hypothesis)} interval]" if known else ""
    yield e.effect[:1].upper() + e.effect[1:] + interval, e.estimate
    if 1 < len(e.groups) <= 4 and e.kind not in ("correlation", "pairwise"):
        yield "Means ± standard errors", "; ".join(_mean(name, x) for name, x in e.groups)
    yield "n", e.units
    if not finding.contrast.within:  # which is decided by an interval
        yield from _p_values(finding, hypothesis)
    if not math.isnan(finding.detectable):
        null = 0.0 if e.drawn is None else e.drawn.null
        yield "Detectable with power 0.8", words.number(size(finding.detectable, null), 3)
    if finding.contrast.margin:
        yield "Smallest effect of interest", words.number(finding.contrast.margin)


def confidence(hypothesis: Hypothesis) -> str:
    """Of the intervals that are shown; those that decide in a corrected family are wider."""
    return f"{100 * (1 - hypothesis.alpha):g} %"


def _p_values(finding: Finding, hypothesis: Hypothesis) -> Iterator[tuple[str, str]]:
    result = finding.result
    assert result is not None
    yield "p", words.p_value(result.p)
    if hypothesis.correction != "none":
        yield (
            f"p adjusted ({_CORRECTIONS[hypothesis.correction]})",
            words.p_value(finding.adjusted_p),
        )
    least = words.p_value(result.min_attainable_p) if result.min_attainable_p else "no floor"
    if least_p_too_large(finding, hypothesis.alpha):
        least += f", above {hypothesis.alpha:g}: could not be significant"
    yield "Smallest p possible", least


def _mean(name: str, values: np.ndarray) -> str:
    mean, error, _ = mean_and_standard_error(values[np.isfinite(values)])
    return f"{words.clean(name, 60)} {words.mean_and_error(mean, error)}"


def unit(e: Evidence) -> str:
    """What one value is of."""
    if e.kind == "pairwise":
        return "pair of models"
    over = quantities(e.finding.contrast)[0].over
    return words.clean(" and ".join(over) or "value", 60)


def points_caption(e: Evidence, paired: bool) -> str:
    """How to read the drawing of the points."""
    largest = max(len(values) for _, values in e.groups)
    if largest > marks.MOST_POINTS:
        return "Share of ones, or range, quartiles and median; bar: mean"
    lines = "; lines join the same " + unit(e) if paired else ""
    hollow = "; hollow: the event was not seen by then" if e.seen is not None else ""
    return f"Each {unit(e)} a point{lines}{hollow}; bar: mean"
