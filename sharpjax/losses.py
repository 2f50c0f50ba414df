"""Losses as callable pytrees: frozen statistics are leaves, the model is structure.

A loss is `loss(params, batch) -> scalar`, the mean over the batch. Pass it to a jitted function as
an argument: checkpoints with different statistics then share one compilation, and a population is a
`vmap` over a loss whose leaves have a leading axis. Closing over it, as `jax.jit(loss)` does, works
too, but compiles again for every loss and keeps its arrays alive.

Gauss-Newton and Fisher matrices need a loss in two parts, `outer_loss(model_fn(params, batch),
batch)`: `Classification` has both as properties; `CrossEntropy` and `SquaredError` are likelihoods
for any model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.errors import ScopeCollectionNotFound

from sharpjax.errors import UserError

Batch = Mapping[str, jax.Array]  # image: [B, H, W, C]; label: int32 [B]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """Mean cross-entropy in eval mode, with frozen statistics: the loss that geometry measures.

    L(w) = -1/B sum_i log softmax(f(w, image_i))[label_i]. Examples do not see each other, so it may
    be cut into microbatches. Logits and loss are float32 at least, whatever the model computes in.
    A label of K or more makes the loss NaN.

    Attributes:
        model: a Flax Linen module, equal by value to every other one made alike.
        variables: its collections beside the parameters, such as `{"batch_stats": ...}`.

    Raises:
        UserError: when called, where the model reads a collection that `variables` lacks.

    >>> from sharpjax.nn import MLP
    >>> model = MLP(num_classes=10, width=4)
    >>> batch = {"image": jnp.zeros((2, 8, 8, 1)), "label": jnp.array([3, 7])}
    >>> params = model.init(jax.random.key(0), batch["image"])["params"]
    >>> loss = Classification(model)
    >>> print(loss(params, batch))  # log 10
    2.3025851
    """

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, params: Any, batch: Batch) -> jax.Array:
        logits = self.logits(params, batch)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    def logits(self, params: Any, batch: Batch) -> jax.Array:
        """The model's outputs, [B, K]."""
        logits = _apply(self, params, batch, train=False, mutable=False)
        return _float32_at_least(logits)

    @property
    def model_fn(self) -> "Logits":
        """The model as `model_fn(params, batch)`, for `geometry.gauss_newton` and `fisher`."""
        return Logits(self.model, self.variables)

    @property
    def outer_loss(self) -> "CrossEntropy":
        """The rest of this loss, as `outer_loss(outputs, batch)`."""
        return CrossEntropy()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Logits:
    """A classifier in eval mode, as `model_fn(params, batch)`: its logits, [B, K], in float32 at
    least.

    Attributes:
        model, variables: as in `Classification`.
    """

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, params: Any, batch: Batch) -> jax.Array:
        return _float32_at_least(_apply(self, params, batch, train=False, mutable=False))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of logits, [N, K], against batch["label"], int32 of N numbers: the mean of
    -log p of a categorical distribution in its natural parameter.

    Labels may have any shape of N numbers: models of sequences return [B * S, K] for labels [B, S].

    Raises:
        UserError: when called, where the logits have another rank than 2.

    >>> batch = {"label": jnp.array([0, 1])}
    >>> print(CrossEntropy()(jnp.zeros((2, 4)), batch))  # log 4
    1.3862944
    """

    canonical: ClassVar[bool] = True  # the Fisher matrix is the Gauss-Newton matrix

    def __call__(self, logits: jax.Array, batch: Batch) -> jax.Array:
        if logits.ndim != 2:
            raise UserError(
                f"losses.CrossEntropy: logits must be [N, K], got {logits.shape}. Models of "
                f"sequences reshape them: `logits.reshape(-1, logits.shape[-1])`."
            )
        labels = batch["label"].reshape(-1)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

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


@jax.tree_util.register_dataclass
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TrainingClassification:
    """Mean cross-entropy in training mode: BatchNorm normalises by the batch and learns from it.

    Labels are smoothed to (1 - s) onehot + s / K (arXiv 1512.00567): the loss is (1 - s) times the
    cross-entropy plus s times the mean over all classes of -log p.

    Attributes:
        model, variables: as in `Classification`.
        label_smoothing: s, in [0, 1). Static.

    Calls return `(value, aux)`, for `jax.value_and_grad(loss, has_aux=True)`: aux["variables"] are
    the updated collections, laid out as `variables`; aux["accuracy"] is the share of examples whose
    label has the largest logit.

    Raises:
        UserError: a smoothing outside [0, 1); a collection that is missing, when called.
    """

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label_smoothing: float = dataclasses.field(default=0.0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"losses.TrainingClassification: label_smoothing={self.label_smoothing}; give a "
                "number that is at least 0 and less than 1."
            )

    def __call__(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        collections = list(self.variables)
        logits, updated = _apply(self, params, batch, train=True, mutable=collections)
        logits, label = _float32_at_least(logits), batch["label"]
        value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))
        if self.label_smoothing:
            uniform = -jnp.mean(jax.nn.log_softmax(logits))
            value = (1 - self.label_smoothing) * value + self.label_smoothing * uniform
        correct = jnp.argmax(logits, axis=-1).astype(label.dtype) == label
        accuracy = jnp.mean(correct, dtype=logits.dtype)
        return value, {"variables": updated, "accuracy": accuracy}


def _apply(loss: Any, params: Any, batch: Batch, *, train: bool, mutable: Any) -> Any:
    variables = {"params": params, **loss.variables}
    try:
        return loss.model.apply(variables, batch["image"], train=train, mutable=mutable)
    except ScopeCollectionNotFound as error:
        raise UserError(
            f"losses.{type(loss).__name__}: {type(loss.model).__name__} reads a collection that is "
            f"not in variables, which holds {sorted(loss.variables) or 'none'}; give all that "
            "`model.init` returns beside 'params', such as variables={'batch_stats': ...}."
        ) from error


def _float32_at_least(logits: jax.Array) -> jax.Array:
    return logits if logits.dtype.itemsize >= 4 else logits.astype(jnp.float32)
