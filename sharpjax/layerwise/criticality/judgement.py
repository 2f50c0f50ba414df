"""Whether a layer is critical, as far as a finite test set and few trials can tell."""

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
        critical: whether the drop that was seen, the mean over trials, is `threshold` or more.
        word: 'critical' or 'robust' where the drop in the population is that, at the confidence
            that was asked for; 'undecided' where the examples and trials do not tell; 'undefined'
            where an output was not finite.
        drop: accuracy of the trained model less the mean over trials of that of the replaced.
        low, high: confidence interval of the drop, two-sided.
        p_critical: of a drop below the threshold, one-sided: small where the layer is critical.
        p_robust: of a drop at the threshold or above.
        num_trials, num_examples: what it rests on.
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

    Both models answer the same N examples, of which the trained one alone has b right and the
    replaced one alone c: the drop is d = (b - c) / N. Against a drop D in the population

        z = (d - D) / sqrt((2 q + D (1 - D)) / N),

    q the likeliest share of c under D: Tango's score test of paired proportions (Statistics in
    Medicine 17, 1998), which at D = 0 is McNemar's without a correction. The interval is the set of
    D that it does not reject. Where one alone is asked for, 'critical' and 'robust' are each wrong
    with probability (1 - confidence) at most, up to the normal approximation.

    Of several trials b and c are means, and the variance of the mean drop over trials, s^2 / T, is
    added, Student's t with Satterthwaite's degrees of freedom taking the place of the normal. Both
    parts are bounds (examples are shared by the trials, and part of s^2 is of the examples), so
    this errs towards 'undecided'. The population is then of examples and draws; of one trial it is
    of examples, for this one replacement.

    Args:
        effects: from `evaluate`.
        layer: one of its layers.
        threshold: in (0, 1), of accuracy: 0.02 is two points.
        confidence: in (0.5, 1).

    Raises:
        UserError: what `evaluate` does not give, an unknown layer, a number out of range.

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
        # Of counts, so that 20 of 1,000 are 0.02 whatever their quotient rounds to.
        bool(drop >= threshold * (1 - 1e-12)), word, drop, low, high, critical, robust,
        len(trials), n,
    )  # fmt: skip


def _tails(pairs: np.ndarray, n: int, against: float) -> tuple[float, float]:
    """The probabilities of so large, and of so small, a mean drop if it is `against`."""
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
    """Of the drop that is seen, where it is `drop` in truth; q maximises the likelihood there."""
    a, b = 2 * n, (2 * n - lost + gained) * drop - lost - gained
    c = -gained * drop * (1 - drop)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return max(2 * q + drop * (1 - drop), 0.0) / n


def _interval(pairs: np.ndarray, n: int, drop: float, error: float) -> tuple[float, float]:
    """All drops that are rejected on no side with `error`."""

    def end(side: int, limit: float) -> float:
        def above(against: float) -> float:
            return _tails(pairs, n, against)[side] - error

        if limit == drop or above(limit) >= 0:
            return limit
        return float(optimize.brentq(above, drop, limit, xtol=1e-9))  # pyright: ignore

    return end(0, -1.0), end(1, 1.0)
