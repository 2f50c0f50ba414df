"""What SAM does to sharpness and error: S.1 to S.4, asked of every run with arms `sam` and `sgd`.

Not hypotheses of one paper but the question that all of them start from (arXiv 2010.01412 claims
flatter minima and lower error). Paired by seed: the same initialisation, order and augmentation in
all arms. One family, corrected by Holm.
"""

from typing import Any

from sharpjax.optim.sharpness_aware import SamStatistics
from sharpjax.protocol.hypotheses import Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative
from sharpjax.studies.papers.cells import arms_of

FAMILY = "sam"
# Of the matched-pairs rank-biserial correlation; nothing smaller is of interest.
MARGIN = 0.3


def hypotheses(config: Any) -> tuple[Hypothesis, ...]:
    """Those of S.1 to S.4 whose arms the config has; sharpness on its first measurement set."""
    where = f"train[:{config.evaluate.geometry.num_examples}]"
    asked = (
        _hypothesis(
            "S.1",
            "The largest Hessian eigenvalue is lower after SAM than after SGD.",
            *(f"{where}/hessian/lambda_1", "less", ("sam", "sgd")),
            source="arXiv 2010.01412, figure 3",
        ),
        _hypothesis(
            "S.2",
            "Adaptive worst-case sharpness is lower after SAM than after SGD.",
            *(f"{where}/adaptive_sharpness", "less", ("sam", "sgd")),
            source="arXiv 2302.07011 measures it; no claim about its sign is made there",
        ),
        _hypothesis(
            "S.3",
            "Test accuracy is higher after SAM than after SGD.",
            *("test/accuracy", "greater", ("sam", "sgd")),
            source="arXiv 2010.01412, section 3.1",
        ),
        _hypothesis(
            "S.4",
            "Test accuracy is higher after SAM than after SGD of the same compute.",
            *("test/accuracy", "greater", ("sam", "sgd_2x")),
            source="arXiv 2010.01412, section 3.1: runs without SAM get twice the epochs",
        ),
    )
    return tuple(h for h in asked if all(name in config.arms for name in arms_of(h)))


def metrics(config: Any) -> tuple[str, ...]:
    """What a run with these evaluators measures of every arm, so that a hypothesis that asks for
    something else is refused before the run."""
    geometry = config.evaluate.geometry
    size = geometry.num_examples
    names = [f"train/{name}" for name in ("loss", "accuracy", "learning_rate", "alive")]
    names += [f"train/sam/{name}" for name in SamStatistics._fields]
    names += [f"test/{name}" for name in ("accuracy", "ece", "nll")]
    for i in range(geometry.num_sets):
        where = f"train[{i * size or ''}:{(i + 1) * size}]"
        names += [f"{where}/{name}" for name in _OF_A_SET]
        names += [
            f"{where}/hessian/lambda_{j + 1}{what}"
            for j in range(geometry.num_eigenvalues)
            for what in ("", "_residual")
        ]
    return tuple(names)


_OF_A_SET = (
    *("adaptive_sharpness", "directional_curvature", "gradient_norm", "loss", "sam_sharpness"),
    *("hessian/converged", "hessian/num_products", "hessian/trace"),
)


def _hypothesis(
    id: str, claim: str, metric: str, direction: Alternative, arms: tuple[str, str], source: str
) -> Hypothesis:
    return Hypothesis(
        id=id,
        claim=claim,
        contrasts=(Contrast(Quantity(metric), arms, direction, "wilcoxon", margin=MARGIN),),
        family=FAMILY,
        correction="holm",
        source=source,
        status="design",
        refuted_if="significant in the other direction, by the same test and correction",
    )
