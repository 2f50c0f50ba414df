"""Reproducibility: the new frontier in AI governance (arXiv 2510.11595): H4.1 to H4.5.

H4.1 and H4.2 describe the literature, and no bibliographic data is here. H4.3 to H4.5 are the
paper's advice made testable by simulation; `sharpjax.studies.reproducibility` runs them, and
`plan` there says what its arms and metrics are.
"""

from sharpjax.protocol.hypotheses import Contrast, Hypothesis, Quantity

ALPHA, POWER = 0.05, 0.8
REJECTED = Quantity("study/rejected", over=("seed", "study"), independent=True)
EXAGGERATION = Quantity("seed/exaggeration")
BIAS = Quantity("registry/bias", over=("seed", "registry"), independent=True)

SOURCE = "arXiv 2510.11595"
NO_DATA = "There is no bibliographic data here to decide it with."


def rate(arm: str, direction, null: float) -> Contrast:
    """The share of studies that reject, against a number."""
    return Contrast(REJECTED, (arm,), direction, "binomial", null=null)


def hypotheses() -> tuple[Hypothesis, ...]:
    """H4.1 to H4.5."""
    return (
        Hypothesis(
            "H4.1",
            "AI research output grows fastest.",
            (),
            source=f"{SOURCE}; a summary",
            status="weak",
            refuted_if="another compared field grows faster",
            uncertain="database, years, fields",
            missing=NO_DATA,
        ),
        Hypothesis(
            "H4.2",
            "Biomedical research and computer science rate worst on reproducibility.",
            (),
            source=f"{SOURCE}; a summary",
            status="weak",
            refuted_if="another field rates lower",
            uncertain="the rating, and the proxy for availability of code",
            missing=NO_DATA,
        ),
        Hypothesis(
            "H4.3",
            "A registered analysis keeps its false-positive rate; a flexible one does not.",
            (
                # A rate of exactly alpha can only be shown to be less than something above it.
                rate("registered", "less", ALPHA + 0.01),
                rate("flexible", "greater", ALPHA),
            ),
            "all",
            "never",
            correction="holm",
            source=f"{SOURCE}; made testable here",
            status="design",
            refuted_if="the registered rate is significantly above 0.05, or the flexible one below",
            refuting=(rate("registered", "greater", ALPHA), rate("flexible", "less", ALPHA)),
        ),
        Hypothesis(
            "H4.4",
            "Planned power is reached, and small designs exaggerate effects.",
            (
                Contrast(
                    REJECTED, ("planned",), "two-sided", "binomial", margin=0.02, null=POWER,
                    within=True,
                ),
                Contrast(EXAGGERATION, ("small", "planned"), "greater", "mean-difference"),
            ),
            "all",
            "never",
            source=f"{SOURCE}; made testable here",
            status="design",
            refuted_if="power is significantly outside 0.75 to 0.85, or the exaggeration is "
            "smaller with 3 seeds",
            refuting=(
                rate("planned", "less", POWER - 0.05),
                rate("planned", "greater", POWER + 0.05),
                Contrast(EXAGGERATION, ("small", "planned"), "less", "mean-difference"),
            ),
        ),
        Hypothesis(
            "H4.5",
            "Publishing only what is significant biases the pooled effect.",
            (
                Contrast(BIAS, ("complete",), "two-sided", "mean", margin=0.02, within=True),
                Contrast(BIAS, ("significant_only",), "greater", "mean"),
            ),
            "all",
            "never",
            source=f"{SOURCE}; made testable here",
            status="design",
            refuted_if="the complete registry's interval excludes 0, or the significant-only one's "
            "does not",
            refuting=(
                Contrast(BIAS, ("complete",), "two-sided", "mean"),
                Contrast(
                    BIAS, ("significant_only",), "two-sided", "mean", margin=0.02, within=True
                ),
            ),
        ),
    )  # fmt: skip


HYPOTHESES = hypotheses()
