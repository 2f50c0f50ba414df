"""Vector and matrix scaling (arXiv 1706.04599): a linear map of the logits, fitted exactly on
validation data.

fit = linear_scaling.fit(validation_logits, validation_label, "vector")
logits = linear_scaling.apply(fit, test_logits)     # refuses the examples of the fit
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from sharpjax.errors import UserError, unknown
from sharpjax.metrics import held_out, temperature

Kind = Literal["vector", "matrix"]

_MOST_STEPS = 200
_GRADIENT = 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A linear map of logits and how it was found.

    Attributes:
        weights: A, [K] for "vector", [K, K] for "matrix"; applied to logits / T.
        bias: b, [K].
        temperature: T; the penalty pulls the map towards this temperature scaling.
        nll_before, nll_temperature, nll_after: mean negative log-likelihood of the validation data
            without a map, with T alone, and after the map.
        error: bound on the Euclidean distance of (A, b) from the minimum.
        num_steps: Newton steps.
        rows: a digest of each row of the validation logits, sorted.
    """

    weights: np.ndarray
    bias: np.ndarray
    temperature: float
    nll_before: float
    nll_temperature: float
    nll_after: float
    error: float
    num_steps: int
    rows: np.ndarray = dataclasses.field(repr=False)


def fit(logits: jax.Array, label: jax.Array, kind: Kind, *, ridge: float = 1e-4) -> Fit:
    """The A and b that minimise the mean negative log-likelihood of softmax(A z / T + b), plus
    ridge / 2 (|A - 1|^2 + |b|^2).

    T is the temperature of `temperature.fit`. The logits of each example are centred first, so that
    adding a constant to them changes nothing. The penalty pulls the map towards temperature
    scaling, which is the limit of a large `ridge`. It also makes the minimum unique, even if
    classes can be separated or have no examples. A matrix for K classes has K^2 + K numbers, and
    with few validation data it fits their noise (ibid.); use a larger ridge then.

    The problem is convex. Newton steps run in float64 on the host until the gradient norm is at
    most 1e-10 (times the ridge, if that is above 1). The distance from the minimum is then at most
    1e-10 / ridge.

    Predictions may change; temperature scaling does not change them.

    Cost: about a second for 5,000 examples of 10 classes, half a minute for a matrix of 100
    classes.

    Args:
        logits: [N, K] of **validation** data, which are neither training nor test data.
        label: [N].
        kind: "vector", a factor and a bias for each class; "matrix", a full matrix and a bias.
        ridge: strength of the penalty, above 0.

    Raises:
        UserError: as `temperature.fit`; an unknown kind; a ridge that is not a finite number above
            0; no solution within 200 steps.

    >>> rng = np.random.default_rng(0)
    >>> label = rng.integers(0, 3, 300)
    >>> z = np.eye(3)[label] + rng.normal(size=(300, 3)) + [0.0, 2.0, 0.0]  # too much of one class
    >>> found = fit(z, label, "vector")
    >>> bool(found.nll_after < found.nll_temperature), bool(found.bias[1] < -1)
    (True, True)
    """
    caller = "linear_scaling.fit"
    if kind not in get_args(Kind):
        raise unknown(f"kind ({caller})", str(kind), get_args(Kind))
    if not isinstance(ridge, numbers.Real) or not 0 < float(ridge) < math.inf:
        raise UserError(f"{caller}: ridge must be a number > 0, got {ridge!r}.")
    start = temperature.fit(logits, label)
    T = float(np.asarray(start.temperature.value))
    z, y = _centred(logits) / T, np.asarray(label)
    shape = (z.shape[1],) if kind == "vector" else (z.shape[1],) * 2
    x = np.concatenate([(np.ones(shape) if kind == "vector" else np.eye(*shape)).ravel(),
                        np.zeros(shape[0])])  # fmt: skip
    x, gradient, num_steps = _minimise(_Objective(z, y, shape, x, float(ridge)), x)
    if np.linalg.norm(gradient) > _GRADIENT * max(1, ridge):
        raise UserError(
            f"{caller}: not solved in {num_steps} steps, with a gradient of "
            f"{np.linalg.norm(gradient):.1e}; give more of a ridge than {ridge}."
        )
    weights, bias = x[: -shape[0]].reshape(shape), x[-shape[0] :]
    after = _nll(_mapped(z, weights, bias), y)
    error = float(np.linalg.norm(gradient) / ridge)
    return Fit(
        *(weights, bias, T, start.nll_before, start.nll_after, after, error, num_steps, start.rows)
    )


