"""Test of one proportion."""

from scipy.stats import binomtest

from sharpjax.errors import UserError
from sharpjax.protocol.tests.question import Question, conclude
from sharpjax.protocol.tests.result import TestResult


def binomial(question: Question) -> TestResult:
    """Exact binomial test of one group of zeros and ones, with the Clopper-Pearson interval.

    The effect is the share of ones. p is the binomial tail; two-sided, twice the smaller tail, so
    that p and interval agree (scipy and R count all that is not likelier, which may be less). The
    null is 0.5 unless given.

    The interval inverts the one-sided tests, so it covers at least as often as it says. A wrong
    claim that a proportion lies within a margin then has probability alpha at most. (Wilson's
    interval is nearer to its confidence on average, but makes such claims in up to .0725 at a
    nominal .05.)

    Raises:
        UserError: values other than 0 and 1.
    """
    (values,), null = question.groups, question.null
    odd = values[(values != 0) & (values != 1)]
    if odd.size:
        raise UserError(f"a value is {odd[0]:g}; give 1 for a success and 0 for none.")
    n, k = values.size, int(values.sum())

    def p(alternative: str) -> float:
        return float(binomtest(k, n, null, alternative).pvalue)

    def interval(confidence: float) -> tuple[float, float]:
        both = binomtest(k, n, null).proportion_ci(confidence, method="exact")
        return float(both.low), float(both.high)

    return conclude(
        *(question, k / n, interval, p("greater"), p("less")),
        least=(null**n, (1 - null) ** n),
    )
