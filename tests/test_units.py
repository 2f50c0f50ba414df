"""An operator of any size: results that scale with it, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.geometry import Status
from sharpjax.geometry.lanczos import units
from tests.problems import Diagonal

KEY, OTHER = jax.random.key(3), jax.random.key(4)
# float32 holds powers of two from -126 on, and some entries of products are small beside others.
POWERS = [-80, 60, 99]


def spectrum():
    bulk = np.random.default_rng(0).uniform(1, 30, 195)
    return np.r_[100.0, 90.0, 80.0, 70.0, 60.0, bulk].astype(np.float32)


def pairs(operator, **options):
    return geometry.top_eigenpairs(operator, key=KEY, k=3, **options)


def tracked(operator):
    return geometry.top_eigenpairs(operator, key=OTHER, k=3, start=pairs(operator))


def ends(operator):
    options = {"which": "BE", "basis_size": 0, "vectors": False}
    return geometry.top_eigenpairs(operator, key=KEY, k=2, **options)


def overlap(operator):
    found = geometry.subspace_overlap(pairs(operator), tracked(operator))
    return found._replace(value=operator.values[0] * found.value, error=0, cosines=0)


def density(operator):
    found = geometry.spectral_density(operator, key=KEY, num_steps=20, relative_error=0.5)
    return found._replace(size=0), found.estimates(), found.grid(8)


def report(operator):
    found = geometry.curvature_report(operator, key=KEY, k=3, num_steps=16)
    return found._replace(density=found.density._replace(size=0))


def with_method(solve, method, **options):
    return lambda operator: solve(operator, key=KEY, method=method, **options)


SOLVERS = {
    "a basis that grows": pairs,
    "restarts": lambda operator: pairs(operator, basis_size=12, tol=1e-4),
    "no basis": ends,
    "verified": lambda operator: pairs(operator, verify=True),
    "tracked": tracked,
    "overlap": overlap,
    "density": density,
    "report": report,
} | {
    f"{solve.__name__} {method}": with_method(solve, method, **options)
    for solve, methods, options in [
        (geometry.trace, ("deflated", "xtrace"), {"relative_error": 0.02}),
        (geometry.frobenius, ("deflated", "hutchinson"), {}),
        (geometry.diagonal, ("deflated",), {"absolute_error": 0.0}),
    ]
    for method in methods
}
SHARES = ("vectors", "weights", "vector_errors", "distance")  # dimensionless


@pytest.mark.parametrize("name", SOLVERS)
def test_results_scale_with_the_operator(name):
    """Powers of two are exact, so all digits are those of the operator of ordinary size."""
    values = spectrum()
    plain = jax.device_get(SOLVERS[name](Diagonal(jnp.asarray(values))))
    expected = jax.tree.leaves_with_path(plain)
    for power in POWERS:
        factor = np.float32(2.0**power)
        found = jax.device_get(SOLVERS[name](Diagonal(jnp.asarray(factor * values))))
        for (path, wanted), leaf in zip(expected, jax.tree.leaves(found), strict=True):
            where = jax.tree_util.keystr(path)
            if np.issubdtype(np.asarray(wanted).dtype, np.floating):
                scaled = not any(share in where for share in SHARES)
                wanted = wanted * factor if scaled else wanted
            np.testing.assert_array_equal(leaf, wanted, f"{where} times 2^{power}")


def test_the_values_are_right():
    """What all are compared with: the largest, the trace and the norm of an ordinary operator."""
    values = spectrum()
    operator = Diagonal(jnp.asarray(np.float32(1e-30) * values))
    found = pairs(operator, tol=1e-5)
    assert found.status == Status.OK
    np.testing.assert_allclose(found.values / np.float32(1e-30), values[:3], rtol=1e-5)
    for solve, right in ((geometry.trace, values.sum()), (geometry.frobenius, (values**2).sum())):
        estimate = solve(operator, key=KEY)
        power = 2 if solve is geometry.frobenius else 1
        value = np.float64(estimate.value) / 1e-30
        error = np.float64(estimate.standard_error) / 1e-30
        assert estimate.status == Status.OK and error > 0
        assert abs(value - right ** (1 / power)) < 5 * error


def test_a_logarithm_shifts():
    values = spectrum()
    plain = geometry.logdet(Diagonal(jnp.asarray(values)), key=KEY, num_steps=20)
    for power in POWERS:
        factor = np.float32(2.0**power)
        found = geometry.logdet(Diagonal(jnp.asarray(factor * values)), key=KEY, num_steps=20)
        assert found.status == plain.status == Status.OK
        shift = 200 * power * np.log(2)
        # Each of 200 logarithms, and their mean, is rounded at the size of the shift.
        allowed = 4 * np.finfo(np.float32).eps * abs(shift)
        np.testing.assert_allclose(found.value, plain.value + shift, atol=allowed)
        np.testing.assert_allclose(found.standard_error, plain.standard_error, rtol=1e-3)
        np.testing.assert_array_equal(found.smallest, factor * plain.smallest)


def test_each_lane_has_its_own_unit():
    factors = np.float32([1.0, 2.0**-99, 2.0**60])

    def solve(factor):
        operator = Diagonal(factor * jnp.asarray(spectrum()))
        return pairs(operator).values, geometry.trace(operator, key=KEY).value

    values, traces = jax.vmap(solve)(jnp.asarray(factors))
    np.testing.assert_array_equal(values, np.expand_dims(factors, 1) * values[:1])
    np.testing.assert_array_equal(traces, factors * traces[0])


def test_subnormal_products_are_not_certified():
    """At 2^-126 of float32 digits are lost, and at 2^-118 they are not."""
    fine, lost = (Diagonal(jnp.asarray(np.float32(2.0**p) * spectrum())) for p in (-118, -126))
    for solve in (
        pairs,
        lambda operator: geometry.trace(operator, key=KEY),
        lambda operator: geometry.frobenius(operator, key=KEY),
        lambda operator: geometry.spectral_density(operator, key=KEY, num_steps=20),
    ):
        assert solve(fine).status == Status.OK
        assert solve(lost).status == Status.NOT_CONVERGED


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_unit_and_its_inverse_are_normal_numbers(dtype):
    limits = np.finfo(dtype)
    with jax.enable_x64(dtype == "float64"):
        for number in (limits.tiny, 3 * limits.tiny, 0.7, 1.0, limits.max / 3, limits.max):
            unit = units.power_of_two(jnp.asarray([-number, 0], dtype))
            assert unit.dtype == dtype and np.frexp(unit)[0] == 0.5
            assert limits.tiny <= unit <= number and limits.tiny <= 1 / unit < np.inf
            assert number / unit < 4
        for number in (0.0, np.inf, np.nan):
            assert units.power_of_two(jnp.asarray([number], dtype)) == 0


def test_a_unit_grows_with_a_stream():
    """From 1e-30 to 1e30 and back: it is that of the largest, and what it has passed is scaled by
    powers of two alone."""
    unit, total = jnp.float32(0), jnp.float32(0)
    for number in (0.0, 3e-30, 1e-36, np.nan, 1.0, 1e-30, 5e30, 1.0):
        number = jnp.float32(number)
        unit, factor = units.grow(unit, number)
        assert 0 <= factor <= 1 and np.frexp(factor)[0] in (0, 0.5)
        total = total * factor + jnp.nan_to_num(number) / units.known(unit)
        assert np.isfinite(total) and total < 4
    assert unit == units.power_of_two([jnp.float32(5e30)])
    np.testing.assert_array_equal(total * unit, np.float32(5e30))
