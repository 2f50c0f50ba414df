"""The order of examples, a function of key and epoch alone: there is no state to save or resume."""

import jax
import jax.numpy as jnp

from sharpjax.errors import UserError


def epoch_order(key: jax.Array, epoch: jax.typing.ArrayLike, num_examples: int) -> jax.Array:
    """The permutation of the examples in one epoch.

    This is a pure function: a run that resumes in the middle of an epoch calls it again and gets
    the same order. Under `jax.vmap` over keys, each seed of a population has its own order.

    Args:
        key: random key of the order.
        epoch: number of the epoch; may be traced.
        num_examples: static.

    Returns:
        int32 [num_examples].

    Raises:
        UserError: `num_examples` is not positive.

    >>> order = epoch_order(jax.random.key(0), 3, 10)
    >>> sorted(order.tolist()) == list(range(10))
    True
    """
    if num_examples < 1:
        raise UserError(f"data.epoch_order: num_examples={num_examples}; it must be at least 1.")
    examples = jnp.arange(num_examples, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)
