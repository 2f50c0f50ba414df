"""Calibration errors, the Brier score and its parts, and reliability diagrams, batch by batch.

    found = reliability.init(15)                        # or init(edges=[0, 0.5, 0.9, 1])
    for logits, label, weight in batches:
        found = reliability.update(found, logits, label, weight)
    reliability.compute(found)   # {'ece': Estimate, 'ece_debiased': Estimate, ...}
    reliability.diagram(found)   # what `plots.reliability` draws

`merge` combines the bins of different data; `jax.vmap` maps all functions over a population.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from scipy import special

from sharpjax import tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.metrics import inputs, summation
from sharpjax.metrics.summation import Sum

Closed = Literal["right", "left", "torchmetrics"]
Of = Literal["top", "classes"]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reliability:
    """Predictions by confidence, in C x M bins: C = 1 for the top class, else one row per class.

    Attributes:
        edges: [M + 1], from 0 to 1. With `closed='torchmetrics'` there is one more bin, for a
            confidence of 1.
        count: predictions in each bin, int32 [C, M].
        right: how many of them are right, int32 [C, M].
        confidence, squared: sums of confidences and of their squares, [C, M].
        gap: sums of (right - confidence)^2, [C, M].
        refused: as `metrics.Totals.refused`.
        closed, of: as in `init`.
    """

    edges: jax.Array
    count: jax.Array
    right: jax.Array
    confidence: Sum
    squared: Sum
    gap: Sum
    refused: jax.Array
    closed: str = dataclasses.field(metadata={"static": True})
    of: str = dataclasses.field(metadata={"static": True})


class Diagram(NamedTuple):
    """A reliability diagram, in numpy arrays: [M] for the top class, [C, M] for classes.

    With `closed='torchmetrics'` all arrays but `edges` have M + 1 bins.

    Attributes:
        edges: [M + 1].
        count: predictions in each bin.
        confidence, accuracy: their means in each bin; NaN in an empty bin.
        low, high: the Wilson interval of the accuracy at level 0.95; NaN in an empty bin.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


def init(
    num_bins: int | None = None,
    *,
    edges: Sequence[float] | None = None,
    closed: Closed = "right",
    of: Of = "top",
    num_classes: int | None = None,
) -> Reliability:
    """Empty bins.

    Args:
        num_bins: number of bins of equal width; 15 if neither this nor `edges` is given.
        edges: edges of the bins, increasing from 0 to 1.
        closed: which edge a bin includes. 'right': (a, b], and the first bin also holds 0; 'left':
            [a, b), and the last bin also holds 1; 'torchmetrics': [a, b), with a bin of its own for
            a confidence of 1 (Lightning-AI/torchmetrics#3510).
        of: 'top': the predicted class of each example (arXiv 1706.04599); 'classes': the
            probability of each class, against whether it is the label (arXiv 1904.01685).
        num_classes: K; only with 'classes'.

    Raises:
        UserError: invalid bins, both `num_bins` and `edges`, an unknown value of `closed` or `of`,
            or `num_classes` missing with 'classes' or given without it.
    """
    if num_bins is not None and edges is not None:
        raise UserError("reliability.init: give num_bins or edges, not both.")
    if edges is None:
        num_bins = whole_number(
            "reliability.init", "num_bins", 15 if num_bins is None else num_bins
        )
        bounds = np.arange(num_bins + 1, dtype=np.float32) / np.float32(num_bins)
    else:
        bounds = np.asarray(edges, np.float32)
        increasing = bounds.ndim == 1 and len(bounds) > 1 and np.all(np.diff(bounds) > 0)
        if not increasing or bounds[0] != 0 or bounds[-1] != 1:
            raise UserError(
                f"reliability.init: edges={list(np.ravel(edges))}; give numbers that increase from "
                "0 to 1."
            )
    for what, value, known in (("closed", closed, Closed), ("of", of, Of)):
        if value not in get_args(known):
            raise unknown(f"{what} (reliability.init)", str(value), get_args(known))
    if (of == "classes") != (num_classes is not None):
        raise UserError(
            f"reliability.init: num_classes={num_classes} with of='{of}'; give it with 'classes', "
            "and only then."
        )
    rows = whole_number("reliability.init", "num_classes", 1 if of == "top" else num_classes)
    shape = (rows, len(bounds) - 1 + (closed == "torchmetrics"))
    zero, sums = jnp.zeros(shape, jnp.int32), summation.zero(shape)
    refused = jnp.zeros(len(inputs.REASONS), bool)
    return Reliability(
        jnp.asarray(bounds), zero, zero, sums, sums, sums, refused, closed, of
    )  # fmt: skip


