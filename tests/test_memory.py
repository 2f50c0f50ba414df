"""Bytes that are said before anything runs, against what compiled programs and live arrays say."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from sharpjax import geometry, loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.footprint.layout import Layout, _reshaped
from sharpjax.geometry.operators import algebra
from tests.conftest import CACHE
from tests.xla import added

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH, COUNT = 96, 512
VECTOR = 4 * 2 * WIDTH**2  # bytes


def dense(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["a"])
    return jnp.mean((hidden @ params["b"] - batch["x"]) ** 2)


def convolved(params, batch):
    x = batch["x"].reshape(COUNT, 4, 4, WIDTH // 16)
    for kernel in params:
        x = jnp.tanh(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
    return jnp.mean(x**2)


def attends(params, batch):
    x = batch["x"].reshape(COUNT // 8, 8, WIDTH)
    q, k = (jnp.einsum("btd,dhe->bthe", x, w.reshape(WIDTH, 4, -1)) for w in params.values())
    weights = jax.nn.softmax(jnp.einsum("bqhe,bkhe->bhqk", q, k))
    return jnp.mean(jnp.einsum("bhqk,bkhe->bqhe", weights, q) ** 2)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


BATCH = {"x": shape(COUNT, WIDTH)}
SQUARES = {"a": shape(WIDTH, WIDTH), "b": shape(WIDTH, WIDTH)}
LOSSES = {
    "dense": (dense, SQUARES),
    "convolved": (convolved, [shape(3, 3, 6, 16), shape(3, 3, 16, 16), shape(3, 3, 16, 16)]),
    "attends": (attends, SQUARES),
}


def operator(name="dense", **options):
    loss, params = LOSSES[name]
    return geometry.hessian(loss, params, BATCH, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_a_product_takes_what_its_program_says(name):
    found = geometry.memory(operator(name), "product")
    product = jax.eval_shape(algebra._solved, operator(name))
    vector = jax.eval_shape(tree.widen, operator(name).like)
    says = loops._call.lower(product, vector).compile().memory_analysis()
    assert says is not None
    taken = says.argument_size_in_bytes + says.output_size_in_bytes + says.temp_size_in_bytes
    assert abs(found.total - found.operator - taken) <= 0.15 * taken
    assert found.residuals == pytest.approx(tree_bytes(product), rel=1e-3)


def headed(params, batch):
    hidden = jnp.tanh(jnp.tanh(batch["x"] @ params["a"]) @ params["b"])
    return jnp.mean((hidden[:, :8] @ params["head"]) ** 2)


def test_the_linearisation_of_a_part_may_take_most():
    params = {"a": shape(WIDTH, 4 * WIDTH), "b": shape(4 * WIDTH, WIDTH), "head": shape(8, 2)}
    part = geometry.hessian(headed, params, BATCH, where="head")
    found = geometry.memory(part, "product")
    says = algebra._solved.lower(part).compile().memory_analysis()
    assert says is not None
    taken = says.argument_size_in_bytes + says.output_size_in_bytes + says.temp_size_in_bytes
    assert abs(found.total - taken) <= 0.15 * taken


def tree_bytes(found):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found))


def test_operator_and_basis_in_closed_form():
    found = geometry.memory(operator(), k=1)
    more = geometry.memory(operator(), k=3)
    assert found.operator == VECTOR + 4 * COUNT * WIDTH
    assert found.total == found.operator + found.residuals + found.state + found.product
    # 20 vectors and 28, and the ones that are next.
    assert found.state == pytest.approx(21 * VECTOR, rel=0.02)
    assert more.state - found.state == pytest.approx(8 * VECTOR, rel=0.02)
    # It may come to 72 vectors; when it is doubled there are 40 beside them.
    assert found.most == pytest.approx(found.total + (40 + 72 - 20) * VECTOR, rel=0.1)
    without = geometry.memory(operator(), basis_size=0, vectors=False)
    assert without.state == pytest.approx(2 * VECTOR, rel=0.02)
    assert without.most == without.total


def test_arrays_and_shapes_take_the_same():
    params, batch = (jax.tree.map(lambda x: jnp.ones(x.shape), x) for x in (SQUARES, BATCH))
    concrete = geometry.hessian(dense, params, batch)
    for solver, options in ((geometry.trace, {}), (geometry.solve, {}), ("product", {})):
        expected = geometry.memory(operator() + 1.0, solver, **options)
        assert geometry.memory(concrete + 1.0, solver, **options) == expected


def test_microbatches_and_means():
    whole = geometry.memory(operator(), "product")
    batch = {"x": jnp.ones((COUNT, WIDTH))}
    params = jax.tree.map(lambda x: jnp.ones(x.shape), SQUARES)
    cut = geometry.hessian(dense, params, batch, microbatch_size=64)
    cut = geometry.memory(cut, "product")
    # Nothing stays but parameters and batch, and a part takes an eighth.
    assert cut.residuals == pytest.approx(VECTOR + 4 * COUNT * WIDTH, rel=0.01)
    assert cut.total < whole.total
    of = functools.partial(geometry.hessian, dense, params)
    kept, anew = (
        geometry.memory(geometry.averaged(of, batch, batch_size=64, cache_bytes=n), basis_size=8)
        for n in (2**30, 0)
    )
    one = geometry.memory(geometry.hessian(dense, params, {"x": batch["x"][:64]}), "product")
    assert kept.residuals == 8 * one.residuals and anew.residuals == 0
    assert anew.total < kept.total


def test_a_trace_keeps_one_basis(monkeypatch):
    """Beside the linearisation, 32 vectors and eleven more (docs/geometry.md)."""
    params = jnp.ones(2**16)
    scale = jnp.linspace(1.0, 100.0, 2**16) ** 2
    found = geometry.hessian(curved, params, {"scale": scale[None]})
    before, most = tree_bytes(jax.live_arrays()), []
    iterate = loops.iterate

    def watched(*args, **kwargs):
        result = iterate(*args, **kwargs)
        most.append(tree_bytes(jax.live_arrays()) - before)
        return result

    monkeypatch.setattr(loops, "iterate", watched)
    geometry.trace(found, key=jax.random.key(0), max_products=80)
    assert len(most) == 3 and max(most) <= 4 * 2**16 * (32 + 11 + 4)


def curved(params, batch):
    return jnp.mean(batch["scale"] @ params**2)


def test_what_is_refused():
    with pytest.raises(UserError, match="unknown solver 'trase'; did you mean 'trace'"):
        geometry.memory(operator(), "trase")
    with pytest.raises(UserError, match="trace takes no k; it takes key, method"):
        geometry.memory(operator(), geometry.trace, k=3)
    with pytest.raises(UserError, match="verify=True is not counted"):
        geometry.memory(operator(), verify=True)
    with pytest.raises(UserError, match="method=exact is not counted"):
        geometry.memory(operator(), "trace", method="exact")
    with pytest.raises(UserError, match="max_products must be a whole number >= 1, got 'a'"):
        geometry.memory(operator(), max_products="a")
    with pytest.raises(UserError, match="basis_size must be a whole number >= 0, got 8.5"):
        geometry.memory(operator(), basis_size=8.5)
    with pytest.raises(UserError, match="must be an operator"):
        geometry.memory(dense)  # pyright: ignore[reportArgumentType]


def test_how_reshaped_arrays_lie():
    mesh = Layout({"data": 2, "model": 4}, {})
    spec = (("data",), (), ("model",))
    assert _reshaped((8, 6, 16), spec, (48, 16)) == (("data",), ("model",))
    assert _reshaped((8, 6, 16), spec, (8, 6, 4, 4)) == (("data",), (), ("model",), ())
    assert mesh.parts(spec) == 8


@pytest.fixture(scope="module")
def sharded():
    environment = os.environ | {
        "XLA_FLAGS": added("", "--xla_force_host_platform_device_count=8"),
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "benchmarks/sharded_transformer.py", "--size=tiny", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_program_of_a_sharded_transformer_gathers_a_basis(sharded):
    for row in sharded["rows"]:
        # Small leaves are drawn together, and these alone are gathered: no two vectors, and so no
        # basis of eight.
        largest = row["travels"].get("all-gather", (0, 0))[1]
        assert largest < 2 * 4 * sharded["parameters"], row["name"]
    for row in sharded["rows"][:3]:
        assert "all-gather" not in row["travels"], row["name"]


@pytest.mark.slow
def test_memory_of_a_device_is_within_the_model(sharded):
    for row in sharded["rows"][:4]:
        assert abs(row["model"] - row["bytes"]) <= 0.25 * row["bytes"], row["name"]
