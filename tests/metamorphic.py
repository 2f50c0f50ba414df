"""The operators of each loss of `kinds_of_loss`, inside and outside of a trace, and dense truth.

All that a relation changes (a factor, a ridge, the coordinates, the order of the examples) is a
leaf, so that one compilation of the matrix serves them all.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from sharpjax import geometry
from sharpjax.geometry.operators.algebra import linearize
from tests.kinds_of_loss import case

# The same loss, seen otherwise.


class View(NamedTuple):
    """Attributes:
    factor: of the outer loss.
    ridge: c of `c |w|^2 / 2`, added to the loss.
    rotation: for each leaf an orthogonal matrix R; the parameters are `w = R z`.
    """

    factor: Any
    ridge: Any
    rotation: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turned:
    """A model of turned parameters."""

    model_fn: Any
    rotation: Any

    def __call__(self, params, batch):
        return self.model_fn(turn(self.rotation, params), batch)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Multiplied:
    """A multiple of an outer loss, which draws labels as that does."""

    factor: Any
    outer_loss: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, outputs, batch):
        return self.factor * self.outer_loss(outputs, batch)

    @property
    def canonical(self):
        return self.outer_loss.canonical

    def sample(self, key, outputs, batch):
        return self.outer_loss.sample(key, outputs, batch)


def turn(rotation, params):
    def leaf(r, x):
        return (r @ x.reshape(-1)).reshape(x.shape)

    return jax.tree.map(leaf, rotation, params)


def ridge(c, params):
    squares = [jnp.sum(jnp.square(x.astype(jnp.float64))) for x in jax.tree.leaves(params)]
    return c * sum(squares) / 2


def plain_loss(model_fn, outer_loss, c, params, batch):
    return outer_loss(model_fn(params, batch), batch) + ridge(c, params)


def view_of(params) -> View:
    one, zero = jnp.ones(()), jnp.zeros(())
    return View(one, zero, jax.tree.map(lambda x: jnp.eye(x.size, dtype=x.dtype), params))


# Operators.

PLAIN = ("hessian", "empirical_fisher")
COMPOSED = (
    *("composed hessian", "composed empirical_fisher"),
    *("gauss_newton", "fisher", "observed fisher", "drawn fisher"),
)


# What a model is made of does not matter to how an outer loss declares weights and draws labels,
# nor to an exact Fisher matrix, which is the Gauss-Newton matrix: these losses show it for all.
_ALL_OF = ("mean", "weighted", "masked", "class_weighted", "sum", "mixed_types")
_SAME = ("composed hessian", "composed empirical_fisher", "fisher", "drawn fisher")


def operators(name: str) -> tuple[str, ...]:
    """Those that the suite makes of a loss."""
    return PLAIN + tuple(op for op in COMPOSED if name in _ALL_OF or op not in _SAME)


def make(name: str, operator: str, view: View, params, batch, key, **options) -> Any:
    """An operator of a loss of the table, by the constructor that a user calls."""
    model_fn = Turned(case(name).model_fn, view.rotation)
    outer_loss = Multiplied(view.factor, case(name).outer_loss)
    if operator in PLAIN:
        loss = Partial(plain_loss, model_fn, outer_loss, view.ridge)
    else:
        loss = geometry.composed(
            model_fn,
            outer_loss,
            regularizer=Partial(ridge, view.ridge),
            example_weight=case(name).weight,
        )
    if operator.endswith("hessian"):
        return geometry.hessian(loss, params, batch, **options)
    if operator.endswith("empirical_fisher"):
        return geometry.empirical_fisher(loss, params, batch, **options)
    if operator == "gauss_newton":
        return geometry.gauss_newton(loss, params, batch, **options)
    if operator == "observed fisher":
        options["labels"] = "observed"
    if operator == "drawn fisher":
        options["key"] = key
    return geometry.fisher(loss, params, batch, **options)


def matrix(product, params):
    """The whole matrix of a product, column by column, in float64."""
    leaves, structure = jax.tree.flatten(params)
    sizes = np.cumsum([x.size for x in leaves])[:-1]

    def unravel(v):
        each = zip(jnp.split(v, sizes), leaves, strict=True)
        return structure.unflatten([part.reshape(x.shape).astype(x.dtype) for part, x in each])

    return jax.vmap(lambda v: flat(product(unravel(v))))(jnp.eye(sum(x.size for x in leaves))).T


def flat(tree):
    return jnp.concatenate([x.reshape(-1).astype(jnp.float64) for x in jax.tree.leaves(tree)])


_matrix_of_product = jax.jit(matrix)
_matrix = jax.jit(lambda operator: matrix(operator.linearize(), operator.like))


def by_products(operator) -> np.ndarray:
    """The matrix of an operator, linearised and multiplied with as solvers do."""
    return np.asarray(_matrix_of_product(linearize(operator), operator.like))


def at_once(operator) -> np.ndarray:
    """The same in one program."""
    return np.asarray(_matrix(operator))


@functools.partial(jax.jit, static_argnums=(0, 1))
def inside(name, operator, *args):
    """The matrix, with all of it inside a trace of the caller."""
    return matrix(make(name, operator, *args).linearize(), args[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def inside_lanes(name, operator, lanes, key):
    """The matrices of several views, parameters and batches, by `vmap`."""
    return jax.vmap(lambda lane: inside(name, operator, *lane, key))(lanes)


# What they must be: dense matrices of the reference, without any of the library.


class Dense(NamedTuple):
    """Attributes:
    hessian, gauss_newton: of the loss.
    observed, drawn: `sum_n w_n g_n g_n' / sum_n w_n`, with g_n the gradient of the outer loss of
        example n alone, at its row of the outputs.
    plain, weighted: the same for the whole loss of one example alone; all w_n = 1 in the first.
    """

    hessian: Any
    gauss_newton: Any
    observed: Any
    drawn: Any
    plain: Any
    weighted: Any


DENSE = {
    "hessian": "hessian",
    "composed hessian": "hessian",
    "gauss_newton": "gauss_newton",
    "fisher": "gauss_newton",
    "observed fisher": "observed",
    "drawn fisher": "drawn",
    "empirical_fisher": "plain",
    "composed empirical_fisher": "weighted",
}


@functools.partial(jax.jit, static_argnums=0)
def dense(name: str, params, batch, key) -> Dense:
    problem = case(name)
    model, outer = problem.reference, problem.outer_loss
    vector, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float64), params))
    count = len(jax.tree.leaves(batch)[0])
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    weight = jnp.ones(count) if problem.weight is None else problem.weight(batch)

    def outputs(v):
        return model(unravel(v), batch)

    def rows(v):
        return jax.tree.map(lambda x: jnp.expand_dims(x, 1), outputs(v))

    def scatter(weight, losses):
        slopes = jax.jacrev(losses)(vector)
        slopes = jnp.where(jnp.expand_dims(weight > 0, 1), slopes, 0)
        return jnp.einsum("n,np,nq->pq", weight, slopes, slopes) / jnp.sum(weight)

    def alone(v):
        return jax.vmap(lambda one: outer(model(unravel(v), one), one))(ones)

    out, unstack = ravel_pytree(outputs(vector))
    jacobian = jax.jacrev(lambda v: ravel_pytree(outputs(v))[0])(vector)
    middle = jax.hessian(lambda out: outer(unstack(out), batch))(out)
    drawn = jax.vmap(outer.sample)(jax.random.split(key, count), rows(vector), ones)
    return Dense(
        hessian=jax.hessian(lambda v: outer(outputs(v), batch))(vector),
        gauss_newton=jacobian.T @ middle @ jacobian,
        observed=scatter(weight, lambda v: jax.vmap(outer)(rows(v), ones)),
        drawn=scatter(weight, lambda v: jax.vmap(outer)(rows(v), drawn)),
        plain=scatter(jnp.ones(count), alone),
        weighted=scatter(weight, alone),
    )
