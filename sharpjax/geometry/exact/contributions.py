"""The contribution of one example to an exact trace or diagonal, in the cheapest way per parameter.

With `g_c` the gradient of one example in a parameter along cotangent c, the example adds
`sum_c sign_c |g_c|^2` to the trace and `sum_c sign_c g_c^2` to the diagonal. A parameter that is
used once, in a product with input `a` and error `d` (`matrix_form`), has `g_c = sum_s a_s d_cs'`.
It takes one of these ways:

    norms        one position: |g|^2 = |a|^2 |d|^2, and g^2 = (a^2)(d^2)'; no gradient is formed
    gram         many: |g|^2 = sum_st (a_s.a_t) (d_s.d_t); no gradient is formed
    products     many: g is formed as a matrix product, if that takes fewer operations

Any other parameter is differentiated example by example ("gradients"), or is not used ("unused").
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.exact import per_example
from sharpjax.geometry.exact.matrix_form import Convolution, Dense, Shift, matrix_form

Kind = Literal["trace", "diagonal"]
Way = Literal["norms", "gram", "products", "gradients", "unused"]


class Route(NamedTuple):
    """How one parameter enters the model.

    Attributes:
        way: one of the ways in the docstring of this module.
        entry: the equation that uses the parameter, if there is only one and it is a product.
        form: that equation as a product, else None.
    """

    way: Way
    entry: per_example.Entry | None
    form: Dense | Convolution | Shift | None


class Traced(NamedTuple):
    """The jaxpr of a model on a batch of one, and the route of each parameter through it.

    Attributes:
        jaxpr: its inputs are the leaves of the parameters, then of the model, then of the batch.
        outputs: shapes of the outputs.
        routes: one for each leaf of the parameters.
    """

    jaxpr: Any
    outputs: Any
    routes: tuple[Route, ...]

    def numbers(self) -> tuple[int, int]:
        """Rough counts of the numbers kept for one example, and for each of its cotangents."""
        fixed = each = 0
        for route, parameter in zip(self.routes, self.jaxpr.jaxpr.invars, strict=False):
            if route.form is None:
                each += 0 if route.way == "unused" else 2 * parameter.aval.size
                continue
            b, s, k, f = route.form.sizes
            fixed += b * s * (2 * k + (2 * s if route.way == "gram" else 0))
            each += b * (3 * s * f + (k * f if route.way == "products" else 0))
        return fixed, each


def output_shapes(model: Any, params: Any, one: Any) -> Any:
    """The shapes of the outputs of a batch of one."""
    return jax.eval_shape(_call, params, model, one)


def trace_model(kind: Kind, model: Any, params: Any, one: Any, num_cotangents: int) -> Traced:
    """The model on a batch of one, and the routes of its parameters.

    Args:
        num_cotangents: number per example; the cheapest way depends on it.
    """
    jaxpr, outputs = jax.make_jaxpr(_call, return_shape=True)(params, model, one)
    leaves = jax.tree.leaves(params)
    uses = per_example.find_entries(jaxpr.jaxpr, len(leaves))
    routes = [_route(kind, x, u, num_cotangents) for x, u in zip(leaves, uses, strict=True)]
    return Traced(jaxpr, outputs, tuple(routes))


def pull_back(traced: Traced, params: Any, model: Any, one: Any) -> tuple[Any, Any, list[Any]]:
    """The outputs, and a function that turns a cotangent of the outputs into errors and gradients.

    Returns:
        The outputs; `pull(cotangent) -> (errors by path, gradients)`, with gradients only of the
        parameters on the way "gradients", in their order; and for each parameter the input of its
        form, or None.
    """
    inputs = jax.tree.leaves((params, model, one))
    free = [i for i, route in enumerate(traced.routes) if route.way == "gradients"]
    entries = [r.entry for r in traced.routes if r.entry is not None]
    like: dict[Any, Any] = {e.path: e.eqn.outvars[0].aval for e in entries if e.eqn is not None}

    def bumped(bumps, leaves):
        args = list(inputs)
        for i, leaf in zip(free, leaves, strict=True):
            args[i] = leaf
        outputs, read = per_example.evaluate(traced.jaxpr, args, bumps)
        return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs), read

    bumps = {path: jnp.zeros(aval.shape, aval.dtype) for path, aval in like.items()}
    outputs, pull, read = jax.vjp(bumped, bumps, [inputs[i] for i in free], has_aux=True)
    reads = [
        None if r.form is None or r.entry is None else tree.widen(r.form.inputs(read[r.entry.path]))
        for r in traced.routes
    ]
    return outputs, pull, reads


def contributions(
    kind: Kind, traced: Traced, signs: jax.Array, reads: Sequence[Any], errors: Any, gradients: Any
) -> list[Any]:
    """The contribution of the example, for each parameter.

    Args:
        signs: (c,).
        reads: from `pull_back`.
        errors, gradients: the results of its `pull`, with a leading axis c.

    Returns:
        For a trace, scalars. For a diagonal, the input of `assemble` without its leading axis of
        examples.
    """
    free: Iterator[Any] = iter(gradients)
    added = []
    for route, a, parameter in zip(traced.routes, reads, traced.jaxpr.jaxpr.invars, strict=False):
        if route.form is not None and route.entry is not None:
            d = tree.widen(jax.vmap(route.form.errors)(errors[route.entry.path]))
            same = signs.astype(d.dtype), a.astype(d.dtype), d
            added.append(_FORMULAS[kind, route.way](*same))
        elif route.way == "gradients":
            g = tree.widen(next(free))
            added.append(_of_gradients(kind, signs.astype(g.dtype), g))
        else:
            zero = 0 * jnp.sum(signs)
            added.append(zero if kind == "trace" else jnp.full(parameter.aval.shape, zero))
    return added


def assemble(route: Route, shape: tuple[int, ...], added: Any) -> jax.Array:
    """The diagonal for one parameter of this shape, from the contributions of all examples."""
    if route.form is None or route.entry is None:
        return jnp.sum(added, axis=0)
    if route.way == "norms":
        added = jnp.einsum("nbk,nbf->bkf", *added)
    else:
        added = jnp.sum(added, axis=0)
    return per_example.undo_moves(route.entry.moves, shape, route.form.weight(added))


def _call(params, model, one):
    return tree.widen(model(params, one))


def _route(kind, leaf, uses, num_cotangents) -> Route:
    if not uses or not leaf.size:
        return Route("unused", None, None)
    form = matrix_form(uses[0].eqn, uses[0].operand) if len(uses) == 1 else None
    if form is None:
        return Route("gradients", None, None)
    _, s, k, f = form.sizes
    if s == 1:
        way = "norms"
    elif kind == "trace" and s * (k + num_cotangents * f) < num_cotangents * k * f:
        way = "gram"
    else:
        way = "products"
    return Route(way, uses[0], form)


def _of_gradients(kind, signs, g):
    if kind == "diagonal":
        return jnp.einsum("c,c...->...", signs, g * g)
    return jnp.dot(signs, jnp.sum(g * g, axis=range(1, g.ndim)))


def _of_products(kind, signs, a, d):
    return _of_gradients(kind, signs, jnp.einsum("bsk,cbsf->cbkf", a, d))


def _trace_of_norms(signs, a, d):
    # The sum over d is separate, since the bias of the same layer shares it.
    return jnp.dot(signs, jnp.sum(d * d, axis=(2, 3)) @ jnp.sum(a * a, axis=(1, 2)))


def _trace_of_gram(signs, a, d):
    inputs = jnp.einsum("bsk,btk->bst", a, a)
    errors = jnp.einsum("cbsf,cbtf->bst", signs.reshape(-1, 1, 1, 1) * d, d)
    return jnp.sum(inputs * errors)


def _factors_of_diagonal(signs, a, d):
    return jnp.sum(a * a, axis=1), jnp.einsum("c,cbsf->bf", signs, d * d)


_FORMULAS = {
    ("trace", "norms"): _trace_of_norms,
    ("trace", "gram"): _trace_of_gram,
    ("trace", "products"): functools.partial(_of_products, "trace"),
    ("diagonal", "norms"): _factors_of_diagonal,
    ("diagonal", "products"): functools.partial(_of_products, "diagonal"),
}
