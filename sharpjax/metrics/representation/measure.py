"""The class of a measure of two representations: how it is computed, and its properties."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from sharpjax.errors import UserError
from sharpjax.metrics import inputs

Invariance = Literal["permutation", "orthogonal", "scale", "translation", "invertible"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number for two matrices of features, [N, d] and [N, e], of the same N examples.

    Calling it with two matrices gives a float. It computes in float64 on the host, because an
    unbiased estimate is a small difference of large sums.

    Attributes:
        name: its name in `MEASURES` and `all_pairs`.
        prepare: the part computed once for each matrix; it takes the options of the measure.
        compare: the number for two prepared matrices.
        larger_is_more_similar: whether a larger number means more similar; else it means farther.
        symmetric: whether m(a, b) = m(b, a).
        is_metric: whether it is a metric up to its invariances: 0 for equal matrices, symmetric,
            and m(a, c) <= m(a, b) + m(b, c).
        invariances: changes of either matrix that leave the number unchanged, whatever is done to
            the other. 'permutation' of the features; 'orthogonal': x Q with Q'Q = I; 'scale': c x
            with c > 0; 'translation': x + b with one row b; 'invertible': x A.
        least: the fewest examples allowed.
        function: the name of the public function, if it differs from `name`.
    """

    name: str
    prepare: Callable[..., Any]
    compare: Callable[[Any, Any], float]
    larger_is_more_similar: bool
    symmetric: bool
    is_metric: bool
    invariances: frozenset[Invariance]
    least: int = 2
    function: str = ""

    def __call__(self, a: Any, b: Any, **options: Any) -> float:
        """The number for `a`, [N, d], and `b`, [N, e].

        Raises:
            UserError: not two matrices of the same N >= `least` examples; a feature is not finite;
                inside a trace; an invalid value of an option.
        """
        caller = self.function or self.name
        one, other = checked(caller, [a, b], self.least)
        for name, x in (("a", one), ("b", other)):
            inputs.refuse_not_finite(f"metrics.representation.{caller}", name, x)
        return self.compare(self.prepare(one, **options), self.prepare(other, **options))


def checked(caller: str, features: Sequence[Any], least: int) -> list[np.ndarray]:
    """The features as matrices [N, d_m] in float64, of the same N >= `least` examples.

    Raises:
        UserError: names `caller`, and says what is wrong and what to do.
    """
    caller = f"metrics.representation.{caller}"
    inputs.refuse_traced(caller, *features)
    shapes = [np.shape(x) for x in features]
    for x, shape in zip(features, shapes, strict=True):
        if len(shape) > 2:
            raise UserError(
                f"{caller}: features of shape {list(shape)}; give [N, d]. Flatten what follows the "
                "examples, `x.reshape(len(x), -1)`, or pool it, `x.mean(axis=(1, 2))`."
            )
        if len(shape) != 2 or not shape[1] or np.asarray(x).dtype.kind not in "biufV":
            raise UserError(
                f"{caller}: features of shape {list(shape)}, {np.asarray(x).dtype}; give numbers, "
                "[N, d] with a row for each example."
            )
    if len({shape[0] for shape in shapes}) > 1:
        raise UserError(
            f"{caller}: {', '.join(str(shape[0]) for shape in shapes)} examples; give features of "
            "the same examples, in the same order."
        )
    if shapes[0][0] < least:
        raise UserError(f"{caller}: {shapes[0][0]} examples; it needs {least} at least.")
    return [np.asarray(x, np.float64) for x in features]


def centred(x: np.ndarray) -> np.ndarray:
    """`x` minus the mean of each column; a column that is constant up to rounding becomes 0.

    The mean of N equal numbers is off by up to N eps of them. The rest is the same in all rows, so
    a second centring removes it.
    """
    found = x - x.mean(axis=0)
    found -= found.mean(axis=0)
    size, reach = np.abs(x).max(axis=0), np.abs(found).max(axis=0)
    found[:, reach <= 16 * np.finfo(np.float64).eps * size] = 0.0
    return found


def of_unit_norm(x: np.ndarray) -> np.ndarray:
    """`x` divided by its Frobenius norm, without overflow; 0 stays 0."""
    largest = np.abs(x).max()
    if largest == 0:
        return x
    x = x / largest
    return x / np.linalg.norm(x)
