"""Styles of arms. They differ in colour, and without colours in marker and filling."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from sharpjax.errors import UserError

# Okabe and Ito's palette for colour-blind readers, without its yellow, too pale for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", ">")
FILLS = ("full", "none", "left", "bottom")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MOST = len(MARKERS) * len(FILLS)


class Style(NamedTuple):
    """The style of an arm. `dash` changes with `fill`, for lines without markers."""

    color: str
    marker: str
    fill: Any
    dash: Any

    @property
    def marked(self) -> dict[str, Any]:
        """Arguments of a matplotlib line, for its colour and markers."""
        return {
            "color": self.color,
            "marker": self.marker,
            "fillstyle": self.fill,
            "markerfacecoloralt": "white",
            "markersize": 6 if self.marker == "*" else 4.5,
            "markeredgewidth": 0.8,
        }


def styles(arms: Iterable[str]) -> dict[str, Style]:
    """A style for each arm. No two have the same colour and marker, or the same marker and filling.

    Raises:
        UserError: there are more arms than styles.

    >>> styles(["sgd", "sam"])["sam"]
    Style(color='#D55E00', marker='s', fill='full', dash='-')
    """
    names = list(dict.fromkeys(arms))
    if len(names) > MOST:
        raise UserError(
            f"plots: {len(names)} arms cannot be told apart in one picture; the most is {MOST}: "
            "draw several."
        )
    return {name: _style(i) for i, name in enumerate(names)}


def _style(i: int) -> Style:
    again = i // len(MARKERS)
    return Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], FILLS[again], DASHES[again])