def apply(fit: Fit, logits: jax.Array, *, allow_overlap: bool = False) -> jax.Array:
    """A z / T + b of the centred logits; a row with a logit that is not finite becomes NaN.

    Args:
        fit: a fit on other examples.
        logits: [N, K] of the examples to measure.
        allow_overlap: also accept examples that `fit` was fitted on.

    Raises:
        UserError: `fit` is not from `linear_scaling.fit`; probabilities; inside jit; another number
            of classes; more than 1 % of the rows are rows of the fit.
    """
    caller = "linear_scaling.apply"
    held_out.check(caller, fit, Fit, logits)
    held_out.check_classes(caller, logits, len(fit.bias))
    held_out.refuse_seen(caller, "map", fit.rows, logits, allow_overlap=allow_overlap)
    return jnp.asarray(_mapped(_centred(logits) / fit.temperature, fit.weights, fit.bias))


class _Objective(NamedTuple):
    """The penalised mean negative log-likelihood; x holds the weights, then the biases."""

    z: np.ndarray
    y: np.ndarray
    shape: tuple[int, ...]
    start: np.ndarray
    ridge: float

    def value(self, x: np.ndarray) -> float:
        penalty = self.ridge / 2 * np.sum((x - self.start) ** 2)
        return _nll(self._out(x), self.y) + float(penalty)

    def derivatives(self, x: np.ndarray) -> tuple[np.ndarray, Callable]:
        """The gradient, and the product of the Hessian with a vector."""
        p = _softmax(self._out(x))
        slope = p.copy()
        slope[np.arange(len(p)), self.y] -= 1
        gradient = self._back(slope) + self.ridge * (x - self.start)

        def product(v: np.ndarray) -> np.ndarray:
            out = self._out(np.ravel(v))
            out = p * (out - np.sum(p * out, axis=1, keepdims=True))
            return self._back(out) + self.ridge * np.ravel(v)

        return gradient, product

    def _out(self, x: np.ndarray) -> np.ndarray:
        k = self.shape[0]
        return _mapped(self.z, x[:-k].reshape(self.shape), x[-k:])

    def _back(self, slope: np.ndarray) -> np.ndarray:
        vector = len(self.shape) == 1
        weights = np.sum(slope * self.z, axis=0) if vector else slope.T @ self.z
        return np.concatenate([weights.ravel(), slope.sum(axis=0)]) / len(self.z)


def _minimise(of: _Objective, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Newton's method with step halving; a strongly convex function has one minimum."""
    for step in range(_MOST_STEPS):
        gradient, product = of.derivatives(x)
        if np.linalg.norm(gradient) <= _GRADIENT * max(1, of.ridge):
            return x, gradient, step
        hessian = LinearOperator((len(x), len(x)), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
        enough = min(
            0.1, float(np.sqrt(np.linalg.norm(gradient)))
        )  # for superlinear convergence with cheap first steps
        way, _ = cg(hessian, -gradient, rtol=enough, maxiter=10 * len(x))
        value, slope, size = of.value(x), float(gradient @ way), 1.0
        rounding = 1e-14 * abs(value)
        while of.value(x + size * way) > value + 1e-4 * size * slope + rounding and size > 1e-9:
            size /= 2
        x = x + size * way
    return x, of.derivatives(x)[0], _MOST_STEPS


def _mapped(z: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (z * weights if weights.ndim == 1 else z @ weights.T) + bias


def _centred(logits: jax.Array) -> np.ndarray:
    z = np.asarray(logits, np.float64)
    z = np.where(np.isfinite(z).all(axis=1, keepdims=True), z, np.nan)
    return z - z.mean(axis=1, keepdims=True)


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _nll(z: np.ndarray, y: np.ndarray) -> float:
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))
