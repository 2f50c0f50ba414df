"""Densities against known spectra, the rate at which bands cover, and what changes no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

from sharpjax import geometry, loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, hessian
from sharpjax.geometry import top_eigenpairs as top
from sharpjax.geometry.lanczos import krylov, recurrence, units
from sharpjax.geometry.operators.algebra import linearize
from sharpjax.geometry.spectra.density import spectral_density
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat


def diagonal(values, dtype=np.float32):
    """An operator of two leaves with the given spectrum."""
    values = jnp.asarray(values, dtype)
    half = len(values) // 2
    return Diagonal({"a": values[:half], "b": jnp.expand_dims(values[half:], 1)})


def marchenko_pastur(n, ratio=0.5, seed=0):
    """The eigenvalues of a sample covariance, as those of a Gauss-Newton matrix lie."""
    samples = np.random.default_rng(seed).normal(size=(int(n / ratio), n))
    return np.linalg.svd(samples, compute_uv=False) ** 2 * ratio / n


OUTLIERS = np.r_[20.0, 15, 11, 8, 7, 6, 5.5, 5, 4.5, 4, marchenko_pastur(490)]
SPECTRA = {
    "outliers": OUTLIERS,
    "two points": np.repeat([-1.0, 3.0], [400, 100]),
    "identity": np.ones(500),
    "zero": np.zeros(500),
    "indefinite": np.random.default_rng(1).normal(size=500),
    "rank 2": np.r_[5.0, -3.0, np.zeros(498)],
    "tiny": 1e-9 * OUTLIERS,
    "huge": 1e9 * OUTLIERS,
}


def smoothed(values, grid, sigma):
    """The density itself, in float64."""
    distance = (np.asarray(grid, float)[:, None] - values) / float(sigma)
    return np.exp(-(distance**2) / 2).mean(1) / (float(sigma) * np.sqrt(2 * np.pi))


def integral(values, grid):
    return float(np.trapezoid(np.asarray(values, float), np.asarray(grid, float)))


def lanes(operator, count, **options):
    """Many probes at once."""

    def one(key):
        return spectral_density(operator, key=key, **options)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), count))


# The recurrence.


def test_quadrature_is_exact_for_polynomials(x64, strict, key):
    """`sum w theta^j = u' A^j u` for j < 2 m."""
    params, batch = awkward_net()
    matrix = dense(awkward_loss, params, batch)
    state = recurrence.start(key, params, 4)
    u = flat(state.vector)
    operator = hessian(awkward_loss, params, batch)
    step = recurrence.RecurrenceStep()
    state, _ = loops.iterate(step, state, linearize(operator), max_steps=4)
    nodes, vectors = krylov.ritz(state)
    nodes = state.unit * nodes
    for j in range(8):
        expected = u @ np.linalg.matrix_power(matrix, j) @ u
        np.testing.assert_allclose(jnp.sum(jnp.square(vectors[0]) * nodes**j), expected, rtol=1e-11)


def test_the_recurrence_is_that_of_the_process_with_a_basis(x64, key):
    operator = diagonal(OUTLIERS, np.float64)
    kept = krylov.start(key, operator.like, 12)
    free = recurrence.begin(kept.vector, 12)
    product = linearize(operator)
    kept, _ = loops.iterate(krylov.LanczosStep(), kept, product, max_steps=10)
    free, _ = loops.iterate(recurrence.RecurrenceStep(), free, product, max_steps=10)
    for name in ("unit", "alpha", "beta"):
        one, other = (np.ravel(getattr(state, name))[:10] for state in (kept, free))
        np.testing.assert_allclose(one, other, rtol=1e-9)
    np.testing.assert_allclose(kept.scale, free.scale, rtol=1e-9)
    np.testing.assert_allclose(flat(kept.vector), flat(free.vector), atol=1e-9)


def test_copies_of_values_change_no_density(key):
    """Float32, 96 products: with a basis, and without, where values are found again and again."""
    operator = diagonal(OUTLIERS)
    kept = krylov.start(key, operator.like, 96)
    free = recurrence.begin(kept.vector, 96)
    product = linearize(operator)
    kept, _ = loops.iterate(krylov.LanczosStep(), kept, product, max_steps=96)
    free, _ = loops.iterate(recurrence.RecurrenceStep(), free, product, max_steps=96)
    (theirs, v), (ours, w) = krylov.ritz(kept), krylov.ritz(free)
    theirs, ours = kept.unit * theirs, free.unit * ours
    assert (ours > 4.2).sum() > (theirs > 4.2).sum() == 9
    grid, sigma = np.linspace(-1, 21, 400), 0.2
    kernels = [np.exp(-((grid[:, None] - x) ** 2) / 2 / sigma**2) for x in (theirs, ours)]
    first, second = (k @ np.square(y[0]) for k, y in zip(kernels, (v, w), strict=True))
    assert np.abs(first - second).max() < 2e-5 * first.max()


@pytest.mark.parametrize("values, products", [([3.0], 1), ([3.0, 3.0, -1.0], 2), ([0.0] * 4, 1)])
def test_it_ends_where_the_space_does(key, values, products):
    state = recurrence.start(key, diagonal(values).like, 8)
    step, product = recurrence.RecurrenceStep(), linearize(diagonal(values))
    state, _ = loops.iterate(step, state, product, max_steps=8)
    assert state.invariant and state.finite
    assert state.num_products == products and state.beta[products - 1] == 0
    nodes = np.sort(np.unique(values))
    found = units.known(state.unit) * krylov.ritz(state)[0][:products]
    np.testing.assert_allclose(found, nodes, atol=1e-6)


# Known spectra.


@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra_in_float32(key, name):
    """The L1 distance to the truth is what the band says, and nothing more: m resolves sigma."""
    values = SPECTRA[name]
    found = geometry.check(spectral_density(diagonal(values), key=key, num_steps=80, num_probes=8))
    grid = found.grid(2000)
    curve = found.evaluate(grid)
    assert abs(integral(curve.value, grid) - 1) < 1e-3
    truth = smoothed(values, grid, found.width())
    distance = integral(np.abs(curve.value - truth), grid)
    band = integral(curve.standard_error, grid)
    assert distance < 2 * band + 2e-5
    assert band < (1e-5 if name in ("identity", "zero") else 0.15)
    shares = found.cumulative(jnp.asarray([values.min() - 1e-3, values.max() + 1e-3]))
    if name not in ("tiny", "huge"):
        np.testing.assert_allclose(shares.value, [0, 1], atol=1e-5)


def test_a_large_space_needs_one_probe():
    """100,000 values, evenly in (-1, 1): a hundred products, and a part in a hundred."""
    operator = diagonal(np.linspace(-1, 1, 100_000))
    found = spectral_density(operator, key=jax.random.key(3), num_steps=100, num_probes=1)
    grid = np.linspace(-1.5, 1.5, 500)
    truth = (scipy.stats.norm.cdf((grid + 1) / 0.1) - scipy.stats.norm.cdf((grid - 1) / 0.1)) / 2
    curve = found.evaluate(grid, 0.1)
    assert integral(np.abs(curve.value - truth), grid) < 2 * integral(curve.standard_error, grid)
    assert integral(curve.standard_error, grid) < 0.015


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_an_awkward_tree(x64, strict, key, sigma):
    """34 numbers in leaves of all kinds, and more products than numbers."""
    params, batch = awkward_net()
    values = np.linalg.eigvalsh(dense(awkward_loss, params, batch))
    operator = hessian(awkward_loss, params, batch)
    found = geometry.check(spectral_density(operator, key=key, num_steps=64, num_probes=64))
    assert found.size == 34 and found.num_probes == 64
    grid = found.grid(800, sigma=sigma)
    curve = found.evaluate(grid, sigma)
    distance = integral(np.abs(curve.value - smoothed(values, grid, sigma)), grid)
    assert distance < 2 * integral(curve.standard_error, grid) < 0.3
    estimates = found.estimates()
    for name, truth in (("trace", values.sum()), ("frobenius", np.linalg.norm(values))):
        value, error, count = estimates[name]
        assert abs(value - truth) < 3 * error < 0.5 * abs(truth) and count == found.num_products


# What a band promises.


@pytest.mark.parametrize("num_probes", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_bands_cover_at_their_rate(num_probes):
    """Nominal .954, of 500 keys each, for the density at five points and for three sums."""
    values = np.r_[6.0, 5.5, marchenko_pastur(398)]
    found = lanes(diagonal(values), 500, num_steps=48, num_probes=num_probes)
    points, sigma = np.array([0.2, 0.8, 1.5, 2.5, 4.0]), 0.5
    curve = jax.vmap(lambda d: d.evaluate(jnp.asarray(points, jnp.float32), sigma))(found)
    truth = smoothed(values, points, sigma)
    covered = (np.abs(curve.value - truth) < 2 * curve.standard_error).mean(0)
    assert (covered > 0.92).all() and (covered < 0.98).all(), covered
    # The error is that of the estimates, too, which says more than a rate.
    spread = np.std(curve.value, axis=0)
    claimed = np.sqrt(np.mean(np.square(curve.standard_error), axis=0))
    np.testing.assert_allclose(claimed, spread, rtol=0.1)
    for fn in (jnp.asarray, jnp.square, jnp.abs):
        value, error, _ = jax.vmap(lambda d, fn=fn: d.trace_of(fn))(found)
        inside = np.mean(np.abs(value - float(fn(jnp.asarray(values)).sum())) < 2 * error)
        assert 0.92 < inside < 0.98, inside


@pytest.mark.parametrize("num_probes", [1, 2, 4])
def test_a_trace_covers_where_one_eigenvalue_dominates(num_probes):
    """Nominal .95, and at least so: 500 keys have a standard error of .01."""
    values = np.r_[100.0, np.linspace(-0.5, 0.5, 399)]
    found = lanes(diagonal(values), 500, num_steps=8, num_probes=num_probes)
    value, error, _ = jax.vmap(lambda d: d.trace_of(jnp.asarray))(found)
    assert np.mean(np.abs(value - values.sum()) < 1.96 * error) > 0.97
    value, error, _ = jax.vmap(lambda d: d.estimates()["frobenius"])(found)
    assert np.mean(np.abs(value - np.linalg.norm(values)) < 1.96 * error) > 0.93
    # Where nothing varies, nothing is in doubt.
    alike = lanes(diagonal(np.full(400, 3.0)), 4, num_steps=8, num_probes=num_probes)
    value, error, _ = jax.vmap(lambda d: d.trace_of(jnp.asarray))(alike)
    np.testing.assert_allclose(value, 1200, rtol=1e-5)
    assert (error < 1e-2).all()


def test_a_grid_covers_the_atoms(key, pairs):
    """The integral of a density is 1, on the grid that it gives."""
    found = spectral_density(diagonal(OUTLIERS), key=key, atoms=pairs, num_probes=4)
    for sigma in (None, 0.3):
        grid = found.grid(4000, sigma=sigma)
        assert abs(integral(found.evaluate(grid, sigma).value, grid) - 1) < 1e-3


def test_a_relative_error_is_reached_or_said(key):
    operator = diagonal(OUTLIERS)
    solve = functools.partial(spectral_density, operator, key=key, num_steps=32, num_probes=40)
    found = solve(relative_error=0.06)
    count = int(found.num_probes)
    assert found.status == Status.OK and 2 < count < 40 and found.num_products == 32 * count
    assert (found.weights[count:] == 0).all()
    grid = found.grid(1000)
    assert integral(found.evaluate(grid).standard_error, grid) < 0.0602
    fewer = found._replace(num_probes=count - 1, weights=found.weights.at[count - 1].set(0))
    assert integral(fewer.evaluate(grid).standard_error, grid) > 0.0598
    missed = solve(relative_error=1e-4)
    assert missed.status == Status.NOT_CONVERGED and missed.num_probes == 40


# Atoms.


@pytest.fixture(scope="module")
def pairs():
    """The ten outliers."""
    return top(diagonal(OUTLIERS), key=jax.random.key(5), k=10)


def test_deflation_lowers_the_error(pairs):
    """The ten outliers have most of the Frobenius norm, and cost no variance as atoms."""
    operator = diagonal(OUTLIERS)
    plain = lanes(operator, 300, num_steps=8, num_probes=3)
    deflated = lanes(operator, 300, num_steps=8, num_probes=3, atoms=pairs)
    spreads, claims = [], []
    for found in (plain, deflated):
        value, error, _ = jax.vmap(lambda d: d.trace_of(jnp.asarray))(found)
        spreads.append(np.std(value))
        claims.append(np.sqrt(np.mean(np.square(error))))
        assert abs(np.mean(value) - OUTLIERS.sum()) < 4 * np.std(value) / np.sqrt(300)
    np.testing.assert_allclose(claims, spreads, rtol=0.1)
    rest = OUTLIERS[10:]
    expected = [
        np.sqrt(2 / 3 * len(v) / (len(v) + 2) * len(v)) * np.std(v) for v in (OUTLIERS, rest)
    ]
    np.testing.assert_allclose(spreads, expected, rtol=0.1)


def test_atoms_are_eigenvalues_of_their_own(key, pairs):
    operator = diagonal(OUTLIERS)
    found = geometry.check(spectral_density(operator, key=key, atoms=pairs, num_probes=8))
    np.testing.assert_allclose(found.atoms, OUTLIERS[:10], rtol=1e-5)
    assert found.width() < 0.04  # that of the rest alone
    grid = found.grid(2000, sigma=0.1, atoms=False)
    assert grid[-1] < 4 and found.grid()[-1] > 20
    rest = integral(found.evaluate(grid, 0.1, atoms=False).value, grid)
    np.testing.assert_allclose(rest, 490 / 500, rtol=1e-4)
    shares = found.cumulative(jnp.asarray([3.5, 4.2, 12.0, 21.0])).value
    np.testing.assert_allclose(shares, [0.98, 0.982, 0.996, 1], atol=1e-5)
    wide = jnp.linspace(-2, 22, 3000)
    truth = smoothed(OUTLIERS, wide, 0.1)
    assert integral(np.abs(found.evaluate(wide, 0.1).value - truth), wide) < 0.1
    np.testing.assert_allclose(found.trace_of(jnp.square).value, (OUTLIERS**2).sum(), rtol=0.03)


def test_what_has_not_converged_is_no_atom(key, pairs):
    operator = diagonal(OUTLIERS)
    doubted = pairs._replace(converged=pairs.converged.at[1].set(False))
    found = spectral_density(operator, key=key, atoms=doubted, num_probes=8)
    assert np.flatnonzero(np.isnan(found.atoms)).tolist() == [1]
    heavy = found.nodes[found.weights > 1e-6]
    np.testing.assert_allclose(heavy.max(), 15, rtol=1e-5)
    np.testing.assert_allclose(found.cumulative(25.0).value, 1, rtol=1e-5)


# What changes no number.


@pytest.mark.parametrize("with_atoms", [False, True])
def test_probes_that_share_a_product(x64, key, pairs, with_atoms):
    """Node by node, in eight products: before a value has converged, rounding is not amplified."""
    vectors = jax.tree.map(lambda v: v.astype(float), pairs.vectors)
    atoms = pairs._replace(vectors=vectors) if with_atoms else None
    options = {"num_steps": 8, "num_probes": 6, "atoms": atoms}
    operator = diagonal(OUTLIERS, np.float64)
    one, three = (
        spectral_density(operator, key=key, probes_per_product=width, **options) for width in (1, 3)
    )
    assert one.num_products == three.num_products == 48
    np.testing.assert_allclose(one.nodes, three.nodes, atol=1e-9)
    np.testing.assert_allclose(one.weights, three.weights, atol=1e-9)


def test_moments_of_probes_that_share_a_product(key, pairs):
    """In 20 products of float32 rounding decides where copies of the atoms lie; no moment sees it.

    Of a sum over 6 probes of 20 nodes, all terms positive, the error is at most 120 eps.
    """
    options = {"num_steps": 20, "num_probes": 6, "atoms": pairs}
    operator = diagonal(OUTLIERS)
    one, three = (
        spectral_density(operator, key=key, probes_per_product=width, **options) for width in (1, 3)
    )
    for moment in (jnp.asarray, jnp.square):
        values = (found.trace_of(moment).value for found in (one, three))
        np.testing.assert_allclose(*values, rtol=120 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("width", [1, 2])
def test_probes_end_early_where_there_is_nothing_left(key, width):
    """Three values, each of many: every probe has a large part of each, far above the noise."""
    operator = diagonal(np.repeat([5.0, 0.0, -3.0], [100, 200, 200]))
    found = spectral_density(operator, key=key, num_probes=4, probes_per_product=width)
    assert found.status == Status.OK and found.num_probes == 4 and found.num_products == 12
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)


def test_members_of_a_population_equal_single_calls(x64, key):
    """Also next to one that ends at once, and one that is not finite; eight products, as above."""
    members = [OUTLIERS, np.ones(500), np.full(500, np.nan), SPECTRA["indefinite"]]
    stacked = tree.stack([diagonal(v, np.float64) for v in members])
    keys = jax.random.split(key, 4)
    solve = functools.partial(spectral_density, num_steps=8, num_probes=8, relative_error=0.2)
    found = jax.vmap(lambda operator, key: solve(operator, key=key))(stacked, keys)
    assert found.status.tolist() == [0, 0, Status.NON_FINITE, 0]
    assert found.num_products[1:3].tolist() == [2, 1]
    for i in (0, 1, 3):
        single = solve(diagonal(members[i], np.float64), key=keys[i])
        assert single.num_products == found.num_products[i]
        np.testing.assert_allclose(single.nodes, found.nodes[i], atol=1e-9)
        np.testing.assert_allclose(single.weights, found.weights[i], atol=1e-9)


def test_a_loss_that_is_not_finite(key):
    operator = Diagonal(jnp.array([1.0, jnp.inf, 2.0]))
    found = spectral_density(operator, key=key, num_probes=3)
    assert found.status == Status.NON_FINITE and found.num_products == 1
    assert np.isnan(found.evaluate(0.0).value) and np.isnan(found.trace_of(jnp.square).value)
    with pytest.raises(geometry.NotOk, match="Density"):
        geometry.check(found)


def scaled_loss(scale, params, batch):
    return jnp.mean(jnp.tanh(batch @ params["w"]) ** 2) * scale + jnp.sum(params["b"] ** 2)


@pytest.mark.parametrize("form", ["host", "device"])
def test_new_numbers_compile_nothing(key, monkeypatch, form):
    monkeypatch.setattr(loops, "choose_form", lambda *_: form)
    names = []

    def listen(event, _duration, **details):
        if event.endswith("backend_compile_duration"):
            names.append(details.get("fun_name", event))

    def solve(i):
        params = {"w": jnp.full(7, 0.1 * i), "b": jnp.full(3, float(i))}
        loss = Partial(scaled_loss, jnp.float32(i))
        operator = hessian(loss, params, jnp.full((6, 7), float(i)))
        options = {"num_steps": 5, "num_probes": 6, "relative_error": 0.1 * i}
        return spectral_density(operator, key=jax.random.fold_in(key, i), **options)

    first = solve(1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert [solve(i).status for i in (1, 2, 3)][1:]
        assert names == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    np.testing.assert_array_equal(first.nodes, solve(1).nodes)


def test_both_loop_forms_and_a_trace_give_the_same_numbers(x64, key, monkeypatch):
    params, batch = awkward_net()
    operator = hessian(awkward_loss, params, batch)
    solve = functools.partial(spectral_density, key=key, num_steps=6, num_probes=3)
    traced = jax.jit(solve)(operator)
    for form in ("host", "device"):
        monkeypatch.setattr(loops, "choose_form", lambda *_, form=form: form)
        found = solve(operator)
        np.testing.assert_allclose(found.nodes, traced.nodes, atol=1e-11)
        np.testing.assert_allclose(found.weights, traced.weights, atol=1e-11)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_vectors_lie_as_the_parameters_do(key, kind):
    """Four devices, and the numbers of one."""
    values = np.linspace(-1, 1, 64).reshape(8, 8)

    def atoms(lies=None):
        """The largest eigenvalue."""
        unit = jnp.zeros((1, 8, 8)).at[0, -1, -1].set(1)
        if lies is not None:
            unit = jax.device_put(unit, jax.NamedSharding(lies.mesh, jax.P(None, *lies.spec)))
        none = jnp.zeros(1)
        fields = dict.fromkeys(geometry.Eigenpairs._fields, none)
        fields |= {"values": none + 1, "vectors": unit, "converged": none == 0}
        return geometry.Eigenpairs(**fields)

    operator = Diagonal(jnp.asarray(values, jnp.float32))
    single = spectral_density(operator, key=key, num_steps=6, atoms=atoms())
    axes = (getattr(jax.sharding.AxisType, kind),) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=axes)
    with jax.set_mesh(mesh):
        lies = jax.NamedSharding(mesh, jax.P("data", "model"))
        operator = Diagonal(jax.device_put(values.astype(np.float32), lies))
        state = recurrence.start(key, operator.like, 6)
        assert state.vector.sharding.spec == jax.P("data", "model")
        step = recurrence.RecurrenceStep()
        state, _ = loops.iterate(step, state, linearize(operator), max_steps=6)
        assert state.vector.sharding.spec == state.previous.sharding.spec == lies.spec
        found = spectral_density(operator, key=key, num_steps=6, atoms=atoms(lies))
    np.testing.assert_allclose(found.nodes, single.nodes, atol=1e-5)
    np.testing.assert_allclose(found.atoms, single.atoms)


def test_memory_is_three_vectors(key):
    """The compiled loop holds no basis: temporaries do not grow with the number of products."""
    operator = Diagonal(jnp.ones(100_000))

    def temporaries(num_steps):
        solve = functools.partial(spectral_density, num_steps=num_steps, num_probes=2)
        compiled = jax.jit(solve).lower(operator, key=key).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(8), temporaries(64)
    assert many < few + 4 * 64**2 * 20 < 4 * 100_000 * 8


# Bad input.


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 0}, "num_steps must be a whole number >= 1, got 0"),
        ({"num_probes": 2.5}, "num_probes must be a whole number >= 1, got 2.5"),
        ({"num_probes": 3, "probes_per_product": 2}, "probes_per_product=2 does not divide"),
        ({"relative_error": -1.0}, "relative_error must be a number >= 0 or None, got -1"),
        ({"key": 3}, "key must be one random key"),
        ({"atoms": 3}, "atoms must be eigenpairs with their vectors.*got int"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UserError, match=rf"spectral_density: {message}"):
        spectral_density(diagonal([1.0, 2.0]), **({"key": jax.random.key(0)} | options))


def test_wrong_atoms(key, pairs):
    operator = diagonal([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="got Eigenpairs without vectors"):
        spectral_density(operator, key=key, atoms=pairs._replace(vectors=None))
    vectors = {"a": jnp.zeros((3, 1)), "b": jnp.zeros((3, 2, 1))}
    all_of_them = pairs._replace(values=jnp.ones(3), vectors=vectors)
    with pytest.raises(UserError, match="hold 3 of 3 eigenvalues; there is nothing left"):
        spectral_density(operator, key=key, atoms=all_of_them)
    with pytest.raises(UserError, match=r"atoms.vectors\[0\] must have the shapes"):
        spectral_density(operator, key=key, atoms=pairs)
    with pytest.raises(UserError, match="first argument must be an operator"):
        spectral_density(awkward_loss, key=key)
