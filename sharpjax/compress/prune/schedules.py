"""When masks are made while a model trains, and with which amount."""

import bisect
from typing import Any, NamedTuple

from sharpjax.compress.prune.amounts import check_amount
from sharpjax.errors import UserError, whole_number


class Schedule(NamedTuple):
    """Masks are made after these numbers of updates, with these amounts.

    Attributes:
        steps: increasing; 0 is the first update of training, so that the mask of step t is made of
            the weights that update t, counted from 0, leaves behind.
        amounts: of each, in [0, 1).
    """

    steps: tuple[int, ...]
    amounts: tuple[float, ...]

    def at(self, step: int) -> float:
        """The amount that is in force after update `step`; 0 before the first mask.

        >>> [one_shot(0.9, step=5).at(step) for step in (4, 5, 100)]
        [0.0, 0.9, 0.9]
        """
        i = bisect.bisect_right(self.steps, step)
        return self.amounts[i - 1] if i else 0.0


def one_shot(amount: float, step: int = 0) -> Schedule:
    """One mask, after an update."""
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
        every: steps between two masks; divides end - begin, so that the last one has `final`.
        offset: 0, as in the paper and in tfmot; 1, as in jaxpruner, whose first mask already prunes
            and whose last two have `final`.

    Raises:
        UserError: as said above; an end that does not lie after the beginning.

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
    # So that both ends are what was asked, to the bit.
    return Schedule(steps, tuple(first * x + last * (1 - x) for x in left))


def periodic(amount: float, begin: int, end: int, every: int) -> Schedule:
    """The same amount again and again. Weights that are kept at 0 are not chosen anew unless they
    may come back: `gradual(..., regrow=True)`.

    >>> periodic(0.5, 10, 30, 10)
    Schedule(steps=(10, 20, 30), amounts=(0.5, 0.5, 0.5))
    """
    share = check_amount("prune.periodic", amount)
    steps = _steps("prune.periodic", begin, end, every)
    return Schedule(steps, (share,) * len(steps))


def iterative(final: float, begin: int, end: int, every: int) -> Schedule:
    """Of what is left, the same share each time: with K masks, 1 - (1 - final)^(i / K) after i.

    Its amounts are those of rounds of iterative magnitude pruning (arXiv 1803.03635).

    >>> [round(amount, 3) for amount in iterative(0.488, 0, 2, 1).amounts]
    [0.2, 0.36, 0.488]
    """
    last = check_amount("prune.iterative", final, "final")
    steps = _steps("prune.iterative", begin, end, every)
    count = len(steps)
    amounts = [1 - (1 - last) ** (i / count) for i in range(1, count)]
    return Schedule(steps, (*amounts, last))


def check_schedule(caller: str, schedule: Any) -> None:
    """Refuses what is no schedule, or has steps out of order."""
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
