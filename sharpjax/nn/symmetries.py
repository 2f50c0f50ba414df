"""Changes of the weights that leave the function of a network as it is.

Each takes parameters (a dict of dicts, as of Flax) and returns new ones. Leaves are named by globs
on `sharpjax.tree.path_names`. What makes the change exact (ReLU, evaluation mode) is the caller's
to know: `sharpjax.geometry.check_invariance` tries the function before it believes it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax import loops, tree
from sharpjax.errors import UserError

Params = Any


def rescale_units(params: Params, factors: ArrayLike, *, into: str, out: str) -> Params:
    """Multiplies what goes into the units of a layer, and divides what comes out of them.

    Exact where the units are positively homogeneous, such as ReLU, and all factors positive.

    Args:
        params: pytree of arrays.
        factors: one for each unit, or one for all.
        into: the kernel and the bias of the layer, units on the last axis: `"Dense_0/*"`.
        out: the kernel that reads the units, on the axis before the last: `"Dense_1/kernel"`, of a
            convolution, too.

    Raises:
        UserError: no leaf has such a name, or its axis has another length; a factor is 0.

    >>> params = {"a": {"kernel": jnp.ones((3, 2))}, "b": {"kernel": jnp.ones((2, 4))}}
    >>> found = rescale_units(params, jnp.array([2.0, 4.0]), into="a/*", out="b/kernel")
    >>> found["a"]["kernel"][0].tolist(), found["b"]["kernel"][:, 0].tolist()
    ([2.0, 4.0], [0.5, 0.25])
    """
    caller, factors = "rescale_units", jnp.asarray(factors)
    if not loops.is_traced(factors) and not jnp.all(factors):
        raise UserError(f"{caller}: factors must not be 0, got {factors.tolist()}.")
    params = _change(caller, params, into, -1, factors, jnp.multiply)
    return _change(caller, params, out, -2, factors, jnp.divide)


def permute_units(params: Params, order: ArrayLike, *, into: str, out: str) -> Params:
    """The units of a layer in another order. Exact for any activation of single units.

    Args:
        params, into, out: as in `rescale_units`. What belongs to the units between the two
            (normalisation) is named in `into`: `"[CB]*_0/*"`.
        order: the old place of each unit.

    Raises:
        UserError: as in `rescale_units`; or `order` is no permutation.

    >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0], [4.0]])}
    >>> permute_units(params, [1, 0], into="a", out="b")
    {'a': Array([[2., 1.]], dtype=float32), 'b': Array([[4.],
           [3.]], dtype=float32)}
    """
    if loops.is_traced(order):
        raise UserError("permute_units: order must be known, and not an argument of a jit.")
    order = np.asarray(order)
    whole = order.ndim == 1 and order.dtype.kind in "iu"
    if not whole or sorted(order.tolist()) != list(range(len(order))):
        raise UserError(
            f"permute_units: order must be a permutation of whole numbers, got {order.tolist()}."
        )

    for where, axis in ((into, -1), (out, -2)):
        _check("permute_units", params, where, axis, len(order))
        params = _map(params, where, lambda x, axis=axis: jnp.take(x, order, axis=axis))
    return params


def scale_before_norm(
    params: Params,
    statistics: Params,
    factors: ArrayLike,
    *,
    into: str,
    norm: str,
    epsilon: float = 1e-5,
) -> tuple[Params, Params]:
    """Multiplies the weights of a layer before BatchNorm, and its running statistics with them.

    In evaluation mode exact for factors that are not zero: the variance becomes `a^2 (v + epsilon)
    - epsilon`, so that the division undoes the factor to the last digit. In training mode it is
    exact but for `epsilon`.

    Args:
        params: pytree of arrays.
        statistics: `variables["batch_stats"]`.
        factors: one for each channel, or one for all.
        into: kernel and bias of the layer, channels on the last axis.
        norm: the layer of the statistics, its `mean` and `var`: `"BatchNorm_0"`.
        epsilon: of that layer.

    Returns:
        The new parameters, and the new statistics.

    Raises:
        UserError: as in `rescale_units`; or a variance would be negative, since a factor is so
            small that `epsilon` is most of the variance.

    >>> params, stats = {"c": {"kernel": jnp.ones((1, 2))}}, {"n": {"mean": jnp.ones(2)}}
    >>> stats["n"]["var"] = jnp.ones(2)
    >>> new, moved = scale_before_norm(params, stats, 2.0, into="c/*", norm="n")
    >>> new["c"]["kernel"].tolist(), moved["n"]["mean"].tolist(), moved["n"]["var"].tolist()
    ([[2.0, 2.0]], [2.0, 2.0], [4.000030040740967, 4.000030040740967])
    """
    caller, factors = "scale_before_norm", jnp.asarray(factors)
    params = _change(caller, params, into, -1, factors, jnp.multiply)
    statistics = _change(caller, statistics, f"{norm}/mean", -1, factors, jnp.multiply)

    def variance(v, a):
        found = jnp.square(a) * (v + epsilon) - epsilon
        if not loops.is_traced(found) and bool(jnp.any(found < 0)):
            raise UserError(
                f"{caller}: a factor of {float(jnp.min(jnp.abs(a))):.3g} makes a variance of "
                f"'{norm}' negative; the smallest that serves here is "
                f"{float(jnp.max(jnp.sqrt(epsilon / (v + epsilon)))):.3g}."
            )
        return found

    return params, _change(caller, statistics, f"{norm}/var", -1, factors, variance)


def shift_outputs(params: Params, shift: ArrayLike, *, bias: str) -> Params:
    """Adds the same number to all outputs, through the bias of the last layer: softmax drops it.

    Raises:
        UserError: no leaf has such a name.

    >>> shift_outputs({"bias": jnp.zeros(2)}, 3.0, bias="bias")
    {'bias': Array([3., 3.], dtype=float32)}
    """
    return _change("shift_outputs", params, bias, -1, jnp.asarray(shift), jnp.add)


def mix_heads(params: Params, matrix: ArrayLike, *, query: str, key: str) -> Params:
    """Queries times a matrix A, and keys times its inverse transpose: `q'k` stays as it is.

    Args:
        params: pytree of arrays.
        matrix: A, [k, k] for all heads, or [heads, k, k].
        query, key: kernels and biases with the axes (heads, k) last, as of Flax's
            `MultiHeadDotProductAttention`: `"*/query/*"`.

    Raises:
        UserError: no leaf has such a name, or its last axes have other lengths; the matrix is no
            such matrix, or has no inverse.

    >>> params = {"query": jnp.ones((3, 1, 2)), "key": jnp.ones((3, 1, 2))}
    >>> found = mix_heads(params, 2 * jnp.eye(2), query="query", key="key")
    >>> found["query"][0, 0].tolist(), found["key"][0, 0].tolist()
    ([2.0, 2.0], [0.5, 0.5])
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2]:
        raise UserError(
            f"mix_heads: the matrix must be [k, k] or [heads, k, k], got shape {matrix.shape}."
        )
    inverse = jnp.swapaxes(jnp.linalg.inv(matrix), -1, -2)
    if not loops.is_traced(inverse) and not jnp.all(jnp.isfinite(inverse)):
        raise UserError("mix_heads: the matrix has no inverse.")
    for where, by in ((query, matrix), (key, inverse)):
        for name, leaf in _named(params, where):
            if leaf.ndim < 2 or leaf.shape[-1] != by.shape[-1]:
                raise UserError(
                    f"mix_heads: '{name}' has shape {leaf.shape}; its last axes must be (heads, "
                    f"{by.shape[-1]})."
                )
            if by.ndim == 3 and leaf.shape[-2] != len(by):
                raise UserError(f"mix_heads: '{name}' has {leaf.shape[-2]} heads, not {len(by)}.")
        each = "hkl" if by.ndim == 3 else "kl"
        params = _map(
            params,
            where,
            lambda x, by=by, each=each: jnp.einsum(
                f"...hk,{each}->...hl", x, by, precision="highest"
            ),
        )
    return params


def _change(caller, params, where, axis, values, fn):
    """`fn(leaf, values)` of the leaves, with the values along one of their axes."""
    if values.ndim > 1:
        raise UserError(f"{caller}: give one number, or a list of them, not shape {values.shape}.")
    _check(caller, params, where, axis, values.shape[0] if values.ndim else None)
    along = values.reshape(-1, *(1,) * (-axis - 1)) if values.ndim else values
    return _map(params, where, lambda leaf: fn(leaf, along))


def _check(caller, params, where, axis, length):
    for name, leaf in _named(params, where):
        if leaf.ndim < -axis or (length is not None and leaf.shape[axis] != length):
            raise UserError(
                f"{caller}: '{name}' has shape {leaf.shape}, and axis {axis} must have length "
                f"{length}."
            )


def _named(params, where):
    chosen, _ = tree.partition(params, tree.select(params, where))
    return zip(tree.path_names(chosen), jax.tree.leaves(chosen), strict=True)


def _map(params, where, fn):
    """`fn(leaf)` of the leaves that are named, in the type of each."""
    chosen, rest = tree.partition(params, tree.select(params, where))
    return tree.combine(jax.tree.map(lambda x: fn(x).astype(x.dtype), chosen), rest)
