"""Inner products between the gradients of all examples; gradients are formed only if necessary.

With `g_nc = J_n' v_nc` the gradient of example n along cotangent c, the entries are `g_nc . g_md`,
a sum over parameters. A parameter that is used once, in a product with one position
(`matrix_form`), has `g_nc = a_n d_nc'` and adds `(a_n . a_m) (d_nc . d_md)`. For all other
parameters the gradients are formed, as rows of a matrix.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.geometry.exact.contributions import Traced, output_shapes, pull_back, trace_model
from sharpjax.geometry.loss.axes import on_auto_axes
from sharpjax.geometry.operators.algebra import without_derivative

_BYTES = 2**28  # memory for two blocks of examples


def gram(model: Any, params: Any, batch: Any, vectors: jax.Array) -> jax.Array:
    """The matrix `(J_n' v_nc) . (J_m' v_md)`, of shape [N C, N C]; examples come before cotangents.

    The examples of the model must not affect each other (`refuse_mixing`); it is called on batches
    of one. Exact up to rounding in the type that the model computes in.

    Cost: C back-propagations for each example, without the weight gradients of dense layers, and
    the products. If all examples do not fit in 256 MB, they are taken in blocks, and the work is
    repeated for each pair of blocks. Memory: four matrices of shape [N C, N C], and two blocks:
    256 MB, or the memory of two examples if that is more.

    Args:
        model: callable pytree, `model(params, batch) -> outputs [N, ...]`.
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        vectors: [N, C, ...], cotangents of each example.

    >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> model = jax.tree_util.Partial(lambda w, x: x @ w)
    >>> gram(model, jnp.zeros(2), x, jnp.ones((2, 1))).tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """
    given = model, params, batch, vectors
    if loops.is_traced(given):
        given = without_derivative(given)
    plan, carry, blocks = _begin(_BYTES, *given)
    operands, steps = (*given[:2], blocks), plan.blocks * (plan.blocks + 1) // 2
    (_, found), _ = loops.iterate(_Pair(plan), carry, operands, max_steps=steps, donate=True)
    size = vectors.shape[0] * vectors.shape[1]
    return found[:size, :size]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Plan:
    examples: int  # in a block
    blocks: int


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The part of the matrix between two blocks, for `sharpjax.loops.iterate`."""

    plan: _Plan

    def __call__(self, carry, operands):
        index, found = carry
        model, params, blocks = operands
        rows, columns = (
            jnp.asarray(x, jnp.int32)[index] for x in np.tril_indices(self.plan.blocks)
        )
        between = functools.partial(_between, self.plan.blocks == 1)
        with jax.default_matmul_precision("highest"):
            part = on_auto_axes(
                between, model, params, tree.index(blocks, rows), tree.index(blocks, columns)
            ).astype(found.dtype)
        at = rows * len(part), columns * len(part)
        found = jax.lax.dynamic_update_slice(found, part.T, at[::-1])
        return index + 1, jax.lax.dynamic_update_slice(found, part, at)


def _between(same, model, params, one, other):
    """The inner products of one block with another, summed over all parameters."""
    params = tree.widen(params)
    one = _pull(model, params, *one)
    other = one if same else _pull(model, params, *other)
    return functools.reduce(jnp.add, (_inner(*x, *y) for x, y in zip(one, other, strict=True)))


def _inner(a, d, b, e):
    count, cotangents = d.shape[:2]
    products = d.reshape(count * cotangents, -1) @ e.reshape(count * cotangents, -1).T
    if a is None:
        return products
    inputs = jnp.expand_dims(a @ b.T, (1, 3)).astype(products.dtype)
    both = products.reshape(count, cotangents, count, cotangents) * inputs
    return both.reshape(products.shape)


def _pull(model, params, batch, vectors):
    """For each parameter that is used, inputs [n, k] and errors [n, c, f], or None and the
    gradients [n, c, size]."""

    def one(example, vectors):
        one = jax.tree.map(lambda x: jnp.expand_dims(x, 0), example)
        traced = trace_model("diagonal", model, params, one, len(vectors))
        outputs, pull, reads = pull_back(traced, params, model, one)
        cotangents = jnp.expand_dims(vectors, 1).astype(outputs.dtype)
        errors, gradients = jax.vmap(pull)(cotangents)
        free, found = iter(gradients), []
        for route, a in zip(traced.routes, reads, strict=True):
            if route.form is not None and route.entry is not None:
                d = tree.widen(jax.vmap(route.form.errors)(errors[route.entry.path]))
                if not _is_outer(route.form):
                    a, d = None, jnp.einsum("bsk,cbsf->cbkf", a.astype(d.dtype), d)
                found.append((None if a is None else a.reshape(-1), d.reshape(len(d), -1)))
            elif route.way == "gradients":
                g = tree.widen(next(free))
                found.append((None, g.reshape(len(g), -1)))
        return found

    return jax.vmap(one)(batch, vectors)


def _is_outer(form) -> bool:
    """Whether the gradient of one example is one outer product."""
    return form.sizes.products == form.sizes.positions == 1


@functools.partial(jax.jit, static_argnums=0)
def _begin(budget, model, params, batch, vectors):
    params, (count, num_cotangents) = tree.widen(params), vectors.shape[:2]
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch)
    outputs = output_shapes(model, params, one)
    traced = trace_model("diagonal", model, params, one, num_cotangents)
    held = _numbers(traced, num_cotangents) * outputs.dtype.itemsize
    most = budget // held
    blocks = 1 if count <= most else math.ceil(count / max(1, most // 2))
    plan = _Plan(math.ceil(count / blocks), blocks)
    spare = plan.examples * blocks - count

    def cut(x):
        repeated = jnp.concatenate([x, x[:spare]]) if spare else x
        return repeated.reshape(blocks, plan.examples, *x.shape[1:])

    size = plan.examples * blocks * num_cotangents
    matrix = jnp.zeros((size, size), outputs.dtype)
    return plan, (jnp.int32(0), matrix), jax.tree.map(cut, (batch, vectors))


def _numbers(traced: Traced, num_cotangents: int) -> int:
    """A rough count of the numbers kept for one example."""
    total = 1
    for route, parameter in zip(traced.routes, traced.jaxpr.jaxpr.invars, strict=False):
        if route.form is not None:
            b, s, k, f = route.form.sizes
            rows = 0 if _is_outer(route.form) else b * k * f
            total += 2 * b * s * k + num_cotangents * (2 * b * s * f + rows)
        elif route.way == "gradients":
            total += 2 * num_cotangents * parameter.aval.size
    return total
