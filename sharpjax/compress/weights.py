"""The weights of a model as integers of a few bits, all else as it was.

    held = quantise_params(params, 8)             # kernels, a step for each output channel
    params_8 = dequantise_params(held)            # to any use of params: evaluation, geometry
    small = fake_quantise_params(params, 4)       # both, with the straight-through derivative

Weights only, of dense, convolutional and attention layers; what they are multiplied by stays in
floating point (for that see `activations`). The defaults at 8 bits are those of TFLite's dynamic
range quantisation, "8-bit" in "Neural Network Compression: The Functional Perspective": integers in
[-127, 127] and absmax / 127 for each output channel. With `min_numbers=1024` small kernels stay as
they are there, such as the first convolution of LeNet. Its "16-bit" is `cast_params(params,
"float16")`. The curvature of a quantised model is that of its dequantised parameters, which any
function of `geometry` takes.

Folding BatchNorm into the convolution before it (arXiv 1712.05877) changes nothing here: it
multiplies output channels by numbers, and so their steps.
"""

from typing import Any

import jax

from sharpjax import tree
from sharpjax.compress import blocks, kernels
from sharpjax.compress import integers as arrays
from sharpjax.compress.grid import Bound, Rounding
from sharpjax.compress.integers import Quantised
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError, whole_number


def quantise_params(
    params: Any,
    bits: int,
    *,
    scope: Scope = "kernels",
    per_channel: bool = True,
    min_numbers: int = 0,
    symmetric: bool = True,
    bound: Bound = "integer",
    rounding: Rounding = "nearest",
    key: jax.Array | None = None,
) -> Any:
    """The tree with a `Quantised` in place of each leaf in scope; the others are left alone.

    Args:
        params: pytree of floats; for a population, `jax.vmap` this function.
        bits: b, from 2 to 8.
        scope: 'kernels' (biases, scales of norms, embeddings and tokens are left), 'trainable'
            (every leaf), or globs on names; see `scope.in_scope`.
        per_channel: a step for each output channel, else one for each leaf. Leaves of less than two
            axes have one anyway.
        min_numbers: leaves of fewer numbers are left alone, too; TFLite leaves those under 1024.
        symmetric, bound, rounding, key: as of `quantise`; each leaf has its part of the key.

    Raises:
        UserError: as `quantise`, by the name of the leaf; nothing is in scope, or nothing in scope
            has so many numbers.

    >>> import jax.numpy as jnp
    >>> params = {"Dense_0": {"kernel": jnp.array([[0.5, 3.0], [1.0, -3.0]]), "bias": jnp.ones(2)}}
    >>> held = quantise_params(params, 8)["Dense_0"]
    >>> held["kernel"].values.tolist(), held["bias"].tolist()
    ([[64, 127], [127, -127]], [1.0, 1.0])
    """
    return _each(
        "quantise_params",
        arrays.as_integers,
        params,
        bits,
        scope,
        per_channel,
        min_numbers,
        {"symmetric": symmetric, "bound": bound, "rounding": rounding},
        key,
    )


def dequantise_params(held: Any) -> Any:
    """The tree with floats in place of every `Quantised`, in their old types; for populations by
    `jax.vmap`."""
    return jax.tree.map(
        lambda node: arrays.dequantise(node) if is_quantised(node) else node,
        held,
        is_leaf=is_quantised,
    )


def fake_quantise_params(
    params: Any,
    bits: int,
    *,
    scope: Scope = "kernels",
    per_channel: bool = True,
    min_numbers: int = 0,
    symmetric: bool = True,
    bound: Bound = "integer",
    rounding: Rounding = "nearest",
    key: jax.Array | None = None,
) -> Any:
    """`dequantise_params(quantise_params(..))`, with the derivative of `fake_quantise`.

    Args and errors: as of `quantise_params`.

    >>> import jax.numpy as jnp
    >>> fake_quantise_params({"kernel": jnp.array([0.2, 0.9, -1.0])}, 2)["kernel"].tolist()
    [0.0, 1.0, -1.0]
    """
    return _each(
        "fake_quantise_params",
        arrays.as_rounded,
        params,
        bits,
        scope,
        per_channel,
        min_numbers,
        {"symmetric": symmetric, "bound": bound, "rounding": rounding},
        key,
    )


def is_quantised(node: Any) -> bool:
    """Whether a node of a tree is an array held as integers."""
    return isinstance(node, Quantised)


def _each(caller, fn, params, bits, scope, per_channel, min_numbers, options, key):
    leaves, structure = jax.tree.flatten(params)
    asked = in_scope(caller, params, scope)
    least = whole_number(caller, "min_numbers", min_numbers, least=0)
    chosen = [hit and leaf.size >= least for hit, leaf in zip(asked, leaves, strict=True)]
    if not any(chosen):
        most = max(leaf.size for hit, leaf in zip(asked, leaves, strict=True) if hit)
        raise UserError(
            f"{caller}: min_numbers={least}, but the largest leaf in scope has {most}; give less."
        )
    names, axes = tree.path_names(params), kernels.output_axes(params)
    keys = [None] * len(leaves) if key is None else list(jax.random.split(key, len(leaves)))
    new = list(leaves)
    for i, leaf in enumerate(leaves):
        if chosen[i]:
            argument = f"'{names[i]}'"
            x, bits = arrays.check(caller, leaf, bits, **options, key=key, argument=argument)
            sizes = blocks.shape_of_blocks(caller, x.shape, axes[i] if per_channel else None)
            new[i] = fn(x, keys[i], bits, options["symmetric"], sizes, options["bound"])
    return jax.tree.unflatten(structure, new)
