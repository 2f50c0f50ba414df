"""The methods of the SAM family, each against its formula in numpy and float64."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import optim, perturbation, tree
from sharpjax.errors import UserError
from sharpjax.optim import coupled_rho, friendly, random_direction, sam

RATE, RHO = 0.3, 0.2


def loss(params, batch):
    """A net with a normalisation-like layer; the batches differ from step to step."""
    h = jnp.tanh(batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"])
    out = jnp.sum(h * params["norm"]["scale"], axis=1)
    return jnp.mean((out - batch["y"]) ** 2), None


def problem(key):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    params = {"dense": {"kernel": normal(3, 2), "bias": normal(2)}, "norm": {"scale": normal(2)}}
    return params, {"x": normal(4, 6, 3), "y": normal(4, 6)}


ascent = jax.jit(perturbation.ascent, static_argnames=("scaling", "norm"))


@functools.partial(jax.jit, static_argnums=0)
def step(tx, params, state, batch):
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    (value, _), grads = grad_fn(params, batch)
    more = {"value": value, "grad_fn": grad_fn, "batch": batch}
    updates, state = tx.update(grads, state, params, **more)
    return optax.apply_updates(params, updates), state


def path(tx, params, batches, num_steps=4):
    state, found = tx.init(params), []
    for t in range(num_steps):
        params, state = step(tx, params, state, tree.index(batches, t))
        found.append(jax.flatten_util.ravel_pytree(params)[0])
    return np.stack(found), state


_gradient = jax.jit(jax.grad(loss, has_aux=True))


def reference(rule, params, batches, num_steps=4):
    """`rule(t, w, g, memory)` gives what SGD takes; `g(w)` is the gradient of the step's batch."""
    w, undo = jax.flatten_util.ravel_pytree(params)
    w, memory, found = np.asarray(w), {}, []
    for t in range(num_steps):
        batch = tree.index(batches, t)

        def g(w, batch=batch):
            grads = _gradient(undo(jnp.asarray(w)), batch)[0]
            return np.asarray(jax.flatten_util.ravel_pytree(grads)[0])

        w = w - RATE * rule(t, w, g, memory)
        found.append(w)
    return np.stack(found)


def unit(v):
    return v / np.linalg.norm(v)


def across(a, b):
    """The part of a across b."""
    return a - (a @ b) / (b @ b) * b


# The layout of the flat vector: dense/bias, dense/kernel, norm/scale.
BIAS, KERNEL, SCALE = slice(0, 2), slice(2, 8), slice(8, 10)


def per_filter(w):
    T = abs(w)
    kernel = w[KERNEL].reshape(3, 2)
    T[KERNEL] = np.broadcast_to(np.sqrt((kernel**2).sum(0)), (3, 2)).ravel()
    return T


def per_layer(w):
    T = np.empty_like(w)
    for part in (BIAS, KERNEL, SCALE):
        T[part] = np.linalg.norm(w[part])
    return T


def unscaled_bias(w, eta=0.01):
    T = abs(w) + eta
    T[BIAS] = 1
    return T


def frozen_bias(w):
    T = per_filter(w)
    T[BIAS] = 0
    return T


def norm_layers(w):
    T = np.zeros_like(w)
    T[SCALE] = abs(w[SCALE])
    return T


def scaled(units):
    def rule(t, w, g, memory):
        T = units(w)
        return g(w + RHO * T**2 * g(w) / np.linalg.norm(T * g(w)))

    return rule


def linf(t, w, g, memory):
    return g(w + RHO * abs(w) * np.sign(g(w)))


def unnormalised(t, w, g, memory):
    return g(w + RHO * g(w))


def several(t, w, g, memory):
    e = 0
    for _ in range(3):
        T = abs(w)
        e = e + RHO / 3 * T**2 * g(w + e) / np.linalg.norm(T * g(w + e))
    assert np.linalg.norm(e / T) <= RHO
    return g(w + e)


def gsam(t, w, g, memory):
    rho = 0.1 + (0.2 - 0.1) * (4 - t) / 4
    p = g(w + rho * unit(g(w)))
    return p - 0.4 * across(g(w), p)


def wsam(t, w, g, memory):
    p = g(w + RHO * unit(g(w)))
    return (1 - 2.5) * g(w) + 2.5 * p


def looksam(t, w, g, memory):
    if t % 3 == 0:
        p = g(w + RHO * unit(g(w)))
        memory["v"] = across(p, g(w))
        return p
    return g(w) + 0.7 * np.linalg.norm(g(w)) * unit(memory["v"])


