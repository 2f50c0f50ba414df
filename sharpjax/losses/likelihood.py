"""Losses of a model's outputs: likelihoods, which can draw labels and give their curvature."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.losses.cross_entropy import check_count, cross_entropies
from sharpjax.losses.linear_logits import LinearLogits

Batch = Mapping[str, jax.Array]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of logits, [N, K], against batch["label"], int32 of N numbers: the mean of
    -log p of a categorical distribution in its natural parameter. Logits are an array, or
    `LinearLogits` with features [N, d].

    Labels may have any shape with N numbers: models of sequences return [B * S, K] for labels
    [B, S]. A label that is not a class, below 0 or at least K, makes the loss and all its
    derivatives NaN. Rows that should not count must be left out or have weight 0.

    Raises:
        UserError: when called, if the logits are not of rank 2 or have only one class, or there is
            not one label for each row.

    >>> batch = {"label": jnp.array([0, 1])}
    >>> print(CrossEntropy()(jnp.zeros((2, 4)), batch))  # log 4
    1.3862944
    """

    canonical: ClassVar[bool] = True  # the Fisher matrix is the Gauss-Newton matrix

    def __call__(self, logits: jax.Array | LinearLogits, batch: Batch) -> jax.Array:
        return jnp.mean(cross_entropies("losses.CrossEntropy", logits, batch["label"].reshape(-1)))

    def sample(self, key: jax.Array, logits: jax.Array, batch: Batch) -> Batch:
        """The batch with labels drawn from the model: p = softmax(logits). They have the type of
        the batch's labels, or int32 if that has fewer than 4 bytes."""
        labels = jax.random.categorical(key, logits, axis=-1)
        like = tree.widen_labels(batch["label"])
        return {**batch, "label": labels.astype(like.dtype).reshape(like.shape)}

    def square_root(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Vectors [N (K - 1), N, K] whose outer products sum to the Hessian in the logits.

        For each row, `diag(p) - p p'` has rank K - 1 and a Cholesky factor in closed form (Tanabe
        and Sagae, 1992). Products of two probabilities are not formed: they would underflow.
        """
        p = jax.nn.softmax(logits)
        rows, classes = p.shape
        rest = jnp.expand_dims(jnp.flip(jnp.cumsum(jnp.flip(p, 1), 1), 1), 2)
        head, here, after = jnp.expand_dims(p, 2)[:, :-1], rest[:, :-1], rest[:, 1:]
        ratio = jnp.sqrt(head / jnp.where(here > 0, here, 1))
        below = -ratio * (jnp.expand_dims(p, 1) / jnp.sqrt(jnp.where(after > 0, after, 1)))
        diagonal = ratio * jnp.sqrt(after)
        unit = jnp.expand_dims(jnp.eye(classes - 1, classes, dtype=p.dtype), 0)
        columns = (jnp.triu(below, 1) + diagonal * unit) / rows**0.5
        apart = jnp.expand_dims(jnp.eye(rows, dtype=p.dtype), (1, 3))
        return (apart * jnp.expand_dims(columns, 2)).reshape(-1, rows, classes)

    def newton_step(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The step d with `H d = -slope` in the logits: `1 / p` at the label, 0 elsewhere.

        It is not finite if p of the label underflows, and NaN if the label is not a class.
        """
        labels = batch["label"].reshape(-1)
        check_count("losses.CrossEntropy", logits.shape, labels)
        labels = jnp.expand_dims(labels, 1)
        chosen = labels == jnp.arange(logits.shape[1])
        step = jnp.where(chosen, jnp.exp(-jax.nn.log_softmax(logits)), 0)
        return jnp.where(jnp.any(chosen, 1, keepdims=True), step, jnp.nan)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Half the squared error against batch["target"], averaged over axis 0 and summed over the
    others: the mean of -log p of a normal distribution of unit variance around the outputs, up to a
    constant.

    Raises:
        UserError: when called, if the targets have another shape than the outputs.

    >>> batch = {"target": jnp.zeros((2, 3))}
    >>> print(SquaredError()(jnp.ones((2, 3)), batch))
    1.5
    """

    canonical: ClassVar[bool] = True  # the Fisher matrix is the Gauss-Newton matrix

    def __call__(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        target = batch["target"]
        if jnp.shape(outputs) != jnp.shape(target):
            raise UserError(
                f"losses.SquaredError: targets are {list(jnp.shape(target))} and outputs "
                f"{list(jnp.shape(outputs))}; give targets of the outputs' shape."
            )
        return jnp.sum(jnp.square(outputs - target)) / (2 * len(outputs))

    def sample(self, key: jax.Array, outputs: jax.Array, batch: Batch) -> Batch:
        """The batch with targets drawn from the model: the outputs plus normal noise. They have the
        type of the outputs."""
        return {**batch, "target": outputs + jax.random.normal(key, outputs.shape, outputs.dtype)}

    def square_root(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Vectors [size, *outputs.shape] whose outer products sum to the Hessian in the outputs, an
        identity matrix divided by N."""
        units = jnp.eye(outputs.size, dtype=outputs.dtype) / len(outputs) ** 0.5
        return units.reshape(-1, *outputs.shape)
