"""Outputs that stand for an array which is never formed as a whole in memory.

An example is `sharpjax.losses.LinearLogits`. Such outputs are a pytree class with three methods.

    multiply_out()  the array
    affine()        the same outputs, but the second derivative of the array in its factors is left
                    out: the Hessian of an outer loss in the factors is then `J'HJ`, with J the
                    Jacobian of the array in its factors and H the Hessian in the array
    stand_in()      the shape of a small array with the same number of rows, and a function
                    (compared by value) that makes such outputs from a small array
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial


def is_implicit(node: Any) -> bool:
    """Whether the node stands for an array."""
    return callable(getattr(node, "multiply_out", None))


def holds_implicit(outputs: Any) -> bool:
    """Whether any of the outputs stands for an array."""
    return any(map(is_implicit, jax.tree.leaves(outputs, is_leaf=is_implicit)))


def multiply_out(outputs: Any) -> Any:
    """The outputs as arrays."""
    return _map(lambda node: node.multiply_out(), outputs)


def affine(outputs: Any) -> Any:
    """The outputs, as if each array were an affine function of its factors."""
    return _map(lambda node: node.affine(), outputs)


def multiplied_out(loss: Any) -> Any:
    """The loss (one with parts) with a model that returns arrays."""
    return dataclasses.replace(loss, model_fn=Partial(give_arrays, loss.model_fn))


def give_arrays(model_fn: Any, params: Any, batch: Any) -> Any:
    """`model_fn(params, batch)` as arrays."""
    return multiply_out(model_fn(params, batch))


def stand_ins(outer_loss: Any, outputs: Any) -> tuple[Any, Any]:
    """An outer loss that takes small arrays in place of implicit outputs, and the shapes of its
    arrays.

    >>> outer, outputs = stand_ins(sum, [jax.ShapeDtypeStruct((3,), float)])
    >>> outer is sum, outputs[0].shape
    (True, (3,))
    """
    if not holds_implicit(outputs):
        return outer_loss, outputs
    nodes, treedef = jax.tree.flatten(outputs, is_leaf=is_implicit)
    pairs = [node.stand_in() if is_implicit(node) else (node, None) for node in nodes]
    makers = _Makers(treedef, tuple(make for _, make in pairs))
    return Partial(_of_stand_ins, outer_loss, makers), [like for like, _ in pairs]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Makers:
    treedef: Any
    each: tuple[Callable[[jax.Array], Any] | None, ...]


def _of_stand_ins(outer_loss, makers, arrays, batch):
    pairs = zip(makers.each, arrays, strict=True)
    nodes = [x if make is None else make(x) for make, x in pairs]
    return outer_loss(jax.tree.unflatten(makers.treedef, nodes), batch)


def _map(fn, outputs):
    return jax.tree.map(
        lambda node: fn(node) if is_implicit(node) else node, outputs, is_leaf=is_implicit
    )
