"""Changes of the weights that do not change the function of a network.

Each function takes parameters (a dict of dicts, as in Flax) and returns new ones. Leaves are chosen
by one or several globs on `sharpjax.tree.path_names`. For a residual stream, name all layers that
write it and all that read it (`into=["stem/*", "Block_*/Conv_1/*"]`). The caller must know that the
conditions for an exact change hold (ReLU, evaluation mode). `apply_verified` checks the function on
data before it returns the new parameters, and `geometry.check_invariance` does so before it reports
which measures are unchanged.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax import loops
from sharpjax.errors import UserError, whole_number
from sharpjax.nn.named_leaves import (
    Chosen,
    Params,
    Where,
    change,
    check_axis,
    check_floats,
    mapped,
    named,
    numbers,
)


def rescale_units(params: Params, factors: ArrayLike, *, into: Where, out: Where) -> Params:
    """Multiplies the incoming weights of the units of a layer, and divides their outgoing weights.

    Exact if the units are positively homogeneous, such as ReLU, and all factors are positive.

    Args:
        params: pytree of arrays.
        factors: one for each unit, or one for all.
        into: the kernel and the bias of the layer, with units on the last axis: `"Dense_0/*"`.
        out: the kernel that reads the units, with units on the second-to-last axis, also for a
            convolution: `"Dense_1/kernel"`.

    Raises:
        UserError: no leaf has such a name, its axis has another length, or it is not of floats; a
            factor is 0, complex, or not finite; a weight would overflow, or become 0.

    >>> params = {"a": {"kernel": jnp.ones((3, 2))}, "b": {"kernel": jnp.ones((2, 4))}}
    >>> found = rescale_units(params, jnp.array([2.0, 4.0]), into="a/*", out="b/kernel")
    >>> found["a"]["kernel"][0].tolist(), found["b"]["kernel"][:, 0].tolist()
    ([2.0, 4.0], [0.5, 0.25])
    """
    caller = "rescale_units"
    factors = numbers(caller, "factors", factors)
    if not loops.is_traced(factors) and not jnp.all(factors):
        raise UserError(f"{caller}: factors must not be 0, got {factors.tolist()}.")
    params = change(params, Chosen(caller, "into", into), -1, factors, jnp.multiply)
    return change(params, Chosen(caller, "out", out), -2, factors, jnp.divide)


def permute_units(params: Params, order: ArrayLike, *, into: Where, out: Where) -> Params:
    """Permutes the units of a layer. Exact for any elementwise activation.

    Args:
        params, into, out: as in `rescale_units`. `into` also names layers of the same units between
            the two, such as normalisation: `"[CB]*_0/*"`.
        order: for each new position, the old position of its unit.

    Raises:
        UserError: as in `rescale_units`; or `order` is not a permutation, or is traced.

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

    for argument, where, axis in (("into", into, -1), ("out", out, -2)):
        chosen = Chosen("permute_units", argument, where)
        check_axis(params, chosen, axis, len(order))
        params = mapped(params, chosen, lambda x, axis=axis: jnp.take(x, order, axis=axis))
    return params


