"""Products with `J' M J`: J is the Jacobian of the outputs, M a Hessian or a second moment."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.geometry.loss.composed import chunk_weights, methods, weights
from sharpjax.geometry.loss.differentiable import How
from sharpjax.geometry.loss.finite import poisoned
from sharpjax.geometry.loss.implicit import affine, multiplied_out
from sharpjax.geometry.operators import differences
from sharpjax.geometry.operators.algebra import Matvec, Params


class Jacobian(NamedTuple):
    """A linear map.

    Attributes:
        along: `v -> J v`.
        back: `u -> J' u`; None if jax can transpose `along`.
    """

    along: Matvec
    back: Matvec | None = None


Rule = Callable[[How, Any, Any, Params, Any], tuple[Jacobian, Matvec]]


def linearize_products(
    caller: str,
    rule: Rule,
    how: How,
    loss: Any,
    params: Params,
    batch: Any,
    microbatch_size: int | None,
) -> Matvec:
    """The product `v -> J' M J v`; what does not depend on v is computed once.

    With microbatches everything is computed again in each product.

    Args:
        rule: `curved`, `observed`, `sampled` or `scattered`; called with `(how, step, loss, params,
            batch)`, it returns `J` and `M`, both linear.
        how: how `J v` is computed.
        batch: for `sampled`, a pair of the batch and a key for each example.
    """
    params, chunks = tree.widen(params), None
    if rule is observed or rule is sampled:
        loss = multiplied_out(loss)  # they take outputs row by row
    if microbatch_size is not None:
        chunks = loops.split_chunks(caller, batch, microbatch_size)
    make = Partial(rule, how, None, loss)
    if how.way == "difference":
        some = batch if chunks is None else tree.index(chunks, 0)
        some = some[0] if rule is sampled else some
        model = Partial(_model, each(loss) if rule is scattered else loss.model_fn, some)
        make = Partial(rule, how, _find_step(model, params), loss)
    if chunks is not None:
        weight = chunk_weights(loss, chunks[0] if rule is sampled else chunks)
        return Partial(_mean_product, make, params, chunks, weight)
    with jax.default_matmul_precision("highest"):
        return Partial(_product, *make(params, batch))


def add_regularizer(product: Matvec, regularizer: Any, params: Params) -> Matvec:
    """The product plus the product with the Hessian of `regularizer(params)`."""
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
        if jacobian.back is not None:
            return jacobian.back(middle(jacobian.along(vector)))
        # The vjp of a linear function gives its value and its transpose.
        tangents, transpose = jax.vjp(jacobian.along, vector)
        (product,) = transpose(middle(tangents))
        return product


def _chunk_product(operands, chunk):
    make, params, vector = operands
    with jax.default_matmul_precision("highest"):
        jacobian, middle = make(params, chunk)
        return _product(jacobian, middle, vector)


def _mean_product(make, params, chunks, weight, vector):
    return loops.mean_over_chunks(_chunk_product, (make, params, vector), chunks, weight)


def curved(how: How, step: Any, loss: Any, params: Params, batch: Any) -> tuple[Jacobian, Matvec]:
    """M is the Hessian of the outer loss."""
    outputs, jacobian = _outputs(how, step, loss.model_fn, params, batch)
    slope = Partial(_slope, loss.outer_loss, batch)
    if how.outer == "linearized":
        _, middle, value = jax.linearize(slope, outputs, has_aux=True)
    elif how.outer == "forward":
        middle, value = Partial(_forward, slope, outputs), slope(outputs)[1]
    else:
        _, pull, value = jax.vjp(slope, outputs, has_aux=True)
        middle = Partial(_pulled, pull)  # it is symmetric
    return jacobian, Partial(poisoned, middle, value)


def observed(how: How, step: Any, loss: Any, params: Params, batch: Any) -> tuple[Jacobian, Matvec]:
    """M is the second moment of the gradients of the outer loss in single rows of the outputs."""
    outputs, jacobian = _outputs(how, step, loss.model_fn, params, batch)
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    rows = _split_rows(outputs, loops.count_examples("fisher", batch))
    return jacobian, _outer_products(loss, rows, ones, batch)


def sampled(
    how: How, step: Any, loss: Any, params: Params, batch_and_keys: Any
) -> tuple[Jacobian, Matvec]:
    """As `observed`, with labels drawn from the model."""
    batch, keys = batch_and_keys
    outputs, jacobian = _outputs(how, step, loss.model_fn, params, batch)
    # A key for each example, so that labels do not depend on the microbatches.
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    rows = _split_rows(outputs, len(keys))
    drawn = jax.vmap(methods(loss.outer_loss).sample)(_like_rows(keys, outputs), rows, ones)
    return jacobian, _outer_products(loss, rows, drawn, batch)


def _like_rows(keys, outputs):
    """The keys, resharded like the outputs if types carry shardings: vmap needs equal ones."""
    sharding = jax.typeof(jax.tree.leaves(outputs)[0]).sharding
    if not any(sharding.spec[:1]):
        return keys
    return jax.reshard(keys, jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[0])))


def _split_rows(outputs, count):
    def split(x):
        if len(x) == count:
            return jnp.expand_dims(x, 1)
        return x.reshape(count, len(x) // count, *x.shape[1:])

    return jax.tree.map(split, outputs)


def _outer_products(loss, rows, ones, batch):
    """`u_r -> share_r s_r (s_r'u_r)`, with `s_r` the gradient in row r of the loss of that row. The
    loss of an example is a mean over its R rows, so its gradient in row r is `s_r / R`."""
    values, slopes = jax.vmap(jax.value_and_grad(loss.outer_loss))(rows, ones)
    weight, (count, length) = weights(loss, batch), jax.tree.leaves(rows)[0].shape[:2]
    share = jnp.ones(count) / count if weight is None else weight / jnp.sum(weight)

    def counted(x):
        counts = jnp.expand_dims(share, tuple(range(1, x.ndim))) > 0
        return jnp.where(counts, x, 0).reshape(math.prod(x.shape[:2]), *x.shape[2:])

    finite = jnp.sum(counted(jnp.expand_dims(values, 1)))
    squares = jnp.repeat(share * length, length), jax.tree.map(counted, slopes)
    return Partial(poisoned, Partial(_along_slopes, *squares), finite)


def _along_slopes(share, slopes, tangents):
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(tangents), strict=True)
    terms = [jnp.sum(d * u, axis=tuple(range(1, d.ndim))) for d, u in pairs]
    along = functools.reduce(jnp.add, terms) * share.astype(terms[0].dtype)
    return jax.tree.map(lambda d: d * jnp.expand_dims(along, tuple(range(1, d.ndim))), slopes)


def scattered(
    how: How, step: Any, loss: Any, params: Params, batch: Any
) -> tuple[Jacobian, Matvec]:
    """J is the Jacobian of the losses of single examples, M multiplies each by its share of the
    mean."""
    weight = weights(loss, batch)
    share = None if weight is None else weight / jnp.sum(weight)
    if weight is not None:
        # The loss of an example of weight 0 may not be finite: another example takes its place.
        counts, other = weight > 0, jnp.argmax(weight)
        places = jnp.where(counts, jnp.arange(len(weight)), other)
        batch = jax.tree.map(lambda x: jnp.asarray(x)[places], batch)
    losses, jacobian = _outputs(how, step, each(loss), params, batch)
    return jacobian, Partial(poisoned, Partial(_share, share), jnp.sum(losses))


def each(loss: Any) -> Partial:
    """The function `(params, batch) -> [N]`, the loss of each example alone."""
    return Partial(_each, loss)


def _each(loss, params, batch):
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    return jax.vmap(loss, in_axes=(None, 0))(params, ones)


def _share(share, values):
    return values / len(values) if share is None else share.astype(values.dtype) * values


def _find_step(model, params):
    with jax.default_matmul_precision("highest"):
        outputs, pull = jax.vjp(model, params)
        return differences.find_step(Partial(_exactly, model), params, pull(outputs)[0])


def _exactly(fn, at):
    with jax.default_matmul_precision("highest"):
        return fn(at)


def _outputs(how, step, model_fn, params, batch) -> tuple[Any, Jacobian]:
    model = Partial(_model, model_fn, batch)
    if how.way == "linearized":
        outputs, along = jax.linearize(model, params)
        return outputs, Jacobian(along)
    if how.way == "forward":
        return model(params), Jacobian(Partial(_forward, Partial(_alone, model), params))
    outputs, pull = jax.vjp(model, params)
    back = Partial(_pulled, pull)
    if how.way == "difference":
        return outputs, Jacobian(Partial(differences.along, how, step, model, params), back)
    return outputs, Jacobian(Partial(_pushed, back, tree.zeros_like(outputs)), back)


def _forward(fn, at, vector):
    return jax.jvp(fn, (at,), (vector,), has_aux=True)[1]


def _alone(fn, at):
    return fn(at), None


def _pulled(pull, cotangents):
    return pull(cotangents)[0]


def _pushed(back, zeros, vector):
    """`J v` as the transpose of the linear map `u -> J'u`. Both hold the same residuals."""
    return jax.vjp(back, zeros)[1](vector)[0]


def _model(model_fn, batch, params):
    return tree.widen(model_fn(params, batch))


def _slope(outer_loss, batch, outputs):
    def value(outputs):
        return outer_loss(affine(outputs), batch)

    found, slope = jax.value_and_grad(value)(outputs)
    return slope, found
