"""Every solver on three losses: jitted against eager, and against dense matrices, within what it
claims."""

import functools
import inspect
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from sharpjax import geometry, tree
from tests import kinds_of_loss
from tests.kinds_of_loss import CrossEntropy, SquaredError, Weighted, by_example
from tests.metamorphic import flat
from tests.problems import trust_region

NUM_KEYS = 200  # of what has an error by chance; a few of what has a bound
LEAST = 0.87  # of two standard errors that cover, as `docs/geometry.md` says
DAMPING, RHO, TOL = 0.5, 0.05, 1e-3
PROBES: dict[str, Any] = {
    "deflated": {"max_products": 24, "basis_size": 8},
    "hutchinson": {"max_products": 24},
    "xtrace": {"max_products": 32},
    "exact": {"max_products": 72},
}


@pytest.fixture(autouse=True)
def mathematics(x64):
    """All of it in float64."""


class Problem(NamedTuple):
    """A loss at a point, and its operators."""

    loss: Any
    params: Any
    batch: Any
    hessian: Any
    gauss_newton: Any


class Found(NamedTuple):
    """Attributes:
    sampled: by the name of a truth, a value and its standard error.
    bounded: likewise, a value and a bound on its error; NaN where none is claimed.
    status: all of them.
    """

    sampled: dict[str, tuple[Any, Any]]
    bounded: dict[str, tuple[Any, Any]]
    status: Any


# The losses: 30 parameters, 16 examples.


def data(name):
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(2, 6))),
        "v": jnp.asarray(rng.normal(size=(6, 3)) / 4),
    }
    batch = {"x": jnp.asarray(rng.normal(size=(16, 2)))}
    if name == "mixed_types":
        params["w"] = params["w"].astype(jnp.float32)
        return params, {**batch, "target": jnp.asarray(rng.normal(size=(16, 3)))}
    weight = np.ones(16) if name == "mean" else rng.integers(0, 4, 16)
    label = jnp.asarray(rng.integers(0, 3, 16))
    return params, {**batch, "label": label, "weight": jnp.asarray(weight, jnp.float64)}


@functools.cache
def loss(is_mixed):
    if is_mixed:
        return geometry.composed(kinds_of_loss.mixed_types, SquaredError())
    weighted = CrossEntropy(Weighted(by_example))
    return geometry.composed(kinds_of_loss.net, weighted, example_weight=by_example)


def problem(params, batch) -> Problem:
    found = loss("target" in batch)
    operators = (make(found, params, batch) for make in (geometry.hessian, geometry.gauss_newton))
    return Problem(found, params, batch, *operators)


@functools.cache
def truth(name) -> dict[str, Any]:
    params, batch = data(name)
    reference = kinds_of_loss.net if name == "mixed_types" else loss(False).model_fn
    outer = loss(name == "mixed_types").outer_loss
    vector, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float64), params))

    def value(v):
        return outer(reference(unravel(v), batch), batch)

    @jax.jit
    def dense(v):
        out, unstack = ravel_pytree(reference(unravel(v), batch))
        jacobian = jax.jacrev(lambda v: ravel_pytree(reference(unravel(v), batch))[0])(v)
        middle = jax.hessian(lambda out: outer(unstack(out), batch))(out)
        return jax.hessian(value)(v), jacobian.T @ middle @ jacobian, jax.grad(value)(v)

    h, g, slope = map(np.asarray, dense(vector))
    unit = slope / np.linalg.norm(slope)
    w = np.arange(len(h)) >= params["v"].size  # leaves are in the order of their names
    blocks, scale = np.where(w[:, None] == w, h, 0), np.asarray(vector)

    def without(i):  # of all batches of 15 of the 16 examples
        rest = jax.tree.map(lambda x: jnp.delete(x, i, axis=0, assume_unique_indices=True), batch)
        outcome = lambda v: outer(reference(unravel(v), rest), rest)  # noqa: E731
        slope = jax.grad(outcome)(vector)
        return jnp.stack([slope @ jax.hessian(outcome)(vector) @ slope, slope @ slope])

    above, below = np.asarray(jax.jit(jax.vmap(without))(jnp.arange(16))).T
    return {
        "eigenvalues": np.linalg.eigvalsh(h),
        "smallest": np.linalg.eigvalsh(h),
        "trace": np.trace(h),
        "gauss_newton trace": np.trace(g),
        "diagonal": np.diag(h),
        "first of diagonal": np.diag(h)[0],
        "gauss_newton diagonal": np.diag(g),
        "frobenius": np.linalg.norm(h),
        "squares": np.sum(h**2),
        "logdet": np.linalg.slogdet(g + DAMPING * np.eye(len(g)))[1],
        "difference": np.linalg.norm(h - g) / np.linalg.norm(g),
        "directional": unit @ h @ unit,
        "along ones": h.sum() / -slope.sum(),
        "mean of ratios": np.mean(above / below),
        "ratio of means": np.mean(above) / np.mean(below),
        "sam": value(vector + RHO * unit) - value(vector),
        "to second order": trust_region(h, slope, RHO),
        "product": h @ np.ones(len(h)),
        "the same product": h @ np.ones(len(h)),
        "half a product": h @ np.ones(len(h)) / 2,
        "product of w": np.where(w, blocks @ np.ones(len(h)), 0),
        "product of layer w": (blocks @ np.ones(len(h)))[w],
        "products by leaf": blocks @ np.ones(len(h)),
        "scaled product": scale * (h @ scale),
        "one": np.ones(()),
        "zero": np.zeros(()),
    }


