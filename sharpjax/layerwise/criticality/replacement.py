"""Models with one layer replaced: by its initial values, a new draw, zeros or a snapshot."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from sharpjax import tree
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.operators.blocks import Groups
from sharpjax.layerwise.criticality.inputs import check_model, fits
from sharpjax.layerwise.criticality.layers import Layer, chosen, kind_of, named


class Weights(NamedTuple):
    """All that is learnt: parameters, and the collections beside them (`{"batch_stats": ...}`)."""

    params: Any
    variables: Any = FrozenDict()


class Variant(NamedTuple):
    """A model with one layer replaced; `trial` counts draws from 0."""

    layer: str
    trial: int
    weights: Weights


Source = Weights | Literal["zeros"] | Callable[[jax.Array], Weights]
"""What replaces a layer: its values in other weights of the model; zeros; or its values in weights
that are drawn by a key, with `Initialiser` or a function `draw(key) -> Weights`."""


@dataclasses.dataclass(frozen=True)
class Initialiser:
    """Draws new initial weights of a Flax model, `draw(key)`, with the model's own initialisers.

    Attributes:
        model: the Flax module.
        input_shape: of one example.
        input_dtype: 'float32' for images; 'int32' for tokens.

    Raises:
        UserError: the model, the shape or the type is not valid. When it is called: no key, or a
            model that does not take such an example.

    >>> from sharpjax.nn import MLP
    >>> drawn = Initialiser(MLP(num_classes=3, width=4), (2, 2, 1))(jax.random.key(0))
    >>> drawn.params["head"]["kernel"].shape
    (4, 3)
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    input_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_model(_INITIALISER, self.model)
        shape = self.input_shape
        if not isinstance(shape, tuple):
            raise UserError(
                f"{_INITIALISER}: input_shape is {shape!r}; give a tuple, the shape of one example."
            )
        for number in shape:
            whole_number(_INITIALISER, "each number of input_shape", number)
        try:
            jnp.dtype(self.input_dtype)
        except TypeError:
            raise UserError(
                f"{_INITIALISER}: input_dtype is {self.input_dtype!r}; give 'float32' or 'int32'."
            ) from None

    def __call__(self, key: jax.Array) -> Weights:
        return _drawn(self, check_key(_INITIALISER, key))


_INITIALISER = "criticality.Initialiser"


@functools.partial(jax.jit, static_argnums=0)
def _drawn(own: Initialiser, key: jax.Array) -> Weights:
    example = jnp.zeros((1, *own.input_shape), own.input_dtype)
    given = jax.ShapeDtypeStruct(own.input_shape, own.input_dtype)
    with fits(_INITIALISER, own.model, "input_shape", given):
        variables = dict(own.model.init(key, example, train=False))
    return Weights(variables.pop("params"), variables)


def replaced(params: Any, layer: str, source: Any, groups: Groups | None = None) -> Any:
    """The parameters with one layer taken from other ones: theta_l <- source_l (Zhang, Bengio and
    Singer, arXiv 1902.01996). The other leaves are the same arrays; nothing is copied or changed.

    Args:
        params: pytree of arrays.
        layer: a name of `layers_of(params, groups)`.
        source: a tree like `params`: initial values, a snapshot, `tree.zeros_like(params)`.
        groups: as in `layers_of`.

    Raises:
        UserError: an unknown layer; a source of another structure, shape or type.

    >>> trained = {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2)}}
    >>> print(replaced(trained, "b", tree.zeros_like(trained))["b"]["w"])
    [0. 0.]
    """
    return taken("criticality.replaced", params, layer, source, groups)


def taken(
    caller: str,
    params: Any,
    layer: str,
    source: Any,
    groups: Groups | None,
    *,
    argument: str = "source",
) -> Any:
    """The same as `replaced`; errors name `caller`, and `argument` for the source."""
    own = chosen(caller, named(caller, params, groups), [layer])[layer]
    tree.check_same_structure(caller, argument, source, params)
    return _put(params, own.params, source)


def variants(
    weights: Weights,
    source: Source,
    layers: Mapping[str, Layer] | None = None,
    *,
    names: Sequence[str] | None = None,
    trials: int = 1,
    key: jax.Array | None = None,
) -> Iterator[Variant]:
    """The models with one layer replaced, for each trial and layer, as input of `evaluate`.

    They come trial by trial, and in each trial in the order of the layers. Draw t uses
    `fold_in(key, t)` and draws a whole model, from which each layer is taken in turn. So with more
    trials, the first ones stay the same.

    Cost: a draw of the model for each trial. Memory: one draw; leaves that are not replaced are
    shared with `weights`.

    Args:
        weights: of the trained model; BatchNorm statistics are in `weights.variables`.
        source: see `Source`.
        layers: from `layers_of`; by default those of the parameters, with batch_norm='stay'.
        names: some of the layers; None: all.
        trials: how many draws; 1 if nothing is drawn.
        key: of the draws.

    Raises:
        UserError: raised by the call, before the first variant is requested: an unknown layer or
            source; no trials, or several without a draw; a draw without a key; weights of another
            structure, shape or type, or parameters alone; zeros as variances of BatchNorm. Drawn
            weights are checked when they are drawn.

    >>> one = Weights({"a": jnp.ones(2), "b": jnp.ones(2)})
    >>> for layer, trial, (params, _) in variants(one, "zeros"):
    ...     print(layer, trial, params["a"].tolist(), params["b"].tolist())
    a 0 [0.0, 0.0] [1.0, 1.0]
    b 0 [1.0, 1.0] [0.0, 0.0]
    """
    caller = "criticality.variants"
    check_weights(caller, "weights", weights)
    trials = whole_number(caller, "trials", trials)
    layers = named(caller, weights.params) if layers is None else layers
    layers = chosen(caller, _checked(caller, layers), names)
    _check_leaves(caller, layers, weights)
    draw = _as_draw(caller, source, weights, layers, trials, key)
    if not callable(source):
        _check_source(caller, draw(0), weights, layers)
    return _variants(caller, weights, draw, layers, trials)


