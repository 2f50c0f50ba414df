"""Export the results of a run: the long table for other tools, or means over seeds for a paper."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.protocol.summary import grid, summarize_last
from sharpjax.report import words

Rows = Iterable[workdir.Row]
# A spreadsheet reads a text that starts with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": "$-$",
    "—": "---",
}


def as_csv(rows: Rows) -> bytes:
    """The long table; `of` is JSON, and a missing value is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(workdir.COLUMNS)
    writer.writerows([_cell(row[name]) for name in workdir.COLUMNS] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return workdir.canonical_json(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def as_parquet(rows: Rows) -> bytes:
    """The long table with typed columns; `of` is JSON.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            "export: --format=parquet needs pyarrow: pip install 'sharpjax[parquet]', or take csv."
        ) from None
    types = {"seed": pa.int64(), "step": pa.int64()}
    types |= dict.fromkeys(("value", "standard_error"), pa.float64())
    table = pa.Table.from_pylist(
        [row | {"of": workdir.canonical_json(row["of"])} for row in rows],
        schema=pa.schema([(name, types.get(name, pa.string())) for name in workdir.COLUMNS]),
    )
    data = io.BytesIO()
    parquet.write_table(table, data)
    return data.getvalue()


def as_markdown(rows: Rows) -> bytes:
    """Mean ± standard error (n) over seeds at the last step: metrics by arms."""
    head, *body = _table(rows, _escape_markdown)
    rule = ["---", *("---:" for _ in head[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *body]).encode()


def as_tex(rows: Rows) -> bytes:
    """The table of `as_markdown` as a LaTeX `tabular` with the rules of booktabs."""
    head, *body = (" & ".join(line) + r" \\" for line in _table(rows, _escape_tex))
    columns = "l" + "r" * head.count(" & ")
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]).encode()


FORMATS: Mapping[str, Callable[[Rows], bytes]] = {
    "csv": as_csv, "parquet": as_parquet, "md": as_markdown, "tex": as_tex
}  # fmt: skip


def _table(rows: Rows, escape: Callable[[str], str]) -> Iterator[list[str]]:
    arms, lines = grid(summarize_last(rows))
    yield ["metric", *map(escape, arms)]
    for name, cells in lines.items():
        yield [escape(name), *(escape(words.over_seeds(cells.get(arm))) for arm in arms)]


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!&" else c for c in _one_line(text))


def _escape_tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in _one_line(text))


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
