"""Worst cases, SAM-sharpness and directional curvature: closed forms first, then what must not
change them (chunks, lanes, loop forms, rescalings), then what a user can get wrong."""

import collections
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import loops, perturbation, tree
from sharpjax.errors import UserError
from sharpjax.geometry import status
from sharpjax.geometry.sharpness import ascent, directional, measures, worst_case
from sharpjax.geometry.sharpness.directional import directional_curvature
from sharpjax.geometry.sharpness.measures import (
    adaptive_sharpness,
    sam_sharpness,
    worst_case_sharpness,
)
from sharpjax.geometry.status import Status
from tests.problems import trust_region

ONE = {"weight": np.ones(1)}  # a batch for losses that need none


# Losses with known answers. Arrays are leaves of the loss, as frozen statistics would be.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quadratic:
    """`g'(w - c) + (w - c)'H(w - c) / 2` on a tree of two leaves."""

    H: Any
    g: Any
    centre: Any

    def __call__(self, params, batch):
        d = jnp.concatenate([params["a"].reshape(-1), params["b"]]) - self.centre
        weight = jnp.mean(batch["weight"]).astype(d.dtype)
        return weight * (jnp.dot(self.g, d) + 0.5 * jnp.dot(d, jnp.dot(self.H, d)))


def as_params(w):
    return {"a": jnp.asarray(w[:6].reshape(2, 3)), "b": jnp.asarray(w[6:])}


def flat(t):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)])


