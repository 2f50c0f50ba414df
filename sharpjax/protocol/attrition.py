"""What became of the runs that were planned: none is lost without a word."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sharpjax.errors import UserError
from sharpjax.protocol.samples import ALIVE, Row, Table, table


class Funnel(NamedTuple):
    """Of one arm, where a run is one seed: `planned = done + failed + excluded`.

    `reasons` are those of the failed and the excluded, and name runs that were not planned.
    """

    arm: str
    planned: int
    done: int
    failed: int
    excluded: int
    reasons: tuple[str, ...] = ()


def funnel(
    rows: Iterable[Row] | Table,
    *,
    arms: Iterable[str],
    seeds: Sequence[int],
    excluded: Mapping[tuple[str, int], str] | None = None,
) -> tuple[Funnel, ...]:
    """Count the runs of each arm.

    A run has failed where it turned non-finite (`train/alive` is 0), or has no row at its arm's
    last step.

    Args:
        excluded: why a run is left out of the analysis, by arm and seed.

    Raises:
        UserError: a run is excluded without a reason, or was not planned.

    >>> rows = [{"study": "s", "arm": "sgd", "seed": 0, "step": 9, "of": {}, "metric": "a/b",
    ...          "value": 1.0, "standard_error": 0.0}]
    >>> funnel(rows, arms=["sgd"], seeds=[0, 1])[0]
    Funnel(arm='sgd', planned=2, done=1, failed=1, excluded=0, reasons=('seed 1 has no rows',))
    """
    index, out = table(rows), dict(excluded or {})
    arms = tuple(arms)
    for (arm, seed), reason in out.items():
        if arm not in arms or seed not in seeds:
            raise UserError(f"arm '{arm}' seed {seed} is excluded, and was never planned.")
        if not reason.strip():
            raise UserError(f"arm '{arm}' seed {seed} is excluded without a reason; give one.")
    return tuple(_of(index, arm, seeds, out) for arm in arms)


def _of(index: Table, arm: str, seeds: Sequence[int], out: Mapping[tuple[str, int], str]) -> Funnel:
    there = [row for (owner, _), rows in index.rows.items() if owner == arm for row in rows]
    last: dict[int, int] = {}
    for row in there:
        last[row["seed"]] = max(last.get(row["seed"], 0), row["step"])
    dead = {row["seed"] for row in there if row["metric"] == ALIVE and row["value"] == 0}
    end = index.last.get(arm, 0)
    counts, reasons = {"done": 0, "failed": 0, "excluded": 0}, []
    for seed in seeds:
        if (arm, seed) in out:
            counts["excluded"] += 1
            reasons.append(f"seed {seed} is excluded: {out[arm, seed]}")
            continue
        failed = _failed(seed, last, dead, end)
        counts["failed" if failed else "done"] += 1
        reasons += [failed] if failed else []
    strangers = sorted(last.keys() - set(seeds))
    reasons += [f"seed {seed} was not planned, and is left out" for seed in strangers]
    return Funnel(arm, len(seeds), **counts, reasons=tuple(reasons))


def _failed(seed: int, last: Mapping[int, int], dead: set[int], end: int) -> str:
    if seed in dead:
        return f"seed {seed} turned non-finite in training"
    if seed not in last:
        return f"seed {seed} has no rows"
    return "" if last[seed] == end else f"seed {seed} ends at step {last[seed]} of {end}"
