"""Linear solves: closed forms, bounds on the error, and what is not solved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry import NotOk, Status, averaged, check, hessian, operator, solve
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat
from tests.test_operators import conv_loss, conv_problem

ONE = jnp.float32(1)


def test_three_eigenvalues_take_three_products_and_one_for_the_residual(x64, strict):
    values = {"a": jnp.array([1.0, 4.0, 9.0]), "b": [jnp.array([[4.0], [9.0]]), None]}
    right = jax.tree.map(lambda x: 1 + jnp.sqrt(x), values)
    found = check(solve(Diagonal(values), right, tol=1e-12))
    expected = jax.tree.map(lambda b, a: b / a, right, values)
    assert jax.tree.structure(found.value) == jax.tree.structure(values)
    np.testing.assert_allclose(flat(found.value), flat(expected), rtol=1e-12)
    assert found.num_products == 4 and found.residual <= 1e-12


@pytest.mark.parametrize("tol", [1e-3, 1e-10])
def test_the_error_is_within_its_bound(x64, strict, key, tol):
    params, batch = awkward_net()
    truth = dense(awkward_loss, params, batch) + 2 * np.eye(34)
    smallest = np.linalg.eigvalsh(truth)[0]
    assert 0.1 < smallest < 1
    right = tree.random_normal(key, params)
    found = check(solve(hessian(awkward_loss, params, batch) + 2, right, tol=tol))
    x, b = flat(found.value), flat(right)
    np.testing.assert_allclose(
        found.residual, np.linalg.norm(b - truth @ x) / np.linalg.norm(b), rtol=1e-3, atol=1e-14
    )
    error = np.linalg.norm(x - np.linalg.solve(truth, b))
    assert 0 < error <= found.residual * np.linalg.norm(b) / smallest * 1.001 + 1e-13
    assert found.residual <= tol
    # From the solution of a system nearby, and from the solution itself.
    near = solve(hessian(awkward_loss, params, batch) + 2.01, right, tol=1e-8).value
    again = check(solve(hessian(awkward_loss, params, batch) + 2, right, tol=tol, start=near))
    assert again.residual <= tol
    if tol > 1e-5:
        assert again.num_products < found.num_products
    same = solve(hessian(awkward_loss, params, batch) + 2, right, tol=tol, start=found.value)
    assert same.num_products == 1
    np.testing.assert_array_equal(flat(same.value), x)


def test_means_over_batches_and_convolutions_run_on_the_host(key):
    params, batch = conv_problem("float32")
    right = tree.random_normal(key, params)
    whole = hessian(conv_loss, params, batch) + 2
    halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    mean = averaged(functools.partial(hessian, conv_loss, params), halves) + 2
    matrix = np.asarray(whole.to_dense(), float)
    smallest, largest = np.linalg.eigvalsh(matrix)[[0, -1]]
    assert smallest > 0.5 and largest / smallest < 100
    expected = np.linalg.solve(matrix, flat(right))
    # 1e-4 of the right side, and as much for the dense matrix in float32.
    allowed = 2e-4 * np.linalg.norm(flat(right)) / smallest
    for a in (whole, mean):
        found = check(solve(a, right, tol=1e-4))
        assert np.linalg.norm(flat(found.value) - expected) < allowed
    form = loops.choose_form(lambda c, o: o(c), right, whole.linearize())
    assert form == ("host" if jax.default_backend() == "cpu" else "device")


@jax.jit
def _of_scales(scale, size):
    """Values at 1 to 100, in a unit; a right side in another."""
    values = jnp.linspace(1, 100, 50)
    found = solve(Diagonal(scale * values), size * jnp.ones(50), tol=1e-5)
    return found, found.value / (size / scale) * values


def test_units_do_not_matter(strict):
    """In float32: squares of 1e-30 and 1e30 are none."""
    scales = jnp.array([1.0, 1e-30, 1e30, 1e-30, 1e30, 1.0, 1.0], jnp.float32)
    sizes = jnp.array([1.0, 1e-30, 1e30, 1.0, 1.0, 1e-30, 1e30], jnp.float32)
    found, ones = jax.vmap(_of_scales)(scales, sizes)
    assert (found.status == Status.OK).all()
    # |b - A x| <= 1e-5 |b|, and |b| is sqrt(50) of each entry.
    np.testing.assert_allclose(ones, 1, atol=1e-4)


@pytest.mark.parametrize(
    "values, right",
    [
        ([1.0, -1.0], [1.0, 2.0]),
        ([-1.0, -1.0], [1.0, 2.0]),
        ([1.0, 0.0], [1.0, 1.0]),  # the right side is not in its range
        ([0.0, 0.0], [1.0, 1.0]),
        ([1.0, 1e-9], [1.0, 1.0]),  # nor is it as far as float32 tells
    ],
)
def test_what_is_not_positive_is_said(values, right):
    found = solve(Diagonal(jnp.array(values)), jnp.array(right))
    assert found.status == Status.NOT_POSITIVE and found.residual > 0.1
    with pytest.raises(NotOk, match="no solution.*add damping, such as operator"):
        check(found)
    assert check(solve(Diagonal(jnp.array(values)) + 1.5, jnp.array(right))).residual < 1e-4


def test_a_right_side_in_the_range_of_a_singular_operator(x64):
    found = check(solve(Diagonal(jnp.array([1.0, 3.0, 0.0])), jnp.array([1.0, 1.0, 0.0]), tol=1e-9))
    np.testing.assert_allclose(found.value, [1, 1 / 3, 0], rtol=1e-8)


def test_float32_is_never_said_to_be_better_than_it_is():
    """Where rounding keeps the residual above `tol`, it is told, and the work ends."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(100, 100)))
    matrix = (q * np.geomspace(1e-4, 1, 100)) @ q.T
    right = rng.normal(size=100)
    a = operator(Partial(jnp.matmul, jnp.asarray(matrix, "float32")), like=jnp.ones(100))
    found = jax.vmap(lambda tol: solve(a, jnp.asarray(right, "float32"), tol=tol))(
        jnp.array([1e-2, 1e-6, 1e-12])
    )
    x = np.asarray(found.value, float)
    exact = np.asarray(jnp.asarray(matrix, "float32"), float)
    true = np.linalg.norm(right - x @ exact.T, axis=1) / np.linalg.norm(right)
    # The residual is that of x, up to the rounding of one product with x.
    noise = 6e-7 * np.linalg.norm(x, axis=1) / np.linalg.norm(right)
    assert (np.abs(found.residual - true) <= noise + 1e-7).all()
    assert found.status.tolist() == [Status.OK, Status.NOT_CONVERGED, Status.NOT_CONVERGED]
    assert found.residual[0] <= 1e-2 and found.num_products[1] < 1000


