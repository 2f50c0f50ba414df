"""A `Page` as Markdown, for a repository or a terminal."""

import re
from collections.abc import Iterable, Iterator, Sequence

from sharpjax.report import blocks
from sharpjax.report.blocks import Block, Cell, Span, Text
from sharpjax.report.html import address
from sharpjax.report.words import clean

_LIST = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=]))")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~!$&@]|:(?=//))")


def text(value: object) -> str:
    r"""Text from anybody on one line, escaped so that nothing in it is markup.

    >>> print(text("<b>|*x*\n[a](http://b)"))
    \<b\>\|\*x\* \[a\](http\://b)
    """
    line = _SPECIAL.sub(r"\\\1", " ".join(clean(value).split()))
    # At the start of a line these would begin a list or underline a heading.
    return _LIST.sub(r"\1\\", line)


def code(value: object) -> str:
    """
    >>> code("a_b"), code("a`b"), code("a|b")
    ('`a_b`', 'a\\\\`b', 'a\\\\|b')
    """
    line = " ".join(clean(value).split())
    return text(value) if not line or set("`|\\") & set(line) else f"`{line}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: str = "") -> str:
    """A table; `numeric` has an `r` for each column to be aligned right.

    >>> print(table(["a", "b"], [["x", "1"]], " r"))
    | a | b |
    | --- | ---: |
    | x | 1 |
    """
    rules = ["---:" if flag == "r" else "---" for flag in numeric.ljust(len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rules, *rows))


def render(page: blocks.Page) -> str:
    """The whole document."""
    parts = [f"# {text(page.title)}", *_all(page.lead, 2), *_all(page.sections, 2)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _all(found: Sequence[Block | None], level: int) -> Iterator[str]:
    for block in found:
        if block:
            yield from _block(block, level)


def _block(block: Block, level: int) -> Iterator[str]:
    """Write a block; `level` is that of the next heading."""
    match block:
        case blocks.Paragraph(line, kind):
            yield f"> **{_text(line)}**" if kind == "notice" else _text(line)
        case blocks.Facts(pairs, _):
            yield "\n".join(f"- {text(name)}: {_text(value)}" for name, value in pairs if value)
        case blocks.Table(caption, _, rows):
            heads = block.heads()
            numeric = "".join("r" if column.kind == "number" else " " for column in heads)
            body = [[_text(c.text if isinstance(c, Cell) else c) for c in row] for row in rows]
            yield f"{text(caption.removesuffix('.'))}."
            yield table([text(column.name) for column in heads], body, numeric)
        case blocks.Drawing(caption, _, line) if line:
            yield f"{text(caption)}:"
            yield from _code(line, "text")
        case blocks.Picture(name, caption):
            yield f"![{text(caption)}](figures/{address(name).replace('/', '%2F')}.png)"
        case blocks.Code(lines, language):
            yield from _code(lines, language)
        case blocks.Group(inside, _):
            yield from _all(inside, level)
        case blocks.Folded(summary, inside):
            yield f"*{text(summary)}*"
            yield from _all(inside, level)
        case blocks.Section(title, inside, _, _) if any(inside):
            yield f"{'#' * level} {_text(title)}"
            yield from _all(inside, level + 1)


def _code(lines: str, language: str) -> Iterator[str]:
    shown = "\n".join(clean(line).replace("```", "` ` `") for line in lines.split("\n"))
    yield f"```{language}\n{shown}\n```"


def _text(line: Text) -> str:
    if isinstance(line, str):
        ends = (" " if edge.isspace() else "" for edge in (line[:1], line[1:][-1:]))
        return text(line).join(ends)
    if not isinstance(line, Span):
        return "".join(map(_text, line)).strip()
    match line.kind:
        case "strong" | "verdict":
            return f"**{text(line.text)}**"
        case "code":
            return code(line.text)
        case "tag":
            return f"({text(line.text)})"
        case "link" if line.href and not line.href.startswith("#"):
            return f"[{text(line.text)}]({address(line.href)})"
    return text(line.text)
