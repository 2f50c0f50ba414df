"""Which leaves of the parameters are compressed."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sharpjax import tree
from sharpjax.errors import UserError

Scope = str | Sequence[str] | Any
"""Which leaves are chosen, given as one of:

'kernels': the leaves named `kernel` of dense, convolutional and attention layers (of SVD factors, U
and Vt), but no biases, scales of norms, embeddings or tokens; in a tree without such names, all
arrays of two axes or more. 'trainable': every leaf. One or several globs on
`sharpjax.tree.path_names`. A tree of booleans like the parameters. For a population, whose arrays
have one more axis, take the members one by one."""

_FACTORS = ("U", "Vt")  # factors of a kernel, as in `sharpjax.nn.svd`


def in_scope(caller: str, params: Any, scope: Scope) -> list[bool]:
    """Whether each leaf is chosen, in the order of `jax.tree.leaves`.

    Args:
        caller: the name used in error messages.
        params: pytree of arrays.
        scope: see `Scope`.

    Raises:
        UserError: nothing is chosen, a glob matches no leaf, or a tree has another structure.

    >>> params = {"Dense_0": {"bias": 0.0, "kernel": 1.0}, "norm": {"scale": 1.0}}
    >>> in_scope("quantise_params", params, "kernels")
    [False, True, False]
    """
    names, leaves = tree.path_names(params), jax.tree.leaves(params)
    if isinstance(scope, str) and scope == "trainable":
        chosen = [True] * len(names)
    elif isinstance(scope, str) and scope == "kernels":
        chosen = [is_kernel(name) for name in names]
        if not any(chosen):
            chosen = [np.ndim(leaf) > 1 for leaf in leaves]
    elif _are_globs(scope):
        chosen = jax.tree.leaves(tree.select(params, scope))
    else:
        if jax.tree.structure(scope) != jax.tree.structure(params):
            tree.check_same_structure(caller, "scope", scope, params)
        chosen = [bool(leaf) for leaf in jax.tree.leaves(scope)]
    if not any(chosen):
        have = ", ".join(f"'{name}'" for name in names[:5]) or "no leaf"
        raise UserError(
            f"{caller}: scope={scope!r} chooses nothing of params, which has {have}; give globs on "
            "`sharpjax.tree.path_names(params)`, or 'trainable' for all."
        )
    return chosen


def is_kernel(name: str) -> bool:
    """Whether a leaf of this name is a kernel, or a factor U or Vt of one.

    >>> is_kernel("head/kernel"), is_kernel("head/kernel/U"), is_kernel("head/kernel/s")
    (True, True, False)
    """
    *above, last = name.split("/")
    return last == "kernel" or (last in _FACTORS and above[-1:] == ["kernel"])


def _are_globs(scope: Any) -> bool:
    if isinstance(scope, str):
        return True
    return isinstance(scope, list | tuple) and all(isinstance(glob, str) for glob in scope)
