"""Checks of the inputs that all metrics of predictions share: logits, labels and weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax import tree
from sharpjax.errors import TWO_CLASSES, UserError

REASONS = (
    "a label is no class: from 0 to {} is allowed. Give what shall not count weight 0",
    "these are probabilities, each row in [0, 1] and of sum 1, and logits are asked for. Give the "
    "outputs before the softmax, or the logarithms of these",
    "a weight is neither 0 nor 1. A mean of weighted examples is not computed here",
)
_ROUNDING = 1e-5  # how far the sum of a row of probabilities may be from 1, in float32


class Checked(NamedTuple):
    """A checked batch.

    Attributes:
        logits: float32 [B, K].
        label: integers [B], of at least four bytes, in which each class is a number.
        counted: bool [B]; false for padding.
        refused: bool [3], which of `REASONS` hold; all false outside a trace.
    """

    logits: jax.Array
    label: jax.Array
    counted: jax.Array
    refused: jax.Array


def checked(
    caller: str, logits: jax.Array, label: jax.Array, weight: jax.Array | None = None
) -> Checked:
    """A checked batch of logits [B, K], labels [B] and weights [B], each 0 or 1 (None: all 1).

    Raises:
        UserError: names `caller`; the shapes do not match, labels are not integers, there are fewer
            than two classes, or one of `REASONS` holds. Inside a trace `REASONS` cannot be raised;
            `refused` says which of them hold.
    """
    logits, label = jnp.asarray(logits), jnp.asarray(label)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        logits = logits.astype(jnp.float32)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise UserError(f"{caller}: label is {label.dtype}; give integers, the classes.")
    label = tree.widen_labels(label)
    weight = jnp.ones(label.shape, jnp.float32) if weight is None else jnp.asarray(weight)
    if logits.ndim != 2 or label.shape != logits.shape[:1] or weight.shape != label.shape:
        raise UserError(
            f"{caller}: logits is {list(logits.shape)}, label {list(label.shape)} and weight "
            f"{list(weight.shape)}; give [B, K], [B] and [B]."
        )
    if logits.shape[1] < 2:
        raise UserError(f"{caller}: logits is {list(logits.shape)}, of one class. {TWO_CLASSES}")
    counted = weight != 0
    refused = _refuse(logits, label, weight, counted)
    if not isinstance(refused, Tracer):
        for reason, holds in zip(REASONS, refused.tolist(), strict=True):
            if holds:
                raise UserError(f"{caller}: {reason.format(logits.shape[1] - 1)}.")
    return Checked(logits.astype(jnp.float32), label, counted, refused)


def on_host(caller: str, logits: jax.Array, label: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, K] in float64 and labels [N], both numpy arrays, checked as a batch.

    Raises:
        UserError: as `checked`; inside a trace.
    """
    refuse_traced(caller, logits, label)
    checked(caller, at_most_float32(logits), label)
    return np.asarray(logits, np.float64), np.asarray(label)


def at_most_float32(logits: jax.typing.ArrayLike) -> jax.Array:
    """Logits outside of a trace, in float32 or the narrower floating type given. `checked` takes
    the rounding error of probabilities from this type."""
    z = np.asarray(logits)
    narrow = jnp.issubdtype(z.dtype, jnp.floating) and tree.is_narrow(z)
    return jnp.asarray(z, None if narrow else jnp.float32)


def refuse_traced(caller: str, *arrays: jax.Array) -> None:
    """Raises a `UserError` that names `caller`, if called inside jit, grad or vmap."""
    if any(isinstance(x, Tracer) for x in arrays):
        raise UserError(f"{caller}: call it outside of jit, grad and vmap; it computes in numpy.")


def refuse_not_finite(caller: str, name: str, values: np.ndarray) -> None:
    """Raises a `UserError` that names `caller`, if an entry of `values` [N, K] is not finite."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{caller}: {name} is not finite in {np.sum(~finite):,} of {len(values):,} examples, "
            f"the first is number {np.argmin(finite)}. A model that gives this predicts nothing: "
            "leave it out, or leave these examples out of all arrays."
        )


@jax.jit
def _refuse(logits, label, weight, counted) -> jax.Array:
    no_class = (label < 0) | (label >= logits.shape[1])
    in_range = jnp.all((logits >= 0) & (logits <= 1), axis=1)
    rounding = max(_ROUNDING, float(jnp.finfo(logits.dtype).eps))
    of_sum_one = jnp.abs(jnp.sum(logits.astype(jnp.float32), axis=1) - 1) <= rounding
    probability = in_range & of_sum_one
    # Values that are all 0 or 1 may also be logits of a hard choice.
    soft = jnp.any((logits > 0) & (logits < 1), axis=1)
    return jnp.stack(
        [
            jnp.any(counted & no_class),
            jnp.any(counted & soft) & jnp.all(probability | ~counted),
            jnp.any(counted & (weight != 1)),
        ]
    )


def confidence_of(batch: Checked) -> jax.Array:
    """The largest softmax probability of each example, [B]; 0 for padding.

    It is 1 / sum exp(z - max z). Unlike exp(log_softmax), this is exact if all z are equal, which
    matters because 1 / K may be an edge of the bins.
    """
    confidence = jnp.max(jax.nn.softmax(batch.logits), axis=-1)
    return jnp.where(batch.counted, confidence, 0.0)


def correct(batch: Checked) -> jax.Array:
    """Whether the prediction, the first of the largest logits, is the label, bool [B]."""
    return jnp.argmax(batch.logits, axis=-1).astype(batch.label.dtype) == batch.label
