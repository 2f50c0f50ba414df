"""Tables for a terminal: at the start of a run, at its end, and those of a study."""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.protocol.summary import Summary, grid, summarize_last
from sharpjax.report import content, words

_SET = re.compile(r"train\[(\d*):(\d+)\]/(.+)")
# Of a metric with more coordinates than this none is listed.
_MOST_COORDINATES = 12
_BETWEEN = 3  # characters between the texts of two columns

Cells = Mapping[str, Mapping[str, str]]  # by line, by column


def print_table(
    rows: Iterable[Mapping[str, Any]],
    console: Console | None = None,
    *,
    arms: Sequence[str] = (),
) -> None:
    """Print mean, standard error and n of every metric and arm, each at its last step.

    A line for each metric where two tables are enough for the arms; else a line for each arm, and
    as many tables as the metrics take. Metrics of further measurement sets are not listed one by
    one: a second table gives, for each quantity, the spread of the mean over seeds among the
    disjoint sets.

    Args:
        arms: their order; those that it does not name follow as they appear in the rows.
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


def study_table(shown: content.Table) -> Table:
    """A study's own table for a terminal."""
    table = Table(title=shown.caption, title_justify="left")
    for number, column in enumerate(shown.columns):
        table.add_column(column, no_wrap=True, justify="right" if number else "left")
    for row in shown.rows:
        table.add_row(*map(escape, row))
    return table


def verdict_table(judgements: Iterable[Judgement], title: str) -> Table:
    """One line for each hypothesis: what was claimed, and what it came to."""
    table = Table(title=title, title_justify="left")
    table.add_column("hypothesis", no_wrap=True)
    table.add_column("claim", ratio=2)
    table.add_column("verdict", no_wrap=True)
    table.add_column("reason", ratio=3)
    for j in judgements:
        table.add_row(*map(escape, (j.hypothesis.id, j.hypothesis.claim, j.verdict, j.reason)))
    return table


def power_table(rows: Iterable[Mapping[str, Any]], title: str) -> Table:
    """What a registration says of each contrast's power, a line each."""
    table = Table(title=title, title_justify="left")
    for name in ("hypothesis", "contrast"):
        table.add_column(name, overflow="fold")
    for name in (
        *("n", "alpha", "smallest p", "power\nat 1 sd", "seen with\npower 0.8"),
        *("power at\nmargin", "equivalent:\nchance, needs"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        detectable, cluster = row.get("detectable"), row.get("cluster") or 1
        table.add_row(
            *(str(row.get(name, "")) for name in ("hypothesis", "contrast")),
            ", ".join(map(str, row.get("n", ()))) + (f" of {cluster}" if cluster > 1 else ""),
            *(_number(row.get(name)) for name in ("alpha", "smallest_p")),
            _number((row.get("power") or {}).get("1.0")),
            "-" if detectable is None else f"{_number(detectable)} sd",
            _number(row.get("power_at_margin")),
            _equivalent(row),
        )
    return table


def _equivalent(row: Mapping[str, Any]) -> str:
    """The chance of it, and how many units it needs."""
    if not isinstance(chance := row.get("equivalent"), int | float):
        return "-"
    likely = row.get("equivalent_likely")
    return f"{chance:.2g}, n = {likely:,}" if likely else f"{chance:.2g}"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def parameter_table(shapes: Mapping[str, tuple[int, ...]], most: int = 30) -> Table:
    """Name, shape, size and share of each parameter; of more than `most`, those of each module at
    the top together.

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
    """A table without frames, its first `left` columns to the left."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, head in enumerate(heads):
        justify: Any = "left" if number < left else "right"
        table.add_column(escape(head), overflow="fold", justify=justify)
    for line in lines:
        table.add_row(*map(escape, line))
    return table


def as_text(table: Table) -> str:
    """What would be printed, for a log."""
    console = Console(highlight=False, width=width())
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def width(usual: int = 120) -> int | None:
    """That of the terminal, as rich takes it; of a file or a pipe the usual one."""
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
    """Lines as they are where two tables are enough; else turned over, a few to each table."""
    columns = [arm for arm in arms if any(arm in line for line in cells.values())]
    blocks = list(_blocks(cells, columns, {arm: arm for arm in columns}, console.width))
    if len(blocks) > 2:
        corner, turned = "arm", {arm: {} for arm in columns}
        for name, line in cells.items():
            for arm, text in line.items():
                turned[arm][name] = text
        heads = {name: _head(name, line.values()) for name, line in cells.items()}
        cells, blocks = turned, list(_blocks(turned, list(heads), heads, console.width))
    console.print(title, style="italic", markup=False)
    for block in blocks:
        table = Table()
        table.add_column(corner, no_wrap=True)
        for head in block.values():
            table.add_column(escape(head), justify="right", no_wrap=True)
        for name, line in cells.items():
            if not block.keys().isdisjoint(line):  # arms with coordinates of their own have others
                table.add_row(*map(escape, (name, *(line.get(column, "") for column in block))))
        console.print(table)


def _blocks(
    cells: Cells, columns: Sequence[str], heads: Mapping[str, str], width: int
) -> Iterator[dict[str, str]]:
    """The columns and their heads, as many at a time as fit beside the names of the lines."""
    left = max(map(len, cells), default=0) + _BETWEEN + 1
    block, used = {}, left
    for column in columns:
        texts = (*heads[column].split("\n"), *(line.get(column, "") for line in cells.values()))
        wide = max(map(len, texts)) + _BETWEEN
        if block and used + wide > width:
            yield block
            block, used = {}, left
        block[column] = heads[column]
        used += wide
    yield block


def _head(name: str, texts: Iterable[str]) -> str:
    """A name as `train[:64]/hessian/trace` on several lines, as wide as what stands below it."""
    parts = re.split(r"(?<=/)| (?={)", name)
    width = max(map(len, (*parts, *texts)))
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
