"""Input that is rare and valid, through every public function of geometry."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import (
    Status,
    adaptive_sharpness,
    averaged,
    batch_sharpness,
    check_deterministic,
    critical_sharpness,
    curvature_report,
    diagonal,
    directional_curvature,
    directional_sharpness,
    empirical_fisher,
    frobenius,
    hessian,
    hvp,
    layers,
    local_learning_coefficient,
    logdet,
    sam_sharpness,
    spectral_density,
    subsample_start,
    subsampled,
    subspace_overlap,
    top_eigenpairs,
    trace,
    worst_case_sharpness,
)

KEY = jax.random.key(0)
PARAMS = {"w": jnp.linspace(-1, 1, 32).reshape(16, 2), "b": jnp.ones((1, 2))}
BATCH = {"x": jnp.linspace(-2, 1, 128).reshape(8, 16)}


def loss(params, batch):
    shift = jnp.broadcast_to(params["b"], (len(batch["x"]), 2))
    return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["w"] + shift.astype(jnp.float32))))


def overlap(operator, key):
    return subspace_overlap(*(top_eigenpairs(a, key=key, k=2) for a in (operator, 2 * operator)))


# By name: of an operator and a key.
SOLVERS: dict[str, Any] = {
    "top_eigenpairs": functools.partial(top_eigenpairs, k=2),
    "both ends": functools.partial(top_eigenpairs, k=2, which="BE"),
    "restarted": functools.partial(top_eigenpairs, k=1, basis_size=10),
    "no basis": functools.partial(top_eigenpairs, k=1, vectors=False, basis_size=0),
    "verified": functools.partial(top_eigenpairs, k=2, verify=True),
    "deflated": functools.partial(trace, max_products=8),
    "hutchinson": functools.partial(trace, method="hutchinson", max_products=8, relative_error=0.1),
    "xtrace": functools.partial(trace, method="xtrace", max_products=32),
    "diagonal": functools.partial(diagonal, max_products=16),
    "frobenius": functools.partial(frobenius, max_products=16),
    "spectral_density": functools.partial(
        spectral_density, num_steps=6, num_probes=2, relative_error=0.1
    ),
    "logdet": lambda operator, key: logdet(
        operator + 5.0, key=key, num_steps=6, num_probes=4, relative_error=0.1
    ),
    "curvature_report": functools.partial(
        curvature_report, k=2, num_steps=6, num_probes=2, max_trace_products=4, damping=5.0
    ),
    "subsample_start": functools.partial(subsample_start, k=1, num_examples=4),
    "overlap": overlap,
}


def call(solve, operator, key=KEY):
    if getattr(solve, "func", None) is None:
        return solve(operator, key)
    return solve(operator, key=key)


# Of a loss, parameters, a batch and a key.
MEASURES: dict[str, Any] = {
    "sam": lambda loss, p, b, _: sam_sharpness(loss, p, b, rho=0.1),
    "directional": lambda loss, p, b, _: directional_curvature(loss, p, b),
    "worst case": lambda loss, p, b, key: worst_case_sharpness(
        loss, p, b, key=key, rho=0.1, num_steps=2, restarts=2
    ),
    "chunks": lambda loss, p, b, key: worst_case_sharpness(
        loss, p, b, key=key, rho=0.1, num_steps=2, m=1
    ),
    "adaptive": lambda loss, p, b, key: adaptive_sharpness(
        loss, p, b, key=key, rho=0.1, num_steps=2
    ),
    "hvp": lambda loss, p, b, _: hvp(loss, p, b, p),
    "along an update": lambda loss, p, b, _: directional_sharpness(loss, p, b, p),
    "critical": lambda loss, p, b, _: critical_sharpness(loss, p, b, p, max_losses=6),
    "mini-batches": lambda loss, p, b, key: batch_sharpness(
        loss, p, b, batch_size=2, key=key, max_batches=4
    ),
    "learning coefficient": lambda loss, p, b, key: local_learning_coefficient(
        loss, p, b, key=key, step_size=1e-6, localization=1.0, num_steps=2, burn_in=1, batch_size=2
    ),
}


# More parameters than an int32 counts.


def of_many(params, batch):
    return jnp.mean(batch["x"]) * jnp.sum(params["w"] ** 2)


MANY = {"w": jax.ShapeDtypeStruct((30_000, 100_000), jnp.float32)}
FEW = {"x": jax.ShapeDtypeStruct((8,), jnp.float32)}


@pytest.mark.parametrize("name", [*SOLVERS, *MEASURES, "empirical_fisher"])
def test_three_billion_parameters(name):
    def run(params, batch):
        if name in MEASURES:
            return MEASURES[name](of_many, params, batch, KEY)
        if name == "empirical_fisher":
            return empirical_fisher(of_many, params, batch).linearize()(params)
        return call(SOLVERS[name], hessian(of_many, params, batch))

    assert jax.tree.leaves(jax.eval_shape(run, MANY, FEW))


def test_their_number_is_told():
    def run(params, batch):
        operator = hessian(of_many, params, batch)
        return spectral_density(operator, key=KEY, num_steps=4, num_probes=1)

    assert tree.size(MANY) == 3_000_000_000
    assert jax.eval_shape(run, MANY, FEW).size.dtype == jnp.float32


# Strictness of jax, and of what it is told.


# With float64 whatever is not said to be of a leaf's type differs from it; without it, a few.
STRICT = [(name, True) for name in SOLVERS]
STRICT += [(name, False) for name in ("top_eigenpairs", "deflated", "spectral_density", "logdet")]


@pytest.mark.parametrize(("name", "mixed"), STRICT)
def test_no_silent_promotion(name, mixed, strict):
    with jax.enable_x64(mixed):
        params = {"w": PARAMS["w"], "b": PARAMS["b"].astype(jnp.float64 if mixed else jnp.float32)}
        found = call(SOLVERS[name], hessian(loss, params, BATCH))
        assert all(np.isfinite(found.num_products) for _ in [0] if hasattr(found, "num_products"))
        if hasattr(found, "evaluate"):
            grid = found.grid(16)
            for curve in (found.evaluate(grid), found.evaluate(grid, 0.1), found.cumulative(grid)):
                assert curve.value.shape == (16,)
            found.trace_of(jnp.square)
        if hasattr(found, "estimates"):
            found.estimates()


@pytest.mark.parametrize("name", [*SOLVERS, *MEASURES])
def test_no_nan_where_all_is_well(name):
    """What is unknown is NaN, which is no error of arithmetic."""
    with jax.debug_nans(True):
        if name in SOLVERS:
            call(SOLVERS[name], hessian(loss, PARAMS, BATCH))
        else:
            MEASURES[name](loss, PARAMS, BATCH, KEY)


@pytest.mark.parametrize("argument", ["relative_error", "absolute_error"])
def test_a_traced_target_of_a_log_determinant(argument):
    operator = hessian(loss, PARAMS, BATCH) + 5.0

    def solve(error):
        return logdet(operator, key=KEY, num_steps=6, num_probes=8, **{argument: error}).value

    np.testing.assert_allclose(jax.jit(solve)(0.5), solve(0.5), rtol=1e-5)


# Keys.


@pytest.mark.parametrize(
    "name", [*SOLVERS, "worst case", "adaptive", "mini-batches", "learning coefficient"]
)
def test_a_legacy_key_is_the_same_key(name):
    legacy = jax.random.PRNGKey(0)

    def run(key):
        if name in SOLVERS:
            return call(SOLVERS[name], hessian(loss, PARAMS, BATCH), key)
        return MEASURES[name](loss, PARAMS, BATCH, key)

    new, old = run(KEY), run(legacy)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(a, b)


def test_legacy_keys_in_jit_and_vmap():
    operator = hessian(loss, PARAMS, BATCH)

    def solve(key):
        return trace(operator, key=key, method="hutchinson", max_products=4).value

    legacy = jax.random.split(jax.random.PRNGKey(0), 3)
    each = [solve(jax.random.wrap_key_data(k)) for k in legacy]
    np.testing.assert_allclose(jax.vmap(solve)(legacy), each, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(solve)(legacy[1]), each[1], rtol=1e-5)
    with pytest.raises(UserError, match=r"trace: key must be one random key.* of shape \(3,\)"):
        solve(legacy)
    with pytest.raises(UserError, match="trace: key must be one random key.*got ArrayImpl"):
        solve(jnp.arange(2))


# Losses and trees.


def written(params, batch):
    total = jax.new_ref(jnp.zeros(()))
    total[...] += jnp.sum(params["w"] ** 3)
    return total[...] + 0 * jnp.sum(params["b"])


@pytest.mark.parametrize("name", ["top_eigenpairs", "deflated", *MEASURES])
def test_a_loss_that_writes_to_a_reference(name):
    def plain(params, batch):
        return jnp.sum(params["w"] ** 3) + 0 * jnp.sum(params["b"])

    def run(loss):
        if name in SOLVERS:
            return call(SOLVERS[name], hessian(loss, PARAMS, BATCH))
        return MEASURES[name](loss, PARAMS, BATCH, KEY)

    for a, b in zip(jax.tree.leaves(run(written)), jax.tree.leaves(run(plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_leaves_without_numbers():
    """In the parameters and in the batch, of shape (0, 3) and (8, 0)."""
    params = PARAMS | {"none": jnp.ones((0, 3)), "some": jnp.ones((8, 0))}
    batch = BATCH | {"none": jnp.ones((8, 0))}
    makers = (
        *(hessian, empirical_fisher, functools.partial(hessian, microbatch_size=4)),
        lambda loss, params, batch: averaged(
            functools.partial(hessian, loss, params), batch, batch_size=4
        ),
    )
    for make in makers:
        found = make(loss, params, batch) @ params
        truth = make(loss, PARAMS, BATCH) @ PARAMS
        for name, value in truth.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
        assert found["none"].shape == (0, 3) and found["some"].shape == (8, 0)
    for measure in MEASURES.values():
        measure(loss, params, batch, KEY)


def test_leaves_of_one_name_are_told_apart():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(3)}, "c": jnp.ones(1)}

    def squares(p, batch):
        return jnp.sum(p["a/b"] ** 2) + jnp.sum(p["a"]["b"] ** 2) / 2 + jnp.sum(p["c"] ** 2)

    assert tree.path_names(params) == ["['a']['b']", "['a/b']", "c"]
    operator = hessian(squares, params, None)
    found = trace(operator, key=KEY, max_products=32)
    values = {name: np.asarray(part.value) for name, part in found.by_leaf.items()}
    np.testing.assert_allclose(list(values.values()), [3, 4, 2], rtol=1e-4)
    assert list(values) == tree.path_names(params)
    assert len(layers(operator)) == 3


class Encoding(collections.UserDict):
    """As tokenizers return it: a dict for everybody but jax."""


def test_batches_that_behave_as_dicts():
    odd = Encoding(BATCH)
    operator, same = hessian(loss, PARAMS, odd), hessian(loss, PARAMS, BATCH)
    np.testing.assert_array_equal(
        *(jax.tree.leaves(o.linearize()(PARAMS))[0] for o in (operator, same))
    )
    for name in MEASURES:
        found = MEASURES[name](loss, PARAMS, odd, KEY)
        truth = MEASURES[name](loss, PARAMS, BATCH, KEY)
        np.testing.assert_array_equal(jax.tree.leaves(found)[0], jax.tree.leaves(truth)[0])
    check_deterministic(loss, PARAMS, odd)
    nested = hessian(lambda p, b: loss(p, b[0]), PARAMS, (Encoding(BATCH), jnp.ones(8)))
    assert isinstance(nested.batch[0], dict)
    subsampled(operator, key=KEY, num_examples=4)
    empirical_fisher(loss, PARAMS, odd)


@pytest.mark.parametrize("form", ["list", "loader", "function", "cut"])
def test_data_sets_of_batches_that_behave_as_dicts(form):
    batches = [Encoding(BATCH), Encoding(BATCH)]
    given: Any = {"list": batches, "function": lambda: iter(batches), "loader": Reread(batches)}
    options = {"batch_size": 4} if form == "cut" else {}
    source = Encoding(BATCH) if form == "cut" else given[form]
    operator = averaged(functools.partial(hessian, loss, PARAMS), source, **options)
    product = operator.linearize()(PARAMS)
    truth = hessian(loss, PARAMS, BATCH).linearize()(PARAMS)
    for a, b in zip(jax.tree.leaves(product), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Reread:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


# The report of few parameters.


@pytest.mark.parametrize("size", [2, 5, 11])
def test_a_report_of_few_parameters(size):
    values = jnp.linspace(1.0, 9.0, size)
    operator = hessian(lambda w, _: jnp.sum(values * w**2) / 2, jnp.ones(size), None)
    report = curvature_report(operator, key=KEY)
    assert len(report.top.values) == min(10, size - 1) and report.status == Status.OK
    np.testing.assert_allclose(report.top.values, values[: -min(11, size) : -1], rtol=1e-4)
    np.testing.assert_allclose(report.smallest, 1, rtol=1e-4)
    np.testing.assert_allclose(report.trace.value, jnp.sum(values), rtol=1e-4)


def test_a_report_says_not_converged_of_what_was_asked_alone():
    """960 parameters, as they are drawn: 100 probes give the trace to 4 %."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"a": jax.random.normal(keys[0], (24, 32)) / 5}
    params["b"] = jax.random.normal(keys[1], (32, 6)) / 5
    batch = {"x": jax.random.normal(keys[2], (64, 24))}
    batch["y"] = jax.random.randint(keys[3], (64,), 0, 6)

    def classified(p, b):
        logits = jax.nn.log_softmax(jnp.tanh(b["x"] @ p["a"]) @ p["b"])
        return -jnp.mean(jnp.take_along_axis(logits, b["y"][:, None], 1))

    operator = hessian(classified, params, batch)
    found = curvature_report(operator, key=KEY)
    assert found.status == found.top.status == Status.OK
    share = np.asarray(found.trace.standard_error) / np.asarray(found.trace.value)
    assert 0.02 < share < 0.1
    asked = curvature_report(operator, key=KEY, relative_error=float(share) / 2)
    assert asked.status == Status.NOT_CONVERGED
    np.testing.assert_allclose(asked.trace.value, found.trace.value, rtol=1e-5)


# Products outside of jit.


@pytest.mark.parametrize("make", ["hessian", "sum", "microbatches", "fisher"])
def test_a_product_outside_of_jit_is_compiled_once(make, compilations):
    def operator(params):
        if make == "fisher":
            return empirical_fisher(loss, params, BATCH)
        size = 4 if make == "microbatches" else None
        found = hessian(loss, params, BATCH, microbatch_size=size)
        return found + 2 * found + 0.5 if make == "sum" else found

    with jax.disable_jit():
        truth = operator(PARAMS).linearize()(PARAMS)
    product = operator(PARAMS).linearize()
    found = product(PARAMS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.block_until_ready(operator(PARAMS).linearize()(PARAMS))
    other = jax.tree.map(lambda x: 2 * x, PARAMS)
    compilations.clear()
    again = operator(other).linearize()
    jax.block_until_ready((again(PARAMS), product(other)))
    assert compilations == []
    crossed = jax.jit(lambda product, vector: product(vector))(product, PARAMS)
    many = jax.vmap(product)(jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS))
    for a, b, c in zip(*map(jax.tree.leaves, (found, crossed, many)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(a, c[1], rtol=1e-4, atol=1e-6)