def update(
    found: Reliability, logits: jax.Array, label: jax.Array, weight: jax.Array | None = None
) -> Reliability:
    """The bins with a batch added.

    Args:
        logits, label, weight: as in `metrics.update`; without a weight all examples count.

    Raises:
        UserError: as `metrics.update`; with 'classes', the logits have another number of classes.
    """
    batch = inputs.checked("reliability.update", logits, label, weight)
    if found.of == "top":
        confidence = inputs.confidence_of(batch)[:, None]
        right = inputs.correct(batch)[:, None]
    else:
        check_classes("reliability.update", found, batch.logits)
        probability = jax.nn.softmax(batch.logits)
        confidence = jnp.where(batch.counted[:, None], probability, 0.0)
        classes = jnp.arange(probability.shape[1], dtype=batch.label.dtype)
        right = batch.label[:, None] == classes[None, :]
    index = bin_of(found, confidence)
    bins = jnp.arange(found.count.shape[1], dtype=jnp.int32)
    member = (index[:, :, None] == bins) & batch.counted[:, None, None]  # [B, C, M]

    gap = right.astype(jnp.float32) - confidence
    terms = jnp.stack([confidence, jnp.square(confidence), jnp.square(gap)], -1)  # [B, C, 3]
    sums = summation.over_examples(jnp.where(member[..., None], terms[:, :, None], 0.0))
    confidences, squared, gaps = (jax.tree.map(lambda x, i=i: x[..., i], sums) for i in range(3))
    return dataclasses.replace(
        found,
        count=found.count + jnp.sum(member, axis=0, dtype=jnp.int32),
        right=found.right + jnp.sum(member & right[:, :, None], axis=0, dtype=jnp.int32),
        confidence=summation.add(found.confidence, confidences),
        squared=summation.add(found.squared, squared),
        gap=summation.add(found.gap, gaps),
        refused=found.refused | batch.refused,
    )


def check_classes(caller: str, found: Reliability, logits: jax.Array) -> None:
    """Raises a `UserError` that names `caller`, if `logits` [B, K] and bins differ in classes."""
    if logits.shape[1] != found.count.shape[0]:
        raise UserError(
            f"{caller}: logits of {logits.shape[1]} classes, and the bins are of "
            f"{found.count.shape[0]}."
        )


def bin_of(found: Reliability, confidence: jax.Array) -> jax.Array:
    """The index of the bin of each confidence, int32."""
    confidence = confidence[..., None]
    if found.closed == "right":
        above = confidence > found.edges[1:-1]
    else:
        above = confidence >= found.edges[1 : None if found.closed == "torchmetrics" else -1]
    return jnp.sum(above, axis=-1, dtype=jnp.int32)


def merge(a: Reliability, b: Reliability) -> Reliability:
    """The bins with the counts and sums of both. The order of the two does not matter.

    Raises:
        UserError: the bins differ (inside a trace only their number is compared).
    """
    same = a.closed == b.closed and a.of == b.of and a.count.shape == b.count.shape
    traced = isinstance(a.edges, Tracer) or isinstance(b.edges, Tracer)
    if not same or not (traced or np.array_equal(a.edges, b.edges)):
        raise UserError("reliability.merge: the two have not the same bins.")
    return dataclasses.replace(
        a,
        count=a.count + b.count,
        right=a.right + b.right,
        confidence=summation.add(a.confidence, b.confidence),
        squared=summation.add(a.squared, b.squared),
        gap=summation.add(a.gap, b.gap),
        refused=a.refused | b.refused,
    )


