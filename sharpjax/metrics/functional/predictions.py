"""Whether two models predict the same classes.

Of equal largest outputs the first class is the prediction. All refuse outputs that are not finite
(such a model predicts nothing), and are NaN of no examples.
"""

from typing import Any, Literal

from sharpjax.errors import unknown
from sharpjax.metrics.functional.formula import Formula, of_pair, ratio


def _differ(f: Any, g: Any) -> tuple[Any, ...]:
    return (f.prediction != g.prediction,)


def _differ_and_wrong(f: Any, g: Any) -> tuple[Any, ...]:
    return f.prediction != g.prediction, ~f.right, ~g.right


DISAGREEMENT = Formula(_differ, ("prediction",))


def disagreement(a: Any, b: Any, label: Any = None) -> float:
    """The share of examples for which two models predict another class; also called churn
    (Milani Fard et al., 2016).

    d(a, b) = 1/N sum_i [argmax a_i != argmax b_i], in [0, 1].

    Args:
        a, b: [N, K] logits, or anything of the same order, of the same examples.
        label: [N], not read.

    Raises:
        UserError: the arrays do not fit each other.

    >>> import numpy as np
    >>> disagreement(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 3.0], [0.0, 2.0]]))
    0.5
    """
    return of_pair("disagreement", DISAGREEMENT, a, b, label)


def _over_mean(means: tuple[Any, ...], num_classes: int) -> Any:
    return ratio(means[0], (means[1] + means[2]) / 2)


def _over_first(means: tuple[Any, ...], num_classes: int) -> Any:
    return ratio(means[0], means[1])


def _over_second(means: tuple[Any, ...], num_classes: int) -> Any:
    return ratio(means[0], means[2])


_READS = ("prediction", "right")
NORMALIZED = Formula(_differ_and_wrong, _READS, _over_mean)
_BY = {
    "mean": NORMALIZED,
    "a": Formula(_differ_and_wrong, _READS, _over_first, symmetric=False),
    "b": Formula(_differ_and_wrong, _READS, _over_second, symmetric=False),
}


def normalized_disagreement(
    a: Any, b: Any, label: Any, *, error_of: Literal["mean", "a", "b"] = "mean"
) -> float:
    """`disagreement` over an error rate (Fort et al., 2019, arXiv 1912.02757).

    Nearly 2 where errors are made independently and rarely, 0 where they are the same; NaN where
    the error rate is 0.

    Args:
        a, b: [N, K] logits, or anything of the same order, of the same examples.
        label: [N].
        error_of: 'mean', that of both, which is symmetric; 'a' or 'b'. Fort et al. take the model
            that is not the base.

    Raises:
        UserError: the arrays do not fit each other; a label is no class; another word.

    >>> import numpy as np
    >>> a, b = np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 2.0]])
    >>> normalized_disagreement(a, b, np.array([0, 0]))
    2.0
    """
    caller = "normalized_disagreement"
    if error_of not in _BY:
        raise unknown(f"error_of (functional.{caller})", str(error_of), _BY)
    return of_pair(caller, _BY[error_of], a, b, label)


def _corrected(means: tuple[Any, ...], num_classes: int) -> Any:
    differ, wrong_a, wrong_b = means
    chance = (1 - wrong_a) * (1 - wrong_b) + wrong_a * wrong_b / (num_classes - 1)
    return ratio(1 - differ - chance, 1 - chance)


CHANCE_CORRECTED = Formula(_differ_and_wrong, _READS, _corrected)


def chance_corrected_agreement(a: Any, b: Any, label: Any) -> float:
    """Agreement beyond that of independent models of the same accuracies, (o - e) / (1 - e).

    o is the share of equal predictions, and e = u v + (1 - u)(1 - v) / (K - 1) that of two models
    of accuracies u and v that err independently and on all K - 1 wrong classes alike. 1 of equal
    predictions, 0 of independent ones, at least -1; NaN where e is 1, as of two perfect models.

    Args:
        a, b: [N, K] logits, or anything of the same order, of the same examples.
        label: [N].

    Raises:
        UserError: the arrays do not fit each other; a label is no class.

    >>> import numpy as np
    >>> a, b = np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 1, 0, 1]]
    >>> chance_corrected_agreement(a, b, np.array([0, 0, 0, 0]))
    0.0
    """
    return of_pair("chance_corrected_agreement", CHANCE_CORRECTED, a, b, label)
