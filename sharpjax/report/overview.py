"""Several runs at a glance: every hypothesis there is, and what became of it here."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Hypothesis
from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.report import markdown, sections, statements, words
from sharpjax.report.content import Content
from sharpjax.report.elements import Child, Markup, join, tag
from sharpjax.report.html import page
from sharpjax.report.tables import Cell, Column, table

TITLE = "Hypotheses and what became of them"
NOT_YET = "not yet run"


class Run(NamedTuple):
    """One run.

    Attributes:
        name: for a reader; the last part of its folder, say.
        content: of its report.
        link: where its report lies, relative to the overview; '': nowhere to link to.
    """

    name: str
    content: Content
    link: str = ""


class Answer(NamedTuple):
    """What one run says of a hypothesis."""

    run: Run
    judgement: Judgement
    registered: bool


class Entry(NamedTuple):
    hypothesis: Hypothesis
    answers: tuple[Answer, ...]


def entries(hypotheses: Sequence[Hypothesis], runs: Sequence[Run]) -> tuple[Entry, ...]:
    """Every hypothesis in its order, then those that only the runs have.

    Raises:
        UserError: two hypotheses, or two runs, have one name.
    """
    for what, names in (
        ("hypotheses", [h.id for h in hypotheses]),
        ("runs", [run.name for run in runs]),
    ):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"report: two {what} are named '{twice}'.")
    found: dict[str, tuple[Hypothesis, list[Answer]]] = {h.id: (h, []) for h in hypotheses}
    for run in runs:
        content = run.content
        for judgements, registered in (
            (content.judgements, content.is_registered),
            (content.exploratory, False),
        ):
            for judgement in judgements:
                asked = judgement.hypothesis
                _, answers = found.setdefault(asked.id, (asked, []))
                answers.append(Answer(run, judgement, registered))
    return tuple(Entry(hypothesis, tuple(answers)) for hypothesis, answers in found.values())


def word(entry: Entry) -> str:
    """The verdict where the runs agree on one."""
    verdicts = {answer.judgement.verdict for answer in _counted(entry)}
    if not verdicts:
        return NOT_YET
    return verdicts.pop() if len(verdicts) == 1 else "the runs differ"


def is_exploratory(entry: Entry) -> bool:
    """Whether the word rests on nothing that was registered."""
    counted = _counted(entry)
    return bool(counted) and not any(answer.registered for answer in counted)


def _counted(entry: Entry) -> tuple[Answer, ...]:
    """Registered answers count before exploratory ones, and answers before 'not run'."""
    given = tuple(a for a in entry.answers if a.judgement.verdict != "not run")
    return tuple(a for a in given if a.registered) or given or entry.answers


def totals(found: Iterable[Entry]) -> str:
    """How many of the hypotheses ended in which way."""
    kinds = [word(entry) for entry in found]
    order = (*words.VERDICTS, "the runs differ", NOT_YET)
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in order if kind in kinds)
    return f"{words.many(len(kinds), 'hypothesis')}: {counted}"


def render_html(hypotheses: Sequence[Hypothesis], runs: Sequence[Run]) -> str:
    """The overview as one self-contained page."""
    found = entries(hypotheses, runs)
    body = [
        join((tag("h2", name), _entries_table(group, f"group-{i + 1}")))
        for i, (name, group) in enumerate(_groups(found))
    ]
    main = tag("main", tag("p", totals(found)), _runs_section(runs), *body, id="main")
    header = tag("header", tag("p", "Overview", class_="kind"), tag("h1", TITLE))
    return page(TITLE, join((header, main)))


def render_markdown(hypotheses: Sequence[Hypothesis], runs: Sequence[Run]) -> str:
    """The same as Markdown."""
    text, found = markdown.text, entries(hypotheses, runs)
    blocks = [f"# {TITLE}", f"{totals(found)}.", "## Runs"]
    rows = [[_markdown_link(run), *map(text, _run_line(run))] for run in runs]
    blocks.append(markdown.table(("Run", *_RUN), rows) if runs else "None.")
    for name, group in _groups(found):
        rows = []
        for entry in group:
            asked = entry.hypothesis
            kind = f"**{word(entry)}**{' (exploratory)' if is_exploratory(entry) else ''}"
            cells = [text(asked.id, 40), kind, text(asked.claim), asked.status]
            answers = [
                f"{_markdown_link(a.run)}: {a.judgement.verdict}"
                f"{'' if a.registered else ' (exploratory)'} {text(_number(a.judgement))}".strip()
                for a in entry.answers
            ]
            missing = text(f"still missing: {asked.missing}") if asked.missing else ""
            rows.append([*cells, "; ".join(answers) or missing])
        columns = ("Id", "Verdict", "Claim", "Certainty", "By run")
        blocks += [f"## {text(name)}", markdown.table(columns, rows)]
    return "\n\n".join(blocks) + "\n"


_RUN = ("Config", "Sealed", "Seal", "Verdicts", "Warnings")


def _run_line(run: Run) -> list[str]:
    sealed = run.content.registration
    when = "unregistered: exploratory" if sealed is None else words.moment(sealed.time)
    return [
        run.content.title,
        when,
        "" if sealed is None else sealed.seal[:12],
        words.counts(j.verdict for j in run.content.judgements),
        "; ".join(run.content.warnings),
    ]


def _runs_section(runs: Sequence[Run]) -> Markup:
    columns = (Column("Run", "name"), *(Column(name, "words") for name in _RUN))
    rows = [[Cell(_link(run), run.name), *map(words.clean, _run_line(run))] for run in runs]
    listed: Child = table(words.many(len(runs), "run"), columns, rows, ident="runs-table")
    return join((tag("h2", "Runs"), listed if runs else tag("p", "None.")))


def _groups(found: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Those of each paper, `H1.2` being of the first, and so `H1.2 some-cells`; then all others."""
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        match = re.fullmatch(r"H(\d+)\.\d+( .+)?", entry.hypothesis.id)
        groups.setdefault(f"Paper {match[1]}" if match else "Of the studies", []).append(entry)
    yield from groups.items()


