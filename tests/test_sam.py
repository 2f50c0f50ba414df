"""SAM in closed form, against optax's own, chunk by chunk, and with every transform it may meet."""

import dataclasses
import functools
import inspect
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from sharpjax import loops, optim, perturbation, tree
from sharpjax.errors import UserError
from sharpjax.optim import sam, sam_value_and_grad

RULES = [perturbation.none(), perturbation.element(), perturbation.element(eta=0.1)]


def quadratic(w, batch):
    """1/2 w'Hw, whatever the examples: H is the batch's mean."""
    return 0.5 * w @ jnp.mean(batch, 0) @ w, None


def regression(params, batch):
    """A tanh net with a scalar and an empty leaf; aux is the mean output."""
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
    out = hidden @ params["v"][0] * params["v"][1]
    return jnp.mean((out - batch["y"]) ** 2), {"mean": jnp.mean(out)}


def problem(key, dtype=jnp.float32, num_examples=8):
    k = jax.random.split(key, 6)
    params = {
        "w": jax.random.normal(k[0], (3, 4), dtype),
        "b": jax.random.normal(k[1], (4,), dtype),
        "v": (jax.random.normal(k[2], (4,), dtype), jax.random.normal(k[3], (), dtype)),
        "empty": jnp.zeros((0, 2), dtype),
    }
    x = jax.random.normal(k[4], (num_examples, 3), dtype)
    return params, {"x": x, "y": jax.random.normal(k[5], (num_examples,), dtype)}


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="m")
def step(tx, loss, params, state, batch, *, m=None):
    """One training step, as a caller writes it: (new parameters, new state, updates)."""
    grad_fn, chunk_grads = jax.value_and_grad(loss, has_aux=True), None
    if m is None:
        (value, _), grads = grad_fn(params, batch)
    else:
        (value, _), grads, chunk_grads = sam_value_and_grad(loss, m=m)(params, batch)
    updates, state = tx.update(
        grads,
        state,
        params,
        value=value,
        grad_fn=grad_fn,
        batch=batch,
        chunk_grads=chunk_grads,
    )
    return optax.apply_updates(params, updates), state, updates


@functools.partial(jax.jit, static_argnums=(0, 4))
def sam_gradient(loss, params, batch, rho, scaling=RULES[0]):
    """The gradient at w + e, from first principles."""
    grad = jax.grad(loss, has_aux=True)
    w, undo = jax.flatten_util.ravel_pytree(params)
    g = jax.flatten_util.ravel_pytree(grad(params, batch)[0])[0]
    T = 1.0 if isinstance(scaling, perturbation.NoScaling) else abs(w) + scaling.eta
    return grad(undo(w + rho * T**2 * g / jnp.linalg.norm(T * g)), batch)[0]