# The solvers.


def eigenpairs(which, **options):
    def solve(p, key):
        found = geometry.top_eigenpairs(p.hessian, key=key, k=2, which=which, tol=TOL, **options)
        return Found({}, {"eigenvalues": claim(found)}, found.status)

    return solve


def claim(pairs):
    error = jnp.where(pairs.converged, TOL * jnp.abs(pairs.values), jnp.nan)
    return pairs.values, error


def without_basis(p, key):
    found = geometry.top_eigenpairs(p.hessian, key=key, basis_size=0, vectors=False, tol=TOL)
    return Found({}, {"eigenvalues": claim(found)}, found.status)


def trace(method, of="hessian"):
    def solve(p, key):
        found = geometry.trace(getattr(p, of), key=key, method=method, **PROBES[method])
        name = "trace" if of == "hessian" else "gauss_newton trace"
        return Found({name: (found.value, found.standard_error)}, {}, found.status)

    return solve


def diagonal(method, of="hessian"):
    def solve(p, key):
        found = geometry.diagonal(getattr(p, of), key=key, method=method, **PROBES[method])
        value, error = flat(found.value), flat(found.standard_error)
        if of == "gauss_newton":
            return Found({}, {"gauss_newton diagonal": (value, error)}, found.status)
        return Found({"first of diagonal": (value[0], error[0])}, {}, found.status)

    return solve


def frobenius(method):
    def solve(p, key):
        found = geometry.frobenius(p.hessian, key=key, method=method, **PROBES[method])
        return Found({"frobenius": (found.value, found.standard_error)}, {}, found.status)

    return solve


def spectral_density(p, key):
    found = geometry.spectral_density(p.hessian, key=key, num_steps=12, num_probes=8)
    trace, squares = found.trace_of(lambda x: x), found.trace_of(jnp.square)
    sampled = {"trace": trace[:2], "squares": squares[:2]}
    return Found(sampled, {}, found.status)


def logdet(p, key):
    found = geometry.logdet(p.gauss_newton + DAMPING, key=key, num_steps=30)
    error = found.standard_error + found.quadrature_error
    return Found({"logdet": (found.value, error)}, {}, found.status)


def curvature_report(p, key):
    found = geometry.curvature_report(p.hessian, key=key, k=2, tol=TOL, num_steps=12)
    sampled = {
        "trace": (found.trace.value, found.trace.standard_error),
        "frobenius": (found.frobenius.value, found.frobenius.standard_error),
    }
    bounded = {
        "eigenvalues": claim(found.top),
        "smallest": (found.smallest, found.smallest_residual),
    }
    return Found(sampled, bounded, found.status)


def subspace_overlap(p, key):
    pairs = [geometry.top_eigenpairs(p.hessian, key=k, k=3, tol=TOL) for k in jax.random.split(key)]
    found = geometry.subspace_overlap(*pairs)
    return Found({}, {"one": (found.value, found.error)}, found.status)


def subsample_start(p, key):
    start = geometry.subsample_start(p.hessian, key=key, num_examples=16)
    found = geometry.top_eigenpairs(p.hessian, key=key, start=start, tol=TOL)
    return Found({}, {"eigenvalues": claim(found)}, found.status)


def sam_sharpness(p, key):
    found = geometry.sam_sharpness(p.loss, p.params, p.batch, rho=RHO)
    return Found({}, {"sam": (found.value, 0.0)}, found.status)


def directional_curvature(p, key):
    found = geometry.directional_curvature(p.loss, p.params, p.batch)
    return Found({}, {"directional": (found.value, 0.0)}, found.status)


def directional_sharpness(p, key):
    ones = jax.tree.map(jnp.ones_like, p.params)
    found = geometry.directional_sharpness(p.loss, p.params, p.batch, ones)
    return Found({}, {"along ones": (found.value, 0.0)}, found.status)


