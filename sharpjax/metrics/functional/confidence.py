"""How differently two models are calibrated."""

import functools
from typing import Any

import numpy as np

from sharpjax.errors import whole_number
from sharpjax.metrics.functional.formula import Formula, of_pair
from sharpjax.metrics.functional.outputs import namespace


@functools.cache
def binned(num_bins: int) -> Formula:
    """The formula of `calibration_difference`."""
    num_bins = whole_number("functional.calibration_difference", "num_bins", num_bins)

    def gaps(model: Any) -> tuple[Any, ...]:
        """For each bin: right minus confidence if the example is in the bin, else 0."""
        xp, confidence = namespace(model.values), model.probabilities.max(axis=-1)
        # Divided in numpy, as in `metrics.calibration`: XLA may round an edge differently.
        inner_edge = np.arange(1, num_bins, dtype=confidence.dtype)
        inner_edge /= confidence.dtype.type(num_bins)
        index = xp.sum(confidence[..., None] > inner_edge, axis=-1)
        gap = model.right.astype(confidence.dtype) - confidence
        return tuple(xp.where(index == number, gap, 0) for number in range(num_bins))

    def of_both(f: Any, g: Any) -> tuple[Any, ...]:
        return (*gaps(f), *gaps(g))

    def difference(means: tuple[Any, ...], num_classes: int) -> Any:
        return abs(sum(map(abs, means[:num_bins])) - sum(map(abs, means[num_bins:])))

    return Formula(of_both, ("right", "probabilities"), difference)


def calibration_difference(
    a: Any, b: Any, label: Any, *, num_bins: int = 15, probs: bool = False
) -> float:
    """|ECE of a - ECE of b|, in [0, 1]. ECE is the expected calibration error over `num_bins` bins
    of equal width, which include their upper edges (arXiv 1706.04599; `metrics.calibration`).

    ECE is not continuous: in float32, a confidence within rounding of an edge may fall into the
    neighbouring bin, which changes the value by at most 2 / N.

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N].
        num_bins: 1 or more.
        probs: whether `a` and `b` are probabilities.

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class;
            probabilities without `probs`, or logits with it; an impossible `num_bins`.

    >>> import numpy as np
    >>> p, q = np.array([[0.9, 0.1], [0.7, 0.3]]), np.array([[0.5, 0.5], [0.4, 0.6]])
    >>> round(calibration_difference(p, q, np.array([0, 0]), probs=True), 3)  # .2 and .55
    0.35
    """
    formula = binned(num_bins)
    return of_pair("calibration_difference", formula, a, b, label, probs=probs)
