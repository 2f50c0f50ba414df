"""The type of a figure, and helpers for axes and legends."""

import io
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib import figure

_ROWS_OF_LEGEND = 20


class Figure(NamedTuple):
    """A figure that is drawn later.

    Attributes:
        name: of its file, without suffix, such as `accuracy-add97-80`.
        caption: what it shows, also for readers who cannot see it; states n.
        draw: draws it.
        metrics: that it shows. In the report it stands beside a hypothesis about one of them.
    """

    name: str
    caption: str
    draw: "Callable[[], figure.Figure]"
    metrics: tuple[str, ...] = ()


def png(drawn: "figure.Figure") -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    file = io.BytesIO()
    drawn.savefig(file, format="png")
    return file.getvalue()


def axes(
    count: int = 1,
    *,
    size: tuple[float, float] = (4.5, 3.4),
    most: int = 3,
    names: Sequence[str] = (),
) -> "tuple[figure.Figure, list[Any]]":
    """An empty figure and `count` axes, at most `most` in a row.

    Args:
        size: of each, in inches.
        names: the entries of the legend, for which room is left on the right.
    """
    from matplotlib.figure import Figure

    columns = min(count, most)
    rows = -(-count // columns)
    letters = max(map(len, names), default=0)
    beside = _columns_of_legend(names) * (0.6 + 0.065 * letters) * bool(names)
    high = max(size[1] * rows, 0.5 + 0.19 * min(len(names), _ROWS_OF_LEGEND))
    figure = Figure(figsize=(size[0] * columns + beside, high), layout="constrained", dpi=150)
    every = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axis in every[count:]:
        axis.remove()
    for axis in every[:count]:
        axis.spines[["top", "right"]].set_visible(False)
        # For small and large numbers the power of ten is written once, at the end of the axis.
        axis.ticklabel_format(scilimits=(-3, 5))
    return figure, every[:count]


def legend(figure: "figure.Figure", handles: Mapping[str, Any], title: str) -> None:
    """Put the legend right of all axes, so that it hides nothing."""
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside right upper",
        ncols=_columns_of_legend(handles),
        title=title,
        alignment="left",
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        handlelength=2.6,
    )


def _columns_of_legend(entries: Sized) -> int:
    return max(1, -(-len(entries) // _ROWS_OF_LEGEND))


def logarithmic(axis: Any, which: Literal["x", "y"]) -> None:
    """Make one axis logarithmic, after everything is drawn. Values that are not positive are left
    out, and labels do not overlap."""
    from matplotlib import ticker

    getattr(axis, f"set_{which}scale")("log", nonpositive="mask")
    own = getattr(axis, f"{which}axis")
    low, high = own.get_view_interval()
    if high < 1e2 * low:  # else powers of ten are enough
        own.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        own.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    own.set_minor_formatter(ticker.NullFormatter())
