"""The table at the end of a run."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sharpjax.protocol.summary import Summary, summarize_last
from sharpjax.protocol.verdicts import Judgement
from sharpjax.report import content

_SET = re.compile(r"train\[(\d*):(\d+)\]/(.+)")


def print_table(rows: Iterable[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print mean, standard error and n of every metric and arm at its last step.

    Metrics of further measurement sets are not listed one by one: a second table gives, for each
    quantity, the spread of the mean over seeds among the disjoint sets.
    """
    console = console or Console(width=None if Console().is_terminal else 120)
    summaries = summarize_last(rows)
    arms = list(dict.fromkeys(s.arm for s in summaries))
    first = [s for s in summaries if not (m := _SET.match(s.metric)) or not m[1]]
    table = Table(
        title="at the last step: mean ± standard error over seeds (n)", title_justify="left"
    )
    table.add_column("metric", no_wrap=True)
    for arm in arms:
        table.add_column(arm, justify="right", no_wrap=True)
    cells = {(s.metric, s.arm): s for s in first}
    for metric in dict.fromkeys(s.metric for s in first):
        table.add_row(metric, *(_cell(cells.get((metric, arm))) for arm in arms))
    console.print(table)
    _print_spread(summaries, arms, console)


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


def _print_spread(summaries: list[Summary], arms: list[str], console: Console) -> None:
    sets: dict[tuple[str, str], list[float]] = {}
    for s in summaries:
        if match := _SET.match(s.metric):
            sets.setdefault((match[3], s.arm), []).append(s.mean)
    sets = {key: means for key, means in sets.items() if len(means) > 1}
    if not sets:
        return
    count = max(map(len, sets.values()))
    title = f"over {count} disjoint measurement sets: mean ± standard deviation of the seeds' means"
    table = Table(title=title, title_justify="left")
    table.add_column("quantity", no_wrap=True)
    for arm in arms:
        table.add_column(arm, justify="right", no_wrap=True)
    for quantity in dict.fromkeys(quantity for quantity, _ in sets):
        cells = [
            _format(statistics.mean(sets[quantity, arm]), statistics.stdev(sets[quantity, arm]))
            if (quantity, arm) in sets
            else ""
            for arm in arms
        ]
        table.add_row(quantity, *cells)
    console.print(table)


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f"{_format(summary.mean, summary.standard_error)} ({summary.n})"


def _format(mean: float, standard_error: float) -> str:
    if math.isnan(standard_error):
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {standard_error:.2g}"
