"""Whether two models predict the same classes.

If several outputs are largest, the prediction is the first of them. All metrics raise a `UserError`
if an output is not finite (such a model predicts nothing), and are NaN if there are no examples.
"""

from typing import Any, Literal

from sharpjax.errors import unknown
from sharpjax.metrics.functional.correctness import right_and_wrong
from sharpjax.metrics.functional.formula import Formula, of_pair, ratio


def _differ(f: Any, g: Any) -> tuple[Any, ...]:
    return (f.prediction != g.prediction,)


def _differ_and_wrong(f: Any, g: Any) -> tuple[Any, ...]:
    return f.prediction != g.prediction, ~f.right, ~g.right


DISAGREEMENT = Formula(_differ, ("prediction",))


def disagreement(a: Any, b: Any, label: Any = None) -> float:
    """The share of examples for which two models predict different classes; also called churn
    (Milani Fard et al., 2016).

    d(a, b) = 1/N sum_i [argmax a_i != argmax b_i], in [0, 1].

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N], not read.

    Raises:
        UserError: the shapes do not match; an output is not finite.

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
    """`disagreement` divided by an error rate (Fort et al., 2019, arXiv 1912.02757).

    It is nearly 2 if errors are rare and independent, and 0 if the predictions are the same. NaN if
    the error rate is 0.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].
        error_of: 'mean', the mean error rate of both, which is symmetric; or 'a' or 'b'. Fort et
            al. use the error rate of the model that is not the base.

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class; an
            unknown `error_of`.

    >>> import numpy as np
    >>> a, b = np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 2.0]])
    >>> normalized_disagreement(a, b, np.array([0, 0]))
    2.0
    """
    caller = "normalized_disagreement"
    if error_of not in _BY:
        raise unknown(f"error_of (functional.{caller})", str(error_of), _BY)
    return of_pair(caller, _BY[error_of], a, b, label)


def _corrected_terms(f: Any, g: Any) -> tuple[Any, ...]:
    return f.prediction != g.prediction, *right_and_wrong(f, g)


def _corrected(means: tuple[Any, ...], num_classes: int) -> Any:
    """1 - (1 - o) / (1 - e)."""
    differ, u, v, wrong_a, wrong_b = means
    apart = wrong_a * wrong_b * ((num_classes - 2) / (num_classes - 1))
    return 1 - ratio(differ, u * wrong_b + v * wrong_a + apart)


CHANCE_CORRECTED = Formula(_corrected_terms, _READS, _corrected)


def chance_corrected_agreement(a: Any, b: Any, label: Any) -> float:
    """Agreement beyond that of independent models of the same accuracies, (o - e) / (1 - e).

    o is the share of equal predictions. e = u v + (1 - u)(1 - v) / (K - 1) is this share for two
    models of accuracies u and v that err independently, with all K - 1 wrong classes equally
    likely. The value is in [-1, 1]: 1 for equal predictions, 0 for independent ones. NaN if e is 1,
    such as for two perfect models.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> a, b = np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 1, 0, 1]]
    >>> chance_corrected_agreement(a, b, np.array([0, 0, 0, 0]))
    0.0
    """
    return of_pair("chance_corrected_agreement", CHANCE_CORRECTED, a, b, label)
