"""Models whose logits are rescaled to a common scale, so that sharpness does not depend on their
size.

Cross-entropy falls as logits grow, and so does its curvature: of two networks that classify alike,
the one with larger logits looks flatter.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import Partial
from jax.typing import ArrayLike

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.losses.centring import centred

_LEAST = 1e-10  # logits of this length or less are not divided by their length but set to 0


def normalised_logits(model_fn: Any) -> Partial:
    """A model whose logits z become `(z - mean z) / |z - mean z|`, row by row (Andriushchenko et
    al., 2023, arXiv 2302.07011).

    Measures of this model do not change when the last layer is multiplied by a positive number, nor
    when a number is added to all logits. Rows of logits that are equal up to rounding become 0,
    with a gradient of 0. It is computed in at least float32.

    Args:
        model_fn: `model_fn(params, batch) -> [N, K]`, such as `Classification(...).model_fn`.

    >>> from sharpjax.geometry import composed
    >>> from sharpjax.losses import CrossEntropy
    >>> loss = composed(normalised_logits(lambda w, batch: batch["x"] @ w), CrossEntropy())
    >>> batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    >>> w = jnp.array([[2.0, 0.0], [1.0, 3.0]])
    >>> print(f"{loss(w, batch):.4f} {loss(10 * w, batch):.4f}")
    0.2176 0.2176
    """
    return Partial(_normalised, _as_pytree(model_fn))


def tempered_logits(model_fn: Any, temperature: ArrayLike) -> Partial:
    """A model whose logits are divided by a temperature. Use it to compare networks, each at its
    own temperature as found by `sharpjax.metrics.temperature`.

    Args:
        model_fn: as in `normalised_logits`.
        temperature: above 0; may be traced.

    Raises:
        UserError: the temperature is not above 0.

    >>> model_fn = tempered_logits(lambda w, batch: batch @ w, 2.0)
    >>> model_fn(jnp.eye(2), jnp.array([[4.0, 2.0]])).tolist()
    [[2.0, 1.0]]
    """
    if not isinstance(temperature, Tracer) and not bool(jnp.all(jnp.asarray(temperature) > 0)):
        raise UserError(f"losses.tempered_logits: temperature must be above 0, got {temperature}.")
    return Partial(_tempered, _as_pytree(model_fn), temperature)


def _as_pytree(model_fn):
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(model_fn))
    return Partial(model_fn) if is_leaf else model_fn


def _normalised(model_fn, params, batch):
    apart, squared, varies = centred(tree.widen(model_fn(params, batch)), -1)
    # Two wheres, so that no infinite derivative is multiplied by 0. NaN is known, and stays.
    known = varies & ~(squared <= _LEAST**2)
    return jnp.where(known, apart / jnp.sqrt(jnp.where(known, squared, 1)), 0)


def _tempered(model_fn, temperature, params, batch):
    logits = model_fn(params, batch)
    return logits / jnp.asarray(temperature, logits.dtype)
