"""HTML from Python. Every text is escaped when it is added, so no row or config can add markup."""

import html
from collections.abc import Iterable

from sharpjax.report.words import clean

_VOID = frozenset({"meta", "img", "input"})
# Elements of SVG that are written without content.
_EMPTY = frozenset({"line", "rect", "circle", "path"})


class Markup(str):
    """Text that is HTML already. Only trusted text may become `Markup` without being escaped."""

    __slots__ = ()


Child = object  # Markup stays as it is; None gives nothing; all else is escaped as text


def escape(value: object) -> Markup:
    """
    >>> escape('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return Markup(html.escape(clean(value), quote=True))


def join(children: Iterable[Child], separator: str = "") -> Markup:
    return Markup(separator.join(_child(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element. `class_` gives `class`, `_` in names `-`; attributes None and False are left out.

    >>> tag("td", "a < b", class_="n", data_v=3, hidden=False)
    '<td class="n" data-v="3">a &lt; b</td>'
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{value if isinstance(value, Markup) else escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    if name in _EMPTY and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _child(child: Child) -> str:
    if child is None:
        return ""
    return str(child) if isinstance(child, Markup) else str(escape(child))
