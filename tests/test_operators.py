"""Products against dense Hessians, what may change without a new compilation, and what is said
about wrong arguments."""

import dataclasses
import functools
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Operator, hessian, hvp
from sharpjax.geometry.loss.checks import check_deterministic
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.blocks import restricted
from tests.problems import Diagonal, awkward_loss, awkward_net, columns, dense, flat
from tests.traces import TRACES, traced

# The mathematics.


@pytest.mark.parametrize("microbatch_size", [None, 4, 12])
def test_products_equal_the_dense_hessian_in_every_layout(x64, strict, microbatch_size):
    params, batch = awkward_net()
    truth = dense(awkward_loss, params, batch)
    operator = hessian(awkward_loss, params, batch, microbatch_size=microbatch_size)
    assert isinstance(operator, Operator)
    np.testing.assert_allclose(columns(operator.linearize(), params), truth, atol=1e-14)
    v = tree.random_normal(jax.random.key(1), params)
    product = hvp(awkward_loss, params, batch, v, microbatch_size=microbatch_size)
    assert jax.tree.structure(product) == jax.tree.structure(params)
    np.testing.assert_allclose(flat(product), truth @ flat(v), atol=1e-14)


@pytest.mark.parametrize(
    "where", ["layers/0/0", ["layers/*"], ["gain", "shift/*", "empty"], "*", ("unused",)]
)
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_restrictions_equal_the_dense_block(x64, strict, where, microbatch_size):
    params, batch = awkward_net()
    mask = tree.select(params, where)
    chosen = flat(jax.tree.map(lambda m, x: np.full(x.shape, m), mask, params)).astype(bool)
    truth = dense(awkward_loss, params, batch)[np.ix_(chosen, chosen)]
    frozen = hessian(awkward_loss, params, batch, where=where, microbatch_size=microbatch_size)
    full = hessian(awkward_loss, params, batch, microbatch_size=microbatch_size)
    cut = restricted(full, where)
    for operator in (frozen, cut):
        assert tree.size(operator.like) == chosen.sum()
        assert tree.path_names(operator.like) == [
            n for n, m in zip(tree.path_names(params), jax.tree.leaves(mask), strict=True) if m
        ]
        found = columns(algebra.linearize(operator), operator.like)
        np.testing.assert_allclose(found, truth, atol=1e-14)


def test_a_restriction_of_any_operator():
    operator = restricted(Diagonal({"a": jnp.arange(3.0), "b": jnp.ones(2)}), ["a"])
    assert operator == restricted(operator.operator, ("a",))  # a list of globs is still hashable
    found = algebra.linearize(operator)({"a": jnp.ones(3), "b": None})
    assert found["b"] is None and found["a"].tolist() == [0, 1, 2]


def deep_loss(params, batch):
    x = batch
    for kernel in params["body"]:
        x = jnp.tanh(x @ kernel)
    return jnp.mean(jnp.square(x @ params["head"]))


def test_where_does_not_compute_the_rest():
    params = {"body": [jnp.ones((64, 64)) / 64] * 6, "head": jnp.ones((64, 2))}
    batch = jnp.ones((128, 64))

    def flops(**kwargs):
        operator = hessian(deep_loss, params, batch, **kwargs)
        product = algebra.linearize(operator)
        v = tree.zeros_like(operator.like)
        return jax.jit(lambda p, v: p(v)).lower(product, v).compile().cost_analysis()["flops"]

    assert flops(where="head") < 0.05 * flops()


