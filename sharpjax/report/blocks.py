"""The content of a page, without its format: `html` and `markdown` write the same `Page`.

Texts are plain here. A renderer escapes and shortens each of them, so that nothing in a row, a
config or a name can add markup.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sharpjax.report.elements import Markup


class Span(NamedTuple):
    """A text with a style.

    `kind` is 'strong', 'code', 'minor', 'verdict' (one of the five words), 'tag' (in a frame) or
    'link'. `href` is the target of a link: within the page it begins with `#`, else it is a
    relative path.
    """

    text: str
    kind: str = "strong"
    href: str = ""


Text = str | Span | tuple["Text", ...]


class Paragraph(NamedTuple):
    """A paragraph. `kind`: '', 'note' (small), 'notice' (important) or 'answer' (large)."""

    text: Text
    kind: str = ""


class Facts(NamedTuple):
    """Names and values; names without a value are left out. `kind`: 'facts' or 'numbers'."""

    pairs: Sequence[tuple[str, Text]]
    kind: str = "facts"


class Column(NamedTuple):
    """A column. `kind` gives its style; columns of numbers and estimates are sorted by value."""

    name: str
    kind: str = ""


class Cell(NamedTuple):
    """A cell. Rows are sorted by `key`, or by the text if `key` is None."""

    text: Text
    key: float | str | None = None


def plain(text: Text | Cell) -> str:
    """The text without styles.

    >>> plain(Cell((Span("supported", "verdict"), ": p = 0.01"), 0.01))
    'supported: p = 0.01'
    """
    if isinstance(text, str):
        return text
    if isinstance(text, Cell | Span):
        return plain(text.text)
    return "".join(map(plain, text))


class Table(NamedTuple):
    """A table. The first column names the rows. Of columns given as plain strings the first is a
    'name', the others are 'number'."""

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
        """The table without some columns, and without columns that are empty in all rows."""
        kept = [
            i
            for i, head in enumerate(self.heads())
            if head.name not in without and any(plain(row[i]) not in ("", "—") for row in self.rows)
        ]
        columns = [self.columns[i] for i in kept]
        return self._replace(columns=columns, rows=[[row[i] for i in kept] for row in self.rows])


class Drawing(NamedTuple):
    """An SVG, and the same in characters for Markdown ('' leaves the drawing out there)."""

    caption: str
    svg: Markup
    text: str = ""


class Picture(NamedTuple):
    """A figure of the run. `png` is None if the file is too large to embed, or is not a PNG.

    `metrics` are those that it shows.
    """

    name: str
    caption: str
    png: bytes | None
    metrics: frozenset[str] = frozenset()


class Code(NamedTuple):
    """Lines that are shown unchanged; `language` is that of the block in Markdown."""

    lines: str
    language: str = "text"


class Download(NamedTuple):
    """A file that is embedded in the page."""

    name: str
    media_type: str
    content: bytes


class Group(NamedTuple):
    """Blocks that belong together. `kind`: 'contrast', 'drawings' (side by side) or 'pictures'."""

    blocks: "Sequence[Block | None]"
    kind: str


class Folded(NamedTuple):
    """Blocks that are hidden until the reader opens them."""

    summary: str
    blocks: "Sequence[Block | None]"


class Section(NamedTuple):
    """A section. `id` is the target of links within the page; `kind` is '' or 'hypothesis'."""

    title: str
    blocks: "Sequence[Block | None]"
    id: str = ""
    kind: str = ""


Block = (
    Paragraph | Facts | Table | Drawing | Picture | Code | Download | Group | Folded | Section
)  # fmt: skip


class Page(NamedTuple):
    """A page. `lead` stands above the table of contents; sections without blocks are left out."""

    title: str
    kind: str
    lead: Sequence[Block | None]
    sections: Sequence[Section]
