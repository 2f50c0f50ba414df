"""Which axes of a model's parameters are output channels.

Flax kernels have their output channels last: [in, out] in a dense layer, [height, width, in, out]
in a convolution. In attention, queries, keys and values have two output axes, [in, heads, dim], and
the projection after it has one, [heads, dim, out]. The bias beside the kernel, which has the shape
of the output, tells the cases apart. Without a bias, the names query, key and value decide.
"""

from typing import Any

import jax

from sharpjax import tree

_PROJECTIONS = ("query", "key", "value")


def output_axes(params: Any) -> list[tuple[int, ...]]:
    """The output-channel axes of each leaf, in the order of `jax.tree.leaves`.

    A leaf of fewer than two axes has none, (): with a step for each number of a bias, the steps
    would store the numbers themselves.

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
