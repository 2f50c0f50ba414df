"""Reproducibility: the new frontier in AI governance (arXiv 2510.11595): H4.1 to H4.5.

H4.1 and H4.2 describe the literature; there is no bibliographic data here. H4.3 to H4.5 make the
paper's advice testable by simulation. `sharpjax.studies.reproducibility` runs them, and its `plan`
explains the arms and metrics.
"""

from functools import partial

from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.studies.papers import shorthand
from sharpjax.studies.papers.shorthand import all_of, equal

ALPHA, POWER = 0.05, 0.8
REJECTED = Quantity("study/rejected", over=("seed", "study"), independent=True)
BIAS = Quantity("registry/bias", over=("seed", "registry"), independent=True)

NO_DATA = "There is no bibliographic data here to decide it with."
ask = partial(shorthand.ask, source="arXiv 2510.11595", status="design")


def rate(arm: str, direction: Alternative, null: float) -> Contrast:
    """The share of studies that reject, against a number."""
    return Contrast(REJECTED, (arm,), direction, "binomial", null=null)


def exaggeration(direction: Alternative) -> Contrast:
    """The exaggeration of significant effects, with few seeds against as many as planned."""
    return Contrast(
        Quantity("seed/exaggeration"), ("small", "planned"), direction, "mean-difference"
    )


def bias(arm: str, direction: Alternative) -> Contrast:
    """The pooled effect less the true one, against 0."""
    return Contrast(BIAS, (arm,), direction, "mean")


def hypotheses(
    registered: float = ALPHA, flexible: float = ALPHA, power: float = POWER
) -> tuple[Hypothesis, ...]:
    """H4.1 to H4.5.

    Args:
        registered, flexible: the level alpha of these arms, which H4.3 is about.
        power: that the arm `planned` is planned for, which H4.4 is about.
    """
    low, high = power - 0.05, power + 0.05
    other = "" if flexible == registered else f" {flexible:g}"
    return (
        ask(
            "H4.1 AI research output grows fastest.",
            (),
            "a summary",
            status="weak",
            refuted_if="another compared field grows faster",
            uncertain="database, years, fields",
            missing=NO_DATA,
        ),
        ask(
            "H4.2 Biomedical research and computer science rate worst on reproducibility.",
            (),
            "a summary",
            status="weak",
            refuted_if="another field rates lower",
            uncertain="the rating, and the proxy for availability of code",
            missing=NO_DATA,
        ),
        ask(
            "H4.3 A registered analysis keeps its false-positive rate; a flexible one does not.",
            # A rate that is exactly alpha can only be shown to be below a number above alpha.
            all_of(
                (
                    rate("registered", "less", registered + 0.01),
                    rate("flexible", "greater", flexible),
                )
            ),
            "made testable here",
            correction="holm",
            refuted_if=f"the registered rate is significantly above {registered:g}, or the "
            f"flexible one below{other}",
            refuting=(
                rate("registered", "greater", registered),
                rate("flexible", "less", flexible),
            ),
        ),
        ask(
            "H4.4 Planned power is reached, and small designs exaggerate effects.",
            all_of(
                (equal(REJECTED, ("planned",), "binomial", 0.02, power), exaggeration("greater"))
            ),
            "made testable here",
            refuted_if=f"power is significantly outside {low:g} to {high:g}, or the exaggeration "
            "is smaller with 3 seeds",
            refuting=(
                # No share is below 0 or above 1.
                *([rate("planned", "less", low)] if low > 0 else []),
                *([rate("planned", "greater", high)] if high < 1 else []),
                exaggeration("less"),
            ),
        ),
        ask(
            "H4.5 Publishing only what is significant biases the pooled effect.",
            all_of((equal(BIAS, ("complete",), "mean", 0.02), bias("significant_only", "greater"))),
            "made testable here",
            refuted_if="the complete registry's interval excludes 0, or the significant-only one's "
            "does not",
            refuting=(
                bias("complete", "two-sided"),
                equal(BIAS, ("significant_only",), "mean", 0.02),
            ),
        ),
    )


HYPOTHESES = hypotheses()
