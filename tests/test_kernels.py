"""Curvature through kernels: which ways there are to a product, and what a difference is worth."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import batching, mlir

from sharpjax.errors import UserError
from sharpjax.geometry import (
    averaged,
    composed,
    directional_curvature,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    hvp,
    top_eigenpairs,
    trace,
)
from sharpjax.geometry.loss import differentiable
from sharpjax.geometry.operators.differences import TOLERANCE
from sharpjax.geometry.status import Status
from sharpjax.losses import SquaredError

EXAMPLES, WIDTH, OUTPUTS = 8, 4, 3


# One activation, tanh, six times.


def slope(x, g):
    return g * (1 - jnp.square(jnp.tanh(x)))


def with_backward(forward, backward):
    layer = jax.custom_vjp(forward)
    layer.defvjp(lambda x: (forward(x), x), lambda x, g: (backward(x, g),))
    return layer


def on_host(function, *xs):
    like = jax.ShapeDtypeStruct(xs[0].shape, xs[0].dtype)
    return jax.pure_callback(function, like, *xs, vmap_method="broadcast_all")


def in_pallas(function, *xs):
    def kernel(*refs):
        *inputs, output = refs
        output[...] = function(*(ref[...] for ref in inputs))

    like = jax.ShapeDtypeStruct(xs[0].shape, xs[0].dtype)
    return pallas.pallas_call(kernel, out_shape=like, interpret=True)(*xs)


def opaque(name, function):
    """A primitive that can be computed, and mapped over, and no more."""
    primitive = Primitive(name)

    def mapped(xs, dims):
        size = next(x.shape[d] for x, d in zip(xs, dims, strict=True) if d is not None)
        pairs = zip(xs, dims, strict=True)
        return primitive.bind(*(batching.bdim_at_front(x, d, size) for x, d in pairs)), 0

    primitive.def_impl(function)
    primitive.def_abstract_eval(lambda x, *_: x)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = mapped
    return primitive.bind


def host_slope(x, g):
    x, g = np.asarray(x), np.asarray(g)  # in float32: the thread knows of no float64
    return g * (1 - np.square(np.tanh(x)))


nested = with_backward(
    lambda x: 1 - jnp.square(jnp.tanh(x)), lambda x, g: -2 * jnp.tanh(x) * slope(x, g)
)
LAYERS = {
    "pure": jnp.tanh,
    "custom_vjp": with_backward(jnp.tanh, slope),
    "nested": with_backward(jnp.tanh, lambda x, g: g * nested(x)),
    "callback": with_backward(jnp.tanh, lambda x, g: on_host(host_slope, x, g)),
    "pallas": with_backward(
        functools.partial(in_pallas, jnp.tanh), functools.partial(in_pallas, slope)
    ),
    "opaque": with_backward(opaque("opaque_tanh", jnp.tanh), opaque("opaque_slope", slope)),
}
# Which ways there are to a Hessian product; a difference is there for all of them.
HESSIAN = {
    "pure": {"linearized", "forward", "reverse"},
    "custom_vjp": {"linearized", "forward", "reverse"},
    "nested": {"reverse"},
    "callback": set(),
    "pallas": {"forward"},
    "opaque": set(),
}
# And to the product of a Jacobian with a vector.
JACOBIAN = {
    "pure": {"linearized", "forward", "reverse"},
    "custom_vjp": {"reverse"},
    "nested": {"reverse"},
    "callback": set(),
    "pallas": set(),
    "opaque": set(),
}


def problem(activation, dtype=None, hidden=WIDTH, examples=EXAMPLES):
    """A loss in parts, parameters and a batch."""
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDTH, hidden), "v": (hidden, OUTPUTS)}
    params = {k: jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, dtype) for k, s in shapes.items()}
    batch = {
        "x": jnp.asarray(rng.normal(size=(examples, WIDTH)), dtype),
        "target": jnp.asarray(rng.normal(size=(examples, OUTPUTS)), dtype),
    }

    def model(params, batch):
        return activation(batch["x"] @ params["w"]) @ params["v"]

    return composed(model, SquaredError()), params, batch


def basis(params):
    flat, unflatten = ravel_pytree(params)
    return jax.vmap(unflatten)(jnp.eye(flat.size, dtype=flat.dtype))


def dense(operator):
    """Its matrix, a product at a time, as kernels need not be mapped."""
    product, vectors = operator.linearize(), basis(operator.like)
    count = len(jax.tree.leaves(vectors)[0])
    rows = [product(jax.tree.map(lambda x, i=i: x[i], vectors)) for i in range(count)]
    return np.stack([ravel_pytree(row)[0] for row in rows])


@functools.cache
def right(kind):
    """The matrices of the pure layer, in float64."""
    loss, params, batch = problem(jnp.tanh)
    return dense(MAKE[kind](loss, params, batch))


MAKE = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "fisher": fisher,
    "drawn": functools.partial(fisher, key=jax.random.key(1)),
    "empirical_fisher": empirical_fisher,
}
JACOBIANS = ("gauss_newton", "fisher", "drawn", "empirical_fisher")


@pytest.mark.usefixtures("x64", "strict")
@pytest.mark.parametrize("layer", LAYERS)
def test_what_works_where(layer):
    loss, params, batch = problem(LAYERS[layer])
    for product in ("forward", "reverse"):
        ways = {"linearized", "forward"} if product == "forward" else {"reverse"}
        if ways & HESSIAN[layer]:
            found = hessian(loss, params, batch, product=product)
            assert found.how.way in HESSIAN[layer]
            np.testing.assert_allclose(dense(found), right("hessian"), atol=1e-12)
        else:
            with pytest.raises(UserError, match="reference implementation.*custom_jvp"):
                hessian(loss, params, batch, product=product)
        if ways & JACOBIAN[layer]:
            found = gauss_newton(loss, params, batch, product=product)
            assert found.how.way in JACOBIAN[layer]
            np.testing.assert_allclose(dense(found), right("gauss_newton"), atol=1e-12)
        else:
            with pytest.raises(UserError, match="reference implementation.*custom_jvp"):
                gauss_newton(loss, params, batch, product=product)
    for kind, table in (("hessian", HESSIAN), ("gauss_newton", JACOBIAN)):
        if not table[layer]:
            with pytest.raises(UserError, match="reference.*custom_jvp.*product='difference'"):
                MAKE[kind](loss, params, batch)


@pytest.mark.usefixtures("x64", "strict")
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("layer", ["nested", "opaque"])
def test_products_are_those_of_the_pure_layer(layer, kind):
    """A difference is off by less than it says: `e^(2/3)` is 4e-11 here."""
    loss, params, batch = problem(LAYERS[layer])
    exact = layer == "nested"
    found = MAKE[kind](loss, params, batch, product="auto" if exact else "difference")
    size = np.abs(right(kind)).max()
    np.testing.assert_allclose(dense(found), right(kind), atol=(1e-13 if exact else 1e-8) * size)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("product", ["reverse", "difference"])
@pytest.mark.parametrize("kind", ["hessian", "drawn", "empirical_fisher"])
def test_in_parts_and_restricted(kind, product):
    layer = LAYERS["nested" if product == "reverse" else "opaque"]
    loss, params, batch = problem(layer)
    make = functools.partial(MAKE[kind], loss, params, product=product)
    found = {
        "microbatches": dense(make(batch, microbatch_size=EXAMPLES // 2)),
        "mean": dense(0.5 * make(batch) + 0.5 * make(batch)),
    }
    if kind != "drawn":  # whose labels are drawn by batch
        found["averaged"] = dense(averaged(make, batch, batch_size=EXAMPLES // 2))
    for name, matrix in found.items():
        np.testing.assert_allclose(matrix, right(kind), atol=1e-8, err_msg=name)
    part = dense(make(batch, where="v"))
    n = len(part)
    np.testing.assert_allclose(part, right(kind)[:n, :n], atol=1e-8)  # 'v' comes before 'w'


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("product", ["reverse", "difference"])
def test_inside_jit_and_vmap(product):
    loss, params, batch = problem(LAYERS["nested" if product == "reverse" else "opaque"])

    @jax.jit
    def multiply(params, vector):
        return hessian(loss, params, batch, product=product).linearize()(vector)

    population = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    found = jax.vmap(multiply)(population, population)
    plain = hvp(problem(jnp.tanh)[0], params, batch, params)
    for i in range(2):
        for name, x in plain.items():
            np.testing.assert_allclose(found[name][i], x, atol=1e-8)


# What a difference is worth.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_eigenvalues_by_differences_are_as_near_as_they_say(kind, dtype):
    with jax.enable_x64(True):
        values = np.linalg.eigvalsh(right(kind))[::-1][:2]
        layer = "callback" if dtype == jnp.float32 else "opaque"
        loss, params, batch = problem(LAYERS[layer], dtype)
        operator = MAKE[kind](loss, params, batch, product="difference")
        found = top_eigenpairs(operator, key=jax.random.key(0), k=2, tol=1e-3)
        assert found.status == Status.OK
        off = np.abs(np.asarray(found.values, float) - values)
        assert (off <= found.value_errors + 1e-6 * values[0]).all()
        assert (found.value_errors <= 1e-3 * np.abs(values)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("hidden", [4, 128])
def test_a_relu_net_is_right_or_said_not_to_be(hidden, dtype):
    """Of few units a step may be so small that it meets no jump."""
    with jax.enable_x64(True):
        loss, params, batch = problem(jax.nn.relu, dtype, hidden, 4 * hidden)
        operators = hessian(loss, params, batch, product="difference"), hessian(loss, params, batch)
        found, exact = (top_eigenpairs(o, key=jax.random.key(0)) for o in operators)
        off = np.abs(found.values - exact.values)
        assert found.status == Status.NOT_CONVERGED or off <= 2e-3 * exact.values


@pytest.mark.parametrize("tol", [1e-3, 0.5])
def test_jumps_are_not_taken_for_curvature(tol):
    """The mean of |a'w - b| has a gradient in steps, and no curvature. A difference over many of
    them is steady: that of the density of the steps."""

    def loss(w, batch):
        return jnp.mean(jnp.abs(batch["a"] @ w - batch["b"]))

    rng = np.random.default_rng(0)
    batch = {
        "a": jnp.asarray(rng.normal(size=(100_000, 8)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=100_000), jnp.float32),
    }
    params = jnp.asarray(rng.normal(size=8), jnp.float32)
    operator = hessian(loss, params, batch, product="difference")
    found = top_eigenpairs(operator, key=jax.random.key(0), tol=tol)
    assert found.values > 0.1  # and not 0
    assert found.value_errors >= found.values
    assert found.status == Status.NOT_CONVERGED and not found.converged
    # Other solvers count no error of products: these are then no numbers.
    assert trace(operator, key=jax.random.key(0), max_products=4).status != Status.OK


def test_what_other_solvers_get_is_sure():
    loss, params, batch = problem(LAYERS["callback"])
    plain = problem(jnp.tanh)[0]
    found, exact = (
        trace(
            hessian(f, params, batch, product=p),
            key=jax.random.key(0),
            method="hutchinson",
            max_products=16,
        )
        for f, p in ((loss, "difference"), (plain, "auto"))
    )
    assert found.status == exact.status
    np.testing.assert_allclose(found.value, exact.value, rtol=TOLERANCE)


def test_a_gradient_that_is_no_number():
    loss, params, batch = problem(LAYERS["callback"])
    params["w"] = params["w"].at[0, 0].set(jnp.nan)
    found = top_eigenpairs(
        hessian(loss, params, batch, product="difference"), key=jax.random.key(0)
    )
    assert found.status == Status.NON_FINITE


# What is refused.


def test_what_is_refused():
    loss, params, batch = problem(LAYERS["callback"])
    kernel: Any = functools.partial(hessian, loss, params, batch)
    with pytest.raises(UserError, match="unknown product 'backward'"):
        kernel(product="backward")
    with pytest.raises(UserError, match="hessian: product='difference' with precision='bfloat16'"):
        kernel(product="difference", precision="bfloat16")
    with pytest.raises(UserError, match="hvp: the loss has not .*reference implementation"):
        hvp(loss, params, batch, params)
    with pytest.raises(UserError, match="directional_curvature: the loss has not .*reference"):
        directional_curvature(loss, params, batch)
    by_difference = kernel(product="difference")
    with pytest.raises(UserError, match="product='difference' needs the vectors"):
        top_eigenpairs(by_difference, key=jax.random.key(0), vectors=False, basis_size=0)
    for layer in ("callback", "custom_vjp"):
        loss, params, batch = problem(LAYERS[layer])
        operator = hessian(loss, params, batch, product="difference")
        with pytest.raises(UserError, match="trace: .*reference implementation"):
            trace(operator, key=jax.random.key(0), method="exact")
        operator = gauss_newton(loss, params, batch, product="difference")
        with pytest.raises(UserError, match="goes forwards.*'hutchinson'"):
            trace(operator, key=jax.random.key(0), method="exact")


ACTIVATION: Any = jnp.tanh


def test_an_operator_that_is_kept_takes_another_way_or_is_refused(monkeypatch):
    """Where a layer of its loss became a kernel."""
    loss, params, batch = problem(lambda x: ACTIVATION(x))
    operators = {kind: MAKE[kind](loss, params, batch) for kind in MAKE if kind != "drawn"}
    expected = {kind: operator @ params for kind, operator in operators.items()}
    monkeypatch.setitem(globals(), "ACTIVATION", LAYERS["nested"])
    for kind, operator in operators.items():
        found = operator @ params
        for a, b in zip(*map(jax.tree.leaves, (found, expected[kind])), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    monkeypatch.setitem(globals(), "ACTIVATION", LAYERS["callback"])
    for operator in operators.values():
        with pytest.raises(UserError, match="^operator @ v: the loss has not .*reference"):
            operator @ params
        with pytest.raises(UserError, match="^top_eigenpairs: the loss has not .*reference"):
            top_eigenpairs(operator, key=jax.random.key(0))


class Bounded:
    """An outer loss that is computed by a layer."""

    canonical = True

    def __init__(self, layer):
        self.layer = LAYERS[layer]

    def __call__(self, outputs, batch):
        return jnp.mean(self.layer(jnp.sum((outputs - batch["target"]) ** 2, 1)))

    def sample(self, key, outputs, batch):
        return SquaredError().sample(key, outputs, batch)


def test_labels_that_need_no_curvature_of_the_outer_loss():
    loss, params, batch = problem(jnp.tanh)
    kernel, pure = (composed(loss.model_fn, Bounded(layer)) for layer in ("callback", "pure"))
    with pytest.raises(UserError, match="^fisher: the loss has not .*reference"):
        fisher(kernel, params, batch)
    found = fisher(kernel, params, batch, labels="observed") @ params
    expected = empirical_fisher(pure, params, batch) @ params
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    fisher(kernel, params, batch, key=jax.random.key(0)) @ params

    class Sum(Bounded):
        def __call__(self, outputs, batch):
            return len(outputs) * super().__call__(outputs, batch)

    with pytest.raises(UserError, match="^fisher: outer_loss is a sum"):
        fisher(composed(loss.model_fn, Sum("callback")), params, batch, labels="observed")


def test_plain_losses_are_not_tried(monkeypatch):
    """Ways are looked for where a loss holds something suspicious, and only there."""
    tried = []
    monkeypatch.setattr(differentiable, "_failure", lambda *args: tried.append(args))
    for product in ("auto", "forward", "reverse", "difference"):
        for make in MAKE.values():
            make(*problem(jnp.tanh), product=product)
    assert not tried
    hessian(*problem(LAYERS["custom_vjp"]))
    assert tried
