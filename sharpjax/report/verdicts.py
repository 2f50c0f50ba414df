"""Parts of the report about hypotheses: the table of verdicts, and the evidence for each."""

import math
from collections.abc import Callable, Iterator, Sequence

from sharpjax.protocol.claims import Hypothesis
from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.protocol.wording import size
from sharpjax.report import blocks, evidence, marks, words
from sharpjax.report.blocks import Block, Cell, Column, Span, Text
from sharpjax.report.evidence import Evidence

# More contrasts than this are folded below their table.
_MOST_OPEN = 3
# With more contrasts than this only their table is shown: drawings of all made pages of 40 MB.
_MOST_SHOWN = 24
_MOST_DRAWN = 40
_MOST_VALUES = 200


def verdict(word: str, tag: str = "") -> Text:
    """The verdict as a badge, with its tag if it has one: `Content.tag`."""
    badge = Span(word, "verdict" if word in words.VERDICTS else "strong")
    return (badge, " ", Span(tag, "tag")) if tag else badge


_NUMBERS = (
    Column("Estimate [interval]", "estimate"), Column("In the source", "words"),
    Column("p", "number"), Column("n", "number"),
)  # fmt: skip


_FURTHER = (
    Column("Smallest p", "number"), Column("Detectable with power 0.8", "number"),
    Column("Test", "words"),
)  # fmt: skip
_POINTS = "The values of each seed are in results.jsonl."


def table(
    judgements: Sequence[tuple[str, Judgement]], caption: str, tag: Callable[[Judgement], str]
) -> blocks.Table:
    """A line for every hypothesis, with a link to its section."""
    columns = (Column("Id", "id"), Column("Verdict"), Column("Claim", "claim"), *_NUMBERS,
               Column("Why", "words"))  # fmt: skip
    rows = []
    for ident, judgement in judgements:
        asked, e = judgement.hypothesis, _only(judgement)
        rows.append(
            [
                Cell(Span(asked.id, "link", f"#{ident}"), asked.id),
                Cell(verdict(judgement.verdict, tag(judgement)), judgement.verdict),
                asked.claim,
                *(_numbers(e) if e else (_parts(judgement), "", Cell("", math.nan), "")),
                judgement.reason
                if judgement.verdict == "not run" or judgement.by_refutation
                else "",
            ]
        )
    return blocks.Table(caption, columns, rows, sortable=True).compact()


def _numbers(e: Evidence) -> tuple[Cell, str, Cell, str]:
    """The cells of one contrast in the columns `_NUMBERS`."""
    p, number = e.p
    if e.drawn is None:
        return Cell("", math.nan), e.reported, Cell(p, number), e.units
    own, others = e.drawn, e.effect
    if e.finding.difference is not None and e.difference is not None:
        own, others = e.difference, f"difference of means; {e.effect} {e.estimate}"
    text = (words.estimate(*own[:3]), " ", Span(others, "minor"))
    return Cell(text, own.effect), e.reported, Cell(p, number), e.units


def _further(e: Evidence) -> tuple[Cell, Cell, str]:
    """The cells of one contrast in the columns `_FURTHER`."""
    least = e.finding.result.min_attainable_p if e.finding.result else math.nan
    seen = math.nan
    if e.drawn and not math.isnan(e.finding.detectable):
        seen = size(e.finding.detectable, e.drawn.null)
    first, second = (Cell("" if math.isnan(x) else words.number(x, 3), x) for x in (least, seen))
    return first, second, e.test


def _parts(judgement: Judgement) -> Cell:
    parts = judgement.parts or [f.verdict for f in judgement.findings if not f.refuting]
    text = f"{words.many(len(parts), 'part')}: {words.counts(parts)}" if parts else ""
    return Cell(Span(text, "minor"), math.nan)


def estimate(judgement: Judgement) -> str:
    """The estimate of its only contrast; '' if it has several, or it was not measured."""
    e = _only(judgement)
    return e.estimate if e and e.drawn else ""


def _only(judgement: Judgement) -> Evidence | None:
    """The evidence of its only contrast; None if it has several or none."""
    findings = [finding for finding in judgement.findings if not finding.refuting]
    return evidence.evidence(findings[0]) if len(findings) == 1 else None


def section(
    judgement: Judgement,
    ident: str,
    *,
    tag: str = "",
    planned: str = "",
    pictures: Sequence[blocks.Picture] = (),
) -> blocks.Section:
    """The section of one hypothesis: claim, verdict, all its evidence, and pictures."""
    asked, found = judgement.hypothesis, evidence.of(judgement)
    several, many = len(found) > 1, len(found) > _MOST_SHOWN
    contrasts: list[Block] = [
        _contrast(e, asked, several=several, tag=tag)
        for e in found
        if not many and (not several or e.groups)
    ]
    if len(contrasts) > _MOST_OPEN:
        summary = f"Estimates and points of {len(contrasts)} contrasts"
        contrasts = [blocks.Folded(summary, contrasts)]
    inside = (
        blocks.Paragraph((verdict(judgement.verdict, tag), f": {judgement.reason}")),
        blocks.Facts([*evidence.asked(asked, found), ("Planned", planned)]),
        _contrasts(found, whole=many) if several else None,
        blocks.Paragraph(_POINTS, "note") if many else None,
        *contrasts,
        blocks.Group(pictures, "pictures"),
    )
    return blocks.Section(f"{asked.id} {asked.claim}", inside, ident, "hypothesis")


