"""Calibration errors whose bins follow the data, and how large one is by chance."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.metrics import inputs, reliability
from sharpjax.metrics.reliability import Reliability


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

    Probabilities of a class are sorted and cut into `num_bins` parts, whose sizes differ by one at
    the most. Equal ones stay in one part, so that the result does not depend on the order of the
    examples; parts that are left empty count nothing. In float64 on the host.

    Args:
        logits: [N, K].
        label: [N].
        num_bins: may be more than N.
        of: 'classes', or 'top', the predicted class alone.
        threshold: probabilities below it are left out, of each class (TACE, ibid., with 0.01);
            f_b is then a share of those that are left.

    Raises:
        UserError: as `metrics.update`; an impossible number of bins or threshold, an unknown word.

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
    """The calibration error of the top class in as many bins of equal mass as leave the accuracy
    increasing from bin to bin (ECE-sweep; Roelofs et al., 2020, arXiv 2012.08668).

    (sum_b f_b |confidence_b - accuracy_b|^order)^(1 / order) with the first number of bins of which
    one more would not be monotone. Equal confidences stay in one bin. In float64 on the host; NaN
    of no examples and where a prediction is NaN.

    Args:
        logits: [N, K].
        label: [N].
        order: 1, as other errors here, or the 2 of the paper's experiments.

    Raises:
        UserError: as `metrics.update`; `order` is no whole number of 1 or more.

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

    Attributes:
        ece: as it was observed.
        mean: of a calibrated model with the same confidences.
        low, high: between these, with it, lie 95 of 100.
        p_value: chance of one as large; (1 + number of draws at least as large) / (1 + draws). NaN,
            as the others, of no examples, and where a prediction is NaN.
    """

    ece: float
    mean: float
    low: float
    high: float
    p_value: float


def calibration_test(
    bins: Reliability, logits: jax.Array, label: jax.Array, *, key: jax.Array, num_draws: int = 1000
) -> CalibrationTest:
    """Whether predictions could be calibrated: labels are drawn again from the confidences
    (Vaicenavicius et al., 2019, arXiv 1902.06977).

    Exact at any number of examples, where `compute`'s `ece_null` is an approximation. Cost: N x
    `num_draws` uniform numbers (N x K x `num_draws` of classes).

    Args:
        bins: from `reliability.init`; what it holds is not read.
        logits, label: of all examples, as `metrics.update` takes them.
        key: of the draws.

    Raises:
        UserError: as `metrics.update`.
    """
    caller = "calibration_test"
    num_draws = whole_number(caller, "num_draws", num_draws)
    inputs.refuse_traced(caller, logits, label)
    batch = inputs.checked(caller, logits, label)
    if bins.of == "top":
        confidence = inputs.confidence_of(batch)[:, None]
        right = inputs.correct(batch)[:, None]
    else:
        confidence = jax.nn.softmax(batch.logits)
        right = batch.label[:, None] == jnp.arange(confidence.shape[1])
    keys = jax.random.split(key, num_draws)
    observed, null = map(np.asarray, _null(bins, batch.logits, confidence, right, keys))
    # Draws that tie with it, but for rounding, are as large.
    larger = null >= observed * (1 - 1e-6)
    low, high = np.quantile(null, [0.025, 0.975])
    return CalibrationTest(
        float(observed), float(null.mean()), float(low), float(high),
        _p_value(float(observed), larger),
    )  # fmt: skip


class Comparison(NamedTuple):
    """How the calibration errors of two models compare.

    Attributes:
        difference: of the first less that of the second.
        p_value: two-sided; (1 + draws at least as far from 0) / (1 + draws). Both are NaN of no
            examples, and where a prediction is NaN.
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

    For each example the predictions of the two are exchanged or not, at random: exact where they
    are exchangeable. It speaks of these two models, and says nothing of other seeds.

    Args:
        bins: from `reliability.init`, of the top class; what it holds is not read.
        first, second: logits [N, K] of the same examples.
        label: [N].
        key: of the draws.

    Raises:
        UserError: as `metrics.update`; bins of classes.
    """
    caller = "compare_calibration"
    num_draws = whole_number(caller, "num_draws", num_draws)
    if bins.of != "top":
        raise UserError(f"{caller}: give bins of the top class, reliability.init(...).")
    inputs.refuse_traced(caller, first, second, label)
    batches = [inputs.checked(caller, logits, label) for logits in (first, second)]
    confidence = jnp.stack([inputs.confidence_of(batch) for batch in batches])
    right = jnp.stack([inputs.correct(batch) for batch in batches])
    observed, drawn = _exchanged(bins, confidence, right, jax.random.split(key, num_draws))
    # Draws that tie with it, but for rounding, are as far.
    far = np.abs(drawn) >= abs(float(observed)) * (1 - 1e-6)
    return Comparison(float(observed), _p_value(float(observed), far))


def _p_value(observed: float, as_large: np.ndarray) -> float:
    if np.isnan(observed):
        return float("nan")
    return float((1 + np.sum(as_large)) / (1 + len(as_large)))


@jax.jit
def _exchanged(bins, confidence, right, keys):
    def difference(confidence, right):
        one, other = (_error(bins, confidence[i][:, None], right[i][:, None]) for i in (0, 1))
        return one - other

    def draw(key):
        swap = jax.random.bernoulli(key, 0.5, confidence.shape[1:])
        return difference(*(jnp.where(swap, x[::-1], x) for x in (confidence, right)))

    return difference(confidence, right), jax.lax.map(draw, keys)


@jax.jit
def _null(bins, logits, confidence, right, keys):
    def draw(key):
        if bins.of == "top":
            right = jax.random.uniform(key, confidence.shape) < confidence
        else:
            label = jax.random.categorical(key, logits)
            right = label[:, None] == jnp.arange(confidence.shape[1])
        return _error(bins, confidence, right)

    return _error(bins, confidence, right), jax.lax.map(draw, keys)


def _error(bins, confidence, right):
    index = reliability.bin_of(bins, confidence)
    rows = jnp.arange(confidence.shape[1])[None, :]
    gaps = jnp.zeros(bins.count.shape).at[rows, index].add(confidence - right)
    return jnp.mean(jnp.sum(jnp.abs(gaps), axis=1)) / confidence.shape[0]
