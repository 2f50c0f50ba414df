"""Drawings as inline SVG: estimates with their intervals, and the points behind them.

They are 360 units wide, so that their text can be read on a phone. The page's style gives colours
by class. Every drawing has a description in words for readers who cannot see it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sharpjax.report import words
from sharpjax.report.axis import Axis, fit
from sharpjax.report.elements import Markup, tag

WIDTH = 360
_LABELS = 92  # x where the points begin, right of the name of their group
_ROW = 30
MOST_POINTS = 200
_MOST_SCATTERED = 1_000
_MOST_LETTERS = 14


class Interval(NamedTuple):
    """The result of a test, as it is drawn; NaN where a number is not known."""

    effect: float
    low: float
    high: float
    null: float
    margin: float | None = None

    def ends(self) -> tuple[float, ...]:
        band = () if not self.margin else (self.null - self.margin, self.null + self.margin)
        return (self.effect, self.low, self.high, self.null, *band)

    def in_words(self) -> str:
        """The interval as a sentence."""
        text = f"Estimate {words.estimate(self.effect, self.low, self.high)}"
        text += f"; null {words.number(self.null)}"
        if self.margin:
            text += f"; smallest effect of interest {words.number(self.margin)}"
        return text + "."


class Line(NamedTuple):
    """A line of a forest plot: `label` stands above the interval, `verdict` right of the label."""

    interval: Interval
    label: str = ""
    verdict: str = ""


def forest(lines: Sequence[Line], *, title: str) -> Markup:
    """Estimates as dots and intervals as lines on one axis, each with its null and its margin."""
    axis = fit((x for line in lines for x in line.interval.ends()), 14, WIDTH - 14)
    parts, y = [], 14.0
    at = axis.at(lines[0].interval.null)
    anchor = "start" if at < 30 else "end" if at > WIDTH - 30 else "middle"
    parts.append(_text("null", at, 10, anchor=anchor, class_="minor"))
    for drawn, label, verdict in lines:
        high = 40 if label else 44
        parts += _ground(drawn, axis, top=y, bottom=y + high)
        middle = y + (28 if label else 22)
        if label:
            class_ = f"label {verdict.replace(' ', '-')}"
            parts.append(_text(_short(label, 50 - len(verdict)), 0, y + 14, class_="label"))
            parts.append(_text(verdict, WIDTH, y + 14, anchor="end", class_=class_))
        parts += _line_and_dot(drawn, axis, middle)
        y += high
    described = " ".join(f"{line.label}: {line.interval.in_words()}".lstrip(": ") for line in lines)
    return _figure([*parts, *_bottom_axis(axis, y)], y + 22, title, described)


def characters(lines: Sequence[Line], width: int = 60) -> str:
    """The forest plot in characters. The margin is shaded; a line without an interval is left out.

    >>> print(characters([Line(Interval(2.0, 1.0, 3.0, 0.0))], 30))
      ┊       ├────────●───────┤
    """
    known = [line for line in lines if all(map(math.isfinite, line.interval[:4]))]
    axis = fit((x for line in known for x in line.interval.ends()), 0, width - 1)
    shown = []
    for drawn, label, verdict in known:
        low, high, at, null = (
            round(axis.at(x)) for x in (drawn.low, drawn.high, drawn.effect, drawn.null)
        )
        cells = [" "] * width
        if drawn.margin:
            left, right = (round(axis.at(drawn.null + s * drawn.margin)) for s in (-1, 1))
            cells[left : right + 1] = "░" * (right + 1 - left)
        cells[null] = "┊"
        cells[low : high + 1] = "─" * (high + 1 - low)
        if low <= null <= high:
            cells[null] = "┼"
        cells[low], cells[high], cells[at] = "├", "┤", "●"
        shown += [f"{label} ({verdict})"] * bool(label) + ["".join(cells).rstrip()]
    return "\n".join(shown)


def points(
    groups: Sequence[tuple[str, np.ndarray]],
    *,
    title: str,
    paired: bool = False,
    seen: Sequence[np.ndarray] | None = None,
) -> Markup:
    """A row for each group: every unit as a point, and a bar at the mean.

    If all values are 0 or 1 a row shows their share of ones. A group of more than `MOST_POINTS`
    values is drawn as a box.

    Args:
        groups: name and values; values that are not finite are left out, and counted in words.
        paired: whether to join the points of one unit by lines.
        seen: for times, False for a censored unit, whose point is hollow.
    """
    arrays = [np.asarray(values, np.float64) for _, values in groups]
    finite = [x[np.isfinite(x)] for x in arrays]
    everything = np.concatenate([*finite, np.zeros(0)])
    shares = _are_truth_values(everything)
    ends = [0.0, 1.0] if shares else everything.tolist()
    axis = fit(ends, _LABELS, WIDTH - 14, log=True)
    base = _ROW * len(groups) + 6
    places = [_ROW * (i + 0.5) + 2 for i in range(len(groups))]
    parts = []
    if paired and not shares:
        parts += _pair_lines(arrays, places, axis)
    for i, ((name, _), x, y) in enumerate(zip(groups, finite, places, strict=True)):
        parts.append(_text(_short(name, tail=7), 0, y + 4))
        if not x.size:
            parts.append(_text("no values", _LABELS, y + 4, class_="minor"))
        elif shares:
            parts += _share(x, axis, y)
        elif x.size > MOST_POINTS:
            parts += _box(x, axis, y)
        else:
            hollow = np.zeros(x.size, bool) if seen is None else ~seen[i][np.isfinite(arrays[i])]
            parts += _dots(x, hollow, axis, y, spread=not paired)
    described = " ".join(in_words(name, x) for (name, _), x in zip(groups, arrays, strict=True))
    return _figure([*parts, *_bottom_axis(axis, base)], base + 22, title, described)


def scatter(first: tuple[str, np.ndarray], second: tuple[str, np.ndarray], *, title: str) -> Markup:
    """Two quantities of the same units, the first to the right, the second upwards.

    If there are very many points, one in `one_in` is drawn; the axes fit all of them.
    """
    x, y = (np.asarray(values, np.float64) for _, values in (first, second))
    both = np.isfinite(x) & np.isfinite(y)
    base = 200
    across = fit(x[both].tolist(), 52, WIDTH - 14, log=True)
    upwards = fit(y[both].tolist(), base, 26, log=True)
    parts = [_text(_short(second[0], 44), 0, 12)]
    for tick in upwards.ticks(5):
        at = upwards.at(tick)
        parts.append(tag("line", x1=48, x2=52, y1=at, y2=at, class_="axis"))
        parts.append(_text(words.number(tick, 3), 45, at + 4, anchor="end", class_="tick"))
    parts.append(tag("line", x1=52, x2=52, y1=20, y2=base, class_="axis"))
    opacity = "point" if both.sum() <= 60 else "point faint"
    every = one_in(int(both.sum()))
    for a, b in zip(x[both][::every], y[both][::every], strict=True):
        parts.append(tag("circle", cx=across.at(a), cy=upwards.at(b), r=3.2, class_=opacity))
    parts += _bottom_axis(across, base)
    parts.append(_text(_short(first[0], 44), WIDTH - 14, base + 38, anchor="end"))
    description = (
        f"{words.many(int(both.sum()), 'point')}. {in_words(first[0], x)} {in_words(second[0], y)}"
    )
    return _figure(parts, base + 44, title, description)


def one_in(count: int) -> int:
    """
    >>> one_in(1_000), one_in(10_000)
    (1, 10)
    """
    return max(1, -(-count // _MOST_SCATTERED))


# Parts.


def _ground(drawn: Interval, axis: Axis, *, top: float, bottom: float) -> list[Markup]:
    parts = []
    if drawn.margin:
        left, right = axis.at(drawn.null - drawn.margin), axis.at(drawn.null + drawn.margin)
        parts.append(
            tag("rect", x=left, y=top, width=round(right - left, 2), height=bottom - top,
                class_="band")
        )  # fmt: skip
    at = axis.at(drawn.null)
    return [*parts, tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="null")]


def _line_and_dot(drawn: Interval, axis: Axis, y: float, radius: float = 4.5) -> list[Markup]:
    parts = []
    if not (math.isnan(drawn.low) or math.isnan(drawn.high)):
        left, right = axis.at(drawn.low), axis.at(drawn.high)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="interval"))
        for at, end, outwards in ((left, drawn.low, -1), (right, drawn.high, 1)):
            if math.isinf(end):
                d = f"M{at - 5 * outwards} {y - 5}L{at} {y}L{at - 5 * outwards} {y + 5}"
            else:
                d = f"M{at} {y - radius}V{y + radius}"
            parts.append(tag("path", d=d, class_="interval"))
    if math.isfinite(drawn.effect):
        parts.append(tag("circle", cx=axis.at(drawn.effect), cy=y, r=radius, class_="estimate"))
    return parts


def _pair_lines(arrays: list[np.ndarray], places: list[float], axis: Axis) -> list[Markup]:
    if len({x.size for x in arrays}) != 1 or arrays[0].size > MOST_POINTS:
        return []
    lines = []
    for unit in zip(*arrays, strict=True):
        at = [(axis.at(v), y) for v, y in zip(unit, places, strict=True) if math.isfinite(v)]
        if len(at) > 1:
            path = "L".join(f"{x:g} {y:g}" for x, y in at)
            lines.append(tag("path", d=f"M{path}", class_="pair"))
    return lines


def _dots(x: np.ndarray, hollow: np.ndarray, axis: Axis, y: float, *, spread: bool) -> list[Markup]:
    places = [axis.at(v) for v in x]
    offsets = _beside(places) if spread else [0.0] * len(places)
    dots = [
        tag("circle", cx=at, cy=y + up, r=3.2, class_="point hollow" if open_ else "point")
        for at, up, open_ in zip(places, offsets, hollow.tolist(), strict=True)
    ]
    return [*dots, _mean(x, axis, y)]


def _beside(places: list[float]) -> list[float]:
    """Vertical shifts, so that points do not hide each other."""
    heights = [0.0] * len(places)
    done: list[int] = []
    for i in sorted(range(len(places)), key=places.__getitem__):
        near = [heights[j] for j in done if places[i] - places[j] < 5]
        free = (h for h in (0.0, 4.5, -4.5, 9.0, -9.0) if all(abs(h - k) > 4 for k in near))
        heights[i] = next(free, 0.0)
        done.append(i)
    return heights


def _box(x: np.ndarray, axis: Axis, y: float) -> list[Markup]:
    """Range, quartiles, median and mean of values too many to draw as points."""
    low, first, median, third, high = (axis.at(q) for q in np.quantile(x, (0, 0.25, 0.5, 0.75, 1)))
    return [
        tag("line", x1=low, x2=high, y1=y, y2=y, class_="range"),
        tag("rect", x=first, y=y - 6, width=round(max(third - first, 0.5), 2), height=12,
            class_="box"),
        tag("line", x1=median, x2=median, y1=y - 6, y2=y + 6, class_="range"),
        _mean(x, axis, y),
    ]  # fmt: skip


def _share(x: np.ndarray, axis: Axis, y: float) -> list[Markup]:
    start, end = axis.at(0), axis.at(float(x.mean()))
    text = f"{int(x.sum()):,} of {x.size:,}"
    inside = end > (start + axis.end) / 2
    at, anchor = (end - 5, "end") if inside else (end + 5, "start")
    return [
        tag("rect", x=start, y=y - 8, width=round(end - start, 2), height=16, class_="share"),
        _text(text, at, y + 4, anchor=anchor, class_="on-share" if inside else None),
    ]


def _mean(x: np.ndarray, axis: Axis, y: float) -> Markup:
    at = axis.at(float(x.mean()))
    return tag("line", x1=at, x2=at, y1=y - 10, y2=y + 10, class_="mean")


def _bottom_axis(axis: Axis, y: float) -> list[Markup]:
    parts = [tag("line", x1=axis.start, x2=axis.end, y1=y, y2=y, class_="axis")]
    for tick in axis.ticks(5 if axis.end - axis.start > 280 else 4):
        at = axis.at(tick)
        parts.append(tag("line", x1=at, x2=at, y1=y, y2=y + 4, class_="axis"))
        parts.append(_text(words.number(tick, 3), at, y + 16, anchor="middle", class_="tick"))
    return parts


def _text(
    text: str, x: float, y: float, *, anchor: str | None = None, class_: str | None = None
) -> Markup:
    return tag("text", text, x=round(x, 2), y=y, text_anchor=anchor, class_=class_)


def _figure(parts: Sequence[Markup], height: float, title: str, description: str) -> Markup:
    box = f"0 0 {WIDTH} {height:g}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=f"{title}. {description}")


def _short(name: str, most: int = _MOST_LETTERS, tail: int = 0) -> str:
    """A name cut to `most` letters. The last `tail` letters stay, in which names such as
    `add97-svd_12-80` differ.

    >>> _short("add97-svd_12-80"), _short("add97-svd_12-80", tail=7)
    ('add97-svd_12-…', 'add97-…d_12-80')
    """
    name = words.clean(name)
    if len(name) <= most:
        return name
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def in_words(name: str, values: np.ndarray) -> str:
    """A group as a sentence.

    >>> in_words("sam", np.array([1.0, 2.0, np.nan]))
    'sam: 2 values from 1 to 2, mean 1.5, 1 not finite.'
    """
    x = values[np.isfinite(values)]
    lost = values.size - x.size
    text = f"{words.clean(name)}: {words.many(x.size, 'value')}"
    if x.size:
        low, high, mean = (words.number(float(v)) for v in (x.min(), x.max(), x.mean()))
        text += f" from {low} to {high}, mean {mean}"
    return text + (f", {lost} not finite." if lost else ".")


def _are_truth_values(x: np.ndarray) -> bool:
    return x.size > 1 and bool(np.isin(x, (0.0, 1.0)).all())
