"""What the seeds of a registration can detect, contrast by contrast.

`table` is what a registration says about each contrast before anything is run. `detectable` is what
an inconclusive verdict says afterwards. The power of single tests is in `sensitivity`, and whether
a margin can be met in `equivalence`.

In a corrected family, a contrast is assumed to be the only one that rejects. So its p must not
exceed alpha / m (Bonferroni's bound; for Benjamini-Yekutieli alpha / (m sum 1/i)). What it gains if
others reject too is not counted.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.canonical import canonical_json, to_dict
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, arms, families, quantities
from sharpjax.protocol.judging import rules
from sharpjax.protocol.judging.corrections import levels
from sharpjax.protocol.planning import equivalence, sensitivity, simulation
from sharpjax.protocol.planning.formulas import FORMULAS, POWER, Plan
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Samples
from sharpjax.protocol.wording import describe

EFFECTS = (0.5, 0.8, 1.0, 1.5)
LOW = 0.5  # a margin with less power than this gets a warning
_ALIGNED = ("paired", "many-paired", "correlation", "pairwise")


class Planned(NamedTuple):
    """What is known about one contrast before it is run.

    Attributes:
        hypothesis: its id; `contrast` describes the contrast in words.
        n, cluster: as `Plan.sizes` and `Plan.cluster`; if arms are the units, n counts arms.
        alpha: what p must not exceed if no other contrast of its family rejects.
        smallest_p: the smallest p that data of these sizes, in these clusters, could give.
        rejects: whether that is small enough: 'alone', only 'together' with others of the family,
            or 'never'. For a claim to lie within a margin: whether the margin can be met.
        method: how power was found.
        power: by effect in standard deviations, such as '0.5'; for claims of equivalence and
            non-inferiority by their margin, if there is no true difference.
        power_at_margin: at the contrast's own margin; NaN if it has none, or if its unit is that of
            the metric, whose standard deviation is unknown beforehand.
        detectable: the effect in standard deviations that is detected with power 0.8; NaN: none is.
        equivalent: the chance that the effect is found to lie within the margin, if the true effect
            is the null; NaN if there is no margin, or the chance is not known.
        equivalent_possible: the smallest number of units per group at which that can happen; None:
            not known, or more than 20,000.
        equivalent_likely: the smallest number at which the chance is 0.8.
        warning: one line that a person should read before starting; else ''.
    """

    hypothesis: str
    contrast: str
    test: str
    n: tuple[int, ...]
    cluster: int
    alpha: float
    smallest_p: float = math.nan
    rejects: Literal["alone", "together", "never"] = "never"
    method: str = "none"
    power: Mapping[str, float] = {}
    power_at_margin: float = math.nan
    detectable: float = math.nan
    equivalent: float = math.nan
    equivalent_possible: int | None = None
    equivalent_likely: int | None = None
    warning: str = ""

    def as_json(self) -> dict[str, Any]:
        """The same for a registration: lists for tuples, None for NaN."""
        return json.loads(json.dumps(self._asdict()), parse_constant=lambda not_finite: None)


def table(
    hypotheses: Iterable[Hypothesis],
    seeds: Sequence[int],
    *,
    units: Mapping[str, int] | None = None,
) -> tuple[Planned, ...]:
    """One row for each contrast that can be run, in order.

    Args:
        hypotheses: those that are `missing` something are left out.
        seeds: the registered ones.
        units: how many values of a further coordinate (`Quantity.over`) a seed has (the most, if it
            can lack some). A coordinate not named here has 1 value if units are independent, else
            2, the fewest that are a cluster.

    Cost: half a second for a rank test of new sizes, nothing for sizes seen before; two or three
    seconds if one call of the test takes milliseconds.

    Raises:
        UserError: a test is unknown.

    >>> from sharpjax.protocol.claims import Quantity
    >>> loss = Contrast(Quantity("test/loss"), ("sam", "sgd"), "two-sided", "wilcoxon")
    >>> row, = table([Hypothesis("S.1", "Another loss.", (loss,))], range(5))
    >>> row.smallest_p, row.rejects
    (0.0625, 'never')
    """
    hypotheses = tuple(hypotheses)
    members = [(h, c, f) for h in hypotheses for c, f in families(h)]
    # A contrast that two hypotheses of a family share is one member, as in `verdicts`.
    inside: dict[str, set[str]] = {}
    for _, contrast, family in members:
        inside.setdefault(family, set()).add(canonical_json(to_dict(contrast)))
    return tuple(
        _planned(h, contrast, *_sizes(contrast, seeds, units or {}), len(inside[family]))
        for h, contrast, family in members
        if not h.missing
    )


def hopeless(hypotheses: Iterable[Hypothesis], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each hypothesis that no data of the planned sizes could support.

    Args:
        rows: those of all hypotheses, as `Planned.as_json` gives them.
    """
    rows = iter(rows)
    for hypothesis in hypotheses:
        if hypothesis.missing:
            continue
        own = [next(rows, {}) for _ in families(hypothesis)]
        never = [row.get("rejects") == "never" for row in own]
        best: list[rules.Verdict] = ["inconclusive" if no else "supported" for no in never]
        whole = Composite(hypothesis.contrasts, hypothesis.combine, "never")
        if rules.answer(whole, iter(best)) != "supported":
            yield (
                f"{hypothesis.id} can never be supported: {sum(never)} of its {len(own)} contrasts "
                f"cannot come out at these numbers of seeds"
            )


