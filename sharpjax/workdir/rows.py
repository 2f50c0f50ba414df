"""The long table of a run, as lines of JSON."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sharpjax.errors import UserError
from sharpjax.workdir.files import canonical_json, open_regular
from sharpjax.workdir.untrusted import parse_json

COLUMNS = ("study", "arm", "seed", "step", "of", "metric", "value", "standard_error")
MAX_LINE_BYTES = 2**16
# For a file from elsewhere; so many take some 5 GB of memory.
MAX_ROWS = 5_000_000

Row = dict[str, Any]


def rows_in(path: epath.Path, *, most: float = MAX_ROWS) -> Iterator[Row]:
    """The rows of `results.jsonl` or of a segment, one by one.

    Raises:
        UserError: a line is too long, not strict JSON, or not a row; the last one is torn; there
            are more than `most`; the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}: line {number}"
                if number > most:
                    raise UserError(f"{path} has more than {most:,} rows, the most it may.")
                if not line.endswith(b"\n"):
                    long = len(line) > MAX_LINE_BYTES
                    what = f"longer than {MAX_LINE_BYTES:,} bytes" if long else "not whole"
                    raise UserError(f"{where} is {what}.")
                yield check_row(parse_json(line, where), where)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def check_row(row: Any, where: str) -> Row:
    """`row`, if it is one.

    Raises:
        UserError: it has other columns, or a column has another type.
    """
    if not isinstance(row, dict) or row.keys() != set(COLUMNS):
        raise UserError(f"{where} is no row: it must have the columns {', '.join(COLUMNS)}.")
    wrong = (
        *(name for name in ("study", "arm", "metric") if not isinstance(row[name], str)),
        *(name for name in ("seed", "step") if type(row[name]) is not int),
        *(() if isinstance(row["of"], dict) else ("of",)),
        *(name for name in ("value", "standard_error") if not _is_number(row[name])),
    )
    if wrong:
        shown = json.dumps(row[wrong[0]])[:40]
        raise UserError(f"{where} is no row: its {wrong[0]} is {shown}.")
    return row


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, float) or type(value) is int


def lines_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as stored: one line each, with columns in order; numbers not finite become null.

    Raises:
        ValueError: a row has other columns, or of other types.
    """
    return "".join(_line(row) + "\n" for row in rows)


def _line(row: Mapping[str, Any]) -> str:
    if row.keys() != set(COLUMNS):
        raise ValueError(f"a row has the columns {', '.join(COLUMNS)}; not {', '.join(row)}")
    columns = {name: row[name] for name in COLUMNS}
    columns["of"] = json.loads(canonical_json(row["of"]))
    columns["value"] = _finite(row["value"])
    columns["standard_error"] = _finite(row["standard_error"])
    check_row(columns, "what is written")
    return json.dumps(columns, separators=(",", ":"), allow_nan=False)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
