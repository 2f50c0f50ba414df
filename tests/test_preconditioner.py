"""Preconditioners against optax's own steps, the edges of stability they decide, warm starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax.errors import UserError
from sharpjax.geometry import (
    hessian,
    preconditioned,
    preconditioner,
    top_eigenpairs,
    track,
)

PARAMS = {"w": np.ones((2, 3)), "b": np.ones(3)}
STEPS = 3


def after_steps(optimizer):
    """The state and the update after a few random gradients, and the last gradient."""
    rng = np.random.default_rng(0)
    state = optimizer.init(PARAMS)
    for _ in range(STEPS):
        g = jax.tree.map(lambda x: rng.normal(size=x.shape), PARAMS)
        update, state = optimizer.update(g, state, PARAMS)
    return state, update, g


def first_moment(state):
    """Adam's, corrected for its bias."""
    return jax.tree.map(lambda m: m / (1 - 0.9**STEPS), optax.tree.get(state, "mu"))


CASES = {
    "adam": (optax.scale_by_adam(b2=0.8, eps=0.1), {"b2": 0.8, "eps": 0.1}),
    "eps_root": (
        optax.scale_by_adam(b2=0.8, eps=0.1, eps_root=0.2),
        {"b2": 0.8, "eps": 0.1, "eps_root": 0.2},
    ),
    "adamw in a chain": (
        optax.chain(optax.clip(10.0), optax.adamw(-1.0, b2=0.8, eps=0.1, weight_decay=0.0)),
        {"b2": 0.8, "eps": 0.1},
    ),
    "scheduled": (
        optax.inject_hyperparams(optax.adam)(learning_rate=-1.0, b2=0.8, eps=0.1),
        {"b2": 0.8, "eps": 0.1},
    ),
    "amsgrad": (optax.scale_by_amsgrad(b2=0.8, eps=0.1), {"b2": 0.8, "eps": 0.1}),
    "adabelief": (optax.scale_by_belief(b2=0.8, eps=0.1), {"b2": 0.8, "eps": 0.1}),
    "yogi": (
        optax.scale_by_yogi(b2=0.8, eps=0.1, initial_accumulator_value=0.0),
        {"b2": 0.8, "eps": 0.1},
    ),
    "rmsprop": (optax.scale_by_rms(0.8, eps=0.1), {"b2": 0.8, "eps": 0.1}),
    "eps outside": (
        optax.scale_by_rms(0.8, eps=0.1, eps_in_sqrt=False),
        {"eps": 0.1, "eps_in_sqrt": False},
    ),
    "rmsprop with correction": (
        optax.scale_by_rms(0.8, eps=0.1, bias_correction=True),
        {"b2": 0.8, "eps": 0.1},
    ),
    "adagrad": (optax.scale_by_rss(0.0, eps=0.1), {"eps": 0.1}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_optax_divides_by(name, x64):
    optimizer, options = CASES[name]
    state, update, g = after_steps(optimizer)
    found = preconditioner(state, **options)
    above = g if "rms" in name or name in ("eps outside", "adagrad") else first_moment(state)
    for p, u, m in zip(*map(jax.tree.leaves, (found, update, above)), strict=True):
        np.testing.assert_allclose(p, m / u, rtol=1e-10)


def test_where_nothing_moves_the_operator_is_zero(x64):
    optimizer = optax.scale_by_rss(0.0, eps=0.1)
    _, state = optimizer.update(jnp.array([1.0, 0.0]), optimizer.init(jnp.ones(2)))
    operator = hessian(lambda w, _: jnp.sum(w**2) / 2, jnp.ones(2), None)
    product = preconditioned(operator, preconditioner(state, eps=0.1)).linearize()
    np.testing.assert_allclose(product(jnp.ones(2)), [1 / np.sqrt(1.1), 0])


# What an optimiser does at the edge that its preconditioner says.

SIZE, COUNT = 6, 10**9


def frozen(state, p, b2):
    """Second moments that stay: many steps old, and with a `b2` that forgets nothing."""

    def leaf(node):
        if isinstance(node, optax.ScaleByAdamState):
            share = -np.expm1(COUNT * np.log(b2))
            return node._replace(count=jnp.int32(COUNT), nu=jnp.asarray(p**2 * share))
        return node._replace(nu=jnp.asarray(p**2)) if isinstance(node, STATES) else node

    return jax.tree.map(leaf, state, is_leaf=lambda node: isinstance(node, STATES))


STATES = (optax.ScaleByAdamState, optax.ScaleByRmsState)
LR, B1, DECAY, B2 = 0.1, 0.9, 2.0, 1 - 1e-12
EDGES = {
    "adam": (optax.adam(LR, b1=B1, b2=B2, eps=0.0), (2 + 2 * B1) / ((1 - B1) * LR)),
    "adamw": (
        optax.adamw(LR, b1=B1, b2=B2, eps=0.0, weight_decay=DECAY),
        (1 + B1) / (1 - B1) * (2 / LR - DECAY),
    ),
    "rmsprop": (optax.rmsprop(LR, decay=B2, eps=0.0), 2 / LR),
}


@pytest.mark.parametrize("name", EDGES)
def test_the_edge_of_stability(name, key, x64):
    optimizer, edge = EDGES[name]
    rng = np.random.default_rng(0)
    A, p = rng.normal(size=(SIZE, SIZE)), np.exp(rng.normal(size=SIZE))
    state = frozen(optimizer.init(jnp.zeros(SIZE)), p, B2)
    P = preconditioner(state, b2=B2, eps=0.0)
    np.testing.assert_allclose(P, p, rtol=1e-6)  # `1 - b2^count` of a b2 so near to 1

    def loss(w, H):
        return jnp.dot(w, jnp.dot(H[0], w)) / 2

    def sharpness(H):
        operator = preconditioned(hessian(loss, jnp.zeros(SIZE), H[None]), P)
        return top_eigenpairs(operator, key=key, tol=1e-9).values[0]

    @jax.jit
    def train(H):
        def step(carry, _):
            w, state = carry
            update, state = optimizer.update(H @ w, state, w)
            return (w + update, state), jnp.max(jnp.abs(w))

        start = (1e-200 * jnp.ones(SIZE), state)  # whose square is 0
        return jax.lax.scan(step, start, length=400)[1]

    plain = A @ A.T
    for share in (0.99, 1.01):
        H = jnp.asarray(plain * (share * edge / sharpness(jnp.asarray(plain))))
        np.testing.assert_allclose(sharpness(H), share * edge, rtol=1e-6)
        lengths = train(H)
        assert (lengths[-1] > 10 * lengths[0]) if share > 1 else (lengths[-1] < lengths[0])
    if name == "adamw":
        assert edge == pytest.approx(342)  # and not 378


# Starts from one preconditioner to the next.


def moving(steps):
    """A Hessian that stays, and second moments that drift by a tenth or so at each step."""
    rng = np.random.default_rng(1)
    n = 80
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    H = (Q * np.concatenate([[40.0, 30.0], np.linspace(10, 0, n - 2)])) @ Q.T
    log_p, speed = rng.normal(size=n) / 2, rng.normal(size=n) * 0.15
    return jnp.asarray(H), [jnp.asarray(np.exp(log_p + t * speed)) for t in range(steps)]


def test_a_start_saves_products(key, x64):
    H, path = moving(8)
    operator = hessian(lambda w, H: jnp.dot(w, jnp.dot(H[0], w)) / 2, jnp.zeros(80), H[None])
    truths = [np.linalg.eigvals(np.asarray(H) / np.asarray(p)[:, None]).real.max() for p in path]
    find = functools.partial(top_eigenpairs, key=key)
    counts, last = {"cold": 0, "started": 0}, find(preconditioned(operator, path[0]))
    for new, truth in zip(path[1:], truths[1:], strict=True):
        at = preconditioned(operator, new)
        found = {"cold": find(at), "started": find(at, start=last)}
        for name, pairs in found.items():
            counts[name] += int(pairs.num_products)
            assert bool(pairs.converged[0])
            np.testing.assert_allclose(pairs.values[0], truth, rtol=1e-3)
        last = found["started"]
    assert counts["started"] < counts["cold"]


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        (optax.sgd(0.1), {}, "and holds none. .*plain SGD"),
        (
            optax.chain(optax.scale_by_adam(), optax.scale_by_rms()),
            {"b2": 0.9},
            "several: ScaleByAdamState and ScaleByRmsState",
        ),
        (optax.adam(0.1), {}, "b2 is not in the state; give b2="),
        (optax.adam(0.1), {"b2": 0.9}, "count=0; .*before the first step"),
        (optax.adam(0.1), {"b2": 0.9, "eps_in_sqrt": True}, "ScaleByAdamState has no eps_in_sqrt"),
        (optax.rmsprop(0.1), {"eps_root": 0.1}, "ScaleByRmsState has no eps_root"),
        (optax.adam(0.1), {"b2": 1.0}, "b2 must be below 1, got 1.0"),
        (optax.adam(0.1), {"b2": -0.9}, "b2 must be one finite number >= 0, got -0.9"),
        (optax.adam(0.1), {"b2": 0.9, "eps": -1.0}, "eps must be one finite number >= 0, got -1.0"),
        (optax.adam(0.1), {"b2": 0.9, "eps_root": "small"}, "eps_root must be one finite number"),
    ],
)
def test_states_that_are_refused(optimizer, options, message):
    with pytest.raises(UserError, match=f"^preconditioner: .*{message}"):
        preconditioner(optimizer.init(PARAMS), **({"eps": 1e-8} | options))


def test_a_set_of_track_that_is_empty_is_carried_over(key):
    operator = hessian(lambda w, _: jnp.sum(jnp.arange(1.0, 9.0) * w**2), jnp.ones(8), None)
    old, new = jnp.full(8, 2.0), jnp.full(8, 0.5)
    none = track(preconditioned(operator, old), threshold=20.0, key=key)
    assert none.values.shape == (0,)
    found = track(preconditioned(operator, new), none, threshold=20.0, key=key)
    np.testing.assert_allclose(found.values, [32.0, 28.0, 24.0], rtol=1e-3)
