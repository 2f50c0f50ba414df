"""Which leaves of a parameter tree are layers, and as which matrices each layer is read."""

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.nn import svd

_WEIGHTS = ("kernel", "embedding")
_BOXES = ("value", "raw_value")  # what an NNX state adds below the name of a parameter
_PROJECTIONS = ("query", "key", "value")


class Layer(NamedTuple):
    """A weight as k matrices of one shape.

    Attributes:
        name: of the leaf, as in `sharpjax.tree.path_names`.
        kind: 'dense', 'embedding', 'attention', 'convolution', 'stack' (an array that is no kernel:
            matrices along its first axes), or 'none' (fewer than two axes).
        shape: of the leaf, without the axis of a population; for factors, of their product.
        matrices: (k, m, n). k is 1, except for convolutions, which have one slice [in, out] for
            each position of the window, and stacks.
        dtype: of the weights.
        weight: the leaf, or its factors.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    matrices: tuple[int, int, int]
    dtype: np.dtype
    weight: Any


def find(
    caller: str,
    params: Any,
    where: Sequence[str] | str | None,
    *,
    axes: int,
    argument: str = "layers",
) -> list[Layer]:
    """The layers of a network in the order of its leaves.

    Layers are the leaves named `kernel` or `embedding`, as Linen and NNX name them. In a tree
    without such names, every array of two axes or more is a layer. Factors {'U', 's', 'Vt'} are one
    layer. `where` chooses others.

    Args:
        caller: the name in errors.
        where: globs on the names, or None.
        axes: number of population axes in front of each leaf.
        argument: the caller's name for `where`.

    Raises:
        UserError: there is no layer; `where` does not hold globs, or a glob matches nothing; a
            weight is not an array of floats; or factors do not fit each other.
    """
    names = tree.path_names(jax.tree.map(lambda _: 0, params, is_leaf=svd.is_factors))
    nodes = jax.tree.leaves(params, is_leaf=svd.is_factors)
    shapes = {name: _shape(node)[axes:] for name, node in zip(names, nodes, strict=True)}
    if where is None:
        chosen = {name for name in names if _own(name)[-1] in _WEIGHTS and len(shapes[name]) > 1}
        chosen = chosen or {name for name in names if len(shapes[name]) > 1}
    else:
        globs = [where] if isinstance(where, str) else where
        globs = list(globs) if isinstance(globs, Iterable) else [globs]
        if not all(isinstance(glob, str) for glob in globs):
            raise UserError(
                f"{caller}: {argument} must be a glob on the names of layers, or several, got "
                f"{where!r}; give such as 'Dense_*'."
            )
        try:
            tree.select(dict.fromkeys(names, 0), globs)
        except UserError as error:
            said = str(error).replace("where:", f"{argument}:", 1)
            raise UserError(f"{caller}: {said}") from None
        chosen = {name for name in names if any(fnmatch.fnmatchcase(name, g) for g in globs)}
    if not chosen:
        have = ", ".join(f"'{name}'" for name in names[:5]) or "no leaf at all"
        raise UserError(
            f"{caller}: params holds no matrix, only {have}; give the parameters of a network, "
            "with layers of two axes or more."
        )
    found = {name: node for name, node in zip(names, nodes, strict=True) if name in chosen}
    for name, node in found.items():
        _check(caller, name, node, argument)
    return [_layer(name, node, shapes) for name, node in found.items()]


def matrices(layer: Layer, *, axes: int = 0) -> np.ndarray:
    """The matrices of a layer in float64, [k, m, n], with the population axes in front.

    For a leaf of kind 'none' it is an empty array.
    """

    def wide(x):
        return np.asarray(x, np.float64)

    weight = layer.weight
    if layer.kind == "none":
        return np.zeros((*np.shape(weight)[:axes], *layer.matrices))
    if svd.is_factors(weight):
        u, s, vt = (wide(weight[name]) for name in ("U", "s", "Vt"))
        weight = np.matmul(u * np.expand_dims(s, -2), vt)
    return wide(weight).reshape(*np.shape(weight)[:axes], *layer.matrices)


def _layer(name: str, node: Any, shapes: dict[str, tuple[int, ...]]) -> Layer:
    shape = shapes[name]
    kind, inputs = _kind(name, shapes)
    if kind in ("none", "convolution", "stack"):
        *places, m, n = (1, 1, 0) if kind == "none" else shape
    else:
        places, m, n = (), math.prod(shape[:inputs]), math.prod(shape[inputs:])
    dtype = np.result_type(*map(_dtype, jax.tree.leaves(node)))
    return Layer(name, kind, shape, (math.prod(places), m, n), dtype, node)


def _kind(name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int]:
    """The kind of a layer, and how many of its axes are inputs."""
    shape, (*above, last) = shapes[name], _own(name)
    if len(shape) < 2:
        return "none", 0
    if len(shape) == 2:
        return ("embedding" if last == "embedding" else "dense"), 1
    if last != "kernel":
        return "stack", 0
    bias = shapes.get(_beside(name, "bias"), ())
    if 1 < len(bias) < len(shape) and shape[-len(bias) :] == bias:
        return "attention", len(shape) - len(bias)
    if len(shape) == 3 and above[-1:]:
        if above[-1] in _PROJECTIONS and not bias:
            return "attention", 1
        siblings = ["/".join([*above[:-1], p, "kernel"]) for p in _PROJECTIONS]
        known = {"/".join(_own(other)) for other in shapes}
        if above[-1] == "out" and known.issuperset(siblings):
            return "attention", 2
    return "convolution", 0


def _own(name: str) -> list[str]:
    """The parts of a name, without the part that NNX adds below a parameter."""
    parts = name.split("/")
    return parts[:-1] if parts[-1] in _BOXES and len(parts) > 1 else parts


def _beside(name: str, other: str) -> str:
    parts = name.split("/")
    parts[len(_own(name)) - 1] = other
    return "/".join(parts)


def _shape(node: Any) -> tuple[int, ...]:
    if svd.is_factors(node):
        left, right = (tuple(np.shape(node[name])) for name in ("U", "Vt"))
        return (*left[:-1], *right[-1:])
    return tuple(node.shape if hasattr(node, "shape") else np.shape(node))


def _dtype(leaf: Any) -> np.dtype:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _check(caller: str, name: str, node: Any, argument: str) -> None:
    for leaf in jax.tree.leaves(node):
        dtype = _dtype(leaf)
        if isinstance(leaf, jax.ShapeDtypeStruct) or not jnp.issubdtype(dtype, jnp.floating):
            got = f"a {type(leaf).__name__} of {dtype}"
            raise UserError(
                f"{caller}: a layer must be an array of floating point numbers, but '{name}' is "
                f"{got}; give real floats (`jnp.float32(w)`), or choose others by {argument}=."
            )
    if svd.is_factors(node):
        u, s, vt = (np.shape(node[part]) for part in ("U", "s", "Vt"))
        axes = (len(u), len(s) + 1, len(vt))
        if min(axes) < 2 or len(set(axes)) > 1 or not u[-1] == s[-1] == vt[-2]:
            raise UserError(
                f"{caller}: '{name}' has factors U {u}, s {s} and Vt {vt}; give U [.., m, k], "
                "s [.., k] and Vt [.., k, n]."
            )
