"""Every test that a hypothesis can name, and the function that calls one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sharpjax.errors import UserError, unknown
from sharpjax.protocol.tests import (
    correlation,
    equality,
    granulated,
    means,
    omnibus,
    pairwise,
    partial_correlation,
    proportion,
    ranks,
    survival,
    t_tests,
    trend,
)
from sharpjax.protocol.tests.question import Question, cluster_codes, codes, tied, vector
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult

Kind = Literal[
    "one", "independent", "paired", "many", "many-paired", "correlation", "times", "pairwise"
]
_TWO = (2, 2)
_MANY = (2, 1_000)  # more groups than any study has
_TWO_AND_MORE = (3, 1_000)
_ANY = (-math.inf, math.inf)
_RANK = (-1.0, 1.0)
_SHARE = (0.0, 1.0)
_POSITIVE = (0.0, math.inf)


class Test(NamedTuple):
    """A test and what must be known to use it.

    Attributes:
        function: from a `Question` to its result.
        kind: how its samples are gathered. 'one': one group against a number; 'independent',
            'many': groups of any sizes; 'paired', 'many-paired': unit i of one group belongs to
            unit i of the others; 'correlation': two quantities of each unit, over all groups;
            'times': times to an event, some of them censored; 'pairwise': square arrays over the
            models.
        effect: name and unit of its effect, for a reader.
        null: the effect under its own null hypothesis.
        groups: the least and the most groups it takes.
        bounds: between them lies its effect, and every null other than its own.
        margin: whether it needs a smallest effect of interest; then `p` is against that.
        equivalence: whether its claim is that there is no effect as large as the margin.
        clustered: whether it can take units that come in clusters; None: if groups share units.
        directions: the alternatives it takes.
        fixed_null: whether it has no null but its own.
        interval: whether it gives an interval of its effect.
        about: what its claim is about, in a sentence, if a reader could take it for more; '' if it
            is about the groups that are named.
    """

    __test__ = False  # pytest must not collect it

    function: Callable[[Question], TestResult]
    kind: Kind
    effect: str
    null: float
    groups: tuple[int, int] = _TWO
    bounds: tuple[float, float] = _ANY
    margin: bool = False
    equivalence: bool = False
    clustered: bool | None = None
    about: str = ""
    directions: tuple[Alternative, ...] = get_args(Alternative)
    fixed_null: bool = False
    interval: bool = True

    @property
    def aligned(self) -> bool:
        """Whether unit i of one group belongs to unit i of the others."""
        return self.kind in ("paired", "many-paired", "correlation")

    @property
    def clusters(self) -> bool:
        """Whether it can take units that come in clusters."""
        return self.aligned if self.clustered is None else self.clustered

    def check_null(self, null: float) -> None:
        """Refuse a null that it cannot test.

        Raises:
            UserError: the message starts with the null.
        """
        low, high = self.bounds
        if null == self.null or (low < null < high and not self.fixed_null):
            return
        allowed = "give a number that is finite"
        if self.fixed_null:
            allowed = f"its only null is {self.null:g}"
        elif math.isfinite(low):
            allowed = f"give a number between {low:g} and {high:g}"
        raise UserError(f"null={null}; {allowed}.")


_THESE_ARMS = (
    "Where a seed has several units (one of each arm, or layer), the claim is about new seeds of "
    "these arms and layers, not about other arms."
)
_OTHER_ARMS = "The claim is about other arms that are chosen as these were: an arm is one unit."
_DIFFERENCE = "difference of means"
_MEAN = "mean difference"
_RATIO = "ratio of means"
_RATIOS = "a/b - c/d of means"
_LOGS = "log(a/b) - log(c/d) of means"
_UNDIRECTED: tuple[Alternative, ...] = ("two-sided",)
_ONE_SIDED: tuple[Alternative, ...] = ("greater", "less")

_OMNIBUS: Any = {"directions": _UNDIRECTED, "fixed_null": True, "interval": False}


def _correlation(
    function, effect: str, null: float = 0.0, groups=_TWO, bounds=_RANK, about=_THESE_ARMS
) -> Test:
    return Test(function, "correlation", effect, null, groups, bounds, about=about)


TESTS: Mapping[str, Test] = {
    "paired-t": Test(t_tests.paired_t, "paired", _MEAN, 0.0, (1, 2)),
    "wilcoxon": Test(
        ranks.wilcoxon, "paired", "matched-pairs rank-biserial correlation", 0.0, (1, 2), _RANK
    ),
    "mean": Test(means.mean, "paired", _MEAN, 0.0, (1, 2)),
    "welch": Test(t_tests.welch, "independent", _DIFFERENCE, 0.0),
    "mann-whitney": Test(ranks.mann_whitney, "independent", "Cliff's delta", 0.0, _TWO, _RANK),
    "auc": Test(
        *(ranks.auc, "independent", "area under the ROC curve", 0.5, _TWO, _SHARE), clustered=True
    ),
    "mean-difference": Test(means.mean_difference, "independent", _DIFFERENCE, 0.0),
    "tost": Test(
        *(t_tests.tost, "independent", _DIFFERENCE, 0.0),
        margin=True,
        equivalence=True,
        directions=_UNDIRECTED,
    ),
    "non-inferiority": Test(
        *(t_tests.non_inferiority, "independent", _DIFFERENCE, 0.0),
        margin=True,
        directions=_ONE_SIDED,
    ),
    "paired-non-inferiority": Test(
        *(t_tests.paired_non_inferiority, "paired", _MEAN, 0.0, (1, 2)),
        margin=True,
        directions=_ONE_SIDED,
    ),
    "binomial": Test(proportion.binomial, "one", "proportion of ones", 0.5, (1, 1), _SHARE),
    "identical": Test(equality.identical, "paired", "difference nearest to the other side", 0.0),
    "ratio-of-means": Test(means.ratio_of_means, "independent", _RATIO, 1.0, _TWO, _POSITIVE),
    "paired-ratio-of-means": Test(
        means.paired_ratio_of_means, "paired", _RATIO, 1.0, _TWO, _POSITIVE
    ),
    "difference-of-ratios": Test(means.difference_of_ratios, "many", _RATIOS, 0.0, (4, 4)),
    "paired-difference-of-ratios": Test(
        means.paired_difference_of_ratios, "many-paired", _RATIOS, 0.0, (4, 4)
    ),
    "paired-log-ratio-difference": Test(
        means.paired_log_ratio_difference, "many-paired", _LOGS, 0.0, (4, 4)
    ),
    "spearman": _correlation(correlation.spearman, "Spearman's rho"),
    "spearman-over-arms": _correlation(
        correlation.spearman_over_arms, "Spearman's rho of the means of arms", about=_OTHER_ARMS
    ),
    "kendall": _correlation(correlation.kendall, "Kendall's tau"),
    "pearson": _correlation(correlation.pearson, "Pearson's r"),
    "fit-error": _correlation(
        correlation.fit_error, "error of the fit over that of the mean", 1.0, bounds=_SHARE
    ),
    "kendall-difference": _correlation(
        correlation.kendall_difference, "difference of |tau|", 0.0, (3, 3)
    ),
    "partial-pearson": _correlation(
        partial_correlation.partial_pearson, "partial Pearson's r", 0.0, _TWO_AND_MORE
    ),
    "partial-spearman": _correlation(
        partial_correlation.partial_spearman, "partial Spearman's rho", 0.0, _TWO_AND_MORE
    ),
    "partial-kendall": _correlation(
        partial_correlation.partial_kendall, "Kendall's tau of residual ranks", 0.0, _TWO_AND_MORE
    ),
    "granulated-kendall": _correlation(
        granulated.granulated_kendall, "granulated Kendall's tau", 0.0, _TWO_AND_MORE
    ),
    "log-rank": Test(survival.log_rank, "times", "hazard ratio", 1.0, _TWO, _POSITIVE),
    "jonckheere": Test(
        trend.jonckheere,
        "many",
        "mean Cliff's delta over pairs of groups (1: falls all along)",
        0.0,
        _MANY,
        _RANK,
    ),
    "page": Test(
        trend.page,
        "many-paired",
        "mean rank correlation of a unit (1: falls all along)",
        0.0,
        _MANY,
        _RANK,
    ),
    "kruskal-wallis": Test(
        *(omnibus.kruskal_wallis, "many", "epsilon squared", 0.0, _MANY), **_OMNIBUS
    ),
    "friedman": Test(
        *(omnibus.friedman, "many-paired", "Kendall's W", 0.0, _MANY), clustered=False, **_OMNIBUS
    ),
    "pairwise-difference": Test(
        pairwise.pairwise_difference, "pairwise", "difference of means of pairs", 0.0
    ),
}
# Correlations of the first two groups, given the others.
PARTIAL = ("partial-pearson", "partial-spearman", "partial-kendall")
GRANULATED = ("granulated-kendall",)
# Tests that look only at the order of the values of groups.
ORDER = ("mann-whitney", "auc", "jonckheere", "page", "kruskal-wallis", "friedman")


def run(
    name: str,
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    seed: int = 0,
) -> TestResult:
    """The result of the test of this name.

    Args:
        alternative: about the first group against the others; 'greater' means that it is larger.
        margin: the smallest effect of interest, for tests that need one.
        null: the effect under the null hypothesis; None: the test's own.
        seed: of resampling, so that the same samples give the same numbers.

    Raises:
        UserError: there is no such test; or it cannot take these samples or options, and the
            message starts with its name.

    >>> samples = Samples((np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0, 3.0])))
    >>> result = run("mann-whitney", samples, alternative="two-sided")
    >>> result.effect, result.p, result.min_attainable_p
    (1.0, 0.1, 0.1)
    """
    if name not in TESTS:
        raise unknown("test", name, TESTS)
    test = TESTS[name]
    try:
        null = test.null if null is None else null
        question = _question(test, samples, alternative, margin, null, seed)
        ties = name in ORDER or test.kind == "correlation"
        return test.function(_with_ties(test, question) if ties else question)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _with_ties(test: Test, question: Question) -> Question:
    """The same question, with values made equal that are equal up to rounding.

    In a correlation, each group is a quantity of its own; else the groups are looked at together.
    """
    groups = question.groups
    if test.kind == "correlation":
        return replace(question, groups=tuple(map(tied, groups)))
    ends = np.cumsum([group.size for group in groups])[:-1]
    return replace(question, groups=tuple(np.split(tied(np.concatenate(groups)), ends)))


def _question(
    test: Test,
    samples: Samples,
    alternative: Alternative,
    margin: float,
    null: float,
    seed: int,
) -> Question:
    if alternative not in get_args(Alternative):
        raise unknown("alternative", str(alternative), get_args(Alternative))
    test.check_null(null)
    if test.margin and not 0 < margin < math.inf:
        raise UserError(f"margin={margin}; give the smallest effect of interest, > 0.")
    if not 0 <= margin < math.inf:
        raise UserError(f"margin={margin}; give a finite number >= 0.")
    least, most = test.groups
    given = len(samples.groups)
    if not least <= given <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise UserError(f"{given} group{'s' * (given != 1)}; it takes {wanted}.")
    groups, clusters = samples.groups, samples.clusters
    if test.kind != "pairwise":
        groups = tuple(vector(group, i) for i, group in enumerate(groups, start=1))
    sizes = [len(group) for group in groups]
    units = sizes[0]
    if test.aligned:
        if len(set(sizes)) > 1:
            raise UserError(f"groups of {sizes} units; unit i must be the same in all of them.")
        clusters = cluster_codes(clusters, units)
        units = units if clusters is None else int(clusters.max()) + 1
    if clusters is not None and not test.clusters:
        if np.unique(clusters).size < len(clusters):
            raise UserError(
                "units come in clusters, and it needs independent ones; give one number for each "
                "cluster, or take a paired test or auc."
            )
        clusters = None
    arms = codes("arms", samples.arms, sizes[0]) if test.aligned else None
    return Question(
        *(groups, alternative, null, margin, test.bounds, seed, units),
        clusters=clusters,
        seen=samples.seen,
        arms=arms,
    )