def scale_before_norm(
    params: Params,
    statistics: Params,
    factors: ArrayLike,
    *,
    into: Where,
    norm: str,
    epsilon: float = 1e-5,
) -> tuple[Params, Params]:
    """Multiplies the weights of a layer before BatchNorm, and adapts the running statistics.

    In evaluation mode this is exact for factors above 0: the variance becomes
    `a^2 (v + epsilon) - epsilon`, so that the division undoes the factor `a` to the last digit. In
    training mode it is exact up to the effect of `epsilon`.

    Args:
        params: pytree of arrays.
        statistics: `variables["batch_stats"]`.
        factors: one for each channel, or one for all.
        into: kernel and bias of the layer, with channels on the last axis.
        norm: the layer with the statistics `mean` and `var`: `"BatchNorm_0"`.
        epsilon: epsilon of that layer.

    Returns:
        The new parameters, and the new statistics.

    Raises:
        UserError: no leaf has such a name, its axis has another length, or it is not of floats; a
            factor is 0, negative, complex or not finite, or so small that a variance would be
            negative; `epsilon` is no finite number.

    >>> params, stats = {"c": {"kernel": jnp.ones((1, 2))}}, {"n": {"mean": jnp.ones(2)}}
    >>> stats["n"]["var"] = jnp.ones(2)
    >>> new, moved = scale_before_norm(params, stats, 2.0, into="c/*", norm="n")
    >>> new["c"]["kernel"].tolist(), moved["n"]["mean"].tolist(), moved["n"]["var"].tolist()
    ([[2.0, 2.0]], [2.0, 2.0], [4.000030040740967, 4.000030040740967])
    """
    caller = "scale_before_norm"
    factors = numbers(caller, "factors", factors)
    numbers(caller, "epsilon", epsilon)
    if not loops.is_traced(factors) and bool(jnp.any(factors <= 0)):
        raise UserError(
            f"{caller}: factors must be above 0, got {factors.tolist()}; a negative factor changes "
            "the sign of what the normalisation gives, and 0 removes it."
        )
    params = change(params, Chosen(caller, "into", into), -1, factors, jnp.multiply)
    mean, var = (Chosen(caller, "norm", f"{norm}/{name}") for name in ("mean", "var"))
    statistics = change(statistics, mean, -1, factors, jnp.multiply)

    def variance(v, a):
        found = jnp.square(a) * (v + epsilon) - epsilon
        if not loops.is_traced(found) and bool(jnp.any(found < 0)):
            raise UserError(
                f"{caller}: a factor of {float(jnp.min(jnp.abs(a))):.3g} makes a variance of "
                f"'{norm}' negative; the smallest that serves here is "
                f"{float(jnp.max(jnp.sqrt(epsilon / (v + epsilon)))):.3g}."
            )
        return found

    return params, change(statistics, var, -1, factors, variance)


def shift_outputs(params: Params, shift: ArrayLike, *, bias: Where) -> Params:
    """Adds the same number to all logits, through the bias of the last layer. Softmax ignores it.

    Args:
        params: pytree of arrays.
        shift: the number.
        bias: the bias of the last layer.

    Raises:
        UserError: no leaf has such a name, or it is not of floats; the shift is complex, or not
            finite.

    >>> shift_outputs({"bias": jnp.zeros(2)}, 3.0, bias="bias")
    {'bias': Array([3., 3.], dtype=float32)}
    """
    caller = "shift_outputs"
    by = numbers(caller, "shift", shift)
    return change(params, Chosen(caller, "bias", bias), -1, by, jnp.add)


