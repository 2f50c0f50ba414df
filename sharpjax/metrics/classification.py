"""Accuracy, negative log-likelihood and calibration error from logits, summed batch by batch.

    totals = metrics.init(num_bins=15)
    for logits, label, weight in batches:
        totals = metrics.update(totals, logits, label, weight)
    metrics.compute(totals)  # {'accuracy': Estimate, 'nll': Estimate, 'ece': Estimate}

These functions are for one model; `jax.vmap` maps all three over a population.
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
    """Running totals over the examples seen so far.

    Counts are integers and sums are compensated. So accuracy, NLL and ECE do not depend on the
    order of the examples or on how they were batched.

    Attributes:
        bins: the predictions by confidence; accuracy uses the same counts.
        nll: the sum of -log p(label).
        nll_scatter: the sum of squared deviations of -log p(label) from its mean.
        refused: bool [3], whether a batch inside a trace held something that `update` refuses: a
            label that is not a class, probabilities, a weight that is neither 0 nor 1.
    """

    bins: Bins
    nll: Sum
    nll_scatter: jax.Array
    refused: jax.Array


def init(num_bins: int) -> Totals:
    """Empty totals with `num_bins` bins of confidence. The number of bins sets the array shapes.

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
        logits: [B, K], K >= 2; not probabilities. If several logits are largest, the prediction is
            the first of them.
        label: integers [B], from 0 to K - 1.
        weight: [B]; 1 for an example, 0 for padding, whose logits and labels are ignored.

    Raises:
        UserError: the shapes do not match; or a label is not a class, the logits are
            probabilities, or a weight is neither 0 nor 1. Inside a trace, the last three cannot be
            raised: `compute` then gives NaN for everything, and `Totals.refused` says why.

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
    # Deviations within the two parts and between their means (Chan, Golub and LeVeque, 1983).
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

    Standard errors treat the examples as a random sample: sample standard deviation / sqrt(n). For
    an accuracy p this is sqrt(p (1 - p) / (n - 1)). For the calibration error, see
    `calibration.expected_calibration_error`. Standard errors are NaN for one example; with no
    examples the values are NaN too. `num_evaluations` is the number of examples. If a batch was
    refused or a prediction is NaN, everything is NaN.
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
    bad = jnp.any(totals.refused) | jnp.isnan(found["ece"].value)  # NaN if a confidence is
    return {
        name: Estimate(jnp.where(bad, jnp.nan, value), jnp.where(bad, jnp.nan, error), count)
        for name, (value, error, count) in found.items()
    }
