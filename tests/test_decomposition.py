"""Exact traces and diagonals of Hessians, of what is made of them, and what must be probed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, composed, diagonal, hessian, restricted, trace
from sharpjax.geometry.exact import bending
from sharpjax.geometry.operators.algebra import linearize
from sharpjax.geometry.operators.gauss_newton import GaussNewton
from tests.problems import awkward_net, flat
from tests.test_exact import (
    PROBLEMS,
    awkward,
    cross_entropy,
    drawn,
    gauss_newton_truth,
    hessian_truth,
    squared,
    to_target,
)
from tests.traces import TRACES, traced

SHARED = [pytest.param(n, marks=pytest.mark.slow) for n in ("tied", "attention", "recurrent")]


def of_parts(model, outer, params, batch, **options):
    """The Hessian of a loss that knows its parts."""
    return hessian(composed(model, outer), params, batch, **options)


def num_units(operator):
    """What must be probed of it."""
    return len(bending.find_units(around(operator)))


def around(operator):
    return GaussNewton(operator.loss, operator.params, operator.batch)


exact_trace = functools.partial(trace, method="exact")
exact_diagonal = functools.partial(diagonal, method="exact")


# Certified: nets that are piecewise linear and use no weight twice.


@pytest.mark.parametrize("name", ["relu", "convolutions"])
def test_piecewise_linear_nets_are_exact(x64, name):
    model, params, batch = PROBLEMS[name]()
    operator = of_parts(model, cross_entropy, params, batch)
    truth = hessian_truth(model, cross_entropy, params, batch)
    found = exact_trace(operator)
    assert found.standard_error == 0 and found.remainder == 0
    assert found.num_products == 3 and found.status == Status.OK  # one for each class
    np.testing.assert_allclose(found.value, np.trace(truth), rtol=1e-11)
    found = exact_diagonal(operator)
    assert found.error == 0 and found.num_products == 3
    np.testing.assert_allclose(flat(found.value), np.diag(truth), atol=1e-12)
    assert not flat(found.standard_error).any()


class ReluLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(4)(x)), None


class StackedRelu(nn.Module):
    """Affine in each slice of its leaves, not in a leaf; nothing of it is known without numbers."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            ReluLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(3)(layers()(x, None)[0])


def test_slices_of_a_stack_are_probed_one_at_a_time(key):
    """In float32: the remainder is zero to the last bit."""
    model, params, batch = drawn(StackedRelu(), 6, 4)
    params, batch = jax.tree.map(
        lambda x: x.astype(jnp.float32 if x.dtype == jnp.float64 else x.dtype), (params, batch)
    )
    operator = of_parts(model, cross_entropy, params, batch)
    found = exact_trace(operator, key=key)
    assert found.remainder == 0 and found.standard_error == 0
    assert found.num_products == 3 + 2 * 3  # two rounds over three slices of the kernels
    entries = exact_diagonal(operator, key=key)
    assert entries.error == 0 and entries.num_products == 3 + 6
    truth = hessian_truth(model, cross_entropy, params, batch)
    np.testing.assert_allclose(found.value, np.trace(truth), rtol=1e-5)
    np.testing.assert_allclose(flat(entries.value), np.diag(truth), atol=1e-6)


# Nets that bend.


