"""A calibration error without bins."""

import jax
import numpy as np
from scipy.fft import dct

from sharpjax.metrics import inputs

_NARROWEST = 1e-3  # a kernel that takes some 2,700 cosines


def smooth_calibration_error(logits: jax.Array, label: jax.Array) -> float:
    """smECE: the error of the top class, smoothed by a Gaussian kernel as wide as the error itself
    (Blasiok and Nakkiran, 2023, arXiv 2309.12236).

    With r_s(t) the mean of (right - confidence) K_s(t, confidence), and K_s the Gaussian of width s
    that the ends of [0, 1] reflect, it is the one s at which the integral of |r_s| is s. It is
    continuous in the confidences, and no number of bins is chosen. In cosines, where the kernel is
    a factor exp(-(s pi k)^2 / 2), so that all widths share one sum over the examples; right to some
    1e-6. Where it is below 0.001, it is the integral at that width: no more than the truth.

    It is biased upwards as all such errors are.

    Cost: N x 2,700 cosines on the host. NaN of no examples, and where a logit is not finite.

    Args:
        logits: [N, K].
        label: [N].

    Raises:
        UserError: as `metrics.update`.

    >>> logits = np.log([[0.9, 0.1]] * 10)  # 60 % are right: they are off by 0.3, however smoothed
    >>> round(smooth_calibration_error(logits, np.array([0] * 6 + [1] * 4)), 6)
    0.3
    """
    caller = "smooth_calibration_error"
    z, y = inputs.on_host(caller, logits, label)
    if not len(z) or not np.isfinite(z).all():
        return float("nan")
    confidence = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    gap = (np.argmax(z, axis=1) == y) - confidence
    k = np.arange(int(np.ceil(np.sqrt(2 * 36.0) / (np.pi * _NARROWEST))))
    waves = np.zeros(len(k))
    for part in np.array_split(np.arange(len(z)), -(-len(z) // 1000)):
        waves += gap[part] @ np.cos(np.pi * confidence[part, None] * k)
    waves /= len(z)

    def integral(width: float) -> float:
        smoothed = np.zeros(4 * len(k))  # on a grid of so many cells, at their middles
        smoothed[: len(k)] = waves * np.exp(-((width * np.pi * k) ** 2) / 2)
        return float(np.mean(np.abs(np.asarray(dct(smoothed, type=3)))))

    low, high = _NARROWEST, 1.0
    if integral(low) <= low:
        return integral(low)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if integral(middle) > middle else (low, middle)
    return high
