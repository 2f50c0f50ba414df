"""Verdicts and the evidence for each, as HTML."""

import math
from collections.abc import Iterator, Sequence

from sharpjax.protocol.claims import Hypothesis
from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.report import marks, statements, words
from sharpjax.report.axis import fit
from sharpjax.report.elements import Markup, breakable, join, tag
from sharpjax.report.evidence import Evidence, evidence
from sharpjax.report.tables import Cell, Column, facts, table

# More than this many contrasts are folded away below their table.
_MOST_OPEN = 3
_MOST_VALUES = 200
_SIGNS = {
    "supported": "M2.5 8.5 6.5 12.5 13.5 3.5",
    "refuted": "M3.5 3.5 12.5 12.5M12.5 3.5 3.5 12.5",
    "equivalent": "M2.5 5.5H13.5M2.5 10.5H13.5",
    "inconclusive": "M4.7 5.2A3.4 3.2 0 1 1 9.6 7.9Q8 8.8 8 10.2M8 13.6V13.7",
    "not run": "M3 13 13 3M13.5 8A5.5 5.5 0 1 1 2.5 8 5.5 5.5 0 0 1 13.5 8",
}


def verdict(word: str, *, exploratory: bool = False) -> Markup:
    """The word with its sign, and whether it was asked for before the data were seen."""
    sign = tag("svg", tag("path", d=_SIGNS[word]), viewBox="0 0 16 16", aria_hidden="true")
    badge = tag("span", sign, word, class_=f"verdict {word.replace(' ', '-')}")
    return join((badge, " ", tag("span", "exploratory", class_="tag"))) if exploratory else badge


def anchor(prefix: str, index: int) -> str:
    """Ids are numbered, because those of hypotheses may be anything."""
    return f"{prefix}{index + 1}"


def verdict_table(
    judgements: Sequence[Judgement], caption: str, *, prefix: str, exploratory: bool
) -> Markup:
    """One line for every hypothesis, linked to its section."""
    columns = (
        Column("Id", "id"), Column("Verdict"), Column("Claim", "claim"),
        Column("Estimate [interval]", "number"), Column("adjusted p", "number"),
        Column("n", "words"), Column("Certainty"),
    )  # fmt: skip
    rows = []
    for i, judgement in enumerate(judgements):
        hypothesis = judgement.hypothesis
        link = tag("a", words.clean(hypothesis.id, 40), href=f"#{anchor(prefix, i)}")
        row = [
            Cell(link, words.clean(hypothesis.id, 40)),
            Cell(verdict(judgement.verdict, exploratory=exploratory), judgement.verdict),
            words.clean(hypothesis.claim),
        ]
        line = statements.summary(judgement)
        row += [Cell(line.estimate, line.effect), _p(line.adjusted_p), line.units]
        rows.append([*row, hypothesis.status])
    return table(caption, columns, rows, ident=f"{prefix}-verdicts")


def hypothesis(judgement: Judgement, *, ident: str, exploratory: bool) -> Markup:
    """The section of one hypothesis: its claim, the verdict and all that it rests on."""
    asked = judgement.hypothesis
    found = [evidence(finding) for finding in judgement.findings]
    several = len(found) > 1
    blocks = [
        _contrast(e, asked, name, ident=f"{ident}-{i + 1}", heading=several, tagged=exploratory)
        for i, (e, name) in enumerate(zip(found, statements.names(asked, len(found)), strict=True))
        if not several or e.groups
    ]
    if len(blocks) > _MOST_OPEN:
        summary = f"Estimates and points of {len(blocks)} contrasts"
        blocks = [tag("details", tag("summary", summary), *blocks)]
    title = f"{words.clean(asked.id, 40)} {words.clean(asked.claim)}"
    return tag(
        "section",
        tag("h3", title, id=ident),
        tag(
            "p", verdict(judgement.verdict, exploratory=exploratory), ": ",
            words.clean(judgement.reason, 600),
        ),
        facts(list(statements.asked(asked, found))),
        _contrast_table(found, asked, ident) if several else None,
        *blocks,
        class_="hypothesis",
        aria_labelledby=ident,
    )  # fmt: skip


