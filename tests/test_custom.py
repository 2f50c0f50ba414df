"""Products of one's own: what they give, and what is refused because it is no symmetric matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax.errors import UserError
from sharpjax.geometry import Operator, Status, hessian, operator, top_eigenpairs
from tests.traces import TRACES, traced


def times(matrix, v):
    traced("times")
    return jnp.matmul(matrix, v)


def symmetric(values, seed=0, dtype="float32"):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    return jnp.asarray((q * values) @ q.T, dtype)


def test_it_is_an_operator_as_any(x64, key):
    matrix = symmetric(np.arange(20.0), dtype="float64")
    a = operator(Partial(times, matrix), like=jnp.ones(20))
    assert isinstance(a, Operator)
    np.testing.assert_allclose(a.to_dense(), matrix, atol=1e-14)
    pairs = top_eigenpairs(2 * a + 1, key=key, k=2, tol=1e-9)
    np.testing.assert_allclose(pairs.values, [39, 37], rtol=1e-8)


def test_other_arrays_compile_nothing():
    for i in range(3):
        a = operator(Partial(times, (i + 1.0) * jnp.eye(3)), like=jnp.ones(3))
        assert (a @ jnp.ones(3)).tolist() == [i + 1.0] * 3
        if i == 0:
            before = TRACES["times"]
    assert TRACES["times"] == before


def test_it_is_what_it_reads_now():
    class Power:
        level = 2.0

        def __call__(self, v):
            return jnp.dot(self.level, v)

    power = Power()
    a = operator(power, like=jnp.ones(2))
    assert (a @ jnp.ones(2)).tolist() == [2, 2]
    power.level = 3.0
    assert (a @ jnp.ones(2)).tolist() == [3, 3]
    power.level = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    with pytest.raises(UserError, match="^operator @ v: .*not symmetric"):
        a @ jnp.ones(2)


def test_one_that_writes_what_it_reads(compilations):
    calls = []

    def counted(v):
        calls.append(v)
        return 2 * v

    a = operator(counted, like=jnp.ones(2))
    assert (a @ jnp.ones(2)).tolist() == [2, 2]
    compilations.clear()
    assert (a @ jnp.ones(2)).tolist() == [2, 2] and compilations == []


def test_trees_and_narrow_types():
    like = {"a": jnp.ones(2, jnp.bfloat16), "b": [jnp.ones(()), None]}
    a = operator(lambda v: jax.tree.map(lambda x: 2 * x, v), like=like)
    v = {"a": jnp.full(2, 1 / 3), "b": [jnp.float32(1), None]}
    found = a @ v
    assert found["a"].dtype == jnp.float32
    np.testing.assert_allclose(found["a"], 2 / 3, rtol=1e-6)


def test_a_matrix_is_never_taken_for_something_else():
    """In float32, of any spectrum, size and unit, where rounding is all that differs."""
    for seed, size in enumerate((1, 7, 200)):
        for values in (np.ones(size), np.eye(1, size)[0], np.geomspace(1e-6, 1, size)):
            operator(Partial(times, symmetric(values, seed)), like=jnp.ones(size))
        for unit in (1e-30, 1e30):
            matrix = np.float32(unit) * symmetric(np.geomspace(1e-6, 1, size), seed)
            operator(Partial(times, matrix), like=jnp.ones(size))
    operator(jnp.zeros_like, like=jnp.ones(3))


def skewed(share):
    """A matrix whose part that is not symmetric has this share of its norm."""
    half = np.random.default_rng(0).normal(size=(100, 100))
    even, odd = half + half.T, half - half.T
    return jnp.asarray(even + share * np.linalg.norm(even) / np.linalg.norm(odd) * odd, "float32")


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    "matvec, message",
    [
        (Partial(times, skewed(0.01)), "not symmetric"),
        (Partial(times, skewed(0.01).T), "not symmetric"),
        (lambda v: jnp.cumsum(v), "not symmetric"),
        (lambda v: v**2, "not linear"),
        (lambda v: v + 1, "not linear"),
        (lambda v: jnp.abs(v), "not linear"),
        (lambda v: jnp.tanh(v) / 100, "not linear"),
        (lambda v: v.astype(jnp.bfloat16), "compute them in float32"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(matvec, message, unit):
    with pytest.raises(UserError, match=f"^operator: .*{message}"):
        operator(lambda v: scaled(jnp.float32(unit), matvec, v), like=jnp.ones(100))


def scaled(unit, matvec, v):
    product = matvec(v)
    return unit * product.astype(unit.dtype)


def test_inside_a_trace_the_status_says_it(key):
    @jax.jit
    @jax.vmap
    def solved(share):
        matrix = jnp.diag(jnp.arange(1.0, 4)) + share * jnp.triu(jnp.ones((3, 3)))
        pairs = top_eigenpairs(operator(Partial(times, matrix), like=jnp.ones(3)), key=key)
        direct = operator(lambda v: times(matrix, v), like=jnp.ones(3)) @ jnp.ones(3)
        return pairs.status, pairs.values[0], direct

    status, value, direct = solved(jnp.array([0.0, 1.0]))
    assert status.tolist() == [Status.OK, Status.ASSUMPTION_FAILED]
    np.testing.assert_allclose(value, [3, np.nan], rtol=1e-5)
    np.testing.assert_allclose(direct, [[1, 2, 3], [np.nan] * 3], rtol=1e-6)


def test_what_is_not_finite_is_left_to_the_solver(key):
    a = operator(lambda v: v / jnp.zeros(3), like=jnp.ones(3))
    assert top_eigenpairs(a, key=key).status == Status.NON_FINITE


@pytest.mark.parametrize(
    "matvec, like, message",
    [
        (jnp.eye(3), jnp.ones(3), r"matvec must be a function.*matvec\(vector\) -> vector"),
        (lambda v: v, jnp.arange(3), "every leaf of like"),
        (lambda v: v, jnp.ones(0), "like are empty"),
        (lambda v: v[:2], jnp.ones(3), r"matvec\(vector\) must have the shapes and types of like"),
        (lambda v: (v, v), jnp.ones(3), "tree structure of like"),
        (lambda v: jnp.asarray(np.asarray(v)), jnp.ones(3), "numpy.*pure_callback"),
    ],
)
def test_wrong_arguments(matvec, like, message):
    with pytest.raises(UserError, match=f"^operator: .*{message}"):
        operator(matvec, like=like)


def test_a_product_on_the_host(key):
    """By a callback, which no loop of products minds."""

    def host(v):
        shape = jax.ShapeDtypeStruct(v.shape, v.dtype)
        return jax.pure_callback(lambda x: np.float32(3) * np.asarray(x), shape, v)

    a = operator(host, like=jnp.ones(3))
    mean = hessian(lambda w, _: jnp.sum(w**2), jnp.ones(3), None)
    assert top_eigenpairs(a + mean, key=key).values[0] == 5
