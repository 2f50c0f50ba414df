"""An overview of several runs: every hypothesis, and what the runs say of it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Hypothesis
from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.report import blocks, html, markdown, record, verdicts, words
from sharpjax.report.blocks import Cell, Column, Paragraph, Section, Span, Text
from sharpjax.report.content import EXPLORATORY, Content

TITLE = "Runs, and what became of every hypothesis"
NOT_YET = "not yet run"
_COUNTED = (
    "A claim that is asked of each net, or of each column of a table, counts once for each, and "
    "once for all together."
)
_NOT_RUN = "not run"
_DIGEST = re.compile(r" \([0-9a-f]{12,64}\)")  # which differs from run to run; the reports have it


class Run(NamedTuple):
    """One run, or a folder that cannot be read or whose run is not finished."""

    name: str  # such as the last part of its folder
    content: Content | None  # None: it is not listed
    link: str = ""  # path of its report, relative to the page; '': no link
    rows: str = ""  # path of its results, likewise
    problem: str = ""  # why it is not listed


class Answer(NamedTuple):
    """What one run says of a hypothesis."""

    run: Run
    judgement: Judgement
    tag: str  # `Content.tag`


class Entry(NamedTuple):
    hypothesis: Hypothesis
    answers: tuple[Answer, ...]
    study: str = ""  # whose own it is; '': it is one of the papers'


def entries(hypotheses: Sequence[Hypothesis], runs: Sequence[Run]) -> tuple[Entry, ...]:
    """An entry for each of `hypotheses` in their order, then for those that only runs have.

    The latter are told apart by study and id: two studies may both ask a C.1.

    Raises:
        UserError: two hypotheses, or two runs, have the same name.
    """
    for what, names in (
        ("hypotheses", [h.id for h in hypotheses]),
        ("runs", [run.name for run in runs]),
    ):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"report: two {what} are named '{twice}'.")
    papers = {h.id for h in hypotheses}
    found: dict[tuple[str, str], Entry] = {("", h.id): Entry(h, ()) for h in hypotheses}
    for run in runs:
        if (content := run.content) is None:
            continue
        tagged = [(judgement, content.tag(judgement)) for judgement in content.judgements]
        tagged += [(judgement, EXPLORATORY) for judgement in content.exploratory]
        for judgement, tag in tagged:
            asked = judgement.hypothesis
            study = "" if asked.id in papers else str(content.config.get("study", ""))
            entry = found.get((study, asked.id), Entry(asked, (), study))
            answers = (*entry.answers, Answer(run, judgement, tag))
            found[study, asked.id] = entry._replace(answers=answers)
    return tuple(found.values())


def word(entry: Entry) -> str:
    """The verdict, if the runs agree on one."""
    verdicts = {answer.judgement.verdict for answer in _counted(entry)}
    if not verdicts:
        return NOT_YET
    return verdicts.pop() if len(verdicts) == 1 else "the runs differ"


def tag_of(entry: Entry) -> str:
    """The tags of the answers behind the word; '' if for one of them no data had been seen."""
    tags = [answer.tag for answer in _counted(entry)]
    return "" if "" in tags else ", ".join(dict.fromkeys(tags))


def _counted(entry: Entry) -> tuple[Answer, ...]:
    """Registered answers count before exploratory ones, and answers before 'not run'."""
    given = tuple(a for a in entry.answers if a.judgement.verdict != _NOT_RUN)
    return tuple(a for a in given if a.tag != EXPLORATORY) or given or entry.answers


def totals(found: Iterable[Entry]) -> str:
    """How many hypotheses have each verdict."""
    kinds = [word(entry) for entry in found]
    order = (*words.VERDICTS, "the runs differ", NOT_YET)
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in order if kind in kinds)
    return f"{words.many(len(kinds), 'hypothesis')}: {counted}"


def pages(hypotheses: Sequence[Hypothesis], runs: Sequence[Run]) -> tuple[bytes, bytes]:
    """The page as HTML and as Markdown."""
    page = describe(hypotheses, runs)
    return html.render(page).encode(), markdown.render(page).encode()


def describe(hypotheses: Sequence[Hypothesis], runs: Sequence[Run]) -> blocks.Page:
    """The page: the runs, newest first, then what they say of each hypothesis.

    Raises:
        UserError: two hypotheses, or two runs, have the same name.
    """
    found = entries(hypotheses, runs)
    sections = [Section("Runs", list(_runs(runs)), "runs")]
    for i, (name, group) in enumerate(_groups(found), 1):
        sections.append(Section(name, [_table(group)], f"group-{i}"))
    first = [Paragraph(f"{totals(found)}."), Paragraph(_COUNTED, "note")]
    return blocks.Page(TITLE, "Overview", first, sections)


def _runs(runs: Sequence[Run]) -> Iterator[blocks.Block]:
    columns = (
        Column("Run", "name"), Column("Verdicts", "words"), Column("Asked", "claim"),
        Column("Cost"), Column("Registered"), Column("Code"),
    )  # fmt: skip
    known = [(run, run.content) for run in runs if run.content is not None]
    newest = sorted(known, key=lambda pair: record.started(pair[1]), reverse=True)
    rows = [[*_run(run, content)] for run, content in newest]
    if not runs:
        yield Paragraph("None.")
    if rows:
        yield blocks.Table(words.many(len(rows), "run"), columns, rows, sortable=True)
    warned: dict[str, dict[str, None]] = {}
    for run, content in newest:
        for warning in content.warnings:
            warned.setdefault(_DIGEST.sub("", warning), {})[run.name] = None
    if warned:
        columns = (Column("Warning", "words"), Column("Runs", "words"))
        lines = [(warning, ", ".join(names)) for warning, names in warned.items()]
        yield blocks.Table("Warnings", columns, lines)
    if lost := [run for run in runs if run.content is None]:
        columns = (Column("Folder", "name"), Column("Why", "words"))
        caption = f"Folders that are not listed: {len(lost)}"
        yield blocks.Table(caption, columns, [[_link(run), run.problem] for run in lost])


def _run(run: Run, content: Content) -> Iterator[Text | Cell]:
    """The cells of a run: name, verdicts, question, cost, registration, commit."""
    sealed, when = content.registration, record.started(content)
    rows = (", ", Span("rows", "link", run.rows)) if run.rows else ()
    yield Cell((_link(run), *rows, " ", Span(words.moment(when), "minor")), when)
    lines: list[Text] = [(Span("negative result", "tag"), " ")] if is_negative(content) else []
    for kind in words.VERDICTS:
        of_kind = [j for j in content.judgements if j.verdict == kind]
        for tag in dict.fromkeys(map(content.tag, of_kind)):
            ids = [j.hypothesis.id for j in of_kind if content.tag(j) == tag]
            what = len(ids) if kind == _NOT_RUN else ", ".join(ids)
            lines += [verdicts.verdict(kind, tag), f": {what}. "]
    yield tuple(lines)
    yield content.title, " ", Span(content.source, "minor")
    yield record.cost(content.processes).partition(";")[0]
    yield (
        "no: exploratory"
        if sealed is None
        else f"{words.moment(sealed.time)[:10]}, {sealed.seal[:12]}"
    )
    yield Span(record.commit(content)[:12], "code")


def is_negative(content: Content) -> bool:
    """Whether hypotheses were tested, and none of them is supported."""
    given = {j.verdict for j in content.judgements} - {_NOT_RUN}
    return bool(given) and "supported" not in given


def _groups(found: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Entries by paper (`H1.2` and `H1.2 some-cells` are of paper 1), then the others by study."""
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        match = re.fullmatch(r"H(\d+)\.\d+( .+)?", entry.hypothesis.id)
        study = f"Study {entry.study}" if entry.study else "Of the studies"
        groups.setdefault(f"Paper {match[1]}" if match else study, []).append(entry)
    yield from groups.items()


