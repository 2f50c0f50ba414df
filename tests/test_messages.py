"""What is said about a problem names the function that was called, and the way out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import optim, perturbation
from sharpjax.errors import UserError
from sharpjax.geometry import (
    NotOk,
    Status,
    average_sharpness,
    averaged,
    check,
    check_deterministic,
    composed,
    curvature_report,
    directional_curvature,
    empirical_fisher,
    flat_radius,
    frobenius,
    gauss_newton,
    hessian,
    hvp,
    layerwise_sharpness,
    logdet,
    quadratic_sharpness,
    sam_sharpness,
    solve,
    spectral_density,
    top_eigenpairs,
    trace,
    worst_case_sharpness,
)

KEY = jax.random.key(0)
PARAMS = {"w": jnp.linspace(-1, 1, 10).reshape(5, 2)}
BATCH = {"x": jnp.linspace(-2, 1, 40).reshape(8, 5)}


def loss(params, batch):
    return jnp.mean((batch["x"] @ params["w"]) ** 2)


IN_PARTS = composed(lambda p, b: jnp.tanh(b["x"] @ p["w"]), lambda o, b: jnp.mean(o**2))


def refused(fn, *args, **kwargs):
    with pytest.raises(UserError) as error:
        fn(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


CALLS = {
    "hessian": lambda loss, p=PARAMS, b=BATCH: hessian(loss, p, b),
    "hvp": lambda loss, p=PARAMS, b=BATCH: hvp(loss, p, b, p),
    "sam_sharpness": lambda loss, p=PARAMS, b=BATCH: sam_sharpness(loss, p, b, rho=0.1),
    "directional_curvature": lambda loss, p=PARAMS, b=BATCH: directional_curvature(loss, p, b),
    "worst_case_sharpness": lambda loss, p=PARAMS, b=BATCH: worst_case_sharpness(
        loss, p, b, key=KEY, rho=0.1
    ),
    "empirical_fisher": lambda loss, p=PARAMS, b=BATCH: empirical_fisher(loss, p, b),
    "check_deterministic": lambda loss, p=PARAMS, b=BATCH: check_deterministic(loss, p, b),
}


# Losses that cannot be differentiated.


def halved(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x**2) > 0.1, lambda x: x / 2, x)


@pytest.mark.parametrize("name", CALLS)
def test_a_loop_that_ends_by_a_condition(name):
    said = refused(CALLS[name], lambda p, b: jnp.mean(halved(b["x"] @ p["w"]) ** 2))
    assert said.startswith(f"{name}: the loss has not a gradient: it holds a while_loop")
    assert "static bounds or scan" in said and "checkpointed" in said


def test_loops_that_can_be_differentiated():
    def solved(p, b):
        def steps(x):
            return jax.lax.fori_loop(0, 3, lambda i, x: x / 2, x)

        # Nothing is propagated through the last.
        constant = halved(jax.lax.stop_gradient(p["w"]))
        return jnp.mean(steps(b["x"] @ p["w"]) ** 2) + jnp.sum(constant)

    for call in CALLS.values():
        call(solved)


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, ct: (3 * x**2 * ct,))


@jax.custom_vjp
def fused(x):
    return x**4


fused.defvjp(lambda x: (cube(x) * x, x), lambda x, ct: (4 * cube(x) * ct,))


@jax.custom_vjp
def kernel(x):
    return x**3


def on_host(x, ct):
    return jax.pure_callback(
        lambda x, ct: 3 * x**2 * ct, jax.ShapeDtypeStruct(x.shape, x.dtype), x, ct
    )


kernel.defvjp(lambda x: (x**3, x), lambda x, ct: (on_host(x, ct),))


@pytest.mark.parametrize("name", ["hessian", "hvp", "directional_curvature", "empirical_fisher"])
def test_a_backward_pass_that_has_no_derivative(name):
    said = refused(CALLS[name], lambda p, b: jnp.mean(kernel(b["x"] @ p["w"])))
    assert said.startswith(f"{name}: the loss has not ") and "'kernel'" in said
    assert "reference implementation" in said and "jax.custom_jvp" in said
    assert "product='difference'" in said


def test_backward_passes_that_serve():
    def once(p, b):
        return jnp.mean(cube(b["x"] @ p["w"]))

    def twice(p, b):
        return jnp.mean(fused(b["x"] @ p["w"]))

    for name in ("hessian", "hvp", "sam_sharpness", "directional_curvature", "empirical_fisher"):
        CALLS[name](once)
        CALLS[name](twice)
    plain = hvp(lambda p, b: jnp.mean((b["x"] @ p["w"]) ** 3), PARAMS, BATCH, PARAMS)
    np.testing.assert_allclose(hvp(once, PARAMS, BATCH, PARAMS)["w"], plain["w"], rtol=1e-4)


def test_a_callback():
    def host(x):
        return np.asarray(x) ** 2

    def called(p, b):
        shape = jax.ShapeDtypeStruct(p["w"].shape, p["w"].dtype)
        return jnp.mean(b["x"] @ p["w"]) + jnp.sum(jax.pure_callback(host, shape, p["w"]))

    said = refused(hessian, called, PARAMS, BATCH)
    assert "jax.pure_callback" in said and "jax.custom_jvp" in said


# Solvers.


@pytest.mark.parametrize(
    "solved",
    [
        lambda p: top_eigenpairs(hessian(loss, p, BATCH), key=KEY, k=1).values[0],
        lambda p: trace(hessian(loss, p, BATCH), key=KEY, max_products=4).value,
        lambda p: trace(hessian(IN_PARTS, p, BATCH), key=KEY, method="exact").value,
        lambda p: trace(gauss_newton(IN_PARTS, p, BATCH), method="exact").value,
        lambda p: frobenius(hessian(loss, p, BATCH), key=KEY, max_products=16).value,
        lambda p: logdet(hessian(loss, p, BATCH) + 1.0, key=KEY, num_steps=4).value,
        lambda p: spectral_density(hessian(loss, p, BATCH), key=KEY, num_steps=4).nodes[0, 0],
        lambda p: solve(hessian(loss, p, BATCH) + 1.0, PARAMS).residual,
        lambda p: solve(hessian(loss, PARAMS, BATCH) + 1.0, p).residual,
        lambda p: worst_case_sharpness(loss, p, BATCH, key=KEY, rho=0.1, num_steps=2).value,
        lambda p: (
            trace(
                averaged(functools.partial(hessian, loss, p), [BATCH, BATCH]),
                key=KEY,
                max_products=4,
            ).value
        ),
    ],
    ids=[
        "top",
        "trace",
        "exact",
        "exact gauss_newton",
        "frobenius",
        "logdet",
        "density",
        "solve",
        "right side",
        "worst case",
        "averaged",
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_derivative_of_a_solver(solved, jitted):
    said = refused(jax.grad(jax.jit(solved) if jitted else solved), PARAMS)
    assert "a solver has no derivative" in said and "stop_gradient" in said and "v'Hv" in said


def test_the_derivative_that_is_named_instead(x64):
    """Of the largest eigenvalue of the Hessian of `sum(a w^4)`: 12 a w^2, and 24 a w in w."""
    scale = jnp.array([1.0, 2.0, 3.0])
    w = jnp.array([1.0, 1.5, 2.0])

    def quartic(w, _):
        return jnp.sum(scale * w**4)

    vector = top_eigenpairs(hessian(quartic, w, None), key=KEY, k=1, tol=1e-10).vectors[0]

    def value(w):
        return jnp.vdot(vector, hessian(quartic, w, None).linearize()(vector))

    np.testing.assert_allclose(value(w), 12 * 3 * 4.0, rtol=1e-8)
    np.testing.assert_allclose(jax.grad(value)(w), [0, 0, 24 * 3 * 2.0], atol=1e-4)
    # A measure that is no solver has a derivative.
    assert jnp.isfinite(jax.grad(lambda w: sam_sharpness(quartic, w, None, rho=0.1).value)(w)).all()


def test_a_singular_operator_is_not_asked_for_more_work():
    operator = hessian(lambda p, _: jnp.sum(p["w"][0] ** 2), PARAMS, BATCH)
    found = logdet(operator, key=KEY, num_steps=6)
    assert found.status == Status.NOT_POSITIVE and np.isnan(found.value)
    with pytest.raises(NotOk, match="singular in this precision.*whatever the work; add damping"):
        check(found)
    assert check(logdet(operator + 0.1, key=KEY, num_steps=6)).status == Status.OK


# Arguments.


@pytest.mark.parametrize("name", [n for n in CALLS if n != "check_deterministic"])
@pytest.mark.parametrize("many", ["generator", "map", "loader", "function"])
def test_many_batches_where_one_is_meant(name, many):
    class Loader:
        def __iter__(self):
            return iter([BATCH])

    given = {
        "generator": (b for b in [BATCH]),
        "map": map(lambda b: b, [BATCH]),
        "loader": Loader(),
        "function": lambda: iter([BATCH]),
    }[many]
    said = refused(CALLS[name], loss, PARAMS, given)
    assert said.startswith(f"{name}: batch is a ") and "averaged(functools.partial(" in said


def test_a_leaf_that_is_no_array():
    said = refused(hessian, loss, PARAMS, BATCH | {"text": "a b"})
    assert said.startswith("hessian: leaf 'text' of batch is a str, not an array")


OPERATORS = ("hessian", "gauss_newton", "empirical_fisher")
ALL_CALLS = CALLS | {"gauss_newton": lambda loss, p=PARAMS, b=BATCH: gauss_newton(IN_PARTS, p, b)}


@pytest.mark.parametrize("batches", [[BATCH, BATCH], (BATCH,) * 3, [BATCH]])
@pytest.mark.parametrize("name", ALL_CALLS)
def test_a_list_of_batches_that_the_loss_cannot_take(name, batches):
    said = refused(ALL_CALLS[name], loss, b=batches)
    kind, operator = type(batches).__name__, name if name in OPERATORS else "hessian"
    assert said.startswith(
        f"{name}: batch is a {kind} of {len(batches)} dicts, and the loss fails on it (TypeError: "
    )
    assert f"averaged(functools.partial(geometry.{operator}, loss, params), batches)" in said


def test_a_list_of_pairs_that_the_loss_cannot_take():
    def of_pair(p, batch):
        x, y = batch
        return jnp.mean((x @ p["w"] - y) ** 2)

    pair = BATCH["x"], jnp.ones((8, 2))
    hessian(of_pair, PARAMS, pair)
    hessian(of_pair, PARAMS, list(pair))
    for batches in ([pair, pair], [pair] * 3):
        assert f"a list of {len(batches)} tuples, and" in refused(hessian, of_pair, PARAMS, batches)


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_a_list_of_batches_of_which_the_last_is_smaller(microbatch_size):
    batches = [BATCH, {"x": BATCH["x"][:3]}]
    said = refused(hessian, loss, PARAMS, batches, microbatch_size=microbatch_size)
    assert said.startswith("hessian: batch is a list of 2 dicts, which differ in length. ")
    assert "averaged(functools.partial(geometry.hessian, loss, params), batches)" in said


def test_a_list_that_is_one_batch():
    def of_list(p, batch):
        return sum(loss(p, part) for part in batch) / len(batch)

    for batch in ([BATCH, BATCH], (BATCH, BATCH)):
        hessian(of_list, PARAMS, batch)
    said = refused(hessian, of_list, PARAMS, [BATCH["x"], BATCH["x"][:3]])
    assert "every leaf of batch carries the examples on axis 0" in said
    said = refused(hessian, of_list, PARAMS, [BATCH | {"scale": jnp.ones(())}] * 2)
    assert "'0/scale' has shape ()" in said or "the first leaf ()" in said
    # What is wrong with another batch is said by the loss.
    for batch in ([BATCH["x"], BATCH["x"]], {"y": BATCH["x"]}):
        with pytest.raises((TypeError, KeyError, IndexError)) as error:
            hessian(loss, PARAMS, batch)
        assert not isinstance(error.value, UserError)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_an_empty_batch(name):
    said = refused(ALL_CALLS[name], loss, b={"x": jnp.ones((0, 5))})
    assert said.startswith(f"{name}: the batch is empty: 'x' has shape (0, 5), with no example on ")
    assert "Give one example at least" in said


def test_an_empty_array_and_an_empty_part():
    said = refused(hessian, lambda w, x: jnp.sum(w**2) + jnp.sum(x), jnp.ones(2), jnp.ones((0, 3)))
    assert said.startswith("hessian: the batch is empty: it has shape (0, 3)")
    said = refused(hessian, loss, PARAMS, BATCH | {"y": jnp.ones(0)})
    assert "'y' has shape (0,) and the first leaf (8, 5)" in said
    with pytest.raises(UserError, match="averaged: the batch is empty"):
        averaged(functools.partial(hessian, loss, PARAMS), [{"x": jnp.ones((0, 5))}])


SCALED: dict[str, Any] = {
    name: functools.partial(fn, loss, PARAMS, BATCH, key=KEY, **options)
    for name, fn, options in (
        ("worst_case_sharpness", worst_case_sharpness, {"rho": 0.1}),
        ("layerwise_sharpness", layerwise_sharpness, {"rho": 0.1}),
        ("average_sharpness", average_sharpness, {"rho": 0.1}),
        ("quadratic_sharpness", quadratic_sharpness, {"rho": 0.1}),
        ("flat_radius", flat_radius, {"target": 0.1}),
    )
}
SCALED["perturbation.ascent"] = functools.partial(perturbation.ascent, PARAMS, PARAMS, rho=0.1)


def one_step(scaling):
    tx = optim.sam(optax.sgd(0.1), rho=0.1, scaling=scaling)
    grad_fn = jax.value_and_grad(lambda p, b: (loss(p, b), None), has_aux=True)
    how = {"value": 0.0, "grad_fn": grad_fn, "batch": BATCH}
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS, **how)


SCALED["optim.sam"] = one_step


@pytest.mark.parametrize(
    "around", [lambda rule: rule, perturbation.support, functools.partial(perturbation.only, "w")]
)
@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 5, 2), (0, 2)])
@pytest.mark.parametrize("name", SCALED)
def test_units_of_a_wrong_shape(name, shape, around):
    said = refused(SCALED[name], scaling=around(lambda params: {"w": jnp.ones(shape)}))
    assert said.startswith(
        f"{name}: scaling(params) must broadcast to the parameters, but leaf 'w'"
    )
    assert f"has shape {shape} and the parameter (5, 2). Give an array of the " in said


@pytest.mark.parametrize("name", SCALED)
def test_units_of_another_tree(name):
    said = refused(SCALED[name], scaling=lambda params: {"v": jnp.ones(())})
    assert said.startswith(
        f"{name}: scaling(params) must have the tree structure of params; 'w' is"
    )


@pytest.mark.parametrize("shape", [(), (1,), (2,), (5, 1), (5, 2)])
@pytest.mark.parametrize("name", SCALED)
def test_units_that_broadcast(name, shape):
    SCALED[name](scaling=lambda params: {"w": jnp.ones(shape)})


@pytest.mark.parametrize("name", [name for name in SCALED if name != "optim.sam"])
def test_units_that_are_no_rule(name):
    said = refused(SCALED[name], scaling=PARAMS)
    assert said.startswith(f"{name}: scaling must be a hashable rule") and "got a dict" in said


@pytest.mark.parametrize("name", CALLS)
def test_complex_parameters(name):
    said = refused(CALLS[name], loss, {"w": jnp.ones((5, 2), jnp.complex64)})
    assert said.startswith(f"{name}: ") and "two real ones" in said


@pytest.mark.parametrize("statistics", [{"mean": jnp.zeros(2)}, {"count": jnp.array(3)}])
@pytest.mark.parametrize("name", CALLS)
def test_statistics_among_the_parameters(name, statistics):
    def of_variables(variables, batch):
        return loss(variables["params"], batch) + jnp.sum(variables["batch_stats"].get("mean", 0))

    variables = {"params": PARAMS, "batch_stats": statistics}
    said = refused(CALLS[name], of_variables, variables)
    assert said.startswith(f"{name}: params holds the collections 'params', 'batch_stats'")
    assert "variables['params']" in said


def test_a_report_of_one_parameter():
    operator = hessian(lambda w, _: jnp.sum(w**2), jnp.ones(1), None)
    said = refused(curvature_report, operator, key=KEY)
    assert said.startswith("curvature_report: one parameter") and "top_eigenpairs(" in said


@pytest.mark.parametrize(
    "options", [{"tol": -1.0}, {"k": 0}, {"relative_error": -1.0}, {"key": None}, {"num_steps": 0}]
)
def test_the_report_speaks_of_itself(options):
    operator = hessian(loss, PARAMS, BATCH)
    assert refused(curvature_report, operator, **{"key": KEY, **options}).startswith(
        f"curvature_report: {next(iter(options))}"
    )
