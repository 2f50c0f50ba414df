"""Comparison of numbers without chance in them: counts of parameters, digests, bytes."""

import numpy as np

from sharpjax.protocol.tests.question import Question
from sharpjax.protocol.tests.result import TestResult


def identical(question: Question) -> TestResult:
    """A deterministic comparison in the form of a test: p is 0 or 1 by convention.

    'two-sided' claims that every unit is the same in both groups, within `margin` (0: equal as
    float64). 'greater' claims that the first group is larger in every unit by more than `margin`,
    and is refuted if it is smaller in every unit by more than `margin`; 'less' is the reverse. p is
    0 if the claim holds, else 1; opposite_p is 0 if it is refuted, else 1. For 'two-sided', one of
    them is always 0.

    The effect is the difference, first less second, of the unit that speaks most against the claim:
    the largest in magnitude for 'two-sided', else the one nearest to the other side. Its interval
    is that number alone. `null` shifts the second group.
    """
    first, second = question.groups
    differences = first - second - question.null
    if question.alternative == "two-sided":
        worst = int(np.argmax(np.abs(differences)))
        holds = bool(np.abs(differences[worst]) <= question.margin)
        refuted = not holds
    else:
        sign = 1 if question.alternative == "greater" else -1
        worst = int(np.argmin(sign * differences))
        holds = bool((sign * differences > question.margin).all())
        refuted = bool((sign * differences < -question.margin).all())
    effect = float(differences[worst]) + question.null
    p, opposite_p = float(not holds), float(not refuted)
    return TestResult(effect, lambda _: (effect, effect), p, opposite_p, 0.0, question.sizes)
