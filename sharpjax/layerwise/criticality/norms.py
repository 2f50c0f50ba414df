"""BatchNorm around a replaced layer: which norm reads it, and recomputed statistics."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import InvalidRngError

from sharpjax import loops
from sharpjax.errors import UserError, whole_number
from sharpjax.layerwise.criticality.inputs import check_model, fits, image_of
from sharpjax.layerwise.criticality.replacement import (
    Variant,
    Weights,
    check_variant,
    check_weights,
)

_STATISTICS = "batch_stats"
_LARGE = 2.0**20


def norms_of(model: nn.Module, example: Any) -> dict[str, str]:
    """The BatchNorm that reads the output of each layer, by the names of both.

    It follows the values through the model: the input of the norm must be the very array that the
    layer returned. A norm that reads anything else (a sum, an activation) belongs to no layer, even
    if a module of several layers, such as a block, returns it.

    Cost: the model is traced once; nothing is computed.

    Args:
        model: a Flax module, `model.apply(variables, example, train=False)`.
        example: inputs, [1, ...], or their `jax.ShapeDtypeStruct`.

    Raises:
        UserError: it is not a Flax module, or does not take such an example.

    >>> from sharpjax.nn import VGGNarrow
    >>> model = VGGNarrow(num_classes=3, width=2, blocks=(1, 1))
    >>> norms_of(model, jnp.zeros((1, 8, 8, 3)))
    {'Conv_0': 'BatchNorm_0', 'Conv_1': 'BatchNorm_1', 'Dense_0': 'BatchNorm_2'}
    """
    caller = "criticality.norms_of"
    check_model(caller, model)
    found: dict[str, str] = {}
    made: list[tuple[Any, str]] = []  # holds the arrays themselves; ids could be reused
    within: set[str] = set()  # modules that hold other modules with parameters

    def watch(call, args, kwargs, context):
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and isinstance(context.module, nn.BatchNorm) and args:
            for layer in (layer for output, layer in made if output is args[0]):
                if (other := found.setdefault(layer, path)) != path:
                    raise UserError(
                        f"{caller}: both '{other}' and '{path}' read '{layer}', and a layer can be "
                        "replaced with one of them; write the dict of layers and norms yourself."
                    )
        output = call(*args, **kwargs)
        holds = "params" in context.module.variables
        if context.method_name == "__call__" and holds and path:
            parts = context.module.path
            within.update("/".join(parts[:i]) for i in range(1, len(parts)))
            known = any(output is other for other, _ in made)  # the innermost module made it
            if not known and path not in within:
                made.append((output, path))
        return output

    def run(example):
        with nn.intercept_methods(watch):
            return model.init(jax.random.key(0), example, train=False)

    with fits(caller, model, "example", example):
        jax.eval_shape(run, example)
    return found


def recomputed(model: nn.Module, weights: Weights, batch: Any, *, batch_size: int = 0) -> Weights:
    """The same parameters, with the running mean and variance of each BatchNorm computed on
    `batch`.

    The result is the mean over the batches of the statistics that training would take from each,
    whatever the momentum. With one batch it is exactly what the norm uses in training. With several
    batches, the variance lacks the variance between their means, a relative error of size
    1 / batch_size.

    Cost: a forward pass in training mode, and one more of the first batch.

    Args:
        model: a Flax module without dropout.
        weights: of the model.
        batch: dict with 'image' [N, ...].
        batch_size: divides N; 0: all at once.

    Raises:
        UserError: the model has no statistics, or draws random numbers; the size does not divide N;
            the batch has no 'image', or the model does not take it.

    >>> from sharpjax.nn import VGGNarrow
    >>> model, x = VGGNarrow(num_classes=3, width=2, blocks=(1,)), jnp.ones((4, 8, 8, 1))
    >>> variables = model.init(jax.random.key(0), x)
    >>> own = Weights(variables["params"], {"batch_stats": variables["batch_stats"]})
    >>> found = recomputed(model, own, {"image": x})
    >>> in_training, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
    >>> at_test = model.apply({"params": found.params, **found.variables}, x)
    >>> bool(jnp.allclose(in_training, at_test, atol=1e-5))
    True
    """
    return _recomputed("criticality.recomputed", model, weights, batch, batch_size)


def _recomputed(caller: str, model: nn.Module, weights: Weights, batch: Any, size: int) -> Weights:
    check_model(caller, model)
    check_weights(caller, "weights", weights)
    if not jax.tree.leaves(weights.variables.get(_STATISTICS, {})):
        raise UserError(f"{caller}: {type(model).__name__} has no statistics of BatchNorm.")
    images = image_of(caller, model, batch)
    size = whole_number(caller, "batch_size", size, least=0)
    chunks = loops.split_chunks(caller, images, size or loops.count_examples(caller, images))
    try:
        with fits(caller, model, "image", images):
            found = [_statistics(model, weights, chunk) for chunk in chunks]
            momentum = _momentum(model, weights, chunks[0])
    except InvalidRngError as error:
        raise UserError(
            f"{caller}: {type(model).__name__} draws random numbers in training, as dropout does; "
            "give the same model without it."
        ) from error
    new = jax.tree.map(lambda m, *x: sum(x) / len(x) / (1 - m), momentum, *found)
    return weights._replace(variables={**weights.variables, _STATISTICS: new})


def with_recomputed(
    variants: Iterable[Variant], model: nn.Module, batch: Any, *, batch_size: int = 0
) -> Iterator[Variant]:
    """The variants, each with its own statistics: `recomputed` for its weights."""
    caller = "criticality.with_recomputed"
    for variant in variants:
        check_variant(caller, variant)
        found = _recomputed(caller, model, variant.weights, batch, batch_size)
        yield variant._replace(weights=found)


@functools.partial(jax.jit, static_argnums=0)
def _statistics(model, weights, images):
    return _after(model, weights, images, 0.0)


@functools.partial(jax.jit, static_argnums=0)
def _momentum(model, weights, images):
    """The share of a statistic that is left after one batch, measured from a large start value."""
    pair = (_after(model, weights, images, start) for start in (_LARGE, 0.0))
    return jax.tree.map(lambda large, none: (large - none) / _LARGE, *pair)


def _after(model, weights, images, start):
    """Running statistics after a batch in training mode, if all were `start` before it."""
    like = weights.variables[_STATISTICS]
    begun = {_STATISTICS: jax.tree.map(lambda x: jnp.full_like(x, start), like)}
    variables = {"params": weights.params, **weights.variables, **begun}
    _, updated = model.apply(variables, images, train=True, mutable=[_STATISTICS])
    return updated[_STATISTICS]
