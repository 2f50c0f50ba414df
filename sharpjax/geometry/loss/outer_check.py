"""Checks that an outer loss is the mean over its examples (for Gauss-Newton and Fisher matrices).

The check takes at most 64 examples `scattered` over the batch, at random outputs. It compares the
loss of all together with the weighted mean of the losses of single examples: the value, the
gradient, and one product with the Hessian. If examples have many outputs, such as sequences of
tokens from a large vocabulary, fewer are taken, so that all their outputs are at most 2^22 numbers;
but at least 4. The check misses weights that differ so rarely that less than about one of these
examples shows it, and losses that branch on their own value.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss import assumptions
from sharpjax.geometry.loss.assumptions import Checked
from sharpjax.geometry.loss.axes import is_explicit, on_auto_axes
from sharpjax.geometry.loss.composed import Composed, weights
from sharpjax.geometry.loss.cutting import coarsest
from sharpjax.geometry.loss.implicit import holds_implicit, stand_ins
from sharpjax.geometry.loss.scattered import scattered

_MOST, _LEAST = 64, 4
_NUMBERS_AT_MOST = 2**22
_TOLERANCE = 1e-3
_ROUNDING = 1e-6
_DIGITS = 2.0**12  # a derivative needs this times the smallest normal number to keep its digits
# Two tables of coprime lengths: jax's generator takes as long to compile as all the rest.
_NUMBERS = tuple(
    np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in ((0, 4093), (1, 1021))
)

_REMEDY = (
    "If it is a weighted or masked mean, declare the weights, composed(..., example_weight=). A "
    "loss in which examples see each other (in-batch negatives) has no such matrix; products with "
    "its Hessian, and methods that probe by them, need none of this."
)
_SUM_REMEDY = (
    "Give the mean over the examples, and multiply the operator: N * operator of a plain sum, "
    "(N / c) * operator of a sum that is divided by a number c."
)


def check_outer(
    caller: str, loss: Composed, params: Any, batch: Any, outputs: Any, curved: bool = True
) -> Checked | None:
    """None if the outer loss is a (weighted) mean over the examples; inside a trace, a flag.

    An outer loss that names shardings under Explicit mesh axes is not checked: single examples have
    none.

    Args:
        loss, params, batch: the parameters are used only if random outputs give no finite loss, for
            example because outputs must be probabilities. The outputs of the model are then used.
        outputs: the shapes of the outputs.
        curved: whether to compare products with the Hessian; else only value and gradient.

    Raises:
        UserError: the outer loss is not such a mean, its derivatives are too small for their type,
            a weight is negative, or the weight of an example depends on its batch; names `caller`
            and the remedy.
    """
    if not jax.tree.leaves(batch):
        return None
    # Small arrays take the place of outputs that are never formed as a whole.
    outer, arrays = stand_ins(loss.outer_loss, jax.eval_shape(tree.widen, outputs))
    leaves, treedef = jax.tree.flatten(arrays)
    rows = leaves[0].shape[0] // loops.count_examples(caller, batch)
    like = treedef, rows, tuple((x.shape[1:], x.dtype) for x in leaves)
    each = rows * sum(math.prod(x.shape[1:]) for x in leaves)
    most = min(_MOST, max(_LEAST, _NUMBERS_AT_MOST // max(each, 1)))
    parts = outer, loss.example_weight
    few = batch if loss.example_weight is not None else _of_host(batch, most)
    with jax.debug_nans(False):
        try:
            found = _at_random(like, most, curved, parts, few)
        except ValueError as error:
            if isinstance(error, UserError) or not is_explicit():
                raise
            return None  # the loss names shardings: the whole batch was traced without an error
        if holds_implicit(outputs):
            pass  # these are not probabilities, and trying them would form the whole array
        elif loops.is_traced(found):
            at_outputs = functools.partial(_at_outputs, most, curved, loss, params, batch)
            found = jax.lax.cond(found.finite, lambda: found, at_outputs)
        elif not found.finite:
            found = _at_outputs(most, curved, loss, params, batch)
    fair = assumptions.require(
        caller,
        found.fair,
        "example_weight(batch) must return numbers >= 0, and give an example the weight that it "
        "has alone: normalise them in outer_loss, not here.",
    )
    if not loops.is_traced(found) and bool(found.is_tiny):
        raise UserError(
            f"{caller}: derivatives of outer_loss are among the smallest numbers of their type, "
            f"where digits are lost. Multiply the loss by a constant, and divide the operator by "
            f"it."
        )
    is_sum = not loops.is_traced(found) and bool(found.is_sum)
    mean = assumptions.require(
        caller,
        found.holds,
        "outer_loss is a sum over the examples, not their mean. " + _SUM_REMEDY
        if is_sum
        else f"outer_loss is not the mean over the examples: on {_MOST} of them or fewer, its "
        f"value, gradient or curvature is not the mean of those of single examples. {_REMEDY}",
    )
    return assumptions.both(fair, mean)


class _Found(NamedTuple):
    """`finite`: the loss and its derivatives are finite. `holds`: it is the mean, or not finite.
    `is_sum`: it is the sum. `is_tiny`: its derivatives may have lost digits. `fair`: the weights
    are valid."""

    finite: jax.Array
    holds: jax.Array
    is_sum: jax.Array
    is_tiny: jax.Array
    fair: jax.Array


class _Derivatives(NamedTuple):
    value: jax.Array
    size: jax.Array
    slope: Any
    product: Any


def _of_host(batch, most):
    """The batch; if it holds numpy arrays, only the examples that are used go to the device."""
    if not any(isinstance(x, np.ndarray) for x in jax.tree.leaves(batch)):
        return batch
    count = len(jax.tree.leaves(batch)[0])
    chosen = scattered(count, min(count, most))
    return jax.tree.map(lambda x: x[chosen], batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _at_random(like, most, curved, parts, batch) -> _Found:
    treedef, rows, leaves = like

    def at_random(parts, batch):
        few, weight, fair = _choose(parts, batch, most)
        count = len(weight) * rows
        shapes = [jax.ShapeDtypeStruct((count, *shape), dtype) for shape, dtype in leaves]
        outputs = jax.tree.unflatten(treedef, [_normal(x, *_NUMBERS) for x in shapes])
        return _compare(parts, curved, outputs, few, weight, fair)

    return on_auto_axes(at_random, parts, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _at_outputs(most, curved, loss, params, batch) -> _Found:
    def at_outputs(loss, params, batch):
        parts = loss.outer_loss, loss.example_weight
        few, weight, fair = _choose(parts, batch, most)
        outputs = tree.widen(loss.model_fn(tree.widen(params), few))
        return _compare(parts, curved, outputs, few, weight, fair)

    return on_auto_axes(at_outputs, loss, params, batch)


def _choose(parts, batch, most):
    """Some examples spread over the batch (of positive weight, if there are enough), their weights,
    and whether all weights of the batch are at least 0."""
    count = loops.count_examples("outer_loss", batch)
    most = min(count, most)
    chosen = jnp.asarray(scattered(count, most))
    weight = _weigh(parts, batch)
    if weight is not None:
        counted = jnp.sum(weight > 0, dtype=jnp.int32)
        order = jnp.argsort(weight <= 0, stable=True)
        chosen = order[scattered(jnp.maximum(counted, most), most)]
    few = jax.tree.map(lambda x: jnp.asarray(x)[chosen], batch)
    if weight is None:
        return few, jnp.ones(len(chosen)), jnp.ones((), bool)
    return few, weight[chosen], jnp.all(weight >= 0)


def _weigh(parts, batch) -> Any:
    return weights(Composed(None, *parts[:1], example_weight=parts[1]), batch)


def _compare(parts, curved, outputs, few, weight, fair) -> _Found:
    count = len(weight)
    # Wider if the loss itself computes in bfloat16.
    tolerance = max(_TOLERANCE, 8 * coarsest(jax.make_jaxpr(parts[0])(outputs, few).jaxpr))
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), few)
    if parts[1] is not None:
        alone = jnp.ravel(jax.vmap(lambda one: _weigh(parts, one))(ones))
        fair &= jnp.all(jnp.abs(alone - weight) <= _TOLERANCE * jnp.abs(weight))
    vector = jax.tree.map(lambda x: _normal(x, *reversed(_NUMBERS)), outputs)

    def apart(x):
        return x.reshape(count, len(x) // count, *x.shape[1:])

    def derive(outputs, batch, vector):
        return _derive(parts[0], outputs, batch, vector if curved else None)

    whole = derive(outputs, few, vector)
    each = jax.vmap(derive)(jax.tree.map(apart, outputs), ones, jax.tree.map(apart, vector))
    share = weight / jnp.sum(weight)

    def mean(x):
        by = jnp.expand_dims(share, tuple(range(1, x.ndim)))
        return jnp.where(by > 0, by.astype(x.dtype) * x, 0)

    singles = jax.tree.map(mean, each)
    value, size = jnp.sum(singles.value), jnp.sum(singles.size)
    near = jnp.abs(whole.value - value) <= tolerance * jnp.maximum(whole.size, size)

    def norms(x, y):
        pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
        wide = [(a.astype(value.dtype).ravel(), b.astype(value.dtype).ravel()) for a, b in pairs]
        # Largest entries, since squares would underflow for a tiny loss.
        sizes = [(a, b, a - b, a - count * b) for a, b in wide]
        return [[jnp.max(jnp.abs(v), initial=0) for v in each] for each in sizes]

    slopes = norms(whole.slope, singles.slope)
    products = norms(whole.product, singles.product)
    # If the curvature is zero, its products still show the rounding of the gradient.
    floor = _ROUNDING * tree.total([jnp.maximum(a, b) for a, b, *_ in slopes])
    for a, b, off, _ in (*slopes, *products):
        near &= off <= tolerance * jnp.maximum(a, b) + floor
    total, beside = (tree.total([size[i] for size in slopes]) for i in (0, 3))
    is_sum = (beside <= tolerance * total) & (total > 0)
    tiny = _DIGITS * jnp.finfo(total.dtype).tiny
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(each.slope)]))
    is_tiny = (0 < largest) & (largest < count * tiny)
    finite = jnp.isfinite(whole.value + total + tree.total([size[0] for size in products]))
    return _Found(finite, near | ~finite, is_sum, is_tiny & ~near, fair)


def _normal(like, first, second):
    """Normal numbers, the same at each call; different ones if the two tables are swapped."""
    numbers = jnp.resize(first, like.shape) + jnp.resize(second[::-1], like.shape)
    return (numbers / 2**0.5).astype(like.dtype)


def _derive(outer_loss, outputs, batch, vector) -> _Derivatives:
    def slope(outputs):
        value, gradient = jax.value_and_grad(lambda o: outer_loss(o, batch))(outputs)
        return gradient, value

    with jax.default_matmul_precision("highest"):
        # Reverse over reverse: for losses with a backward pass of their own it is the only way.
        if vector is None:
            gradient, value = slope(outputs)
            return _Derivatives(value, jnp.abs(value), gradient, tree.zeros_like(gradient))
        gradient, pull, value = jax.vjp(slope, outputs, has_aux=True)
        (product,) = pull(vector)
    return _Derivatives(value, jnp.abs(value), gradient, product)
