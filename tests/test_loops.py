"""Both forms of a loop give the same numbers, leave the caller's arrays alone, and compile once."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import loops, tree
from sharpjax.errors import UserError

FORMS = ("device", "host")
TRACES = collections.Counter()


def double(carry, operands):
    TRACES["double"] += 1
    return {"x": carry["x"] * 2 + operands, "n": carry["n"] + 1}


def large(carry):
    return carry["x"] > 100


def start():
    return {"x": jnp.float32(1), "n": jnp.int32(0)}


@dataclasses.dataclass(frozen=True)
class PowerStep:
    """A solver's step: it proposes a vector and takes in its product."""

    def propose(self, carry):
        return tree.scale(1 / tree.norm(carry), carry)

    def absorb(self, carry, product):
        return product


def multiply(matrix, v):
    return {"v": jnp.sum(matrix * v["v"], axis=1)}


@dataclasses.dataclass(frozen=True)
class ConvStep:
    """Gradient descent on a two-layer convolutional net."""

    rate: float

    def __call__(self, params, batch):
        return tree.add_scaled(params, -self.rate, jax.grad(conv_loss)(params, batch))


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_loss(params, batch):
    hidden = jax.nn.relu(convolve(batch["image"], params["first"]))
    out = convolve(hidden, params["second"]).mean((1, 2))
    return jnp.mean((out - batch["target"]) ** 2)


def conv_problem(key, dtype):
    a, b, c, d = jax.random.split(key, 4)
    params = {
        "first": 0.3 * jax.random.normal(a, (3, 3, 2, 4), dtype),
        "second": 0.3 * jax.random.normal(b, (3, 3, 4, 3), dtype),
    }
    batch = {
        "image": jax.random.normal(c, (8, 6, 6, 2), dtype),
        "target": jax.random.normal(d, (8, 3), dtype),
    }
    return params, batch


@pytest.mark.parametrize("form", FORMS)
def test_stops_at_max_steps_or_when_the_condition_holds(form):
    carry, steps = loops.iterate(double, start(), jnp.float32(1), max_steps=4, form=form)
    assert (int(steps), int(carry["n"]), float(carry["x"])) == (4, 4, 31.0)
    carry, steps = loops.iterate(
        double, start(), jnp.float32(1), max_steps=40, until=large, form=form
    )
    assert (int(steps), float(carry["x"])) == (6, 127.0)
    # The condition is looked at before the first step.
    carry, steps = loops.iterate(
        double, start() | {"x": jnp.float32(101)}, 1.0, max_steps=3, until=large, form=form
    )
    assert (int(steps), int(carry["n"])) == (0, 0)
    carry, steps = loops.iterate(double, start(), jnp.float32(1), max_steps=0, form=form)
    assert (int(steps), float(carry["x"])) == (0, 1.0)


@pytest.mark.parametrize("form", FORMS)
def test_compiles_once_whatever_the_numbers(form):
    loops.iterate(double, start(), jnp.float32(1), max_steps=2, until=large, form=form)
    before = TRACES["double"]
    for i in range(3):
        carry = {"x": jnp.float32(i), "n": jnp.int32(i)}
        loops.iterate(double, carry, jnp.float32(i), max_steps=3 + i, until=large, form=form)
    assert TRACES["double"] == before


