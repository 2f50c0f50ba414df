"""Calibration errors with bins that adapt to the data, and tests of calibration errors."""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.metrics import inputs, reliability
from sharpjax.metrics.reliability import Reliability

# The tests below call two calibration errors equal if they differ by less. Confidences come from a
# float32 softmax and are off by some 4 eps; so is a mean of them, and an error by as much. Sums of
# them are in float64. A comparison of two errors is off by 8 eps, one of two differences by 16.
_ROUNDING = 16 * float(np.finfo(np.float32).eps)


def adaptive_calibration_error(
    logits: jax.Array,
    label: jax.Array,
    *,
    num_bins: int = 15,
    of: Literal["top", "classes"] = "classes",
    threshold: float = 0.0,
) -> float:
    """ACE: the mean over classes of sum_b f_b |confidence_b - accuracy_b|, in bins of equal mass
    (arXiv 1904.01685).

    The probabilities of a class are sorted and cut into `num_bins` parts, whose sizes differ by at
    most one. Equal probabilities stay in one part, so that the result does not depend on the order
    of the examples. Empty parts contribute nothing. Computed in float64 on the host. NaN if there
    are no examples or a probability is NaN.

    Args:
        logits: [N, K].
        label: [N].
        num_bins: number of bins; may be more than N.
        of: 'classes', or 'top' for the predicted class alone.
        threshold: probabilities below it are left out of each class (TACE, ibid., with 0.01). f_b
            is then a share of those that remain, and a class without any is left out of the mean.

    Raises:
        UserError: as `metrics.update`; an impossible number of bins or threshold, an unknown `of`.

    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    >>> label = np.array([0, 1, 0, 0])
    >>> round(adaptive_calibration_error(logits, label, num_bins=2, of="top"), 6)
    0.4
    """
    caller = "adaptive_calibration_error"
    whole_number(caller, "num_bins", num_bins)
    if of not in ("top", "classes"):
        raise unknown(f"of ({caller})", str(of), ("top", "classes"))
    if not 0 <= threshold < 1:
        raise UserError(f"{caller}: threshold={threshold}; give a number in [0, 1).")
    z, y = inputs.on_host(caller, logits, label)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    right = y[:, None] == np.arange(p.shape[1])
    if of == "top":
        top = np.argmax(z, axis=1)[:, None]
        p, right = np.take_along_axis(p, top, 1), np.take_along_axis(right, top, 1)
    if not np.isfinite(p).all():
        return float("nan")
    errors = []
    for confidence, hit in zip(p.T, right.T, strict=True):
        kept = confidence >= threshold
        confidence, hit, count = confidence[kept], hit[kept], int(kept.sum())
        if not count:
            continue
        last = np.cumsum([len(part) for part in np.array_split(np.arange(count), num_bins)]) - 1
        edges = np.sort(confidence)[last[:-1].clip(0)]
        index = np.searchsorted(edges, confidence, side="left")
        gaps = np.bincount(index, confidence - hit, num_bins)
        errors.append(np.abs(gaps).sum() / count)
    return float(np.mean(errors)) if errors else float("nan")


def sweep_calibration_error(logits: jax.Array, label: jax.Array, *, order: int = 1) -> float:
    """ECE-sweep: the calibration error of the top class in bins of equal mass, with as many bins as
    keep the accuracy non-decreasing from bin to bin (Roelofs et al., 2020, arXiv 2012.08668).

    The error is (sum_b f_b |confidence_b - accuracy_b|^order)^(1 / order). The number of bins grows
    from 1 and stops before the first number at which an accuracy is lower than that of the bin
    before. Equal confidences stay in one bin. Computed in float64 on the host. NaN if there are no
    examples or a prediction is NaN.

    Args:
        logits: [N, K].
        label: [N].
        order: 1, as in the other errors here; the paper's experiments use 2.

    Raises:
        UserError: as `metrics.update`; `order` is not a whole number of 1 or more.

    >>> logits = np.log([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
    >>> label = np.array([1, 0, 1, 0])  # in two bins half are right in each, in three fewer
    >>> round(sweep_calibration_error(logits, label), 6)
    0.25
    """
    caller = "sweep_calibration_error"
    whole_number(caller, "order", order)
    z, y = inputs.on_host(caller, logits, label)
    confidence = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    if not len(y) or not np.isfinite(confidence).all():
        return float("nan")
    right = (np.argmax(z, axis=1) == y)[np.argsort(confidence, kind="stable")]
    confidence = np.sort(confidence)
    sums = np.concatenate([[[0.0, 0.0]], np.cumsum(np.stack([confidence, right], 1), axis=0)])
    found = 0.0
    for num_bins in range(1, len(y) + 1):
        last = np.arange(1, num_bins + 1) * len(y) // num_bins - 1
        ends = np.unique(np.searchsorted(confidence, confidence[last], side="right"))
        count = np.diff(ends, prepend=0)
        means = np.diff(sums[ends], axis=0, prepend=0) / count[:, None]
        if np.any(np.diff(means[:, 1]) < 0):
            break
        gaps = np.abs(means[:, 0] - means[:, 1]) ** order
        found = float(np.sum(count * gaps) / len(y)) ** (1 / order)
    return found


class CalibrationTest(NamedTuple):
    """How an expected calibration error compares with chance.

    All are NaN if there are no examples or a prediction is NaN.

    Attributes:
        ece: the observed error.
        mean: the mean error of a calibrated model with the same confidences.
        low, high: the 2.5 % and 97.5 % quantiles of the error of that calibrated model.
        p_value: the probability that this calibrated model has an error at least as large;
            (1 + number of draws at least as large) / (1 + draws).
    """

    ece: float
    mean: float
    low: float
    high: float
    p_value: float