def test_narrow_parameters_are_widened_exactly(strict):
    params, batch = awkward_net(dtype=np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    v = tree.random_normal(jax.random.key(1), wide)
    expected = hvp(awkward_loss, wide, batch, v)
    found = hvp(awkward_loss, narrow, batch, v)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(flat(found), flat(expected), atol=2e-7)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), v)  # a gradient of the parameters
    again = hvp(awkward_loss, narrow, batch, rounded)
    exact = hvp(awkward_loss, wide, batch, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    np.testing.assert_allclose(flat(again), flat(exact), atol=2e-7)
    operator = hessian(awkward_loss, narrow, batch)
    np.testing.assert_allclose(flat(operator.linearize()(v)), flat(expected), atol=1e-6)


def test_mixed_types(x64, strict):
    params = {"a": jnp.float32(2), "b": jnp.float64(3), "c": jnp.bfloat16(5)}

    def loss(p, batch):
        a, b, c = (p[n].astype(jnp.float64) for n in "abc")
        return a**2 * b * c * jnp.mean(batch)

    ones = {"a": jnp.float32(1), "b": jnp.float64(1), "c": jnp.float32(1)}
    found = hvp(loss, params, jnp.ones(2), ones)
    assert [found[n].dtype for n in "abc"] == [jnp.float32, jnp.float64, jnp.float32]
    # (2bc + 2ac + 2ab, 2ac + a^2, 2ab + a^2) at (2, 3, 5)
    assert [float(found[n]) for n in "abc"] == [30 + 20 + 12, 20 + 4, 12 + 4]


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_every_matrix_product_runs_at_highest_precision(microbatch_size):
    params, batch = awkward_net(dtype=np.float32)
    v = tree.zeros_like(params)
    operator = hessian(awkward_loss, params, batch, microbatch_size=microbatch_size)
    single = functools.partial(hvp, awkward_loss, microbatch_size=microbatch_size)
    for program in (
        jax.make_jaxpr(lambda o, v: o.linearize()(v))(operator, v),
        jax.make_jaxpr(single)(params, batch, v),
    ):
        text = str(program)
        highest = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
        assert text.count("dot_general[") == text.count(highest) > 5


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_bfloat16_on_request(microbatch_size):
    """Parameters, batch and the loss's arrays are cast; products are in float32."""
    seen = []

    def loss(shift, params, batch):
        seen.append({x.dtype.name for x in jax.tree.leaves((shift, params, batch))})
        return awkward_loss(params, batch) + jnp.sum(params["gain"] * shift)

    params, batch = awkward_net(dtype=np.float32)
    partial = Partial(loss, jnp.ones(2))
    size = {"microbatch_size": microbatch_size}
    low = hessian(partial, params, batch, precision="bfloat16", **size)
    part = hessian(partial, params, batch, precision="bfloat16", where="layers/*", **size)
    exact = hessian(awkward_loss, params, batch)
    v = tree.random_normal(jax.random.key(0), params)
    found, expected = (apply(algebra.linearize(o), v) for o in (low, exact))
    assert all(types == {"bfloat16"} for types in seen)
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32"}
    error = tree.norm(tree.add_scaled(found, -1.0, expected)) / tree.norm(expected)
    assert 1e-4 < error < 3e-2
    block = tree.partition(v, tree.select(params, "layers/*"))[0]
    assert jax.tree.structure(apply(algebra.linearize(part), block)) == jax.tree.structure(block)
    with pytest.raises(UserError, match="unknown precision 'half'"):
        hessian(awkward_loss, params, batch, precision="half")


# What is compiled when.


def counted_loss(params, batch):
    traced("bare")
    return jnp.mean(jnp.square(batch @ params))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """A loss with an array and a static option."""

    scale: Any
    power: int = dataclasses.field(metadata={"static": True})

    def __call__(self, params, batch):
        traced("registered")
        return jnp.mean((batch @ params) ** self.power) * self.scale


def counted_partial(scale, params, batch):
    traced("partial")
    return jnp.mean(jnp.square(batch @ params)) * scale


@pytest.mark.parametrize(
    "name, make",
    [
        ("bare", lambda i: counted_loss),
        ("registered", lambda i: Scaled(jnp.float32(i), 2)),
        ("partial", lambda i: Partial(counted_partial, jnp.float32(i))),
    ],
)
def test_new_numbers_compile_nothing(name, make):
    def products(i):
        params, batch = jnp.full(5, float(i)), jnp.full((6, 5), float(i))
        operator = hessian(make(i), params, batch, microbatch_size=3)
        for o in (operator, hessian(make(i), params, batch)):
            jax.block_until_ready(apply(algebra.linearize(o), params))
        return hvp(make(i), params, batch, params)

    first = products(1)
    before = TRACES[name]
    assert before > 0
    for i in (2, 3):
        products(i)
    assert TRACES[name] == before
    assert first.tolist() == products(1).tolist()


@jax.jit
def apply(product, vector):
    return product(vector)


def test_arrays_of_a_loss_have_a_population_axis(x64, strict):
    params = jnp.ones((3, 5))
    batch = jnp.ones((6, 5)) + jnp.expand_dims(jnp.arange(5.0), 0)
    losses = Scaled(jnp.arange(3.0), 3)

    def member(loss, w):
        return hvp(loss, w, batch, w, microbatch_size=2)

    together = jax.vmap(member)(losses, params)
    for i in range(3):
        alone = member(tree.index(losses, i), params[i])
        np.testing.assert_allclose(together[i], alone, rtol=1e-14)


def test_inside_jit_and_grad():
    """d/dw of v'H(w)v: geometry can be differentiated through a product."""
    batch = jnp.ones((2, 3))

    @jax.jit
    def curvature(w):
        v = jnp.ones(3)
        return jnp.vdot(v, hvp(Scaled(1.0, 3), w, batch, v))

    # (sum w)^3 has curvature 6 s along ones, times 9.
    np.testing.assert_allclose(jax.grad(curvature)(jnp.ones(3)), 6 * 9, rtol=1e-6)


# Convolutions, on CPU in both forms.


class ConvNet(nn.Module):
    """Two convolutions and pooling, smooth."""

    @nn.compact
    def __call__(self, x):
        for width in (3, 4):
            x = nn.gelu(nn.Conv(width, (3, 3), param_dtype=x.dtype)(x))
        return nn.Dense(2, param_dtype=x.dtype)(x.mean((1, 2)))


def conv_loss(params, batch):
    return jnp.mean(jnp.square(ConvNet().apply({"params": params}, batch["x"]) - batch["y"]))


def conv_problem(dtype):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(8, 6, 6, 2)), "y": rng.normal(size=(8, 2))}
    batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), batch)
    params = ConvNet().init(jax.random.key(0), batch["x"])["params"]
    return jax.tree.map(lambda x: x.astype(dtype), params), batch