def critical_sharpness(p, key):
    """The loss falls at one end of the interval, and has risen at the other."""
    downhill = jax.tree.map(jnp.negative, jax.grad(p.loss)(p.params, p.batch))
    found = geometry.critical_sharpness(p.loss, p.params, p.batch, downhill)
    near, far = (
        p.loss(tree.add_scaled(p.params, 2 / end, downhill), p.batch)
        for end in (found.high, found.low)
    )
    wrong = jnp.maximum(near - found.loss, 0) + jnp.maximum(found.loss - far, 0)
    return Found({}, {"zero": (wrong, 0.0)}, found.status)


def batch_sharpness(p, key):
    found = geometry.batch_sharpness(
        p.loss, p.params, p.batch, batch_size=15, key=key, max_batches=24
    )
    sampled = {
        "mean of ratios": (found.value, found.standard_error),
        "ratio of means": (found.ratio_of_means, found.ratio_standard_error),
    }
    return Found(sampled, {}, found.status)


def worst_case(solver):
    """The rise is that at the perturbation, which lies in the ball."""

    def solve(p, key):
        found = solver(p.loss, p.params, p.batch, key=key, rho=RHO)
        moved = jax.tree.map(lambda x, e: x + e.astype(x.dtype), p.params, found.perturbation)
        rise = p.loss(moved, p.batch) - p.loss(p.params, p.batch)
        return Found({}, {"zero": (found.value - rise, 0.0)}, found.status)

    return solve


def quadratic_sharpness(p, key):
    found = geometry.quadratic_sharpness(p.loss, p.params, p.batch, key=key, rho=RHO)
    return Found({}, {"to second order": (found.value, found.error)}, found.status)


def hvp(p, key):
    ones = jax.tree.map(jnp.ones_like, p.params)
    value = flat(geometry.hvp(p.loss, p.params, p.batch, ones))
    return Found({}, {"product": (value, jnp.zeros_like(value))}, jnp.int32(0))


def compositions(p, key):
    """Products with a vector of ones."""
    ones, h = jax.tree.map(jnp.ones_like, p.params), p.hessian
    mask = {"v": jnp.zeros_like(p.params["v"]), "w": jnp.ones_like(p.params["w"])}
    of_batch = functools.partial(geometry.hessian, p.loss, p.params)
    operators = {
        "product of w": geometry.masked(h, mask),
        "products by leaf": geometry.block_diagonal(h, ["v", "w"]),
        "scaled product": geometry.congruence(h, p.params),
        "half a product": geometry.preconditioned(h, jax.tree.map(lambda x: 2 * x, ones)),
        "product": geometry.averaged(of_batch, [p.batch, p.batch]),
        "the same product": geometry.subsampled(h, key=key, num_examples=16),
    }
    layer = geometry.layers(h, ["w"])["w"].linearize()({"v": None, "w": ones["w"]})
    found = {name: flat(operator.linearize()(ones)) for name, operator in operators.items()}
    found["product of layer w"] = flat(layer)
    bounded = {name: (value, jnp.zeros_like(value)) for name, value in found.items()}
    return Found({}, bounded, jnp.int32(0))


SOLVERS = {
    "largest": eigenpairs("LA"),
    "smallest": eigenpairs("SA"),
    "in magnitude": eigenpairs("LM"),
    "both ends": eigenpairs("BE"),
    "restarted": eigenpairs("LA", basis_size=12),
    "without a basis": without_basis,
    "deflated trace": trace("deflated"),
    "hutchinson trace": trace("hutchinson"),
    "xtrace": trace("xtrace"),
    "trace by exact parts": trace("exact"),
    "gauss_newton trace": trace("exact", "gauss_newton"),
    "deflated diagonal": diagonal("deflated"),
    "hutchinson diagonal": diagonal("hutchinson"),
    "gauss_newton diagonal": diagonal("exact", "gauss_newton"),
    "frobenius": frobenius("deflated"),
    "hutchinson frobenius": frobenius("hutchinson"),
    "spectral_density": spectral_density,
    "logdet": logdet,
    "curvature_report": curvature_report,
    "subspace_overlap": subspace_overlap,
    "subsample_start": subsample_start,
    "sam_sharpness": sam_sharpness,
    "directional_curvature": directional_curvature,
    "directional_sharpness": directional_sharpness,
    "critical_sharpness": critical_sharpness,
    "batch_sharpness": batch_sharpness,
    "worst_case_sharpness": worst_case(geometry.worst_case_sharpness),
    "adaptive_sharpness": worst_case(geometry.adaptive_sharpness),
    "quadratic_sharpness": quadratic_sharpness,
    "hvp": hvp,
    "compositions": compositions,
}

LOSSES = ("mean", "weighted", "mixed_types")


BOUNDED = (
    *("largest", "smallest", "in magnitude", "both ends", "restarted", "without a basis"),
    *("gauss_newton trace", "gauss_newton diagonal"),
    *("subspace_overlap", "subsample_start", "sam_sharpness", "directional_curvature", "hvp"),
    *("worst_case_sharpness", "adaptive_sharpness", "compositions"),
    *("directional_sharpness", "critical_sharpness", "quadratic_sharpness"),
)


