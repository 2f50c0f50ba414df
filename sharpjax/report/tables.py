"""Tables that a screen reader, a phone and a printer understand; sortable where scripts run."""

from collections.abc import Sequence
from typing import NamedTuple

from sharpjax.report.elements import Child, Markup, join, tag


class Column(NamedTuple):
    """`kind` is its class; those of numbers are sorted by value. Without a name: not sorted."""

    name: str
    kind: str | None = None


class Cell(NamedTuple):
    """`key` is what its row is sorted by, where that is not its text."""

    content: Child
    key: float | str | None = None


def table(
    caption: Child,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell | Child]],
    *,
    ident: str,
    sortable: bool = True,
) -> Markup:
    """A table whose first column names its rows, in a box that scrolls by itself."""
    head = [
        tag(
            "th",
            column.name,
            scope="col",
            class_=column.kind,
            data_sort="number" if column.kind == "number" else None,
        )
        for column in columns
    ]
    body = [
        tag("tr", *(_cell(i, row[i], column) for i, column in enumerate(columns))) for row in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", tag("span", caption), id=ident),
            tag("thead", tag("tr", *head)),
            tag("tbody", join(body, "\n")),
            class_="sortable" if sortable and len(rows) > 1 else None,
        ),
        class_="scroll",
        role="region",
        aria_labelledby=ident,
        tabindex=0,
    )


def facts(pairs: Sequence[tuple[str, Child]], class_: str = "facts") -> Markup | None:
    """Names and values; those without a value are left out."""
    pairs = [(name, value) for name, value in pairs if value not in (None, "")]
    if not pairs:
        return None
    if class_ == "facts":
        return tag("dl", *(join((tag("dt", n), tag("dd", v))) for n, v in pairs), class_=class_)
    return tag("dl", *(tag("div", tag("dt", n), tag("dd", v)) for n, v in pairs), class_=class_)


def _cell(index: int, cell: Cell | Child, column: Column) -> Markup:
    content, key = cell if isinstance(cell, Cell) else (cell, None)
    return tag(
        "td" if index else "th",
        content,
        scope=None if index else "row",
        class_=column.kind,
        data_v=key,
    )
