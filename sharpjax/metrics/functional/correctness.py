"""Whether two models are right, and wrong, on the same examples.

All these metrics read labels. If several outputs are largest, the prediction is the first of them.
All raise a `UserError` if an output is not finite (such a model predicts nothing), and are NaN if
there are no examples.
"""

from typing import Any, NamedTuple

from sharpjax.metrics.functional.formula import Formula, means_of_pair, of_pair, ratio


def right_and_wrong(f: Any, g: Any) -> tuple[Any, ...]:
    """Whether f and g are right and whether each is wrong. Both are counted, because in float32
    1 - u loses the digits of a small rate."""
    return f.right, g.right, ~f.right, ~g.right


def _kappa_terms(f: Any, g: Any) -> tuple[Any, ...]:
    return f.right != g.right, *right_and_wrong(f, g)


def _kappa(means: tuple[Any, ...], num_classes: int) -> Any:
    """1 - (1 - o) / (1 - e)."""
    differ, u, v, wrong_a, wrong_b = means
    return 1 - ratio(differ, u * wrong_b + v * wrong_a)


ERROR_CONSISTENCY = Formula(_kappa_terms, ("right",), _kappa)


def error_consistency(a: Any, b: Any, label: Any) -> float:
    """Cohen's kappa of being right, (o - e) / (1 - e) (Geirhos et al., 2020, arXiv 2006.16736).

    o is the share of examples on which both are right or both are wrong. e = u v + (1 - u)(1 - v)
    is this share for independent models of accuracies u and v. The value is in [-1, 1]: 1 for equal
    models, 0 for independent ones. NaN if e is 1, which means that both are always right or both
    always wrong.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> a, b = np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 1, 0, 1]]
    >>> error_consistency(a, b, np.array([0, 0, 0, 0]))
    0.0
    """
    return of_pair("error_consistency", ERROR_CONSISTENCY, a, b, label)


def _one_right(f: Any, g: Any) -> tuple[Any, ...]:
    return (f.right != g.right,)


ERROR_INCONSISTENCY = Formula(_one_right, ("right",))


def error_inconsistency(a: Any, b: Any, label: Any) -> float:
    """The share of examples on which exactly one model is right, in [0, 1] (Gontijo-Lopes et al.,
    2022, arXiv 2110.12899).

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> a, b = np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 1, 0, 1]]
    >>> error_inconsistency(a, b, np.array([0, 0, 0, 0]))
    0.5
    """
    return of_pair("error_inconsistency", ERROR_INCONSISTENCY, a, b, label)


def _both_wrong(f: Any, g: Any) -> tuple[Any, ...]:
    wrong, same = ~f.right & ~g.right, f.prediction == g.prediction
    return wrong & ~same, wrong & same


def _first_over_second(means: tuple[Any, ...], num_classes: int) -> Any:
    return ratio(means[0], means[1])


ERROR_RATIO = Formula(_both_wrong, ("right", "prediction"), _first_over_second)


def error_ratio(a: Any, b: Any, label: Any) -> float:
    """Among examples that both get wrong: the number predicted differently over the number
    predicted alike (Aksela, 2003).

    0 or more; 0 for equal models. NaN if the models never make the same wrong prediction. See
    `joint_shares` for the shares themselves.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> a, b = np.eye(3)[[0, 1, 1, 1]], np.eye(3)[[0, 2, 2, 1]]
    >>> error_ratio(a, b, np.array([0, 0, 0, 0]))
    2.0
    """
    return of_pair("error_ratio", ERROR_RATIO, a, b, label)


def _only_second(f: Any, g: Any) -> tuple[Any, ...]:
    return (~f.right & g.right,)


def _only_first(f: Any, g: Any) -> tuple[Any, ...]:
    return (f.right & ~g.right,)


POSITIVE_FLIPS = Formula(_only_second, ("right",), symmetric=False)
NEGATIVE_FLIPS = Formula(_only_first, ("right",), symmetric=False)


def positive_flip_rate(a: Any, b: Any, label: Any) -> float:
    """The share of examples that `a` gets wrong and `b` right, in [0, 1] (Yan et al., 2021,
    arXiv 2011.09161): the gain when `b` replaces `a`.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> a, b = np.eye(2)[[0, 1, 1, 1]], np.eye(2)[[1, 0, 0, 1]]
    >>> positive_flip_rate(a, b, np.array([0, 0, 0, 0]))
    0.5
    """
    return of_pair("positive_flip_rate", POSITIVE_FLIPS, a, b, label)


def negative_flip_rate(a: Any, b: Any, label: Any) -> float:
    """The share of examples that `a` gets right and `b` wrong, in [0, 1] (Yan et al., 2021,
    arXiv 2011.09161): the loss when `b` replaces `a`.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> a, b = np.eye(2)[[0, 1, 1, 1]], np.eye(2)[[1, 0, 0, 1]]
    >>> negative_flip_rate(a, b, np.array([0, 0, 0, 0]))
    0.25
    """
    return of_pair("negative_flip_rate", NEGATIVE_FLIPS, a, b, label)


def _each_right(f: Any, g: Any) -> tuple[Any, ...]:
    return f.right, g.right


def _absolute_difference(means: tuple[Any, ...], num_classes: int) -> Any:
    return abs(means[0] - means[1])


ACCURACY_DIFFERENCE = Formula(_each_right, ("right",), _absolute_difference)


def accuracy_difference(a: Any, b: Any, label: Any) -> float:
    """|accuracy of a - accuracy of b|, in [0, 1].

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> accuracy_difference(np.eye(2)[[0, 0]], np.eye(2)[[0, 1]], np.array([0, 0]))
    0.5
    """
    return of_pair("accuracy_difference", ACCURACY_DIFFERENCE, a, b, label)


def _cells(f: Any, g: Any) -> tuple[Any, ...]:
    apart, alike = _both_wrong(f, g)
    return f.right & g.right, f.right & ~g.right, ~f.right & g.right, alike, apart


_CELLS = Formula(_cells, ("right", "prediction"))


class JointShares(NamedTuple):
    """Shares of examples by which of two models is right; their sum is 1.

    Attributes:
        both_right, only_a, only_b: both models, only `a` or only `b` is right.
        wrong_alike, wrong_apart: both are wrong, with the same prediction or with different ones.
    """

    both_right: float
    only_a: float
    only_b: float
    wrong_alike: float
    wrong_apart: float


def joint_shares(a: Any, b: Any, label: Any) -> JointShares:
    """How often both, one or neither of two models is right. All metrics of this module are
    functions of these shares.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class.

    >>> import numpy as np
    >>> a, b = np.eye(3)[[0, 0, 1, 1]], np.eye(3)[[0, 1, 0, 2]]
    >>> tuple(joint_shares(a, b, np.array([0, 0, 0, 0])))
    (0.25, 0.25, 0.25, 0.0, 0.25)
    """
    means = means_of_pair("joint_shares", _CELLS, a, b, label)
    return JointShares(*([float("nan")] * 5 if means is None else map(float, means)))
