"""How differently two models answer the same examples: plain functions of what both put out.

Each takes outputs `a` and `b`, [N, K] logits of the same N examples, and their labels, [N], which
most do not read; `train.measures` asks them of pairs of models. All are symmetric, 0 of equal
outputs, computed in float64, and NaN where an output is not finite: such a model predicts nothing.
Arrays that do not fit each other are refused with a `UserError`.

Pairs of M models are not independent. `pairwise` gives the M x M matrix, of which
`protocol.tests.pairwise.jackknife` takes the mean with a standard error over models, and the test
`pairwise-difference` the difference of two arms.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from sharpjax.errors import UserError

_ROUNDING = 1e-5  # of the sum of a row of probabilities, in float32


def disagreement(a: np.ndarray, b: np.ndarray, label: np.ndarray | None = None) -> float:
    """The share of examples for which two models predict another class.

    d(a, b) = 1/N sum_i [argmax a_i != argmax b_i], in [0, 1]; of equal largest outputs the first is
    the prediction.

    >>> disagreement(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 3.0], [0.0, 2.0]]))
    0.5
    """
    _check("disagreement", a, b, label)
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or not len(a):
        return float("nan")
    return float(np.mean(np.argmax(a, axis=1) != np.argmax(b, axis=1)))


def normalized_disagreement(a: np.ndarray, b: np.ndarray, label: np.ndarray) -> float:
    """`disagreement` over the mean error rate of the two (Fort et al., 2019, arXiv 1912.02757).

    Nearly 2 where errors are made independently and rarely, 0 where they are the same; NaN where
    neither model errs.

    >>> a, b = np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 2.0]])
    >>> normalized_disagreement(a, b, np.array([0, 0]))
    2.0
    """
    _check("normalized_disagreement", a, b, label)
    wrong = [np.mean(np.argmax(x, axis=1) != label) for x in (a, b)]
    error = float(np.mean(wrong))
    return disagreement(a, b) / error if error > 0 else float("nan")


def jensen_shannon(a: np.ndarray, b: np.ndarray, label: np.ndarray | None = None) -> float:
    """The mean Jensen-Shannon divergence of the predictions, in nats, in [0, log 2].

    JSD = 1/N sum_i (KL(p_i || m_i) + KL(q_i || m_i)) / 2, m = (p + q) / 2, of p = softmax(a) and
    q = softmax(b).

    Raises:
        UserError: `a` or `b` are probabilities.

    >>> sure, unsure = np.array([[99.0, 0.0]]), np.array([[0.0, 99.0]])
    >>> round(float(jensen_shannon(sure, unsure) / np.log(2)), 6)
    1.0
    """
    _check("jensen_shannon", a, b, label)
    p, q = _probabilities("jensen_shannon", a), _probabilities("jensen_shannon", b)
    m = (p + q) / 2
    each = (special.rel_entr(p, m) + special.rel_entr(q, m)).sum(axis=1) / 2
    return float(np.mean(each))


def activation_distance(a: np.ndarray, b: np.ndarray, label: np.ndarray | None = None) -> float:
    """The mean Euclidean distance of the predictions, 1/N sum_i ||p_i - q_i||_2, in [0, sqrt 2].

    Raises:
        UserError: `a` or `b` are probabilities.

    >>> round(activation_distance(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 6)
    0.707107
    """
    _check("activation_distance", a, b, label)
    p, q = _probabilities("activation_distance", a), _probabilities("activation_distance", b)
    return float(np.mean(np.linalg.norm(p - q, axis=1)))


def pairwise(
    outputs: Sequence[np.ndarray],
    distance: Callable[..., float] = disagreement,
    label: np.ndarray | None = None,
) -> np.ndarray:
    """The distances of M models, [M, M], symmetric, NaN on the diagonal.

    Cost: M (M - 1) / 2 distances.

    Args:
        outputs: of each model, [N, K] logits of the same examples.
        distance: of this module, or another symmetric one.
        label: [N], for a distance that reads it.

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


def _check(caller: str, a: np.ndarray, b: np.ndarray, label: np.ndarray | None) -> None:
    labels = np.shape(a)[:1] if label is None else np.shape(label)
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b) or labels != np.shape(a)[:1]:
        raise UserError(
            f"metrics.{caller}: a is {list(np.shape(a))}, b {list(np.shape(b))} and label "
            f"{list(labels)}; give [N, K] twice, of the same examples, and [N]."
        )


def _probabilities(caller: str, logits: np.ndarray) -> np.ndarray:
    """softmax in float64; NaN throughout where a logit is not finite."""
    z = np.asarray(logits, np.float64)
    if not np.isfinite(z).all():
        return np.full(z.shape, np.nan)
    of_sum_one = np.abs(z.sum(axis=1) - 1) <= _ROUNDING
    if np.all((z >= 0) & (z <= 1)) and of_sum_one.all() and np.any((z > 0) & (z < 1)):
        raise UserError(
            f"metrics.{caller}: these are probabilities, each row in [0, 1] and of sum 1, and "
            "logits are asked for. Give the outputs before the softmax, or the logarithms of these."
        )
    return special.softmax(z, axis=1)
