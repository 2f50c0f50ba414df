"""The table in the form that is known from WeightWatcher."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.errors import UserError, unknown
from sharpjax.layerwise.data_free.convention import SCALE_FREE, Convention, other_rule_below
from sharpjax.layerwise.data_free.eigenvalues import LEAST, MOST
from sharpjax.layerwise.data_free.table import (
    OVER_TRAINED,
    UNDER_TRAINED,
    Metrics,
    Status,
    Table,
)

if TYPE_CHECKING:
    from rich.table import Table as RichTable

USUAL = (
    *("alpha", "D", "alpha_weighted", "log_alpha_norm", "log_norm", "log_spectral_norm"),
    *("stable_rank", "entropy", "mp_softrank", "num_spikes"),
)


def as_rich(table: Table, columns: Sequence[str] = USUAL) -> "RichTable":
    """A table for a terminal: `rich.print(as_rich(table))`.

    The last column says why a layer has no numbers, or, in WeightWatcher's words, that alpha is
    below 2 (over-trained) or above 6 (under-trained). The last line has the means over the layers.

    Args:
        table: of one network.
        columns: names of `Metrics`.

    Raises:
        UserError: an unknown column, or the table of a population.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, head in enumerate(_heads("as_rich", table, columns)):
        drawn.add_column(escape(head), justify="left" if number < 1 else "right")
    for line in _lines(table, columns):
        drawn.add_row(*map(escape, line))
    return drawn


def as_text(table: Table, columns: Sequence[str] = USUAL) -> str:
    """The same in plain text, without a limit on the width.

    >>> from sharpjax.layerwise import data_free
    >>> table = data_free.data_free({"kernel": np.diag(np.arange(1.0, 13))})
    >>> print(as_text(table, ["stable_rank"]))
    layer    N   M  num_evals  stable_rank  note
    kernel  12  12         12        4.514
    mean                             4.514
    """
    lines = [_heads("as_text", table, columns), *_lines(table, columns)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 0 < i < len(widths) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def note(status: int, alpha: float) -> str:
    """The note on a layer in the last column.

    >>> note(0, 7.5), note(3, float("nan"))
    ('under-trained', 'too few')
    """
    if status != Status.OK:
        return Status(status).name.lower().replace("_", " ")
    if alpha < OVER_TRAINED:
        return "over-trained"
    return "under-trained" if alpha > UNDER_TRAINED else ""


def reason(status: int, convention: Convention = SCALE_FREE) -> str:
    """In words, why a layer has no power law, or one by another rule; '' if its status is OK.

    >>> reason(Status.TOO_FEW)
    'too few: it has fewer than 10 eigenvalues'
    """
    floor = "the rounding of its largest" if convention.floor is None else f"{convention.floor:g}"
    least, kept = convention.min_evals, convention.min_kept
    return {
        Status.OK: "",
        Status.NOT_A_MATRIX: "not a matrix: it has fewer than two axes, or no entry",
        Status.NOT_FINITE: "not finite: weights are NaN or infinite",
        Status.TOO_FEW: f"too few: it has fewer than {least} eigenvalues",
        Status.LOW_RANK: f"low rank: fewer than {kept} of its eigenvalues are above {floor}, so "
        "there is no power law",
        Status.NO_TAIL: "no tail: its eigenvalues are all equal but for rounding, so there is no "
        "power law",
        Status.OUT_OF_RANGE: f"out of range: its largest weight is above {MOST:g} or below "
        f"{LEAST:g}, where squares leave float64; scale the layer",
        Status.OTHER_RULE: f"other rule: fewer than {other_rule_below(convention)} of its "
        f"eigenvalues are above {floor}; WeightWatcher fits alpha, D, xmin and sigma of these by a "
        "rule that is not built, so they are not its numbers",
    }[Status(status)]


def check_columns(columns: Sequence[str], caller: str = "") -> None:
    """Refuses unknown columns.

    Raises:
        UserError: names `caller`; a name that is not in `Metrics`, or no sequence of names.
    """
    said = f"{caller}: " * bool(caller)
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise UserError(
            f"{said}columns={columns!r}; give a sequence of names, such as ['alpha', 'D']."
        )
    for name in columns:
        if name not in Metrics._fields:
            raise UserError(said + str(unknown("column", name, Metrics._fields)))


def _heads(caller: str, table: Table, columns: Sequence[str]) -> list[str]:
    check_columns(columns, caller)
    if np.ndim(table.status) != 1:
        raise UserError(
            f"{caller}: a table is printed of one network; take a member of the population: "
            "`table.member(0)`."
        )
    return ["layer", "N", "M", "num_evals", *columns, "note"]


def _lines(table: Table, columns: Sequence[str]) -> Iterator[list[str]]:
    for i, name in enumerate(table.names):
        sizes = [str(each[i]) for each in (table.N, table.M, table.num_evals)]
        cells = [_number(getattr(table.metrics, column)[i]) for column in columns]
        yield [name, *sizes, *cells, note(int(table.status[i]), table.metrics.alpha[i])]
    means = table.summary()
    yield ["mean", "", "", "", *(_number(means[column]) for column in columns), ""]


def _number(value: Any) -> str:
    """Four significant digits; empty for NaN.

    >>> _number(3.14159), _number(float("nan"))
    ('3.142', '')
    """
    return "" if np.isnan(value) else f"{value:.4g}"