def assert_close(a, b, rtol=1e-12):
    """Equal, leaf by leaf, relative to the leaf's largest entry."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max(initial=0))


def assert_identical(a, b):
    assert tree.digest(a) == tree.digest(b)


# Closed forms.


@pytest.mark.parametrize("rule", RULES)
def test_step_on_a_quadratic(rule, x64, strict):
    rng = np.random.default_rng(0)
    H, w = rng.normal(size=(5, 5)), rng.normal(size=5)
    H = H + H.T
    tx = sam(optax.sgd(0.1), rho=0.3, scaling=rule)
    batch = jnp.asarray(H)[None]
    got, state, _ = step(tx, quadratic, jnp.asarray(w), tx.init(jnp.asarray(w)), batch)
    g, T = H @ w, np.ones(5) if rule == RULES[0] else np.abs(w) + rule.eta
    v = w + 0.3 * T**2 * g / np.linalg.norm(T * g)
    np.testing.assert_allclose(got, w - 0.1 * H @ v, rtol=1e-12)
    want = optim.SamStatistics(
        loss=w @ H @ w / 2,
        perturbed_loss=v @ H @ v / 2,
        grad_norm=np.linalg.norm(g),
        perturbed_grad_norm=np.linalg.norm(H @ v),
        cosine=g @ H @ v / np.linalg.norm(g) / np.linalg.norm(H @ v),
        lost_fraction=0.0,
    )
    np.testing.assert_allclose(state.statistics, want, rtol=1e-6)
    assert state.count == 1


@dataclasses.dataclass(frozen=True)
class QuadraticStep:
    """SAM on lambda w^2 / 2, for `loops.iterate`."""

    learning_rate: float
    rho: float

    @property
    def tx(self):
        return sam(optax.sgd(self.learning_rate), rho=self.rho)

    def __call__(self, carry, batch):
        w, state = carry
        return step(self.tx, quadratic, w, state, batch)[:2]


def test_two_cycle_along_one_eigendirection(x64):
    rate, curvature, rho = 0.3, 2.0, 0.05
    one = QuadraticStep(rate, rho)
    batch, w = jnp.full((1, 1, 1), curvature), jnp.array([0.7])
    for form in ("device", "host"):
        (w, state), _ = loops.iterate(one, (w, one.tx.init(w)), batch, max_steps=200, form=form)
        amplitude = rate * curvature * rho / (2 - rate * curvature)
        assert abs(float(w[0])) == pytest.approx(amplitude, rel=1e-12)
        (after, state), _ = loops.iterate(one, (w, state), batch, max_steps=1, form=form)
        assert float(after[0]) == pytest.approx(-float(w[0]), rel=1e-12)
        assert state.count == 201


def test_rho_zero_is_the_base_bit_by_bit(key):
    """With one program for the gradient: in two, XLA may round it differently."""
    params, batch = problem(key)
    grad_fn = jax.jit(jax.value_and_grad(regression, has_aux=True))

    def outside(tx, params, state):
        (value, _), grads = grad_fn(params, batch)
        more = {"value": value, "grad_fn": grad_fn, "batch": batch}
        updates, state = tx.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state

    for base in (optax.sgd(0.1, momentum=0.9), optax.adamw(0.01)):
        plain = optax.with_extra_args_support(base)
        tx = sam(base, rho=0.0, scaling=perturbation.element(eta=0.1))
        a = (params, plain.init(params))
        b = (params, tx.init(params))
        for _ in range(4):
            a, b = outside(plain, *a), outside(tx, *b)
        assert_identical(a, (b[0], b[1].base))
        assert b[1].statistics.cosine == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("base", [optax.sgd(0.1, momentum=0.9), optax.adam(0.01)])
def test_equals_optax_contrib_sam(base, key, x64):
    params, batch = problem(key, jnp.float64)
    ascend = optax.chain(optax.contrib.normalize(), optax.sgd(0.2))
    theirs = optax.contrib.sam(base, ascend, opaque_mode=True, reset_state=False)
    ours = sam(base, rho=0.2)
    grad_fn = jax.grad(lambda w, _: regression(w, batch)[0])

    @jax.jit
    def their_step(params, state):
        updates, state = theirs.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    a, b = (params, theirs.init(params)), (params, ours.init(params))
    for _ in range(5):
        a, b = their_step(*a), step(ours, regression, *b, batch)[:2]
    assert_close(b[0], a[0])
    assert_close(b[1].base, a[1].opt_state)


def test_rho_schedule_advances_in_one_compilation():
    # On a linear loss the perturbed loss is rho |g| above the clean one.
    slope = jnp.array([3.0, 4.0])
    traces = []

    def linear(w, batch):
        traces.append(1)
        return jnp.sum(w * slope) * jnp.mean(batch), None

    tx = sam(optax.sgd(0.0), rho=lambda count: 0.1 / (1.0 + count))
    w, state, batch, seen = jnp.zeros(2), None, jnp.ones(2), []
    state = tx.init(w)
    for _ in range(4):
        w, state, _ = step(tx, linear, w, state, batch)
        seen.append(float(state.statistics.perturbed_loss - state.statistics.loss) / 5)
    np.testing.assert_allclose(seen, [0.1, 0.05, 0.1 / 3, 0.025], rtol=1e-6)
    assert len(traces) == 2  # the two passes, traced once each


@pytest.mark.parametrize("rule", RULES)
def test_zero_gradient_is_safe(rule):
    w, batch = jnp.zeros((2, 3)).at[1].set(1.0), jnp.eye(3)[None]
    tx = sam(optax.sgd(0.1, momentum=0.9), rho=0.3, scaling=rule)
    lanes = jax.vmap(lambda w: step(tx, quadratic, w, tx.init(w), batch)[:2])(w)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(lanes))
    assert not lanes[0][0].any()
    assert not np.any([x[0] for x in lanes[1].statistics])
    # The neighbour of the zero gradient is not touched by it.
    alone = step(tx, quadratic, w[1], tx.init(w[1]), batch)[:2]
    assert_close(tree.index(lanes, 1), alone, 1e-6)


def test_a_tiny_gradient_is_perturbed_in_full():
    # The squares of its entries are not float32 numbers.
    def linear(w, batch):
        return jnp.sum(w * jnp.array([3.0, 4.0])) * jnp.mean(batch), None

    w, size = jnp.zeros(2), 1e-25
    tx = sam(optax.sgd(0.0), rho=0.1)
    statistics = step(tx, linear, w, tx.init(w), jnp.full(2, size))[1].statistics
    assert statistics.perturbed_loss == pytest.approx(0.5 * size, rel=1e-5)
    assert np.isfinite(statistics).all() and statistics.cosine == 0
    # The norms' product is one as long as each of them is.
    statistics = step(tx, linear, w, tx.init(w), jnp.full(2, 1e-15))[1].statistics
    assert statistics.grad_norm == pytest.approx(5e-15, rel=1e-5)
    assert statistics.cosine == pytest.approx(1.0, rel=1e-5)


def test_state_is_fixed(key):
    # Shapes and types (weak ones too) stay, so that a step can be the body of a loop.
    params, batch = problem(key, jnp.bfloat16)
    tx = sam(optax.sgd(0.1, momentum=0.9), rho=optax.linear_schedule(0.1, 0.0, 5))
    state = tx.init(params)
    after = jax.eval_shape(functools.partial(step, tx, regression), params, state, batch)
    for old, new in zip(jax.tree.leaves((params, state)), jax.tree.leaves(after[:2]), strict=True):
        old = jax.typeof(old)
        assert (old.shape, old.dtype, old.weak_type) == (new.shape, new.dtype, new.weak_type)
    assert all(x.dtype == jnp.float32 and not x.shape for x in state.statistics)
    assert float(optax.tree.get((state,), "statistics").loss) == 0.0


def test_bfloat16_parameters_lose_perturbations_and_say_so():
    # Entries of e are all 0.002: half the spacing of bfloat16 at 1/2, an eighth of it at 2.
    w = jnp.array([0.5, 2.0, 2.0, 0.125], jnp.bfloat16)

    def linear(w, batch):
        return jnp.sum(w.astype(jnp.float32)) * jnp.mean(batch), None

    tx = sam(optax.sgd(0.5), rho=0.0041)
    new, state, updates = step(tx, linear, w, tx.init(w), jnp.ones(1))
    assert new.dtype == updates.dtype == jnp.bfloat16
    assert float(state.statistics.lost_fraction) == 0.5
    # 0.5 + 0.00205 rounds up to 0.50390625, 0.125 + 0.00205 to 0.126953125; the rest is lost.
    gap = float(state.statistics.perturbed_loss - state.statistics.loss)
    assert gap == pytest.approx(0.00390625 + 0.001953125, rel=1e-4)


# m-SAM.


@pytest.mark.parametrize(("rule", "m"), [(RULES[0], 1), (RULES[0], 8), (RULES[2], 2)])
def test_m_sam_is_the_mean_over_chunks_by_position(rule, m, key, x64):
    params, batch = problem(key, jnp.float64)
    tx = sam(optax.sgd(1.0), rho=0.2, scaling=rule, m=m)
    updates = step(tx, regression, params, tx.init(params), batch, m=m)[2]
    chunks = [jax.tree.map(lambda x, i=i: x[i : i + m], batch) for i in range(0, 8, m)]
    grads = [sam_gradient(regression, params, chunk, 0.2, rule) for chunk in chunks]
    want = jax.tree.map(lambda *leaves: -sum(leaves) / len(leaves), *grads)
    assert_close(updates, want)
    # The whole batch as one chunk is SAM; smaller chunks are not.
    whole = sam(optax.sgd(1.0), rho=0.2, scaling=rule)
    of_sam = step(whole, regression, params, whole.init(params), batch)[2]
    if m == 8:
        assert_close(updates, of_sam)
    else:
        assert float(jnp.max(jnp.abs(updates["w"] - of_sam["w"]))) > 1e-4


def test_m_sam_statistics(key, x64):
    params, batch = problem(key, jnp.float64)
    tx = sam(optax.sgd(1.0), rho=0.2, m=4)
    _, state, updates = step(tx, regression, params, tx.init(params), batch, m=4)
    statistics = state.statistics
    (value, _), grads = jax.value_and_grad(regression, has_aux=True)(params, batch)
    norms = float(tree.norm(grads)), float(tree.norm(updates))
    assert float(statistics.loss) == pytest.approx(float(value), rel=1e-6)
    assert float(statistics.grad_norm) == pytest.approx(norms[0], rel=1e-6)
    assert float(statistics.perturbed_grad_norm) == pytest.approx(norms[1], rel=1e-6)
    cosine = -float(tree.vdot(grads, updates)) / norms[0] / norms[1]
    assert float(statistics.cosine) == pytest.approx(cosine, rel=1e-6)
    perturbed = []
    for i in (0, 4):
        chunk = jax.tree.map(lambda x, i=i: x[i : i + 4], batch)
        one = sam(optax.sgd(1.0), rho=0.2)
        state = step(one, regression, params, one.init(params), chunk)[1]
        perturbed.append(float(state.statistics.perturbed_loss))
    assert float(statistics.perturbed_loss) == pytest.approx(np.mean(perturbed), rel=1e-6)


def test_identical_examples_make_every_m_the_same(key, x64):
    params, batch = problem(key, jnp.float64)
    batch = jax.tree.map(lambda x: jnp.repeat(x[:1], 8, axis=0), batch)
    updates = []
    for m in (None, 1, 4, 8):
        tx = sam(optax.sgd(1.0), rho=0.2, m=m)
        updates.append(step(tx, regression, params, tx.init(params), batch, m=m)[2])
    for other in updates[1:]:
        assert_close(other, updates[0])


@pytest.mark.parametrize("m", [None, 2])
def test_two_passes_in_all(m):
    """Counts, as the program runs, how many examples' gradients are taken."""
    seen = []

    @jax.custom_vjp
    def counted(out):
        return out

    def backward(_, cotangent):
        jax.debug.callback(seen.append, np.int32(cotangent.shape[0]))
        return (cotangent,)

    counted.defvjp(lambda out: (out, None), backward)

    def loss(w, batch):
        return jnp.mean(counted(batch @ w) ** 2), None

    w, batch = jnp.ones(3), jnp.arange(24.0).reshape(8, 3)
    tx = sam(optax.sgd(0.1), rho=0.1, m=m)
    jax.block_until_ready(step(tx, loss, w, tx.init(w), batch, m=m))
    jax.effects_barrier()
    assert sum(map(int, seen)) == 2 * 8
    assert len(seen) == (2 if m is None else 2 * 8 // m)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(
            nn.Dense(3, use_bias=False)(x)
        )
        return nn.Dense(1)(nn.tanh(x))[:, 0]


