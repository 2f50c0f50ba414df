"""Metrics of two models, accumulated batch by batch.

    totals = streaming.init(["jsd", "disagreement"], num_classes=10)
    for a, b, label, weight in batches:                       # weight 0: padding
        totals = streaming.update(totals, a, b, label, weight)
    streaming.compute(totals)                                 # {"jsd": ..., "disagreement": ...}

The totals are sums of terms, and means are taken at the end. The mean of the values of the batches
would be a different number if the last batch is shorter or a metric is a ratio. The functions work
inside jit, with sharded batches, and under `vmap` for many pairs.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from sharpjax import tree
from sharpjax.errors import UserError, whole_number
from sharpjax.metrics import summation
from sharpjax.metrics.functional import outputs
from sharpjax.metrics.functional.declared import Metric, formulas_of
from sharpjax.metrics.functional.formula import Formula, check_classes
from sharpjax.metrics.functional.outputs import Outputs
from sharpjax.metrics.summation import Sum

REASONS = (
    outputs.NO_CLASS,
    outputs.ARE_PROBABILITIES,
    outputs.NO_PROBABILITIES,
    "a weight is neither 0 nor 1. A mean of weighted examples is not computed here",
)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Totals:
    """Running totals over the examples seen so far.

    Sums are compensated, and those of shares of examples are exact. So up to the last bit or two
    they do not depend on the order of the examples or on how they were batched.

    Attributes:
        sums: sums of the terms of each metric.
        count: the number of examples.
        finite: whether all outputs were finite; if not, `compute` gives NaN for all metrics.
        refused: bool [4], which of `REASONS` held inside a trace, where nothing can be raised; if
            any did, `compute` gives NaN for all metrics.
        formulas: names and formulas.
        num_classes: K.
        probs: whether the outputs are probabilities.
    """

    sums: tuple[tuple[Sum, ...], ...]
    count: jax.Array
    finite: jax.Array
    refused: jax.Array
    formulas: tuple[tuple[str, Formula], ...] = dataclasses.field(metadata={"static": True})
    num_classes: int = dataclasses.field(metadata={"static": True})
    probs: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def reads_labels(self) -> bool:
        return any(formula.reads_labels for _, formula in self.formulas)


def init(
    metrics: Iterable[str] | Mapping[str, Formula | Metric],
    *,
    num_classes: int,
    probs: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Totals:
    """Empty totals.

    Args:
        metrics: names in `METRICS`; or formulas by your own names, `{"top3": rankings.top_k(3)}`.
        num_classes: K.
        probs: whether the outputs will be probabilities.
        dtype: dtype of the sums, and the least precision in which outputs are computed; float64
            needs jax's x64.

    Raises:
        UserError: an unknown metric, or one that needs more classes.
    """
    caller = "streaming.init"
    formulas = formulas_of(caller, metrics)
    num_classes = whole_number(f"functional.{caller}", "num_classes", num_classes, least=2)
    for _, formula in formulas:
        check_classes(caller, formula, num_classes)
    zero = summation.zero((), dtype)
    sums = tuple((zero,) * _num_terms(formula, num_classes, probs) for _, formula in formulas)
    return Totals(
        sums=sums,
        count=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
        refused=jnp.zeros(len(REASONS), bool),
        formulas=formulas,
        num_classes=num_classes,
        probs=probs,
    )


def update(totals: Totals, a: Any, b: Any, label: Any = None, weight: Any = None) -> Totals:
    """The totals with a batch added. Cost: that of the metrics, once for each example.

    Args:
        totals: from `init` or `update`.
        a, b: [B, K] logits of the same examples (probabilities if `init` was given `probs`).
        label: [B] integers, for metrics that read labels.
        weight: [B]; 1 for an example, 0 for padding, whose outputs and label are ignored. None: all
            are 1.

    Raises:
        UserError: the shapes do not match, or K differs from that of `init`; labels are needed and
            missing or not integers. Also a label that is not a class, probabilities for logits or
            the opposite, or a weight that is neither 0 nor 1; inside a trace these three are not
            raised, and all results become NaN.

    >>> totals = init(["disagreement"], num_classes=2)
    >>> a, b = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([[0.0, 3.0], [0.0, 2.0]])
    >>> totals = update(totals, a, b)
    >>> totals = update(totals, a[:1], a[:1])
    >>> print(compute(totals)["disagreement"])  # one of three
    0.33333334
    """
    caller = "streaming.update"
    dtype = totals.sums[0][0].total.dtype
    a, b = (_floating(x, dtype) for x in (a, b))
    outputs.check_shapes(caller, a, b, label)
    if a.shape[1] != totals.num_classes:
        raise UserError(
            f"functional.{caller}: a is {list(a.shape)}, and these totals are of "
            f"{totals.num_classes} classes; begin others by streaming.init."
        )
    if totals.reads_labels:
        if label is None:
            raise UserError(f"functional.{caller}: a metric reads labels; give label, [B].")
        label = jnp.asarray(label)
        if not jnp.issubdtype(label.dtype, jnp.integer):
            raise UserError(f"functional.{caller}: label is {label.dtype}; give integers.")
    weight = jnp.ones(a.shape[0], jnp.float32) if weight is None else jnp.asarray(weight)
    if weight.shape != a.shape[:1]:
        raise UserError(
            f"functional.{caller}: weight is {list(weight.shape)} and a {list(a.shape)}; give [B] "
            "and [B, K]."
        )
    refused = _refuse(totals, a, b, label, weight)
    if not isinstance(refused, Tracer):
        for reason, holds in zip(REASONS, refused.tolist(), strict=True):
            if holds:
                raise UserError(f"functional.{caller}: {reason.format(a.shape[1] - 1)}.")
    return _added(totals, a, b, label, weight != 0, refused)


def merge(first: Totals, second: Totals) -> Totals:
    """The totals of the examples of both, such as from two hosts.

    Raises:
        UserError: the two are not of the same metrics.
    """
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise UserError("functional.streaming.merge: these totals are not of the same metrics.")
    sums = jax.tree.map(summation.add, first.sums, second.sums, is_leaf=_is_sum)
    return dataclasses.replace(
        first,
        sums=sums,
        count=first.count + second.count,
        finite=first.finite & second.finite,
        refused=first.refused | second.refused,
    )


@jax.jit
def compute(totals: Totals) -> dict[str, jax.Array]:
    """The value of each metric over all examples. NaN if there are no examples, an output was not
    finite, or a batch was refused inside a trace."""
    bad = ~totals.finite | jnp.any(totals.refused) | (totals.count == 0)
    found = {}
    for (name, formula), sums in zip(totals.formulas, totals.sums, strict=True):
        n = jnp.maximum(totals.count, 1).astype(sums[0].total.dtype)
        means = tuple(summation.value(s) / n for s in sums)
        found[name] = jnp.where(bad, jnp.nan, formula.value(means, totals.num_classes))
    return found


def _floating(x: Any, dtype: DTypeLike) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype)


def _is_sum(node: Any) -> bool:
    return isinstance(node, Sum)


def _num_terms(formula: Formula, num_classes: int, probs: bool) -> int:
    one, label = np.full((1, num_classes), 1 / num_classes), np.zeros(1, int)
    made = Outputs(one, label, probs=probs)
    return len(formula.terms(made, made))


@jax.jit
def _refuse(totals: Totals, a, b, label, weight) -> jax.Array:
    counted = weight != 0
    no_class = jnp.zeros((), bool)
    if totals.reads_labels:
        no_class = jnp.any(counted & ((label < 0) | (label >= totals.num_classes)))
    misfits = [jnp.zeros((), bool)] * 2
    if any(formula.guarded for _, formula in totals.formulas):
        found = [_misfits(x, counted, totals.probs) for x in (a, b)]
        finite = jnp.all(jnp.isfinite(a) & jnp.isfinite(b) | ~counted[:, None])
        misfits = [(x | y) & finite & jnp.any(counted) for x, y in zip(*found, strict=True)]
    return jnp.stack([no_class, *misfits, jnp.any(counted & (weight != 1))])


def _misfits(x: jax.Array, counted: jax.Array, probs: bool) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return outputs.misfits(wide, outputs.rounding_of(x), counted, probs=probs)


@jax.jit
def _added(totals: Totals, a, b, label, counted, refused) -> Totals:
    dtype = totals.sums[0][0].total.dtype
    rows = counted[:, None]
    finite = jnp.all(jnp.isfinite(a) & jnp.isfinite(b) | ~rows)
    # Padding may hold anything, so replace it by valid values.
    blank = 1 / totals.num_classes if totals.probs else 0.0
    f, g = (
        Outputs(
            jnp.where(rows, x, blank).astype(jnp.promote_types(x.dtype, dtype)),
            label,
            probs=totals.probs,
        )
        for x in (a, b)
    )
    sums = tuple(
        tuple(
            summation.add(s, summation.over_examples(jnp.where(counted, x, 0), dtype))
            for s, x in zip(sums, formula.terms(f, g), strict=True)
        )
        for (_, formula), sums in zip(totals.formulas, totals.sums, strict=True)
    )
    return dataclasses.replace(
        totals,
        sums=sums,
        count=totals.count + jnp.sum(counted, dtype=jnp.int32),
        finite=totals.finite & finite,
        refused=totals.refused | refused,
    )
