"""Distances of a student's features from its teacher's, for distillation inside a network.

Features f of the student and g of the teacher are [B, ...], channels last. docs/function.md shows
how a training step gets them from Flax, with `capture_intermediates`. Losses are computed in at
least float32. Nothing here stops a gradient in g.
"""

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError


def attention_transfer(features: jax.Array, targets: jax.Array) -> jax.Array:
    """1/B sum_i |a(f_i) - a(g_i)|^2, with a(f) = s/|s| and s [places] the sum of squares of f over
    its channels (arXiv 1612.03928). It compares where two networks look, not what they see there.

    It equals 2 (1 - mean cosine) if no map is 0. The numbers of channels may differ, the places may
    not. The paper's formula has half the distance instead of its square; its code divides the
    square by the number of places. A map of 0 stays 0, with a slope of 0.

    Args:
        features, targets: [B, ..., C], with at least one axis of places.

    Raises:
        UserError: there is no axis of places, or the places differ.

    >>> f = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0, 1].set(5.0)
    >>> g = jnp.zeros((1, 2, 2, 8)).at[0, 1, 1].set(1.0)
    >>> print(attention_transfer(f, g))
    2.0
    """
    if features.ndim < 3 or features.shape[:-1] != targets.shape[:-1]:
        raise UserError(
            f"losses.attention_transfer: features are {list(features.shape)} and targets "
            f"{list(targets.shape)}; give both as [B, ..., C], with the same places between."
        )

    def attention(x):
        x = tree.widen(x)
        x = _scaled(x, tuple(range(1, x.ndim)))
        return _unit(jnp.sum(jnp.square(x), -1).reshape(len(x), -1))

    apart = attention(features) - attention(targets)
    return jnp.sum(jnp.square(apart)) / len(features)


def feature_distillation(features: jax.Array, targets: jax.Array) -> jax.Array:
    """1/(2B) sum_i |f_i - g_i|^2, over all places and channels (arXiv 1412.6550).

    If the shapes differ, bring the student's features to the teacher's shape with an extra trained
    layer, as that paper does.

    Args:
        features, targets: [B, ...], of the same shape.

    Raises:
        UserError: the shapes differ.

    >>> print(feature_distillation(jnp.ones((2, 3)), jnp.zeros((2, 3))))
    1.5
    """
    if features.shape != targets.shape:
        raise UserError(
            f"losses.feature_distillation: features are {list(features.shape)} and targets "
            f"{list(targets.shape)}; give the same shape, by a layer on the student's."
        )
    features, targets = tree.widen((features, targets))
    return jnp.sum(jnp.square(features - targets)) / (2 * len(features))


def similarity_distillation(features: jax.Array, targets: jax.Array) -> jax.Array:
    """1/B^2 |G(f) - G(g)|^2 over all pairs, with G(f) the products <f_i, f_j>, each row divided by
    its length (similarity-preserving, arXiv 1907.09682). Examples that are similar for the teacher
    should be similar for the student.

    It does not change with rotations of the features or their common scale. It is a property of the
    batch, not of its examples. A row of 0 stays 0, with a slope of 0.

    Args:
        features, targets: [B, ...], with any axes after the first.

    Raises:
        UserError: the numbers of examples differ.

    >>> f, g = jnp.eye(2), jnp.ones((2, 1))
    >>> print(f"{similarity_distillation(f, g):.5f}")  # 1 - 1/sqrt(2)
    0.29289
    """
    if not features.ndim or features.shape[:1] != targets.shape[:1]:
        raise UserError(
            f"losses.similarity_distillation: features are {list(features.shape)} and targets "
            f"{list(targets.shape)}; give both of the same examples, on axis 0."
        )

    def products(x):
        x = _scaled(tree.widen(x).reshape(len(x), -1), None)
        return _unit(jnp.matmul(x, x.T, precision="highest"))

    apart = products(features) - products(targets)
    return jnp.sum(jnp.square(apart)) / len(features) ** 2


def _unit(x: jax.Array) -> jax.Array:
    """Rows scaled to length 1; rows of 0 stay 0."""
    x = _scaled(x, -1)
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    is_zero = squared == 0
    return jnp.where(is_zero, 0, x / jnp.sqrt(jnp.where(is_zero, 1, squared)))


def _scaled(x: jax.Array, axis: int | tuple[int, ...] | None) -> jax.Array:
    """x divided by its largest absolute value along these axes (None: all), so that squares neither
    overflow nor all underflow.

    It is for functions that do not depend on this scale. Derivatives hold it fixed, and are exact.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis, keepdims=True))
    return x / jnp.where(largest == 0, 1, largest)
