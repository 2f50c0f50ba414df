"""The loss that a training step minimises."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.losses.classification import apply
from sharpjax.losses.cross_entropy import cross_entropies
from sharpjax.losses.likelihood import Batch, SquaredError
from sharpjax.losses.teacher import Teacher


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a training step, in training mode: BatchNorm normalises by the batch and updates
    its statistics, and dropout is active.

    For a batch with `label` it is the mean cross-entropy. Labels are smoothed to (1 - s) onehot +
    s / K (arXiv 1512.00567): (1 - s) times the cross-entropy plus s times the mean over all classes
    of -log p. With a teacher of weight a it is `a teacher(logits, batch) + (1 - a)` times this; see
    `Teacher`. For a batch with `target` it is `SquaredError`, half the squared error.

    Everything that may differ between arms is a leaf, so that arms of one model compile once.

    **A mask** prunes: the weights are used where the mask is 1, and are replaced by 0 where it is
    0. The gradient of a pruned weight is 0, so it does not enter SAM's norm and perturbation. No
    optimiser moves it except by weight decay, which shrinks it and leaves a weight of 0 at 0.

    **Dropout** draws its masks from `dropout_key` alone, so both gradients of a SAM step use the
    same masks. In m-SAM each chunk is a batch of its own, and all chunks have the same masks:
    example i of every chunk drops the same units.

    Attributes:
        model: a Flax Linen module; modules with the same fields compare equal. Static.
        variables: its collections besides the parameters, such as `{"batch_stats": ...}`.
        label_smoothing: s, in [0, 1). Static.
        teacher: a `Teacher` with as many classes, as a target besides the labels.
        mask: a tree like the parameters, of 0 and 1 or of booleans. A leaf may have fewer axes, so
            that True keeps a whole array.
        dropout_key: a new one for each step; not used by a model without dropout.

    Calls return `(value, aux)`, for `jax.value_and_grad(loss, has_aux=True)`. aux["variables"] are
    the updated collections, laid out as `variables`. aux["accuracy"] is the share of examples whose
    label has the largest output, NaN for a regression.

    Raises:
        UserError: a smoothing outside [0, 1); a teacher with another number of classes. When
            called: a collection or a key is missing; a mask does not fit the parameters; there is
            not one label for each row of logits; targets have another shape than the outputs, or
            are combined with smoothing or a teacher.

    >>> from sharpjax.nn import MLP
    >>> model = MLP(num_classes=10, width=4)
    >>> batch = {"image": jnp.zeros((2, 8, 8, 1)), "label": jnp.array([3, 7])}
    >>> params = model.init(jax.random.key(0), batch["image"])["params"]
    >>> value, aux = Objective(model)(params, batch)
    >>> print(value, sorted(aux))  # log 10
    2.3025851 ['accuracy', 'variables']
    """

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label_smoothing: float = dataclasses.field(default=0.0, metadata={"static": True})
    teacher: Teacher | None = None
    mask: Any = None
    dropout_key: jax.Array | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"losses.Objective: label_smoothing={self.label_smoothing}; give a number that is "
                "at least 0 and less than 1."
            )
        if isinstance(self.teacher, Teacher) and self.teacher.model is not None:
            taught, known = (
                getattr(model, "num_classes", None) for model in (self.teacher.model, self.model)
            )
            if None not in (taught, known) and taught != known:
                raise UserError(
                    f"losses.Objective: the teacher has {taught} classes and the model {known}; "
                    "give a teacher of the same classes."
                )

    def __call__(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        params = params if self.mask is None else masked(params, self.mask)
        rngs = None if self.dropout_key is None else {"dropout": self.dropout_key}
        outputs, updated = apply(
            self, params, batch, train=True, mutable=list(self.variables), rngs=rngs
        )
        loss = self._regression if "target" in batch else self._classification
        value, accuracy = loss(outputs, batch)
        return value, {"variables": updated, "accuracy": accuracy}

    def _classification(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        label = batch["label"]
        value = jnp.mean(cross_entropies("losses.Objective", logits, label))
        if self.label_smoothing:
            uniform = -jnp.mean(jax.nn.log_softmax(logits))
            value = (1 - self.label_smoothing) * value + self.label_smoothing * uniform
        if self.teacher is not None:
            weight = jnp.asarray(self.teacher.weight, logits.dtype)
            value = weight * self.teacher(logits, batch) + (1 - weight) * value
        label = tree.widen_labels(label)
        correct = jnp.argmax(logits, axis=-1).astype(label.dtype) == label
        return value, jnp.mean(correct, dtype=logits.dtype)

    def _regression(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if self.label_smoothing or self.teacher is not None:
            raise UserError(
                "losses.Objective: label smoothing and teachers are for labels, and the batch has "
                "targets."
            )
        if outputs.shape != batch["target"].shape:
            raise UserError(
                f"losses.Objective: targets are {list(batch['target'].shape)} and outputs "
                f"{list(outputs.shape)}; give targets of the outputs' shape."
            )
        return SquaredError()(outputs, batch), jnp.full((), jnp.nan, outputs.dtype)


def masked(params: Any, mask: Any, caller: str = "losses.Objective") -> Any:
    """The weights where the mask is not 0, and 0 elsewhere, even where they are not finite.

    Raises:
        UserError: the mask has another structure, or a leaf that does not broadcast to the weights.

    >>> masked({"w": jnp.array([1.0, 2.0]), "b": jnp.ones(1)}, {"w": jnp.array([0, 1]), "b": True})
    {'b': Array([1.], dtype=float32), 'w': Array([0., 2.], dtype=float32)}
    """
    if jax.tree.structure(mask) != jax.tree.structure(params):
        tree.check_same_structure(caller, "mask", mask, params)

    def keep(name: str, weight: jax.Array, kept: Any) -> jax.Array:
        shape = jnp.shape(kept)
        ends = zip(reversed(shape), reversed(weight.shape), strict=False)
        if len(shape) > weight.ndim or any(n not in (1, full) for n, full in ends):
            raise UserError(
                f"{caller}: mask of '{name}' is {list(shape)} and the weights "
                f"{list(weight.shape)}; give one of their shape, or True."
            )
        return jnp.where(jnp.asarray(kept, bool), weight, jnp.zeros_like(weight))

    leaves = [
        keep(*leaf)
        for leaf in zip(
            tree.path_names(params), jax.tree.leaves(params), jax.tree.leaves(mask), strict=True
        )
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
