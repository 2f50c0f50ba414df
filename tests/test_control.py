"""Hessian traces and diagonals by way of the Gauss-Newton part: certificates, rates, refusals."""

import collections
import doctest
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import (
    Restricted,
    Status,
    bending,
    control,
    control_diagonal,
    decomposition,
    hessian,
)
from sharpjax.geometry.algebra import linearize
from sharpjax.geometry.control import controlled_trace
from sharpjax.geometry.control_diagonal import controlled_diagonal
from sharpjax.geometry.jacobian import fisher, gauss_newton
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

TRACES = collections.Counter()
SHARED = [pytest.param(n, marks=pytest.mark.slow) for n in ("tied", "attention", "recurrent")]


@pytest.mark.parametrize("module", [bending, control, control_diagonal, decomposition])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def whole(model, outer, params, batch):
    return outer(model(params, batch), batch)


def pair(model, outer, params, batch, **options):
    """A Hessian and the Gauss-Newton matrix of the same loss."""
    model = model if jax.tree.leaves(model) != [model] else Partial(model)
    loss = Partial(whole, model, Partial(outer))
    return (
        hessian(loss, params, batch, **options),
        gauss_newton(model, outer, params, batch, **options),
    )


# Certified: nets that are piecewise linear and use no weight twice.


@pytest.mark.parametrize("name", ["relu", "convolutions"])
def test_piecewise_linear_nets_are_exact(x64, key, name):
    model, params, batch = PROBLEMS[name]()
    operator, around = pair(model, cross_entropy, params, batch)
    truth = hessian_truth(model, cross_entropy, params, batch)
    found = controlled_trace(operator, around, key=key)
    assert found.certified and found.standard_error == 0 and found.remainder == 0
    assert found.num_evaluations == 0 and found.status == Status.OK
    np.testing.assert_allclose(found.value, np.trace(truth), rtol=1e-11)
    diagonal = controlled_diagonal(operator, around, key=key)
    assert diagonal.certified and diagonal.num_evaluations == 0
    np.testing.assert_allclose(flat(diagonal.value), np.diag(truth), atol=1e-12)
    assert not flat(diagonal.standard_error).any()


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
    operator, around = pair(model, cross_entropy, params, batch)
    found = controlled_trace(operator, around, key=key)
    assert found.certified and found.remainder == 0 and found.standard_error == 0
    assert found.num_evaluations == 2 * 3  # two rounds over three slices of the kernels
    diagonal = controlled_diagonal(operator, around, key=key)
    assert diagonal.certified and diagonal.num_evaluations == 6
    truth = hessian_truth(model, cross_entropy, params, batch)
    np.testing.assert_allclose(found.value, np.trace(truth), rtol=1e-5)
    np.testing.assert_allclose(flat(diagonal.value), np.diag(truth), atol=1e-6)


# Nets that bend.


@pytest.mark.parametrize("name", ["tanh", *SHARED])
def test_other_nets_within_their_error(x64, key, name):
    model, params, batch = PROBLEMS[name]()
    operator, around = pair(model, cross_entropy, params, batch)
    truth = hessian_truth(model, cross_entropy, params, batch)
    found = controlled_trace(operator, around, key=key, max_probes=400)
    assert not found.certified and found.status == Status.OK
    assert abs(found.value - np.trace(truth)) < 4 * found.standard_error
    rest = truth - gauss_newton_truth(model, cross_entropy, params, batch)
    assert abs(found.remainder - np.trace(rest)) < 4 * found.standard_error
    ends = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(params)])
    estimates = jax.tree.leaves(found.leaves, is_leaf=lambda x: hasattr(x, "standard_error"))
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
    operator, around = pair(model, squared, params, batch)
    truth = np.diag(hessian_truth(model, squared, params, batch))
    found = controlled_diagonal(operator, around, key=key, max_probes=400)
    assert not found.certified and found.status == Status.OK
    off, error = flat(found.value) - truth, flat(found.standard_error)
    assert np.mean(np.abs(off) <= 2.5 * error + 1e-12) > 0.95
    assert np.linalg.norm(off) < 1.5 * np.linalg.norm(error) < 0.2 * np.linalg.norm(truth)


