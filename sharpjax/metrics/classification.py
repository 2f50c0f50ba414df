"""Accuracy, negative log-likelihood and calibration error from logits, summed batch by batch.

    totals = metrics.init(num_bins=15)
    for logits, label, weight in batches:
        totals = metrics.update(totals, logits, label, weight)
    metrics.compute(totals)  # {'accuracy': Estimate, 'nll': Estimate, 'ece': Estimate}

For one model; `jax.vmap` lifts all three to a population.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.metrics import calibration, inputs, summation
from sharpjax.metrics.calibration import Bins
from sharpjax.metrics.summation import Sum


class Totals(NamedTuple):
    """What is known of the examples so far.

    Counts are integers and sums are compensated, so that accuracy, NLL and ECE do not depend on how
    the examples were batched, nor on their order.

    Attributes:
        bins: the predictions by confidence; their counts are also those of accuracy.
        nll: the sum of -log p(label).
        nll_scatter: the sum of its squared deviations from the mean.
        refused: bool [3], whether a batch held what `update` refuses, as far as that was known
            inside a trace alone: a label that is no class, probabilities, a weight that is neither
            0 nor 1.
    """

    bins: Bins
    nll: Sum
    nll_scatter: jax.Array
    refused: jax.Array


def init(num_bins: int) -> Totals:
    """Totals of nothing, with `num_bins` bins of confidence. The number is part of their shape.

    Raises:
        UserError: `num_bins` is not a positive integer.
    """
    if not isinstance(num_bins, int) or num_bins < 1:
        raise UserError(f"metrics.init: num_bins={num_bins!r}; give an integer of 1 or more.")
    return Totals(
        bins=calibration.empty(num_bins),
        nll=summation.zero(),
        nll_scatter=jnp.zeros((), jnp.float32),
        refused=jnp.zeros(len(inputs.REASONS), bool),
    )


def update(totals: Totals, logits: jax.Array, label: jax.Array, weight: jax.Array) -> Totals:
    """The totals with a batch added.

    Args:
        totals: from `init` or `update`.
        logits: [B, K], K >= 2; never probabilities. Of equal largest ones the first is the
            prediction.
        label: integers [B], from 0 to K - 1.
        weight: [B]; 0 for what only pads the batch, and whose other values do not matter; else 1.

    Raises:
        UserError: the shapes do not fit each other; or a label is no class, the logits are
            probabilities, a weight is neither 0 nor 1. Inside a trace these three cannot be raised:
            then all that `compute` gives is NaN, and `Totals.refused` says why.

    >>> certain = 100 * jnp.eye(4)  # four examples, each sure of its own class
    >>> totals = update(init(10), certain, jnp.array([0, 1, 2, 0]), jnp.array([1, 1, 1, 0]))
    >>> [(name, float(estimate.value)) for name, estimate in sorted(compute(totals).items())]
    [('accuracy', 1.0), ('ece', 0.0), ('nll', 0.0)]
    """
    batch = inputs.checked("metrics.update", logits, label, weight)
    nll = optax.softmax_cross_entropy_with_integer_labels(batch.logits, batch.label)
    nll = jnp.where(batch.counted, nll, 0.0)
    confidence, correct = inputs.confidence_of(batch), inputs.correct(batch)
    return Totals(
        bins=calibration.add(totals.bins, confidence, correct, batch.counted),
        nll=summation.add(totals.nll, summation.over_examples(nll)),
        nll_scatter=_add_scatter(totals, nll, batch.counted),
        refused=totals.refused | batch.refused,
    )


def _add_scatter(totals: Totals, x: jax.Array, counted: jax.Array) -> jax.Array:
    # Deviations within both parts, and between their means (Chan, Golub and LeVeque, 1983).
    m = jnp.sum(totals.bins.count).astype(jnp.float32)
    n = jnp.sum(counted, dtype=jnp.float32)
    old_mean = summation.value(totals.nll) / jnp.maximum(m, 1.0)
    mean = summation.value(summation.over_examples(x)) / jnp.maximum(n, 1.0)
    within = jnp.sum(jnp.where(counted, jnp.square(x - mean), 0.0))
    between = jnp.square(mean - old_mean) * (m * n / jnp.maximum(m + n, 1.0))
    return totals.nll_scatter + within + between


@jax.jit
def compute(totals: Totals) -> dict[str, Estimate]:
    """Accuracy, mean negative log-likelihood (nats) and expected calibration error.

    Standard errors are those of a mean over examples drawn at random, sample standard deviation /
    sqrt(n): for the accuracy p sqrt(p (1 - p) / (n - 1)), and for the calibration error see
    `calibration.expected_calibration_error`. They are NaN for one example, and for none the values
    are too. `num_evaluations` is the number of examples. Where a batch was refused, all are NaN.
    """
    num_examples = jnp.sum(totals.bins.count)
    n = num_examples.astype(jnp.float32)
    accuracy = jnp.sum(totals.bins.correct).astype(jnp.float32) / n
    found = {
        "accuracy": Estimate(accuracy, jnp.sqrt(accuracy * (1 - accuracy) / (n - 1)), num_examples),
        "nll": Estimate(
            summation.value(totals.nll) / n,
            jnp.sqrt(totals.nll_scatter / (n - 1) / n),
            num_examples,
        ),
        "ece": calibration.expected_calibration_error(totals.bins),
    }
    bad = jnp.any(totals.refused)
    return {
        name: Estimate(jnp.where(bad, jnp.nan, value), jnp.where(bad, jnp.nan, error), count)
        for name, (value, error, count) in found.items()
    }