def detectable(contrast: Contrast, samples: Samples, *, alpha: float = 0.05) -> float:
    """The effect that these numbers of units could have detected, in units of the test's effect.

    If the effect is in the units of the metric, the samples' own standard deviation gives the
    scale. For tests whose power could only be found by many calls, the effect comes from the
    standard error s that their interval shows: null +- (z_(1 - alpha) + z_power) s, with alpha / 2
    if two-sided. NaN if neither is known, or if no effect can be detected at all.

    >>> from sharpjax.protocol.claims import Quantity
    >>> contrast = Contrast(Quantity("test/loss"), ("sam", "sgd"), "less", "welch")
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> round(detectable(contrast, Samples((x, x))), 2)  # 1.72 standard deviations
    -2.73
    """
    sizes, cluster = tuple(len(group) for group in samples.groups), 1
    if contrast.test in simulation.OVER_ARMS and samples.arms is not None:
        sizes = (len(np.unique(samples.arms)),) * len(sizes)
    elif samples.clusters is not None:
        seeds = len(np.unique(samples.clusters))
        cluster = max(2, round(max(sizes) / seeds))
        sizes = (seeds,) * len(sizes)
    plan = Plan(sizes, contrast.direction, alpha, contrast.null, cluster)
    if min(sizes) < 2 or contrast.within or sensitivity.smallest_p(contrast.test, plan) > alpha:
        return math.nan
    if contrast.test in (*FORMULAS, *simulation.QUICK):
        effect = sensitivity.detectable_effect(contrast.test, plan)
        value = sensitivity.in_units_of(contrast.test, effect, plan, samples=samples)
        if not math.isnan(value):
            return value
    if contrast.test in ("kruskal-wallis", "friedman", "identical"):
        return math.nan  # chance alone makes their effects positive, or there is no chance
    return _by_standard_error(contrast, samples, alpha)


def _by_standard_error(contrast: Contrast, samples: Samples, alpha: float) -> float:
    options: dict[str, Any] = {"alternative": contrast.direction, "null": contrast.null}
    low, high = catalog.run(contrast.test, samples, **options).interval(0.95)
    null = _null(contrast)
    tails = 2 if contrast.direction == "two-sided" else 1
    shift = special.ndtri(1 - alpha / tails) + special.ndtri(POWER)
    scale = shift / (2 * special.ndtri(0.975)) * (-1 if contrast.direction == "less" else 1)
    if contrast.test != "log-rank":  # a hazard ratio, on the log scale
        return float(null + scale * (high - low))
    if not (0 < low < high < math.inf and null > 0):
        return math.nan
    return math.exp(math.log(null) + scale * math.log(high / low))


def _null(contrast: Contrast) -> float:
    return simulation.lookup(contrast.test).null if contrast.null is None else contrast.null


