"""What a page says, apart from how it is written: `html` and `markdown` write the same `Page`.

Texts are plain here. A renderer escapes and shortens each on its way in, so that nothing in a row,
a config or a name can add markup.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sharpjax.report.elements import Markup


class Span(NamedTuple):
    """A text that is set apart.

    `kind` is 'strong', 'code', 'minor', 'verdict' (one of the five words), 'tag' (in a frame) or
    'link', to `href`: one within the page begins with `#`, all others are relative paths.
    """

    text: str
    kind: str = "strong"
    href: str = ""


Text = str | Span | tuple["Text", ...]


class Paragraph(NamedTuple):
    """`kind`: '', 'note' (small) or 'notice' (what must not be missed)."""

    text: Text
    kind: str = ""


class Facts(NamedTuple):
    """Names and values; those without a value are left out. `kind`: 'facts' or 'numbers'."""

    pairs: Sequence[tuple[str, Text]]
    kind: str = "facts"


class Column(NamedTuple):
    """`kind` says how it is set; columns of numbers are sorted by value."""

    name: str
    kind: str = ""


class Cell(NamedTuple):
    """`key` is what its row is sorted by, where that is not its text."""

    text: Text
    key: float | str | None = None


def plain(text: Text | Cell) -> str:
    """Without what sets parts of it apart.

    >>> plain(Cell((Span("supported", "verdict"), ": p = 0.01"), 0.01))
    'supported: p = 0.01'
    """
    if isinstance(text, str):
        return text
    if isinstance(text, Cell | Span):
        return plain(text.text)
    return "".join(map(plain, text))


class Table(NamedTuple):
    """The first column names the rows. Columns that are plain names are a name, then numbers."""

    caption: str
    columns: Sequence[str | Column]
    rows: Sequence[Sequence[Text | Cell]]
    sortable: bool = False
    searchable: bool = False

    def heads(self) -> list[Column]:
        return [
            c if isinstance(c, Column) else Column(c, "number" if i else "name")
            for i, c in enumerate(self.columns)
        ]

    def compact(self, *without: str) -> "Table":
        """Without some columns, and without those that say nothing of any row."""
        kept = [
            i
            for i, head in enumerate(self.heads())
            if head.name not in without and any(plain(row[i]) not in ("", "—") for row in self.rows)
        ]
        columns = [self.columns[i] for i in kept]
        return self._replace(columns=columns, rows=[[row[i] for i in kept] for row in self.rows])


class Drawing(NamedTuple):
    """An SVG, and the same in characters for where none can be shown ('': nothing)."""

    caption: str
    svg: Markup
    text: str = ""


class Picture(NamedTuple):
    """A figure of the run; `png` is None where it is too large, or no PNG, to be embedded.

    `metrics` are those that it shows.
    """

    name: str
    caption: str
    png: bytes | None
    metrics: frozenset[str] = frozenset()


class Code(NamedTuple):
    """Lines as they are; `language` of their block in Markdown."""

    lines: str
    language: str = "text"


class Download(NamedTuple):
    """A file that the page carries within itself."""

    name: str
    media_type: str
    content: bytes


class Group(NamedTuple):
    """Blocks that belong together. `kind`: 'contrast', 'drawings' (side by side) or 'pictures'."""

    blocks: "Sequence[Block | None]"
    kind: str


class Folded(NamedTuple):
    """Blocks that are shown when they are asked for."""

    summary: str
    blocks: "Sequence[Block | None]"


class Section(NamedTuple):
    """`id` is what links within the page lead to; `kind` as 'hypothesis'."""

    title: str
    blocks: "Sequence[Block | None]"
    id: str = ""
    kind: str = ""


Block = (
    Paragraph | Facts | Table | Drawing | Picture | Code | Download | Group | Folded | Section
)  # fmt: skip


class Page(NamedTuple):
    """`lead` stands above the table of contents; sections without blocks are left out."""

    title: str
    kind: str
    lead: Sequence[Block | None]
    sections: Sequence[Section]