def test_chunks_normalise_by_themselves_and_running_statistics_are_of_the_clean_pass(key):
    # Data that drift along the batch: chunks have other statistics than the whole.
    x = jax.random.normal(key, (8, 2)) + jnp.arange(8.0)[:, None]
    batch = {"x": x, "y": jnp.sin(x[:, 0])}
    model = Normalised()
    variables = model.init(key, x, train=False)
    params, statistics = variables["params"], variables["batch_stats"]

    def loss(params, batch):
        out, updated = model.apply(
            {"params": params, "batch_stats": statistics},
            batch["x"],
            train=True,
            mutable="batch_stats",
        )
        return jnp.mean((out - batch["y"]) ** 2), updated["batch_stats"]

    (value, aux), grads, chunk_grads = jax.jit(sam_value_and_grad(loss, m=4))(params, batch)
    halves = [jax.tree.map(lambda x, i=i: x[i : i + 4], batch) for i in (0, 4)]
    clean_pass = jax.jit(jax.value_and_grad(loss, has_aux=True))
    clean = [clean_pass(params, half) for half in halves]
    (want_value, want_aux), want_grads = jax.tree.map(lambda a, b: (a + b) / 2, *clean)
    assert_close((value, aux, grads), (want_value, want_aux, want_grads), 1e-5)
    assert_close(chunk_grads, tree.stack([c[1] for c in clean]), 1e-5)
    whole = loss(params, batch)
    assert abs(float(value - whole[0])) > 1e-3
    variance = aux["BatchNorm_0"]["var"], whole[1]["BatchNorm_0"]["var"]
    assert float(jnp.max(jnp.abs(variance[0] - variance[1]))) > 1e-2
    tx = sam(optax.sgd(1.0), rho=0.1, m=4)
    updates = step(tx, loss, params, tx.init(params), batch, m=4)[2]
    want = jax.tree.map(
        lambda a, b: -(a + b) / 2, *(sam_gradient(loss, params, half, 0.1) for half in halves)
    )
    assert_close(updates, want, 1e-4)