def calibration_test(
    bins: Reliability, logits: jax.Array, label: jax.Array, *, key: jax.Array, num_draws: int = 1000
) -> CalibrationTest:
    """Test of the hypothesis that the predictions are calibrated: labels are drawn again from the
    confidences (Vaicenavicius et al., 2019, arXiv 1902.06977).

    The test is exact at any number of examples, while `ece_null` of `reliability.compute` is an
    approximation. Cost: N x `num_draws` uniform numbers (for classes N x K x `num_draws`).

    Args:
        bins: from `reliability.init`; only the bins are used, not their contents.
        logits, label: of all examples, as in `metrics.update`.
        key: random key of the draws.

    Raises:
        UserError: as `metrics.update`; the bins are of another number of classes.
    """
    caller = "calibration_test"
    num_draws = whole_number(caller, "num_draws", num_draws)
    inputs.refuse_traced(caller, logits, label)
    batch = inputs.checked(caller, logits, label)
    if bins.of == "top":
        confidence = inputs.confidence_of(batch)[:, None]
        right = inputs.correct(batch)[:, None]
    else:
        reliability.check_classes(caller, bins, batch.logits)
        confidence = jax.nn.softmax(batch.logits)
        right = batch.label[:, None] == jnp.arange(confidence.shape[1])
    keys = jax.random.split(key, num_draws)
    index, drawn = map(np.asarray, _counts(bins, batch.logits, confidence, right, keys))
    # The confidences are those of all draws: equal numbers of right ones give equal errors.
    sums = np.stack(
        [_in_bins(bins, *of) for of in zip(index.T, np.asarray(confidence).T, strict=True)]
    )
    count = len(batch.label) or math.nan
    observed, *null = (float(np.abs(sums - right).sum(axis=1).mean() / count) for right in drawn)
    low, high = np.quantile(null, [0.025, 0.975])
    larger = np.array(null) >= observed - _ROUNDING
    return CalibrationTest(
        observed, float(np.mean(null)), float(low), float(high), _p_value(observed, larger)
    )


class Comparison(NamedTuple):
    """How the calibration errors of two models compare.

    Attributes:
        difference: the error of the first model minus that of the second.
        p_value: two-sided; (1 + draws at least as far from 0) / (1 + draws). Both are NaN if there
            are no examples or a prediction is NaN.
    """

    difference: float
    p_value: float


def compare_calibration(
    bins: Reliability,
    first: jax.Array,
    second: jax.Array,
    label: jax.Array,
    *,
    key: jax.Array,
    num_draws: int = 1000,
) -> Comparison:
    """Whether two models are calibrated alike on the same examples: a paired permutation test.

    For each example, the predictions of the two models are swapped at random. The test is exact if
    the predictions are exchangeable. It is about these two models and says nothing about other
    seeds.

    Args:
        bins: from `reliability.init`, of the top class; only the bins are used, not their contents.
        first, second: logits [N, K] of the same examples.
        label: [N].
        key: random key of the draws.

    Raises:
        UserError: as `metrics.update`; `bins` are of classes.
    """
    caller = "compare_calibration"
    num_draws = whole_number(caller, "num_draws", num_draws)
    if bins.of != "top":
        raise UserError(f"{caller}: give bins of the top class, reliability.init(...).")
    inputs.refuse_traced(caller, first, second, label)
    batches = [inputs.checked(caller, logits, label) for logits in (first, second)]
    confidence = jnp.stack([inputs.confidence_of(batch) for batch in batches])
    right = np.stack([inputs.correct(batch) for batch in batches])
    index = np.asarray(reliability.bin_of(bins, confidence))
    gap = np.asarray(confidence, np.float64) - right
    count = len(batches[0].label) or math.nan

    def difference(swap: np.ndarray) -> float:
        own, other = (
            np.abs(_in_bins(bins, *(np.where(swap, x[1 - i], x[i]) for x in (index, gap)))).sum()
            for i in (0, 1)
        )
        return float((own - other) / count)

    observed = difference(np.zeros(len(label), bool))
    keys = jax.random.split(key, num_draws)
    drawn = [difference(np.asarray(_swap(keys, i, len(label)))) for i in range(num_draws)]
    return Comparison(observed, _p_value(observed, np.abs(drawn) >= abs(observed) - _ROUNDING))


def _p_value(observed: float, as_large: np.ndarray) -> float:
    if np.isnan(observed):
        return float("nan")
    return float((1 + np.sum(as_large)) / (1 + len(as_large)))


def _in_bins(bins: Reliability, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of `values` [N] in each bin, float64 [M]."""
    return np.bincount(index, values, bins.count.shape[1])


@functools.partial(jax.jit, static_argnums=2)
def _swap(keys, i, size):
    return jax.random.bernoulli(keys[i], 0.5, (size,))


@jax.jit
def _counts(bins, logits, confidence, right, keys):
    """The bins of the predictions, [N, C], and how many are right in each, as observed and in each
    draw, [1 + draws, C, M]."""
    index = reliability.bin_of(bins, confidence)
    rows = jnp.arange(confidence.shape[1])[None, :]

    def count(right):
        return jnp.zeros(bins.count.shape, jnp.int32).at[rows, index].add(right.astype(jnp.int32))

    def draw(key):
        if bins.of == "top":
            return count(jax.random.uniform(key, confidence.shape) < confidence)
        label = jax.random.categorical(key, logits)
        return count(label[:, None] == jnp.arange(confidence.shape[1]))

    return index, jnp.concatenate([count(right)[None], jax.lax.map(draw, keys)])
