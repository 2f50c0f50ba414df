"""Selective prediction: the error rate as a function of the share of examples answered."""

from typing import NamedTuple

import jax
import numpy as np

from sharpjax.metrics import inputs


class RiskCoverage(NamedTuple):
    """A risk-coverage curve.

    Attributes:
        coverage: i / N for i from 1 to N, the share of the most confident examples.
        risk: the share of errors among them.
        aurc: the mean of `risk` (arXiv 1805.08206).
        excess_aurc: `aurc` minus that of the same errors in the best order, all last; 0 is perfect.
    """

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    excess_aurc: float


def risk_coverage(logits: jax.Array, label: jax.Array) -> RiskCoverage:
    """The error rate as the least confident examples are left out, and the area under that curve.

    Confidence p is the largest softmax probability. Examples are ordered in float64 by (1 - p) / p,
    so that very confident predictions keep their order. For examples of equal confidence, the
    result is the mean over their orders, so it does not depend on the order of the data.

    NaN if there are no examples or a softmax is NaN: of a logit that is NaN or infinity, or of
    minus infinities alone. Beside others, minus infinity is a class of probability 0.

    Args:
        logits: [N, K].
        label: [N].

    Raises:
        UserError: as `metrics.update`.

    >>> logits = np.array([[9.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    >>> found = risk_coverage(logits, np.array([0, 1, 0]))  # the second one is wrong
    >>> found.risk.round(3).tolist(), round(found.aurc, 4), round(found.excess_aurc, 4)
    ([0.0, 0.5, 0.333], 0.2778, 0.1667)
    """
    z, y = inputs.on_host("selective.risk_coverage", logits, label)
    top = np.argmax(z, axis=1)
    wrong = (top != y).astype(float)
    others = np.exp(z - z.max(axis=1, keepdims=True))
    no_prediction = np.isnan(others).any()  # also of the top class: infinity minus infinity
    others[np.arange(len(z)), top] = 0
    doubt = others.sum(axis=1)  # (1 - p) / p
    n = len(z)
    if not n or no_prediction:
        nothing = np.full(n, np.nan)
        return RiskCoverage(np.arange(1, n + 1) / max(n, 1), nothing, float("nan"), float("nan"))
    places = np.arange(1, n + 1)
    levels, group = np.unique(doubt, return_inverse=True)
    sizes, errors = np.bincount(group), np.bincount(group, wrong)
    before, ended = np.cumsum(sizes) - sizes, np.cumsum(errors) - errors
    of = np.repeat(np.arange(len(levels)), sizes)
    risk = (ended[of] + (places - before[of]) * errors[of] / sizes[of]) / places
    best = np.maximum(places - (n - wrong.sum()), 0) / places
    aurc = float(risk.mean())
    return RiskCoverage(places / n, risk, aurc, float(aurc - best.mean()))
