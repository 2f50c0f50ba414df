"""Products with `J' M J`, J the Jacobian of the outputs, and M between: a curvature, or squares."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.geometry.loss.composed import chunk_weights, methods, weights
from sharpjax.geometry.loss.finite import poisoned
from sharpjax.geometry.operators.algebra import Matvec, Params

Rule = Callable[[Any, Params, Any], tuple[Matvec, Matvec]]


def linearize_products(
    caller: str, rule: Rule, loss: Any, params: Params, batch: Any, microbatch_size: int | None
) -> Matvec:
    """The product `v -> J' M J v`, computed once as far as it does not depend on v.

    Args:
        rule: `curved`, `observed`, `sampled` or `scattered`; of `(loss, params, batch)` it returns
            `J` and `M`, both linear.
        batch: of `sampled` a pair, with a key for each example.
    """
    params, make = tree.widen(params), Partial(rule, loss)
    if microbatch_size is not None:
        chunks = loops.split_chunks(caller, batch, microbatch_size)
        weight = chunk_weights(loss, chunks[0] if rule is sampled else chunks)
        return Partial(_mean_product, make, params, chunks, weight)
    with jax.default_matmul_precision("highest"):
        return Partial(_product, *make(params, batch))


def add_regularizer(product: Matvec, regularizer: Any, params: Params) -> Matvec:
    """The product, and that with the Hessian of `regularizer(params)`."""
    with jax.default_matmul_precision("highest"):
        gradient = Partial(_gradient, regularizer)
        _, other, value = jax.linearize(gradient, tree.widen(params), has_aux=True)
    return Partial(_sum, product, Partial(poisoned, other, value))


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _gradient(regularizer, params):
    value, gradient = jax.value_and_grad(regularizer)(params)
    return gradient, value


def _sum(product, other, vector):
    return jax.tree.map(jnp.add, product(vector), other(vector))


def _product(jacobian, middle, vector):
    with jax.default_matmul_precision("highest"):
        # Of a linear function: its value, and its transpose.
        tangents, transpose = jax.vjp(jacobian, vector)
        (product,) = transpose(middle(tangents))
        return product


def _chunk_product(operands, chunk):
    make, params, vector = operands
    with jax.default_matmul_precision("highest"):
        jacobian, middle = make(params, chunk)
        return _product(jacobian, middle, vector)


def _mean_product(make, params, chunks, weight, vector):
    return loops.mean_over_chunks(_chunk_product, (make, params, vector), chunks, weight)


def curved(loss: Any, params: Params, batch: Any) -> tuple[Matvec, Matvec]:
    """M is the Hessian of the outer loss."""
    outputs, jacobian = _outputs(loss.model_fn, params, batch)
    _, middle, value = jax.linearize(Partial(_slope, loss.outer_loss, batch), outputs, has_aux=True)
    return jacobian, Partial(poisoned, middle, value)


def observed(loss: Any, params: Params, batch: Any) -> tuple[Matvec, Matvec]:
    """M is the second moment of the slopes of single rows."""
    outputs, jacobian = _outputs(loss.model_fn, params, batch)
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    rows = _split_rows(outputs, loops.count_examples("fisher", batch))
    return jacobian, _outer_products(loss, rows, ones, batch)


def sampled(loss: Any, params: Params, batch_and_keys: Any) -> tuple[Matvec, Matvec]:
    """As `observed`, at labels drawn from the model."""
    batch, keys = batch_and_keys
    outputs, jacobian = _outputs(loss.model_fn, params, batch)
    # A key for each example, so that labels do not depend on the microbatches.
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    rows = _split_rows(outputs, len(keys))
    drawn = jax.vmap(methods(loss.outer_loss).sample)(_like_rows(keys, outputs), rows, ones)
    return jacobian, _outer_products(loss, rows, drawn, batch)


def _like_rows(keys, outputs):
    """Where types carry shardings, vmap wants all its arguments to lie alike."""
    sharding = jax.typeof(jax.tree.leaves(outputs)[0]).sharding
    if not any(sharding.spec[:1]):
        return keys
    return jax.reshard(keys, jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[0])))


def _split_rows(outputs, count):
    def split(x):
        if len(x) == count:
            return jnp.expand_dims(x, 1)
        return x.reshape(count, -1, *x.shape[1:])

    return jax.tree.map(split, outputs)


def _outer_products(loss, rows, ones, batch):
    """`u_r -> share_r s_r (s_r'u_r)`, with `s_r` the slope of row r alone: that of its example, a
    mean of R rows, is `s_r / R`."""
    values, slopes = jax.vmap(jax.value_and_grad(loss.outer_loss))(rows, ones)
    weight, (count, length) = weights(loss, batch), jax.tree.leaves(rows)[0].shape[:2]
    share = jnp.ones(count) / count if weight is None else weight / jnp.sum(weight)

    def counted(x):
        counts = jnp.expand_dims(share, tuple(range(1, x.ndim))) > 0
        return jnp.where(counts, x, 0).reshape(-1, *x.shape[2:])

    finite = jnp.sum(counted(jnp.expand_dims(values, 1)))
    squares = jnp.repeat(share * length, length), jax.tree.map(counted, slopes)
    return Partial(poisoned, Partial(_along_slopes, *squares), finite)


def _along_slopes(share, slopes, tangents):
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(tangents), strict=True)
    terms = [jnp.sum(d * u, axis=tuple(range(1, d.ndim))) for d, u in pairs]
    along = functools.reduce(jnp.add, terms) * share.astype(terms[0].dtype)
    return jax.tree.map(lambda d: d * jnp.expand_dims(along, tuple(range(1, d.ndim))), slopes)


def scattered(loss: Any, params: Params, batch: Any) -> tuple[Matvec, Matvec]:
    """J is the Jacobian of the losses of single examples, M their share of the mean."""
    weight = weights(loss, batch)
    share = None if weight is None else weight / jnp.sum(weight)
    if weight is not None:
        # An example that does not count may have no finite loss: one that does stands in its place.
        counts, other = weight > 0, jnp.argmax(weight)
        places = jnp.where(counts, jnp.arange(len(weight)), other)
        batch = jax.tree.map(lambda x: jnp.asarray(x)[places], batch)
    losses, jacobian = jax.linearize(Partial(_each, loss, batch), params)
    return jacobian, Partial(poisoned, Partial(_share, share), jnp.sum(losses))


def _each(loss, batch, params):
    """The loss of each example, [N]."""
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    return tree.widen(jax.vmap(loss, in_axes=(None, 0))(params, ones))


def _share(share, values):
    return values / len(values) if share is None else share.astype(values.dtype) * values


def _outputs(model_fn, params, batch):
    return jax.linearize(Partial(_model, model_fn, batch), params)


def _model(model_fn, batch, params):
    return tree.widen(model_fn(params, batch))


def _slope(outer_loss, batch, outputs):
    value, slope = jax.value_and_grad(outer_loss)(outputs, batch)
    return slope, value