@pytest.mark.parametrize("form", FORMS)
def test_equal_steps_made_again_compile_once(form, monkeypatch):
    traces = collections.Counter()
    plain = ConvStep.__call__
    monkeypatch.setattr(
        ConvStep, "__call__", lambda *args: traces.update(["traced"]) or plain(*args)
    )
    for i in range(3):
        params, batch = conv_problem(jax.random.key(i), jnp.float32)
        loops.iterate(ConvStep(0.0625), params, batch, max_steps=2, form=form)
    assert traces["traced"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_the_callers_carry_is_not_donated(form):
    carry = start()
    loops.iterate(double, carry, jnp.float32(1), max_steps=3, form=form)
    assert float(carry["x"]) == 1.0
    # Nor where the loop takes no step at all.
    again, _ = loops.iterate(double, carry, jnp.float32(1), max_steps=0, form=form)
    loops.iterate(double, again, jnp.float32(1), max_steps=3, form=form)
    assert float(again["x"]) == float(carry["x"]) == 1.0


@pytest.mark.parametrize("form", FORMS)
def test_a_carry_that_is_given_away_is_worked_on_in_place(form):
    small, large_array = jnp.float32(1), jnp.ones(5_000)
    place = large_array.unsafe_buffer_pointer()
    carry, steps = loops.iterate(
        double, {"x": small, "n": large_array}, small, max_steps=3, form=form, donate=True
    )
    assert carry["n"].unsafe_buffer_pointer() == place and large_array.is_deleted()
    assert int(steps) == 3 and float(small) == 1.0  # small arrays may be of others, too


@pytest.mark.filterwarnings("error:Some donated buffers")
def test_nothing_is_given_away_under_vmap():
    shared = jnp.ones(3)

    def lane(x):
        carry = {"x": x, "n": shared}
        return loops.iterate(double, carry, x, max_steps=3, donate=True)[0]

    found = jax.vmap(lane)(jnp.ones(2))
    assert found["x"].shape == (2,) and not shared.is_deleted()


@pytest.mark.parametrize("form", FORMS)
def test_a_solver_step_runs_round_its_product(form):
    matrix = jnp.diag(jnp.array([3.0, 1.0, 0.5]))
    product = jax.tree_util.Partial(multiply, matrix)
    carry, _ = loops.iterate(PowerStep(), {"v": jnp.ones(3)}, product, max_steps=60, form=form)
    assert float(tree.norm(carry)) == pytest.approx(3.0, rel=1e-6)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class PassOverRows(loops.HostCode):
    """A product row by row, as over the batches of a data set."""

    matrix: jax.Array

    def __call__(self, v):
        TRACES["host calls"] += 1
        return {"v": jnp.stack([jnp.sum(row * v["v"]) for row in self.matrix])}


def scaled(product, factor, v):
    return tree.scale(factor, product(v))


def small(carry):
    return tree.norm(carry) < 1.5


@pytest.mark.parametrize("composed", [False, True])
def test_host_code_runs_between_the_halves_of_a_step(composed):
    """As itself, at each step; and what is jitted beside it is compiled once."""
    halves = collections.Counter()

    @dataclasses.dataclass(frozen=True)
    class Counted(PowerStep):
        def propose(self, carry):
            halves["propose"] += 1
            return super().propose(carry)

        def absorb(self, carry, product):
            halves["absorb"] += 1
            return super().absorb(carry, product)

    run, start = functools.partial(loops.iterate, max_steps=40), {"v": jnp.ones(3)}
    for scale in (1.0, 2.0):
        product = PassOverRows(scale * jnp.diag(jnp.array([3.0, 1.0, 0.5])))
        if composed:
            product = jax.tree_util.Partial(scaled, product, 0.5)
        assert loops.choose_form(Counted(), start, product) == "host"
        before = TRACES["host calls"]
        carry, steps = run(Counted(), start, product)
        assert TRACES["host calls"] - before == steps == 40
        expected = 3.0 * scale * (0.5 if composed else 1)
        assert float(tree.norm(carry)) == pytest.approx(expected, rel=1e-6)
        assert start["v"].tolist() == [1, 1, 1]
    assert halves == {"propose": 1, "absorb": 1}
    # The device form traces it: the same numbers.
    other, _ = run(PowerStep(), start, product, form="device")
    np.testing.assert_allclose(other["v"], carry["v"], rtol=1e-6)


def test_host_code_stops_when_the_condition_holds():
    product = PassOverRows(jnp.eye(3))
    carry, steps = loops.iterate(
        PowerStep(), {"v": 2 * jnp.ones(3)}, product, max_steps=9, until=small
    )
    assert steps == 1 and float(tree.norm(carry)) == pytest.approx(1)


def test_one_call_is_jitted_unless_it_is_host_code():
    v, before = {"v": jnp.arange(3.0)}, TRACES["host calls"]
    for product in (PassOverRows(jnp.eye(3)), jax.tree_util.Partial(multiply, jnp.eye(3))):
        for _ in range(3):
            assert loops.call(product, v)["v"].tolist() == [0, 1, 2]
    assert TRACES["host calls"] - before == 3
    assert loops.holds_host_code({"a": (PassOverRows(jnp.eye(3)), None)})
    assert not loops.holds_host_code(jax.tree_util.Partial(multiply, jnp.eye(3)))


def test_inside_a_trace_the_device_form_serves():
    @jax.jit
    def whole(x, limit):
        carry = {"x": x, "n": jnp.int32(0)}
        return loops.iterate(double, carry, jnp.float32(1), max_steps=limit, until=large)

    carry, steps = whole(jnp.float32(1), 40)
    assert (int(steps), float(carry["x"])) == (6, 127.0)


def test_lanes_count_their_own_steps():
    def one(x):
        carry = {"x": x, "n": jnp.int32(0)}
        return loops.iterate(double, carry, jnp.float32(1), max_steps=9, until=large)

    carry, steps = jax.vmap(one)(jnp.array([1.0, 60.0, 0.0, 200.0]))
    assert steps.tolist() == [6, 1, 7, 0]
    for x, n in zip(carry["x"].tolist(), steps.tolist(), strict=True):
        assert x > 100 and (n == 0 or x < 250)


def test_auto_takes_the_host_form_for_convolutions_alone(key):
    params, batch = conv_problem(key, jnp.float32)
    assert loops.choose_form(ConvStep(0.1), params, batch) == "host"
    assert loops.choose_form(double, start(), jnp.float32(1)) == "device"
    nested = jax.jit(jax.value_and_grad(jax.checkpoint(conv_loss)))
    assert loops.holds_convolution(nested, params, batch)
    branch = functools.partial(jax.lax.cond, True, conv_loss, lambda p, b: 0.0)
    assert loops.holds_convolution(branch, params, batch)
    assert not loops.holds_convolution(double, start(), jnp.float32(1))


def test_forms_agree_after_twenty_steps_in_float64(key, x64):
    params, batch = conv_problem(key, jnp.float64)
    device, host = (
        loops.iterate(ConvStep(0.1), params, batch, max_steps=20, form=form)[0] for form in FORMS
    )
    assert float(tree.norm(tree.add_scaled(device, -1.0, params))) > 0.1
    for a, b in zip(jax.tree.leaves(device), jax.tree.leaves(host), strict=True):
        assert np.linalg.norm(a - b) <= 1e-10 * np.linalg.norm(b)


def test_no_form_is_much_less_exact_than_the_other_in_float32(key):
    errors = {}
    with jax.enable_x64(True):
        params, batch = conv_problem(key, jnp.float64)
        exact, _ = loops.iterate(ConvStep(0.1), params, batch, max_steps=20)
        exact = jax.tree.map(np.asarray, exact)
        narrow = jax.tree.map(lambda x: np.asarray(x, np.float32), (params, batch))
    for form in FORMS:
        got, _ = loops.iterate(ConvStep(0.1), *narrow, max_steps=20, form=form)
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True)
        errors[form] = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)
    assert max(errors.values()) <= 3 * min(errors.values()) and max(errors.values()) < 1e-5


