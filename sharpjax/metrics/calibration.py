"""Calibration: are predictions with a confidence of 80 % right in 80 % of the cases?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.estimate import Estimate
from sharpjax.metrics import summation
from sharpjax.metrics.summation import Sum


class Bins(NamedTuple):
    """Predictions by confidence, in M bins of equal width: bin b holds (b/M, (b+1)/M].

    A bin includes its upper edge. So a confidence of exactly 1 is in the last bin (torchmetrics
    puts it in a bin of its own). An edge b/M, such as the 1/K of a uniform prediction, belongs to
    the bin below it.

    Attributes:
        count: predictions in each bin, int32 [M].
        correct: how many of them are right, int32 [M].
        confidence: the sum of their confidences, [M].
        squared_gap: the sum over all predictions of (right - confidence)^2.
    """

    count: jax.Array
    correct: jax.Array
    confidence: Sum
    squared_gap: Sum


def empty(num_bins: int) -> Bins:
    nothing = jnp.zeros(num_bins, jnp.int32)
    return Bins(nothing, nothing, summation.zero((num_bins,)), summation.zero())


def add(bins: Bins, confidence: jax.Array, correct: jax.Array, counted: jax.Array) -> Bins:
    """The bins with a batch added.

    Args:
        confidence: [B], in [0, 1].
        correct: whether each prediction is right, bool [B].
        counted: whether each prediction is added, bool [B].
    """
    num_bins = bins.count.size
    bin_ = jnp.arange(num_bins, dtype=jnp.int32)[None, :]
    # Divided in numpy: XLA multiplies by 1 / M, which may round an edge differently.
    inner_edge = np.arange(1, num_bins, dtype=np.float32)[None, :] / np.float32(num_bins)
    index = jnp.sum(confidence[:, None] > inner_edge, axis=1, keepdims=True, dtype=jnp.int32)
    member = (index == bin_) & counted[:, None]
    gap = jnp.where(counted, correct.astype(jnp.float32) - confidence, 0.0)
    return Bins(
        count=bins.count + jnp.sum(member, axis=0, dtype=jnp.int32),
        correct=bins.correct + jnp.sum(member & correct[:, None], axis=0, dtype=jnp.int32),
        confidence=summation.add(
            bins.confidence,
            summation.over_examples(jnp.where(member, confidence[:, None], 0.0)),
        ),
        squared_gap=summation.add(bins.squared_gap, summation.over_examples(jnp.square(gap))),
    )


def expected_calibration_error(bins: Bins) -> Estimate:
    """ECE = sum_b |correct_b - confidence_b| / n (arXiv 1706.04599), the l1 norm over bins.

    The standard error uses the delta method. With the sign s_b of each bin's gap held fixed, ECE is
    the mean of s_b (right - confidence) over examples, so its variance is
    (mean (right - confidence)^2 - ECE^2) / (n - 1). This is right if the gaps are much larger than
    their noise. It is up to 1 / sqrt(1 - 2 / pi) = 1.66 times too large if the gaps are only noise.

    The standard error does not include the bias. The ECE of a perfectly calibrated model is not 0
    but about sum_b p_b sqrt(2 v_b / (pi n p_b)), with p_b the share of examples in bin b and v_b
    the variance of right in it. With 15 bins and n = 1,000 this is some 0.03.
    """
    num_examples = jnp.sum(bins.count)
    n = num_examples.astype(jnp.float32)
    # Subtract the two sums of a bin before rounding them to a single float32.
    total = bins.confidence.total - bins.correct.astype(jnp.float32)
    error = jnp.sum(jnp.abs(total + bins.confidence.rest)) / n
    variance = summation.value(bins.squared_gap) / n - jnp.square(error)
    deviation = jnp.sqrt(jnp.maximum(variance, 0.0) / (n - 1))
    return Estimate(error, jnp.where(num_examples > 1, deviation, jnp.nan), num_examples)
