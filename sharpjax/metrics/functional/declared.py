"""All metrics by name, with their properties, which `tests/test_declared_metrics.py` checks.

METRICS["jsd"].fn(a, b)          # the value for two models
METRICS["jsd"].symmetric         # True
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from sharpjax.errors import UserError, unknown
from sharpjax.metrics.functional import confidence as s
from sharpjax.metrics.functional import correctness as c
from sharpjax.metrics.functional import distances as d
from sharpjax.metrics.functional import divergences as v
from sharpjax.metrics.functional import predictions as p
from sharpjax.metrics.functional import rankings as r
from sharpjax.metrics.functional.formula import Formula

Change = Literal["shift", "scale", "classes", "examples"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of the outputs of two models.

    Attributes:
        fn: `fn(a, b, label)`, a float; `a` and `b` are [N, K], `label` is [N].
        formula: the same metric for all pairs and for streams.
        low, high: bounds of all values.
        of_equal: the value for two models with the same outputs; it is `low` or `high`.
        invariant_to: changes of the outputs of both models that leave the value unchanged.
            'shift': adding a constant to each row of logits, which may differ by row and model;
            'scale': multiplying the logits of each model by a positive number of its own;
            'classes': permuting the classes, and the labels with them, if no outputs are equal;
            'examples': permuting the examples.
        is_metric: whether it is symmetric, 0 for equal outputs, and
            d(a, c) <= d(a, b) + d(b, c).
    """

    fn: Callable[..., float]
    formula: Formula
    low: float
    high: float
    of_equal: float
    invariant_to: frozenset[Change]
    is_metric: bool

    @property
    def larger_is_more_similar(self) -> bool:
        """Whether a larger value means more similar models."""
        return self.of_equal == self.high

    @property
    def symmetric(self) -> bool:
        """Whether fn(a, b) = fn(b, a)."""
        return self.formula.symmetric

    @property
    def reads_labels(self) -> bool:
        return self.formula.reads_labels


_VALUES: frozenset[Change] = frozenset({"classes", "examples"})
_SOFTMAX: frozenset[Change] = frozenset({"classes", "examples", "shift"})
_ORDER: frozenset[Change] = frozenset({"classes", "examples", "shift", "scale"})

# fn, formula, low, high, of_equal, invariant_to, is_metric
_ROWS = {
    "disagreement": (p.disagreement, p.DISAGREEMENT, 0, 1, 0, _ORDER, True),
    "normalized_disagreement": (p.normalized_disagreement, p.NORMALIZED, 0, 2, 0, _ORDER, False),
    "chance_corrected_agreement": (
        p.chance_corrected_agreement,
        p.CHANCE_CORRECTED,
        -1,
        1,
        1,
        _ORDER,
        False,
    ),  # fmt: skip
    "activation_distance": (
        d.activation_distance,
        d.ACTIVATION,
        0,
        math.sqrt(2),
        0,
        _SOFTMAX,
        True,
    ),  # fmt: skip
    "l1": (d.l1, d.L1, 0, 2, 0, _SOFTMAX, True),
    "total_variation": (d.total_variation, d.TOTAL_VARIATION, 0, 1, 0, _SOFTMAX, True),
    "cosine_similarity": (d.cosine_similarity, d.COSINE, 0, 1, 1, _SOFTMAX, False),
    "cosine_distance": (d.cosine_distance, d.COSINE_DISTANCE, 0, 1, 0, _SOFTMAX, False),
    "logit_rmse": (d.logit_rmse, d.LOGIT_RMSE, 0, math.inf, 0, _VALUES, True),
    "jsd": (v.jensen_shannon, v.JSD, 0, math.log(2), 0, _SOFTMAX, False),
    "kl": (v.kl, v.KL, 0, math.inf, 0, _SOFTMAX, False),
    "kl_reverse": (v.kl_reverse, v.KL_REVERSE, 0, math.inf, 0, _SOFTMAX, False),
    "jeffreys": (v.jeffreys, v.JEFFREYS, 0, math.inf, 0, _SOFTMAX, False),
    "rank_disagreement": (r.rank_disagreement, r.RANK_DISAGREEMENT, 0, 1, 0, _ORDER, True),
    "footrule": (r.footrule, r.FOOTRULE, 0, 1, 0, _ORDER, True),
    "kendall_distance": (r.kendall_distance, r.KENDALL_DISTANCE, 0, 1, 0, _ORDER, False),
    "spearman": (r.spearman, r.SPEARMAN, -1, 1, 1, _ORDER, False),
    "top_k_agreement": (r.top_k_agreement, r.top_k(5), 0, 1, 1, _ORDER, False),
    "rank_biased_overlap": (r.rank_biased_overlap, r.rank_biased(0.9), 0, 1, 1, _ORDER, False),
    "error_consistency": (c.error_consistency, c.ERROR_CONSISTENCY, -1, 1, 1, _ORDER, False),
    "error_inconsistency": (c.error_inconsistency, c.ERROR_INCONSISTENCY, 0, 1, 0, _ORDER, True),
    "error_ratio": (c.error_ratio, c.ERROR_RATIO, 0, math.inf, 0, _ORDER, False),
    "positive_flip_rate": (c.positive_flip_rate, c.POSITIVE_FLIPS, 0, 1, 0, _ORDER, False),
    "negative_flip_rate": (c.negative_flip_rate, c.NEGATIVE_FLIPS, 0, 1, 0, _ORDER, False),
    "accuracy_difference": (c.accuracy_difference, c.ACCURACY_DIFFERENCE, 0, 1, 0, _ORDER, True),
    "calibration_difference": (s.calibration_difference, s.binned(15), 0, 1, 0, _SOFTMAX, True),
}

METRICS: Mapping[str, Metric] = MappingProxyType({name: Metric(*x) for name, x in _ROWS.items()})


def formulas_of(
    caller: str, metrics: Iterable[str] | Mapping[str, Formula | Metric]
) -> tuple[tuple[str, Formula], ...]:
    """Pairs of name and formula, from names in `METRICS` or from a mapping.

    Raises:
        UserError: an unknown name, a single string in place of several names, or no names.
    """
    if isinstance(metrics, str):
        raise UserError(
            f"functional.{caller}: metrics is '{metrics}'; give several: ['{metrics}']."
        )
    if isinstance(metrics, Mapping):
        made = {n: m.formula if isinstance(m, Metric) else m for n, m in metrics.items()}
        found = tuple(made.items())
    else:
        for name in (metrics := tuple(metrics)):
            if name not in METRICS:
                raise unknown(f"metric (functional.{caller})", str(name), METRICS)
        found = tuple((name, METRICS[name].formula) for name in dict.fromkeys(metrics))
    if not found:
        raise UserError(f"functional.{caller}: no metrics; give names, some of METRICS.")
    return found