def _table(group: Sequence[Entry]) -> blocks.Table:
    columns = (
        Column("Id", "id"), Column("Verdict"), Column("Claim", "claim"), Column("Certainty"),
        Column("By run", "words"),
    )  # fmt: skip
    rows = []
    for entry in group:
        asked, kind = entry.hypothesis, word(entry)
        badge = verdicts.verdict(kind, tag_of(entry))
        rows.append([asked.id, Cell(badge, kind), asked.claim, asked.status, _answers(entry)])
    return blocks.Table(totals(group), columns, rows, sortable=True)


def _answers(entry: Entry) -> Text:
    lines: list[Text] = []
    given = [answer for answer in entry.answers if answer.judgement.verdict != _NOT_RUN]
    for run, judgement, tag in given:
        badge = verdicts.verdict(judgement.verdict, tag)
        lines += ["; " if lines else "", (_link(run), ": ", badge)]
        lines += [f" {estimate}"] if (estimate := verdicts.estimate(judgement)) else []
    if idle := len(entry.answers) - len(given):
        lines += ["; " if lines else "", f"{_NOT_RUN} in {words.many(idle, 'run')}"]
    missing = entry.hypothesis.missing
    return tuple(lines) or (Span(f"still missing: {missing}", "minor") if missing else "")


def _link(run: Run) -> Text:
    return Span(run.name, "link", run.link) if run.link else run.name
