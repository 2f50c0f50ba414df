"""What SAM does to sharpness and error: S.1 to S.4, for every run with arms `sam` and `sgd`.

These are not hypotheses of one paper but the question that all of them start from (arXiv 2010.01412
claims flatter minima and lower error). Arms are paired by seed: they share initialisation, order
and augmentation. The hypotheses are one family, corrected by Holm.
"""

from collections.abc import Sequence

from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.schema import Config

# For the matched-pairs rank-biserial correlation; nothing smaller is of interest.
MARGIN = 0.3


def hypotheses(config: Config) -> tuple[Hypothesis, ...]:
    """Those of S.1 to S.4 whose arms the config has. Sharpness is on the first measurement set."""
    where = f"train[:{config.evaluate.geometry.num_examples}]"
    asked: Sequence[tuple[str, str, str, Alternative, str, str]] = (
        ("S.1", "The largest Hessian eigenvalue is lower after SAM than after SGD.",
         f"{where}/hessian/lambda_1", "less", "sgd", "arXiv 2010.01412, figure 3"),
        ("S.2", "Adaptive worst-case sharpness is lower after SAM than after SGD.",
         f"{where}/adaptive_sharpness", "less", "sgd",
         "arXiv 2302.07011 measures it; no claim about its sign is made there"),
        ("S.3", "Test accuracy is higher after SAM than after SGD.",
         "test/accuracy", "greater", "sgd", "arXiv 2010.01412, section 3.1"),
        ("S.4", "Test accuracy is higher after SAM than after SGD of the same compute.",
         "test/accuracy", "greater", "sgd_2x",
         "arXiv 2010.01412, section 3.1: runs without SAM get twice the epochs"),
    )  # fmt: skip
    return tuple(
        Hypothesis(
            id,
            claim,
            (Contrast(Quantity(metric), ("sam", other), direction, "wilcoxon", MARGIN),),
            family="sam",
            correction="holm",
            source=source,
            status="design",
            refuted_if="significant in the other direction, by the same test and correction",
        )
        for id, claim, metric, direction, other, source in asked
        if {"sam", other} <= set(config.arms)
    )