def _planned(
    hypothesis: Hypothesis, contrast: Contrast, sizes: tuple[int, ...], cluster: int, members: int
) -> Planned:
    test, margin = contrast.test, contrast.margin
    alone, together = levels(hypothesis.alpha, members, hypothesis.correction)
    plan = Plan(sizes, contrast.direction, alone, contrast.null, cluster)
    each = hypothesis.alpha / (1 if hypothesis.correction == "none" else members)
    of_interval = plan._replace(alternative="two-sided", alpha=each)
    row, warnings = Planned(hypothesis.id, describe(contrast), test, sizes, cluster, alone), []
    can_be_equivalent = margin is not None and not simulation.lookup(test).margin
    if can_be_equivalent and (met := equivalence.reach(test, of_interval, margin)):
        row = row._replace(
            equivalent=met.chance, equivalent_possible=met.possible, equivalent_likely=met.likely
        )
    try:
        floor = sensitivity.smallest_p(test, plan)
        if contrast.within:
            few = equivalence.are_too_few(test, of_interval)
            if few:
                warnings.append(f"{sizes[0]} are too few for an interval at {1 - 2 * each:.4g}")
            row = row._replace(
                smallest_p=floor,
                rejects="never" if few or row.equivalent == 0 else "alone",
                method="formula",
                power={str(d): equivalence.of_means(test, of_interval, d) for d in EFFECTS},
                power_at_margin=row.equivalent,
                detectable=equivalence.least_margin(test, of_interval),
            )
        else:
            row = row._replace(
                smallest_p=floor,
                rejects="alone" if floor <= alone else "together" if floor <= together else "never",
                method=sensitivity.method(test),
                power={str(d): sensitivity.power_of(test, d, plan) for d in EFFECTS},
                power_at_margin=_at_margin(contrast, plan),
                detectable=sensitivity.detectable_effect(test, plan),
            )
            warnings += _of_floor(test, plan, row, together)
    except UserError as error:  # the test cannot take such units
        warnings.append(f"it can never reject: {error}")
    warnings += _of_margin(contrast, row)
    return row._replace(warning="; ".join(warnings))


def _sizes(
    contrast: Contrast, seeds: Sequence[int], units: Mapping[str, int]
) -> tuple[tuple[int, ...], int]:
    """The independent units of each group, and how many units each of them has."""
    kind = simulation.lookup(contrast.test).kind
    if contrast.test in simulation.OVER_ARMS:
        return tuple(len(arms(group)) for group in contrast.groups), 1
    sizes, cluster = [], 1
    for group, quantity in zip(contrast.groups, quantities(contrast), strict=True):
        further = [key for key in quantity.over if key not in ("seed", "pair")]
        together = math.prod(units.get(key, 1 if quantity.independent else 2) for key in further)
        pooled = len(arms(group))
        if quantity.independent:
            # Pooled arms share their seeds, which are the units if groups are aligned.
            sizes.append(len(seeds) * together * (1 if kind in _ALIGNED else pooled))
        else:
            sizes.append(len(seeds))
            cluster = max(cluster, together * pooled)
    return tuple(sizes), cluster


def _at_margin(contrast: Contrast, plan: Plan) -> float:
    """Power if the true effect is the smallest effect of interest."""
    test, margin, null = contrast.test, contrast.margin, _null(contrast)
    if margin is None or simulation.lookup(test).margin:
        return math.nan
    effect = sensitivity.solve(
        lambda d: abs(sensitivity.in_units_of(test, d, plan) - null), margin, 20.0
    )
    return effect if math.isnan(effect) else sensitivity.power_of(test, effect, plan)


def _of_floor(test: str, plan: Plan, row: Planned, together: float) -> Iterator[str]:
    if row.rejects == "alone":
        return
    of = "seeds" if plan.cluster > 1 else "units"
    number = plan.sizes[0] if len(set(plan.sizes)) == 1 else f"{list(plan.sizes)}"
    said = f"no p of {test} with {number} {of} is below {row.smallest_p:.3g}"
    asked = plan.alpha if row.rejects == "together" else together
    larger = (plan._replace(sizes=(n,) * len(plan.sizes)) for n in range(max(plan.sizes) + 1, 65))
    enough = next((p.sizes[0] for p in larger if sensitivity.smallest_p(test, p) <= asked), None)
    remedy = f"; {enough} {of} would do" if enough else ""
    if row.rejects == "together":
        yield f"{said}: it can reject only together with others of its family{remedy} alone"
    else:
        yield f"it can never reject: {said}, and {asked:.3g} is asked for{remedy}"


def _of_margin(contrast: Contrast, row: Planned) -> Iterator[str]:
    what = f"the margin {contrast.margin:g}" if contrast.margin is not None else ""
    if not contrast.within and row.power_at_margin < LOW:
        yield f"a true effect of {what} is seen with power {row.power_at_margin:.2g}"
    if math.isnan(row.equivalent) or row.equivalent >= LOW:
        return
    verdict = "supported" if contrast.within else "equivalent"
    if row.equivalent_possible is None:
        yield f"'{verdict}' is out of reach, {what} being so narrow"
        return
    likely, here = row.equivalent_likely, f"is out of reach below {row.equivalent_possible:,} units"
    needs = "more than 20,000" if likely is None else f"{likely:,}"
    if row.equivalent:
        here = f"has a chance of {row.equivalent:.2g} with {max(row.n):,}"
    yield f"'{verdict}' within {what} {here}, and needs {needs} for power {POWER:g}"
