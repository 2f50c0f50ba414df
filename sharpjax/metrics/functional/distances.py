"""How far apart the outputs of two models are, averaged over examples.

All but `logit_rmse`, and `activation_distance` with `space="logits"`, compare softmax
probabilities. They take logits, and raise a `UserError` for probabilities unless `probs=True`. All
raise a `UserError` if an output is not finite, and are NaN if there are no examples.
"""

from typing import Any, Literal

from sharpjax.errors import UserError, unknown
from sharpjax.metrics.functional.formula import Formula, of_pair
from sharpjax.metrics.functional.outputs import namespace


def _euclidean(f: Any, g: Any) -> tuple[Any, ...]:
    p, q = f.probabilities, g.probabilities
    return (namespace(p).linalg.norm(p - q, axis=-1),)


def _euclidean_of_values(f: Any, g: Any) -> tuple[Any, ...]:
    return (namespace(f.values).linalg.norm(f.values - g.values, axis=-1),)


ACTIVATION = Formula(_euclidean, ("probabilities",))
_ACTIVATION_OF_LOGITS = Formula(_euclidean_of_values, ("values",))


def activation_distance(
    a: Any,
    b: Any,
    label: Any = None,
    *,
    probs: bool = False,
    space: Literal["probabilities", "logits"] = "probabilities",
) -> float:
    """The mean Euclidean distance of the predictions, 1/N sum_i ||p_i - q_i||_2, in [0, sqrt 2].

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.
        probs: whether `a` and `b` are probabilities.
        space: 'probabilities': p = softmax(a), q = softmax(b); 'logits': the distance of the logits
            themselves, which changes if a constant is added to a row. It takes no softmax, so any
            finite values are allowed, and the distance has no upper bound.

    Raises:
        UserError: the shapes do not match; an output is not finite; with space='probabilities',
            probabilities without `probs`, or logits with it; an unknown space, or 'logits' with
            `probs`.

    >>> import numpy as np
    >>> round(activation_distance(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 6)
    0.707107
    """
    caller = "activation_distance"
    if space not in ("probabilities", "logits"):
        raise unknown(f"space (functional.{caller})", str(space), ("probabilities", "logits"))
    if space == "probabilities":
        return of_pair(caller, ACTIVATION, a, b, label, probs=probs)
    if probs:
        raise UserError(f"functional.{caller}: space='logits' and probs=True exclude each other.")
    return of_pair(caller, _ACTIVATION_OF_LOGITS, a, b, label)


def _absolute(f: Any, g: Any) -> tuple[Any, ...]:
    p, q = f.probabilities, g.probabilities
    return (namespace(p).sum(abs(p - q), axis=-1),)


def _halved(means: tuple[Any, ...], num_classes: int) -> Any:
    return means[0] / 2


L1 = Formula(_absolute, ("probabilities",))
TOTAL_VARIATION = Formula(_absolute, ("probabilities",), _halved)


def l1(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean absolute difference of the predictions, 1/N sum_i ||p_i - q_i||_1, in [0, 2].

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.

    Raises:
        UserError: as `activation_distance`.

    >>> import numpy as np
    >>> l1(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]]))
    1.0
    """
    return of_pair("l1", L1, a, b, label, probs=probs)


def total_variation(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean total variation distance, half of `l1`, in [0, 1].

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.

    Raises:
        UserError: as `activation_distance`.

    >>> import numpy as np
    >>> total_variation(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]]))
    0.5
    """
    return of_pair("total_variation", TOTAL_VARIATION, a, b, label, probs=probs)


def _apart(f: Any, g: Any) -> tuple[Any, ...]:
    """1 - cos, as |u - v|^2 / 2 of unit vectors, which stays accurate if they are close."""
    xp = namespace(f.direction)
    return (xp.sum(xp.square(f.direction - g.direction), axis=-1) / 2,)


def _from_1(means: tuple[Any, ...], num_classes: int) -> Any:
    return 1 - means[0]


def _products(f: Any, g: Any) -> tuple[Any, ...]:
    p, q = f.probabilities, g.probabilities
    xp = namespace(p)
    return tuple(xp.sum(x, axis=-1) for x in (p * q, p * p, q * q))


def _cosine(means: tuple[Any, ...], num_classes: int) -> Any:
    return means[0] / namespace(means[0]).sqrt(means[1] * means[2])


def _cosine_from_1(means: tuple[Any, ...], num_classes: int) -> Any:
    return 1 - _cosine(means, num_classes)


COSINE = Formula(_apart, ("direction",), _from_1)
COSINE_DISTANCE = Formula(_apart, ("direction",))
FLATTENED_COSINE = Formula(_products, ("probabilities",), _cosine)
_FLATTENED_COSINE_DISTANCE = Formula(_products, ("probabilities",), _cosine_from_1)


def cosine_similarity(
    a: Any, b: Any, label: Any = None, *, probs: bool = False, flatten: bool = False
) -> float:
    """The mean cosine of the predictions, 1/N sum_i p_i.q_i / (||p_i|| ||q_i||), in [0, 1].

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.
        flatten: take the cosine of the two matrices as vectors of N K numbers, as the code of the
            papers on functional similarity does. Confident predictions then weigh more.

    Raises:
        UserError: as `activation_distance`.

    >>> import numpy as np
    >>> round(cosine_similarity(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 6)
    0.707107
    """
    formula = FLATTENED_COSINE if flatten else COSINE
    return of_pair("cosine_similarity", formula, a, b, label, probs=probs)


def cosine_distance(
    a: Any, b: Any, label: Any = None, *, probs: bool = False, flatten: bool = False
) -> float:
    """1 - `cosine_similarity`, in [0, 1]. It stays accurate if the predictions are close, unless
    `flatten`.

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.
        flatten: as in `cosine_similarity`.

    Raises:
        UserError: as `activation_distance`.

    >>> import numpy as np
    >>> round(cosine_distance(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 6)
    0.292893
    """
    formula = _FLATTENED_COSINE_DISTANCE if flatten else COSINE_DISTANCE
    return of_pair("cosine_distance", formula, a, b, label, probs=probs)


def _squared(f: Any, g: Any) -> tuple[Any, ...]:
    xp = namespace(f.values)
    return (xp.mean(xp.square(f.values - g.values), axis=-1),)


def _root(means: tuple[Any, ...], num_classes: int) -> Any:
    return namespace(means[0]).sqrt(means[0])


LOGIT_RMSE = Formula(_squared, ("values",), _root)


def logit_rmse(a: Any, b: Any, label: Any = None) -> float:
    """The root mean square difference of the logits, sqrt(1/(N K) sum_ic (a_ic - b_ic)^2).

    Unlike the other metrics, it changes if a constant is added to a row of logits, although no
    prediction changes.

    Args:
        a, b: [N, K] logits of the same examples.
        label: [N], not read.

    Raises:
        UserError: the shapes do not match; an output is not finite.

    >>> import numpy as np
    >>> logit_rmse(np.array([[3.0, 1.0]]), np.array([[1.0, 3.0]]))
    2.0
    """
    return of_pair("logit_rmse", LOGIT_RMSE, a, b, label)
