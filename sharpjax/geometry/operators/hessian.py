"""The Hessian of a loss as an operator, its blocks, and single Hessian-vector products."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.geometry.loss import closures, cutting
from sharpjax.geometry.loss.assumptions import guard
from sharpjax.geometry.loss.checks import as_batch, as_loss, check_curvature
from sharpjax.geometry.loss.composed import chunk_weights
from sharpjax.geometry.loss.differentiable import Product
from sharpjax.geometry.loss.finite import poison, poisoned
from sharpjax.geometry.loss.frozen import freeze
from sharpjax.geometry.loss.precision import Precision, lower
from sharpjax.geometry.operators import differences
from sharpjax.geometry.operators.algebra import Matvec, Params
from sharpjax.geometry.operators.of_loss import OfLoss


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hessian(OfLoss):
    """The Hessian of `params -> loss(params, batch)`; `hessian` makes it and checks its arguments.

    Its fields are those of `OfLoss` and `Assuming`.
    """

    def check(self, caller: str) -> dict[str, Any]:
        problem = self.params, self.batch, self.microbatch_size
        loss, how = check_curvature(caller, self.loss, *problem, self.how.product)
        checked = cutting.check_cut(caller, loss, *problem)
        return {"loss": loss, "checked": checked, "how": how}

    def linearize(self) -> Matvec:
        params = tree.widen(self.params)
        if self.how.way == "difference":
            return guard(_difference(self, params), self.checked)
        if self.microbatch_size is not None:
            chunks = loops.split_chunks("hessian", self.batch, self.microbatch_size)
            weights = chunk_weights(self.loss, chunks)
            mean = _mean_reversed if self.how.way == "reverse" else _mean_product
            product = Partial(mean, self.loss, params, chunks, weights)
            return guard(product, self.checked)
        if self.how.way == "forward":
            return Partial(_product, self.loss, params, self.batch)
        with jax.default_matmul_precision("highest"):
            gradient = Partial(_gradient, self.loss, self.batch)
            if self.how.way == "reverse":
                _, pull, value = jax.vjp(gradient, params, has_aux=True)
                product = Partial(_pulled, pull)
            else:
                _, product, value = jax.linearize(gradient, params, has_aux=True)
        return Partial(poisoned, product, value)


def hessian(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
    precision: Precision = "highest",
    product: Product = "auto",
) -> Hessian:
    """The Hessian of a loss, as an operator; no product is computed here.

    A product `H v = d/dt grad loss(params + t v)` is forward over reverse. A solver linearises the
    gradient once. A product then costs 1.5 gradients (dense layers) to 2 (convolutions, attention),
    and the residuals of one gradient stay in memory. With microbatches no residuals stay, and a
    product costs 2 to 2.7 gradients. Everything runs at `highest` matmul precision and in float32
    at least: parameters and vectors of a narrower type are widened first, which changes no value.

    Args:
        loss: `loss(params, batch) -> scalar`, the mean over the examples. A hashable function, or a
            callable pytree such as a registered dataclass or `jax.tree_util.Partial`, whose arrays
            (frozen statistics, teachers, masks) are then traced: checkpoints that differ in them
            share one compilation.
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        where: glob or globs on leaf names (`sharpjax.tree.path_names`). Only the block of these
            leaves is used; the others are held fixed, and vectors have None in their place.
        microbatch_size: examples per pass; must divide the number of examples. The loss must be the
            mean over the examples, or declare their weights (`composed`). This is checked by two
            forward passes of at most 64 examples (`sharpjax.geometry.loss.cutting`).
        precision: "highest" or "bfloat16". With "bfloat16" the loss gets its parameters, batch and
            own arrays in bfloat16, and products are returned in float32. Residuals take half the
            memory; products have an error of about 1e-2 (`frobenius(low - exact)` measures it). A
            model that casts to a type of its own, such as a Flax module with a `dtype`, computes in
            that type.
        product: how `H v` is computed. "forward": forward over reverse. "reverse": reverse over
            reverse, for layers whose backward pass has no forward derivative, only a backward one.
            "auto": the first of these two that works, found from shapes; both are exact.
            "difference": central differences of gradients, for all other layers
            (`sharpjax.geometry.operators.differences`). A product then costs 4 gradients, and a
            linearisation 29; the product is NaN if it is off by more than 1e-2 of the largest, and
            `top_eigenpairs` counts its error. Not for nets that are piecewise linear.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy. A layer has
            no second derivative; the message names the layer.

    >>> import jax.numpy as jnp
    >>> def loss(params, batch):
    ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    >>> batch = {"x": jnp.eye(2), "y": jnp.ones(2)}
    >>> operator = hessian(loss, {"w": jnp.zeros(2)}, batch)
    >>> operator.linearize()({"w": jnp.array([1.0, 0.0])})
    {'w': Array([1., 0.], dtype=float32)}
    """
    loss = lower(as_loss("hessian", loss), precision)
    differences.check_precision("hessian", product, precision)
    return _hessian("hessian", loss, params, batch, where, microbatch_size, product)


def hvp(
    loss: Any,
    params: Params,
    batch: Any,
    vector: Params,
    *,
    microbatch_size: int | None = None,
) -> Params:
    """One Hessian-vector product `H v`, forward over reverse (Pearlmutter, 1994).

    Costs 2 to 2.7 gradients. For several products at one point use `hessian(...)`, which
    linearises once.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`.
        vector: tree like `params`; its leaves may also be in float32 where those of `params` are
            narrower.

    Returns:
        A tree like `params`, in float32 at least.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy.

    >>> import jax.numpy as jnp
    >>> def loss(params, batch):
    ...     return jnp.mean(batch) * jnp.sum(params**3)
    >>> hvp(loss, jnp.array([1.0, 2.0]), jnp.ones(4), jnp.array([1.0, -1.0])).tolist()
    [6.0, -12.0]
    """
    operator = _hessian("hvp", loss, params, batch, None, microbatch_size, "auto")
    wide = tree.widen(vector)
    tree.check_same_structure("hvp", "vector", wide, jax.eval_shape(tree.widen, operator.params))
    return multiply(operator, wide)


def _hessian(caller, loss, params, batch, where, microbatch_size, product) -> Hessian:
    batch = as_batch(caller, batch)
    loss, how = check_curvature(caller, loss, params, batch, microbatch_size, product)
    loss, params = freeze(loss, params, where)
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size)
    reads = closures.reads(loss)
    return Hessian(loss, params, batch, microbatch_size, how, checked=checked, reads=reads)


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _gradient(loss, batch, params):
    value, gradient = jax.value_and_grad(loss)(params, batch)
    return gradient, value


def _chunk_product(operands, chunk):
    loss, params, vector = operands
    with jax.default_matmul_precision("highest"):
        gradient = Partial(_gradient, loss, chunk)
        _, product, value = jax.jvp(gradient, (params,), (vector,), has_aux=True)
        return poison(product, value)


def _difference(operator: Hessian, params):
    # Two separate functions, since the tree structure must say whether the batch is cut.
    fn = Partial(_slope, operator.loss, operator.batch)
    if operator.microbatch_size is not None:
        chunks = loops.split_chunks("hessian", operator.batch, operator.microbatch_size)
        fn = Partial(_mean_slope, operator.loss, chunks, chunk_weights(operator.loss, chunks))
    gradient, value = fn(params)
    fn = Partial(_first, fn)
    step = differences.find_step(fn, params, gradient)
    product = Partial(differences.along, operator.how, step, fn, params)
    return Partial(poisoned, product, value)


def _first(fn, params):
    return fn(params)[0]


def _slope(loss, batch, params):
    with jax.default_matmul_precision("highest"):
        return _gradient(loss, batch, params)


def _chunk_slope(operands, chunk):
    loss, params = operands
    return _slope(loss, chunk, params)


def _mean_slope(loss, chunks, weights, params):
    return loops.mean_over_chunks(_chunk_slope, (loss, params), chunks, weights)


def _chunk_reversed(operands, chunk):
    loss, params, vector = operands
    with jax.default_matmul_precision("highest"):
        gradient = Partial(_gradient, loss, chunk)
        _, pull, value = jax.vjp(gradient, params, has_aux=True)
        return poison(_pulled(pull, vector), value)


def _pulled(pull, vector):
    """The Hessian is symmetric, so pulling back also multiplies by it."""
    with jax.default_matmul_precision("highest"):
        return pull(vector)[0]


def _product(loss, params, batch, vector):
    return _chunk_product((loss, params, vector), batch)


def _mean_product(loss, params, chunks, weights, vector):
    return loops.mean_over_chunks(_chunk_product, (loss, params, vector), chunks, weights)


def _mean_reversed(loss, params, chunks, weights, vector):
    return loops.mean_over_chunks(_chunk_reversed, (loss, params, vector), chunks, weights)


@jax.jit
def multiply(operator: Hessian, vector: Params) -> Params:
    """One product with a vector in float32 or wider; no checks."""
    if operator.microbatch_size is not None or operator.how.way == "difference":
        return operator.linearize()(vector)
    # Without `linearize`, which for a single product would only add stored residuals.
    product = _chunk_reversed if operator.how.way == "reverse" else _chunk_product
    return product((operator.loss, tree.widen(operator.params), vector), operator.batch)
