"""Temperature scaling (arXiv 1706.04599): a single number, fitted exactly on validation data.

fit = temperature.fit(validation_logits, validation_label)
logits = temperature.apply(fit, test_logits)        # refuses the examples of the fit
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.metrics import held_out, inputs

_MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A temperature and how it was found.

    Attributes:
        temperature: T, with its standard error over examples (the sandwich form, which is robust to
            a wrong model), which is NaN for one example.
        nll_before, nll_after: mean negative log-likelihood of the validation data at T = 1 and at
            the fitted T.
        num_steps: Newton and bisection steps.
        rows: a digest of each row of the validation logits, sorted.
        num_classes: K; None in a fit that an earlier version stored.
    """

    temperature: Estimate
    nll_before: float
    nll_after: float
    num_steps: int
    rows: np.ndarray = dataclasses.field(repr=False)
    num_classes: int | None = None


def fit(logits: jax.Array, label: jax.Array) -> Fit:
    """The temperature T that minimises the mean negative log-likelihood of softmax(z / T).

    The problem is convex in b = 1 / T; at the optimum mean z_y = mean sum_k p_k(b) z_k. Newton
    steps within a bracket run in float64 on the host, to a relative width of 1e-12. So T is exact,
    the likelihood is never worse than at T = 1, and there is no learning rate.

    Args:
        logits: [N, K] of **validation** data, which are neither training nor test data.
        label: [N].

    Raises:
        UserError: as `metrics.update`; there are no examples; logits are not finite; every
            prediction is right, so that the best T is 0; the logits say nothing about the labels,
            or are worse than that, so that the best T is infinite; the logits of each example are
            all equal, so that any T is as good; the solver does not converge.

    >>> logits = 3 * np.log([[0.25, 0.75]] * 4)  # three times too sure, if three of four are right
    >>> round(fit(logits, np.array([0, 1, 1, 1])).temperature.value, 6)
    3.0
    """
    caller = "temperature.fit"
    z, y = inputs.on_host(caller, logits, label)
    if not np.isfinite(z).all():
        raise UserError(f"{caller}: logits are not finite; the model predicts nothing there.")
    if not len(z):
        raise UserError(f"{caller}: there are no examples.")
    z = z - z.max(axis=1, keepdims=True)
    of_label = z[np.arange(len(y)), y]
    if not z.any():
        raise UserError(
            f"{caller}: the logits of each example are all equal, so that every temperature is as "
            "good."
        )
    if np.mean(of_label) <= np.mean(z.mean(axis=1)):
        raise UserError(
            f"{caller}: the logits of the labels are not above the mean of the others, so that the "
            "best temperature is infinite: these predictions are no better than none. Are labels "
            "and logits in the same order?"
        )
    if not of_label.any():
        raise UserError(
            f"{caller}: all {len(y)} predictions are right, so that the best temperature is 0. Fit "
            "on data that the model was not trained on, or on more of them."
        )
    size = -z.min()  # b below is for logits divided by this
    z, of_label = z / size, of_label / size
    low, high, b, num_steps = 0.0, np.inf, 1.0, 0
    while num_steps < _MOST_STEPS:
        num_steps += 1
        slope, curvature = _derivatives(z, of_label, b)
        low, high = (low, b) if slope > 0 else (b, high)
        if slope == 0 or high - low <= 1e-12 * b:
            break
        step = b - slope / curvature if curvature > 0 else np.inf
        inside = low < step < high
        after = step if inside else (2 * low if np.isinf(high) else (low + high) / 2)
        if inside and abs(after - b) <= 1e-13 * b:
            break
        b = after
    if num_steps == _MOST_STEPS:
        raise UserError(f"{caller}: not solved; gaps between logits differ too much in size.")
    nll = [float(np.mean(_log_sum(scale * z) - scale * of_label)) for scale in (size, b)]
    p = np.exp(b * z - _log_sum(b * z)[:, None])
    scores = np.sum(p * z, axis=1) - of_label
    _, curvature = _derivatives(z, of_label, b)
    # The score of one example is 0 at the optimum, whatever the noise is.
    error = np.sqrt(np.mean(scores**2) / len(y)) / curvature if len(y) > 1 else np.nan
    found = Estimate(float(size / b), float(size * error / b**2), len(y))
    rows = np.sort(held_out.digests(logits))
    return Fit(found, nll[0], nll[1], num_steps, rows, z.shape[1])


def apply(fit: Fit, logits: jax.Array, *, allow_overlap: bool = False) -> jax.Array:
    """logits / T.

    Args:
        fit: a fit on other examples.
        logits: [N, K] of the examples to measure.
        allow_overlap: also accept examples that T was fitted on.

    Raises:
        UserError: `fit` is not from `temperature.fit`; probabilities; inside jit; other shapes, or
            another number of classes; more than 1 % of the rows are rows that T was fitted on.
    """
    held_out.check("temperature.apply", fit, Fit, logits)
    if fit.num_classes is not None:
        held_out.check_classes("temperature.apply", logits, fit.num_classes)
    held_out.refuse_seen(
        "temperature.apply", "temperature", fit.rows, logits, allow_overlap=allow_overlap
    )
    return jnp.asarray(logits) / fit.temperature.value


def _derivatives(z: np.ndarray, of_label: np.ndarray, b: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log-likelihood in b."""
    p = np.exp(b * z - _log_sum(b * z)[:, None])
    mean = np.sum(p * z, axis=1)
    variance = np.sum(p * (z - mean[:, None]) ** 2, axis=1)
    return float(np.mean(mean - of_label)), float(np.mean(variance))


def _log_sum(z: np.ndarray) -> np.ndarray:
    return np.log(np.sum(np.exp(z), axis=1))  # no overflow: the largest z is 0