@pytest.mark.parametrize("name", ["tanh", *SHARED])
def test_other_nets_within_their_error(x64, key, name):
    model, params, batch = PROBLEMS[name]()
    operator = of_parts(model, cross_entropy, params, batch)
    truth = hessian_truth(model, cross_entropy, params, batch)
    found = exact_trace(operator, key=key, max_products=400 * num_units(operator))
    assert found.remainder != 0 and found.status == Status.OK
    assert abs(found.value - np.trace(truth)) < 4 * found.standard_error
    rest = truth - gauss_newton_truth(model, cross_entropy, params, batch)
    assert abs(found.remainder - np.trace(rest)) < 4 * found.standard_error
    ends = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(params)])
    estimates = found.by_leaf.values()
    variance = 0
    for start, end, leaf in zip(ends, ends[1:], estimates, strict=False):
        block = slice(start, end), slice(start, end)
        assert abs(leaf.value - np.trace(truth[block])) < 5 * leaf.standard_error + 1e-12
        variance += 2 * np.sum(np.square(rest[block] - np.diag(np.diag(rest[block])))) / 400
    # That of probes of random signs on one leaf at a time.
    np.testing.assert_allclose(found.standard_error, np.sqrt(variance), rtol=0.2)
    np.testing.assert_allclose(
        np.sqrt(sum(e.standard_error**2 for e in estimates)), found.standard_error, rtol=1e-10
    )


@pytest.mark.parametrize("name", ["tanh", pytest.param("tied", marks=pytest.mark.slow)])
def test_other_diagonals_within_their_error(x64, key, name):
    model, params, batch = PROBLEMS[name]()
    operator = of_parts(model, squared, params, batch)
    truth = np.diag(hessian_truth(model, squared, params, batch))
    found = exact_diagonal(operator, key=key, max_products=400 * num_units(operator))
    assert found.error > 0 and found.status == Status.OK
    off, error = flat(found.value) - truth, flat(found.standard_error)
    assert np.mean(np.abs(off) <= 2.5 * error + 1e-12) > 0.95
    assert np.linalg.norm(off) < 1.5 * np.linalg.norm(error) < 0.2 * np.linalg.norm(truth)


def test_the_sum_over_probes_is_the_formula(x64, strict, key):
    """The remainder is the mean of z'(H - G)z over blocks, its error their spread."""
    model, params, batch = PROBLEMS["tanh"]()
    operator = of_parts(model, cross_entropy, params, batch)
    given = around(operator)
    units = bending.find_units(given)
    rest = bending.bending(given, units)
    zeros = jax.tree.map(jnp.zeros_like, units.free(params))
    product, values = jax.jit(linearize(rest)), []
    bend = jax.jit(lambda z: bending.bend(given, z))
    for i in range(len(units)):
        masks = units.masks(zeros, jnp.int32(i))
        z = jax.tree.map(
            lambda m, x: m * jnp.cos(jnp.arange(x.size)).reshape(x.shape), masks, zeros
        )
        values.append((flat(z) @ flat(product(z)), bend(z)))
    np.testing.assert_allclose(*np.transpose(values), rtol=1e-10)
    most = 16 * len(units)
    assert exact_trace(operator, key=key, max_products=most).num_products == 3 + most
    shared = f"has to probe {len(units)} leaves .* 16 times each. Give {most} or more"
    for solve in (exact_trace, exact_diagonal):
        with pytest.raises(UserError, match=shared):
            solve(operator, key=key, max_products=most - 1)
        with pytest.raises(UserError, match="has to probe this matrix: .* Give a key"):
            solve(operator)


def exponentials(size, params, batch):
    """A model that bends along the second leaf, and `size` times as much along the first."""
    return batch * (size * jnp.sum(jnp.exp(params["a"])) + jnp.sum(jnp.exp(params["b"])))


