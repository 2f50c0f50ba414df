"""The weights of a model as integers of a few bits; everything else is unchanged.

    held = quantise_params(params, 8)             # kernels, a step for each output channel
    params_8 = dequantise_params(held)            # for any use of params: evaluation, geometry
    small = fake_quantise_params(params, 4)       # both, with the straight-through derivative

Only weights of dense, convolutional and attention layers are quantised; their inputs stay in
floating point (for those see `activations`). The defaults at 8 bits are those of TFLite's dynamic
range quantisation, which "Neural Network Compression: The Functional Perspective" calls "8-bit":
integers in [-127, 127] and a step of absmax / 127 for each output channel. `min_numbers=1024`
leaves small kernels as they are, as TFLite does, such as the first convolution of LeNet. The
"16-bit" of that paper is `cast_params(params, "float16")`. The curvature of a quantised model is
that of its dequantised parameters, which every function of `geometry` accepts.

Folding BatchNorm into the convolution before it (arXiv 1712.05877) changes nothing here: it
multiplies each output channel by a number, and its step by the same number.
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
    """The tree with a `Quantised` in place of each leaf in scope; other leaves are unchanged.

    Args:
        params: pytree of floats; for a population, `jax.vmap` this function.
        bits: b, from 2 to 8.
        scope: 'kernels' (without biases, scales of norms, embeddings and tokens), 'trainable'
            (every leaf), or globs on names; see `scope.in_scope`.
        per_channel: a step for each output channel, else one for each leaf. Leaves of fewer than
            two axes always have one.
        min_numbers: leaves with fewer numbers are also unchanged; TFLite uses 1024.
        symmetric, bound, rounding, key: as in `quantise`; the key is split over leaves.

    Raises:
        UserError: as `quantise`, with the name of the leaf; nothing is in scope, or nothing in
            scope has `min_numbers` numbers.

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
    """The tree with floats of the original dtype in place of each `Quantised`; for a population,
    `jax.vmap` this function."""
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

    Args and errors: as in `quantise_params`.

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
