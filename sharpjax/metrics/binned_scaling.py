"""Histogram binning and isotonic regression of class probabilities, one class against the rest
(Zadrozny and Elkan, 2001 and 2002), fitted on validation data.

fit = binned_scaling.fit(validation_logits, validation_label, "isotonic")
logits = binned_scaling.apply(fit, test_logits)     # refuses the examples of the fit
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import isotonic_regression

from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.metrics import held_out, inputs

Kind = Literal["histogram", "isotonic"]


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """For each class, a step function from its probability to how often it is the label.

    Attributes:
        edges: for each class, [M - 1], increasing.
        values: for each class, [M]: how often it is the label between two edges.
        rows: a digest of each row of the validation logits, sorted.
    """

    edges: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    rows: np.ndarray = dataclasses.field(repr=False)


def fit(logits: jax.Array, label: jax.Array, kind: Kind, *, num_bins: int = 15) -> Fit:
    """How often each class is the label, as a step function of its softmax probability.

    'histogram' uses bins of equal mass. 'isotonic' uses the steps of the increasing function with
    the least mean square error, found exactly (pool adjacent violators). It needs more data, but no
    number of bins. Equal probabilities lie on one step. Edges are half-way between neighbouring
    probabilities.

    Args:
        logits: [N, K] of **validation** data, which are neither training nor test data.
        label: [N].
        kind: kind of step function.
        num_bins: bins of a histogram for each class; may be more than there are probabilities.

    Raises:
        UserError: as `metrics.update`; no examples; logits that are not finite; an unknown kind; an
            impossible number of bins.

    >>> logits = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    >>> found = fit(logits, np.array([0, 1, 0, 1]), "isotonic")
    >>> found.values[0].tolist(), found.edges[0].round(3).tolist()
    ([0.0, 0.5, 1.0], [0.25, 0.85])
    """
    caller = "binned_scaling.fit"
    if kind not in get_args(Kind):
        raise unknown(f"kind ({caller})", str(kind), get_args(Kind))
    whole_number(caller, "num_bins", num_bins)
    _, y = inputs.on_host(caller, logits, label)
    if not len(logits) or not np.isfinite(np.asarray(logits)).all():
        raise UserError(f"{caller}: {len(logits)} examples; give some, all of finite logits.")
    found = [_steps(c, y == k, kind, num_bins) for k, c in enumerate(_softmax(logits).T)]
    edges, values = zip(*found, strict=True)
    return Fit(edges, values, np.sort(held_out.digests(logits)))


def apply(fit: Fit, logits: jax.Array, *, allow_overlap: bool = False) -> jax.Array:
    """Logarithms of the new probabilities, [N, K]. Predictions may change.

    The new probabilities of each example are divided by their sum. A probability of 0 gives minus
    infinity. If all classes of an example get 0, it gets equal probabilities. If its softmax is
    NaN, so is the result.

    Args:
        fit: a fit on other examples.
        logits: [N, K] of the examples to measure.
        allow_overlap: also accept examples that `fit` was fitted on.

    Raises:
        UserError: `fit` is not from `binned_scaling.fit`; probabilities; inside jit; another number
            of classes; more than 1 % of the rows are rows of the fit.
    """
    caller = "binned_scaling.apply"
    held_out.check(caller, fit, Fit, logits)
    held_out.check_classes(caller, logits, len(fit.edges))
    held_out.refuse_seen(caller, "map", fit.rows, logits, allow_overlap=allow_overlap)
    p = _softmax(logits)
    every = zip(p.T, fit.edges, fit.values, strict=True)
    q = np.stack([values[np.searchsorted(edges, c)] for c, edges, values in every], axis=1)
    total = q.sum(axis=1, keepdims=True)
    q = np.where(total > 0, q / np.where(total > 0, total, 1), 1 / q.shape[1])
    q = np.where(np.isnan(p), np.nan, q)
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(q))


def _steps(confidence, right, kind, num_bins) -> tuple[np.ndarray, np.ndarray]:
    """Edges and values for one class."""
    levels, group, count = np.unique(confidence, return_inverse=True, return_counts=True)
    share = np.bincount(group, right) / count
    if kind == "isotonic":
        value = isotonic_regression(share, weights=count).x
        last = np.flatnonzero(np.diff(value) > 0)
    else:
        places = [len(part) for part in np.array_split(np.arange(len(right)), num_bins)]
        wanted = np.cumsum(places)[:-1]
        last = np.unique(np.searchsorted(np.cumsum(count), wanted))  # the last level of each bin
        last = last[last < len(levels) - 1]
    starts = np.concatenate([[0], last + 1])
    means = np.add.reduceat(share * count, starts) / np.add.reduceat(count, starts)
    low, high = levels[last], levels[last + 1]
    middle = (low + high) / 2
    # Between neighbouring floats there is none, and it may round to the upper one.
    return np.where(middle < high, middle, low), means


def _softmax(logits: jax.Array) -> np.ndarray:
    z = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # +infinity, or only -infinity, gives NaN
        p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
