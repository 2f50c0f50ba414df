"""The clean pass of m-SAM, chunk by chunk."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import loops
from sharpjax.errors import UserError

Params = Any


def sam_value_and_grad(
    loss: Callable[[Params, Any], tuple[jax.Array, Any]], *, m: int
) -> Callable[[Params, Any], tuple[tuple[jax.Array, Any], Params, Params]]:
    """The clean pass of m-SAM: `jax.value_and_grad(loss, has_aux=True)`, chunk by chunk.

    Each chunk of `m` neighbouring examples is a batch of its own (BatchNorm normalises within it).
    Value, gradients and `aux` are means over chunks, computed in at least float32 and returned in
    their own dtypes. Chunks have equal size, so the means are those of the batch if the loss is a
    mean over examples. Entries of `aux` that are not floating (a counter, a flag, a key) are those
    of the first chunk. This is right if they do not depend on the examples; give a count of
    examples as a floating mean.

    Cost: one pass over the batch. Memory: the activations of one chunk, and every chunk's gradient:
    (batch size / m) times the parameters (44.7 MB each for a ResNet-18 in float32).

    Args:
        loss: `loss(params, batch) -> (value, aux)`, with value the mean over the batch.
        m: examples of a chunk, a divisor of the batch.

    Returns:
        A function of (params, batch) that returns ((value, aux), grads, chunk_grads). The leaves of
        `chunk_grads` are `[batch size / m, *leaf]`, as `sam(..., m=m).update` takes them.

    Raises:
        UserError: `m` is not a positive integer, or does not divide the batch.

    >>> import jax.numpy as jnp
    >>> def loss(w, x):
    ...     return jnp.mean(x * w), {"largest": jnp.max(x)}
    >>> (value, aux), grads, chunks = sam_value_and_grad(loss, m=2)(1.0, jnp.arange(4.0))
    >>> float(value), float(aux["largest"]), float(grads), chunks.tolist()
    (1.5, 2.0, 1.5, [0.5, 2.5])
    """
    check_size("optim.sam_value_and_grad", m)
    grad_fn = jax.value_and_grad(loss, has_aux=True)

    def value_and_grad(params: Params, batch: Any) -> tuple[tuple[jax.Array, Any], Params, Params]:
        chunks = loops.split_chunks("optim.sam_value_and_grad", batch, m)
        clean, chunk_grads = loops.map_over_chunks(grad_fn, params, chunks)
        value, aux = jax.tree.map(_mean_or_first, clean)
        return (value, aux), jax.tree.map(_mean_or_first, chunk_grads), chunk_grads

    return value_and_grad


def _mean_or_first(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x[0]
    return jnp.mean(x, axis=0)  # jax accumulates it in at least float32


def check_size(caller: str, m: Any) -> None:
    """Raises UserError if `m` is not a positive integer."""
    if isinstance(m, bool) or not isinstance(m, numbers.Integral) or m < 1:
        raise UserError(
            f"{caller}: m must be a positive integer, the examples of a chunk, got {m}. "
            f"optax.inject_hyperparams leaves it one with static_args=optim.SAM_STATIC_ARGS."
        )