def test_the_end_of_the_products():
    values, right = jnp.arange(1.0, 31), jnp.ones(30)
    for most in (1, 2, 3, 10):
        found = solve(Diagonal(values), right, max_products=most)
        assert found.num_products == most and found.status == Status.NOT_CONVERGED
        true = jnp.linalg.norm(right - values * found.value) / jnp.linalg.norm(right)
        np.testing.assert_allclose(found.residual, true, rtol=1e-4)
        begun = solve(Diagonal(values), right, max_products=most, start=right / values)
        assert begun.num_products == 1 and begun.status == Status.OK


def test_zero_and_what_is_not_finite():
    a = Diagonal(jnp.arange(1.0, 4))
    zero = solve(a, jnp.zeros(3), start=jnp.ones(3))
    assert zero.value.tolist() == [0, 0, 0]
    assert (zero.residual, zero.num_products, zero.status) == (0, 0, Status.OK)
    for values, right in (([1, 2, 3], [1, jnp.nan, 0]), ([1, jnp.inf, 3], [1, 1, 1])):
        found = solve(Diagonal(jnp.array(values, float)), jnp.array(right, float))
        assert found.status == Status.NON_FINITE and jnp.isnan(found.value).all()


def test_many_right_sides_inside_jit(compilations):
    params, batch = awkward_net(dtype=np.float32)

    @jax.jit
    def many(params, damping, rights):
        a = hessian(awkward_loss, params, batch) + damping
        return jax.vmap(lambda b: solve(a, b, tol=1e-4))(rights)

    keys = jax.random.split(jax.random.key(0))
    rights = tree.stack([tree.random_normal(key, params) for key in keys])
    zero = jax.tree.map(lambda x: x.at[1].set(0), rights)
    found = many(params, 2 * ONE, zero)
    assert found.status.tolist() == [0, 0] and found.num_products[1] == 0
    alone = solve(hessian(awkward_loss, params, batch) + 2 * ONE, tree.index(rights, 0), tol=1e-4)
    one = flat(tree.index(found.value, 0))
    np.testing.assert_allclose(flat(alone.value), one, atol=1e-3 * np.abs(one).max())
    other, damping = tree.index(rights, 1), 3 * ONE
    compilations.clear()
    again = solve(hessian(awkward_loss, params, batch) + damping, other, tol=1e-3)
    assert again.status == Status.OK and compilations == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"operator": jnp.eye(3)}, "first argument must be an operator"),
        ({"vector": jnp.ones(4)}, r"vector must have the shapes.*float32\[4\].*operator.like"),
        ({"vector": jnp.ones((2, 3))}, r"vector has a leading axis of 2.*vmap\(lambda v: solve\("),
        ({"start": jnp.ones(4)}, "start must have the shapes"),
        ({"tol": 0.0}, "tol must be a number between 0 and 1, got 0.0"),
        ({"max_products": 0}, "max_products"),
    ],
)
def test_wrong_arguments(arguments, message):
    given = {"operator": Diagonal(jnp.ones(3)), "vector": jnp.ones(3)} | arguments
    with pytest.raises(UserError, match=f"^solve: .*{message}"):
        solve(**given)
