"""The loss and its gradient, as sharpness measures evaluate them: at `highest` matmul precision,
with scalars in float32 at least, and in microbatches on request.

For use inside a step or a jit; the caller has checked the arguments and widened the parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import loops
from sharpjax.geometry.loss.composed import chunk_weights

Params = Any


def value(loss: Any, params: Params, batch: Any, microbatch_size: int | None) -> jax.Array:
    """`L(w)`."""
    return _mean(_value, loss, params, batch, microbatch_size)


def value_and_grad(
    loss: Any, params: Params, batch: Any, microbatch_size: int | None
) -> tuple[jax.Array, Params]:
    """`L(w)` and its gradient. Memory: the activations of one microbatch, and two gradients."""
    return _mean(_value_and_grad, loss, params, batch, microbatch_size)


def scalar_type(params: Params) -> Any:
    """The dtype of sums over all parameters: float64 if any leaf is float64, else float32.

    >>> scalar_type({"a": jnp.ones(2, jnp.bfloat16)}).__name__
    'float32'
    """
    wide = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
    return jnp.float64 if wide else jnp.float32


def select(condition: jax.Array, if_true: Params, if_false: Params) -> Params:
    """`jnp.where` over trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def _mean(fn, loss, params, batch, microbatch_size):
    if microbatch_size is None:
        return fn((loss, params), batch)
    chunks = loops.split_chunks("sharpness", batch, microbatch_size)
    weights = chunk_weights(loss, chunks)
    return loops.mean_over_chunks(fn, (loss, params), chunks, weights)


def _value(operands, batch):
    loss, params = operands
    with jax.default_matmul_precision("highest"):
        return loss(params, batch).astype(scalar_type(params))


def _value_and_grad(operands, batch):
    loss, params = operands
    with jax.default_matmul_precision("highest"):
        found, gradient = jax.value_and_grad(loss)(params, batch)
    return found.astype(scalar_type(params)), gradient
