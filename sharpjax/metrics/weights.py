"""How far apart two models are as points: of their parameters, whatever they compute.

Both hang on the parametrisation: neurons that change places, or a layer that is scaled where the
next one undoes it, move the point and not the function.
"""

import math
from typing import Any

import jax
import numpy as np
from scipy import linalg

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.metrics import inputs


def distance(a: Any, b: Any) -> float:
    """||a - b||, the Euclidean distance over all leaves. In float64 on the host, O(n).

    Args:
        a, b: pytrees of one structure and shapes, of any floating types.

    Raises:
        UserError: they are not of one structure, or a leaf is not finite.

    >>> distance({"w": np.array([3.0, 0.0])}, {"w": np.array([0.0, 4.0])})
    5.0
    """
    ours, theirs = _leaves("distance", a, b)
    return _length([x - y for x, y in zip(ours, theirs, strict=True)])


def cosine_similarity(a: Any, b: Any) -> float:
    """a·b / (||a|| ||b||) over all leaves, in [-1, 1]; NaN where one is 0. In float64 on the host,
    O(n).

    Args:
        a, b: pytrees of one structure and shapes, of any floating types.

    Raises:
        UserError: they are not of one structure, or a leaf is not finite.

    >>> cosine_similarity({"w": np.array([3.0, 0.0])}, {"w": np.array([1.0, 0.0])})
    1.0
    """
    both = _leaves("cosine_similarity", a, b)
    lengths = [_length(leaves) for leaves in both]
    if not all(lengths):
        return math.nan
    ours, theirs = ([x / n for x in own] for own, n in zip(both, lengths, strict=True))
    product = sum(float(x @ y) for x, y in zip(ours, theirs, strict=True))
    return min(max(product, -1.0), 1.0)


def _length(leaves: list[np.ndarray]) -> float:
    """Where squares would overflow, too."""
    return math.hypot(*(float(linalg.norm(x)) for x in leaves))


def _leaves(caller: str, a: Any, b: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Those of both, flat."""
    caller = f"weights.{caller}"
    inputs.refuse_traced(caller, *jax.tree.leaves((a, b)))
    for name, params in (("a", a), ("b", b)):
        tree.check_floating(caller, params, name)
    a, b = (jax.tree.map(lambda x: np.asarray(x, np.float64), params) for params in (a, b))
    tree.check_same_structure(caller, "b", b, a, of="a")
    found = [np.ravel(x) for x in jax.tree.leaves(a)], [np.ravel(x) for x in jax.tree.leaves(b)]
    for name, leaves in zip("ab", found, strict=True):
        if not all(np.isfinite(x).all() for x in leaves):
            raise UserError(f"{caller}: a leaf of {name} is not finite; leave that model out.")
    return found
