"""Schedules of pruning during training: when masks are made, and with which amounts."""

import bisect
from typing import Any, NamedTuple

from sharpjax.compress.prune.amounts import check_amount
from sharpjax.errors import UserError, whole_number


class Schedule(NamedTuple):
    """Steps at which masks are made, with their amounts.

    Attributes:
        steps: increasing; updates are counted from 0. The mask of step t is made from the weights
            after update t.
        amounts: the amount of each mask, in [0, 1).
    """

    steps: tuple[int, ...]
    amounts: tuple[float, ...]

    def at(self, step: int) -> float:
        """The amount pruned after update `step`; 0 before the first mask.

        >>> [one_shot(0.9, step=5).at(step) for step in (4, 5, 100)]
        [0.0, 0.9, 0.9]
        """
        i = bisect.bisect_right(self.steps, step)
        return self.amounts[i - 1] if i else 0.0


def one_shot(amount: float, step: int = 0) -> Schedule:
    """A single mask with this amount, made after update `step`.

    Raises:
        UserError: `amount` is not in [0, 1); `step` is not a whole number of 0 or more.
    """
    at = whole_number("prune.one_shot", "step", step, least=0)
    return Schedule((at,), (check_amount("prune.one_shot", amount),))


def polynomial(
    final: float,
    begin: int,
    end: int,
    *,
    every: int = 1,
    initial: float = 0.0,
    power: float = 3,
    offset: int = 0,
) -> Schedule:
    """Zhu and Gupta's schedule (arXiv 1710.01878), fast at first.

        amount(t) = final + (initial - final) (1 - p)^power,
        p = (t + offset - begin) / (end - begin), at most 1

    Args:
        final, initial: amounts at the end and at the beginning.
        begin, end: steps of the first and of the last mask.
        every: steps between two masks; must divide end - begin, so that the last mask has `final`.
        power: exponent, above 0.
        offset: 0, as in the paper and in tfmot; 1, as in jaxpruner, where the first mask already
            prunes and the last two have `final` if `every` is 1.

    Raises:
        UserError: an argument that is not allowed; `end` is not after `begin`.

    >>> polynomial(0.8, 100, 200, every=50).amounts, polynomial(0.8, 0, 2, offset=1).amounts
    ((0.0, 0.7000000000000001, 0.8), (0.7000000000000001, 0.8, 0.8))
    """
    caller = "prune.polynomial"
    first, last = (check_amount(caller, x, n) for x, n in ((initial, "initial"), (final, "final")))
    if offset not in (0, 1):
        raise UserError(f"{caller}: offset={offset!r}; give 0 (tfmot) or 1 (jaxpruner).")
    if not power > 0:
        raise UserError(f"{caller}: power={power!r}; give a number above 0.")
    steps = _steps(caller, begin, end, every)
    done = [min((step + offset - begin) / (end - begin), 1.0) for step in steps]
    left = [(1 - p) ** power for p in done]
    # In this form both ends are exact, bit for bit.
    return Schedule(steps, tuple(first * x + last * (1 - x) for x in left))


def periodic(amount: float, begin: int, end: int, every: int) -> Schedule:
    """The same amount at regular intervals. Masks change only if pruned weights may come back:
    `gradual(..., regrow=True)`.

    Raises:
        UserError: `amount` is not in [0, 1); `end` is not after `begin` by a multiple of `every`.

    >>> periodic(0.5, 10, 30, 10)
    Schedule(steps=(10, 20, 30), amounts=(0.5, 0.5, 0.5))
    """
    share = check_amount("prune.periodic", amount)
    steps = _steps("prune.periodic", begin, end, every)
    return Schedule(steps, (share,) * len(steps))


def iterative(final: float, begin: int, end: int, every: int) -> Schedule:
    """Each mask prunes the same share of the remaining weights: of K masks, mask i (from 1) has the
    amount 1 - (1 - final)^(i / K).

    These are the amounts of rounds of iterative magnitude pruning (arXiv 1803.03635).

    Raises:
        UserError: `final` is not in [0, 1); `end` is not after `begin` by a multiple of `every`.

    >>> [round(amount, 3) for amount in iterative(0.488, 0, 2, 1).amounts]
    [0.2, 0.36, 0.488]
    """
    last = check_amount("prune.iterative", final, "final")
    steps = _steps("prune.iterative", begin, end, every)
    count = len(steps)
    amounts = [1 - (1 - last) ** (i / count) for i in range(1, count)]
    return Schedule(steps, (*amounts, last))


def check_schedule(caller: str, schedule: Any) -> None:
    """Refuses anything but a valid `Schedule` with increasing steps."""
    if not isinstance(schedule, Schedule):
        raise UserError(
            f"{caller}: schedule={schedule!r}; give a prune.Schedule, as one_shot(0.9)."
        )
    steps, amounts = schedule
    if not steps or len(steps) != len(amounts):
        raise UserError(
            f"{caller}: the schedule has {len(steps)} steps and {len(amounts)} amounts; give one "
            "amount for each step."
        )
    for step in steps:
        whole_number(caller, "a step of the schedule", step, least=0)
    if list(steps) != sorted(set(steps)):
        raise UserError(f"{caller}: the steps of the schedule, {steps}, do not increase.")
    for amount in amounts:
        check_amount(caller, amount, "an amount of the schedule")


def _steps(caller: str, begin: int, end: int, every: int) -> tuple[int, ...]:
    begin = whole_number(caller, "begin", begin, least=0)
    end, every = whole_number(caller, "end", end), whole_number(caller, "every", every)
    if end <= begin or (end - begin) % every:
        raise UserError(
            f"{caller}: begin={begin}, end={end}, every={every}; give an end that lies after the "
            "beginning by a multiple of every, so that the last mask has the final amount."
        )
    return tuple(range(begin, end + 1, every))
