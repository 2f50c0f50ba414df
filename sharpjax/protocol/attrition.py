"""Counts what became of the planned runs, so that none is lost silently."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sharpjax.protocol.samples import ALIVE, Row, Table, table


class Funnel(NamedTuple):
    """The runs of one arm, one for each seed: `planned = done + failed`.

    `reasons` has one line for each failed run, and one for each run that was not planned.
    """

    arm: str
    planned: int
    done: int
    failed: int
    reasons: tuple[str, ...] = ()


def funnel(
    rows: Iterable[Row] | Table, *, arms: Iterable[str], seeds: Sequence[int]
) -> tuple[Funnel, ...]:
    """Count the runs of each arm.

    A run has failed if it turned non-finite (`train/alive` is 0), or has no row at its arm's last
    step.

    >>> rows = [{"study": "s", "arm": "sgd", "seed": 0, "step": 9, "of": {}, "metric": "a/b",
    ...          "value": 1.0, "standard_error": 0.0}]
    >>> funnel(rows, arms=["sgd"], seeds=[0, 1])[0]
    Funnel(arm='sgd', planned=2, done=1, failed=1, reasons=('seed 1 has no rows',))
    """
    index, found = table(rows), []
    for arm in arms:
        steps = sorted((step, own) for (owner, step), own in index.seeds.items() if owner == arm)
        last = {seed: step for step, own in steps for seed in own}
        dead = {row["seed"] for row in index.rows.get((arm, ALIVE), ()) if row["value"] == 0}
        why = [_failed(seed, last, dead, index.last.get(arm, 0)) for seed in seeds]
        failed, strangers = list(filter(None, why)), sorted(last.keys() - set(seeds))
        unplanned = [f"seed {seed} was not planned, and is left out" for seed in strangers]
        done = len(seeds) - len(failed)
        found.append(Funnel(arm, len(seeds), done, len(failed), (*failed, *unplanned)))
    return tuple(found)


def _failed(seed: int, last: Mapping[int, int], dead: set[int], end: int) -> str:
    if seed in dead:
        return f"seed {seed} turned non-finite in training"
    if seed not in last:
        return f"seed {seed} has no rows"
    return "" if last[seed] == end else f"seed {seed} ends at step {last[seed]} of {end}"
