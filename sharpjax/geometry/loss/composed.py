"""A loss that knows its parts, and the weights of its examples.

A loss is a mean over its examples, `L = sum_n w_n l_n / sum_n w_n + regularizer`. Here `l_n` is the
outer loss of example n as a batch of one; the weights are 1 unless they are declared.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss.checks import as_loss
from sharpjax.geometry.loss.closures import Current
from sharpjax.geometry.loss.frozen import call_with_frozen
from sharpjax.geometry.loss.implicit import give_arrays
from sharpjax.geometry.loss.precision import in_bfloat16, lower

Params = Any


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Composed:
    """`outer_loss(model_fn(params, batch), batch) + regularizer(params)`; `composed` makes it.

    Attributes:
        model_fn, outer_loss: callable pytrees.
        regularizer, example_weight: callable pytrees, or None.
    """

    model_fn: Any
    outer_loss: Any
    regularizer: Any = None
    example_weight: Any = None

    def __call__(self, params: Params, batch: Any) -> jax.Array:
        value = self.outer_loss(tree.widen(self.model_fn(params, batch)), batch)
        return value if self.regularizer is None else value + self.regularizer(params)


def composed(
    model_fn: Callable[[Params, Any], Any],
    outer_loss: Callable[[Any, Any], jax.Array],
    *,
    regularizer: Callable[[Params], jax.Array] | None = None,
    example_weight: Callable[[Any], jax.Array] | None = None,
) -> Composed:
    """A loss composed of a model and an outer loss on its outputs.

    `L(params) = outer_loss(model_fn(params, batch), batch) + regularizer(params)`. It is called
    like any loss; Gauss-Newton and Fisher matrices, exact traces and diagonals use its parts. Any
    other loss object with attributes `model_fn`, `outer_loss` and, optionally, `regularizer` and
    `example_weight` works as well.

    The functions must be hashable, or callable pytrees whose arrays are then traced, as for a loss.

    Args:
        model_fn: `model_fn(params, batch) -> outputs`, an array or a tree of arrays with the
            examples on axis 0: one row for each example, or the same number of rows for each (the
            tokens of a sequence). It must act on each example by itself. It may return
            `sharpjax.losses.LinearLogits` in place of an array of logits.
        outer_loss: `outer_loss(outputs, batch) -> scalar`, the mean over the examples, or their
            weighted mean.
        regularizer: `regularizer(params) -> scalar`. It is part of the Hessian and of the
            Gauss-Newton matrix, but never of Fisher matrices.
        example_weight: `example_weight(batch) -> [N]` numbers >= 0. Give it if `outer_loss` is the
            weighted mean `sum_n w_n l_n / sum_n w_n`, with `l_n` the outer loss of example n as a
            batch of one. Examples: its class weight, or the number of its unmasked tokens. The
            weight of an example must be the same in any batch. An example of weight 0 is ignored,
            whatever its `l_n`.

    Raises:
        UserError: an argument cannot be called, hashed, or traced.

    >>> weight = jnp.array([1.0, 3.0])
    >>> def weighted(outputs, batch):
    ...     w = weight[batch["class"]]
    ...     return jnp.sum(w * outputs**2) / jnp.sum(w)
    >>> loss = composed(
    ...     lambda params, batch: batch["x"] @ params,
    ...     weighted,
    ...     regularizer=lambda params: jnp.sum(params**2),
    ...     example_weight=lambda batch: weight[batch["class"]],
    ... )
    >>> batch = {"x": jnp.eye(2), "class": jnp.array([0, 1])}
    >>> print(loss(jnp.array([2.0, 1.0]), batch))  # (4 + 3) / 4 + 5
    6.75
    """
    return _composed("composed", model_fn, outer_loss, regularizer, example_weight)


def parts(loss: Any) -> Composed | None:
    """The parts of a loss, or None if it has none.

    Leaves frozen by `where` stay frozen. If `precision` lowered the loss, only its model is lowered
    in the parts.

    >>> loss = composed(lambda params, batch: batch @ params, lambda outputs, batch: outputs.sum())
    >>> parts(Partial(loss)).model_fn is loss.model_fn, parts(Partial(jnp.dot))
    (True, None)
    """
    fn, *arguments = _unwrapped(loss)
    if fn is call_with_frozen or fn is in_bfloat16:
        inner, *frozen = arguments
        found = parts(inner)
        if found is None:
            return None
        if fn is in_bfloat16:
            return dataclasses.replace(found, model_fn=lower(found.model_fn, "bfloat16"))
        return dataclasses.replace(
            found,
            model_fn=Partial(call_with_frozen, found.model_fn, *frozen),
            regularizer=None
            if found.regularizer is None
            else Partial(call_with_frozen, found.regularizer, *frozen),
        )
    if arguments or not hasattr(fn, "model_fn") or not hasattr(fn, "outer_loss"):
        return None
    if isinstance(fn, Composed):
        return fn
    optional = (getattr(fn, name, None) for name in ("regularizer", "example_weight"))
    return _composed(type(fn).__name__, fn.model_fn, fn.outer_loss, *optional)


def is_composed(loss: Any) -> bool:
    """Whether a loss is a `Composed`, which computes its value from its parts."""
    fn, *arguments = _unwrapped(loss)
    if fn is call_with_frozen or fn is in_bfloat16:
        return is_composed(arguments[0])
    return isinstance(fn, Composed)


def weights(loss: Any, batch: Any) -> jax.Array | None:
    """The declared weight of each example, [N] in jax's default float type, or None.

    Raises:
        UserError: `example_weight` does not return one number for each example.
    """
    fn, *arguments = _unwrapped(loss)
    if fn is call_with_frozen or fn is in_bfloat16:
        return weights(arguments[0], batch)
    declared = None if arguments else getattr(fn, "example_weight", None)
    if declared is None:
        return None
    found, count = declared(batch), loops.count_examples("example_weight", batch)
    if jnp.shape(found) != (count,):
        raise UserError(
            f"example_weight(batch) must return one number for each of the {count} examples; it "
            f"returned {jnp.shape(found)}."
        )
    return jnp.asarray(found).astype(float)


def total_weight(loss: Any, batch: Any) -> jax.Array | int:
    """The weight of a batch in a mean over batches: the sum of the weights of its examples, or
    their number."""
    found = weights(loss, batch)
    return loops.count_examples("batch", batch) if found is None else jnp.sum(found)


def chunk_weights(loss: Any, chunks: Any) -> jax.Array | None:
    """The total weight of each chunk, for `loops.mean_over_chunks`; None for equal weights."""
    if weights(loss, tree.index(chunks, 0)) is None:
        return None
    return jax.vmap(Partial(total_weight, loss))(chunks)


def methods(fn: Any) -> Any:
    """The object that the user passed, with its methods, out of its wrappers."""
    return _unwrapped(fn)[0]


def is_lowered(fn: Any) -> bool:
    """Whether `precision="bfloat16"` was applied to it.

    >>> is_lowered(lower(Partial(jnp.dot), "bfloat16")), is_lowered(Partial(jnp.dot))
    (True, False)
    """
    fn, *arguments = _unwrapped(fn)
    wraps = fn is call_with_frozen or fn is give_arrays
    return fn is in_bfloat16 or (wraps and is_lowered(arguments[0]))


def _composed(caller, model_fn, outer_loss, regularizer, example_weight) -> Composed:
    optional = {"regularizer": regularizer, "example_weight": example_weight}
    return Composed(
        as_loss(caller, model_fn, "model_fn"),
        as_loss(caller, outer_loss, "outer_loss"),
        **{n: None if fn is None else as_loss(caller, fn, n) for n, fn in optional.items()},
    )


def _unwrapped(fn) -> tuple[Any, ...]:
    """The function of a `Partial` or a `Current` and its arguments, or a callable by itself."""
    while isinstance(fn, Current | Partial):
        if isinstance(fn, Current):
            fn = fn.fn
        elif fn.keywords:
            break
        elif fn.args:
            return fn.func, *fn.args
        else:
            fn = fn.func
    return (fn,)
