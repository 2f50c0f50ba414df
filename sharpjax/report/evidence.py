"""The evidence for hypotheses and their findings, as a page shows it: names, numbers, points."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, quantities
from sharpjax.protocol.judging.verdicts import Finding, Judgement
from sharpjax.protocol.summary import mean_and_standard_error
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.wording import size
from sharpjax.report import marks, words

_MOST_NAMED = 3
_UNKNOWN = (math.nan,) * 3  # confidence and ends of an interval
# Effects in the units of the metric.
_DIFFERENCE, _MEAN = "mean difference", "mean against a number"
_IN_UNITS = (_DIFFERENCE, "difference of means", "difference nearest")
_CORRECTIONS = {"holm": "Holm", "bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}


class Evidence(NamedTuple):
    """A finding in words."""

    name: str  # the composites that its contrast belongs to
    comparison: str  # such as `sam less than sgd`
    quantity: str  # the metrics, with coordinates and step
    test: str  # its name, and what its claim is about if a reader could expect more
    effect: str  # its name and unit
    kind: str  # how the samples are related: `protocol.tests.catalog.Kind`
    groups: tuple[tuple[str, np.ndarray], ...]  # name and values; each pair of models once
    units: str  # how many each group has, in words
    drawn: marks.Interval | None  # None if no test was made
    finding: Finding

    @property
    def title(self) -> str:
        return f"{self.name}: {self.comparison}" if self.name else self.comparison

    @property
    def estimate(self) -> str:
        return words.MISSING if self.drawn is None else words.estimate(*self.drawn[:3])

    @property
    def difference(self) -> marks.Interval | None:
        """The difference in the units of the metric; None if there is none."""
        if (found := self.finding.difference) is not None:
            return marks.Interval(found.estimate, *found.interval[1:], 0.0)
        return None if self.is_standardised else self.drawn

    @property
    def reported(self) -> str:
        """The source's number and whether ours is consistent with it; '' if it gives none."""
        number, agrees = self.finding.contrast.reported, self.finding.consistent
        if number is None:
            return ""
        how = {None: "", True: ", consistent", False: ", not consistent"}[agrees]
        return f"{words.number(number)}{how}"

    @property
    def p(self) -> tuple[str, float]:
        """The corrected p, as text and number: the one that decided, if one did. If an interval
        decided, "interval" and NaN."""
        decided, word = self.finding.decided_by, self.finding.verdict
        if decided is None and word in ("supported", "refuted", "equivalent"):
            return "interval", math.nan
        adjusted = self.finding.adjusted_p if decided is None else decided
        return words.p_value(adjusted), adjusted

    @property
    def is_standardised(self) -> bool:
        """Whether the effect has no unit, so that effects of several metrics can share an axis."""
        return self.effect != _MEAN and not self.effect.startswith(_IN_UNITS)

    @property
    def unit(self) -> str:
        """What one value belongs to: a pair of models, or the coordinates in `over`."""
        if self.kind == "pairwise":
            return "pair of models"
        return " and ".join(quantities(self.finding.contrast)[0].over) or "value"


def of(judgement: Judgement) -> list[Evidence]:
    """The evidence of each finding of a hypothesis."""
    names = _names(judgement.hypothesis, len(judgement.findings))
    return [evidence(f, name) for f, name in zip(judgement.findings, names, strict=True)]


def evidence(finding: Finding, name: str = "") -> Evidence:
    """The evidence of a finding; `name` is that of its composites."""
    contrast, result, samples = finding.contrast, finding.result, finding.samples
    test = catalog.TESTS.get(contrast.test)
    kind = test.kind if test else "independent"
    arrays = () if samples is None else tuple(np.asarray(x, np.float64) for x in samples.groups)
    if kind == "pairwise":
        arrays = tuple(_once_each(x) for x in arrays)
    drawn = None
    if result is not None:
        null = contrast.null if contrast.null is not None else test.null if test else 0.0
        _, low, high = finding.interval or _UNKNOWN
        drawn = marks.Interval(result.effect, low, high, null, contrast.margin)
    return Evidence(
        name=name,
        comparison=words.comparison(contrast),
        quantity="; ".join(dict.fromkeys(map(words.quantity, quantities(contrast)))),
        test=contrast.test.replace("-", " ") + (f". {test.about}" if test and test.about else ""),
        effect=_effect(test, contrast) if test else "effect",
        kind=kind,
        groups=tuple(zip(_groups(contrast, kind, len(arrays)), arrays, strict=True)),
        units=_units(result.n if result is not None else tuple(len(x) for x in arrays), kind),
        drawn=drawn,
        finding=finding,
    )


def asked(hypothesis: Hypothesis, found: Sequence[Evidence]) -> Iterator[tuple[str, str]]:
    """Names and texts of what the hypothesis states, and the source's numbers beside ours."""
    if len(hypothesis.contrasts) > 1:
        whole = Composite(hypothesis.contrasts, hypothesis.combine, hypothesis.refuted_by)
        yield "Of its parts", words.rule(whole)
    for part in hypothesis.contrasts:
        if isinstance(part, Composite):
            yield part.name or "Of its contrasts", words.rule(part)
    level = f"{hypothesis.alpha:g}, not corrected"
    if hypothesis.correction != "none":
        level = f"{hypothesis.alpha:g}, corrected by {_CORRECTIONS[hypothesis.correction]}"
        level += f", family {hypothesis.family}" if hypothesis.family else ""
    yield "Level", level
    yield "Refuted if", hypothesis.refuted_if
    if hypothesis.reference:
        yield "In the source", hypothesis.reference
        ours = [
            f"{e.comparison}: {e.estimate} ({e.effect})" for e in found[:_MOST_NAMED] if e.drawn
        ]
        more = f"; and {len(found) - len(ours)} more below" if len(found) > len(ours) else ""
        yield "Here", "; ".join(ours) + more if ours else "not measured"
    yield "Certainty", f"{hypothesis.status}: {words.CERTAINTY[hypothesis.status]}"
    yield "Left open by it", hypothesis.uncertain
    yield "Source", hypothesis.source
    yield "Still missing", hypothesis.missing


