"""Calibration errors whose bins follow the data, and how large one is by chance."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import unknown, whole_number
from sharpjax.metrics import inputs, reliability
from sharpjax.metrics.reliability import Reliability


def adaptive_calibration_error(
    logits: jax.Array,
    label: jax.Array,
    *,
    num_bins: int = 15,
    of: Literal["top", "classes"] = "classes",
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

    Raises:
        UserError: as `metrics.update`; an impossible number of bins, an unknown word.

    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    >>> label = np.array([0, 1, 0, 0])
    >>> round(adaptive_calibration_error(logits, label, num_bins=2, of="top"), 6)
    0.4
    """
    caller = "adaptive_calibration_error"
    whole_number(caller, "num_bins", num_bins)
    if of not in ("top", "classes"):
        raise unknown(f"of ({caller})", str(of), ("top", "classes"))
    inputs.checked(caller, jnp.asarray(logits, jnp.float32), jnp.asarray(label))
    z, y = np.asarray(logits, np.float64), np.asarray(label)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    right = y[:, None] == np.arange(p.shape[1])
    if of == "top":
        top = np.argmax(z, axis=1)[:, None]
        p, right = np.take_along_axis(p, top, 1), np.take_along_axis(right, top, 1)
    if not np.isfinite(p).all():
        return float("nan")
    last = np.cumsum([len(part) for part in np.array_split(np.arange(len(p)), num_bins)]) - 1
    errors = []
    for confidence, hit in zip(p.T, right.T, strict=True):
        edges = np.sort(confidence)[last[:-1].clip(0)]
        index = np.searchsorted(edges, confidence, side="left")
        gaps = np.bincount(index, confidence - hit, num_bins)
        errors.append(np.abs(gaps).sum() / len(p))
    return float(np.mean(errors))


class CalibrationTest(NamedTuple):
    """How an expected calibration error compares with chance.

    Attributes:
        ece: as it was observed.
        mean: of a calibrated model with the same confidences.
        low, high: between these, with it, lie 95 of 100.
        p_value: chance of one as large; (1 + number of draws at least as large) / (1 + draws).
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
    batch = inputs.checked(caller, logits, label)
    if bins.of == "top":
        confidence = inputs.confidence_of(batch)[:, None]
        right = inputs.correct(batch)[:, None]
    else:
        confidence = jax.nn.softmax(batch.logits)
        right = batch.label[:, None] == jnp.arange(confidence.shape[1])
    observed = _error(bins, confidence, right)
    null = np.asarray(_null(bins, batch.logits, confidence, jax.random.split(key, num_draws)))
    # Draws that tie with it, but for rounding, are as large.
    larger = np.sum(null >= float(observed) * (1 - 1e-6))
    low, high = np.quantile(null, [0.025, 0.975])
    return CalibrationTest(
        float(observed), float(null.mean()), float(low), float(high),
        float((1 + larger) / (1 + num_draws)),
    )  # fmt: skip


@jax.jit
def _null(bins, logits, confidence, keys):
    def draw(key):
        if bins.of == "top":
            right = jax.random.uniform(key, confidence.shape) < confidence
        else:
            label = jax.random.categorical(key, logits)
            right = label[:, None] == jnp.arange(confidence.shape[1])
        return _error(bins, confidence, right)

    return jax.lax.map(draw, keys)


def _error(bins, confidence, right):
    index = reliability.bin_of(bins, confidence)
    rows = jnp.arange(confidence.shape[1])[None, :]
    gaps = jnp.zeros(bins.count.shape).at[rows, index].add(confidence - right)
    return jnp.mean(jnp.sum(jnp.abs(gaps), axis=1)) / confidence.shape[0]
