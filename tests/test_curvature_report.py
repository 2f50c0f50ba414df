"""The whole report against a dense matrix, its cost, and its table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry, tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, hessian
from sharpjax.geometry.report import curvature_report
from sharpjax.geometry.spectra.density import spectral_density
from tests.problems import Diagonal, awkward_loss, awkward_net, dense

VALUES = np.r_[30.0, 22, 17, 12, 9, 7, np.random.default_rng(0).uniform(-0.2, 1, 794)]


def operator(values=VALUES):
    return Diagonal(jnp.asarray(values, jnp.float32))


@pytest.fixture(scope="module")
def report():
    return curvature_report(
        operator(), key=jax.random.key(1), k=5, damping=0.5, relative_error=0.01
    )


def test_everything_of_a_hessian(x64, strict, key):
    params, batch = awkward_net()
    values = np.linalg.eigvalsh(dense(awkward_loss, params, batch))
    found = curvature_report(
        *(hessian(awkward_loss, params, batch),),
        **{"key": key, "k": 3, "damping": 5.0, "num_probes": 16, "relative_error": 0.1},
    )
    geometry.check(found)
    np.testing.assert_allclose(found.top.values, values[::-1][:3], rtol=2e-3)
    assert abs(found.smallest - values[0]) <= found.smallest_residual + 1e-9
    assert abs(found.trace.value - values.sum()) < 3 * found.trace.standard_error
    assert found.trace.standard_error <= 0.1 * abs(found.trace.value)
    assert abs(found.frobenius.value - np.linalg.norm(values)) < 3 * found.frobenius.standard_error
    assert found.logdet is not None and found.logdet.status == Status.OK
    error = abs(found.logdet.value - np.log(values + 5).sum())
    assert error < 3 * found.logdet.standard_error
    assert found.top.vectors is None


def test_it_is_the_sum_of_its_parts(report):
    """One set of products serves all, and what top found adds no variance."""
    assert report.status == Status.OK and report.density.num_probes == 3
    further = report.num_products - report.top.num_products - report.density.num_products
    assert report.density.num_products == 3 * 48 and 5 < further < 60
    assert report.top.num_products < 40
    np.testing.assert_allclose(report.density.atoms, VALUES[:5], rtol=1e-4)
    assert 0.009 < report.trace.standard_error / report.trace.value <= 0.01
    plain = spectral_density(operator(), key=jax.random.key(1), num_steps=48, num_probes=3)
    assert report.frobenius.standard_error < plain.estimates()["frobenius"].standard_error / 3
    assert abs(report.smallest - VALUES.min()) < 0.01
    assert abs(report.smallest - VALUES.min()) <= report.smallest_residual


@pytest.mark.slow
def test_the_trace_covers_and_log_determinants_do():
    """Nominal .954, of 300 keys, in one compilation; further probes stop at different numbers."""

    def one(key):
        found = curvature_report(
            *(operator(),), key=key, k=3, num_steps=24, damping=0.5, relative_error=0.015
        )
        return found._replace(density=None, top=None)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 300))
    assert (found.status == Status.OK).all() and len(np.unique(found.num_products)) > 4
    logdet, truth = found.logdet, np.log(VALUES + 0.5).sum()
    for value, error, expected, most in (
        (found.trace.value, found.trace.standard_error, VALUES.sum(), 0.985),
        # At least that of the largest eigenvalue left, which has most of it: at times too large.
        (found.frobenius.value, found.frobenius.standard_error, np.linalg.norm(VALUES), 1.0),
        (logdet.value, logdet.standard_error, truth, 0.985),
    ):
        off = np.abs(value - expected)
        assert 0.9 < np.mean(off < 2 * error) <= most
        claimed, true = (np.sqrt(np.mean(np.square(x))) for x in (error, off))
        assert 0.85 * true < claimed < 1.2 * true
    assert np.mean(np.abs(found.smallest - VALUES.min()) <= found.smallest_residual) == 1


@pytest.mark.parametrize("num_steps, width", [(16, 1), (16, 3), (48, 1)])
def test_the_smallest_eigenvalue_is_no_surer_than_the_products(key, num_steps, width):
    """Beside 9e5, a probe ends at 50 eps of that, or finds +-1 among its own rounding errors.

    Each of m products adds at most its noise to what is measured, of which ten are allowed for.
    """
    values = np.r_[1e6, 9e5, np.resize([1.0, -1.0], 1998)]
    found = curvature_report(
        *(operator(values),),
        **{"key": key, "k": 1, "num_probes": 3},
        **{"num_steps": num_steps, "probes_per_product": width},
    )
    most = 10 * num_steps * 5 * np.finfo(np.float32).eps * 9e5
    assert abs(found.smallest + 1) <= found.smallest_residual <= most
    used = np.asarray(found.density.weights) > 0
    nodes = np.asarray(found.density.nodes)[used]
    off = np.abs(nodes[:, None] - values).min(1)
    assert (off <= np.asarray(found.density.residuals)[used]).all()


def test_a_density_has_a_width(report):
    found, x = report.density, np.float32([0.0, 1.0])
    for sigma in (-0.1, 0.0, np.nan, np.inf, x, "x"):
        with pytest.raises(
            UserError, match="Density.evaluate: sigma must be one finite number > 0"
        ):
            found.evaluate(x, sigma)
    for call in (lambda s: found.cumulative(x, s), lambda s: found.grid(sigma=s)):
        with pytest.raises(UserError, match="Density.*: sigma must be one finite number >= 0"):
            call(-1)
    with pytest.raises(UserError, match="Density.grid: num_points must be a whole number >= 1"):
        found.grid(-1)
    for evaluate in (found.evaluate, found.cumulative):
        assert np.isnan(jax.jit(evaluate)(x, -0.1).value).all()  # traced, and so not refused


def test_estimates_and_the_table(report):
    found = report.estimates()
    names = [f"lambda_{i}" for i in range(1, 6)] + ["lambda_min", "trace", "frobenius", "logdet"]
    assert set(names) < set(found)
    assert found["num_products"].value == report.num_products
    assert found["lambda_min"][:2] == (report.smallest, report.smallest_residual)
    for estimate in found.values():
        assert all(np.ndim(x) == 0 for x in estimate)
    lines = str(report).splitlines()
    assert lines[0] == f"curvature on 800 parameters, {report.num_products} products, ok"
    assert [line.split()[0] for line in lines[1:]] == names
    assert [float(line.split()[1]) for line in lines[1:4]] == [30, 22, 17]
    two = jax.tree.map(lambda x: jnp.stack([x, x]), report)
    with pytest.raises(UserError, match="this is a population; take one member"):
        str(two)
    assert str(tree.index(two, 1)) == str(report)


def test_what_did_not_work_is_said(key):
    broken = curvature_report(operator(np.full(800, np.nan)), key=key, k=5, damping=0.5)
    assert broken.status == Status.NON_FINITE and "non finite" in str(broken)
    zero_trace = np.r_[np.linspace(-1, 1, 800)]
    found = curvature_report(operator(zero_trace), key=key, k=5, damping=0.5)
    assert found.status == Status.NOT_CONVERGED
    assert found.logdet is not None and found.logdet.status == Status.NOT_POSITIVE
    assert "nan" in str(found).splitlines()[-1] and "not positive" in str(found)


def test_without_the_log_determinant_with_vectors_and_no_further_probes(key):
    found = curvature_report(operator(), key=key, k=5, vectors=True, max_trace_products=0)
    assert found.logdet is None and "logdet" not in found.estimates()
    assert found.top.vectors.shape == (5, 800)
    assert found.num_products == found.top.num_products + found.density.num_products
    assert found.trace.num_evaluations == found.num_products


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 3}, "k=3 of 3 eigenvalues leave nothing to probe; k < 3"),
        ({"num_steps": 3}, "num_steps must be a whole number >= 4, got 3"),
        ({"probes_per_product": 2}, "probes_per_product=2 does not divide num_probes=3"),
        ({"damping": -1.0}, "damping must be a number >= 0 or None, got -1.0"),
        ({"relative_error": "x"}, "relative_error must be a number >= 0 or None, got x"),
        ({"key": 0}, "key must be one random key"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UserError, match=f"curvature_report: {message}"):
        curvature_report(operator(np.ones(3)), **({"key": jax.random.key(0), "k": 1} | options))
