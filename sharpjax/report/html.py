"""A `Page` as one HTML file that opens from disk. It uses no network, and scripts only to sort and
search tables.

The Content-Security-Policy names the style and the script by their SHA-256, so that the browser
runs nothing else, whatever a row or a config holds.
"""

import base64
import hashlib
import struct
from collections.abc import Sequence
from importlib import resources
from urllib.parse import quote

from sharpjax.report import blocks
from sharpjax.report.blocks import Block, Cell, Span, Text
from sharpjax.report.elements import Markup, escape, join, tag

SIGNS = {
    "supported": "M2.5 8.5 6.5 12.5 13.5 3.5",
    "refuted": "M3.5 3.5 12.5 12.5M12.5 3.5 3.5 12.5",
    "equivalent": "M2.5 5.5H13.5M2.5 10.5H13.5",
    "inconclusive": "M4.7 5.2A3.4 3.2 0 1 1 9.6 7.9Q8 8.8 8 10.2M8 13.6V13.7",
    "not run": "M3 13 13 3M13.5 8A5.5 5.5 0 1 1 2.5 8 5.5 5.5 0 0 1 13.5 8",
}


def render(page: blocks.Page) -> str:
    """The whole document."""
    sections = [section for section in page.sections if any(section.blocks)]
    links = [tag("li", tag("a", s.title, href=f"#{s.id}")) for s in sections if s.id]
    header = tag("header", tag("p", page.kind, class_="kind"), tag("h1", page.title))
    contents = tag("nav", tag("ul", *links), aria_label="Contents") if len(links) > 1 else None
    main = tag("main", _all(page.lead, 2), contents, _all(sections, 2), id="main")
    style, script = (Markup(resource(name)) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", page.title),
        tag("style", style),
    )
    skip = tag("a", "Skip to the content", href="#main", class_="skip")
    body = tag("body", skip, header, main, tag("script", script))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def resource(name: str) -> str:
    """The text of a file beside this module."""
    return resources.files("sharpjax.report").joinpath(name).read_text("utf-8")


def address(path: str) -> str:
    """A quoted path or fragment. Whatever the name of a folder, it has no scheme and no host.

    >>> address("javascript:alert(1)"), address("//host/x"), address("#h1")
    ('javascript%3Aalert%281%29', 'host/x', '#h1')
    """
    if path.startswith("#"):
        return "#" + quote(path[1:])
    return quote(
        path.lstrip("/") if path.startswith("//") else path, safe="/.-_~", errors="replace"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _all(found: Sequence[Block | None], level: int) -> Markup:
    return join((_block(block, level) for block in found if block), "\n")


def _block(block: Block, level: int) -> Markup | None:
    """Write a block; `level` is that of the next heading."""
    match block:
        case blocks.Paragraph(text, kind):
            return tag("p", _text(text), class_=kind or None)
        case blocks.Facts(pairs, kind):
            pairs = [(tag("dt", name), tag("dd", _text(text))) for name, text in pairs if text]
            return tag("dl", *(tag("div", *pair) for pair in pairs), class_=kind) if pairs else None
        case blocks.Table():
            return _table(block)
        case blocks.Drawing(caption, svg, _):
            return tag("figure", tag("figcaption", caption), svg)
        case blocks.Picture():
            return _picture(block)
        case blocks.Code(lines, _):
            return tag("pre", tag("code", join(map(escape, lines.split("\n")), "\n")))
        case blocks.Download(name, media_type, content):
            data = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
            link = tag("a", f"Download {name}", href=Markup(data), download=name)
            return tag("p", link, f" ({len(content):,} bytes)")
        case blocks.Group(inside, kind):
            return tag("div", _all(inside, level), class_=kind) if any(inside) else None
        case blocks.Folded(summary, inside):
            return tag("details", tag("summary", summary), _all(inside, level))
        case blocks.Section(title, inside, ident, kind):
            heading = tag(f"h{level}", _text(title), id=ident or None)
            return tag("section", heading, _all(inside, level + 1), class_=kind or None)


def _text(text: Text) -> Markup:
    if isinstance(text, Span):
        return _span(text)
    if isinstance(text, tuple):
        return join(map(_text, text))
    return Markup(escape(text).replace("/", "/<wbr>"))  # long names break there


def _span(span: Span) -> Markup:
    text, kind, href = span
    if kind == "verdict":
        sign = tag("path", d=SIGNS[str(text)])
        sign = tag("svg", sign, viewBox="0 0 16 16", aria_hidden="true")
        return tag("span", sign, text, class_=f"verdict {str(text).replace(' ', '-')}")
    if kind == "link":
        return tag("a", text, href=Markup(address(href)))
    return tag(kind, text) if kind in ("strong", "code") else tag("span", text, class_=kind)


def _table(table: blocks.Table) -> Markup:
    """A table in a box that scrolls by itself. Sorting and searching need scripts."""
    heads = table.heads()
    head = [
        tag("th", name, scope="col", class_=kind or None,
            data_sort="number" if kind in ("number", "estimate") else None)
        for name, kind in heads
    ]  # fmt: skip
    body = []
    for row in table.rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        body.append(tag("tr", *(
            tag("td" if i else "th", _text(text), scope=None if i else "row", data_v=key,
                class_=column.kind or None)
            for i, ((text, key), column) in enumerate(zip(cells, heads, strict=True))
        )))  # fmt: skip
    can = [("sortable", table.sortable and len(body) > 1), ("searchable", table.searchable)]
    whole = tag(
        "table",
        tag("caption", tag("span", table.caption)),
        tag("thead", tag("tr", *head)),
        tag("tbody", join(body, "\n")),
        class_=" ".join(name for name, yes in can if yes) or None,
    )
    return _scrolling(whole, table.caption)


def _picture(picture: blocks.Picture) -> Markup:
    caption = tag("figcaption", picture.caption)
    if picture.png is None:
        missing = tag("p", f"figures/{picture.name}.png cannot be embedded: see the file.")
        return tag("figure", missing, caption)
    width, height = struct.unpack(">II", picture.png[16:24].ljust(8, b"\0"))
    source = Markup("data:image/png;base64," + base64.b64encode(picture.png).decode())
    image = tag("img", src=source, alt=picture.caption, width=width, height=height)
    return tag("figure", _scrolling(image, picture.caption), caption)


def _scrolling(inside: Markup, name: str) -> Markup:
    """A box that scrolls by itself if the page is too narrow."""
    return tag("div", inside, class_="scroll", role="region", tabindex=0, aria_label=name)
