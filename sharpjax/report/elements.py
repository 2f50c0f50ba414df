"""HTML from Python: every text is escaped on its way in, so no row or config can add markup."""

import html
from collections.abc import Iterable

from sharpjax.report.words import clean

_VOID = frozenset({"meta", "img", "input"})
# Elements of SVG that are written without content.
_EMPTY = frozenset({"line", "rect", "circle", "path"})


class Markup(str):
    """Text that is HTML already. `tag` and `join` make it; nothing else should."""

    __slots__ = ()


Child = object  # Markup as it is; None: nothing; anything else: its text, escaped


def escape(value: object) -> Markup:
    """
    >>> escape('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return Markup(html.escape(clean(value), quote=True))


def join(children: Iterable[Child], separator: str = "") -> Markup:
    return Markup(separator.join(_child(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element. Attributes: `class_` is `class`, `_` in names is `-`; None and False: left out.

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
