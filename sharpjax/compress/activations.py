"""Quantised activations: inputs of layers rounded to a few bits, with dynamic or calibrated ranges.

    small = QuantisedInputs(model, bits=8)                    # dynamic: a range for each example
    logits = small.apply({"params": params}, images)

    found = calibrate(model, {"params": params}, batches, MinMax())
    logits = small.apply({"params": params, "ranges": found}, images)  # static

The parameters are those of the model. So with `fake_quantise_params(params, 8)` both weights and
activations have 8 bits, and a loss is `Classification(small, {"ranges": found})`. The layers are
`nn.Dense`, `nn.DenseGeneral` and `nn.Conv`. Products inside attention, and the layers of
`sharpjax.nn.factored`, are not rounded. Models with lifted layers (`nn.scan`, `nn.remat`) can be
rounded but not calibrated.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sharpjax.compress import grid as grids
from sharpjax.compress import integers
from sharpjax.compress.observers import Observer
from sharpjax.errors import UserError

LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv)


class QuantisedInputs(nn.Module):
    """The model with the inputs of each layer rounded to a grid. Derivatives are straight-through
    (see `fake_quantise`).

    Without the collection "ranges", each example has its own grid, from its least to its greatest
    number, so that examples do not affect each other. With the collection, which `calibrate`
    returns, the grid of a layer is fixed, and numbers beyond its ends are clipped. Cost: two passes
    over the inputs of each layer.

    Attributes:
        model: a Flax module; called with the same arguments.
        bits: from 2 to 8.
        symmetric: False by default, because after a ReLU half of a symmetric grid is unused.

    Raises:
        UserError: when called: invalid `bits`, or "ranges" lacks a layer.

    >>> from sharpjax.nn import MLP
    >>> small = QuantisedInputs(MLP(num_classes=3, width=4), bits=4)
    >>> variables = small.init(jax.random.key(0), jnp.ones((2, 3, 3, 1)))
    >>> sorted(variables["params"]), small.apply(variables, jnp.ones((2, 3, 3, 1))).shape
    (['Dense_0', 'Dense_1', 'head'], (2, 3))
    """

    model: nn.Module
    bits: int
    symmetric: bool = False

    def setup(self) -> None:
        nn.share_scope(self, self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        grids.whole_bits("QuantisedInputs", self.bits)
        ranges = self.variables.get("ranges")

        def rounded(name, x):
            if ranges is None:
                return integers.fake_quantise(x, self.bits, symmetric=self.symmetric, axis=0)
            if name not in ranges:
                raise UserError(
                    f"QuantisedInputs: ranges lacks the layer '{name}', it has "
                    f"{sorted(ranges)}; give what `calibrate` returns for this model."
                )
            low, high = (end.astype(jnp.float32) for end in ranges[name])
            grid = grids.make(low, high, self.bits, symmetric=self.symmetric, bound="integer")
            return integers.fake_quantise_onto(x, grid)

        with nn.intercept_methods(_interceptor(rounded)):
            return self.model(*args, **kwargs)


def layer_inputs(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> dict[str, list[jax.Array]]:
    """The inputs of each layer, in the order of calls, by the layer's name in the parameters.

    Args:
        model: called as `model.apply(variables, *args, **kwargs)`.
        variables: its parameters and other collections.

    >>> from sharpjax.nn import MLP
    >>> model, image = MLP(num_classes=3, width=4), jnp.ones((2, 3, 3, 1))
    >>> found = layer_inputs(model, model.init(jax.random.key(0), image), image)
    >>> {name: [x.shape for x in inputs] for name, inputs in found.items()}
    {'Dense_0': [(2, 9)], 'Dense_1': [(2, 4)], 'head': [(2, 4)]}
    """
    found: dict[str, list[jax.Array]] = {}

    def kept(name, x):
        found.setdefault(name, []).append(x)
        return x

    with nn.intercept_methods(_interceptor(kept)):
        model.apply(variables, *args, **kwargs)
    return found


def calibrate(
    model: nn.Module, variables: Mapping[str, Any], batches: Iterable[Any], observer: Observer
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The range (low, high) of the inputs of each layer in evaluation mode, by name of the layer.
    It is the collection "ranges" of `QuantisedInputs`.

    Args:
        model: called as `model.apply(variables, batch)`.
        variables: its parameters and other collections.
        batches: inputs; one compilation for each shape.
        observer: one of `observers`.

    Cost: a forward pass for each batch, and the cost of the observer.

    Raises:
        UserError: there is no batch, or no layer; an input of a layer is not finite, or there are
            more numbers than the observer counts.

    >>> from sharpjax.compress.observers import MinMax
    >>> from sharpjax.nn import MLP
    >>> model, image = MLP(num_classes=3, width=4), jnp.linspace(0, 1, 18).reshape(2, 3, 3, 1)
    >>> found = calibrate(model, model.init(jax.random.key(0), image), [image], MinMax())
    >>> [float(end) for end in found["Dense_0"]]
    [0.0, 1.0]
    """

    @jax.jit
    def update(states, variables, batch):
        inputs = layer_inputs(model, variables, batch)
        new = {}
        for name, arrays in inputs.items():
            new[name] = states.get(name) if states else observer.init()
            for x in arrays:
                new[name] = observer.update(new[name], x)
        return new

    states: dict[str, Any] = {}
    for batch in batches:
        states = update(states, variables, batch)
    if not states:
        raise UserError(
            "calibrate: nothing was observed; give at least one batch, and a model of nn.Dense, "
            "nn.DenseGeneral or nn.Conv."
        )
    found = {name: observer.range(state) for name, state in states.items()}
    unsound = [name for name, ends in found.items() if not all(jnp.isfinite(e) for e in ends)]
    if unsound:
        raise UserError(
            f"calibrate: '{unsound[0]}' read NaN or infinity, or more numbers than the observer "
            "counts; give finite inputs and weights."
        )
    return found


def _interceptor(change):
    def intercept(next_fun, args, kwargs, context):
        if isinstance(context.module, LAYERS) and context.method_name == "__call__":
            name = "/".join(context.module.path)
            if args:
                args = (change(name, args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "inputs": change(name, kwargs["inputs"])}
        return next_fun(*args, **kwargs)

    return intercept
