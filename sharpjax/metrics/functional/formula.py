"""A metric as means of terms of single examples: one formula for a pair on the host, for all pairs
of many models, and for a stream of batches.

    value = V(mean_i t_1(f_i, g_i), mean_i t_2(f_i, g_i), ...)

The means are taken over all examples before V is, so that batches of any sizes give the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.metrics import inputs
from sharpjax.metrics.functional import outputs
from sharpjax.metrics.functional.outputs import Outputs, namespace

# These take softmaxes, and so want logits where `probs` is not said.
_SOFT = {"probabilities", "log_probabilities", "direction"}


def _only(means: tuple[Any, ...], num_classes: int) -> Any:
    return means[0]


class Formula(NamedTuple):
    """How a metric is computed of the `Outputs` f and g of two models.

    Attributes:
        terms: of f and g, a tuple of [N]; numpy or jax as these are.
        reads: the attributes of `Outputs` that `terms` reads.
        value: of the means of the terms, and the number of classes.
        symmetric: whether f and g may change places.
        least_classes: what fewer classes have no value.
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
        """Whether probabilities in the place of logits are refused."""
        return bool(_SOFT & set(self.reads))


def of_pair(
    caller: str, formula: Formula, a: Any, b: Any, label: Any = None, *, probs: bool = False
) -> float:
    """The value of two models, in float64 on the host; NaN of no examples.

    Raises:
        UserError: names `caller`: the arrays do not fit each other, an output is not finite, labels
            that are read are no classes, or probabilities were given for logits, or the opposite.
    """
    means = means_of_pair(caller, formula, a, b, label, probs=probs)
    return float("nan") if means is None else float(formula.value(means, np.shape(a)[1]))


def means_of_pair(
    caller: str, formula: Formula, a: Any, b: Any, label: Any = None, *, probs: bool = False
) -> tuple[Any, ...] | None:
    """The means of the terms, as `of_pair`; None where it gives NaN."""
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
    """Raises a `UserError` where there are fewer classes than a formula needs."""
    if num_classes < formula.least_classes:
        raise UserError(
            f"functional.{caller}: it needs {formula.least_classes} classes or more, and the "
            f"outputs have {num_classes}; give a k of {num_classes} at most."
        )


def ratio(x: Any, y: Any) -> Any:
    """x / y, NaN where y is not above 0."""
    xp = namespace(y)
    return xp.where(y > 0, x / xp.where(y > 0, y, 1), xp.nan)