def _contrast_table(found: Sequence[Evidence], asked: Hypothesis, ident: str) -> Markup:
    effects, quantities = {e.effect: None for e in found}, {e.quantity: None for e in found}
    axes = {
        effect: fit((v for e in found if e.effect == effect and e.drawn for v in e.drawn.ends()),
                    4, 124)
        for effect in effects
    }  # fmt: skip
    columns = [
        Column("Contrast", "name"), Column("Verdict"), Column("Quantity", "words"),
        Column("Estimate [interval]", "number"), Column("Drawn", "drawn"), Column("p", "number"),
        Column("adjusted p", "number"), Column("n", "number"),
    ]  # fmt: skip
    rows = []
    for e, name in zip(found, statements.names(asked, len(found)), strict=True):
        size = "nan" if e.drawn is None else e.drawn.effect
        small = None if e.drawn is None else marks.small_interval(e.drawn, axes[e.effect])
        result, decides = e.finding.result, not e.finding.contrast.within
        p = _p(result.p) if result is not None and decides else Cell(words.MISSING, "nan")
        rows.append(
            [
                f"{name}: {e.comparison}" if name else e.comparison,
                Cell(verdict(e.finding.verdict), e.finding.verdict),
                Cell(breakable(e.quantity), e.quantity),
                Cell(e.estimate, size),
                Cell(small, size),
                p,
                _p(e.finding.adjusted_p),
                Cell(e.units, min(e.finding.result.n, default=0) if e.finding.result else 0),
            ]
        )
    caption = f"Its contrasts. Estimate: {'; '.join(effects)}"
    if len(quantities) == 1:
        caption += f", of {next(iter(quantities))}"
        columns, rows = columns[:2] + columns[3:], [row[:2] + row[3:] for row in rows]
    return table(caption, columns, rows, ident=f"{ident}-contrasts")


def _contrast(
    e: Evidence, asked: Hypothesis, name: str, *, ident: str, heading: bool, tagged: bool
) -> Markup:
    finding, title = e.finding, f"{name}: {e.comparison}" if name else e.comparison
    head = None
    if heading:
        head = join(
            (
                tag("h4", breakable(title)),
                tag("p", verdict(finding.verdict, exploratory=tagged), ": ",
                    words.clean(finding.reason, 600)),
            )
        )  # fmt: skip
    else:
        head = tag("p", tag("b", breakable(title)), class_="title")
    return tag(
        "div",
        head,
        tag("p", breakable(f"{e.quantity}; {e.test}"), class_="note"),
        tag("div", *_drawings(e, asked, title, ident), class_="drawings")
        if e.groups or e.drawn
        else None,
        facts(list(statements.numbers(e, asked)), "numbers"),
        _values(e, ident),
        class_="contrast",
    )


def _drawings(e: Evidence, asked: Hypothesis, title: str, ident: str) -> Iterator[Markup]:
    if e.drawn is not None:
        caption = e.effect[:1].upper() + e.effect[1:]
        if not math.isnan(e.drawn.low):
            caption += f" with its {statements.confidence(asked)} interval"
        if e.drawn.margin:
            caption += "; shaded: smaller than the smallest effect of interest"
        drawing = marks.interval(e.drawn, title=f"{e.effect}: {title}", ident=f"{ident}-i")
        yield tag("figure", tag("figcaption", caption), drawing)
    if not e.groups:
        return
    if e.kind == "correlation" and len(e.groups) == 2:
        caption = f"Each {statements.unit(e)} a point"
        if (every := marks.one_in(len(e.groups[0][1]))) > 1:
            caption += f"; one in {every} is drawn"
        drawing = marks.scatter(*e.groups, title=f"Points: {title}", ident=f"{ident}-p")
    else:
        paired = e.kind in ("paired", "many-paired")
        caption = statements.points_caption(e, paired)
        drawing = marks.points(
            e.groups, title=f"Points: {title}", ident=f"{ident}-p", paired=paired, seen=e.seen
        )
    yield tag("figure", tag("figcaption", caption), drawing)


def _values(e: Evidence, ident: str) -> Markup | None:
    """The raw numbers, for those who want them exactly."""
    if not e.groups or max(len(values) for _, values in e.groups) > _MOST_VALUES:
        return None
    length = max(len(values) for _, values in e.groups)
    columns = (Column("", None), *(Column(words.clean(n, 60), "number") for n, _ in e.groups))
    rows = [
        [
            str(i + 1),
            *(
                Cell(words.number(float(v[i]), 6), float(v[i])) if i < len(v) else Cell("", "nan")
                for _, v in e.groups
            ),
        ]
        for i in range(length)
    ]
    columns = (Column("No.", "number"), *columns[1:])
    numbers = table("Raw values", columns, rows, ident=f"{ident}-values")
    return tag("details", tag("summary", "The points as numbers"), numbers, class_="values")


def _p(p: float) -> Cell:
    return Cell(words.p_value(p), p)
