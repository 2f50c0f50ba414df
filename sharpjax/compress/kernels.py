"""Which axes of a model's parameters are output channels.

Kernels of Flax have their output channels last: [in, out] of a dense layer, [height, width, in,
out] of a convolution. Attention has several output axes: [in, heads, dim] for queries, keys and
values, and [heads, dim, out] after it. They are told apart by the bias beside the kernel, which has
the shape of the output, and where there is none by the names query, key and value.
"""

from typing import Any

import jax

from sharpjax import tree

_PROJECTIONS = ("query", "key", "value")


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
