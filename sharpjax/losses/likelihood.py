"""Losses of a model's outputs: likelihoods, which draw labels and know their curvature."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.losses.cross_entropy import cross_entropies
from sharpjax.losses.linear_logits import LinearLogits

Batch = Mapping[str, jax.Array]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of logits, [N, K], against batch["label"], int32 of N numbers: the mean of
    -log p of a categorical distribution in its natural parameter. Logits are an array, or
    `LinearLogits` with features [N, d].

    Labels may have any shape of N numbers: models of sequences return [B * S, K] for labels [B, S].
    One that is no class, below 0 or K or more, makes the loss and all its derivatives NaN: rows
    that shall not count have to be left out, or weigh nothing.

    Raises:
        UserError: when called, where the logits have another rank than 2, or one class.

    >>> batch = {"label": jnp.array([0, 1])}
    >>> print(CrossEntropy()(jnp.zeros((2, 4)), batch))  # log 4
    1.3862944
    """

    canonical: ClassVar[bool] = True  # the Fisher matrix is the Gauss-Newton matrix

    def __call__(self, logits: jax.Array | LinearLogits, batch: Batch) -> jax.Array:
        return jnp.mean(cross_entropies("losses.CrossEntropy", logits, batch["label"].reshape(-1)))

    def sample(self, key: jax.Array, logits: jax.Array, batch: Batch) -> Batch:
        """The batch with labels drawn from the model: p = softmax(logits)."""
        labels = jax.random.categorical(key, logits, axis=-1)
        like = batch["label"]
        return {**batch, "label": labels.astype(like.dtype).reshape(like.shape)}

    def square_root(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Vectors [N (K - 1), N, K] whose outer products add up to the Hessian in the logits.

        `diag(p) - p p'` of each row has rank K - 1 and a Cholesky factor in closed form (Tanabe and
        Sagae, 1992).
        """
        p = jax.nn.softmax(logits)
        rows, classes = p.shape
        rest = jnp.expand_dims(jnp.flip(jnp.cumsum(jnp.flip(p, 1), 1), 1), 2)
        head, here, after = jnp.expand_dims(p, 2)[:, :-1], rest[:, :-1], rest[:, 1:]
        below = -jnp.sqrt(head / jnp.where(after > 0, here * after, 1)) * jnp.expand_dims(p, 1)
        diagonal = jnp.sqrt(head * after / jnp.where(here > 0, here, 1))
        unit = jnp.expand_dims(jnp.eye(classes - 1, classes, dtype=p.dtype), 0)
        columns = (jnp.triu(below, 1) + diagonal * unit) / rows**0.5
        apart = jnp.expand_dims(jnp.eye(rows, dtype=p.dtype), (1, 3))
        return (apart * jnp.expand_dims(columns, 2)).reshape(-1, rows, classes)

    def newton_step(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The step d with `H d = -slope` in the logits: `1 / p` at the label, 0 elsewhere.

        Not finite where p of the label is below the range of its type, NaN where it is no class.
        """
        labels = jnp.expand_dims(batch["label"].reshape(-1), 1)
        chosen = labels == jnp.arange(logits.shape[1])
        step = jnp.where(chosen, jnp.exp(-jax.nn.log_softmax(logits)), 0)
        return jnp.where(jnp.any(chosen, 1, keepdims=True), step, jnp.nan)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Half the squared error against batch["target"], mean over axis 0, summed over the others: the
    mean of -log p of a normal distribution of unit variance round the outputs, less a constant.

    >>> batch = {"target": jnp.zeros((2, 3))}
    >>> print(SquaredError()(jnp.ones((2, 3)), batch))
    1.5
    """

    canonical: ClassVar[bool] = True  # the Fisher matrix is the Gauss-Newton matrix

    def __call__(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return jnp.sum(jnp.square(outputs - batch["target"])) / (2 * len(outputs))

    def sample(self, key: jax.Array, outputs: jax.Array, batch: Batch) -> Batch:
        """The batch with targets drawn from the model: the outputs and normal noise."""
        noise = jax.random.normal(key, outputs.shape, outputs.dtype)
        return {**batch, "target": (outputs + noise).astype(batch["target"].dtype)}

    def square_root(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Vectors whose outer products add up to the Hessian in the outputs: an identity matrix."""
        units = jnp.eye(outputs.size, dtype=outputs.dtype) / len(outputs) ** 0.5
        return units.reshape(-1, *outputs.shape)