def every_second(t, w, g, memory):
    return g(w) if t % 2 else g(w + RHO * unit(g(w)))


def fsam(t, w, g, memory):
    m = 0.6 * memory.get("m", 0) + 0.4 * g(w)
    memory["m"] = m
    return g(w + RHO * unit(g(w) - 0.8 * m))


def decayed(t, w, g, memory):
    return g(w + RHO * unit(g(w) + 0.5 * w))


def random(t, w, g, memory):
    key = memory.get("key", jax.random.key(7))
    memory["key"], now = jax.random.split(key)
    like = {"dense": {"bias": w[BIAS], "kernel": w[KERNEL].reshape(3, 2)}, "norm": w[SCALE]}
    noise = tree.random_normal(now, jax.tree.map(jnp.asarray, like))
    return g(w + RHO * unit(np.asarray(jax.flatten_util.ravel_pytree(noise)[0])))


# By name: what `sam` is told, the formula, and how many gradients four steps take.
METHODS = {
    "filter": ({"scaling": perturbation.filters()}, scaled(per_filter), 8),
    "layer": ({"scaling": perturbation.layers()}, scaled(per_layer), 8),
    "asam": ({"scaling": perturbation.element(0.01, bias="unit")}, scaled(unscaled_bias), 8),
    "frozen": ({"scaling": perturbation.filters(bias="frozen")}, scaled(frozen_bias), 8),
    "sam-on": (
        {"scaling": perturbation.only("norm/*", perturbation.element())},
        scaled(norm_layers),
        8,
    ),
    "linf": ({"norm": "linf", "scaling": perturbation.element()}, linf, 8),
    "usam": ({"norm": "none"}, unnormalised, 8),
    "steps": ({"steps": 3, "scaling": perturbation.element()}, several, 16),
    "gsam": (
        {
            "rho": coupled_rho(
                lambda count: 1.0 - 0.25 * count, rho_max=0.2, rho_min=0.1, lr_max=1.0
            ),
            "gap_weight": 0.4,
        },
        gsam,
        8,
    ),
    "wsam": ({"sharpness_weight": 2.5}, wsam, 8),
    "looksam": ({"every": 3, "reuse": 0.7}, looksam, 6),
    "every": ({"every": 2}, every_second, 6),
    "fsam": ({"ascent": friendly(sigma=0.8, decay=0.6)}, fsam, 8),
    "decay": ({"ascent": optax.add_decayed_weights(0.5)}, decayed, 8),
    "random": ({"ascent": random_direction(jax.random.key(7))}, random, 8),
}


@functools.cache  # so that tests share the programs
def build(name):
    return sam(optax.sgd(RATE), **{"rho": RHO, **METHODS[name][0]})


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_its_formula(name, key, x64):
    params, batches = problem(key)
    found, state = path(build(name), params, batches)
    want = reference(METHODS[name][1], params, batches)
    np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-12)
    assert state.count == 4
    plain = reference(lambda t, w, g, _: g(w), params, batches)
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["linf", "steps", "gsam", "looksam", "every", "fsam", "random"])
def test_gradients_that_four_steps_take(name):
    seen = []

    @jax.custom_vjp
    def counted(out):
        return out

    def backward(_, cotangent):
        jax.debug.callback(lambda: seen.append(1))
        return (cotangent,)

    counted.defvjp(lambda out: (out, None), backward)

    def grad_fn(w, batch):
        of = jax.value_and_grad(lambda w: (jnp.sum(counted(w) ** 2 * batch), None), has_aux=True)
        return of(w)

    tx, w = build(name), jnp.arange(1.0, 4.0)

    @jax.jit
    def one(w, state):
        (value, _), grads = grad_fn(w, w)
        updates, state = tx.update(grads, state, w, value=value, grad_fn=grad_fn, batch=w)
        return w + updates, state

    state = tx.init(w)
    for _ in range(4):
        w, state = one(w, state)
    jax.block_until_ready(w)
    jax.effects_barrier()
    assert len(seen) == METHODS[name][2]