def scaled_gradient(params, chunk):
    return jax.grad(conv_loss)(params, chunk)


def dense_gradient(params, chunk):
    return jax.grad(lambda p, x: jnp.mean(jnp.tanh(x @ p) ** 2))(params, chunk)


@pytest.mark.parametrize("dense", [True, False], ids=["scan", "unrolled"])
def test_chunks_give_the_mean_and_the_whole(dense, key, x64):
    if dense:
        params, batch = jax.random.normal(key, (5, 2)), jax.random.normal(key, (8, 5))
        gradient = dense_gradient
    else:
        params, batch = conv_problem(key, jnp.float64)
        gradient = scaled_gradient
    chunks = loops.split_chunks("test", batch, 2)
    mean = jax.jit(loops.mean_over_chunks, static_argnums=0)(gradient, params, chunks)
    each = jax.jit(loops.map_over_chunks, static_argnums=0)(gradient, params, chunks)
    want = [gradient(params, tree.index(chunks, i)) for i in range(4)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), each, tree.stack(want))
    # Equal chunks: the mean of the chunks' gradients is the gradient of the whole batch.
    whole = gradient(params, batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), mean, whole)


def test_means_are_summed_in_float32_and_keep_their_type():
    # 1,000 ones: a bfloat16 sum stops growing at 256.
    ones = jnp.ones((1000, 1), jnp.bfloat16)
    mean = loops.mean_over_chunks(lambda _, x: {"x": x[0], "hit": x[0] > 0}, (), ones)
    assert mean["x"].dtype == jnp.bfloat16 and float(mean["x"]) == 1.0
    assert mean["hit"].dtype == jnp.float32 and float(mean["hit"]) == 1.0


def test_chunks_are_cut_by_position():
    chunks = loops.split_chunks("f", {"x": jnp.arange(12).reshape(6, 2), "y": jnp.arange(6)}, 3)
    assert chunks["x"].shape == (2, 3, 2)
    assert chunks["y"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_bad_arguments():
    batch = {"x": jnp.ones((12, 2)), "y": jnp.ones(12)}
    with pytest.raises(UserError, match=r"hvp: chunks of 5 do not divide 12 .* 4, 6"):
        loops.split_chunks("hvp", batch, 5)
    with pytest.raises(UserError, match="chunks of 0"):
        loops.split_chunks("hvp", batch, 0)
    with pytest.raises(UserError, match=r"'y' has shape \(11,\)"):
        loops.split_chunks("hvp", {"x": jnp.ones((12, 2)), "y": jnp.ones(11)}, 3)
    with pytest.raises(UserError, match=r"'y' has shape \(\)"):
        loops.count_examples("hvp", {"x": jnp.ones(3), "y": jnp.ones(())})
    with pytest.raises(UserError, match="no array"):
        loops.count_examples("hvp", {})
    with pytest.raises(UserError, match="max_steps=-1"):
        loops.iterate(double, start(), jnp.float32(1), max_steps=-1)
    with pytest.raises(UserError, match="unknown form 'fast'; known: auto, device, host"):
        loops.iterate(double, start(), jnp.float32(1), max_steps=1, form="fast")
    with pytest.raises(UserError, match="inside a trace"):
        jax.jit(lambda c: loops.iterate(double, c, 1.0, max_steps=1, form="host"))(start())