def _entries_table(group: Sequence[Entry], ident: str) -> Markup:
    columns = (
        Column("Id", "id"), Column("Verdict"), Column("Claim", "claim"), Column("Certainty"),
        Column("By run", "words"),
    )  # fmt: skip
    rows = []
    for entry in group:
        asked, kind = entry.hypothesis, word(entry)
        badge = (
            sections.verdict(kind, exploratory=is_exploratory(entry))
            if kind in words.VERDICTS
            else tag("span", kind, class_="pending")
        )
        rows.append(
            [
                words.clean(asked.id, 40),
                Cell(badge, kind),
                words.clean(asked.claim),
                asked.status,
                _answers(entry),
            ]
        )
    return table(totals(group), columns, rows, ident=ident)


def _answers(entry: Entry) -> Child:
    if not entry.answers:
        missing = words.clean(entry.hypothesis.missing)
        return tag("span", f"still missing: {missing}", class_="minor") if missing else None
    lines = [
        tag(
            "div", _link(answer.run), ": ",
            sections.verdict(answer.judgement.verdict, exploratory=not answer.registered),
            " ", _number(answer.judgement),
        )
        for answer in entry.answers
    ]  # fmt: skip
    return join(lines)


def _number(judgement: Judgement) -> str:
    line = statements.summary(judgement)
    return "" if line.estimate == words.MISSING else line.estimate


def _link(run: Run) -> Child:
    name = words.clean(run.name, 80)
    return tag("a", name, href=_address(run)) if run.link else name


def _markdown_link(run: Run) -> str:
    name = markdown.text(run.name, 80)
    return f"[{name}]({_address(run)})" if run.link else name


def _address(run: Run) -> str:
    """A path: whatever the name of a folder, no scheme and no other host.

    >>> _address(Run("a", None, "javascript:alert(1)")), _address(Run("a", None, "//host/x"))
    ('javascript%3Aalert%281%29', 'host/x')
    """
    return quote(run.link.lstrip("/") if run.link.startswith("//") else run.link, safe="/.-_~")