@pytest.mark.parametrize("name", METHODS)
def test_a_zero_gradient_is_safe_and_the_state_is_fixed(name, key, x64):
    """Where the scales and the targets are 0, nothing has a gradient."""
    params, batches = problem(key)
    start = params | {"norm": {"scale": jnp.zeros(2)}}
    params, batches["y"] = start, jnp.zeros((4, 6))
    tx = build(name)
    state = tx.init(params)
    types = jax.tree.map(_type, state)
    for t in range(4):
        params, state = step(tx, params, state, tree.index(batches, t))
        assert jax.tree.map(_type, state) == types
    assert np.isfinite(state.statistics).all()
    if name != "random":  # which perturbs all the same
        assert tree.digest(params) == tree.digest(start)


def _type(x):
    return jnp.shape(x), x.dtype


def test_steps_without_a_second_pass_say_so(key, x64):
    params, batches = problem(key)
    tx = build("looksam")
    state = tx.init(params)
    for t in range(3):
        params, state = step(tx, params, state, tree.index(batches, t))
        seen = state.statistics
        assert (seen.perturbed_loss == seen.loss) == (t > 0)
        # Across the gradient of step t, not of step 0: so not exactly sqrt(1 + reuse^2) longer.
        assert 1 < seen.perturbed_grad_norm / seen.grad_norm < 1.7 or t == 0


