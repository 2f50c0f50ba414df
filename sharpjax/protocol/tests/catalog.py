"""Every test that a hypothesis can name."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from sharpjax.protocol.tests import (
    aggregate,
    bootstrap,
    correlation,
    equality,
    equivalence,
    omnibus,
    paired,
    pairwise,
    permutation,
    proportion,
    ratios,
    survival,
    trend,
    two_sample,
)
from sharpjax.protocol.tests.result import TestResult

Kind = Literal[
    "one", "independent", "paired", "many", "many-paired", "correlation", "times", "pairwise"
]


class Test(NamedTuple):
    """A test and what must be known to use it.

    Attributes:
        function: as `protocol.tests.result` says.
        kind: how its samples are gathered. 'one': one group against a number; 'independent',
            'many': groups of any sizes; 'paired', 'many-paired': unit i of one group belongs to
            unit i of the others; 'correlation': two quantities of each unit, over all groups;
            'times': times to an event, some of them censored; 'pairwise': square arrays, model by
            model.
        effect: name and unit of its effect, for a reader.
        null: the effect under its own null hypothesis.
        groups: the least and the most groups it takes.
        margin: whether it needs a smallest effect of interest; then `p` is against that.
        equivalence: whether its claim is that there is no effect as large as the margin.
    """

    __test__ = False  # no test for pytest to collect

    function: Callable[..., TestResult]
    kind: Kind
    effect: str
    null: float
    groups: tuple[int, int]
    margin: bool = False
    equivalence: bool = False


_DIFFERENCE = "difference of means"
_MEAN = "mean difference"
_MANY = 1_000
TESTS: Mapping[str, Test] = {
    "paired-t": Test(paired.paired_t, "paired", _MEAN, 0.0, (1, 2)),
    "wilcoxon": Test(
        paired.wilcoxon, "paired", "matched-pairs rank-biserial correlation", 0.0, (1, 2)
    ),
    "paired-permutation": Test(permutation.paired_permutation, "paired", _MEAN, 0.0, (1, 2)),
    "mean": Test(bootstrap.mean, "paired", _MEAN, 0.0, (1, 2)),
    "welch": Test(two_sample.welch, "independent", _DIFFERENCE, 0.0, (2, 2)),
    "mann-whitney": Test(two_sample.mann_whitney, "independent", "Cliff's delta", 0.0, (2, 2)),
    "auc": Test(two_sample.auc, "independent", "area under the ROC curve", 0.5, (2, 2)),
    "permutation": Test(permutation.permutation, "independent", _DIFFERENCE, 0.0, (2, 2)),
    "mean-difference": Test(bootstrap.mean_difference, "independent", _DIFFERENCE, 0.0, (2, 2)),
    "tost": Test(equivalence.tost, "independent", _DIFFERENCE, 0.0, (2, 2), True, True),
    "paired-tost": Test(equivalence.paired_tost, "paired", _MEAN, 0.0, (1, 2), True, True),
    "non-inferiority": Test(
        equivalence.non_inferiority, "independent", _DIFFERENCE, 0.0, (2, 2), True
    ),
    "paired-non-inferiority": Test(
        equivalence.paired_non_inferiority, "paired", _MEAN, 0.0, (1, 2), True
    ),
    "binomial": Test(proportion.binomial, "one", "proportion of ones", 0.5, (1, 1)),
    "identical": Test(
        equality.identical, "paired", "difference nearest to the other side", 0.0, (2, 2)
    ),
    "ratio-of-means": Test(ratios.ratio_of_means, "independent", "ratio of means", 1.0, (2, 2)),
    "paired-ratio-of-means": Test(
        ratios.paired_ratio_of_means, "paired", "ratio of means", 1.0, (2, 2)
    ),
    "difference-of-ratios": Test(
        ratios.difference_of_ratios, "many", "a/b - c/d of means", 0.0, (4, 4)
    ),
    "paired-difference-of-ratios": Test(
        ratios.paired_difference_of_ratios, "many-paired", "a/b - c/d of means", 0.0, (4, 4)
    ),
    "log-ratio-difference": Test(
        ratios.log_ratio_difference, "many", "log(a/b) - log(c/d) of means", 0.0, (4, 4)
    ),
    "paired-log-ratio-difference": Test(
        ratios.paired_log_ratio_difference,
        "many-paired",
        "log(a/b) - log(c/d) of means",
        0.0,
        (4, 4),
    ),
    "spearman": Test(correlation.spearman, "correlation", "Spearman's rho", 0.0, (2, 2)),
    "kendall": Test(correlation.kendall, "correlation", "Kendall's tau", 0.0, (2, 2)),
    "pearson": Test(correlation.pearson, "correlation", "Pearson's r", 0.0, (2, 2)),
    "fit-error": Test(
        correlation.fit_error,
        "correlation",
        "error of the fit over that of the mean",
        1.0,
        (2, 2),
    ),
    "kendall-difference": Test(
        correlation.kendall_difference, "correlation", "difference of |tau|", 0.0, (3, 3)
    ),
    "spearman-pooled": Test(
        correlation.spearman_pooled, "correlation", "pooled rho - rho within", 0.0, (4, 100)
    ),
    "log-rank": Test(survival.log_rank, "times", "hazard ratio", 1.0, (2, 2)),
    "restricted-mean": Test(
        survival.restricted_mean, "times", "difference of restricted means", 0.0, (2, 2)
    ),
    "restricted-mean-ratio": Test(
        survival.restricted_mean_ratio, "times", "ratio of restricted means", 1.0, (2, 2)
    ),
    "jonckheere": Test(
        trend.jonckheere, "many", "mean Cliff's delta over pairs of groups", 0.0, (2, _MANY)
    ),
    "page": Test(trend.page, "many-paired", "mean rank correlation of a unit", 0.0, (2, _MANY)),
    "kruskal-wallis": Test(omnibus.kruskal_wallis, "many", "epsilon squared", 0.0, (2, _MANY)),
    "friedman": Test(omnibus.friedman, "many-paired", "Kendall's W", 0.0, (2, _MANY)),
    "pairwise-difference": Test(
        pairwise.pairwise_difference, "pairwise", "difference of means of pairs", 0.0, (2, 2)
    ),
    "interquartile-mean": Test(
        aggregate.interquartile_mean, "independent", "interquartile mean", 0.0, (1, _MANY)
    ),
    "interquartile-mean-difference": Test(
        aggregate.interquartile_mean_difference,
        "independent",
        "difference of interquartile means",
        0.0,
        (2, 2),
    ),
}