def test_convolutions_in_microbatches(x64, strict):
    params, batch = conv_problem(jnp.float64)
    v = tree.random_normal(jax.random.key(1), params)
    whole = hvp(conv_loss, params, batch, v)
    chunks = hvp(conv_loss, params, batch, v, microbatch_size=2)
    linear = algebra.linearize(hessian(conv_loss, params, batch))(v)
    # Reverse over reverse: another way to the same number.
    slope = jax.grad(lambda p: tree.vdot(jax.grad(conv_loss)(p, batch), v))
    truth = flat(jax.jit(slope)(params))
    for found in (whole, chunks, linear):
        np.testing.assert_allclose(flat(found), truth, rtol=1e-10, atol=1e-13)


# Where things lie.


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_products_of_sharded_parameters(kind, microbatch_size):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    params = {"w": jnp.arange(32.0).reshape(8, 4) / 32, "b": jnp.ones(4)}
    batch = jnp.arange(96.0).reshape(12, 8) / 96

    def loss(p, x):
        z = jnp.sum(jnp.expand_dims(x, 2) * jnp.expand_dims(p["w"], 0), axis=1)
        return jnp.mean(jnp.sum(jnp.tanh(z + jnp.expand_dims(p["b"], 0)), axis=1))

    v = tree.random_normal(jax.random.key(0), params)
    expected = hvp(loss, params, batch, v, microbatch_size=microbatch_size)
    with jax.set_mesh(mesh):
        lies = {"w": jax.NamedSharding(mesh, jax.P("model")), "b": jax.NamedSharding(mesh, jax.P())}
        sharded, moved = jax.device_put(params, lies), jax.device_put(v, lies)
        found = hvp(loss, sharded, batch, moved, microbatch_size=microbatch_size)
        assert found["w"].sharding.spec[0] == "model"
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)


