"""The same report as Markdown, for a repository or a terminal."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.protocol.summary import Summary, grid
from sharpjax.report import marks, statements, words
from sharpjax.report.content import UNREGISTERED, Content, Table
from sharpjax.report.evidence import Evidence, evidence
from sharpjax.report.fields import flatten, is_digest, title

_MOST_ROWS = 500
_MOST_VALUES = 50
_LIST = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=]))")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~!$&@]|:(?=//))")


def text(value: object, longest: int = words.LONGEST) -> str:
    r"""Anybody's text on one line, in which nothing is markup.

    >>> print(text("<b>|*x*\n[a](http://b)"))
    \<b\>\|\*x\* \[a\](http\://b)
    """
    line = " ".join(words.clean(value, longest).split())
    line = _SPECIAL.sub(r"\\\1", line)
    # What would begin a list or underline a heading if it began a line.
    return _LIST.sub(r"\1\\", line)


def code(value: object, longest: int = words.LONGEST) -> str:
    """
    >>> code("a_b"), code("a`b"), code("a|b")
    ('`a_b`', 'a\\\\`b', 'a\\\\|b')
    """
    line = " ".join(words.clean(value, longest).split())
    return text(value, longest) if not line or set("`|\\") & set(line) else f"`{line}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: str = "") -> str:
    """A table; `numeric` has an `r` for each column to be set flush right.

    >>> print(table(["a", "b"], [["x", "1"]], " r"))
    | a | b |
    | --- | ---: |
    | x | 1 |
    """
    rules = ["---:" if flag == "r" else "---" for flag in numeric.ljust(len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rules, *rows))


def render(content: Content) -> str:
    """`report.md`, as text."""
    return "\n\n".join(filter(None, _blocks(content))) + "\n"


def _blocks(content: Content) -> Iterator[str]:
    yield f"# {text(content.title)}"
    yield from _asked(content)
    exploratory = not content.is_registered
    yield "## Verdicts"
    yield _verdicts(content.judgements) or "No hypothesis was put forward for this run."
    if content.judgements:
        yield words.INTERVALS
    yield from _section("Tables", "\n\n".join(map(_study_table, content.tables)))
    if content.judgements:
        yield "## Hypotheses"
    for judgement in content.judgements:
        yield from _hypothesis(judgement, exploratory=exploratory)
    yield from _section("Funnel of runs", _funnel(content))
    yield from _section(
        "Figures",
        "\n\n".join(f"![{text(p.caption)}](figures/{_path(p.name)}.png)" for p in content.pictures),
    )
    yield from _section("All metrics", _metrics(content.metrics, content))
    yield "## Exploratory"
    yield from _exploratory(content)
    yield from _section("Amendments", "\n\n".join(_facts(_amendments(content))))
    yield from _section("Power when it was registered", _power(content))
    yield from _section("How to run it again", "\n\n".join(_commands(content)))
    yield from _section("Environment", _fields(content.environment))
    yield from _section("What was run", _fields(content.processes))
    yield from _section("Config", _fields([content.config] if content.config else []))
    yield from _section("Digests", _digests(content))


def _section(name: str, body: str) -> Iterator[str]:
    if body:
        yield f"## {name}"
        yield body


def _asked(content: Content) -> Iterator[str]:
    for warning in (*([] if content.is_registered else [UNREGISTERED]), *content.warnings):
        yield f"> **{text(warning, 2_000)}**"
    yield from _facts([content.asked])


def _facts(groups: Iterable[Sequence[tuple[str, str]]]) -> Iterator[str]:
    for pairs in groups:
        lines = [f"- {text(name)}: {_value(value)}" for name, value in pairs if value]
        if lines:
            yield "\n".join(lines)


def _value(value: object) -> str:
    return code(value) if is_digest(value) else text(value, 2_000)


def _verdicts(judgements: Sequence[Judgement]) -> str:
    if not judgements:
        return ""
    columns = ("Id", "Verdict", "Claim", "Estimate [interval]", "adjusted p", "n", "Certainty")
    rows = []
    for judgement in judgements:
        line = statements.summary(judgement)
        rows.append(
            [
                text(judgement.hypothesis.id, 40),
                f"**{judgement.verdict}**",
                text(judgement.hypothesis.claim),
                *map(text, (line.estimate, words.p_value(line.adjusted_p), line.units)),
                text(judgement.hypothesis.status),
            ]
        )
    total = words.counts(j.verdict for j in judgements)
    head = f"{words.many(len(judgements), 'hypothesis')}: {total}."
    return f"{head}\n\n{table(columns, rows, '   rr')}"


def _hypothesis(judgement: Judgement, *, exploratory: bool) -> Iterator[str]:
    asked = judgement.hypothesis
    found = [evidence(finding) for finding in judgement.findings]
    yield f"### {text(asked.id, 40)} {text(asked.claim)}"
    label = " (exploratory)" if exploratory else ""
    yield f"**{judgement.verdict}**{label}: {text(judgement.reason, 600)}"
    yield from _facts([list(statements.asked(asked, found))])
    for e, name in zip(found, statements.names(asked, len(found)), strict=True):
        yield from _contrast(e, judgement, name, heading=len(found) > 1)


def _contrast(e: Evidence, judgement: Judgement, name: str, *, heading: bool) -> Iterator[str]:
    title = text(f"{name}: {e.comparison}" if name else e.comparison)
    yield f"#### {title}" if heading else f"**{title}**"
    if heading:
        yield f"**{e.finding.verdict}**: {text(e.finding.reason, 600)}"
    yield f"{text(e.quantity)}; {text(e.test)}"
    if e.drawn is not None and e.drawn.is_finite:
        yield f"```text\n{marks.line(e.drawn)}\n```"
    yield from _facts([[*statements.numbers(e, judgement.hypothesis), *_points(e)]])


def _points(e: Evidence) -> Iterator[tuple[str, str]]:
    for name, values in e.groups:
        if len(values) <= _MOST_VALUES:
            listed = ", ".join(words.number(float(v), 6) for v in values)
        else:
            listed = marks.in_words(name, values)
        yield f"Points of {name}", listed


def _study_table(shown: Table) -> str:
    rows = [[text(cell) for cell in row] for row in shown.rows]
    numeric = " " + "r" * (len(shown.columns) - 1)
    return f"{text(shown.caption, 600)}\n\n{table([*map(text, shown.columns)], rows, numeric)}"


def _funnel(content: Content) -> str:
    columns = ("Arm", "Planned", "Done", "Failed", "Excluded", "Why")
    rows = [[text(f.arm), *map(str, f[1:5]), text("; ".join(f.reasons))] for f in content.funnel]
    return table(columns, rows, " rrrr") if rows else ""


def _metrics(found: Sequence[Summary], content: Content, *, asked: bool = True) -> str:
    if not found:
        return ""
    arms, lines = grid(found)
    rows = []
    for name, cells in itertools.islice(lines.items(), _MOST_ROWS):
        row = [code(name), *(text(words.over_seeds(cells.get(arm))) for arm in arms)]
        if asked:
            metric = next(iter(cells.values())).metric
            row.append(text(", ".join(content.registered_metrics.get(metric, ("exploratory",)))))
        rows.append(row)
    head = "Mean ± standard error over seeds (n), at the last step of each arm"
    if len(lines) > _MOST_ROWS:
        head += f"; the first {_MOST_ROWS} of {len(lines):,}, all are in results.jsonl"
    columns = ["Metric", *map(text, arms), *(["Asked by"] if asked else [])]
    return f"{head}.\n\n{table(columns, rows, ' ' + 'r' * len(arms))}"


def _exploratory(content: Content) -> Iterator[str]:
    if not content.is_registered:
        yield "Everything in this report: nothing was registered."
        return
    yield "What was not registered before the data were seen: it may suggest, it confirms nothing."
    yield _verdicts(content.exploratory)
    for judgement in content.exploratory:
        yield from _hypothesis(judgement, exploratory=True)
    if content.later:
        yield "Measured after the run was finished:"
        yield _metrics(content.later, content, asked=False)


def _amendments(content: Content) -> Iterator[list[tuple[str, str]]]:
    for amendment in content.amendments:
        fields = amendment._asdict() | {"time": words.moment(amendment.time)}
        yield [(title(name), value) for name, value in fields.items()]


def _power(content: Content) -> str:
    rows = statements.planned(content.registration)
    if not rows:
        return ""
    body = [
        [text(v) if isinstance(v, str) else text(words.number(v, 3)) for v in row] for row in rows
    ]
    return table(statements.PLANNED, body, "   rrrr")


def _commands(content: Content) -> Iterator[str]:
    for command in content.commands:
        line = " ".join(words.clean(command.line, 4_000).split("\n")).replace("```", "` ` `")
        yield f"{text(command.purpose)}:\n\n```sh\n{line}\n```"


def _fields(tables: Sequence) -> str:
    """A column for each of some tables of fields."""
    flat = [flatten(table) for table in tables[:20]]
    names = list(dict.fromkeys(name for fields in flat for name in fields))[:_MOST_ROWS]
    if not names:
        return ""
    rows = [[code(n), *(_value(fields.get(n, "")) for fields in flat)] for n in names]
    columns = ["Field", *(f"{i + 1}" if len(flat) > 1 else "Value" for i in range(len(flat)))]
    return table(columns, rows)


def _digests(content: Content) -> str:
    lines = [f"- {text(name)}: {_value(value)}" for name, value in content.digests[:_MOST_ROWS]]
    files = sorted((content.manifest.get("files") or {}).items())
    rows = [[code(n), f"{f['bytes']:,}", code(f["sha256"])] for n, f in files[:_MOST_ROWS]]
    listed = table(("File", "Bytes", "SHA-256"), rows, " r") if rows else ""
    return "\n\n".join(filter(None, ("\n".join(lines), listed)))


def _path(name: str) -> str:
    """A figure's name inside a link."""
    return re.sub(
        r"[^\w.-]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode(errors="replace")), name
    )