def test_the_sum_over_probes_is_the_formula(x64, strict, key):
    """The remainder is the mean of z'(H - G)z over blocks, its error their spread."""
    model, params, batch = PROBLEMS["tanh"]()
    operator, around = pair(model, cross_entropy, params, batch)
    units = bending.find_units(model, params, batch)
    parts = bending.Model(model, Partial(cross_entropy))
    rest = bending.bending(parts, params, batch, None, units)
    zeros = jax.tree.map(jnp.zeros_like, units.free(params))
    product, values = jax.jit(linearize(rest)), []
    bend = jax.jit(lambda z: bending.bend(parts, params, batch, None, z))
    for i in range(len(units)):
        masks = units.masks(zeros, jnp.int32(i))
        z = jax.tree.map(
            lambda m, x: m * jnp.cos(jnp.arange(x.size)).reshape(x.shape), masks, zeros
        )
        values.append((flat(z) @ flat(product(z)), bend(z)))
    np.testing.assert_allclose(*np.transpose(values), rtol=1e-10)
    assert controlled_trace(operator, around, key=key, max_probes=16).num_evaluations == 16 * len(
        units
    )


def covers(name, **options):
    """Share of 1,000 runs whose 1.96 standard errors cover the truth, and the mean of rounds."""
    model, params, batch = PROBLEMS[name]()
    operator, around = pair(model, cross_entropy, params, batch)
    truth = np.trace(hessian_truth(model, cross_entropy, params, batch))
    keys = jax.random.split(jax.random.key(1), 1000)
    solve = functools.partial(controlled_trace, operator, around, **options)
    found = jax.jit(jax.vmap(lambda k: solve(key=k)))(keys)
    units = len(bending.find_units(model, params, batch))
    off = np.abs(found.value - truth)
    return np.mean(off < 1.96 * found.standard_error), np.mean(found.num_evaluations) / units


def test_the_standard_error_covers_at_its_nominal_rate(x64):
    """Also where it decides when to stop; the rate itself is off by .014 (2 sd) at most."""
    rate, rounds = covers("tanh", max_probes=16)
    assert rounds == 16 and 0.92 < rate < 0.97
    rate, rounds = covers("tanh", absolute_error=0.25, max_probes=400)
    assert 20 < rounds < 300 and 0.92 < rate < 0.97


# Blocks, chunks, layouts, and how it is called.


def test_blocks_and_microbatches(x64, key):
    model, params, batch = PROBLEMS["tanh"]()
    batch = jax.tree.map(lambda x: x[:6], batch)
    whole_pair = pair(model, cross_entropy, params, batch)
    solve = functools.partial(controlled_trace, key=key, max_probes=16)
    expected = solve(*whole_pair)
    chunked = solve(*pair(model, cross_entropy, params, batch, microbatch_size=3))
    np.testing.assert_allclose(chunked.value, expected.value, rtol=1e-10)
    np.testing.assert_allclose(chunked.standard_error, expected.standard_error, rtol=1e-10)
    diagonals = [
        controlled_diagonal(*given, key=key, max_probes=16)
        for given in (whole_pair, pair(model, cross_entropy, params, batch, microbatch_size=3))
    ]
    np.testing.assert_allclose(flat(diagonals[0].value), flat(diagonals[1].value), atol=1e-12)
    restricted = solve(*pair(model, cross_entropy, params, batch, where="*_1/*"))
    again = solve(*(Restricted(operator, "*_1/*") for operator in whole_pair))
    np.testing.assert_allclose(again.value, restricted.value, rtol=1e-10)
    assert list(dict(again.ways)) == ["Dense_1/bias", "Dense_1/kernel"]


@pytest.mark.parametrize("dtype", [np.float64, pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_awkward_trees_and_narrow_parameters(x64, strict, key, dtype):
    params, batch = awkward_net()
    if dtype == "bfloat16":
        batch = jax.tree.map(lambda x: x.astype(jnp.float32), batch)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    operator, around = pair(awkward, to_target, params, batch)
    found = controlled_trace(operator, around, key=key, max_probes=200)
    # The head and the shift are affine; the kernel, its bias and the gain times these are not.
    remainders = jax.tree.map(
        lambda e: e.standard_error, found.leaves, is_leaf=lambda x: hasattr(x, "standard_error")
    )
    (kernel, bias), (head, _) = remainders["layers"]
    assert kernel > 0 and bias > 0 and head == remainders["gain"] == remainders["unused"] == 0
    wide = jax.tree.map(lambda x: x.astype(batch["x"].dtype), params)
    truth = np.diag(hessian_truth(awkward, to_target, wide, batch))
    assert abs(found.value - truth.sum()) < 4 * found.standard_error
    diagonal = controlled_diagonal(operator, around, key=key, max_probes=100)
    assert jax.tree.structure(diagonal.value) == jax.tree.structure(params)
    off = np.abs(flat(diagonal.value) - truth)
    assert (off < 5 * flat(diagonal.standard_error) + 1e-5).all()
    assert {x.dtype for x in jax.tree.leaves(diagonal.value)} == {batch["x"].dtype}


def net(scale, params, batch):
    TRACES["model"] += 1
    return scale * (jnp.tanh(batch["x"] @ params["w"]) @ params["v"])


def problem(i):
    rng = np.random.default_rng(i)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 2))}
    batch = {"x": jnp.asarray(rng.normal(size=(6, 3)), "float32"), "y": rng.integers(0, 2, 6)}
    params = jax.tree.map(lambda x: jnp.asarray(x, "float32"), params)
    return jnp.float32(1 + i), params, jax.tree.map(jnp.asarray, batch)


