"""The results of the simulated studies, one line per arm."""

from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.train.results import Row

_SHOWN = (
    ("seed/rejection_rate", "rejected"),
    ("seed/exaggeration", "significant estimate / truth"),
    ("registry/bias", "pooled estimate - truth"),
)


def tables(rows: list[Row]) -> tuple[Table, ...]:
    """Mean and standard error over seeds, or over registries."""
    # Registries are independent within a seed and between seeds, so the mean is over all of them.
    pooled = ({**row, "of": {}} for row in rows)
    cells = {(s.arm, s.metric): s for s in summarize_last(pooled) if s.n}
    lines = []
    for arm in dict.fromkeys(arm for arm, _ in cells):
        found = [cells.get((arm, metric)) for metric, _ in _SHOWN]
        shown = (f"{s.mean:.4f} ± {s.standard_error:.4f}" if s else "" for s in found)
        lines.append((arm, *shown))
    columns = ("arm", *(heading for _, heading in _SHOWN))
    return (Table("Mean ± standard error.", columns, tuple(lines)),)