@jax.jit
def compute(found: Reliability) -> dict[str, Estimate]:
    """All metrics of the bins, by name.

    Bin b has mean confidence c_b, accuracy a_b and n_b predictions, a share f_b of all.

    - `ece`: sum_b f_b |c_b - a_b|; for classes the mean over them, the classwise error. The
      standard error for the top class is that of `calibration.expected_calibration_error`; for
      classes it is NaN.
    - `mce`: the largest |c_b - a_b| of the bins that are not empty.
    - `rmsce`: sqrt(sum_b f_b (c_b - a_b)^2).
    - `ece_debiased`: `ece` minus the excess that normal noise of variance a_b (1 - a_b) / n_b adds
      to each |c_b - a_b|, in closed form; may be negative (arXiv 1909.10155, whose code samples the
      noise). For a calibrated model it removes only sqrt(2) - 1 = 41 % of the excess; if the gaps
      are much larger than their noise, it removes all of it.
    - `rmsce_debiased`: sqrt(max(0, sum_b f_b ((c_b - a_b)^2 - a_b (1 - a_b) / (n_b - 1)))), ibid.
      A bin of one example contributes 0, as in the code of that paper: its noise is unknown.
    - `overconfidence`: sum_b f_b c_b max(c_b - a_b, 0) (arXiv 1905.11001).
    - `ece_null`: the mean `ece` of a calibrated model with these confidences, in a normal
      approximation: sum_b f_b sqrt(2 v_b / (pi n_b)), v_b the mean of c (1 - c) in the bin.
    - `brier`: the mean of (right - c)^2, summed over classes. It is exactly `brier_reliability` -
      `brier_resolution` + `brier_uncertainty` + `brier_within` (Stephenson, Coelho and Jolliffe,
      2008). These are sum_b f_b (c_b - a_b)^2, sum_b f_b (a_b - a)^2, a (1 - a), and sum_b f_b
      (var c - 2 cov(c, right)), which is the part inside the bins; a is the overall accuracy.
      Correct to some 1e-6.

    Everything is NaN if there are no examples, a batch was refused or a prediction is NaN.
    """
    n = jnp.sum(found.count[0])
    total = n.astype(jnp.float32)
    count = found.count.astype(jnp.float32)
    right, size = found.right.astype(jnp.float32), jnp.maximum(count, 1)
    share, a = count / total, right / size
    confidence, squared = (summation.value(x) for x in (found.confidence, found.squared))
    gap_squared = summation.value(found.gap)
    c = confidence / size
    # Subtract the two sums of a bin before rounding them to a single float32.
    signed = ((found.confidence.total - right) + found.confidence.rest) / size
    gap, noise = jnp.abs(signed), a * (1 - a)
    ece = jnp.mean(jnp.sum(share * gap, axis=1))
    sigma = jnp.sqrt(noise / size)
    is_noisy = sigma > 0
    z = gap / jnp.where(is_noisy, sigma, 1)
    folded = sigma * math.sqrt(2 / math.pi) * jnp.exp(-(z**2) / 2)
    folded = folded + gap * jax.scipy.special.erf(z / math.sqrt(2))
    excess = jnp.where(is_noisy, folded - gap, 0)
    unbiased = jnp.where(count > 1, gap**2 - noise / jnp.maximum(count - 1, 1), 0)
    spread = jnp.maximum(c - squared / size, 0)
    variance = jnp.sum(gap_squared) / total - ece**2
    error = jnp.where(n > 1, jnp.sqrt(jnp.maximum(variance, 0) / (total - 1)), jnp.nan)
    base = jnp.sum(right, axis=1, keepdims=True) / total
    # In each bin: mean (right - c)^2 = gap^2 + var c + noise - 2 cov.
    within = gap_squared / size - gap**2 - noise
    values = {
        "ece": ece,
        "mce": jnp.max(jnp.where(count > 0, gap, 0)),
        "rmsce": jnp.sqrt(jnp.mean(jnp.sum(share * gap**2, axis=1))),
        "ece_debiased": ece - jnp.mean(jnp.sum(share * excess, axis=1)),
        "rmsce_debiased": jnp.sqrt(jnp.maximum(jnp.mean(jnp.sum(share * unbiased, axis=1)), 0)),
        "overconfidence": jnp.mean(jnp.sum(share * c * jnp.maximum(signed, 0), axis=1)),
        "ece_null": jnp.mean(jnp.sum(share * jnp.sqrt(2 * spread / (jnp.pi * size)), axis=1)),
        "brier": jnp.sum(gap_squared) / total,
        "brier_reliability": jnp.sum(share * gap**2),
        "brier_resolution": jnp.sum(share * (a - base) ** 2),
        "brier_uncertainty": jnp.sum(base * (1 - base)),
        "brier_within": jnp.sum(share * within),
    }
    bad = jnp.any(found.refused) | jnp.isnan(values["brier"])
    unknown_error = jnp.full((), jnp.nan, jnp.float32)
    errors = {"ece": error if found.of == "top" else unknown_error}
    return {
        name: Estimate(
            jnp.where(bad, jnp.nan, value),
            jnp.where(bad, jnp.nan, errors.get(name, unknown_error)),
            n,
        )
        for name, value in values.items()
    }


def diagram(found: Reliability) -> Diagram:
    """The data of a reliability diagram.

    Raises:
        UserError: a batch was refused.
    """
    if np.any(found.refused):
        held = zip(inputs.REASONS, np.asarray(found.refused), strict=True)
        reasons = "; ".join(reason.format("K - 1") for reason, holds in held if holds)
        raise UserError(f"reliability.diagram: {reasons}.")
    count, right = np.asarray(found.count), np.asarray(found.right)
    confidence = np.asarray(found.confidence.total, float) + np.asarray(found.confidence.rest)
    with np.errstate(invalid="ignore", divide="ignore"):
        c, a = confidence / count, right / count
        z = special.ndtri(0.975)
        centre = (a + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z * np.sqrt(a * (1 - a) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    arrays: list[Any] = [count, c, a, centre - half, centre + half]
    if found.of == "top":
        arrays = [x[0] for x in arrays]
    return Diagram(np.asarray(found.edges, float), *arrays)