def forests(judgements: Sequence[Judgement]) -> Block | None:
    """Forest plots of all measured contrasts, of hypotheses with at most `_MOST_SHOWN`. Each effect
    has a plot; effects in the units of a metric have one for each metric."""
    panels: dict[str, list[marks.Line]] = {}
    left = 0
    for judgement in judgements:
        found = evidence.of(judgement)
        if len(found) > _MOST_SHOWN:
            left += 1
            continue
        for e in found:
            if e.drawn is not None and math.isfinite(e.drawn.effect):
                of = e.effect if e.is_standardised else f"{e.effect} of {e.quantity}"
                label = f"{judgement.hypothesis.id} {e.comparison}"
                panels.setdefault(of, []).append(marks.Line(e.drawn, label, e.finding.verdict))
    count = sum(map(len, panels.values()))
    if count < 2:
        return None
    drawn = blocks.Group([_forest(name, lines) for name, lines in panels.items()], "drawings")
    title = f"All {count} contrasts, by effect"
    if left:
        title = (
            f"{count} contrasts, by effect; {words.many(left, 'hypothesis')} with "
            f"more than {_MOST_SHOWN} not drawn"
        )
    return drawn if count <= _MOST_DRAWN and not left else blocks.Folded(title, [drawn])


def _forest(name: str, lines: Sequence[marks.Line]) -> blocks.Drawing:
    caption = name[:1].upper() + name[1:]
    if any(not math.isnan(line.interval.low) for line in lines):
        caption += " with its interval" if len(lines) == 1 else " with intervals"
    if any(line.interval.margin for line in lines):
        caption += "; shaded: smaller than the smallest effect of interest"
    return blocks.Drawing(caption, marks.forest(lines, title=name), marks.characters(lines))


def _contrasts(found: Sequence[Evidence], *, whole: bool) -> blocks.Table:
    """A table with a line for each contrast; `whole` adds the columns `_FURTHER`."""
    columns = (
        Column("Contrast", "name"),
        Column("Verdict"),
        Column("Quantity", "words"),
        *_NUMBERS,
        *(_FURTHER if whole else ()),
    )
    rows = [
        [
            e.title, Cell(verdict(e.finding.verdict), e.finding.verdict), e.quantity, *_numbers(e),
            *(_further(e) if whole else ()),
        ]
        for e in found
    ]  # fmt: skip
    shown = blocks.Table("Its contrasts", columns, rows, sortable=True)
    if len({e.quantity for e in found}) > 1:
        return shown.compact()
    return shown.compact("Quantity")._replace(caption=f"Its contrasts, of {found[0].quantity}")


def _contrast(e: Evidence, asked: Hypothesis, *, several: bool, tag: str) -> Block:
    finding = e.finding
    inside = (
        blocks.Paragraph(
            (verdict(finding.verdict, tag), f": {finding.reason}") if several else Span(e.title)
        ),
        blocks.Paragraph(f"{e.quantity}; {e.test}", "note"),
        blocks.Group(list(_drawings(e)), "drawings"),
        blocks.Facts(list(evidence.numbers(e, asked)), "numbers"),
        _values(e),
    )
    return blocks.Section(e.title, inside) if several else blocks.Group(inside, "contrast")


def _drawings(e: Evidence) -> Iterator[blocks.Drawing]:
    if e.drawn is not None and math.isfinite(e.drawn.effect):
        yield _forest(e.effect, [marks.Line(e.drawn)])
    if not e.groups:
        return
    title = f"Points: {e.title}"
    if e.kind == "correlation" and len(e.groups) == 2:
        caption = f"Each {e.unit} a point"
        if (every := marks.one_in(len(e.groups[0][1]))) > 1:
            caption += f"; one in {every} is drawn"
        yield blocks.Drawing(caption, marks.scatter(*e.groups, title=title))
        return
    paired = e.kind in ("paired", "many-paired")
    seen = e.finding.samples.seen if e.finding.samples else None
    if max(len(values) for _, values in e.groups) > marks.MOST_POINTS:
        caption = "Share of ones, or range, quartiles and median; bar: mean"
    else:
        lines = f"; lines join the same {e.unit}" if paired else ""
        hollow = "; hollow: the event was not seen by then" if seen is not None else ""
        caption = f"Each {e.unit} a point{lines}{hollow}; bar: mean"
    drawn = marks.points(e.groups, title=title, paired=paired, seen=seen)
    yield blocks.Drawing(caption, drawn)


def _values(e: Evidence) -> Block | None:
    """The values of each group as numbers, folded."""
    pairs = [
        (f"Points of {name}", ", ".join(words.number(float(v), 6) for v in values))
        if len(values) <= _MOST_VALUES
        else (f"Points of {name}", marks.in_words(name, values))
        for name, values in e.groups
    ]
    return blocks.Folded("The points as numbers", [blocks.Facts(pairs)]) if pairs else None
