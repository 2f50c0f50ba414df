"""Quantities that metrics derive from the outputs of a model, and checks of the outputs.

Everything here takes numpy and jax arrays. numpy arrays are computed in float64 on the host; jax
arrays in the precision given, also inside jit.
"""

from functools import cached_property
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from sharpjax.errors import TWO_CLASSES, UserError

ARE_PROBABILITIES = (
    "these are probabilities, each row in [0, 1] and of sum 1, and logits are asked for. Give the "
    "outputs before the softmax, or say probs=True"
)
NO_PROBABILITIES = (
    "probs=True, and these are no probabilities: a row is not in [0, 1] or its sum is not 1. Give "
    "the softmax of the logits, or the logits without probs"
)
NO_CLASS = "a label is no class: from 0 to {} is allowed"
_ROUNDING = 1e-5  # how far the sum of a row of probabilities may be from 1, in float32
_FEW_CLASSES = 128  # up to this number, K^2 comparisons are faster than XLA's sorts on CPU


def namespace(x: Any) -> ModuleType:
    """`jax.numpy` for jax arrays, also traced ones, else `numpy`."""
    return jnp if isinstance(x, jax.Array) else np


class Outputs:
    """The outputs of one model and quantities derived from them, each computed on first use.

    Attributes:
        values: [..., N, K] as given, logits or probabilities.
        prediction: [..., N], the first of the largest values.
        right: [..., N], whether the prediction is the label; needs labels.
        probabilities, log_probabilities: [..., N, K].
        direction: [..., N, K], the probabilities divided by their Euclidean norm.
        rank: [..., N, K], the rank of each class, 0 for the largest value; among equal values the
            first class ranks first.
        average_rank: [..., N, K], ranks from 1; equal values share the mean of their ranks.
    """

    def __init__(self, values: Any, label: Any = None, *, probs: bool = False):
        self.values, self.label, self.probs = values, label, probs

    @cached_property
    def prediction(self) -> Any:
        return namespace(self.values).argmax(self.values, axis=-1)

    @cached_property
    def right(self) -> Any:
        return self.prediction == self.label

    @cached_property
    def probabilities(self) -> Any:
        if self.probs:
            return self.values
        softmax = jax.nn.softmax if namespace(self.values) is jnp else special.softmax
        return softmax(self.values, axis=-1)

    @cached_property
    def log_probabilities(self) -> Any:
        xp = namespace(self.values)
        if self.probs:
            positive = self.values > 0
            return xp.where(positive, xp.log(xp.where(positive, self.values, 1)), -xp.inf)
        log_softmax = jax.nn.log_softmax if xp is jnp else special.log_softmax
        return log_softmax(self.values, axis=-1)

    @cached_property
    def direction(self) -> Any:
        p = self.probabilities
        return p / namespace(p).linalg.norm(p, axis=-1, keepdims=True)

    @cached_property
    def rank(self) -> Any:
        xp, z = namespace(self.values), self.values
        if by_sorting(z):
            order = xp.argsort(-z, axis=-1, stable=True)
            return xp.argsort(order, axis=-1)
        other, own = z[..., None, :], z[..., :, None]
        earlier = xp.tri(z.shape[-1], z.shape[-1], -1, dtype=bool)
        return xp.sum((other > own) | ((other == own) & earlier), axis=-1, dtype=xp.int32)

    @cached_property
    def average_rank(self) -> Any:
        xp, z = namespace(self.values), self.values
        if by_sorting(z):
            rankdata = stats.rankdata if xp is np else jax.scipy.stats.rankdata
            return rankdata(-z, axis=-1)
        other, own = z[..., None, :], z[..., :, None]
        twice = xp.sum((other > own) * 2 + (other == own), axis=-1, dtype=xp.int32)
        return (twice + 1).astype(z.dtype) / 2


def by_sorting(x: Any) -> bool:
    """Whether ranks along the last axis of [..., K] are found by sorting, not by comparing all
    pairs."""
    return namespace(x) is np or x.shape[-1] > _FEW_CLASSES


def check_shapes(
    caller: str, a: Any, b: Any, label: Any = None, *, names: tuple[str, str] = ("a", "b")
) -> None:
    """Raises a `UserError` unless `a` and `b` are [N, K], K >= 2, and `label` [N] or None."""
    labels = np.shape(a)[:1] if label is None else np.shape(label)
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b) or labels != np.shape(a)[:1]:
        raise UserError(
            f"functional.{caller}: {names[0]} is {list(np.shape(a))}, {names[1]} "
            f"{list(np.shape(b))} and label {list(labels)}; give [N, K] twice, of the same "
            "examples and classes, and [N]."
        )
    if np.shape(a)[1] < 2:
        raise UserError(
            f"functional.{caller}: {names[0]} is {list(np.shape(a))}, of one class. {TWO_CLASSES}"
        )


def check_label(caller: str, label: Any, num_classes: int) -> np.ndarray:
    """The labels as a numpy array, checked.

    Raises:
        UserError: `label` is None, not integers, or contains a value that is not a class.
    """
    if label is None:
        raise UserError(f"functional.{caller}: it reads labels; give label, the classes [N].")
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise UserError(f"functional.{caller}: label is {label.dtype}; give integers, the classes.")
    if np.any((label < 0) | (label >= num_classes)):
        raise UserError(f"functional.{caller}: {NO_CLASS.format(num_classes - 1)}.")
    return label


def check_values(caller: str, values: Any, *, guarded: bool, probs: bool) -> np.ndarray:
    """Logits, or probabilities if `probs`, in float64.

    Raises:
        UserError: only if `guarded`: finite values are probabilities without `probs`, or are not
            with it.
    """
    z = np.asarray(values, np.float64)
    if guarded and np.isfinite(z).all():
        refused = [bool(x) for x in misfits(z, rounding_of(values), probs=probs)]
        for reason, holds in zip((ARE_PROBABILITIES, NO_PROBABILITIES), refused, strict=True):
            if holds:
                raise UserError(f"functional.{caller}: {reason}.")
    return z


def rounding_of(values: Any) -> float:
    """How far from 1 the sum of a row of probabilities may be, given the precision of the row."""
    dtype = getattr(values, "dtype", np.dtype(np.float64))
    floating = jnp.issubdtype(dtype, jnp.floating)
    return max(_ROUNDING, float(jnp.finfo(dtype).eps)) if floating else _ROUNDING


def misfits(z: Any, rounding: float, counted: Any = None, *, probs: bool) -> tuple[Any, Any]:
    """Two booleans [...] for values [..., N, K]: whether they are probabilities although logits are
    expected, and whether they are not although `probs`.

    Values that are all 0 or 1 pass as both: logits of a hard choice, and its probabilities.

    Args:
        counted: [N], false for padding; None: all count.
    """
    xp = namespace(z)
    counted = xp.ones(z.shape[:-1], bool) if counted is None else counted
    in_range = xp.all((z >= 0) & (z <= 1), axis=-1)
    rows = in_range & (xp.abs(xp.sum(z, axis=-1) - 1) <= rounding)
    all_are = xp.all(rows | ~counted, axis=-1)
    if probs:
        return xp.zeros_like(all_are), ~all_are
    soft = xp.any((z > 0) & (z < 1), axis=-1) & counted
    return all_are & xp.any(soft, axis=-1), xp.zeros_like(all_are)
