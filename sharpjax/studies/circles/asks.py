"""The hypotheses of the circles study: T1.11 to T1.23. A run is asked those that its arms allow.

The paper says that sharpness depends on how tight a boundary must be; no number is known. The
hypotheses were therefore written here, before any sharpness had been seen. An earlier trial with
seeds 1000 to 1099 had looked only at accuracy and loss, at a factor of 0.9 and with random labels.
(Its random labels decided the learning rate of `:cpu_labels`, at which they are learnt.)

    T1.11 to T1.14  over the factors .1 to .9, among models whose test accuracy is 1, a measure
                    rises: Page's trend test, seeds paired
    T1.15           the test accuracy at .9 is no lower than at .1 by more than .01
    T1.16           the authors' numbers rise, too
    T1.17, T1.18    do the authors' numbers order models as the measures by definition do?
    T1.19           the largest eigenvalue follows the training loss more closely than the factor
    T1.20 to T1.23  a measure is larger after random labels than after true ones, among models that
                    have learnt all of their labels
"""

from collections.abc import Iterator, Mapping

from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.studies.papers.shorthand import same_arm

SOURCE = "arXiv 2510.12451, concentric circles"
MEASURES: Mapping[str, str] = {
    "fisher_rao": "Fisher-Rao norm",
    "relative_flatness_normalised": "relative flatness (features normalised)",
    "lambda_1": "largest eigenvalue of the Hessian",
    "average_sharpness": "average sharpness",
}
AUTHORS: Mapping[str, str] = {
    "fisher_rao": "Fisher-Rao norm, the authors' formula",
    "noise_sharpness": "the authors' noise sharpness",
}
TRUE_LABELS = "labels_true"
# For rank correlations within a seed, and for the matched-pairs rank-biserial correlation.
MARGIN = 0.3
# For differences of accuracy.
SAME = 0.01
# Two measures order models in the same way if their rank correlation is above this.
ALIKE = 0.9


def in_order(factors: Mapping[str, float]) -> tuple[str, ...]:
    """The arms of factors in the order of these, then those of labels.

    A config has its arms by name, where `factor_10` comes before `factor_5`.

    Args:
        factors: `data.factor` of each arm.

    >>> in_order({"factor_10": 0.1, "factor_5": 0.05, "labels_true": 0.5})
    ('factor_5', 'factor_10', 'labels_true')
    """
    return tuple(sorted(factors, key=lambda name: (name.partition("_")[0], factors[name], name)))


def hypotheses(arms: Mapping[str, float]) -> tuple[Hypothesis, ...]:
    """The hypotheses whose arms are present: at least two factors; true and random labels.

    Args:
        arms: `data.factor` of each arm.
    """
    names = in_order(arms)
    factors = tuple(name for name in names if name.startswith("factor_"))
    random = tuple(n for n in names if n.startswith("labels_") and n != TRUE_LABELS)
    found = tuple(_of_factors(factors)) if len(factors) > 1 else ()
    return found + (tuple(_of_labels(random)) if random and TRUE_LABELS in names else ())


def _of_factors(arms: tuple[str, ...]) -> Iterator[Hypothesis]:
    """The hypotheses about the factors.

    The arms come in the order of their factors. A rising trend has the direction 'less': the first
    arm has the least.
    """

    def rises(metric: str, optional: bool = False) -> Contrast:
        return Contrast(Quantity(metric, optional=optional), arms, "less", "page", MARGIN)

    for number, (measure, words) in enumerate(MEASURES.items(), 11):
        yield Hypothesis(
            f"T1.{number}",
            f"The closer the circles, the larger the {words}, at a test accuracy of 1.",
            (rises(f"perfect/{measure}", optional=True),),
            family="circles: trend",
            correction="holm",
            source=SOURCE,
            status="design",
            refuted_if="the trend is significantly downwards, by the same test and correction",
            uncertain="all models are trained for as many epochs, so that the training loss differs"
            " with the factor; T1.19 asks how much of it is that",
        )
    accuracy = Quantity("test/accuracy")
    yield Hypothesis(
        "T1.15",
        "Models of the closest circles generalise as perfectly as those of the widest.",
        (Contrast(accuracy, (arms[-1], arms[0]), "greater", "paired-non-inferiority", SAME),),
        source=SOURCE,
        status="design",
        refuted_if="the mean test accuracy is lower by significantly more than .01",
    )
    yield Hypothesis(
        "T1.16",
        "By the authors' conventions sharpness rises with the factor, too.",
        tuple(rises(f"authors/{measure}") for measure in AUTHORS),
        correction="holm",
        source=SOURCE,
        status="design",
        refuted_if="the trend of one of both is significantly downwards",
        uncertain="relative flatness as a sum over batches is 20 times the mean here, whatever the"
        " factor, and is not asked again",
    )
    pooled = "|".join(arms)
    yield Hypothesis(
        "T1.17",
        "The authors' formula orders models as the Fisher-Rao norm does.",
        (_correlation(pooled, "authors/fisher_rao", "train/fisher_rao", "greater"),),
        source="the formula is right for ReLU nets without biases alone (arXiv 1711.01530)",
        status="design",
        refuted_if="Spearman's rho is significantly below .9",
    )
    yield Hypothesis(
        "T1.18",
        "The authors' noise sharpness does not order models as average sharpness does.",
        (_correlation(pooled, "authors/noise_sharpness", "train/average_sharpness", "less"),),
        source="to first order it is a length of the gradient, which curvature has no part in",
        status="design",
        refuted_if="Spearman's rho is significantly above .9",
    )
    follows = ("train/nll", "data/factor", "train/lambda_1")
    yield Hypothesis(
        "T1.19",
        "The largest eigenvalue follows the training loss more closely than the factor.",
        (same_arm(pooled, follows, "greater", "kendall-difference", margin=0.1),),
        source="where all is fitted, curvature of the cross-entropy fades with the loss",
        status="design",
        refuted_if="it follows the factor significantly more closely",
    )


def _correlation(pooled: str, first: str, second: str, direction) -> Contrast:
    """A rank correlation over all models of all factors; seeds are clusters."""
    return same_arm(pooled, (first, second), direction, "spearman", null=ALIKE)


def _of_labels(random: tuple[str, ...]) -> Iterator[Hypothesis]:
    """Models of each draw of random labels against those of the true labels, seeds paired."""
    for number, (measure, words) in enumerate(MEASURES.items(), 20):
        quantity = Quantity(f"fitted/{measure}", optional=True)
        yield Hypothesis(
            f"T1.{number}",
            f"The {words} is larger after random labels than after true ones, at a training "
            "accuracy of 1.",
            tuple(
                Contrast(quantity, (arm, TRUE_LABELS), "greater", "wilcoxon", MARGIN)
                for arm in random
            ),
            family="circles: labels",
            correction="holm",
            source=SOURCE,
            status="design",
            refuted_if="after some draw of labels it is significantly smaller",
            uncertain="models that have not learnt all labels by the end are left out, and their "
            "number is said",
        )
