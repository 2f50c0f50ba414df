"""A metric as a function of means of terms of single examples. The same formula serves for a pair
on the host, for all pairs of many models, and for a stream of batches.

    value = V(mean_i t_1(f_i, g_i), mean_i t_2(f_i, g_i), ...)

The means are taken over all examples before V is applied, so that the batch sizes do not matter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.metrics import inputs
from sharpjax.metrics.functional import outputs
from sharpjax.metrics.functional.outputs import Outputs, namespace

# Metrics that read these take softmaxes, so they need logits unless `probs`.
_SOFT = {"probabilities", "log_probabilities", "direction"}


def _only(means: tuple[Any, ...], num_classes: int) -> Any:
    return means[0]


class Formula(NamedTuple):
    """How a metric is computed from the `Outputs` f and g of two models.

    Attributes:
        terms: `terms(f, g)`, a tuple of arrays [N], numpy or jax like f and g.
        reads: the attributes of `Outputs` that `terms` reads.
        value: `value(means, num_classes)`, the metric from the means of the terms.
        symmetric: whether swapping f and g leaves the value unchanged.
        least_classes: the fewest classes for which the metric is defined.
    """

    terms: Callable[[Any, Any], tuple[Any, ...]]
    reads: tuple[str, ...]
    value: Callable[[tuple[Any, ...], int], Any] = _only
    symmetric: bool = True
    least_classes: int = 2

    @property
    def reads_labels(self) -> bool:
        return "right" in self.reads

    @property
    def guarded(self) -> bool:
        """Whether probabilities given in place of logits are refused."""
        return bool(_SOFT & set(self.reads))


def of_pair(
    caller: str, formula: Formula, a: Any, b: Any, label: Any = None, *, probs: bool = False
) -> float:
    """The value for two models, in float64 on the host; NaN if there are no examples.

    Raises:
        UserError: names `caller`: the shapes do not match, an output is not finite, labels are
            needed and missing or not classes, or probabilities were given for logits or the
            opposite.
    """
    means = means_of_pair(caller, formula, a, b, label, probs=probs)
    return float("nan") if means is None else float(formula.value(means, np.shape(a)[1]))


def means_of_pair(
    caller: str, formula: Formula, a: Any, b: Any, label: Any = None, *, probs: bool = False
) -> tuple[Any, ...] | None:
    """The means of the terms, checked as in `of_pair`; None if there are no examples."""
    inputs.refuse_traced(f"functional.{caller}", a, b, label)
    outputs.check_shapes(caller, a, b, label)
    check_classes(caller, formula, np.shape(a)[1])
    if formula.reads_labels:
        label = outputs.check_label(caller, label, np.shape(a)[1])
    values = [outputs.check_values(caller, x, guarded=formula.guarded, probs=probs) for x in (a, b)]
    for name, x in zip("ab", values, strict=True):
        inputs.refuse_not_finite(f"functional.{caller}", name, x)
    if not len(values[0]):
        return None
    f, g = (Outputs(x, label, probs=probs) for x in values)
    return tuple(np.mean(term) for term in formula.terms(f, g))


def check_classes(caller: str, formula: Formula, num_classes: int) -> None:
    """Raises a `UserError` if there are fewer classes than a formula needs."""
    if num_classes < formula.least_classes:
        raise UserError(
            f"functional.{caller}: it needs {formula.least_classes} classes or more, and the "
            f"outputs have {num_classes}; give a k of {num_classes} at most."
        )


def ratio(x: Any, y: Any) -> Any:
    """x / y; NaN where y is not above 0."""
    xp = namespace(y)
    return xp.where(y > 0, x / xp.where(y > 0, y, 1), xp.nan)
