"""What the replacement of each layer changes in a model: its accuracy, its loss, its answers."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy import special

from sharpjax import loops, tree
from sharpjax.errors import UserError, nearest, whole_number
from sharpjax.layerwise.criticality.inputs import fits, image_of
from sharpjax.layerwise.criticality.layers import kind_of
from sharpjax.layerwise.criticality.replacement import (
    Variant,
    Weights,
    check_variant,
    check_weights,
)
from sharpjax.losses import Classification
from sharpjax.metrics import functional
from sharpjax.metrics.functional.outputs import misfits, rounding_of

_AT_ONCE = 16  # models per vmap; on CPU one after another


class Effect(NamedTuple):
    """A model with a layer replaced, on N examples.

    If an output is not finite, `lost` and `gained` are -1, and all others NaN.

    Attributes:
        accuracy: its share of right answers.
        loss: its mean cross-entropy, in nats.
        accuracy_drop: accuracy of the trained model minus its own.
        activation_distance, disagreement, jsd: between both models, from
            `sharpjax.metrics.functional`.
        lost, gained: how many examples only the trained model has right, and only this one.
    """

    accuracy: float
    loss: float
    accuracy_drop: float
    activation_distance: float
    disagreement: float
    jsd: float
    lost: int
    gained: int


class Effects(NamedTuple):
    """The effects of all layers and trials.

    Attributes:
        accuracy, loss: of the trained model.
        num_examples: N.
        of: effects by (layer, trial).
    """

    accuracy: float
    loss: float
    num_examples: int
    of: Mapping[tuple[str, int], Effect]

    def mean(self, layer: str) -> Effect:
        """The means over the trials of a layer, also of `lost` and `gained`.

        If an output of a trial is not finite, these two are -1, and all others NaN.

        Raises:
            UserError: an unknown layer.
        """
        found = trials_of("criticality.Effects.mean", self, layer)
        if any(math.isnan(effect.accuracy) for effect in found):
            return _UNDEFINED
        return Effect(*np.mean(np.asarray(found, float), axis=0).tolist())


_UNDEFINED = Effect(*[math.nan] * 6, lost=-1, gained=-1)


def trials_of(caller: str, effects: Effects, layer: str) -> list[Effect]:
    """The effects of a layer, in the order of the trials.

    Raises:
        UserError: names `caller`; an unknown layer.
    """
    found = [effect for (name, _), effect in effects.of.items() if name == layer]
    if not found:
        known = list(dict.fromkeys(name for name, _ in effects.of))
        hint = nearest(str(layer), known) or "."
        raise UserError(
            f"{caller}: effects has no layer '{layer}'{hint} It has {', '.join(known)}."
        )
    return found


def evaluate(
    model: nn.Module | Callable[[Any, Any, Any], jax.Array],
    trained: Weights,
    variants: Iterable[Variant],
    batch: Any,
    *,
    batch_size: int = 500,
    at_once: int | None = None,
) -> Effects:
    """Accuracy, loss and distance to the trained model of each variant, on one set of examples.

    One program, with the weights as arguments, computes the outputs of all variants: on CPU one
    after another, elsewhere `at_once` of them in one `vmap`. Everything else is computed from the
    outputs in float64 on the host.

    Cost: a forward pass of all examples for each variant. Memory: `at_once` models and the
    activations of `batch_size` examples in each; outputs of `at_once + 1` models on the host.

    Args:
        model: a Flax classifier; or a hashable function from `model(params, variables, batch)` to
            logits, [B, K].
        trained: its weights.
        variants: from `variants`.
        batch: dict of arrays with the examples on axis 0: 'label', integers [N], and what the model
            reads ('image' for a Flax classifier).
        batch_size: examples per forward pass; the last pass is padded.
        at_once: variants per `vmap`; None: 1 on CPU, 16 elsewhere.

    Raises:
        UserError: no variants, or variants of another model; labels that are not classes; outputs
            that are probabilities, or not [N, K]; no 'image', or images that a Flax model does not
            take.

    >>> from sharpjax.layerwise.criticality.replacement import variants
    >>> def linear(params, variables, batch):
    ...     return batch["x"] @ params["w"]
    >>> batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    >>> trained = Weights({"w": 9 * jnp.eye(2)})
    >>> found = evaluate(linear, trained, variants(trained, "zeros"), batch)
    >>> found.accuracy, found.of["w", 0].accuracy, round(found.of["w", 0].loss, 4)
    (1.0, 0.5, 0.6931)
    """
    caller = "criticality.evaluate"
    if not isinstance(batch, Mapping) or "label" not in batch:
        raise UserError(f"{caller}: batch must be a dict of arrays with 'label', integers [N].")
    size = min(whole_number(caller, "batch_size", batch_size), loops.count_examples(caller, batch))
    if at_once is None:
        at_once = 1 if jax.default_backend() == "cpu" else _AT_ONCE
    at_once = whole_number(caller, "at_once", at_once)
    check_weights(caller, "trained", trained)
    apply, label = _applied(caller, model, trained, batch), np.asarray(batch["label"])
    logits = _outputs(apply, [trained], batch, size)[0]
    _check_label(caller, label, logits)
    _refuse_probabilities(caller, logits)
    right, loss = _answers(logits, label)
    found = {}
    for group in _batched(_checked(caller, variants, trained), at_once):
        padded = [v.weights for v in group] + [group[-1].weights] * (at_once - len(group))
        for variant, own in zip(group, _outputs(apply, padded, batch, size), strict=False):
            _refuse_probabilities(caller, own)
            found[variant.layer, variant.trial] = _effect(logits, own, label, right)
    if not found:
        raise UserError(f"{caller}: there are no variants; a generator gives them once.")
    return Effects(_mean(right), loss, len(label), found)


@dataclasses.dataclass(frozen=True)
class _Logits:
    """A Flax classifier as a function, compared by value."""

    model: nn.Module

    def __call__(self, params: Any, variables: Any, batch: Any) -> jax.Array:
        return Classification(self.model, variables).logits(params, batch)


def _applied(caller: str, model: Any, trained: Weights, batch: Mapping[str, Any]) -> Any:
    """The model as `apply(params, variables, batch)`, checked to give outputs [N, K]."""
    if isinstance(model, nn.Module):
        images, apply = image_of(caller, model, batch), _Logits(model)
        with fits(caller, model, "image", images):
            found = jax.eval_shape(apply, trained.params, trained.variables, dict(batch))
    elif callable(model) and _is_hashable(model):
        apply = model
        found = jax.eval_shape(apply, trained.params, trained.variables, dict(batch))
    else:
        raise UserError(
            f"{caller}: model is {kind_of(model)}; give a Flax module, or a hashable function "
            "model(params, variables, batch)."
        )
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", np.float32)
    if shape is None or len(shape) != 2 or shape[1] < 2 or shape[0] != len(batch["label"]):
        given = kind_of(found) if shape is None else list(shape)
        raise UserError(f"{caller}: the model gives {given}; give one of classes, [N, K].")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise UserError(f"{caller}: the model gives {dtype}; give real logits.")
    return apply


def _is_hashable(model: Any) -> bool:
    try:
        hash(model)
    except TypeError:
        return False
    return True


def _checked(caller: str, variants: Any, trained: Weights) -> Iterator[Variant]:
    if not isinstance(variants, Iterable):
        raise UserError(
            f"{caller}: variants is {kind_of(variants)}; give what criticality.variants gives."
        )
    for variant in variants:
        check_variant(caller, variant)
        of = f"the parameters of variant '{variant.layer}'"
        tree.check_same_structure(caller, of, variant.weights.params, trained.params, "trained")
        yield variant


def _refuse_probabilities(caller: str, logits: np.ndarray) -> None:
    if misfits(logits, rounding_of(logits), probs=False)[0]:
        raise UserError(
            f"{caller}: the model gives probabilities, each row in [0, 1] and of sum 1; give one "
            "of logits, the outputs before the softmax."
        )


def _outputs(apply: Any, models: list[Weights], batch: Any, size: int) -> np.ndarray:
    """The logits of several models of one structure, [M, N, K]."""
    num_examples = len(batch["label"])
    places = np.arange(-(-num_examples // size) * size)
    index = np.minimum(places, num_examples - 1).reshape(-1, size)
    if len(models) == 1:
        parts = [np.asarray(_forward(apply, models[0], batch, i))[None] for i in index]
    else:
        stacked = tree.stack(models)
        parts = [np.asarray(_forward_many(apply, stacked, batch, i)) for i in index]
    return np.concatenate(parts, axis=1)[:, :num_examples].astype(np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _forward(apply, weights, batch, index):
    return apply(weights.params, weights.variables, jax.tree.map(lambda x: x[index], batch))


@functools.partial(jax.jit, static_argnums=0)
def _forward_many(apply, stacked, batch, index):
    chunk = jax.tree.map(lambda x: x[index], batch)
    return jax.vmap(lambda own: apply(own.params, own.variables, chunk))(stacked)


def _effect(logits: np.ndarray, own: np.ndarray, label: np.ndarray, right: np.ndarray) -> Effect:
    if not (np.isfinite(logits).all() and np.isfinite(own).all()):
        return _UNDEFINED
    answers, loss = _answers(own, label)
    return Effect(
        accuracy=_mean(answers),
        loss=loss,
        accuracy_drop=(int(right.sum()) - int(answers.sum())) / len(label),
        activation_distance=float(functional.activation_distance(logits, own)),
        disagreement=float(functional.disagreement(logits, own)),
        jsd=float(functional.jensen_shannon(logits, own)),
        lost=int(np.sum(right & ~answers)),
        gained=int(np.sum(~right & answers)),
    )


def _answers(logits: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, float]:
    """Which answers are right, and the mean loss. Of equal outputs the first is the answer."""
    if not np.isfinite(logits).all():
        return np.full(len(label), np.nan), np.nan
    own = np.take_along_axis(special.log_softmax(logits, axis=-1), label[:, None], axis=-1)
    return logits.argmax(axis=-1) == label, float(-own.mean())


def _mean(right: np.ndarray) -> float:
    return float(np.mean(right))


def _check_label(caller: str, label: np.ndarray, logits: np.ndarray) -> None:
    integers = np.issubdtype(label.dtype, np.integer)
    if label.ndim != 1 or not integers or label.min() < 0 or label.max() >= logits.shape[1]:
        raise UserError(
            f"{caller}: label is {label.dtype}{list(label.shape)}; give integers [N], from 0 to "
            f"{logits.shape[1] - 1}."
        )


def _batched(variants: Iterable[Variant], size: int) -> Iterator[list[Variant]]:
    rest = iter(variants)
    while group := list(itertools.islice(rest, size)):
        yield group
