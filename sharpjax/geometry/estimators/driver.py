"""The common part of all estimators: probe, or decompose the matrix, and set the status."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import loops
from sharpjax.geometry.accuracy import how_it_ended
from sharpjax.geometry.estimators import deflation, hutchinson
from sharpjax.geometry.estimators.decomposition import decompose
from sharpjax.geometry.estimators.hutchinson import Statistic
from sharpjax.geometry.estimators.request import Found, Request
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.status import Status

Finish = Callable[[Found, jax.Array], Any]


def solve(request: Request, statistic: Statistic, finish: Finish) -> Any:
    """The result of a request.

    Args:
        request: the checked arguments.
        statistic: what to compute from the probes.
        finish: a module-level function that makes the result from a `Found` and a `Status`. The
            `estimates` of the result must hold one estimate; its error decides the status.
    """
    accuracy = request.accuracy
    if request.method == "exact":
        found = decompose(request, statistic, request.operator, request.key)
        checked, found = found.checked, found._replace(checked=None)
        return mark(_of_parts(finish, accuracy.is_asked, accuracy, found), checked)
    assert request.key is not None
    state, steps = deflation.run(
        *(statistic, request.key, request.operator),
        accuracy=accuracy,
        max_products=request.max_products,
        basis_size=request.basis_size,
    )
    return _of_probes(finish, statistic, accuracy.is_asked, state, steps)


@functools.partial(loops.compiled_quickly, static_argnums=(0, 1, 2))
def _of_probes(finish, statistic, is_asked, state, steps):
    found = hutchinson.read(statistic, state, steps)
    result = finish(found, hutchinson.status(statistic, state, is_asked))
    # In the unit of the operator the value may overflow.
    ((value, error, _),) = result.estimates().values()
    status = jnp.where(jnp.isfinite(value + error), result.status, Status.NON_FINITE)
    return result._replace(status=status.astype(jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_parts(finish, is_asked, accuracy, found: Found):
    result = finish(found, jnp.int32(0))
    ((value, error, _),) = result.estimates().values()
    size = jnp.abs(value)
    within = error <= accuracy.fill(0 * size).allowed(size)
    met = (error == 0) | within | (not is_asked)
    return result._replace(status=how_it_ended(met, jnp.isfinite(size + error)))