@pytest.mark.parametrize("power", [-100, -84, -40, 40, 84, 100])
def test_leaves_of_other_sizes_have_units_of_their_own(power, key):
    """`H - G` is `diag(size e^a, e^b)`: powers of two are exact, so all digits of a leaf are those
    of the one of ordinary size, whichever is probed first and however far they are apart."""
    params, batch = {"a": jnp.float32([0.1, 0.2]), "b": jnp.float32([0.3, 0.4])}, jnp.ones(4)
    size, means = np.float32(2.0**power), lambda outputs, _: jnp.mean(outputs)

    def found(solve, size):
        model = Partial(exponentials, jnp.float32(size))
        return solve(of_parts(model, means, params, batch), key=key)

    traces = [found(exact_trace, x) for x in (size, 1.0)]
    entries = [found(exact_diagonal, x) for x in (size, 1.0)]
    for one, plain in (traces, entries):
        assert one.status == plain.status == Status.OK
        assert one.num_products == plain.num_products
    for leaf, factor in (("a", size), ("b", 1)):
        one, plain = (x.by_leaf[leaf] for x in traces)
        # Two probes are normal and the others are exact, so the spread is that of the two.
        assert 0 < abs(plain.value - np.sum(np.exp(params[leaf]))) < 5 * plain.standard_error
        np.testing.assert_array_equal(one.value, plain.value * factor)
        np.testing.assert_array_equal(one.standard_error, plain.standard_error * factor)
        for name in ("value", "standard_error"):
            one, plain = (getattr(x, name)[leaf] for x in entries)
            np.testing.assert_array_equal(one, plain * factor)
    larger = traces[0].by_leaf["a" if power > 0 else "b"]
    np.testing.assert_allclose(traces[0].standard_error, larger.standard_error, rtol=1e-6)


def covers(name, rounds, **options):
    """Share of 1,000 runs whose 1.96 standard errors cover the truth, and the mean of rounds."""
    model, params, batch = PROBLEMS[name]()
    operator = of_parts(model, cross_entropy, params, batch)
    truth = np.trace(hessian_truth(model, cross_entropy, params, batch))
    keys = jax.random.split(jax.random.key(1), 1000)
    units = num_units(operator)
    solve = functools.partial(exact_trace, operator, max_products=rounds * units, **options)
    found = jax.jit(jax.vmap(lambda k: solve(key=k)))(keys)
    off = np.abs(found.value - truth)
    return np.mean(off < 1.96 * found.standard_error), np.mean(found.num_products - 3) / units


def test_the_standard_error_covers_at_its_nominal_rate(x64):
    """Also where it decides when to stop; the rate itself is off by .014 (2 sd) at most."""
    rate, rounds = covers("tanh", 16)
    assert rounds == 16 and 0.92 < rate < 0.97
    rate, rounds = covers("tanh", 400, absolute_error=0.25)
    assert 20 < rounds < 300 and 0.92 < rate < 0.97


# Blocks, chunks, layouts, and how it is called.


def test_blocks_and_microbatches(x64, key):
    model, params, batch = PROBLEMS["tanh"]()
    batch = jax.tree.map(lambda x: x[:6], batch)
    make = functools.partial(of_parts, model, cross_entropy, params, batch)
    most = 16 * num_units(make())
    solve = functools.partial(exact_trace, key=key, max_products=most)
    expected, chunked = solve(make()), solve(make(microbatch_size=3))
    np.testing.assert_allclose(chunked.value, expected.value, rtol=1e-10)
    np.testing.assert_allclose(chunked.standard_error, expected.standard_error, rtol=1e-10)
    one, other = (
        exact_diagonal(operator, key=key, max_products=most)
        for operator in (make(), make(microbatch_size=3))
    )
    np.testing.assert_allclose(flat(one.value), flat(other.value), atol=1e-12)
    block = solve(make(where="*_1/*"))
    again = solve(restricted(make(), "*_1/*"))
    np.testing.assert_allclose(again.value, block.value, rtol=1e-10)
    assert list(again.by_leaf) == ["Dense_1/bias", "Dense_1/kernel"]


