"""Arguments of a wrong type are refused in one line that names the function and the argument."""

import jax
import jax.numpy as jnp
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError

KEY = jax.random.key(0)
PARAMS = {"a": jnp.ones(2), "b": jnp.ones(2)}


def loss(params, batch):
    return jnp.sum(params["a"] ** 2 * params["b"])


HESSIAN = geometry.hessian(loss, PARAMS, None)


def _along(x):
    return geometry.landscape(loss, PARAMS, None, directions=PARAMS, x=x)


NOT_NUMBERS = (None, "1e-3", [1e-3, 1e-3], 1j, {})
CALLS = {
    "top_eigenpairs: tol": lambda bad: geometry.top_eigenpairs(HESSIAN, key=KEY, tol=bad),
    "top_eigenpairs: vector_tol": lambda bad: geometry.top_eigenpairs(
        HESSIAN, key=KEY, vector_tol="a" if bad is None else bad
    ),
    "solve: tol": lambda bad: geometry.solve(HESSIAN + 3.0, PARAMS, tol=bad),
    "track: tol": lambda bad: geometry.track(HESSIAN, threshold=1.0, key=KEY, tol=bad),
    "track: threshold": lambda bad: geometry.track(HESSIAN, threshold=bad, key=KEY),
    "trace: relative_error": lambda bad: geometry.trace(
        HESSIAN, key=KEY, relative_error="a" if bad is None else bad
    ),
}


@pytest.mark.parametrize("bad", NOT_NUMBERS, ids=str)
@pytest.mark.parametrize("named", CALLS)
def test_what_is_no_number_is_refused(named, bad):
    with pytest.raises(UserError, match=f"^{named} must be a .*number") as error:
        CALLS[named](bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: geometry.hessian(loss, PARAMS, None, where=3), "where: give one glob, .*got 3"),
        (lambda: geometry.hessian(loss, PARAMS, None, where=[3]), "where: give .*; got \\[3\\]"),
        (lambda: geometry.layers(HESSIAN, 3), "layers: groups must be globs, .*; got 3"),
        (lambda: geometry.block_diagonal(HESSIAN, []), "block_diagonal: groups .*got \\[\\]"),
        (lambda: geometry.trace(HESSIAN, key=KEY, method=None), "unknown method 'None'"),
        (lambda: _along(None), "landscape: x must be a list of numbers, got None"),
        (lambda: _along("abc"), "landscape: x must be a list of numbers, got 'abc'"),
        (lambda: _along([1j]), "landscape: x must be a list of numbers, got \\[1j\\]"),
    ],
)
def test_what_is_no_glob_name_or_list_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_more_products_than_an_int32_counts_are_allowed():
    assert geometry.solve(HESSIAN + 3.0, PARAMS, max_products=10**10).status == 0
    assert geometry.trace(HESSIAN, key=KEY, max_products=10**10).status == 0