def solve_both(scale, params, batch, key, **options):
    given = pair(Partial(net, scale), cross_entropy, params, batch)
    return (
        controlled_trace(*given, key=key, **options),
        controlled_diagonal(*given, key=key, **options),
    )


def test_new_numbers_compile_nothing(key):
    solve_both(*problem(0), key, relative_error=0.5, max_probes=20)
    traced = TRACES["model"]
    solve_both(*problem(1), jax.random.fold_in(key, 1), relative_error=0.4, max_probes=30)
    assert TRACES["model"] == traced > 0


def test_lanes_and_jit(key):
    members = [problem(i) for i in range(3)]
    together = tree.stack(members)
    solve = functools.partial(solve_both, key=key, relative_error=0.3, max_probes=40)
    traces, diagonals = jax.vmap(solve)(*together)
    inside, _ = jax.jit(solve)(*members[1])
    np.testing.assert_allclose(inside.value, traces.value[1], rtol=1e-4)
    for i, member in enumerate(members):
        trace, diagonal = solve(*member)
        assert traces.num_evaluations[i] == trace.num_evaluations
        assert diagonals.num_evaluations[i] == diagonal.num_evaluations
        np.testing.assert_allclose(traces.value[i], trace.value, rtol=1e-4)
        lane = tree.index(diagonals.value, i)
        np.testing.assert_allclose(flat(lane), flat(diagonal.value), atol=1e-4)
    estimate = trace.estimates()["trace"]
    assert (estimate.value, estimate.standard_error) == (trace.value, trace.standard_error)


def test_the_target_is_met_or_said_to_be_missed(key):
    found, diagonal = solve_both(*problem(0), key, relative_error=0.02, max_probes=10_000)
    assert found.status == diagonal.status == Status.OK
    assert found.standard_error <= 0.02 * found.value
    error = np.linalg.norm(flat(diagonal.standard_error))
    assert error <= 0.02 * np.linalg.norm(flat(diagonal.value))
    assert found.num_evaluations > 16 and diagonal.num_evaluations > 16
    missed = solve_both(*problem(0), key, absolute_error=1e-6, max_probes=20)
    assert [m.status for m in missed] == [Status.NOT_CONVERGED] * 2
    assert [m.num_evaluations for m in missed] == [20, 20]  # one leaf bends


def overflowing(params, batch):
    return jnp.exp(1e4 * jnp.tanh(batch["x"] @ params["w"])) @ params["v"]


def test_numbers_that_are_not_finite(key):
    _, params, batch = problem(0)
    given = pair(overflowing, to_zero, params, batch)
    assert controlled_trace(*given, key=key).status == Status.NON_FINITE
    assert controlled_diagonal(*given, key=key).status == Status.NON_FINITE


def to_zero(outputs, batch):
    return jnp.mean(jnp.square(outputs))


def test_what_does_not_belong_together_is_refused(key):
    scale, params, batch = problem(0)
    model = Partial(net, scale)
    operator, around = pair(model, cross_entropy, params, batch)
    other = jax.tree.map(lambda x: x + 1, params)
    shuffled = jax.tree.map(lambda x: x[::-1], batch)
    observed = fisher(model, cross_entropy, params, batch, labels="observed")
    for control_, message in [
        (gauss_newton(model, cross_entropy, other, batch), "control has another params"),
        (gauss_newton(model, cross_entropy, params, shuffled), "control has another batch"),
        (gauss_newton(model, to_zero, params, batch), "control must be made of the two parts"),
        (gauss_newton(model, cross_entropy, params, batch, where="w"), "another params"),
        (observed, "control must be the Gauss-Newton matrix"),
        (operator, "only Gauss-Newton and Fisher"),
    ]:
        with pytest.raises(UserError, match=f"controlled_trace: .*{message}"):
            controlled_trace(operator, control_, key=key)
    with pytest.raises(UserError, match="controlled_diagonal: control is for Hessians"):
        controlled_diagonal(2 * operator, around, key=key)
    with pytest.raises(UserError, match="max_probes must be a whole number >= 16"):
        controlled_trace(operator, around, key=key, max_probes=4)
    with pytest.raises(UserError, match="controlled_trace: key must be one random key"):
        controlled_trace(operator, around, key=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="relative_error must be a number >= 0"):
        controlled_trace(operator, around, key=key, relative_error=-1.0)