def test_m_sam_of_a_convolution(key):
    # On CPU the chunks of a convolution take another path, unrolled.
    image = jax.random.normal(key, (4, 5, 5, 1))
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (3, 3, 1, 2))

    def loss(w, image):
        dims = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(image, w, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.mean(jnp.tanh(out) ** 2), jnp.max(out)

    tx = sam(optax.sgd(1.0), rho=0.1, m=2)
    updates = step(tx, loss, kernel, tx.init(kernel), image, m=2)[2]
    want = -sum(sam_gradient(loss, kernel, image[i : i + 2], 0.1) for i in (0, 2)) / 2
    assert_close(updates, want, 1e-5)


def test_chunks_do_not_depend_on_the_devices(key):
    params, batch = problem(key)
    tx = sam(optax.sgd(1.0), rho=0.2, m=4)
    alone = step(tx, regression, params, tx.init(params), batch, m=4)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(params, whole)
    sharded = step(tx, regression, params, tx.init(params), jax.device_put(batch, split), m=4)
    assert len(jax.tree.leaves(sharded[0])[0].devices()) == 4
    assert_close(sharded, alone, 1e-5)


def test_aux_is_averaged_where_it_is_floating():
    def loss(w, batch):
        aux = {
            "mean": jnp.mean(batch),
            "half": jnp.max(batch).astype(jnp.bfloat16),
            "counter": jnp.int32(16_777_217),  # no float32 number
            "flag": jnp.ones((), bool),
            "key": jax.random.key(3),
            "nothing": None,
        }
        return jnp.mean(batch) * w, aux

    batch = jnp.array([256.0, 1.0, -256.0, 1.0])
    (value, aux), grads, chunks = sam_value_and_grad(loss, m=1)(jnp.float32(2.0), batch)
    assert float(value) == 1.0 and float(grads) == 0.5
    np.testing.assert_array_equal(chunks, batch)
    # 256 + 1 is 256 in bfloat16: summed in it, the mean would be 1/4.
    assert float(aux["mean"]) == float(aux["half"]) == 0.5
    assert aux["half"].dtype == jnp.bfloat16
    assert aux["counter"] == 16_777_217 and aux["counter"].dtype == jnp.int32
    assert aux["flag"].dtype == bool and bool(aux["flag"]) and aux["nothing"] is None
    assert bool(aux["key"] == jax.random.key(3))


# With other transforms.


def test_chain_in_either_order(key, x64):
    params, batch = problem(key, jnp.float64)
    base = optax.sgd(0.1, momentum=0.9)

    def train(tx):
        carry = params, tx.init(params)
        for _ in range(3):
            carry = step(tx, regression, *carry, batch)[:2]
        return carry[0]

    want = train(sam(base, rho=0.2))
    assert_close(train(optax.chain(sam(optax.identity(), rho=0.2), base)), want)
    # A clip before it rescales the ascent gradient, which does not matter; after it, the descent's.
    clip = optax.clip_by_global_norm(1e-3)
    assert_close(train(optax.chain(clip, sam(base, rho=0.2))), want)
    clipped = optax.chain(sam(clip, rho=0.2), base)
    moved = tree.norm(tree.add_scaled(train(clipped), -1.0, params))
    assert 0 < moved <= 0.1 * 1e-3 * (1 + 1.9 + 2.71)


def test_weight_decay_in_descent_and_in_ascent(x64):
    H, w, decay = np.diag([1.0, 3.0]), np.array([1.0, -2.0]), 0.7
    batch, start = jnp.asarray(H)[None], jnp.asarray(w)

    def update(tx):
        return step(tx, quadratic, start, tx.init(start), batch)[2]

    g = H @ w
    decayed = g + decay * w
    plain = -H @ (w + 0.5 * g / np.linalg.norm(g))
    both = -H @ (w + 0.5 * decayed / np.linalg.norm(decayed))
    weights = optax.add_decayed_weights(decay)

    def with_decay(grads, params):
        return tree.add_scaled(grads, decay, params)

    descent = sam(optax.chain(weights, optax.sgd(1.0)), rho=0.5)
    np.testing.assert_allclose(update(descent), plain - decay * w, rtol=1e-12)
    with_decay = optax.stateless(with_decay)
    ascent = sam(optax.sgd(1.0), rho=0.5, ascent=with_decay)
    np.testing.assert_allclose(update(ascent), both, rtol=1e-12)
    before = optax.chain(weights, sam(optax.sgd(1.0), rho=0.5))
    np.testing.assert_allclose(update(before), both, rtol=1e-12)
    chunked = sam(optax.sgd(1.0), rho=0.5, ascent=with_decay, m=1)
    got = step(chunked, quadratic, start, chunked.init(start), batch, m=1)[2]
    np.testing.assert_allclose(got, both, rtol=1e-12)


def test_base_sees_the_objective_of_sam():
    """And `value` is the loss at the perturbed weights."""

    def init(params):
        return jnp.zeros(())

    def update(grads, state, params=None, *, value, grad_fn, batch, note, **extra):
        assert callable(grad_fn) and batch.shape == (1, 1, 1) and not extra
        return grads, value + note

    tx = sam(optax.GradientTransformationExtraArgs(init, update), rho=0.5)
    w, batch = jnp.array([2.0]), jnp.ones((1, 1, 1))
    grad_fn = jax.value_and_grad(quadratic, has_aux=True)
    _, state = tx.update(
        w, tx.init(w), w, value=2.0, grad_fn=grad_fn, batch=batch, note=jnp.float32(1.0)
    )
    assert float(state.base) == 0.5 * 2.5**2 + 1.0
    assert float(state.statistics.loss) == 2.0


def test_apply_if_finite_round_it_and_in_it():
    def bowl(w, batch):  # finite up to |w| = 1, not a number beyond
        return -jnp.sum(jnp.sqrt(1.0 - w**2)) * jnp.mean(batch), None

    inside, near, outside = jnp.array([0.3]), jnp.array([0.95]), jnp.array([2.0])
    batch = jnp.ones(1)
    round_it = optax.apply_if_finite(sam(optax.sgd(0.1, momentum=0.9), rho=0.1), 3)
    state = round_it.init(inside)
    _, state, first = step(round_it, bowl, inside, state, batch)
    _, after, skipped = step(round_it, bowl, outside, state, batch)
    assert first.any() and not skipped.any()
    assert_identical(after.inner_state, state.inner_state)
    assert int(after.total_notfinite) == 1
    _, _, second = step(round_it, bowl, inside, after, batch)
    np.testing.assert_allclose(second, 1.9 * first, rtol=1e-5)
    # Near the edge the gradient is finite at w, and not at w + e: only a guard in the base sees it.
    assert np.isnan(step(round_it, bowl, near, round_it.init(near), batch)[2]).all()
    in_it = sam(optax.apply_if_finite(optax.sgd(0.1), 3), rho=0.1)
    _, state, skipped = step(in_it, bowl, near, in_it.init(near), batch)
    assert not skipped.any() and int(state.base.total_notfinite) == 1


def test_masked_and_partition_in_it_and_round_it(key, x64):
    params, batch = problem(key, jnp.float64)
    mask = tree.select(params, ["w", "b"])
    want = jax.tree.map(
        lambda keep, g: -g if keep else jnp.zeros_like(g),
        mask,
        sam_gradient(regression, params, batch, 0.2),
    )
    labels = jax.tree.map(lambda keep: "train" if keep else "freeze", mask)
    rules = {"train": optax.sgd(1.0), "freeze": optax.set_to_zero()}
    frozen = optax.masked(optax.set_to_zero(), jax.tree.map(lambda keep: not keep, mask))
    for base in (optax.chain(optax.sgd(1.0), frozen), optax.partition(rules, labels)):
        tx = sam(base, rho=0.2)
        updates = step(tx, regression, params, tx.init(params), batch)[2]
        assert_close(updates, want)
    inner = sam(optax.sgd(1.0), rho=0.2)
    with pytest.raises(UserError, match=r"put it inside, sam\(optax.masked"):
        optax.masked(inner, mask).init(params)
    with pytest.raises(UserError, match="optax.partition stands round SAM"):
        optax.partition(rules | {"train": inner}, labels).init(params)


def test_inject_hyperparams(key):
    params, batch, m = *problem(key), 4
    make = optax.inject_hyperparams(sam, static_args=optim.SAM_STATIC_ARGS)
    rule = perturbation.element(eta=0.1)
    scheduled = make(optax.sgd(0.1), rho=optax.linear_schedule(0.2, 0.0, 4), scaling=rule, m=m)
    plain = sam(optax.sgd(0.1), rho=optax.linear_schedule(0.2, 0.0, 4), scaling=rule, m=m)
    a, b = (params, scheduled.init(params)), (params, plain.init(params))
    for _ in range(3):
        a = step(scheduled, regression, *a, batch, m=m)[:2]
        b = step(plain, regression, *b, batch, m=m)[:2]
    assert_close(a[0], b[0], 1e-5)
    # A radius that is set between steps.
    numeric = make(optax.sgd(1.0), rho=0.2, m=m)
    state = numeric.init(params)
    state.hyperparams["rho"] = jnp.float32(0.0)
    updates = step(numeric, regression, params, state, batch, m=m)[2]
    grads = jax.grad(regression, has_aux=True)(params, batch)[0]
    assert_close(updates, tree.scale(-1.0, grads), 1e-5)


def test_inject_hyperparams_without_the_static_names(key):
    params, _ = problem(key)
    arguments = set(inspect.signature(sam).parameters)
    assert set(optim.SAM_STATIC_ARGS) == arguments - {"base", "rho"}
    names = [name for name in optim.SAM_STATIC_ARGS if name != "m"]
    with pytest.raises(UserError, match="static_args=optim.SAM_STATIC_ARGS"):
        optax.inject_hyperparams(sam, static_args=names)(optax.sgd(0.1), rho=0.1, m=2).init(params)


def test_multi_steps_ascends_on_the_last_microbatch_alone_and_m_accumulates(key):
    params, batch = problem(key)
    halves = [jax.tree.map(lambda x, i=i: x[i : i + 4], batch) for i in (0, 4)]
    steps = optax.MultiSteps(sam(optax.sgd(1.0), rho=0.2), every_k_schedule=2)
    state = steps.init(params)
    for half in halves:
        _, state, updates = step(steps, regression, params, state, half)
    # The mean gradient sets the direction, and then only the second half is looked at.
    grads = jax.grad(regression, has_aux=True)(params, batch)[0]
    moved = perturbation.perturb(params, perturbation.ascent(grads, params, rho=0.2))
    last = jax.grad(regression, has_aux=True)(moved, halves[1])[0]
    assert_close(updates, tree.scale(-1.0, last), 1e-5)
    tx = sam(optax.sgd(1.0), rho=0.2, m=4)
    accumulated = step(tx, regression, params, tx.init(params), batch, m=4)[2]
    want = [sam_gradient(regression, params, half, 0.2) for half in halves]
    assert_close(accumulated, jax.tree.map(lambda a, b: -(a + b) / 2, *want), 1e-5)


@pytest.mark.parametrize("m", [None, 4])
def test_a_population_equals_separate_calls(m, key, x64):
    pairs = [problem(k, jnp.float64) for k in jax.random.split(key, 3)]
    rho = optax.linear_schedule(0.2, 0.0, 4)
    tx = sam(optax.sgd(0.1, momentum=0.9), rho=rho, scaling=RULES[2], m=m)

    def two_steps(params, batch):
        carry = params, tx.init(params)
        for _ in range(2):
            carry = step(tx, regression, *carry, batch, m=m)[:2]
        return carry

    stacked = (tree.stack([p[i] for p in pairs]) for i in (0, 1))
    lanes = jax.vmap(two_steps)(*stacked)
    for i, pair in enumerate(pairs):
        params, state = two_steps(*pair)
        assert_close(tree.index(lanes, i)[0], params)
        assert_close(tree.index(lanes, i)[1].statistics, state.statistics, 1e-6)


# What a user can get wrong.


@pytest.mark.parametrize(
    "rho", [-0.1, math.nan, np.float32(-1), jnp.array(-0.1), jnp.array(math.inf), "0.1", None, 1j]
)
def test_impossible_rho(rho):
    with pytest.raises(UserError, match="optim.sam: rho must be"):
        sam(optax.sgd(0.1), rho=rho)


@pytest.mark.parametrize("rho", [0, 0.05, np.float32(0.05), np.array(0.05), jnp.float32(0.05)])
def test_a_radius_is_looked_at_inside_a_trace_too(rho):
    """Where `sam` is made in a jitted step, a number is still one."""

    @jax.jit
    def init(w):
        return sam(optax.sgd(0.1), rho=rho).init(w)

    init(jnp.ones(2))
    below = -1 - rho
    with pytest.raises(UserError, match="optim.sam: rho must be"):
        jax.jit(lambda w: sam(optax.sgd(0.1), rho=below).init(w))(jnp.ones(2))


@pytest.mark.parametrize("rho", [jnp.ones(2), np.full((1,), 0.1), [0.1, 0.2]])
def test_rho_is_one_number(rho):
    with pytest.raises(UserError, match=r"rho must be one number .* shape \((2|1),\)"):
        sam(optax.sgd(0.1), rho=rho)
    tx, w, batch = sam(optax.sgd(0.1), rho=lambda count: rho), jnp.ones(2), jnp.eye(2)[None]
    with pytest.raises(UserError, match="rho must be one number"):
        step(tx, quadratic, w, tx.init(w), batch)


def test_a_population_has_a_radius_for_each_lane():
    w, batch = jnp.ones(2), jnp.eye(2)[None]

    def lane(rho):
        tx = sam(optax.sgd(1.0), rho=rho)
        return step.__wrapped__(tx, quadratic, w, tx.init(w), batch)[0]

    moved = jax.jit(jax.vmap(lane))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(moved, [[0, 0], [-(0.5**0.5)] * 2], atol=1e-6)


@pytest.mark.parametrize("m", [0, -1, 2.0, True, np.float32(2)])
def test_impossible_m(m):
    with pytest.raises(UserError, match="optim.sam: m must be a positive integer"):
        sam(optax.sgd(0.1), rho=0.1, m=m)
    with pytest.raises(UserError, match="optim.sam_value_and_grad: m must be"):
        sam_value_and_grad(quadratic, m=m)


def test_update_says_what_it_lacks(key):
    params, batch = problem(key)
    grad_fn = jax.value_and_grad(regression, has_aux=True)
    (value, _), grads, chunk_grads = sam_value_and_grad(regression, m=4)(params, batch)
    given = {"value": value, "grad_fn": grad_fn, "batch": batch}
    whole, chunked = sam(optax.sgd(0.1), rho=0.1), sam(optax.sgd(0.1), rho=0.1, m=4)
    state = whole.init(params)
    with pytest.raises(UserError, match="update needs params"):
        whole.update(grads, state, **given)
    without_aux = jax.value_and_grad(lambda p, b: regression(p, b)[0])
    with pytest.raises(UserError, match="has_aux=True"):
        whole.update(grads, state, params, **(given | {"grad_fn": without_aux}))
    with pytest.raises(UserError, match="chunk_grads are for m-SAM"):
        whole.update(grads, state, params, **given, chunk_grads=chunk_grads)
    for wrong in (None, grads, tree.index(chunk_grads, slice(0, 1)), chunk_grads["w"]):
        with pytest.raises(UserError, match="each of the 2 chunks .*sam_value_and_grad.loss, m=4"):
            chunked.update(grads, state, params, **given, chunk_grads=wrong)
    odd = sam(optax.sgd(0.1), rho=0.1, m=3)
    with pytest.raises(UserError, match="optim.sam: chunks of 3 do not divide 8 examples"):
        odd.update(grads, state, params, **given, chunk_grads=chunk_grads)
    with pytest.raises(UserError, match="optim.sam_value_and_grad: chunks of 3"):
        sam_value_and_grad(regression, m=3)(params, batch)
