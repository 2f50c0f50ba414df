"""Softmax cross-entropy of rows of logits, with derivatives that store only probabilities."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from sharpjax import tree
from sharpjax.errors import TWO_CLASSES, UserError
from sharpjax.losses.linear_logits import BLOCK, LinearLogits, map_rows


def cross_entropy(
    logits: jax.Array | LinearLogits, labels: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """-log softmax(logits)[label] of each row, in at least float32.

    In the logits, the gradient of a row is `p - y`, and the product of its Hessian with u is
    `p * u - p (p . u)`, with p its probabilities and y the label as a unit vector. For 2^24 or more
    logits (64 MiB) the derivatives are computed in this form, and a linearised Gauss-Newton product
    stores p and no other array of [tokens, classes]. For fewer logits optax's function is used,
    which stores three. For `LinearLogits` none is stored.

    Args:
        logits: [..., K], an array or `LinearLogits`, K >= 2.
        labels: integers [...]. A label that is not a class makes its loss and all derivatives NaN:
            one that is at least K or below 0 (such as -1 and -100, which mean "none" elsewhere).
        where: booleans [...]. Rows where it is False have a loss of 0, with derivatives of 0 in the
            logits, whatever their logits and label. None for all rows.

    Returns:
        An array [...].

    Raises:
        UserError: shapes do not fit, the logits have one class, or the labels are not integers.

    >>> logits, labels = jnp.zeros((2, 3, 4)), jnp.array([[0, 1, 2], [3, -1, -1]])
    >>> losses = cross_entropy(logits, labels, where=labels >= 0)
    >>> print(jnp.sum(losses) / jnp.sum(labels >= 0))  # the mean over four tokens: log 4
    1.3862944
    """
    caller = "losses.cross_entropy"
    shape = _shape(caller, logits)
    for name, given in (("labels", labels), ("where", where)):
        if given is not None and jnp.shape(given) != shape[:-1]:
            raise UserError(
                f"{caller}: {name} must have the shape of the logits without their last axis, "
                f"{shape[:-1]}; got {jnp.shape(given)}."
            )
    if where is not None:
        counts = jnp.asarray(where, bool)
        labels = jnp.where(counts, jnp.asarray(labels), 0)
        row = jnp.expand_dims(counts, -1)
        if isinstance(logits, LinearLogits):
            features = jnp.where(row, logits.features, 0)
            logits = dataclasses.replace(logits, features=features)
        else:
            logits = jnp.where(row, logits, 0)
        return jnp.where(counts, _cross_entropies(caller, logits, labels), 0)
    return _cross_entropies(caller, logits, labels)


def cross_entropies(caller: str, logits: jax.Array | LinearLogits, labels: jax.Array) -> jax.Array:
    """`cross_entropy` of [N, K] logits and N labels.

    Args:
        caller: for errors.

    Raises:
        UserError: the logits have another rank, or only one class; the labels are not N integers.

    >>> cross_entropies("f", jnp.zeros((3, 4)), jnp.array([3, 4, -1])).tolist()
    [1.3862943649291992, nan, nan]
    """
    shape = _shape(caller, logits)
    if len(shape) != 2:
        name = "features" if isinstance(logits, LinearLogits) else "logits"
        raise UserError(
            f"{caller}: logits must be [N, K], got {shape}. Models of sequences reshape "
            f"them: `{name}.reshape(-1, {name}.shape[-1])`."
        )
    check_count(caller, shape, labels)
    return _cross_entropies(caller, logits, labels)


def check_count(caller: str, shape: tuple[int, ...], labels: jax.Array) -> None:
    """Checks that there is one label for each row of [N, K] logits.

    Raises:
        UserError: there is not. The message names `caller`.
    """
    if jnp.shape(labels) != shape[:-1]:
        raise UserError(
            f"{caller}: labels must be one for each of the {shape[0]} rows of logits; got labels "
            f"of shape {jnp.shape(labels)}."
        )


def _shape(caller, logits) -> tuple[int, ...]:
    if isinstance(logits, LinearLogits):
        logits.check(caller)
        shape = (*logits.features.shape[:-1], logits.num_classes)
    else:
        shape = jnp.shape(logits)
    if not shape:
        raise UserError(f"{caller}: logits must be [..., K], got one number.")
    if len(shape) > 1 and shape[-1] < 2:
        raise UserError(
            f"{caller}: logits of shape {shape} are of one class, whose loss is 0 whatever "
            f"they are. {TWO_CLASSES}"
        )
    return shape


def _cross_entropies(caller, logits, labels):
    num_classes, labels = _shape(caller, logits)[-1], jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(f"{caller}: labels must be integers, got {labels.dtype}.")
    labels = tree.widen_labels(labels)
    is_class = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(is_class, labels, 0)
    if isinstance(logits, LinearLogits):
        columns = logits.kernel.shape[1]
        losses = map_rows(_row_losses, caller, logits, labels % columns)
    elif math.prod(jnp.shape(logits)) < BLOCK:
        losses = optax.softmax_cross_entropy_with_integer_labels(tree.widen(logits), labels)
    else:
        losses = _row_losses(tree.widen(logits), labels)
    return losses * jnp.where(is_class, 1, jnp.nan).astype(losses.dtype)


# For large arrays. Each function has its derivative in closed form, so that it is known what is
# stored for products: the probabilities, and one number for each row.


@jax.custom_jvp
def _row_losses(logits, labels):
    top, _, total = _exponentials(logits)
    chosen = jnp.take_along_axis(logits, jnp.expand_dims(labels, -1), axis=-1)
    return jnp.squeeze(jnp.log(total) + top - chosen, -1)


@_row_losses.defjvp
def _along_losses(primals, tangents):
    logits, labels = primals
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    classes = jnp.expand_dims(classes, tuple(range(labels.ndim)))
    chosen = (classes == jnp.expand_dims(labels, -1)).astype(logits.dtype)
    return _row_losses(logits, labels), _row_dots(_softmax(logits) - chosen, tangents[0])


@jax.custom_jvp
def _softmax(logits):
    _, powers, total = _exponentials(logits)
    return powers / total


@_softmax.defjvp
def _along_softmax(primals, tangents):
    p, (u,) = _softmax(*primals), tangents
    return p, p * (u - jnp.expand_dims(_row_dots(p, u), -1))


def _exponentials(logits):
    """The largest logit m of each row, exp(logits - m), and their sums."""
    top = jnp.max(logits, -1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0)
    powers = jnp.exp(logits - top)
    return top, powers, jnp.sum(powers, -1, keepdims=True)


def _row_dots(x, y):
    # A product with batched axes, whose transpose multiplies by a number for each row. The
    # transpose of a sum would broadcast this number first, and so store another array as large as
    # the logits.
    axes = tuple(range(x.ndim - 1))
    numbers = (((x.ndim - 1,), (x.ndim - 1,)), (axes, axes))
    return jax.lax.dot_general(x, y, numbers, precision=jax.lax.Precision.HIGHEST)
