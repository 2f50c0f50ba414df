"""The loss that geometry measures, in eval mode, and the call of a loss to its model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import InvalidRngError, ScopeCollectionNotFound

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.losses.likelihood import Batch, CrossEntropy


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """Mean cross-entropy in eval mode, with frozen statistics: the loss that geometry measures.

    L(w) = -1/B sum_i log softmax(f(w, image_i))[label_i]. Examples do not affect each other, so the
    batch may be cut into microbatches. Logits and loss are in at least float32, whatever the
    model's own dtype. A label that is not a class, below 0 or at least K, makes the loss and its
    derivatives NaN.

    Attributes:
        model: a Flax Linen module; modules with the same fields compare equal.
        variables: its collections besides the parameters, such as `{"batch_stats": ...}`.

    Raises:
        UserError: when called, if the model reads a collection that `variables` lacks, or there is
            not one label for each row of logits.

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
        return self.outer_loss(self.logits(params, batch), batch)

    def logits(self, params: Any, batch: Batch) -> jax.Array:
        """The model's outputs, [B, K]."""
        return apply(self, params, batch, train=False, mutable=False)

    @property
    def model_fn(self) -> "Logits":
        """The model as `model_fn(params, batch)`; geometry finds both parts by their names."""
        return Logits(self.model, self.variables)

    @property
    def outer_loss(self) -> CrossEntropy:
        """The rest of this loss, as `outer_loss(outputs, batch)`."""
        return CrossEntropy()


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Logits:
    """A classifier in eval mode, as `model_fn(params, batch)`: its logits, [B, K], in at least
    float32.

    Attributes:
        model, variables: as in `Classification`.
    """

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, params: Any, batch: Batch) -> jax.Array:
        return apply(self, params, batch, train=False, mutable=False)


def apply(
    loss: Any, params: Any, batch: Batch, *, train: bool, mutable: Any, rngs: Any = None
) -> Any:
    """The outputs of `loss.model` on batch["image"], in at least float32, with `loss.variables`
    added to the parameters. If collections are mutable, a pair of the outputs and their updates.

    Raises:
        UserError: the model reads a collection, or draws from a stream of random numbers, that the
            loss does not hold. The message names the loss.
    """
    name, model = f"losses.{type(loss).__name__}", type(loss.model).__name__
    variables = {"params": params, **loss.variables}
    try:
        result = loss.model.apply(
            variables, batch["image"], train=train, mutable=mutable, rngs=rngs
        )
    except ScopeCollectionNotFound as error:
        raise UserError(
            f"{name}: {model} reads a collection that is not in variables, which holds "
            f"{sorted(loss.variables) or 'none'}; give all that `model.init` returns beside "
            "'params', such as variables={'batch_stats': ...}."
        ) from error
    except InvalidRngError as error:
        raise UserError(
            f"{name}: {model} draws random numbers in training; give dropout_key, a key for each "
            "step."
        ) from error
    if mutable is False:
        return _float32_at_least(result)
    outputs, updated = result
    return _float32_at_least(outputs), updated


def _float32_at_least(outputs: jax.Array) -> jax.Array:
    return outputs if outputs.dtype.itemsize >= 4 else outputs.astype(jnp.float32)