def mix_heads(params: Params, matrix: ArrayLike, *, query: Where, key: Where) -> Params:
    """Multiplies queries by a matrix A and keys by its inverse transpose. `q'k` does not change.

    Args:
        params: pytree of arrays.
        matrix: A, [k, k] for all heads, or [heads, k, k].
        query, key: kernels and biases with the axes (heads, k) last, as in Flax's
            `MultiHeadDotProductAttention`: `"*/query/*"`.

    Raises:
        UserError: no leaf has such a name, its last axes have other lengths, or it is not of
            floats; the matrix has another shape, is singular within rounding, or is complex where a
            leaf is real.

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
    inverse = jnp.swapaxes(_inverse("mix_heads", matrix), -1, -2)
    for argument, where, by in (("query", query, matrix), ("key", key, inverse)):
        chosen = Chosen("mix_heads", argument, where)
        check_floats(params, chosen)
        for name, leaf in named(params, chosen):
            if leaf.ndim < 2 or leaf.shape[-1] != by.shape[-1]:
                raise UserError(
                    f"mix_heads: '{name}' has shape {leaf.shape}; its last axes must be (heads, "
                    f"{by.shape[-1]})."
                )
            if by.ndim == 3 and leaf.shape[-2] != len(by):
                raise UserError(f"mix_heads: '{name}' has {leaf.shape[-2]} heads, not {len(by)}.")
        each = "hkl" if by.ndim == 3 else "kl"
        params = mapped(
            params,
            chosen,
            lambda x, by=by, each=each: jnp.einsum(
                f"...hk,{each}->...hl", x, by, precision="highest"
            ),
        )
    return params


def mix_units(params: Params, matrix: ArrayLike, *, into: Where, out: Where) -> Params:
    """Multiplies the output of a layer by an invertible matrix A, and the input of the next layer
    by its inverse.

    Exact if there is nothing but linear maps between the two: layers without activation, the
    residual stream of a network without normalisation, the factors of a product. An orthogonal A
    keeps all singular values.

    Args:
        params, into, out: as in `rescale_units`.
        matrix: A, [units, units]: the kernel [fan_in, units] becomes kernel A.

    Raises:
        UserError: no leaf has such a name, its axis has another length, or it is not of floats; the
            matrix is not square, is singular within rounding, or is complex where a leaf is real.

    >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0], [4.0]])}
    >>> found = mix_units(params, [[0.0, 1.0], [-1.0, 0.0]], into="a", out="b")
    >>> found["a"].tolist(), found["b"].ravel().tolist()
    ([[-2.0, 1.0]], [-4.0, 3.0])
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UserError(f"mix_units: the matrix must be [units, units], got shape {matrix.shape}.")
    inverse = _inverse("mix_units", matrix)
    for argument, where, axis, form, by in (
        ("into", into, -1, "...i,ij->...j", matrix),
        ("out", out, -2, "...io,ji->...jo", inverse),
    ):
        chosen = Chosen("mix_units", argument, where)
        check_axis(params, chosen, axis, len(matrix))
        check_floats(params, chosen)
        params = mapped(
            params,
            chosen,
            lambda x, form=form, by=by: jnp.einsum(form, x, by, precision="highest"),
        )
    return params


def pad_units(
    params: Params, number: int, *, into: Where, out: Where, incoming: float = 0.0
) -> Params:
    """Adds units with outgoing weights 0 to a layer: a wider network with the same function.

    Exact for any activation that is finite at the new units. The model must be as wide as the new
    parameters.

    Args:
        params, into, out: as in `rescale_units`. There must be no BatchNorm between them.
        number: number of new units.
        incoming: value of all their incoming weights and biases; 0: units that are always off.

    Raises:
        UserError: no leaf has such a name, or too few axes; `number` is no whole number from 1 on;
            `incoming` is not one real and finite number, or is not 0 where a leaf is not of floats.

    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}
    >>> found = pad_units(params, 5, into="a", out="b")
    >>> found["a"].shape, found["b"].shape
    ((3, 7), (7, 4))
    """
    caller = "pad_units"
    number = whole_number(caller, "number", number)
    value = numbers(caller, "incoming", incoming)
    if value.ndim:
        raise UserError(f"{caller}: incoming must be one number, got shape {value.shape}.")
    for argument, where, axis, new in (("into", into, -1, incoming), ("out", out, -2, 0.0)):
        chosen = Chosen(caller, argument, where)
        check_axis(params, chosen, axis, None)
        if loops.is_traced(new) or new != 0:
            check_floats(params, chosen)

        def padded(x, axis=axis, new=new):
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, number)
            return jnp.pad(x, widths, constant_values=new)

        params = mapped(params, chosen, padded)
    return params


def _inverse(caller: str, matrix: jax.Array) -> jax.Array:
    """Inverses of one or several matrices; outside of a trace singular ones are refused.

    If A is singular, ||A X - 1||_F is at least 1 for every X. If not, it is about the condition
    number of A times the rounding error.
    """
    inverse = jnp.linalg.inv(matrix)
    residual = jnp.matmul(matrix, inverse, precision="highest") - jnp.eye(matrix.shape[-1])
    off = jnp.linalg.norm(residual, axis=(-2, -1))
    if not loops.is_traced(off) and not jnp.all(off < 0.1):
        raise UserError(
            f"{caller}: the matrix has no inverse in {inverse.dtype}: A inv(A) is not the identity "
            "within 0.1; give a matrix of full rank."
        )
    return inverse
