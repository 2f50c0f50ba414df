"""Comparison of numbers without chance in them: counts of parameters, digests, bytes."""

import numpy as np

from sharpjax.errors import UserError
from sharpjax.protocol.tests.arguments import check_options, read_groups
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult


def identical(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """What a deterministic comparison says, in the shape of a test: p is 0 or 1 by convention.

    'two-sided' claims that all units are the same in both groups, within `margin` (0: equal as
    float64). 'greater' and 'less' claim that the first group is so in every unit, by more than
    `margin`; 'greater' is refuted where the first group is less in every unit. p is 0 where the
    claim holds, else 1; opposite_p is 0 where it is refuted, else 1. For 'two-sided' one of them is
    always 0.

    The effect is the difference, first less second, of the unit that speaks most against the
    claim: the largest in magnitude for 'two-sided', else the one nearest to the other side. Its
    interval is the number itself. A group of one unit is compared with every unit of the other.
    `null` shifts the second group. `confidence` and `seed` are not used.

    Raises:
        UserError: values that are not finite, groups of different sizes, a negative margin.

    >>> few, many = np.array([4160.0]), np.array([9536.0, 9536.0])
    >>> identical(Samples((few, many)), alternative="less")[:4]
    (-5376.0, (-5376.0, -5376.0), 0.0, 1.0)
    """
    null = 0.0 if null is None else null
    check_options("identical", alternative, confidence, null=null)
    first, second = read_groups("identical", samples, 2, 2, clusters=True)
    if not 0 <= margin < np.inf:
        raise UserError(f"identical: margin={margin}; give a finite number >= 0.")
    if 1 not in (first.size, second.size) and first.size != second.size:
        raise UserError(
            f"identical: groups of {first.size} and {second.size} units; give as many in both, or "
            "one."
        )
    differences = first - second - null
    if alternative == "two-sided":
        worst = int(np.argmax(np.abs(differences)))
        holds = bool(np.abs(differences[worst]) <= margin)
        refuted = not holds
    else:
        sign = 1 if alternative == "greater" else -1
        worst = int(np.argmin(sign * differences))
        holds = bool((sign * differences > margin).all())
        refuted = bool((sign * differences < -margin).all())
    effect = float(differences[worst]) + null
    p, opposite_p = float(not holds), float(not refuted)
    return TestResult(effect, (effect, effect), p, opposite_p, 0.0, (first.size, second.size))
