"""How many seeds an effect needs, and what the seeds at hand can see.

`table` is what a registration says of each of its contrasts before anything is run; `detectable` is
what an inconclusive verdict says afterwards. The power of single tests is in `sensitivity`.

In a corrected family a contrast is taken to be the only one that rejects, so that its p must come
below alpha / m (Bonferroni's bound; for Benjamini-Yekutieli alpha / (m sum 1/i)): what it gains
where others reject too is not counted.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special

from sharpjax.protocol.canonical import canonical_json, to_dict
from sharpjax.protocol.claims import Contrast, Hypothesis, arms, families, quantities
from sharpjax.protocol.judging.corrections import levels
from sharpjax.protocol.planning import simulation
from sharpjax.protocol.planning.formulas import Plan, within
from sharpjax.protocol.planning.noncentral_t import t_detectable, t_num_seeds, t_power
from sharpjax.protocol.planning.sensitivity import (
    detectable_effect,
    in_units_of,
    is_quick,
    method,
    num_seeds,
    power_of,
    smallest_p,
)
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Samples
from sharpjax.protocol.wording import describe

__all__ = [
    "Plan",
    "Planned",
    "detectable",
    "detectable_effect",
    "num_seeds",
    "power_of",
    "smallest_p",
    "t_detectable",
    "t_num_seeds",
    "t_power",
    "table",
    "warnings",
]

EFFECTS = (0.5, 0.8, 1.0, 1.5)
POWER = 0.8
_ALIGNED = ("paired", "many-paired", "correlation", "pairwise")


class Planned(NamedTuple):
    """What is known of one contrast before it is run.

    Attributes:
        hypothesis: its id; `contrast` says it in words.
        n: independent units of each group: where a seed has several that are not independent
            (layers of one model), the seeds.
        alpha: what p must not exceed, where no other contrast of its family rejects.
        smallest_p: that data of these sizes could give.
        rejects: whether that is small enough: by itself, only together with others of its family,
            or never.
        method: how power was found.
        power: by effect in standard deviations, as '0.5'; of claims of equivalence and
            non-inferiority by their margin, the truth being no difference.
        power_at_margin: at the contrast's own margin; NaN where its unit is that of the metric,
            whose standard deviation nobody knows beforehand.
        detectable: the effect in standard deviations that is seen with power 0.8; NaN: none is.
        warning: one line, where a person should know before they start; else ''.
    """

    hypothesis: str
    contrast: str
    test: str
    n: tuple[int, ...]
    alpha: float
    smallest_p: float
    rejects: Literal["alone", "together", "never"]
    method: str
    power: Mapping[str, float]
    power_at_margin: float
    detectable: float
    warning: str

    def as_json(self) -> dict[str, Any]:
        """The same for a registration: lists for tuples, None for NaN."""
        return {name: _plain(value) for name, value in self._asdict().items()}


def table(
    hypotheses: Iterable[Hypothesis],
    seeds: Sequence[int],
    *,
    units: Mapping[str, int] | None = None,
    pilot: Callable[[Contrast], Samples | None] = lambda contrast: None,
) -> tuple[Planned, ...]:
    """One row for each contrast that can be run, in order.

    Args:
        hypotheses: those that are `missing` something are left out.
        seeds: the registered ones.
        units: how many values of a further coordinate (`Quantity.over`) a seed has; 1 if not named.
        pilot: samples of an earlier run for a contrast: their units replace normal noise.

    Cost: some .1 s for a rank test of new sizes, and nothing for one whose sizes came before; two
    or three seconds where a test must be called for each simulated study.

    Raises:
        UserError: a test is not known, or a pilot is of no use.

    >>> from sharpjax.protocol.claims import Quantity
    >>> loss = Contrast(Quantity("test/loss"), ("sam", "sgd"), "two-sided", "wilcoxon")
    >>> row, = table([Hypothesis("S.1", "Another loss.", (loss,))], range(5))
    >>> row.smallest_p, row.rejects
    (0.0625, 'never')
    >>> row.warning
    'no p of wilcoxon with 5 units can be below 0.0625, and 0.05 is asked for; 6 units would do'
    """
    hypotheses = tuple(hypotheses)
    members = [(h, c, f) for h in hypotheses for c, f in families(h)]
    # A contrast that two hypotheses of a family share is one member, as in `verdicts`.
    inside: dict[str, set[str]] = {}
    for _, contrast, family in members:
        inside.setdefault(family, set()).add(canonical_json(to_dict(contrast)))
    return tuple(
        _planned(
            h, contrast, _sizes(contrast, seeds, units or {}), len(inside[family]), pilot(contrast)
        )
        for h, contrast, family in members
        if not h.missing
    )


def warnings(rows: Iterable[Planned]) -> list[str]:
    """A line for each contrast that a person should know of before they start."""
    return [f"{row.hypothesis}: {row.contrast}: {row.warning}" for row in rows if row.warning]


def detectable(
    contrast: Contrast, samples: Samples, *, alpha: float = 0.05, power: float = POWER
) -> float:
    """The effect that these numbers of units could have seen, in units of the test's effect.

    Where the effect is in the units of the metric, the samples' own standard deviation gives the
    scale. Of tests whose power could only be found by calling them again and again, it comes from
    their standard error s, as their interval shows it: null +- (z_(1 - alpha) + z_power) s. NaN
    where neither is known, and where no effect can be seen at all.

    >>> from sharpjax.protocol.claims import Quantity
    >>> contrast = Contrast(Quantity("test/loss"), ("sam", "sgd"), "less", "welch")
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> round(detectable(contrast, Samples((x, x))), 2)  # 1.72 standard deviations
    -2.73
    """
    plan = Plan(_units(samples), contrast.direction, alpha, contrast.null)
    if min(plan.sizes) < 2 or contrast.within or smallest_p(contrast.test, plan) > alpha:
        return math.nan
    if is_quick(contrast.test):
        effect = detectable_effect(contrast.test, plan, power)
        value = in_units_of(contrast.test, effect, plan, samples=samples)
        if not math.isnan(value):
            return value
    if contrast.test in _NO_SCALE:
        return math.nan
    return _by_standard_error(contrast, samples, alpha, power)


def _by_standard_error(contrast: Contrast, samples: Samples, alpha: float, power: float) -> float:
    test = simulation.lookup(contrast.test)
    options: dict[str, Any] = {"alternative": contrast.direction, "null": contrast.null}
    low, high = catalog.run(contrast.test, samples, **options).interval(0.95)
    null = test.null if contrast.null is None else contrast.null
    tails = 2 if contrast.direction == "two-sided" else 1
    shift = special.ndtri(1 - alpha / tails) + special.ndtri(power)
    scale = shift / (2 * special.ndtri(0.975)) * (-1 if contrast.direction == "less" else 1)
    if contrast.test not in _ON_LOG_SCALE:
        return float(null + scale * (high - low))
    if not (0 < low < high < math.inf and null > 0):
        return math.nan
    return math.exp(math.log(null) + scale * math.log(high / low))


# Effects that chance alone makes positive, and one without chance.
_NO_SCALE = ("kruskal-wallis", "friedman", "identical")
_ON_LOG_SCALE = ("log-rank",)


def _planned(
    hypothesis: Hypothesis,
    contrast: Contrast,
    sizes: tuple[int, ...],
    members: int,
    pilot: Samples | None,
) -> Planned:
    alone, together = levels(hypothesis.alpha, members, hypothesis.correction)
    plan = Plan(sizes, contrast.direction, alone, contrast.null)
    floor = smallest_p(contrast.test, plan)
    rejects = "alone" if floor <= alone else "together" if floor <= together else "never"
    if contrast.within:
        powers, at_margin, effect = _within(contrast, plan)
        rejects, how = "alone", "formula"
    else:
        powers = {str(d): power_of(contrast.test, d, plan, pilot=pilot) for d in EFFECTS}
        effect = detectable_effect(contrast.test, plan, POWER, pilot=pilot)
        at_margin = _at_margin(contrast, plan, pilot)
        how = "simulation from a pilot" if pilot is not None else method(contrast.test)
    return Planned(
        hypothesis.id,
        describe(contrast),
        contrast.test,
        sizes,
        alone,
        floor,
        rejects,
        how,
        powers,
        at_margin,
        effect,
        _warning(contrast, plan, floor, rejects, together),
    )


def _sizes(contrast: Contrast, seeds: Sequence[int], units: Mapping[str, int]) -> tuple[int, ...]:
    """Independent units of each group."""
    aligned = simulation.lookup(contrast.test).kind in _ALIGNED
    sizes = []
    for group, quantity in zip(contrast.groups, quantities(contrast), strict=True):
        # Arms that are pooled share their seeds; in groups that are aligned those are the units.
        pooled = 1 if aligned else len(arms(group))
        further = [key for key in quantity.over if key != "seed" and quantity.independent]
        sizes.append(len(seeds) * pooled * math.prod(units.get(key, 1) for key in further))
    return tuple(sizes)


def _units(samples: Samples) -> tuple[int, ...]:
    if samples.clusters is not None:
        return (len(np.unique(samples.clusters)),) * len(samples.groups)
    return tuple(len(group) for group in samples.groups)


def _at_margin(contrast: Contrast, plan: Plan, pilot: Samples | None) -> float:
    """Power where the truth is the smallest effect of interest."""
    if contrast.margin is None:
        return math.nan
    test = simulation.lookup(contrast.test)
    null = test.null if contrast.null is None else contrast.null

    def beyond_null(effect: float) -> float:
        value = in_units_of(contrast.test, effect, plan, samples=pilot)
        return value if test.margin else abs(value - null)

    low, high = 0.0, 20.0
    if not beyond_null(high) >= contrast.margin:
        return math.nan
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond_null(middle) >= contrast.margin else (middle, high)
    return power_of(contrast.test, high, plan, pilot=pilot)


def _warning(contrast: Contrast, plan: Plan, floor: float, rejects: str, together: float) -> str:
    if contrast.within or rejects == "alone":
        return ""
    units = plan.sizes[0] if len(set(plan.sizes)) == 1 else f"{list(plan.sizes)}"
    said = f"no p of {contrast.test} with {units} units can be below {floor:.3g}"
    asked = plan.alpha if rejects == "together" else together
    enough = next(
        (
            n
            for n in range(max(plan.sizes) + 1, 65)
            if smallest_p(contrast.test, plan._replace(sizes=(n,) * len(plan.sizes))) <= asked
        ),
        None,
    )
    remedy = f"; {enough} units would do" if enough else ""
    if rejects == "together":
        return f"{said}: it can reject only together with others of its family{remedy} alone"
    return f"{said}, and {asked:.3g} is asked for{remedy}"


def _within(contrast: Contrast, plan: Plan) -> tuple[dict[str, float], float, float]:
    """Power to show that the effect lies within a margin, where the truth is the null."""
    powers = {str(d): within(contrast.test, plan, deviations=d) for d in EFFECTS}
    at_margin = within(contrast.test, plan, margin=contrast.margin)
    low, high = 0.0, 20.0
    if not within(contrast.test, plan, deviations=high) >= POWER:
        return powers, at_margin, math.nan
    for _ in range(40):
        middle = (low + high) / 2
        reached = within(contrast.test, plan, deviations=middle) >= POWER
        low, high = (low, middle) if reached else (middle, high)
    return powers, at_margin, high


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