def test_importing_geometry_takes_little():
    script = """
import sys
blocked = ("flax", "tensorflow_datasets", "orbax", "absl", "ml_collections", "etils", "scipy.stats")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in blocked or name.split(".")[0] in blocked:
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Refuse())
import sharpjax.geometry as geometry
import jax.numpy as jnp, jax
def loss(w, batch):
    return jnp.mean(batch) * jnp.sum(w**2)
operator = geometry.hessian(loss, jnp.ones(3), jnp.ones(2))
pairs = geometry.top_eigenpairs(operator, key=jax.random.key(0))
assert abs(float(pairs.values[0]) - 2) < 1e-5
assert not set(blocked) & {name.split(".")[0] for name in sys.modules}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What a user can get wrong.


def good_loss(params, batch):
    return jnp.mean(batch["x"] @ params["w"])


GOOD = {"w": jnp.ones(3)}, {"x": jnp.ones((6, 3)), "y": jnp.ones(6)}


def unhashable():
    loss = functools.partial(counted_partial, jnp.ones(()))

    class Loss:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, params, batch):
            return loss(params, batch)

    return Loss()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"loss": 3.0}, "must be a function or a callable pytree.*got float"),
        ({"loss": unhashable()}, "Loss that can be neither hashed nor traced.*register_dataclass"),
        ({"loss": Partial(good_loss, "mean")}, "leaf .* of the loss is a str"),
        ({"params": {"w": jnp.ones(3), "n": jnp.arange(2)}}, "'n' is int32"),
        ({"params": {"w": 1.0}}, "'w' is a float"),
        ({"params": {}}, "holds no array"),
        ({"batch": {"x": jnp.ones((6, 3)), "y": jnp.ones(5)}}, "'y' has shape \\(5,\\)"),
        ({"batch": {"x": jnp.ones((6, 3)), "t": jnp.ones(())}}, "'t' has shape \\(\\)"),
        ({"microbatch_size": 4}, "chunks of 4 do not divide 6 .* 3, 6|2, 3, 6"),
        ({"microbatch_size": 0}, "chunks of 0"),
        ({"microbatch_size": 2.0}, "whole number of examples or None, got 2.0"),
        ({"microbatch_size": True}, "got True"),
        ({"loss": lambda p, b: b["x"] @ p["w"]}, r"returns float32\[6\].*[Tt]ake the mean"),
        ({"loss": lambda p, b: (jnp.sum(p["w"]), b)}, "drop auxiliary outputs"),
        ({"loss": lambda p, b: jnp.int32(3)}, "returns int32"),
        ({"loss": lambda p, b: None}, "returns nothing"),
        ({"loss": lambda p, b: jnp.sum(p["w"]) * 1j}, "returns complex64.*its real part"),
        ({"params": {"w": jnp.ones(0)}}, "the arrays of params are empty"),
        ({"params": {"w": None}}, "holds no array"),
        ({"loss": lambda p, b: jnp.mean(b["x"])}, "does not depend on params"),
        ({"loss": lambda p, b: jnp.mean(GOOD[0]["w"])}, "ones that it closes over"),
        ({"loss": lambda p, b: jnp.sum(jax.lax.stop_gradient(p["w"]))}, "stop_gradient"),
        ({"loss": lambda p, b: jnp.mean(jnp.argmax(p["w"]) == b["y"])}, "through integers"),
    ],
)
@pytest.mark.parametrize("caller", ["hvp", "hessian"])
def test_wrong_arguments(caller, arguments, message):
    params, batch = GOOD
    given = {"loss": good_loss, "params": params, "batch": batch} | arguments
    if caller == "hvp":
        given["vector"] = params
    with pytest.raises(UserError, match=f"^{caller}: .*{message}"):
        {"hvp": hvp, "hessian": hessian}[caller](**given)


def test_a_loss_may_ignore_some_parameters_and_depend_through_loops():
    def loss(params, batch):
        return jax.lax.fori_loop(0, 3, lambda i, x: x * jnp.sum(params["w"]), 1.0)

    operator = hessian(loss, {"w": jnp.ones(2), "unused": jnp.ones(3)}, None)
    found = hvp(lambda p, b: jnp.sum(p["w"] ** 2), operator.params, None, operator.params)
    assert found["unused"].tolist() == [0, 0, 0] and found["w"].tolist() == [2, 2]


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "noise",
    [
        lambda: RNG.normal(),
        lambda: jnp.asarray(RNG.normal(size=4))[0],
        lambda: jax.random.normal(jax.random.key(RNG.integers(1000))),
        lambda: jax.jit(lambda: RNG.normal() + jnp.ones(()))(),
        lambda: jax.lax.cond(True, lambda: jnp.float32(RNG.normal()), lambda: jnp.float32(0)),
    ],
    ids=["a number", "an array", "a key", "inside jit", "inside cond"],
)
def test_a_loss_that_draws_without_a_key_is_refused(noise):
    def loss(params, batch):
        return jnp.sum(params["w"] ** 2) * (1 + noise())

    with pytest.raises(UserError, match="^hessian: two traces .* different numbers.*Partial"):
        hessian(loss, *GOOD)


def test_what_only_looks_random_is_allowed(key):
    def keyed(key, params, batch):
        return jnp.sum(params["w"] ** 2) * jax.random.normal(key)

    big = np.ones((3, 3))
    big[0] = np.nan
    hessian(Partial(keyed, key), *GOOD)
    hessian(lambda p, b: jnp.nansum(jnp.asarray(big) @ p["w"]), *GOOD)
    check_deterministic(Partial(keyed, key), *GOOD)
    # Inside a trace, too, where a loss may close over what is traced.
    outer = jax.jit(lambda a: hvp(lambda p, b: a * jnp.sum(p["w"] ** 2), *GOOD, GOOD[0]))
    assert outer(3.0)["w"].tolist() == [6, 6, 6]


def test_two_calls_are_compared_on_request():
    def loss(params, batch):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jnp.sum(params["w"]) + jax.pure_callback(lambda: np.float32(RNG.normal()), shape)

    hessian(loss, *GOOD)  # what a callback does is not in the trace
    with pytest.raises(UserError, match="^check_deterministic: two calls of the loss"):
        check_deterministic(loss, *GOOD)
    with pytest.raises(UserError, match="check_deterministic: call it outside of jit"):
        jax.jit(lambda p: check_deterministic(good_loss, p, GOOD[1]))(GOOD[0])


def test_a_check_is_made_once_for_each_structure():
    def loss(scale, params, batch):
        traced("checked")
        return scale * jnp.sum(params["w"] ** 2)

    for i in range(3):
        hessian(Partial(loss, jnp.float32(i)), {"w": jnp.full(3, i, jnp.float32)}, GOOD[1])
        assert 0 < TRACES["checked"] <= 3


@pytest.mark.parametrize(
    "vector, message",
    [
        ({"v": jnp.ones(3)}, "'w' is missing, 'v' is not in params"),
        ({"w": jnp.ones(4)}, r"'w' is float32\[4\] where params has float32\[3\]"),
        ({"w": jnp.arange(3)}, "'w' is int32"),
        ({"w": [1.0, 2.0, 3.0]}, "'w/0' is not in params"),
    ],
)
def test_wrong_vectors(vector, message):
    with pytest.raises(UserError, match=f"hvp: vector .*{message}"):
        hvp(good_loss, *GOOD, vector)


def test_wrong_globs():
    with pytest.raises(UserError, match="'kernel'.*nearest"):
        hessian(good_loss, *GOOD, where="kernel")
    with pytest.raises(UserError, match="'kernel'.*nearest"):
        algebra.linearize(restricted(hessian(good_loss, *GOOD), "kernel"))


def test_an_error_of_the_loss_says_that_parameters_were_widened():
    def loss(params, batch):
        jax.lax.dot(params["w"], jnp.ones(3, jnp.bfloat16))
        return jax.lax.add(params["w"][0], jnp.bfloat16(0))

    narrow = {"w": jnp.ones(3, jnp.bfloat16)}
    with pytest.raises(TypeError) as error:
        hessian(loss, narrow, GOOD[1])
    assert any("widened to float32" in note for note in error.value.__notes__)


def test_arguments_may_be_numpy_and_the_batch_empty():
    params = {"w": np.ones(3, np.float32)}
    found = hvp(lambda p, _: jnp.sum(p["w"] ** 3), params, None, params)
    assert found["w"].tolist() == [6, 6, 6]