def test_looksam_reuses_no_rounding():
    """Of f = 3 |w|^2 / 2 the perturbed gradient is along the clean one, and at radius 0 it always
    is: then `v` is 0, and the steps between are those of the base."""
    tx = sam(optax.sgd(0.1), rho=lambda count: 0.1 * (count // 2), every=2, reuse=0.7)

    def quadratic(w, batch):
        return 0.5 * 3.0 * jnp.sum(w**2), None

    grad_fn = jax.value_and_grad(quadratic, has_aux=True)

    @jax.jit
    def one(w, state):
        (value, _), grads = grad_fn(w, None)
        more = {"value": value, "grad_fn": grad_fn, "batch": jnp.ones(1)}
        return tx.update(grads, state, w, **more)

    w = jnp.array([1.3, -0.7, 2.1])
    state = tx.init(w)
    for step_count in range(4):
        updates, state = one(w, state)
        if step_count % 2:
            np.testing.assert_allclose(updates, -0.3 * w, rtol=1e-6)
        w = w + updates


def test_convolutions_on_cpu_are_in_no_branch(key):
    """And who decides outside of the jit has a program without a second pass."""
    kernel, image = jax.random.normal(key, (3, 3, 1, 2)), jax.random.normal(key, (2, 5, 5, 1))

    def convolved(w, image):
        dims = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(image, w, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.mean(jnp.tanh(out) ** 2), None

    tx = sam(optax.sgd(0.1), rho=0.1, every=2, reuse=0.7)
    grad_fn = jax.value_and_grad(convolved, has_aux=True)

    def update(state, w, **options):
        (value, _), grads = grad_fn(w, image)
        more = {"value": value, "grad_fn": grad_fn, "batch": image, **options}
        return tx.update(grads, state, w, **more)

    state = tx.init(kernel)
    text = str(jax.make_jaxpr(update)(state, kernel))
    assert " cond[" not in text
    counts = [
        str(jax.make_jaxpr(functools.partial(update, second_pass=due))(state, kernel)).count("tanh")
        for due in (True, False)
    ]
    assert counts[0] == 2 * counts[1] == text.count("tanh")
    with pytest.raises(UserError, match="second_pass=.* decided outside of the jit"):
        update(state, kernel, second_pass=state.count == 0)
    for due in (np.True_, np.False_):
        updates, after = jax.jit(update)(state, kernel)
        want, same = jax.jit(functools.partial(update, second_pass=due))(state, kernel)
        np.testing.assert_allclose(updates, want, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(after.sideways, same.sideways, rtol=1e-4, atol=1e-6)
        state = after


def test_a_population_equals_separate_runs(key, x64):
    tx = build("looksam")
    pairs = [problem(k) for k in jax.random.split(key, 2)]

    def two(params, batches):
        state = tx.init(params)
        for t in range(2):
            params, state = step(tx, params, state, tree.index(batches, t))
        return params

    together = jax.jit(jax.vmap(two))(*(tree.stack([p[i] for p in pairs]) for i in (0, 1)))
    for i, pair in enumerate(pairs):
        alone = two(*pair)
        for a, b in zip(
            jax.tree.leaves(tree.index(together, i)), jax.tree.leaves(alone), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_chunks_of_gsam_and_fsam(key, x64):
    """Directions chunk by chunk, one mean of gradients, and a mean gradient that is remembered."""
    params, batches = problem(key)
    batch = tree.index(batches, 0)
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    tx = sam(optax.sgd(1.0), rho=RHO, m=2, ascent=friendly(0.8, 0.6), gap_weight=0.4)

    @jax.jit
    def update(params):
        (value, _), grads, chunks = optim.sam_value_and_grad(loss, m=2)(params, batch)
        more = {"value": value, "grad_fn": grad_fn, "batch": batch, "chunk_grads": chunks}
        return tx.update(grads, tx.init(params), params, **more)

    updates, state = update(params)
    w, undo = jax.flatten_util.ravel_pytree(params)
    w = np.asarray(w)

    def g(w, examples):
        grads = _gradient(undo(jnp.asarray(w)), examples)[0]
        return np.asarray(jax.flatten_util.ravel_pytree(grads)[0])

    parts = [jax.tree.map(lambda x, i=i: x[i : i + 2], batch) for i in (0, 2, 4)]
    each = [g(w + RHO * unit(g(w, part) * (1 - 0.8 * 0.4)), part) for part in parts]
    p, clean = np.mean(each, 0), np.mean([g(w, part) for part in parts], 0)
    got = jax.flatten_util.ravel_pytree(updates)[0]
    np.testing.assert_allclose(-got, p - 0.4 * across(clean, p), rtol=1e-10, atol=1e-12)
    mean = jax.flatten_util.ravel_pytree(state.ascent.mean)[0]
    np.testing.assert_allclose(mean, 0.4 * clean, rtol=1e-6)


def test_weights_of_the_sharpness_from_the_base_to_sam_with_a_gap(key, x64):
    """At 0 the base alone; a weight of GSAM's gradient beside the clean one."""
    params, batches = problem(key)
    batch = tree.index(batches, 0)

    def taken(**options):
        tx = sam(optax.sgd(1.0), rho=RHO, **options)
        after, _ = step(tx, params, tx.init(params), batch)
        return np.asarray(jax.flatten_util.ravel_pytree(tree.add_scaled(params, -1.0, after))[0])

    clean = np.asarray(jax.flatten_util.ravel_pytree(_gradient(params, batch)[0])[0])
    np.testing.assert_allclose(taken(sharpness_weight=0.0), clean, rtol=1e-12)
    gsam, half = taken(gap_weight=0.4), taken(gap_weight=0.4, sharpness_weight=0.5)
    np.testing.assert_allclose(half, (clean + gsam) / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("base", "name"), [
    (optax.sgd(0.3, momentum=0.6), "trace"), (optax.adam(0.1), "mu")])  # fmt: skip
def test_msam_is_one_pass_ahead_along_the_momentum(base, name, key, x64):
    """The recipe of docs/api/optim.md (arXiv 2401.12033): any optimiser that keeps a momentum."""
    params, batches = problem(key)

    @jax.jit
    def one(params, state, batch):
        momentum = optax.tree.get(state, name)
        e = perturbation.ascent(tree.scale(-1.0, momentum), params, rho=RHO)
        grads, _ = jax.grad(loss, has_aux=True)(perturbation.perturb(params, e), batch)
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, w = base.init(params), params
    for t in range(4):
        w, state = one(w, state, tree.index(batches, t))

    flat, undo = jax.flatten_util.ravel_pytree(params)
    v, theirs = jnp.zeros_like(flat), base.init(flat)
    for t in range(4):
        at = flat if not v.any() else flat - RHO * v / jnp.linalg.norm(v)
        g = jax.flatten_util.ravel_pytree(_gradient(undo(at), tree.index(batches, t))[0])[0]
        v = 0.6 * v + g if name == "trace" else 0.9 * v + 0.1 * g
        updates, theirs = base.update(g, theirs, flat)
        flat = flat + updates
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(w)[0], flat, rtol=1e-9)


def test_both_passes_draw_the_same_mask_and_may_see_other_batches(key, x64):
    """Dropout whose key `grad_fn` holds; clean gradients of other examples than the second pass."""
    params, batches = problem(key)
    first, second = (tree.index(batches, t) for t in (0, 1))

    def dropped(params, batch):
        keep = jax.random.bernoulli(jax.random.key(3), 0.5, batch["x"].shape)
        return loss(params, batch | {"x": batch["x"] * keep})

    grad_fn = jax.value_and_grad(dropped, has_aux=True)
    (value, _), grads = grad_fn(params, first)
    tx = sam(optax.sgd(1.0), rho=RHO)
    more = {"value": value, "grad_fn": grad_fn, "batch": second}
    updates, _ = jax.jit(tx.update, static_argnames="grad_fn")(
        grads, tx.init(params), params, **more
    )
    at = perturbation.perturb(params, ascent(grads, params, rho=RHO))
    for got, want in zip(
        jax.tree.leaves(updates), jax.tree.leaves(grad_fn(at, second)[1]), strict=True
    ):
        np.testing.assert_allclose(-got, want, rtol=1e-9)


def test_masks_keep_the_radius_of_what_is_perturbed(key):
    params, grads = (problem(k)[0] for k in jax.random.split(key))
    e = ascent(grads, params, rho=0.5, scaling=perturbation.only("norm/*"))
    assert not e["dense"]["kernel"].any() and not e["dense"]["bias"].any()
    np.testing.assert_allclose(np.linalg.norm(e["norm"]["scale"]), 0.5, rtol=1e-6)
    with pytest.raises(UserError, match="no leaf is named 'BatchNorm"):
        perturbation.only("BatchNorm*")(params)


@pytest.mark.parametrize("rule", [perturbation.filters(), perturbation.layers()])
def test_rescaled_layers_and_filters_have_rescaled_points(rule, key, x64):
    """With eta = 0: of a leaf c w the gradient is g / c, and so e is c times as large."""
    params, grads = (problem(k)[0] for k in jax.random.split(key))
    factor = {"dense": {"kernel": 3.0, "bias": 0.2}, "norm": {"scale": 1 / 7}}
    e = ascent(grads, params, rho=0.5, scaling=rule)
    other = ascent(
        jax.tree.map(lambda g, c: g / c, grads, factor),
        jax.tree.map(lambda w, c: w * c, params, factor),
        rho=0.5,
        scaling=rule,
    )
    for a, b, c in zip(*map(jax.tree.leaves, (e, other, factor)), strict=True):
        np.testing.assert_allclose(b, c * a, rtol=1e-12)


def test_zero_filters_have_derivatives():
    def length(w):
        return jnp.sum(perturbation.layers()({"w": w})["w"])

    np.testing.assert_array_equal(jax.grad(length)(jnp.zeros(3)), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "l1"}, "unknown norm .optim.sam. 'l1'"),
        ({"steps": 0}, "optim.sam: steps must be a whole number >= 1, got 0"),
        ({"every": 1.5}, "optim.sam: every must be a whole number >= 1, got 1.5"),
        ({"reuse": 0.5}, "with every=1 there are none; give every"),
        ({"reuse": -0.5, "every": 2}, "reuse must be a number >= 0, got -0.5"),
        ({"sharpness_weight": -1.0}, "sharpness_weight must be a number >= 0, got -1.0"),
        ({"gap_weight": float("nan")}, "gap_weight must be a number >= 0, got nan"),
        ({"ascent": lambda g, w: g}, "wrap a function .* as `optax.stateless"),
    ],
)
def test_what_sam_refuses(options, words):
    with pytest.raises(UserError, match=words):
        sam(optax.sgd(0.1), rho=0.1, **options)


def test_what_its_parts_refuse():
    for arguments, words in (((-1.0,), "sigma must be"), ((1.0, 1.0), r"decay must be .*\[0, 1\)")):
        with pytest.raises(UserError, match=words):
            friendly(*arguments)
    rate = optax.constant_schedule(0.1)
    for options in ({"rho_min": 0.3, "lr_max": 1.0}, {"lr_max": 0.1, "lr_min": 0.1}):
        with pytest.raises(UserError, match="optim.coupled_rho"):
            coupled_rho(rate, rho_max=0.2, **options)
    # A learning rate outside of [lr_min, lr_max] keeps the radius at the nearer end.
    for value, radius in ((0.0, 0.125), (0.25, 0.125), (0.5, 0.25), (0.75, 0.375), (1.0, 0.375)):
        rho = coupled_rho(
            lambda _, v=value: v, rho_max=0.375, rho_min=0.125, lr_max=0.75, lr_min=0.25
        )
        assert np.asarray(rho(0)) == radius  # all are exact in float32
    for rule in (perturbation.element, perturbation.filters, perturbation.layers):
        with pytest.raises(UserError, match="eta must be a number >= 0"):
            rule(-0.1)
        with pytest.raises(UserError, match="unknown policy for biases .*'half'"):
            rule(bias="half")
    with pytest.raises(UserError, match="unknown norm"):
        perturbation.ascent({}, {}, rho=0.1, norm="l1")