def numbers(e: Evidence, hypothesis: Hypothesis) -> Iterator[tuple[str, str]]:
    """Names and texts of estimates, sizes, p values and detectable effect; empty without a test."""
    result, finding = e.finding.result, e.finding
    if result is None or e.drawn is None:
        return
    shown = finding.interval or _UNKNOWN
    interval = "" if math.isnan(shown[1]) else f" [{100 * shown[0]:.4g} % interval]"
    if finding.difference is not None and e.difference is not None:
        yield f"Difference of means{interval}", words.estimate(*e.difference[:3])
    yield e.effect[:1].upper() + e.effect[1:] + interval, e.estimate
    yield "The source's number", e.reported
    if 1 < len(e.groups) <= 4 and e.kind not in ("correlation", "pairwise"):
        yield "Means ± standard errors", "; ".join(_mean(name, x) for name, x in e.groups)
    yield "n", e.units
    if not finding.contrast.within:  # a contrast with `within` is decided by an interval
        opposite = finding.verdict == "refuted" and finding.decided_by is not None
        raw = result.opposite_p if opposite else result.p
        yield "p in the opposite direction" if opposite else "p", words.p_value(raw)
        if hypothesis.correction != "none":
            adjusted = finding.adjusted_p if finding.decided_by is None else finding.decided_by
            name = f"p adjusted ({_CORRECTIONS[hypothesis.correction]})"
            yield name, words.p_value(adjusted)
        least = words.p_value(result.min_attainable_p) if result.min_attainable_p else "no floor"
        if result.min_attainable_p > hypothesis.alpha:
            least += f", above {hypothesis.alpha:g}: could not be significant"
        yield "Smallest p possible", least
    if not math.isnan(finding.detectable):
        detectable = words.number(size(finding.detectable, e.drawn.null), 3)
        yield "Detectable with power 0.8", detectable
    if finding.contrast.margin:
        yield "Smallest effect of interest", words.number(finding.contrast.margin)


def _mean(name: str, values: np.ndarray) -> str:
    mean, error, _ = mean_and_standard_error(values[np.isfinite(values)])
    return f"{name} {words.mean_and_error(mean, error)}"


def _effect(test: catalog.Test, contrast: Contrast) -> str:
    """What an effect is; that of one group against a number is its mean."""
    is_mean = test.effect == _DIFFERENCE and len(contrast.groups) == 1
    return _MEAN if is_mean else test.effect


def _names(hypothesis: Hypothesis, count: int) -> list[str]:
    """For each contrast, depth first, the names of its composites; `refuting` comes last."""

    def below(members: Sequence[Contrast | Composite], name: str) -> Iterator[str]:
        for member in members:
            if isinstance(member, Composite):
                yield from below(member.members, " · ".join(filter(None, (name, member.name))))
            else:
                yield name

    found = [*below(hypothesis.contrasts, ""), *below(hypothesis.refuting, "would refute")]
    return found if len(found) == count else [""] * count


def _groups(contrast: Contrast, kind: str, count: int) -> list[str]:
    """A name for each array of samples: the arms, the metrics if those differ, or both."""
    groups = [words.group(name) for name in contrast.groups]
    metrics = [words.clean(quantity.metric, 80) for quantity in quantities(contrast)]
    if len(groups) != count:
        return [f"group {i + 1}" for i in range(count)]
    if len(set(metrics)) == 1:
        return groups
    if kind == "correlation" or len(set(metrics)) == count:
        return metrics
    return [f"{name}, {metric}" for name, metric in zip(groups, metrics, strict=True)]


def _units(n: tuple[int, ...], kind: str) -> str:
    """
    >>> _units((8, 8), "paired"), _units((8, 7), "independent"), _units((60, 60), "correlation")
    ('8 pairs', '8, 7', '60 points')
    >>> _units((10,) * 11, "many"), _units((6, 6), "pairwise"), _units((20,), "paired")
    ('11 × 10', '6 models each', '20')
    """
    if not n:
        return words.MISSING
    same = len(set(n)) == 1
    if same and kind == "paired":
        return words.many(n[0], "pair") if n[1:] else f"{n[0]:,}"
    if same and kind == "correlation":
        return words.many(n[0], "point")
    if same and kind == "pairwise":
        return words.many(n[0], "model") + (" each" if len(n) > 1 else "")
    if same and len(n) > 2:
        return f"{len(n)} × {n[0]:,}"
    return ", ".join(f"{x:,}" for x in n)


def _once_each(square: np.ndarray) -> np.ndarray:
    """The values of a statistic of pairs of models, once for each pair: the mean of both orders."""
    if square.ndim != 2 or square.shape[0] != square.shape[1]:
        return square.ravel()
    both = (square + square.T) / 2
    return both[np.triu_indices(len(square), 1)]
