"""Eigenvalues that move are followed, and what cannot be followed is said."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Eigenpairs, Operator, Status, hessian, top_eigenpairs
from sharpjax.geometry.eigenpairs import search, warm_start
from sharpjax.geometry.eigenpairs.convergence import SearchStep
from sharpjax.geometry.lanczos import krylov
from sharpjax.geometry.operators import algebra
from tests.problems import Diagonal

KEYS = 32
N = 200


def _multiply(matrix, vector):
    return jnp.matmul(matrix, vector, precision="highest")


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Operator):
    matrix: Any

    @property
    def like(self):
        return self.matrix[0]

    def linearize(self):
        return Partial(_multiply, self.matrix)


def anew(operator, key, k=1, which: Any = "LA", tol=1e-3, most=60):
    """A search from nothing: what it carries on, and what it found."""
    state = krylov.start(key, operator.like, krylov.num_rows(most))
    step = SearchStep(k, which, 2)
    found = search.solve(*(step, algebra.linearize(operator), state), tol=tol, max_products=most)
    return warm_start.carry(step, found.state), search.finish(step, False, found)


def follow(operator, start, key, k=1, which: Any = "LA", tol=1e-3, vector_tol=np.inf):
    found, again = warm_start.follow(
        *(algebra.linearize(operator), start),
        key=key,
        like=operator.like,
        k=k,
        which=which,
        tol=tol,
        vector_tol=vector_tol,
        max_products=100,
    )
    return found, found.carried, again


all_anew = jax.jit(jax.vmap(lambda m, key: anew(Dense(m), key), (None, 0)))
all_follow = jax.jit(jax.vmap(lambda m, start, key: follow(Dense(m), start, key), (None, 0, 0)))


def keys(seed, count=KEYS):
    return jax.random.split(jax.random.key(seed), count)


def bulk(n, seed=0):
    return np.random.default_rng(seed).uniform(-0.3, 0.5, n)


@functools.cache
def rotation(seed, n=N):
    """A generator of rotations of unit size, and a basis."""
    rng = np.random.default_rng(seed)
    skew = rng.normal(size=(n, n))
    values, vectors = np.linalg.eigh(1j * (skew - skew.T))
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return values / np.abs(values).max(), vectors, basis


def matrix(values, turned=0.0, seed=0):
    """Eigenvalues in a basis turned by up to so many radians."""
    angles, vectors, basis = rotation(seed)
    turn = ((vectors * np.exp(1j * turned * angles)) @ vectors.conj().T).real
    basis = turn @ basis
    return jnp.asarray((basis * values) @ basis.T, jnp.float32)


def wrong(found, again, values):
    """In how many lanes a value is certified, taken, and is not the largest."""
    off = np.abs(found.values[:, 0] - np.max(values)) > 1e-3 * np.max(values)
    return int((found.converged[:, 0] & ~again & off).sum())


def track(path, reset=True):
    """All lanes along a path of (values, matrix): counts of products, and what went wrong."""
    start, cold = all_anew(path[0][1], keys(0))
    warm, searched, bad, repeated = [], [np.mean(cold.num_products)], 0, 0
    for i, (values, m) in enumerate(path[1:]):
        found, following, again = all_follow(m, start, keys(2 * i + 1))
        fresh, cold = all_anew(m, keys(2 * i + 2))
        bad += wrong(jax.device_get(found), np.asarray(again), values)
        repeated += int(again.sum())
        warm.append(np.mean(found.num_products))
        searched.append(np.mean(cold.num_products))
        start = jax.vmap(lambda a, x, y: jax.tree.map(lambda p, q: jnp.where(a, p, q), x, y))(
            again, fresh, following
        )
    return np.array(warm), np.array(searched), bad, repeated


def test_a_slow_drift_takes_far_fewer_products():
    path = []
    for t in range(12):
        values = np.r_[3 + 0.05 * t, 2.4 - 0.02 * t, 2.0, 1.4, bulk(N - 4)]
        path.append((values, matrix(values, 0.01 * t)))
    warm, cold, bad, repeated = track(path)
    assert bad == repeated == 0
    assert cold.mean() / warm.mean() > 2


@pytest.mark.parametrize(
    "rates, turn, places",
    [
        ((-0.11, 0.05, 0.12), 0.02, [0, 1, 2, 2]),
        ((0.0, 0.0, 0.15), 0.02, [0, 0, 2, 2]),
        ((-0.02, 0.01, 0.06), 0.01, [0, 0, 0, 0]),
        ((-0.2, 0.0, 0.2), 0.03, [0, 2, 2, 2]),
    ],
)
def test_values_that_cross_are_followed(rates, turn, places):
    """The second overtakes the first, and the third the second: the largest is the one found."""
    path = []
    for t in range(14):
        values = np.r_[np.array([3, 2.4, 1.9]) + t * np.array(rates), 1.2, bulk(N - 4)]
        path.append((values, matrix(values, turn * t)))
    assert [int(np.argmax(values)) for values, _ in path[::4]] == places
    warm, cold, bad, repeated = track(path)
    assert bad == 0 and repeated < 0.1 * KEYS * len(warm)
    assert cold.mean() / warm.mean() > 1.5


@pytest.mark.parametrize("kind", ["jump", "random", "second", "stale"])
def test_a_bad_start_certifies_nothing_wrong(kind):
    values = np.r_[3.0, 2.5, 2.0, 1.5, bulk(N - 4)]
    m = matrix(values)
    start, _ = all_anew(m, keys(0))
    if kind == "jump":  # everything has turned by some 20 degrees, and grown
        values = 1.5 * values
        m = matrix(values, 0.3)
    elif kind == "random":
        vectors = jax.random.normal(jax.random.key(5), start.vectors.shape) / N**0.5
        start = start._replace(vectors=vectors)
    elif kind == "second":  # the first and the second vector have changed places
        start = start._replace(vectors=start.vectors[:, np.array([1, 0, 2])])
    else:
        m = matrix(values, 0.0, seed=1)
    found, _, again = jax.device_get(all_follow(m, start, keys(1)))
    assert wrong(found, again, values) == 0


def test_what_cannot_be_used_is_not():
    """Not finite, or zero: no product is taken, and a search from nothing is asked for."""
    m = matrix(np.r_[3.0, 2.5, 2.0, 1.5, bulk(N - 4)])
    start, _ = all_anew(m, keys(0))
    bad = jnp.stack([jnp.full((3, N), jnp.nan), jnp.zeros((3, N))])[jnp.arange(KEYS) % 2]
    for given in (start._replace(vectors=bad), start._replace(values=start.values * jnp.nan)):
        found, _, again = all_follow(m, given, keys(1))
        assert again.all() and (found.num_products == 0).all()
    # The second of the lanes alone.
    given = start._replace(vectors=start.vectors.at[1].set(jnp.inf))
    _, _, again = all_follow(m, given, keys(1))
    assert again[1] and not again[2:].any() and not again[0]


def test_every_so_many_are_searched_from_nothing():
    m = matrix(np.r_[3.0, 2.5, 2.0, 1.5, bulk(N - 4)])
    start, _ = all_anew(m, keys(0))
    assert (start.age == 0).all()
    found, following, again = all_follow(m, start._replace(age=start.age + 18), keys(1))
    assert not again.any() and (following.age == 19).all()
    assert (found.num_products <= 4).all() and (found.status == Status.OK).all()
    found, _, again = all_follow(m, following, keys(2))
    assert again.all() and (found.num_products == 0).all()


def test_a_result_that_lost_the_largest_is_corrected_by_then():
    """What a few products from a start that lacks it cannot show."""
    values = np.r_[2.5, 2.0, 1.5, 1.2, bulk(N - 4)]
    start, _ = all_anew(matrix(values), keys(0))
    values = np.r_[2.5, 2.0, 1.5, 1.2, 3.0, bulk(N - 4)[1:]]
    m = matrix(values)
    for i in range(warm_start.PERIOD):
        found, start, again = all_follow(m, start, keys(i))
        if i == 0:
            assert wrong(jax.device_get(found), np.asarray(again), values) > 0
    assert again.all()
    _, fresh = all_anew(m, keys(1))
    np.testing.assert_allclose(fresh.values[:, 0], 3, rtol=1e-3)


@pytest.mark.parametrize("which", [pytest.param("SA", marks=pytest.mark.slow), "LM", "BE"])
def test_every_end(x64, strict, which):
    """Outside of a trace, on a tree; the values asked for come nearer to the others."""

    def values(t):
        ends = [3 - 0.1 * t, 2.2, 1.8, 1.3, -3.2 + 0.1 * t, -2.1, -1.7, -1.2]
        return np.r_[ends, bulk(N - 8)]

    def operator(t):
        v = jnp.asarray(values(t))
        return Diagonal({"a": v[:50].reshape(5, 10), "b": (v[50:], None)})

    right = {
        "SA": lambda v: np.sort(v)[:2],
        "LM": lambda v: v[np.argsort(-np.abs(v))][:2],
        "BE": lambda v: np.array([v.max(), v.min()]),
    }[which]
    start, cold = anew(operator(0), jax.random.key(0), 2, which)
    assert start.values.shape == (4 + 2 * (which == "BE"),)
    for t in range(1, 5):
        found, start, again = follow(operator(t), start, jax.random.key(t), 2, which)
        assert not again and int(found.num_products) < 0.7 * int(cold.num_products)
        np.testing.assert_allclose(found.values, right(values(t)), rtol=1e-3)
        assert found.converged.all() and (found.value_errors <= found.residuals).all()
        y = np.concatenate([np.reshape(x, (2, -1)) for x in jax.tree.leaves(found.vectors)], 1)
        true = np.linalg.norm(y * values(t) - y * np.expand_dims(found.values, 1), axis=1)
        assert (true <= found.residuals + 1e-10).all()


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_spaces_with_no_room_for_guards(x64, strict, n):
    values = jnp.asarray([4.0, 3, 2, 1][:n])
    start, _ = anew(Diagonal(values), jax.random.key(0), most=n)
    for seed in range(2):
        found, start, again = follow(Diagonal(values + seed), start, jax.random.key(seed))
        assert not again and found.status == Status.OK and found.num_products <= n
        np.testing.assert_allclose(found.values, 4 + seed, rtol=1e-3)


@pytest.mark.parametrize("which", ["LA", "BE"])
def test_pairs_of_another_operator_are_a_start(x64, which):
    """As from a sample of the data: values are off by a tenth, and it is told what it needs."""
    values = np.r_[3.0, 2.4, 1.8, 1.3, -3.2, -2.1, -1.7, -1.2, bulk(N - 8)]
    count = {"LA": 3, "BE": 6}[which]
    k = {"LA": 1, "BE": 2}[which]
    rough = top_eigenpairs(
        Diagonal(jnp.asarray(values * 1.1)), key=keys(0)[0], k=count, which=which
    )
    start = warm_start.check("top_eigenpairs", rough, jnp.asarray(values), k, which)
    found, _, again = follow(Diagonal(jnp.asarray(values)), start, keys(1)[0], k, which)
    assert not again and found.num_products <= {"LA": 7, "BE": 9}[which]
    np.testing.assert_allclose(found.values, {"LA": [3], "BE": [3, -3.2]}[which], rtol=1e-3)
    with pytest.raises(UserError, match=f"or the {count + 1} pairs of `subsample_start`"):
        warm_start.check("top_eigenpairs", rough, jnp.asarray(values), k + 1, which)


@pytest.mark.slow
def test_vectors_are_as_good_as_asked(x64):
    values = np.r_[3.0, 2.5, 2.0, 1.5, bulk(N - 4)]
    start, _ = anew(Diagonal(jnp.asarray(values)), jax.random.key(0))
    values[:3] += np.array([0.0, 0.1, 0.2])
    operator = Diagonal(jnp.asarray(values))
    loose, _, _ = follow(operator, start, jax.random.key(1))
    close, _, _ = follow(operator, start, jax.random.key(1), vector_tol=1e-4)
    assert close.converged.all() and close.num_products > loose.num_products
    for found in (loose, close):
        sine = np.sqrt(max(0.0, 1 - float(found.vectors[0, 0]) ** 2))
        assert sine <= found.vector_errors[0] + 1e-7
    assert close.vector_errors[0] <= 1e-4


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s._replace(vectors=None), "start= carries no vectors; find it with vectors=T"),
        (lambda s: s.vectors, "start= must be an earlier result of top_eigenpairs.*got Array"),
        (lambda s: jax.tree.map(lambda x: x[None], s), r"values of shape \(1, 1\); for k=1 and"),
        (lambda s: s._replace(carried=carrying(2)), "give a result for the same k and which"),
        (lambda s: s._replace(carried=carrying(3, size=5)), r"float32\[5\] where params has float"),
        (
            lambda s: s._replace(carried=carrying(3)._replace(vectors={"w": jnp.ones((3, 6))})),
            "each vector of start= must have the tree",
        ),
    ],
)
def test_a_start_that_does_not_fit(change, message):
    one = jnp.ones(1)
    start = Eigenpairs(
        *(one, jnp.ones((1, 6)), one, one, one, one),
        num_products=jnp.int32(3),
        status=jnp.int32(0),
        carried=carrying(3),
    )
    assert warm_start.check("top_eigenpairs", start, jnp.ones(6), 1, "LA") is start.carried
    with pytest.raises(UserError, match=message):
        warm_start.check("top_eigenpairs", change(start), jnp.ones(6), 1, "LA")


def carrying(count, size=6):
    return warm_start.Start(jnp.ones((count, size)), jnp.ones(count), jnp.ones(()), jnp.int32(0))


# Along training.


def net_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["shift"])
    logits = hidden @ params["out"]
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * batch["y"], axis=1))


@jax.jit
def train(params, batch, key):
    def step(params, key):
        take = jax.random.randint(key, (32,), 0, batch["x"].shape[0])
        gradient = jax.grad(net_loss)(params, tree.index(batch, take))
        return tree.add_scaled(params, -0.1, gradient), None

    return jax.lax.scan(step, params, jax.random.split(key, 5))[0]


def test_along_training():
    """The sharpness of a small net on digits, every 5 steps of SGD."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    batch = {"x": jnp.asarray(images[:256] / 16, jnp.float32)}
    batch["y"] = jnp.asarray(np.eye(10)[labels[:256]], jnp.float32)
    one, two = jax.random.split(jax.random.key(0))
    params = {
        "in": jax.random.normal(one, (64, 12)) / 8,
        "shift": jnp.zeros((1, 12)),
        "out": jax.random.normal(two, (12, 10)) / 4,
    }
    start, warm, cold = None, [], []
    for i, key in enumerate(keys(3, 20)):
        params = train(params, batch, key)
        operator = hessian(net_loss, params, batch)
        carried, fresh = anew(operator, key)
        cold.append(int(fresh.num_products))
        if start is None:
            start = carried
            continue
        found, start, again = follow(operator, start, key)
        assert not again or i == warm_start.PERIOD
        np.testing.assert_allclose(found.values[0], fresh.values[0], rtol=1e-3)
        warm.append(int(found.num_products))
    assert np.mean(cold) > 1.5 * np.mean(warm)
