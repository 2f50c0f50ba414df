"""Losses as callable pytrees: frozen statistics are leaves, the model is structure.

A loss is `loss(params, batch) -> scalar`, the mean over the batch. Pass it to a jitted function as
an argument: checkpoints with different statistics then share one compilation, and a population is a
`vmap` over a loss whose leaves have a leading axis. Closing over it, as `jax.jit(loss)` does, works
too, but compiles again for every loss and keeps its arrays alive.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
