"""Metrics for all pairs of M models at once, from stored outputs."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import TWO_CLASSES, UserError, whole_number
from sharpjax.metrics.functional import outputs as model_outputs
from sharpjax.metrics.functional.declared import Metric, formulas_of
from sharpjax.metrics.functional.formula import Formula, check_classes
from sharpjax.metrics.functional.outputs import Outputs
from sharpjax.metrics.functional.predictions import disagreement
from sharpjax.metrics.inputs import refuse_traced

_BLOCK = 2**22  # numbers in one block, over all models


def pairwise(
    outputs: Sequence[np.ndarray],
    distance: Callable[..., float] = disagreement,
    label: np.ndarray | None = None,
) -> np.ndarray:
    """The distances between M models, [M, M], symmetric, NaN on the diagonal.

    Cost: M (M - 1) / 2 distances; for metrics in `METRICS`, `all_pairs` is many times faster.

    Args:
        outputs: for each model, [N, K] logits of the same examples.
        distance: a symmetric function `distance(a, b, label)`, of this package or another.
        label: [N], for a distance that reads labels.

    Raises:
        UserError: fewer than two models, or outputs of different shapes.

    >>> one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    >>> pairwise([one, other, one]).tolist()
    [[nan, 1.0, 0.0], [1.0, nan, 1.0], [0.0, 1.0, nan]]
    """
    shapes = {np.shape(x) for x in outputs}
    if len(outputs) < 2 or len(shapes) > 1:
        raise UserError(
            f"metrics.pairwise: {len(outputs)} outputs of shapes {sorted(shapes)}; give those of "
            "two models or more, of the same examples."
        )
    found = np.full((len(outputs), len(outputs)), np.nan)
    for i, a in enumerate(outputs):
        for j in range(i):
            found[i, j] = found[j, i] = distance(a, outputs[j], label)
    return found


def all_pairs(
    outputs: Any,
    metrics: Iterable[str] | Mapping[str, Formula | Metric],
    label: Any = None,
    *,
    probs: bool = False,
    block_size: int | None = None,
) -> dict[str, np.ndarray]:
    """Several metrics for all pairs of M models, each [M, M]; entry (i, j) compares a_i with a_j.

    The diagonal is NaN, as in `pairwise` and as `protocol.tests.pairwise.jackknife` expects. So are
    the row and column of a model with an output that is not finite. Softmaxes and ranks are
    computed once for each model, in the highest precision among the outputs, float32 at least.
    Terms of examples are summed in float64. With float32 outputs, a value agrees with that of the
    pair function to 1e-6 of the largest possible value; shares of examples are counted and agree
    exactly.

    Cost: N K for each pair and metric (`kendall_distance` N K^2), twice that if the metric is not
    symmetric. Memory: a few copies of a block of examples of all models.

    Args:
        outputs: logits, [M, N, K] or a sequence of M arrays [N, K]; float64 stays float64.
        metrics: names in `METRICS`; or formulas by your own names, `{"top3": rankings.top_k(3)}`.
        label: [N], for metrics that read labels.
        probs: whether the outputs are probabilities.
        block_size: examples computed at a time; None: chosen to limit memory.

    Raises:
        UserError: fewer than two models, shapes that do not match, an unknown metric, labels that
            are not classes, probabilities for logits or the opposite, inside a trace.

    >>> one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    >>> found = all_pairs([one, other, one], ["disagreement", "l1"])
    >>> found["disagreement"].tolist()
    [[nan, 1.0, 0.0], [1.0, nan, 1.0], [0.0, 1.0, nan]]
    >>> found["l1"][0].round(6).tolist()
    [nan, 0.924234, 0.0]
    """
    caller = "all_pairs"
    named = formulas_of(caller, metrics)
    refuse_traced(f"functional.{caller}", *outputs, label)
    models = _checked(caller, outputs)
    num_examples, num_classes = np.shape(models[0])
    formulas = tuple(formula for _, formula in named)
    for formula in formulas:
        check_classes(caller, formula, num_classes)
    if any(formula.reads_labels for formula in formulas):
        label = model_outputs.check_label(caller, label, num_classes)
    if label is not None and np.shape(label) != (num_examples,):
        raise UserError(
            f"functional.{caller}: label is {list(np.shape(label))}, and the outputs are of "
            f"{num_examples} examples; give [N]."
        )
    guarded = any(formula.guarded for formula in formulas)
    finite = [_checked_finite(caller, x, guarded=guarded, probs=probs) for x in models]
    sound = np.flatnonzero(finite)
    found = {name: np.full((len(models),) * 2, np.nan) for name, _ in named}
    if not num_examples or len(sound) < 2:
        return found
    i, j = np.triu_indices(len(sound), 1)
    sums = _sums(models, label, sound, np.stack([i, j], 1), formulas, probs, block_size)
    for (name, formula), one, other in zip(named, *sums, strict=True):
        upper, lower = (
            formula.value(tuple(s / num_examples for s in side), num_classes)
            for side in (one, other if other else one)
        )
        found[name][sound[i], sound[j]] = upper
        found[name][sound[j], sound[i]] = lower
    return found


def _checked(caller: str, outputs: Any) -> list[np.ndarray]:
    shapes = sorted({np.shape(x) for x in outputs})
    if len(outputs) < 2 or len(shapes) > 1 or len(shapes[0]) != 2:
        raise UserError(
            f"functional.{caller}: {len(outputs)} outputs of shapes {shapes}; give those of two "
            "models or more, each [N, K], of the same examples and classes."
        )
    if shapes[0][1] < 2:
        raise UserError(f"functional.{caller}: the outputs are of one class. {TWO_CLASSES}")
    return [np.asarray(x) for x in outputs]


def _checked_finite(caller: str, values: np.ndarray, *, guarded: bool, probs: bool) -> bool:
    """Whether all outputs of a model are finite; if so, also checks logits against `probs`."""
    return bool(
        np.isfinite(model_outputs.check_values(caller, values, guarded=guarded, probs=probs)).all()
    )


def _sums(
    models: Sequence[np.ndarray],
    label: Any,
    sound: np.ndarray,
    pairs: np.ndarray,
    formulas: tuple[Formula, ...],
    probs: bool,
    block_size: int | None,
) -> tuple[list[tuple[np.ndarray, ...]], list[tuple[np.ndarray, ...]]]:
    """Sums of the terms over all examples, [P] each: for each pair (f, g), and for (g, f) if a
    formula is not symmetric."""
    num_examples, num_classes = models[0].shape
    if block_size is None:
        num_blocks = -(-num_examples * num_classes * len(sound) // _BLOCK)
        size = -(-num_examples // num_blocks)
    else:
        size = min(whole_number("functional.all_pairs", "block_size", block_size), num_examples)
    dtype = functools.reduce(np.promote_types, (x.dtype for x in models), np.dtype(np.float32))
    total = None
    with jax.enable_x64(True):
        for start in range(0, num_examples, size):
            counted = np.arange(start, start + size) < num_examples
            at = np.minimum(np.arange(start, start + size), num_examples - 1)
            values = np.stack([models[m][at].astype(dtype, copy=False) for m in sound])
            own = None if label is None else np.asarray(label)[at]
            part = _of_block(values, own, counted, pairs, formulas=formulas, probs=probs)
            part = jax.tree.map(np.asarray, part)
            total = part if total is None else jax.tree.map(np.add, total, part)
    return total  # pyright: ignore[reportReturnType]


@functools.partial(jax.jit, static_argnames=("formulas", "probs"))
def _of_block(values, label, counted, pairs, *, formulas, probs):
    made = Outputs(values, label, probs=probs)
    read = {name: getattr(made, name) for formula in formulas for name in formula.reads}

    def summed(formula, f, g):
        terms = formula.terms(f, g)
        return tuple(jnp.sum(jnp.where(counted, x, 0), dtype=jnp.float64) for x in terms)

    def of_pair(pair):
        f, g = (SimpleNamespace(**{name: x[i] for name, x in read.items()}) for i in pair)
        forth = [summed(formula, f, g) for formula in formulas]
        back = [() if formula.symmetric else summed(formula, g, f) for formula in formulas]
        return forth, back

    return jax.lax.map(of_pair, pairs)