@pytest.mark.parametrize("dtype", [np.float64, pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_awkward_trees_and_narrow_parameters(x64, strict, key, dtype):
    params, batch = awkward_net()
    if dtype == "bfloat16":
        batch = jax.tree.map(lambda x: x.astype(jnp.float32), batch)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    operator = of_parts(awkward, to_target, params, batch)
    found = exact_trace(operator, key=key, max_products=400)
    # The head and the shift are affine; the kernel, its bias and the gain times these are not.
    bent = [name for name, leaf in found.by_leaf.items() if leaf.standard_error > 0]
    assert bent == ["layers/0/0", "layers/0/1"]
    wide = jax.tree.map(lambda x: x.astype(batch["x"].dtype), params)
    truth = np.diag(hessian_truth(awkward, to_target, wide, batch))
    assert abs(found.value - truth.sum()) < 4 * found.standard_error
    entries = exact_diagonal(operator, key=key, max_products=200)
    assert jax.tree.structure(entries.value) == jax.tree.structure(params)
    off = np.abs(flat(entries.value) - truth)
    assert (off < 5 * flat(entries.standard_error) + 1e-5).all()
    assert {x.dtype for x in jax.tree.leaves(entries.value)} == {batch["x"].dtype}


def net(scale, params, batch):
    traced("model")
    return scale * (jnp.tanh(batch["x"] @ params["w"]) @ params["v"])


def problem(i):
    rng = np.random.default_rng(i)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 2))}
    batch = {"x": jnp.asarray(rng.normal(size=(6, 3)), "float32"), "y": rng.integers(0, 2, 6)}
    params = jax.tree.map(lambda x: jnp.asarray(x, "float32"), params)
    return jnp.float32(1 + i), params, jax.tree.map(jnp.asarray, batch)


def solve_both(scale, params, batch, key, **options):
    operator = of_parts(Partial(net, scale), cross_entropy, params, batch)
    return exact_trace(operator, key=key, **options), exact_diagonal(operator, key=key, **options)


def test_new_numbers_compile_nothing(key):
    solve_both(*problem(0), key, relative_error=0.5, max_products=20)
    traced = TRACES["model"]
    solve_both(*problem(1), jax.random.fold_in(key, 1), relative_error=0.4, max_products=30)
    assert TRACES["model"] == traced > 0


def test_lanes_and_jit(key):
    members = [problem(i) for i in range(3)]
    together = tree.stack(members)
    solve = functools.partial(solve_both, key=key, relative_error=0.3, max_products=40)
    traces, diagonals = jax.vmap(solve)(*together)
    inside, _ = jax.jit(solve)(*members[1])
    np.testing.assert_allclose(inside.value, traces.value[1], rtol=1e-4)
    for i, member in enumerate(members):
        alone, entries = solve(*member)
        assert traces.num_products[i] == alone.num_products
        assert diagonals.num_products[i] == entries.num_products
        np.testing.assert_allclose(traces.value[i], alone.value, rtol=1e-4)
        lane = tree.index(diagonals.value, i)
        np.testing.assert_allclose(flat(lane), flat(entries.value), atol=1e-4)


def test_the_target_is_met_or_said_to_be_missed(key):
    found, entries = solve_both(*problem(0), key, relative_error=0.02, max_products=10_000)
    assert found.status == entries.status == Status.OK
    assert found.standard_error <= 0.02 * found.value
    error = np.linalg.norm(flat(entries.standard_error))
    assert error <= 0.02 * np.linalg.norm(flat(entries.value))
    assert found.num_products > 18 and entries.num_products > 18
    missed = solve_both(*problem(0), key, absolute_error=1e-6, max_products=20)
    assert [m.status for m in missed] == [Status.NOT_CONVERGED] * 2
    assert [m.num_products for m in missed] == [22, 22]  # one leaf bends, two classes


def overflowing(params, batch):
    return jnp.exp(1e4 * jnp.tanh(batch["x"] @ params["w"])) @ params["v"]


def test_numbers_that_are_not_finite(key):
    _, params, batch = problem(0)
    operator = of_parts(overflowing, to_zero, params, batch)
    assert exact_trace(operator, key=key).status == Status.NON_FINITE
    assert exact_diagonal(operator, key=key).status == Status.NON_FINITE


def to_zero(outputs, batch):
    return jnp.mean(jnp.square(outputs))
