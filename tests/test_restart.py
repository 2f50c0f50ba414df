"""A basis that may not grow: the same numbers from less memory, and what checks them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, hessian
from sharpjax.geometry import top_eigenpairs as top
from sharpjax.geometry.eigenpairs import certificate, convergence, search
from sharpjax.geometry.lanczos import krylov, lanes, ritz
from sharpjax.geometry.operators.algebra import linearize
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat


def bulk(n):
    return np.random.default_rng(0).uniform(-0.5, 0.5, n)


def chain(*values, n=400):
    """A few values over a bulk, in two leaves."""
    values = jnp.asarray(np.concatenate([values, bulk(n - len(values))]))
    return Diagonal({"a": values[: n // 2], "b": jnp.expand_dims(values[n // 2 :], 1)})


def run(operator, key, *, rows, products, k=2, which="LA", guards=2, **options):
    """A search that stops for nothing."""
    step = convergence.SearchStep(k, which, guards)
    state = krylov.start(key, operator.like, rows, **options)
    product = linearize(operator)
    return search.solve(
        *(step, product, state), tol=0.0, vector_tol=-1.0, max_products=products, bounded=True
    ), step


# The same pairs.


@pytest.mark.parametrize(
    "which, k",
    [
        ("LA", 3),
        pytest.param("SA", 1, marks=pytest.mark.slow),
        pytest.param("LM", 2, marks=pytest.mark.slow),
        pytest.param("BE", 3, marks=pytest.mark.slow),
    ],
)
def test_pairs_equal_the_dense_ones(x64, strict, key, which, k):
    """More products than there are parameters, from twelve rows."""
    params, batch = awkward_net()
    matrix = dense(awkward_loss, params, batch)
    values = np.linalg.eigvalsh(matrix)
    expected = {
        "LA": values[::-1][:k],
        "SA": values[:k],
        "LM": values[np.argsort(-np.abs(values))][:k],
        "BE": np.concatenate([values[::-1][: -(-k // 2)], values[: k // 2][::-1]]),
    }[which]
    operator = hessian(awkward_loss, params, batch)
    found = top(operator, key=key, k=k, which=which, tol=1e-9, basis_size=12, max_products=200)
    assert found.status == Status.OK and found.num_products > 12
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    vectors = np.stack([flat(tree.index(found.vectors, i)) for i in range(k)])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-12)
    true = np.linalg.norm(vectors @ matrix - np.expand_dims(found.values, 1) * vectors, axis=1)
    assert (true <= found.residuals + 1e-12).all()


@pytest.mark.slow
def test_few_more_products_than_a_basis_that_grows(key):
    operator = Diagonal(jnp.asarray(np.r_[1.3 ** -np.arange(30.0), bulk(2970) / 1e3], "float32"))
    grown = top(operator, key=key, k=8)
    bounded = top(operator, key=key, k=8, basis_size=16)
    np.testing.assert_allclose(bounded.values, grown.values, rtol=1e-3)
    assert 16 < bounded.num_products <= 1.4 * grown.num_products


@pytest.mark.usual_flags
def test_the_arrowhead_is_the_projection_in_float32(key):
    """After eight restarts: `Q'Q = I`, `A Q = Q T + beta q e'`, and no copies.

    The bound, in the spectral norm: 24 rows are orthonormal within 24 eps, and each restart adds
    the error of 24 orthonormal vectors of weights, another 24 eps. Both sides of `Q'A Q = T` err by
    that share of `|A| = 100`.
    """
    operator = Diagonal({"a": jnp.asarray(np.r_[100.0, 90.0, 0.98 ** np.arange(2998)], "float32")})
    found, step = run(operator, key, rows=24, products=100)
    state = found.state
    assert state.num_products == 100 and state.kept == sum(step.kept(24)) and state.row > 14
    rows = np.asarray(state.basis["a"], np.float64)[: state.row]
    bound = (1 + 8) * 24 * np.finfo(np.float32).eps
    assert np.linalg.norm(rows @ rows.T - np.eye(len(rows)), 2) < bound
    projected = rows * np.asarray(operator.values["a"], np.float64) @ rows.T
    values = state.unit * krylov.ritz(state)[0]
    np.testing.assert_allclose(np.linalg.eigvalsh(projected), values[: state.row], atol=100 * bound)
    assert state.unit * state.leak < 1e-5 * 100
    np.testing.assert_allclose(values[: state.row][-3:], [0.99996, 90, 100], rtol=1e-3)


def test_an_invariant_subspace_is_left_across_restarts(x64, key):
    """Rank 2 on 400 parameters, and every vector beyond comes from nowhere, none of them twice."""
    operator = Diagonal(jnp.asarray(np.r_[2.0, -1.0, np.zeros(398)]))

    def state_of(key):
        return run(operator, key, rows=12, products=40, which="LM", k=4)[0].state

    states = jax.vmap(state_of)(jax.random.split(key, 32))
    assert states.finite.all() and not states.broken.any() and (states.num_products == 40).all()
    for basis, row in zip(np.asarray(states.basis), states.row, strict=True):
        np.testing.assert_allclose(basis[:row] @ basis[:row].T, np.eye(row), atol=1e-12)
    solved = top(operator, key=key, k=4, which="LM", basis_size=12)
    np.testing.assert_allclose(solved.values, [2, -1, 0, 0], atol=1e-14)


def unit_vectors(operator, count):
    """The first so many eigenvectors of a diagonal operator, stacked."""
    rows = np.eye(tree.size(operator.like))[:count]
    half = rows.shape[1] // 2
    return {"a": jnp.asarray(rows[:, :half]), "b": jnp.asarray(rows[:, half:, None])}


def test_a_search_stays_orthogonal_to_locked_vectors(x64, key):
    operator = chain(5.0, 4.0, 3.0)
    known = unit_vectors(operator, 2)
    state = krylov.start(key, operator.like, 40, locked=known)
    assert state.row == state.locked == 2
    step = convergence.SearchStep(1, "LA", 0)
    found = search.solve(step, linearize(operator), state, tol=1e-8, max_products=38)
    values, weights = krylov.ritz(found.state)
    values = found.state.unit * values
    count = krylov.num_values(found.state)
    assert count == found.state.num_products and found.done
    np.testing.assert_allclose(values[count - 1], 3, rtol=1e-8)
    y = krylov.combine_rows(found.state.basis, weights[:, count - 1 : count])
    overlaps = [tree.vdot(tree.index(y, 0), tree.index(known, i)) for i in range(2)]
    np.testing.assert_allclose(overlaps, 0, atol=1e-12)


def test_a_search_begins_where_it_is_told_to(x64, key):
    operator = chain(5.0, 4.0, 3.0)
    vector = tree.scale(3.0, tree.index(unit_vectors(operator, 1), 0))
    state = krylov.start(key, operator.like, 8, vector=vector)
    np.testing.assert_allclose(tree.norm(state.vector), 1, rtol=1e-14)
    np.testing.assert_allclose(state.vector["a"][0], 1, rtol=1e-14)


# In a trace, in a population.


def test_inside_a_trace(x64, key):
    operator = chain(*1.3 ** -np.arange(12.0))
    solve = functools.partial(top, k=3, tol=1e-6, basis_size=12, max_products=100)
    outside, inside = solve(operator, key=key), jax.jit(solve)(operator, key=key)
    assert outside.num_products > 24 and inside.num_products == outside.num_products
    np.testing.assert_allclose(inside.values, outside.values, rtol=1e-10)
    np.testing.assert_allclose(inside.residuals, outside.residuals, rtol=1e-3, atol=1e-9)


def test_a_population_of_which_each_takes_its_own_time(x64, strict, key):
    """One stops before the first restart, one after several: lanes do not disturb each other."""
    spectra = jnp.stack(
        [
            jnp.asarray(np.r_[9.0, 5.0, 1.0, 0.5, bulk(56)]),
            jnp.asarray(np.r_[2.0, -3.0, np.zeros(58)]),
            jnp.asarray(np.linspace(-1, 1, 60)),
            jnp.asarray(0.9 ** np.arange(60)),
        ]
    )
    keys = jax.random.split(key, 4)
    solve = functools.partial(top, k=2, tol=1e-4, basis_size=12, max_products=150)
    together = jax.vmap(lambda d, k: solve(Diagonal(d), key=k))(spectra, keys)
    assert together.num_products.min() <= 12 < 24 < together.num_products.max()
    for i in range(4):
        alone, member = solve(Diagonal(spectra[i]), key=keys[i]), tree.index(together, i)
        assert member.num_products == alone.num_products and member.status == alone.status
        np.testing.assert_allclose(member.values, alone.values, atol=1e-9)
        np.testing.assert_allclose(np.abs(member.vectors), np.abs(alone.vectors), atol=1e-5)


def test_memory_inside_a_trace_is_bounded(key):
    """By the basis, what is kept of it at a restart, and a few vectors."""
    operator = Diagonal(jnp.ones(10_000))

    def temporaries(**options):
        solve = functools.partial(top, max_products=96, vectors=False, **options)
        program = jax.jit(solve).lower(operator, key=key).compile()
        return program.memory_analysis().temp_size_in_bytes / 40_000

    assert temporaries(basis_size=0) < 12
    assert 16 < temporaries(basis_size=16) < 64


def test_new_numbers_compile_nothing(key):
    counts = []

    def listen(event, _duration, **details):
        if event.endswith("backend_compile_duration"):
            counts.append(details.get("fun_name", event))

    def solve(i, **options):
        operator = chain(*(i + 1.3 ** -np.arange(12.0)))
        found = top(operator, key=jax.random.key(i), vectors=False, **options)
        return jax.block_until_ready(found.values)

    forms = {"basis_size": 12, "k": 2}, {"basis_size": 0}, {"vector_tol": 0.1}
    for options in forms:
        solve(1, **options)
        solve(1, tol=1e-5, **options)  # longer, so that a basis that grows has grown before
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for i in (2, 3):
            for options in forms:
                solve(i, **options)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not counts, counts


# The product that checks.


def test_a_product_checks_all_residuals(x64, key):
    operator = chain(5.0, 4.0, 3.0)
    product = linearize(operator)
    found, step = run(operator, key, rows=12, products=30, k=3)
    error, used = certificate.certify(step, found, product, key)
    assert used == 1 and error < 1e-14
    nothing, used = certificate.certify(step, found, product, key, False)
    assert used == 0 and nothing == 0

    # A basis that is not what the recurrence takes it for.
    state = found.state
    noise = tree.random_normal(key, state.basis)
    basis = tree.add_scaled(state.basis, 1e-6, noise)
    damaged = found._replace(state=state._replace(basis=basis))
    error, _ = certificate.certify(step, damaged, product, key)
    known = ritz.bound(state)
    chosen = step.wanted(step.places(state, known, step.tested)[0])
    vectors = krylov.combine_rows(basis, known.weights[:, chosen])
    squares = 0.0
    for i, place in enumerate(chosen):
        y = tree.index(vectors, i)
        rest = tree.add_scaled(product(y), -known.values[place], y)
        beta = state.unit * state.beta[state.row - 1]
        along = beta * known.weights[state.row - 1, place]
        squares += tree.norm(tree.add_scaled(rest, -along, state.vector)) ** 2
    assert 0.3 * np.sqrt(squares) < state.unit * error < 3 * np.sqrt(squares)


def test_it_is_counted_and_only_taken_after_a_restart(x64, key):
    operator = chain(5.0, 4.0, 3.0)
    early = top(operator, key=key, tol=1e-2, basis_size=24)
    plain = top(operator, key=key, tol=1e-2)
    assert early.num_products == plain.num_products < 24
    late = top(operator, key=key, vector_tol=1e-30, basis_size=24, max_products=60)
    assert late.num_products == 60


def _skewed(diagonal, vector):
    return diagonal * vector + 1e-3 * jnp.roll(vector, 1)


@tree.register_dataclass
class Skewed(Diagonal):
    def linearize(self):
        return jax.tree_util.Partial(_skewed, self.values)


def test_an_operator_that_is_not_symmetric_is_not_certified(key):
    values = jnp.asarray(np.r_[5.0, 4.0, 3.0, bulk(397)], jnp.float32)
    found = top(Skewed(values), key=key, k=2, basis_size=12, tol=1e-5)
    assert found.status == Status.NOT_CONVERGED and not found.converged.any()
    assert found.residuals.min() > 1e-4


# What is refused.


@pytest.mark.parametrize(
    "options, message",
    [
        ({"basis_size": 6}, "basis_size=6 leaves no room to restart k=1 values and 2 guards.*7"),
        ({"basis_size": -1}, "basis_size must be a whole number >= 0"),
        ({"basis_size": 2.5}, "basis_size must be a whole number"),
        ({"basis_size": 0}, "basis_size=0 keeps no vectors.*vectors=True"),
        ({"basis_size": 0, "vectors": False, "k": 2}, "k=1, or for k=2 of which='BE'"),
        ({"vector_tol": 0.0}, "vector_tol must be a number > 0 or None"),
        ({"vector_tol": jnp.ones(2)}, "vector_tol must be a number > 0 or None"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UserError, match=message):
        top(Diagonal(jnp.ones(50)), **({"key": jax.random.key(0)} | options))


def test_lanes_share_what_the_furthest_has(key):
    counts, rows = jnp.array([3, 7, 5]), jnp.array([10, 20, 30])
    assert jax.vmap(lanes.of_furthest)(counts, rows).tolist() == [20] * 3
    assert jax.vmap(lanes.of_furthest, (0, None))(counts, jnp.int32(4)).tolist() == [4] * 3
    assert lanes.of_furthest(jnp.int32(1), jnp.int32(2)) == 2
    nested = jax.vmap(jax.vmap(lanes.furthest))(jnp.array([[1, 4], [9, 2]]))
    assert nested.tolist() == [[9, 9], [9, 9]]
