"""Times to an event, some of them censored, such as a run that ended before it generalised.

A censored time says that the event had not come by then. It is never dropped and never taken for an
event. Ties are allowed everywhere. A unit censored at the time of an event was still at risk then.
"""

import math

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.tests import exact, shuffle
from sharpjax.protocol.tests.question import Question, conclude, nothing_known
from sharpjax.protocol.tests.result import TestResult


def log_rank(question: Question) -> TestResult:
    """Log-rank test of two groups; 'greater': events come later in the first.

    The effect is the hazard ratio of the second group over the first, so it too is above 1 if the
    first takes longer; null 1. It is Peto's exp(U / V), with U the events of the second group
    beyond those expected, and V the hypergeometric variance. Its interval is exp((U +- z
    sqrt(V)) / V). Peto's estimate stays finite if the groups are completely separated. It is pulled
    towards 1 if the true ratio is far from 1 (above 3, say).

    p is from a permutation of log-rank scores. It is exact for small groups and right under ties,
    and assumes that both groups were observed equally long. Against another null, p is normal.

    Raises:
        UserError: negative times, or `seen` is missing or has other sizes.
    """
    (first, second), (seen, seen_second) = question.groups, _flags(question)
    time, event = np.concatenate([first, second]), np.concatenate([seen, seen_second])
    distinct = np.unique(time[event])
    at_risk = time[:, None] >= distinct
    risk, risk_second = at_risk.sum(0), at_risk[first.size :].sum(0)
    events = (event[:, None] & (time[:, None] == distinct)).sum(0)
    share = risk_second / risk
    deaths = np.where(risk > 1, events * (risk - events) / np.maximum(risk - 1, 1), 0.0)
    variance = float((deaths * share * (1 - share)).sum())
    # Score of a unit: 1 if its event was seen, less its cumulative hazard.
    scores = event - (at_risk * (events / risk)).sum(1)
    excess = float(scores[first.size :].sum())
    floor = shuffle.least(exact.arrangements(question.sizes))
    if not variance > 0:
        why = "no event tells the groups apart" if event.any() else "no event was seen"
        return nothing_known(question, math.nan, why, floor)
    log, spread = excess / variance, 1 / math.sqrt(variance)
    if question.null == 1:
        tails = shuffle.of_first(-scores, first.size, question.seed)
    else:
        z = (log - math.log(question.null)) / spread
        tails = float(special.ndtr(-z)), float(special.ndtr(z))

    def interval(confidence: float) -> tuple[float, float]:
        reach = float(special.ndtri(0.5 + confidence / 2)) * spread
        return _exp(log - reach), _exp(log + reach)

    return conclude(question, _exp(log), interval, *tails, floor)


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))


def _flags(question: Question) -> tuple[np.ndarray, ...]:
    if question.seen is None:
        raise UserError("no `seen`; say of each time whether its event was seen.")
    seen = tuple(np.asarray(flags, bool).ravel() for flags in question.seen)
    if tuple(flags.size for flags in seen) != question.sizes:
        raise UserError(
            f"{list(question.sizes)} times, but {[s.size for s in seen]} flags in `seen`; give one "
            "for each time."
        )
    least = min(float(group.min()) for group in question.groups)
    if least < 0:
        raise UserError(f"a time of {least:g}; times must not be negative.")
    return seen
