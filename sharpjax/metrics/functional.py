"""How differently two models answer the same examples: plain functions of what both put out.

Each takes outputs `a` and `b`, [N, K] logits of the same N examples, and their labels, [N], which
most do not read; `train.measures` asks them of pairs of models.
"""

import numpy as np


def disagreement(a: np.ndarray, b: np.ndarray, label: np.ndarray | None = None) -> float:
    """The share of examples for which two models predict another class.

    d(a, b) = 1/N sum_i [argmax a_i != argmax b_i], in [0, 1]; of equal largest outputs the first is
    the prediction. NaN where an output is not finite: such a model predicts nothing.

    >>> disagreement(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 3.0], [0.0, 2.0]]))
    0.5
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    return float(np.mean(np.argmax(a, axis=1) != np.argmax(b, axis=1)))
