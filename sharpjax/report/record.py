"""What a run leaves on record: runs, metrics, power, machine, config, digests; as HTML."""

import base64
import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from sharpjax.protocol.seals.amendments import Amendment
from sharpjax.protocol.summary import Summary, grid
from sharpjax.report import statements, words
from sharpjax.report.content import Content, Picture
from sharpjax.report.elements import Child, Markup, breakable, escape, join, tag
from sharpjax.report.fields import flatten, is_digest, title
from sharpjax.report.tables import Cell, Column, facts, table

_MOST_ROWS = 2_000


def funnel(content: Content) -> list[Child]:
    columns = [Column("Arm", "name")]
    columns += [Column(n, "number") for n in ("Planned", "Done", "Failed")]
    columns.append(Column("Why", "words"))
    rows = [
        [words.clean(p.arm), *(Cell(f"{n:,}", n) for n in p[1:4]), _lines(p.reasons)]
        for p in content.funnel
    ]
    if not rows:
        return []
    totals = [
        f"{sum(getattr(p, name) for p in content.funnel):,} {name}"
        for name in ("planned", "done", "failed")
    ]
    caption = f"Runs, one seed of one arm each: {', '.join(totals)}"
    return [table(caption, columns, rows, ident="funnel-table")]


def study_tables(content: Content) -> list[Child]:
    """The study's own; every column but the first is set as numbers, and not sorted."""
    return [
        table(
            words.clean(shown.caption, 600),
            [
                Column(words.clean(name), "number" if i else "name")
                for i, name in enumerate(shown.columns)
            ],
            [[*map(words.clean, row)] for row in shown.rows],
            ident=f"study-table-{number}",
            sortable=False,
        )
        for number, shown in enumerate(content.tables, 1)
    ]


def _lines(lines: Sequence[str]) -> Child:
    return words.clean("; ".join(lines[:20]) + ("; …" if len(lines) > 20 else ""), 2_000)


def picture(picture: Picture) -> Markup:
    caption = tag("figcaption", words.clean(picture.caption, 600))
    if picture.png is None:
        return tag(
            "figure", tag("p", f"figures/{picture.name}.png cannot be embedded: see the file."),
            caption,
        )  # fmt: skip
    width, height = struct.unpack(">II", picture.png[16:24].ljust(8, b"\0"))
    source = Markup("data:image/png;base64," + base64.b64encode(picture.png).decode())
    return tag(
        "figure",
        tag("img", src=source, alt=words.clean(picture.caption, 600), width=width, height=height),
        caption,
    )


def metrics(content: Content) -> list[Child]:
    if not content.metrics:
        return []
    caption = "Mean ± standard error over seeds (n), at the last step of each arm"
    return [metric_table(content.metrics, content, caption, "metrics-table", rests=True)]


def metric_table(
    found: Sequence[Summary], content: Content, caption: str, ident: str, *, rests: bool
) -> Markup:
    arms, lines = grid(found)
    if len(lines) > _MOST_ROWS:
        caption += f"; the first {_MOST_ROWS:,} of {len(lines):,}, all are in results.jsonl"
    columns = [Column("Metric", "name"), *(Column(words.clean(a, 60), "number") for a in arms)]
    if rests:
        columns.append(Column("Asked by", "words"))
    rows = []
    for name, cells in itertools.islice(lines.items(), _MOST_ROWS):
        shown = words.clean(name)
        row: list[Cell | Child] = [
            Cell(breakable(shown), shown),
            *(_metric_cell(cells.get(arm)) for arm in arms),
        ]
        if rests:
            metric = next(iter(cells.values())).metric
            ids = content.registered_metrics.get(metric)
            row.append(words.clean(", ".join(ids)) if ids else tag("span", "exploratory"))
        rows.append(row)
    return table(caption, columns, rows, ident=ident)


def _metric_cell(found: Summary | None) -> Cell:
    return Cell(words.over_seeds(found), "nan" if found is None else found.mean)


def amendment(amendment: Amendment) -> Child:
    fields = amendment._asdict() | {"time": words.moment(amendment.time)}
    return facts([(title(name), value(text)) for name, text in fields.items()])


def value(value: Any) -> Child:
    """Digests are set as code."""
    text = words.clean(value, 2_000)
    return tag("code", text) if is_digest(text) else text


def power(content: Content) -> list[Child]:
    """What was known of each contrast before it was run."""
    rows = statements.planned(content.registration)[:_MOST_ROWS]
    if not rows:
        return []
    kinds = ("id", "words", "number", "number", "number", "number", "number", "words")
    columns = [Column(*pair) for pair in zip(statements.PLANNED, kinds, strict=True)]
    body = [
        [
            breakable(words.clean(x)) if isinstance(x, str) else Cell(words.number(x, 3), x)
            for x in row
        ]
        for row in rows
    ]
    return [table("For the seeds that were registered", columns, body, ident="power-table")]


def again(content: Content) -> list[Child]:
    return [
        join(
            (tag("p", words.clean(c.purpose)), tag("pre", tag("code", words.clean(c.line, 4_000))))
        )
        for c in content.commands
    ]


def environment(content: Content) -> list[Child]:
    kinds = (("Environment", content.environment), ("What was run", content.processes))
    return [
        _side_by_side(f"{name} of each process, in their order", found, f"environment-{i}")
        for i, (name, found) in enumerate(kinds)
        if found
    ]


def _side_by_side(caption: str, found: Sequence[Mapping[str, Any]], ident: str) -> Markup:
    """A column for each of some tables of fields."""
    flat = [flatten(table) for table in found[:20]]
    names = list(dict.fromkeys(name for table in flat for name in table))[:_MOST_ROWS]
    columns = [Column("Field", "name"), *(Column(f"{i + 1}", "words") for i in range(len(flat)))]
    rows = [[words.clean(n), *(value(t.get(n, "")) for t in flat)] for n in names]
    return table(caption, columns, rows, ident=ident)


def config(content: Content) -> list[Child]:
    lines = [
        f"{words.clean(name, 200)} = {words.clean(json.dumps(value, default=str), 2_000)}"
        for name, value in flatten(content.config).items()
    ]
    text = "\n".join(lines[:_MOST_ROWS])
    return [tag("pre", tag("code", Markup(escape(text, len(text)))))] if lines else []


def digests(content: Content) -> list[Child]:
    pairs = [(words.clean(n, 120), value(x)) for n, x in content.digests[:_MOST_ROWS]]
    body: list[Child] = [facts(pairs)] if pairs else []
    files = content.manifest.get("files") or {}
    if files:
        rows = [
            [words.clean(name), Cell(f"{entry['bytes']:,}", entry["bytes"]),
             tag("code", words.clean(entry["sha256"]))]
            for name, entry in sorted(files.items())[:_MOST_ROWS]
        ]  # fmt: skip
        columns = (Column("File", "name"), Column("Bytes", "number"), Column("SHA-256", "words"))
        listed = table(f"{words.many(len(files), 'sealed file')}", columns, rows, ident="files")
        body.append(tag("details", tag("summary", "Every sealed file"), listed))
    return body
