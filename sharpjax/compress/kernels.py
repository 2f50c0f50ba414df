"""Which leaves of a model's parameters are compressed, and which of their axes are output channels.

Kernels of Flax have their output channels last: [in, out] of a dense layer, [height, width, in,
out] of a convolution. Attention has several output axes: [in, heads, dim] for queries, keys and
values, and [heads, dim, out] after it. They are told apart by the bias beside the kernel, which has
the shape of the output, and where there is none by the names query, key and value.
"""

from collections.abc import Sequence
from typing import Any

import jax

from sharpjax import tree
from sharpjax.errors import UserError

Scope = str | Sequence[str]
_FACTORS = ("U", "Vt")  # of a kernel held as in `sharpjax.nn.svd`
_PROJECTIONS = ("query", "key", "value")


def in_scope(caller: str, params: Any, scope: Scope) -> list[bool]:
    """Whether each leaf is chosen, in the order of `jax.tree.leaves`.

    Args:
        caller: who is named in errors.
        params: pytree of arrays.
        scope: 'kernels', the leaves that are named `kernel` (of dense, convolutional and attention
            layers; of factors, U and Vt) and no biases, scales of norms, embeddings or tokens;
            'trainable', every leaf; else globs on `sharpjax.tree.path_names`.

    Raises:
        UserError: nothing is chosen, or a glob matches no leaf.

    >>> params = {"Dense_0": {"bias": 0.0, "kernel": 1.0}, "norm": {"scale": 1.0}}
    >>> in_scope("quantise_params", params, "kernels")
    [False, True, False]
    """
    names = tree.path_names(params)
    if scope == "trainable":
        chosen = [True] * len(names)
    elif scope == "kernels":
        chosen = [is_kernel(name) for name in names]
    else:
        chosen = jax.tree.leaves(tree.select(params, scope))
    if not any(chosen):
        have = ", ".join(f"'{name}'" for name in names[:5]) or "no leaf"
        raise UserError(
            f"{caller}: scope={scope!r} chooses nothing of params, which has {have}; give globs on "
            "`sharpjax.tree.path_names(params)`, or 'trainable' for all."
        )
    return chosen


def is_kernel(name: str) -> bool:
    """Whether a leaf of this name is a kernel, or one of its two matrices of factors.

    >>> is_kernel("head/kernel"), is_kernel("head/kernel/U"), is_kernel("head/kernel/s")
    (True, True, False)
    """
    *above, last = name.split("/")
    return last == "kernel" or (last in _FACTORS and above[-1:] == ["kernel"])


def output_axes(params: Any) -> list[tuple[int, ...]]:
    """The axes of each leaf that count output channels, in the order of `jax.tree.leaves`.

    None, (), for a leaf of less than two axes: a step for each number of a bias would hold the
    numbers themselves.

    >>> import jax.numpy as jnp
    >>> heads = {"query": {"kernel": jnp.ones((8, 2, 4))}, "out": {"kernel": jnp.ones((2, 4, 8))}}
    >>> output_axes(heads)  # out, query
    [(2,), (1, 2)]
    """
    leaves = jax.tree.leaves(params)
    names = tree.path_names(params)
    shapes = {name: leaf.shape for name, leaf in zip(names, leaves, strict=True)}
    return [_output_axes(name, shapes) for name in names]


def _output_axes(name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    shape = shapes[name]
    if len(shape) < 2:
        return ()
    *above, last = name.split("/")
    outputs = 1
    if last == "kernel":
        bias = shapes.get("/".join([*above, "bias"]))
        if bias and len(bias) < len(shape) and shape[-len(bias) :] == bias:
            outputs = len(bias)
        elif bias is None and above[-1:] and above[-1] in _PROJECTIONS:
            outputs = len(shape) - 1
    return tuple(range(len(shape) - outputs, len(shape)))
