"""Tables for a terminal: at the start and end of a run, and those of a study."""

import math
import re
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.protocol.summary import Summary, grid, summarize_last
from sharpjax.report import blocks, words

_SET = re.compile(r"train\[(\d*):(\d+)\]/(.+)")
# If a metric has more coordinates than this, none of them is listed.
_MOST_COORDINATES = 12
_MOST_LINED = 8  # columns of a table with lines between them
_HEAD = 10  # letters per line in the head of a column of numbers

Cells = Mapping[str, Mapping[str, str]]  # by line, by column


def print_table(
    rows: Iterable[Mapping[str, Any]],
    console: Console | None = None,
    *,
    arms: Sequence[str] = (),
) -> None:
    """Print mean, standard error and n of every metric and arm, each at its last step.

    Each arm has a column if all fit, else a line. Metrics of further measurement sets are not
    listed one by one. A second table gives, for each quantity, how far the mean over seeds varies
    between the disjoint sets.

    Args:
        arms: their order; further arms follow as they appear in the rows.
    """
    console = console or Console(width=width(), highlight=False)
    found = [s for s in summarize_last(rows, arms) if s.n or s.missing]
    coordinates = defaultdict(set)
    for s in found:
        coordinates[s.metric].add(s.of)
    many = [metric for metric, of in coordinates.items() if len(of) > _MOST_COORDINATES]
    table = grid(
        s
        for s in found
        if (s.of == "{}" or s.metric not in many) and not ((m := _SET.match(s.metric)) and m[1])
    )
    cells = {
        name: {arm: words.over_seeds(summary) for arm, summary in line.items()}
        for name, line in table.lines.items()
    }
    title = "at the last step: mean ± standard error over seeds (n)"
    _print(title, "metric", cells, table.arms, console)
    for metric in many:
        left = f"{words.many(len(coordinates[metric] - {'{}'}), 'coordinate')}, in the report"
        console.print(f"{metric}: {left}", markup=False)
    _print_spread(found, table.arms, console)


def table(shown: blocks.Table) -> Table:
    """A page's table for a terminal. If it has many columns, there are no lines between them."""
    heads = shown.heads()
    drawn = Table(title=escape(shown.caption), title_justify="left")
    if len(heads) > _MOST_LINED:
        drawn.box, drawn.pad_edge, drawn.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    for name, kind in heads:
        justify = "right" if kind == "number" else "left"
        kept = kind in ("name", "number", "id")
        ratio = {"claim": 2, "words": 3}.get(kind)
        lines = textwrap.wrap(name, _HEAD, break_long_words=False)
        head = escape("\n".join(lines) if kind == "number" else name)
        drawn.add_column(head, no_wrap=kept, justify=justify, overflow="fold", ratio=ratio)
    for row in shown.rows:
        drawn.add_row(*(escape(blocks.plain(cell)) for cell in row))
    return drawn


def verdict_table(judgements: Iterable[Judgement], title: str) -> Table:
    """A line for each hypothesis: its claim, its verdict and the reason."""
    columns = [blocks.Column(*pair) for pair in (
        ("hypothesis", "id"), ("claim", "claim"), ("verdict", "id"), ("reason", "words")
    )]  # fmt: skip
    rows = [(j.hypothesis.id, j.hypothesis.claim, j.verdict, j.reason) for j in judgements]
    return table(blocks.Table(title, columns, rows))


def parameter_table(shapes: Mapping[str, tuple[int, ...]], most: int = 30) -> Table:
    """Name, shape, size and share of each parameter. If there are more than `most`, each module at
    the top has one line; if these are still too many, the last ones share a line.

    >>> parameter_table({"head/kernel": (3, 4), "head/bias": (4,)}).row_count
    2
    """
    lines = [(name, str(list(shape)), math.prod(shape)) for name, shape in shapes.items()]
    if len(lines) > most:
        sizes: dict[str, list[int]] = {}
        for name, _, size in lines:
            sizes.setdefault(name.partition("/")[0], []).append(size)
        lines = [(name, words.many(len(each), "array"), sum(each)) for name, each in sizes.items()]
    if len(lines) > most:
        rest = lines[most - 1 :]
        lines[most - 1 :] = [(f"{len(rest)} more", "", sum(size for *_, size in rest))]
    total = sum(size for *_, size in lines)
    shown = ((name, shape, f"{size:,}", f"{size / total:.1%}") for name, shape, size in lines)
    return plain_table(("parameter", "shape", "size", "share"), shown, left=1)


def plain_table(heads: Sequence[str], lines: Iterable[Sequence[str]], *, left: int) -> Table:
    """A table without frames, with its first `left` columns aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, head in enumerate(heads):
        justify: Any = "left" if number < left else "right"
        table.add_column(escape(head), overflow="fold", justify=justify)
    for line in lines:
        table.add_row(*map(escape, line))
    return table


def as_text(table: Table) -> str:
    """A table as the text that would be printed, for a log."""
    console = Console(highlight=False, width=width())
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def width(usual: int = 120) -> int | None:
    """None for a terminal, whose width rich finds; for a file or a pipe the usual width."""
    return None if Console().is_terminal else usual


def _print_spread(summaries: Iterable[Summary], arms: Sequence[str], console: Console) -> None:
    sets: dict[str, dict[str, list[float]]] = {}
    for s in summaries:
        if (match := _SET.match(s.metric)) and s.of == "{}":
            sets.setdefault(match[3], {}).setdefault(s.arm, []).append(s.mean)
    cells = {
        quantity: {
            arm: words.mean_and_error(statistics.mean(means), statistics.stdev(means))
            for arm, means in by_arm.items()
            if len(means) > 1
        }
        for quantity, by_arm in sets.items()
    }
    cells = {quantity: line for quantity, line in cells.items() if line}
    if cells:
        count = max(len(means) for by_arm in sets.values() for means in by_arm.values())
        title = f"over {count} disjoint measurement sets: mean ± standard deviation of the seeds'"
        _print(f"{title} means", "quantity", cells, arms, console)


def _print(title: str, corner: str, cells: Cells, arms: Sequence[str], console: Console) -> None:
    """Print names by arms if that fits, else a line for each name and arm."""
    arms = [arm for arm in arms if any(arm in line for line in cells.values())]
    drawn = _grid(corner, arms)
    for name, line in cells.items():
        drawn.add_row(*map(escape, (name, *(line.get(arm, "") for arm in arms))))
    unbounded = console.options.update(max_width=10_000)
    if console.measure(drawn, options=unbounded).maximum > console.width:
        drawn = _grid(f"{corner}, arm", [""])
        for name, line in cells.items():
            drawn.add_row(escape(name))
            for arm in (arm for arm in arms if arm in line):
                drawn.add_row(*map(escape, (f"  {arm}", line[arm])))
    console.print(title, style="italic", markup=False)
    console.print(drawn)


def _grid(corner: str, heads: Sequence[str]) -> Table:
    drawn = Table(show_edge=False, padding=(0, 1))
    for i, head in enumerate((corner, *heads)):
        drawn.add_column(escape(head), justify="right" if i else "left", overflow="fold")
    return drawn
