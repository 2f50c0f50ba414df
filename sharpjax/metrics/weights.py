"""How far apart two models are in parameter space, whatever functions they compute.

Both measures depend on the parametrisation. Permuting neurons, or scaling a layer and undoing that
in the next one, changes the parameters but not the function.
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
        a, b: pytrees with the same structure and shapes, of any floating types.

    Raises:
        UserError: the structures or shapes differ, or a leaf is not floating or not finite.

    >>> distance({"w": np.array([3.0, 0.0])}, {"w": np.array([0.0, 4.0])})
    5.0
    """
    ours, theirs = _leaves("distance", a, b)
    return _length([x - y for x, y in zip(ours, theirs, strict=True)])


def cosine_similarity(a: Any, b: Any) -> float:
    """a·b / (||a|| ||b||) over all leaves, in [-1, 1]; NaN if `a` or `b` is 0. In float64 on the
    host, O(n).

    Args:
        a, b: pytrees with the same structure and shapes, of any floating types.

    Raises:
        UserError: the structures or shapes differ, or a leaf is not floating or not finite.

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
    """The Euclidean norm over all leaves; correct even if squares would overflow."""
    return math.hypot(*(float(linalg.norm(x)) for x in leaves))


def _leaves(caller: str, a: Any, b: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The checked leaves of both, flattened, in float64."""
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