def _variants(caller, weights, draw, layers, trials):
    for trial in range(trials):
        source = draw(trial)
        _check_source(caller, source, weights, layers)
        for name, layer in layers.items():
            params = _put(weights.params, layer.params, source.params)
            variables = weights.variables
            if layer.variables:
                variables = _put(variables, layer.variables, source.variables)
            yield Variant(name, trial, Weights(params, variables))


def _as_draw(caller, source: Source, weights, layers, trials, key) -> Callable[[int], Weights]:
    """A function that gives, for each trial, the weights from which layers are taken."""
    if isinstance(source, str | Weights) and trials > 1:
        raise UserError(
            f"{caller}: trials={trials}, but nothing is drawn: all would be the same; leave it out."
        )
    if isinstance(source, Weights):
        return lambda trial: source
    if isinstance(source, str) and source == "zeros":
        if with_statistics := [name for name, layer in layers.items() if layer.variables]:
            raise UserError(
                f"{caller}: zeros would be the variances of the norm of '{with_statistics[0]}'; "
                "take layers with batch_norm='parameters' or 'stay'."
            )
        return lambda trial: tree.zeros_like(weights)
    if isinstance(source, str) or not callable(source):
        given = f"'{source}'" if isinstance(source, str) else f"a {type(source).__name__}"
        raise UserError(
            f"{caller}: source is {given}; give Weights(params, variables), 'zeros', or a function "
            "of a key, such as criticality.Initialiser."
        )
    if key is None:
        raise UserError(f"{caller}: this source is drawn; give key=jax.random.key(0).")
    key = check_key(caller, key)
    return lambda trial: source(jax.random.fold_in(key, trial))


def _checked(caller: str, layers: Any) -> Mapping[str, Layer]:
    if isinstance(layers, Mapping) and all(isinstance(x, Layer) for x in layers.values()):
        return layers
    raise UserError(
        f"{caller}: layers is {kind_of(layers)}; give the dict that layers_of(params) gives, and "
        "names=[...] for some of them."
    )


def check_weights(caller: str, name: str, given: Any) -> None:
    """Refuses anything but `Weights`, such as parameters alone.

    Raises:
        UserError: names `caller` and the argument.
    """
    if not isinstance(given, Weights):
        raise UserError(
            f"{caller}: {name} is {kind_of(given)}; give criticality.Weights(params, variables)."
        )


def check_variant(caller: str, given: Any) -> None:
    """Refuses anything but a `Variant`.

    Raises:
        UserError: names `caller`.
    """
    if not isinstance(given, Variant):
        raise UserError(
            f"{caller}: variants has {kind_of(given)}; give what criticality.variants gives."
        )


def _check_source(
    caller: str, source: Weights, weights: Weights, layers: Mapping[str, Layer]
) -> None:
    if not isinstance(source, Weights):
        raise UserError(
            f"{caller}: source(key) gives a {type(source).__name__}; give Weights(params, "
            "variables)."
        )
    tree.check_same_structure(caller, "source.params", source.params, weights.params)
    if any(layer.variables for layer in layers.values()):
        tree.check_same_structure(
            caller, "source.variables", source.variables, weights.variables, "those of weights"
        )


def _check_leaves(caller: str, layers: Mapping[str, Layer], weights: Weights) -> None:
    names = {*tree.path_names(weights.params)}, {*tree.path_names(weights.variables)}
    for name, layer in layers.items():
        for where, leaves, there in zip(Layer._fields, layer, names, strict=True):
            if missing := [leaf for leaf in leaves if leaf not in there]:
                raise UserError(
                    f"{caller}: layer '{name}' has '{missing[0]}', which is not in the {where} of "
                    "weights; make layers by layers_of of the same model."
                )
        if not layer.params:
            raise UserError(f"{caller}: layer '{name}' has no parameters; leave it out.")


def _put(into: Any, names: Collection[str], source: Any) -> Any:
    """The leaves with these names from `source`, all others from `into`."""
    leaves = zip(tree.path_names(into), jax.tree.leaves(into), jax.tree.leaves(source), strict=True)
    taken = [new if name in names else old for name, old, new in leaves]
    return jax.tree.unflatten(jax.tree.structure(into), taken)