@functools.cache
def keys(name):
    return jax.random.split(jax.random.key(0), 10 if name in BOUNDED else NUM_KEYS)


@functools.partial(jax.jit, static_argnums=0)
def inside(name, params, batch, keys) -> Found:
    return jax.vmap(lambda key: SOLVERS[name](problem(params, batch), key))(keys)


@functools.cache
def lanes(name, of) -> Found:
    """For all keys, in a trace of the caller."""
    return jax.tree.map(np.asarray, inside(name, *data(of), keys(name)))


def rounding(of, right):
    eps = np.finfo(np.float32 if of == "mixed_types" else np.float64).eps
    return 2**12 * eps * max(np.abs(right).max(), 1)


# Which ends are looked for, and what is made of what the others found, is of one type.
_OF_ONE_TYPE = (
    *("smallest", "in magnitude", "both ends", "curvature_report", "subsample_start"),
    *("subspace_overlap", "trace by exact parts"),
)
PAIRS = [
    (name, of)
    for name in SOLVERS
    for of in LOSSES
    if of != "mixed_types" or name not in _OF_ONE_TYPE
]


@pytest.mark.parametrize(("name", "of"), PAIRS)
def test_claims_cover_the_truth(name, of):
    """Bounds do for every key, two standard errors for most of them."""
    found = lanes(name, of)
    assert np.isin(found.status, ALLOWED.get(name, (geometry.Status.OK,))).all()
    for what, (value, error) in found.bounded.items():
        right = truth(of)[what]
        if what in NEAREST:
            right = right[np.abs(value[..., None] - right).argmin(-1)]
        known = ~np.isnan(error)
        off = np.abs(value - right) - error - rounding(of, truth(of)[what])
        assert known.any() and off[known].max() <= 0, what
    for what, (value, error) in found.sampled.items():
        right, two = truth(of)[what], 1.96 * error + rounding(of, truth(of)[what])
        if np.isnan(error).all():  # it claims nothing but to be right on average
            mean_error = value.std(ddof=1) / len(value) ** 0.5
            assert abs(value.mean() - right) <= 5 * mean_error + rounding(of, right), what
        else:
            covered = np.sum(np.abs(value - right) <= two)
            assert covered >= scipy.stats.binom.ppf(1e-6, len(value), LEAST), what


@pytest.mark.parametrize("name", SOLVERS)
def test_jitted_is_eager(name):
    key, found = keys(name)[0], jax.tree.map(lambda x: x[0], lanes(name, "weighted"))
    eager = SOLVERS[name](problem(*data("weighted")), key)
    assert eager.status == found.status
    for pairs, others in ((found.sampled, eager.sampled), (found.bounded, eager.bounded)):
        for what, (value, error) in pairs.items():
            scale = np.abs(truth("weighted")[what]).max()
            np.testing.assert_allclose(value, others[what][0], rtol=0, atol=1e-9 * max(scale, 1))
            np.testing.assert_allclose(error, others[what][1], rtol=1e-4, atol=1e-9 * max(scale, 1))


# How a solver may end beside OK, and which truths are one of many.
ALLOWED: dict[str, tuple[Any, ...]] = {}
NEAREST = ("eigenvalues", "smallest")

# Not compared here.
ELSEWHERE = {
    **dict.fromkeys(("barrier", "landscape", "random_direction", "slices"), "test_landscape.py"),
    **dict.fromkeys(("direction_units", "plane_through"), "test_landscape.py"),
    "average_sharpness": "test_average_case.py",
    "check": "raises, which nothing can inside a trace",
    "check_invariance": "test_symmetries.py",
    "check_deterministic": "calls the loss outside of a trace",
    "empirical_fisher": "test_metamorphic.py",
    "fisher": "test_metamorphic.py",
    "fisher_rao": "test_flatness.py",
    "flat_radius": "test_flat_radius.py",
    "information_sharpness": "test_information_sharpness.py",
    "layerwise_sharpness": "test_worst_case.py",
    "local_learning_coefficient": "test_learning_coefficient.py",
    "measure_all": "test_sharpness_table.py: what it calls is here",
    "memory": "test_memory.py: it computes nothing",
    "operator": "test_custom.py",
    "preconditioner": "test_preconditioner.py",
    "relative_flatness": "test_flatness.py",
    "restricted": "test_blocks.py",
    "solve": "test_solve.py",
    "track": "test_track.py: the number of its values is no constant of a trace",
}


def test_every_public_function_is_here():
    public = {name for name in dir(geometry) if inspect.isfunction(getattr(geometry, name))}
    source = inspect.getsource(sys.modules[__name__])
    called = set(re.findall(r"geometry\.(\w+)", source))
    assert public - called == set(ELSEWHERE)