def quadratic(seed, eigenvalues, gradient):
    """A quadratic of given spectrum, its gradient at the parameters, and the parameters."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    H = (Q * eigenvalues) @ Q.T
    g = Q @ gradient(rng, len(eigenvalues))
    w = rng.normal(size=len(eigenvalues)) + 0.1
    return Quadratic(jnp.asarray(H), jnp.asarray(g), jnp.asarray(w)), as_params(w), H, g, w


def normal(rng, n):
    return rng.normal(size=n)


def zero(_, n):
    return np.zeros(n)


INDEFINITE = np.array([-3.0, -2.0, -1.0, -0.5, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])


@pytest.mark.parametrize(
    "rule", [perturbation.none(), perturbation.element(), perturbation.element(eta=0.1)]
)
def test_linear_loss(rule, key, x64, strict):
    _, params, _, g, w = quadratic(0, np.zeros(10), normal)
    loss = Quadratic(jnp.zeros((10, 10)), jnp.asarray(g), jnp.asarray(w))
    scale = np.ones(10) if rule == perturbation.none() else np.abs(w) + rule.eta
    found = worst_case_sharpness(loss, params, ONE, key=key, rho=0.3, scaling=rule, num_steps=3)
    assert float(found.value) == pytest.approx(0.3 * np.linalg.norm(scale * g), rel=1e-12)
    np.testing.assert_allclose(
        flat(found.perturbation), 0.3 * scale**2 * g / np.linalg.norm(scale * g), rtol=1e-10
    )
    assert jax.tree.structure(found.perturbation) == jax.tree.structure(params)
    assert int(found.num_gradients) == 4 and int(found.status) == Status.OK


@pytest.mark.parametrize("rho", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_quadratic_is_the_trust_region_problem(seed, rho, key, x64, strict):
    loss, params, H, g, _ = quadratic(seed, INDEFINITE, normal)
    truth = trust_region(H, g, rho)
    for steps, short in ((20, 1e-2), (200, 1e-6)):
        found = worst_case_sharpness(loss, params, ONE, key=key, rho=rho, num_steps=steps)
        assert truth * (1 - short) <= float(found.value) <= truth * (1 + 1e-12)
        e = flat(found.perturbation)
        assert np.linalg.norm(e) <= rho * (1 + 1e-12)
        assert float(found.value) == pytest.approx(g @ e + e @ H @ e / 2, rel=1e-10)
        assert float(found.perturbed_loss) == pytest.approx(float(found.value), rel=1e-12)


@pytest.mark.parametrize("rho", [0.3, 2.0])
def test_scaled_quadratic(rho, key, x64):
    loss, params, H, g, w = quadratic(1, INDEFINITE, normal)
    truth = trust_region(np.abs(w)[:, None] * H * np.abs(w), np.abs(w) * g, rho)
    found = adaptive_sharpness(loss, params, ONE, key=key, rho=rho, num_steps=200)
    assert truth * (1 - 1e-6) <= float(found.value) <= truth * (1 + 1e-12)
    assert np.linalg.norm(flat(found.perturbation) / np.abs(w)) <= rho * (1 + 1e-12)


@pytest.mark.parametrize("rule", [perturbation.none(), perturbation.element()])
def test_zero_gradient_at_a_saddle(rule, key, x64, strict):
    loss, params, H, _, w = quadratic(2, INDEFINITE, zero)
    scale = np.ones(10) if rule == perturbation.none() else np.abs(w)
    truth = 0.3**2 * np.linalg.eigvalsh(scale[:, None] * H * scale)[-1] / 2
    for steps, short in ((20, 2e-2), (100, 1e-6)):
        found = worst_case_sharpness(
            loss, params, ONE, key=key, rho=0.3, scaling=rule, num_steps=steps
        )
        assert truth * (1 - short) <= float(found.value) <= truth * (1 + 1e-12)


def test_gradient_orthogonal_to_the_top_needs_restarts(key, x64):
    # The hard case: no component along the top eigenvector, which ascent from g never sees.
    def gradient(rng, n):
        return np.where(np.arange(n) == n - 1, 0.0, 0.1 * rng.normal(size=n))

    loss, params, H, g, w = quadratic(3, np.diag(INDEFINITE).diagonal(), gradient)
    loss = Quadratic(jnp.diag(INDEFINITE), jnp.asarray(gradient(np.random.default_rng(0), 10)), w)
    truth = trust_region(np.diag(INDEFINITE), np.asarray(loss.g), 0.3)
    call = functools.partial(
        worst_case_sharpness, loss, params, ONE, key=key, rho=0.3, num_steps=100
    )
    assert float(call().value) < 0.9 * truth
    assert truth * (1 - 1e-6) <= float(call(restarts=3).value) <= truth * (1 + 1e-12)


def test_negative_curvature(key, x64):
    loss, params, _, _, _ = quadratic(4, -1 - np.arange(10.0), zero)
    at_maximum = worst_case_sharpness(loss, params, ONE, key=key, rho=0.3)
    assert float(at_maximum.value) == 0.0 and not flat(at_maximum.perturbation).any()
    # A maximum inside of the ball: steps of a length that only ever halves come near it.
    loss, params, H, g, _ = quadratic(4, -1 - np.arange(10.0), normal)
    top = -np.linalg.solve(H, g)
    length = float(np.linalg.norm(top))
    found = worst_case_sharpness(loss, params, ONE, key=key, rho=2 * length, num_steps=200)
    assert g @ top / 2 * (1 - 1e-3) <= float(found.value) <= g @ top / 2 * (1 + 1e-12)
    np.testing.assert_allclose(flat(found.perturbation), top, atol=0.05 * length)


def test_sam_and_directional_curvature_of_a_quadratic(x64, strict):
    loss, params, H, g, _ = quadratic(5, INDEFINITE, normal)
    length, curvature = np.linalg.norm(g), g @ H @ g / (g @ g)
    along = directional_curvature(loss, params, ONE)
    np.testing.assert_allclose(along.value, curvature, rtol=1e-12)
    np.testing.assert_allclose(along.gradient_norm, length, rtol=1e-13)
    assert float(along.loss) == 0.0
    found = sam_sharpness(loss, params, ONE, rho=0.3)
    np.testing.assert_allclose(found.value, 0.3 * length + 0.3**2 * curvature / 2, rtol=1e-12)
    np.testing.assert_allclose(flat(found.perturbation), 0.3 * g / length, rtol=1e-12)
    np.testing.assert_allclose(found.perturbed_loss - found.loss, found.value, rtol=1e-12)


def test_logistic_regression_one_example_at_a_time(key, x64):
    # For each example the worst case is softplus(-margin + rho |x|), along its own x.
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(6, 10)), rng.normal(size=10)
    sign = np.sign(rng.normal(size=6))

    def loss(params, batch):
        margin = batch["sign"] * (
            batch["x"] @ jnp.concatenate([params["a"].reshape(-1), params["b"]])
        )
        return jnp.mean(jax.nn.softplus(-margin))

    margin, lengths = sign * (x @ w), np.linalg.norm(x, axis=1)
    batch, params = {"x": x, "sign": sign}, as_params(w)
    truth = np.mean(np.logaddexp(0, -margin + 0.5 * lengths) - np.logaddexp(0, -margin))
    found = {m: worst_case_sharpness(loss, params, batch, key=key, rho=0.5, m=m) for m in (1, 3, 6)}
    np.testing.assert_allclose(found[1].value, truth, rtol=1e-10)
    # Cutting chunks into smaller ones cannot lower the truth.
    assert found[1].value > found[3].value > found[6].value
    np.testing.assert_allclose(found[1].loss, np.mean(np.logaddexp(0, -margin)), rtol=1e-12)


# A small network.


def network(key, hidden=8, dtype=jnp.float64):
    keys = jax.random.split(key, 3)
    return {
        "w0": jax.random.normal(keys[0], (3, hidden), dtype),
        "b0": jax.random.normal(keys[1], (hidden,), dtype),
        "w1": jax.random.normal(keys[2], (hidden, 4), dtype),
    }


def examples(key, n=8, dtype=jnp.float64):
    x = jax.random.normal(jax.random.fold_in(key, 7), (n, 3), dtype)
    return {"x": x, "y": jnp.arange(n) % 4}


def cross_entropy(params, batch, temperature=1.0):
    h = jax.nn.relu(batch["x"] @ params["w0"] + params["b0"])
    logits = h @ params["w1"] / temperature
    chosen = jnp.take_along_axis(logits, batch["y"][:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def at_temperature(temperature, params, batch):
    return cross_entropy(params, batch, temperature)


def test_chunks_are_separate_calls(key, x64):
    params, batch = network(key), examples(key)
    call = functools.partial(
        worst_case_sharpness, cross_entropy, params, key=key, rho=0.3, num_steps=6, restarts=2
    )
    separate = [call(jax.tree.map(lambda x, i=i: x[i : i + 2], batch)) for i in range(0, 8, 2)]
    chunked = call(batch, m=2)
    np.testing.assert_allclose(chunked.value, np.mean([s.value for s in separate]), rtol=1e-12)
    np.testing.assert_allclose(chunked.loss, cross_entropy(params, batch), rtol=1e-12)
    assert chunked.perturbation is None and int(chunked.num_gradients) == 13
    whole = call(batch)
    np.testing.assert_allclose(call(batch, m=8).value, whole.value, rtol=1e-12)
    np.testing.assert_allclose(call(batch, microbatch_size=2).value, whole.value, rtol=1e-9)
    moved = perturbation.perturb(params, whole.perturbation)
    rise = cross_entropy(moved, batch) - cross_entropy(params, batch)
    np.testing.assert_allclose(whole.value, rise, rtol=1e-10)


def test_microbatches_change_nothing(key, x64):
    params, batch = network(key), examples(key)
    for call in (functools.partial(sam_sharpness, rho=0.3), directional_curvature):
        whole = call(cross_entropy, params, batch)
        parts = call(cross_entropy, params, batch, microbatch_size=2)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_as_many_gradients_as_promised(key):
    calls = collections.Counter()

    def loss(params, batch):
        jax.debug.callback(lambda: calls.update(["loss"]))
        return cross_entropy(params, batch)

    params, batch = network(key, dtype=jnp.float32), examples(key, dtype=jnp.float32)
    found = worst_case_sharpness(
        loss, params, batch, key=key, rho=0.1, m=4, num_steps=5, restarts=3
    )
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert calls["loss"] == 2 * int(found.num_gradients) == 2 * 16


def test_grows_with_the_radius_and_is_never_below_one_step(key, x64):
    for seed in range(3):
        params, batch = network(jax.random.key(seed)), examples(jax.random.key(seed))
        radii = jnp.array([0.0, 0.01, 0.1, 0.5, 2.0])
        found = jax.vmap(
            lambda r, params=params, batch=batch: (
                worst_case_sharpness(cross_entropy, params, batch, key=key, rho=r).value
            )
        )(radii)
        assert float(found[0]) == 0.0
        assert (np.diff(found) > 0).all()
        for steps in (1, 20):
            for rho in (0.01, 0.5, 2.0):
                args = (cross_entropy, params, batch)
                one = sam_sharpness(*args, rho=rho).value
                best = worst_case_sharpness(*args, key=key, rho=rho, num_steps=steps).value
                assert float(best) >= max(0, float(one)) * (1 - 1e-12)


def test_more_steps_gain_little(key, x64):
    params, batch = network(key), examples(key)
    params = jax.lax.fori_loop(
        0, 300, lambda _, p: tree.add_scaled(p, -0.5, jax.grad(cross_entropy)(p, batch)), params
    )
    call = functools.partial(adaptive_sharpness, cross_entropy, params, batch, key=key, rho=0.5)
    assert float(call(num_steps=20).value) > float(call(num_steps=200).value) * (1 - 1e-3) > 0


def test_zero_radius_is_exactly_zero(key):
    params, batch = network(key, dtype=jnp.float32), examples(key, dtype=jnp.float32)
    found = worst_case_sharpness(cross_entropy, params, batch, key=key, rho=0.0, m=4)
    assert float(found.value) == 0.0 and int(found.status) == Status.OK
    assert float(sam_sharpness(cross_entropy, params, batch, rho=0.0).value) == 0.0


# What must not change the numbers, and what must.


def rescale(params, c):
    """The same ReLU network: `w1' relu(w0'x + b0)` with hidden unit i scaled by `c_i`."""
    scaled = {"w0": params["w0"] * c, "b0": params["b0"] * c, "w1": params["w1"] / c[:, None]}
    return {**params, **scaled}


def test_adaptive_is_invariant_under_relu_rescaling_and_plain_is_not(key, x64):
    params, batch = network(key), examples(key)
    other = rescale(params, 10.0 ** jnp.linspace(-1, 1, 8))
    np.testing.assert_allclose(
        cross_entropy(params, batch), cross_entropy(other, batch), rtol=1e-12
    )
    assert np.abs(np.asarray(other["w0"] / params["w0"]) - 1).max() > 1
    for m in (None, 2):
        call = functools.partial(
            adaptive_sharpness, cross_entropy, batch=batch, key=key, rho=0.5, m=m
        )
        np.testing.assert_allclose(call(params=params).value, call(params=other).value, rtol=1e-8)
    for rule in (perturbation.none(), perturbation.element(eta=0.1)):
        call = functools.partial(
            worst_case_sharpness, cross_entropy, batch=batch, key=key, rho=0.5, scaling=rule
        )
        assert abs(float(call(params=params).value / call(params=other).value) - 1) > 0.01
    for call in (functools.partial(sam_sharpness, rho=0.5), directional_curvature):
        values = [float(call(cross_entropy, p, batch).value) for p in (params, other)]
        assert abs(values[0] / values[1] - 1) > 0.01


def test_order_of_units_changes_nothing(key, x64):
    params, batch = network(key), examples(key)
    order = jax.random.permutation(key, 8)
    assert (order != jnp.arange(8)).any()
    other = {**params, "w0": params["w0"][:, order], "b0": params["b0"][order]}
    other["w1"] = params["w1"][order]
    for call in (worst_case_sharpness, adaptive_sharpness):
        values = [call(cross_entropy, p, batch, key=key, rho=0.5).value for p in (params, other)]
        np.testing.assert_allclose(*values, rtol=1e-9)


def test_zero_weights_stay_under_element_scaling(key, x64):
    params, batch = network(key), examples(key)
    pruned = {**params, "w0": params["w0"] * (jnp.arange(8) % 2)}
    found = adaptive_sharpness(cross_entropy, pruned, batch, key=key, rho=0.5, restarts=2)
    moved = np.asarray(found.perturbation["w0"])
    assert not moved[:, ::2].any() and moved[:, 1::2].any()
    nothing = tree.zeros_like(params)
    found = adaptive_sharpness(cross_entropy, nothing, batch, key=key, rho=0.5, restarts=2)
    assert float(found.value) == 0.0 and int(found.status) == Status.OK


def test_random_directions_have_length_one_where_weights_can_move(key, x64):
    params = network(key)
    scale = {**params, "w0": params["w0"] * (jnp.arange(8) % 2)}
    directions = [worst_case.random_direction(key, i, scale, params) for i in (0, 1)]
    for direction in directions:
        np.testing.assert_allclose(tree.norm(direction), 1, rtol=1e-12)
        assert not direction["w0"][:, ::2].any() and direction["w0"][:, 1::2].all()
    assert abs(float(tree.vdot(*directions))) < 0.5
    nowhere = worst_case.random_direction(key, 0, tree.zeros_like(params), params)
    assert not flat(nowhere).any()


def conv_loss(params, batch):
    h = jax.lax.conv_general_dilated(batch["x"], params["kernel"], (1, 1), "SAME")
    h = jnp.tanh(h).mean(axis=(2, 3)) @ params["head"]
    return jnp.mean(jnp.sum((h - batch["y"]) ** 2, axis=-1))


def test_host_and_device_loops_agree(key, x64):
    keys = jax.random.split(key, 4)
    params = {
        "kernel": jax.random.normal(keys[0], (4, 2, 3, 3), jnp.float64),
        "head": jax.random.normal(keys[1], (4, 2), jnp.float64),
    }
    batch = {
        "x": jax.random.normal(keys[2], (4, 2, 6, 6), jnp.float64),
        "y": jax.random.normal(keys[3], (4, 2), jnp.float64),
    }

    def call(params):
        return adaptive_sharpness(conv_loss, params, batch, key=key, rho=0.5, m=2, num_steps=20)

    host, device = call(params), jax.jit(call)(params)
    np.testing.assert_allclose(host.value, device.value, rtol=1e-10)
    np.testing.assert_allclose(host.loss, device.loss, rtol=1e-12)
    # Outside of a trace it was a host loop: that is what the first call was for.
    search = worst_case.Search(perturbation.element(), 20, 1, None)
    chunks = loops.split_chunks("test", batch, 2)
    operands = worst_case.Operands(Partial(conv_loss), params, chunks, jnp.float64(0.5), key)
    start = worst_case._start(search, params, jnp.float64(0.5), 2, False)
    assert loops.choose_form(search, start, operands) == "host"


def test_lanes_are_separate_calls(key, x64):
    keys = jax.random.split(key, 3)
    members = [network(k) for k in keys]
    losses = [Partial(at_temperature, jnp.float64(t)) for t in (0.5, 1.0, 2.0)]
    batch = examples(key)
    calls = [
        functools.partial(adaptive_sharpness, rho=0.5, m=4, restarts=2, num_steps=6),
        lambda *args, key: sam_sharpness(*args, rho=0.5),
        lambda *args, key: directional_curvature(*args),
    ]
    for call in calls:
        lanes = jax.vmap(lambda loss, p, k, call=call: call(loss, p, batch, key=k))(
            tree.stack(losses), tree.stack(members), keys
        )
        for i, (loss, params, k) in enumerate(zip(losses, members, keys, strict=True)):
            alone = call(loss, params, batch, key=k)
            for a, b in zip(
                jax.tree.leaves(tree.index(lanes, i)), jax.tree.leaves(alone), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_lanes_draw_random_directions_only_where_a_search_begins(key):
    batch = examples(key, dtype=jnp.float32)
    members = tree.stack([network(k, dtype=jnp.float32) for k in jax.random.split(key, 2)])
    call = functools.partial(adaptive_sharpness, cross_entropy, batch=batch, key=key, rho=0.5)
    jaxpr = str(jax.make_jaxpr(jax.vmap(lambda p: call(p).value))(members))
    assert jaxpr.count(" cond[") == 1  # not a select, which would draw at every step


def test_a_lane_with_a_zero_gradient_leaves_the_others_alone(key, x64):
    flat_loss, params, *_ = quadratic(6, INDEFINITE, zero)
    steep, _, _, g, _ = quadratic(6, INDEFINITE, normal)
    both = tree.stack([flat_loss, steep])
    lanes = jax.vmap(lambda q: worst_case_sharpness(q, params, ONE, key=key, rho=0.3))(both)
    alone = worst_case_sharpness(steep, params, ONE, key=key, rho=0.3)
    np.testing.assert_allclose(lanes.value[1], alone.value, rtol=1e-10)
    assert float(lanes.value[0]) > 0


def test_second_call_compiles_nothing(key, monkeypatch):
    traces = collections.Counter()
    plain = worst_case.Search.__call__
    monkeypatch.setattr(
        worst_case.Search,
        "__call__",
        lambda *args: traces.update(["search"]) or plain(*args),
    )
    batch = examples(key, dtype=jnp.float32)

    def calls(seed, temperature, rho):
        params = network(jax.random.key(seed), hidden=7, dtype=jnp.float32)
        loss = Partial(at_temperature, jnp.float32(temperature))
        adaptive_sharpness(loss, params, batch, key=jax.random.key(seed), rho=rho, m=4, num_steps=3)
        sam_sharpness(loss, params, batch, rho=rho)
        directional_curvature(loss, params, batch)
        compiled: list[Any] = [measures._sam, directional._directional_curvature]
        compiled += [worst_case._start, worst_case._finish, loops._device_loop]
        return traces["search"], [f._cache_size() for f in compiled]

    first = calls(0, 1.0, 0.1)
    assert first[0] >= 1
    assert calls(1, 2.0, 0.2) == first
    assert calls(2, 3.0, 0.3) == first


# Awkward numbers.


def test_bfloat16_parameters_are_widened_first(key):
    batch = examples(key, dtype=jnp.float32)
    narrow = network(key, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), narrow)
    for call in (
        functools.partial(worst_case_sharpness, key=key, rho=1e-3),
        functools.partial(adaptive_sharpness, key=key, rho=1e-3, m=4),
        functools.partial(sam_sharpness, rho=1e-3),
        directional_curvature,
    ):
        one, other = call(cross_entropy, narrow, batch), call(cross_entropy, wide, batch)
        assert one.value.dtype == jnp.float32 and float(one.value) > 0
        np.testing.assert_array_equal(one.value, other.value)


def test_trees_of_several_types_with_scalars_and_empty_leaves(key, x64, strict):
    params = {
        "a": jnp.ones((2, 3), jnp.float32),
        "b": (jnp.float64(2.0), jnp.ones((0, 4), jnp.float32)),
        "c": jnp.ones(3, jnp.bfloat16),
    }

    def loss(params, _):
        parts = [jnp.sum(leaf.astype(jnp.float64) ** 2) for leaf in jax.tree.leaves(params)]
        return functools.reduce(jnp.add, parts)

    # |w + e|^2 - |w|^2 is largest along w, whose length is sqrt(13).
    for rule, scale in ((perturbation.none(), np.ones(10)), (perturbation.element(), None)):
        w = np.array([1.0] * 6 + [2.0] + [1.0] * 3)
        scale = w if scale is None else scale
        truth = trust_region(2 * np.diag(scale**2), 2 * scale * w, 0.5)
        found = worst_case_sharpness(
            loss, params, None, key=key, rho=0.5, scaling=rule, num_steps=50
        )
        np.testing.assert_allclose(found.value, truth, rtol=1e-6)
        assert found.value.dtype == jnp.float64
    assert sam_sharpness(loss, params, None, rho=0.5).value.dtype == jnp.float64
    np.testing.assert_allclose(directional_curvature(loss, params, None).value, 2.0, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e15])
def test_gradients_whose_squares_leave_float32(size, key):
    params = jnp.array([3.0, 4.0])

    def loss(w, _):
        return jnp.float32(size) * jnp.dot(jnp.array([0.6, 0.8]), w)

    assert float(sam_sharpness(loss, params, None, rho=0.5).value) >= 0
    along = directional_curvature(loss, params, None)
    assert float(along.gradient_norm) == pytest.approx(size, rel=1e-5)
    found = worst_case_sharpness(loss, params, None, key=key, rho=0.5, num_steps=3)
    assert float(found.value) == pytest.approx(0.5 * size, rel=1e-5)
    np.testing.assert_allclose(found.perturbation, [0.3, 0.4], rtol=1e-5)


def test_zero_gradient_has_no_direction(x64):
    loss, params, *_ = quadratic(7, INDEFINITE, zero)
    along = directional_curvature(loss, params, ONE)
    assert float(along.value) == 0.0 and float(along.gradient_norm) == 0.0
    found = sam_sharpness(loss, params, ONE, rho=0.3)
    assert float(found.value) == 0.0 and not flat(found.perturbation).any()
    assert int(found.status) == int(along.status) == Status.OK


def test_nan_is_told_and_not_hidden(key):
    def loss(w, _):
        return jnp.sum(jnp.log(w) ** 2)

    params = jnp.array([-1.0, 2.0])
    for found in (
        worst_case_sharpness(loss, params, None, key=key, rho=0.1, num_steps=3),
        sam_sharpness(loss, params, None, rho=0.1),
        directional_curvature(loss, params, None),
    ):
        assert np.isnan(found.value) and int(found.status) == Status.NON_FINITE
        with pytest.raises(RuntimeError, match="not finite"):
            status.check(found)


def test_a_search_backs_out_of_where_the_loss_is_not_finite(key, x64):
    # Finite within 0.2 of the start alone, where it rises by at most 0.2.
    def loss(w, _):
        return jnp.where(jnp.sum(w**2) > 0.04, jnp.nan, w[0])

    found = worst_case_sharpness(loss, jnp.zeros(3), None, key=key, rho=1.0, num_steps=20)
    assert int(found.status) == Status.NON_FINITE
    assert 0.1999 < float(found.value) <= 0.2
    assert np.isfinite(found.perturbation).all()
    with pytest.raises(status.NotOk, match="Sharpness: it met a number that is not finite"):
        status.check(found)


def test_infinite_gradient_at_the_centre_starts_at_random(key):
    found = worst_case_sharpness(
        lambda w, _: jnp.sum(jnp.sqrt(w)), jnp.zeros(2), None, key=key, rho=1
    )
    assert int(found.status) == Status.NON_FINITE and np.isfinite(found.value)


def test_check_names_lanes(key):
    results = jax.vmap(lambda w: sam_sharpness(lambda w, _: jnp.log(w), w, None, rho=0.1))(
        jnp.array([1.0, -1.0, 2.0, -1.0])
    )
    with pytest.raises(status.NotOk, match=r"SamSharpness: .* in lanes \[1, 3\]"):
        status.check(results)
    fine = tree.index(results, 0)
    assert status.check(fine) is fine


def test_matmuls_run_at_highest_precision(key):
    params, batch = network(key, dtype=jnp.float32), examples(key, dtype=jnp.float32)
    for call, least in (
        (lambda p: sam_sharpness(cross_entropy, p, batch, rho=0.1).value, 6),
        (lambda p: adaptive_sharpness(cross_entropy, p, batch, key=key, rho=0.1).value, 5),
        (lambda p: directional_curvature(cross_entropy, p, batch).value, 10),
    ):
        jaxpr = str(jax.make_jaxpr(call)(params))
        products = jaxpr.count("dot_general[")
        assert products >= least
        assert jaxpr.count("(Precision.HIGHEST, Precision.HIGHEST)") == products


def test_estimates(key):
    params, batch = network(key, dtype=jnp.float32), examples(key, dtype=jnp.float32)
    args = (cross_entropy, params, batch)
    named = {
        **worst_case_sharpness(*args, key=key, rho=0.1, num_steps=3, restarts=2).estimates(),
        **adaptive_sharpness(*args, key=key, rho=0.1, num_steps=3).estimates(),
        **sam_sharpness(*args, rho=0.1).estimates(),
        **directional_curvature(*args).estimates(),
    }
    assert {name: int(e.num_evaluations) for name, e in named.items()} == {
        "worst_case_sharpness": 7,
        "adaptive_sharpness": 4,
        "sam_sharpness": 1,
        "directional_curvature": 1,
        "gradient_norm": 1,
        "loss": 1,
    }
    rises = {name: e for name, e in named.items() if name.endswith("_sharpness")}
    for name, estimate in named.items():
        assert np.isfinite(estimate.value)
        assert name in rises or float(estimate.standard_error) == 0.0
    # 16 units in the last place of the higher loss, and less from the rounding of the weights.
    unit = float(jnp.finfo(jnp.float32).eps) * float(named["loss"].value)
    for estimate in rises.values():
        higher = unit * float(1 + estimate.value / named["loss"].value)
        assert 16 * unit <= float(estimate.standard_error) <= 32 * higher


def test_checkpoints_are_those_of_the_paper():
    places = np.flatnonzero(ascent.intervals(100)) + 1
    assert places.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in range(1, 60):
        table = ascent.intervals(steps)
        assert len(table) == steps
        places = np.flatnonzero(table) + 1
        np.testing.assert_array_equal(np.diff(places, prepend=0), table[places - 1])


# What a user can get wrong.


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "wide", jnp.ones((2, 2))])
def test_impossible_radius(rho, key):
    args = (
        cross_entropy,
        network(key, dtype=jnp.float32),
        examples(key, dtype=jnp.float32),
    )
    for name, call in (
        ("worst_case_sharpness", functools.partial(worst_case_sharpness, key=key)),
        ("adaptive_sharpness", functools.partial(adaptive_sharpness, key=key)),
        ("sam_sharpness", sam_sharpness),
    ):
        with pytest.raises(UserError, match=f"^{name}: rho"):
            call(*args, rho=rho)


def test_impossible_radius_that_was_traced_is_not_a_number(key):
    args = (cross_entropy, network(key, dtype=jnp.float32), examples(key, dtype=jnp.float32))
    for call in (functools.partial(worst_case_sharpness, key=key, num_steps=2), sam_sharpness):
        found = jax.jit(lambda r, call=call: call(*args, rho=r))(-0.1)
        assert np.isnan(found.value) and int(found.status) == Status.NON_FINITE


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"m": 3}, "adaptive_sharpness: chunks of 3 do not divide 8 examples; .*2, 4"),
        ({"m": 0}, "adaptive_sharpness: m must be a whole number >= 1, got 0"),
        ({"m": 2.0}, "adaptive_sharpness: m must be a whole number >= 1, got 2.0"),
        ({"m": True}, "adaptive_sharpness: m must"),
        ({"num_steps": 0}, "adaptive_sharpness: num_steps must be a whole number >= 1, got 0"),
        ({"restarts": -1}, "adaptive_sharpness: restarts must"),
        ({"m": 4, "microbatch_size": 3}, "adaptive_sharpness: chunks of 3 do not divide 4"),
        ({"microbatch_size": 2.5}, "adaptive_sharpness: microbatch_size"),
    ],
)
def test_impossible_counts(wrong, message, key):
    args = (cross_entropy, network(key, dtype=jnp.float32), examples(key, dtype=jnp.float32))
    with pytest.raises(UserError, match=message):
        adaptive_sharpness(*args, key=key, rho=0.1, **wrong)


def test_wrong_losses_params_batches_and_rules(key):
    params, batch = network(key, dtype=jnp.float32), examples(key, dtype=jnp.float32)
    call = functools.partial(worst_case_sharpness, key=key, rho=0.1)
    with pytest.raises(UserError, match="worst_case_sharpness: loss must be a function"):
        call(None, params, batch)
    with pytest.raises(UserError, match="worst_case_sharpness: .*must return one floating scalar"):
        call(lambda p, b: b["x"] @ p["w0"], params, batch)
    with pytest.raises(UserError, match="worst_case_sharpness: .*'w0' is int32"):
        call(cross_entropy, {**params, "w0": jnp.arange(3)}, batch)
    with pytest.raises(UserError, match="worst_case_sharpness: .*examples on axis 0, but 'y'"):
        call(cross_entropy, params, {**batch, "y": batch["y"][:4]}, m=2)
    rules: list[Any] = ["element", {"T": 1.0}, None]
    for rule in rules:
        with pytest.raises(UserError, match="worst_case_sharpness: scaling must be"):
            call(cross_entropy, params, batch, scaling=rule)
    with pytest.raises(UserError, match="worst_case_sharpness: key must be one random key"):
        call(cross_entropy, params, batch, key=rules[-1])
    with pytest.raises(UserError, match="sam_sharpness: params holds no array"):
        sam_sharpness(cross_entropy, {}, batch, rho=0.1)
    with pytest.raises(UserError, match="directional_curvature: chunks of 3 do not divide 8"):
        directional_curvature(cross_entropy, params, batch, microbatch_size=3)
