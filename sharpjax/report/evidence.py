"""What one contrast rests on, ready to be shown: names, numbers, points."""

import math
from typing import NamedTuple

import numpy as np

from sharpjax.protocol.claims import Contrast, quantities
from sharpjax.protocol.judging.verdicts import Finding
from sharpjax.protocol.tests import catalog
from sharpjax.report import words
from sharpjax.report.marks import Interval


class Evidence(NamedTuple):
    """A finding in the words of a page.

    Attributes:
        comparison: `sam less than sgd`.
        quantity: the metrics, with coordinates and step.
        effect: name and unit of the test's effect.
        kind: how the samples belong together, as `protocol.tests.catalog.Kind`.
        groups: name and values of each; pairs of models once each.
        units: how many units each group has, in words.
        drawn: what is drawn of the estimate; None where no test was made.
    """

    comparison: str
    quantity: str
    test: str
    effect: str
    kind: str
    groups: tuple[tuple[str, np.ndarray], ...]
    seen: tuple[np.ndarray, ...] | None
    units: str
    drawn: Interval | None
    finding: Finding

    @property
    def estimate(self) -> str:
        return words.MISSING if self.drawn is None else words.estimate(*self.drawn[:3])


def evidence(finding: Finding) -> Evidence:
    """What `finding` rests on."""
    contrast, result, samples = finding.contrast, finding.result, finding.samples
    test = catalog.TESTS.get(contrast.test)
    kind = test.kind if test else "independent"
    arrays = () if samples is None else tuple(np.asarray(x, np.float64) for x in samples.groups)
    if kind == "pairwise":
        arrays = tuple(_once_each(x) for x in arrays)
    drawn = None
    if result is not None and finding.interval is not None:
        null = contrast.null if contrast.null is not None else test.null if test else 0.0
        drawn = Interval.of(result.effect, finding.interval[1:], null, contrast.margin)
    return Evidence(
        comparison=words.comparison(contrast),
        quantity="; ".join(dict.fromkeys(map(words.quantity, quantities(contrast)))),
        test=words.clean(contrast.test.replace("-", " ").replace("_", " ")),
        effect=test.effect if test else "effect",
        kind=kind,
        groups=tuple(zip(_names(contrast, kind, len(arrays)), arrays, strict=True)),
        seen=None if samples is None else samples.seen,
        units=_units(result.n if result is not None else tuple(len(x) for x in arrays), kind),
        drawn=drawn,
        finding=finding,
    )


def least_p_too_large(finding: Finding, alpha: float) -> bool:
    """Whether no data of these sizes could have been significant."""
    least = math.nan if finding.result is None else finding.result.min_attainable_p
    return least > alpha


def _names(contrast: Contrast, kind: str, count: int) -> list[str]:
    """One for each array of samples: arms, with metrics where those differ."""
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
    >>> _units((10,) * 11, "many"), _units((6, 6), "pairwise")
    ('11 × 10', '6 models each')
    >>> _units((20,), "paired")
    '20'
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
    """Of a statistic of pairs of models, the mean of both orders."""
    if square.ndim != 2 or square.shape[0] != square.shape[1]:
        return square.ravel()
    both = (square + square.T) / 2
    return both[np.triu_indices(len(square), 1)]
