"""A calibration error without bins."""

import jax
import numpy as np
from scipy.fft import dct

from sharpjax.metrics import inputs

_NARROWEST = 1e-3  # a kernel of this width takes some 2,700 cosines


def smooth_calibration_error(logits: jax.Array, label: jax.Array) -> float:
    """smECE: the calibration error of the top class, smoothed by a Gaussian kernel whose width is
    the error itself (Blasiok and Nakkiran, 2023, arXiv 2309.12236).

    Let r_s(t) be the mean of (right - confidence) K_s(t, confidence), with K_s the Gaussian of
    width s reflected at the ends of [0, 1]. smECE is the one s at which the integral of |r_s| is s.
    It is continuous in the confidences and needs no number of bins. It is computed in a cosine
    basis, in which the kernel is a factor exp(-(s pi k)^2 / 2), so that all widths share one sum
    over the examples. It is correct to some 1e-6. If it is below 0.001, the integral at width 0.001
    is returned, which is not more than the true error.

    Like all such errors, it is biased upwards.

    Cost: N x 2,700 cosines on the host. NaN if there are no examples or a logit is not finite.

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
        smoothed = np.zeros(4 * len(k))  # the number of grid cells; values are at their middles
        smoothed[: len(k)] = waves * np.exp(-((width * np.pi * k) ** 2) / 2)
        return float(np.mean(np.abs(np.asarray(dct(smoothed, type=3)))))

    low, high = _NARROWEST, 1.0
    if integral(low) <= low:
        return integral(low)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if integral(middle) > middle else (low, middle)
    return high
