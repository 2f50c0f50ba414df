"""Whether a layer is critical, as far as a finite test set and a few trials can show."""

import math
import numbers
from typing import Literal, NamedTuple

import jax
import numpy as np
from scipy import optimize, stats

from sharpjax.errors import UserError
from sharpjax.layerwise.criticality.effects import Effects, trials_of
from sharpjax.layerwise.criticality.layers import kind_of


class Judgement(NamedTuple):
    """What the replacement of a layer costs.

    Attributes:
        critical: whether the observed drop, the mean over trials, is `threshold` or more.
        word: 'critical' or 'robust' if the drop in the population is shown to be so at the
            requested confidence; 'undecided' if examples and trials do not suffice; 'undefined' if
            an output was not finite.
        drop: accuracy of the trained model minus the mean over trials of the replaced model's.
        low, high: confidence interval of the drop, two-sided.
        p_critical: one-sided p-value of a true drop below the threshold; small if the layer is
            critical.
        p_robust: one-sided p-value of a true drop at the threshold or above.
        num_trials, num_examples: the data behind it.
    """

    critical: bool
    word: Literal["critical", "robust", "undecided", "undefined"]
    drop: float
    low: float
    high: float
    p_critical: float
    p_robust: float
    num_trials: int
    num_examples: int


def judge(effects: Effects, layer: str, *, threshold: float, confidence: float = 0.95) -> Judgement:
    """Whether a layer is critical: its replacement costs `threshold` of accuracy or more.

    Both models answer the same N examples. b examples only the trained model has right, c only the
    replaced one, so the drop is d = (b - c) / N. The statistic against a drop D in the population
    is

        z = (d - D) / sqrt((2 q + D (1 - D)) / N),

    with q the most likely share of c under D. This is Tango's score test of paired proportions
    (Statistics in Medicine 17, 1998); at D = 0 it is McNemar's test without a correction. The
    interval is the set of all D that it does not reject. If only one of 'critical' and 'robust' is
    tested, it is wrong with probability at most 1 - confidence, up to the normal approximation.

    With several trials, b and c are means. The variance of the mean drop over trials, s^2 / T, is
    added, and Student's t with Satterthwaite's degrees of freedom replaces the normal. Both parts
    are upper bounds (the trials share their examples, and part of s^2 comes from the examples), so
    this errs towards 'undecided'. The population is then that of examples and draws. With one trial
    it is that of examples, for this one replacement.

    Args:
        effects: from `evaluate`.
        layer: one of its layers.
        threshold: in (0, 1), of accuracy: 0.02 is two points.
        confidence: in (0.5, 1).

    Raises:
        UserError: effects that are not from `evaluate`, an unknown layer, a number out of range.

    >>> from sharpjax.layerwise.criticality import Effect
    >>> one = Effect(0.75, 1.0, 0.2, 0.3, 0.25, 0.1, lost=210, gained=10)
    >>> found = judge(Effects(0.95, 0.1, 1000, {("a", 0): one}), "a", threshold=0.02)
    >>> found.word, round(found.low, 3), round(found.high, 3)
    ('critical', 0.175, 0.227)
    """
    caller = "criticality.judge"
    for name, value, least in (("threshold", threshold, 0), ("confidence", confidence, 0.5)):
        real = isinstance(value, numbers.Real | np.ndarray | jax.Array) and np.ndim(value) == 0
        if not real or not least < value < 1:
            given = repr(value) if np.ndim(value) == 0 else kind_of(value)
            raise UserError(f"{caller}: {name}={given}; give a number between {least} and 1.")
    if not isinstance(effects, Effects):
        raise UserError(
            f"{caller}: effects is {kind_of(effects)}; give what criticality.evaluate gives."
        )
    trials = trials_of(caller, effects, layer)
    n = effects.num_examples
    if any(math.isnan(effect.accuracy) for effect in trials):
        nan = math.nan
        return Judgement(False, "undefined", nan, nan, nan, nan, nan, len(trials), n)
    pairs = np.array([(effect.lost, effect.gained) for effect in trials], float)
    drop = float((pairs[:, 0] - pairs[:, 1]).mean() / n)
    critical, robust = _tails(pairs, n, threshold)
    error = 1 - confidence
    low, high = _interval(pairs, n, drop, error / 2)
    word = "critical" if critical <= error else "robust" if robust <= error else "undecided"
    return Judgement(
        # The tolerance makes 20 of 1,000 count as 0.02, however their quotient is rounded.
        bool(drop >= threshold * (1 - 1e-12)), word, drop, low, high, critical, robust,
        len(trials), n,
    )  # fmt: skip


def _tails(pairs: np.ndarray, n: int, against: float) -> tuple[float, float]:
    """The probabilities of a mean drop at least as large, and as small, if it is `against`."""
    lost, gained = pairs.mean(axis=0)
    gap = (lost - gained) / n - against
    examples = _variance(lost, gained, n, against)
    trials, count = 0.0, len(pairs)
    if count > 1:
        trials = float(np.var((pairs[:, 0] - pairs[:, 1]) / n, ddof=1)) / count
    variance = examples + trials
    if variance == 0:
        return (0.0, 1.0) if gap > 0 else (1.0, 0.0) if gap < 0 else (1.0, 1.0)
    z = gap / math.sqrt(variance)
    law = stats.norm if trials == 0 else stats.t((count - 1) * (variance / trials) ** 2)
    return float(law.sf(z)), float(law.cdf(z))


def _variance(lost: float, gained: float, n: int, drop: float) -> float:
    """Variance of the observed drop if the true one is `drop`, with q of greatest likelihood."""
    a, b = 2 * n, (2 * n - lost + gained) * drop - lost - gained
    c = -gained * drop * (1 - drop)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return max(2 * q + drop * (1 - drop), 0.0) / n


def _interval(pairs: np.ndarray, n: int, drop: float, error: float) -> tuple[float, float]:
    """All drops that neither one-sided test rejects at level `error`."""

    def end(side: int, limit: float) -> float:
        def above(against: float) -> float:
            return _tails(pairs, n, against)[side] - error

        if limit == drop or above(limit) >= 0:
            return limit
        return float(optimize.brentq(above, drop, limit, xtol=1e-9))  # pyright: ignore

    return end(0, -1.0), end(1, 1.0)
