"""Masks: exact counts, ties, structures, shares of layers, what is refused; closed forms."""

import math
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from sharpjax import geometry, nn, tree
from sharpjax.compress import prune
from sharpjax.errors import UserError
from sharpjax.losses import Classification, Objective
from tests import nets

FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.77, 0.9, 0.999999)
METHODS: Any = ("magnitude", "saliency", "random")


def draw(seed=0, **shapes):
    shapes = shapes or {"dense": (6, 4), "conv": (3, 3, 2, 4), "bias": (4,), "scale": ()}
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


def flat(mask, names=None):
    return np.concatenate([np.ravel(mask[n]) for n in names or sorted(mask)])


def inputs(method, params, seed=1):
    grads = draw(seed, **{n: x.shape for n, x in params.items()})
    return {"method": method, "key": jax.random.key(seed), "grads": grads}


# Counts.


@pytest.mark.parametrize("n", [1, 2, 5, 7, 10, 1000])
def test_the_count_rule(n):
    for amount in FRACTIONS:
        exact = amount * n
        count = prune.num_pruned(amount, n)
        assert count == n - 1 or abs(count - exact) <= 0.5
        if abs(exact % 1 - 0.5) < 1e-12 and count < n - 1:
            assert count % 2 == 0
    assert prune.num_pruned(0.0, n) == 0 and prune.num_pruned(0.999999, n) == n - 1
    assert [prune.num_pruned(0.5, k) for k in (1, 3, 5, 7)] == [0, 2, 2, 4]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["kernels", "trainable"])
def test_exactly_so_many_are_pruned(method, scope):
    params = draw()
    names = ("conv", "dense") if scope == "kernels" else sorted(params)
    sizes = {name: params[name].size for name in names}
    for amount in FRACTIONS:
        options = {"scope": scope, **inputs(method, params)}
        whole = prune.mask(params, amount, **options)
        each = prune.mask(params, prune.uniform(params, amount, scope), **options)
        for found in (whole, each):
            assert jax.tree.map(lambda m: (m.shape, m.dtype), found) == jax.tree.map(
                lambda w: (w.shape, np.dtype(bool)), params
            )
            assert all(np.all(found[n]) for n in params if n not in names)
        total = prune.sparsity(whole).total
        assert total.pruned == prune.num_pruned(amount, sum(sizes.values()))
        assert total.size == tree.size(params)
        for name, size in sizes.items():
            counted = prune.sparsity(each).by_leaf[name]
            assert counted == (size - prune.num_pruned(amount, size),
                               prune.num_pruned(amount, size))  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_nested(method):
    params = draw()
    options = {"scope": "trainable", **inputs(method, params)}
    found = [flat(prune.mask(params, amount, **options)) for amount in FRACTIONS]
    for more, fewer in zip(found, found[1:], strict=False):
        assert np.all(more >= fewer)


def test_equal_scores_go_by_index():
    """A hand-made table of two rows; then two arrays, in the order of the leaves."""
    w = {"w": jnp.array([[1.0, -1.0, 2.0, 1.0], [-2.0, 1.0, 1.0, 3.0]])}
    expected = {
        0.0: [[1, 1, 1, 1], [1, 1, 1, 1]],
        0.25: [[0, 0, 1, 1], [1, 1, 1, 1]],
        0.375: [[0, 0, 1, 0], [1, 1, 1, 1]],
        0.5: [[0, 0, 1, 0], [1, 0, 1, 1]],
        0.75: [[0, 0, 0, 0], [1, 0, 0, 1]],
        0.9: [[0, 0, 0, 0], [0, 0, 0, 1]],
    }
    for amount, table in expected.items():
        np.testing.assert_array_equal(prune.mask(w, amount)["w"], np.array(table, bool))
    same = {"b": jnp.ones((1, 2)), "a": jnp.ones((1, 2))}
    found = prune.mask(same, 0.5)
    assert not np.any(found["a"]) and np.all(found["b"])
    # Signed zeros are one score.
    zeros = {"w": jnp.array([[0.0, -0.0]])}
    assert prune.mask(zeros, 0.5)["w"].tolist() == [[False, True]]


def test_magnitude_is_that_of_a_sorted_list():
    params = draw()
    found = prune.mask(params, 0.6, scope="trainable")
    sizes, kept = np.abs(flat(params)), flat(found)
    assert sizes[~kept].max() < sizes[kept].min()
    # No array is normalised: one that is a thousandth of the others goes first.
    small = dict(params, conv=params["conv"] / 1000)
    found = prune.mask(small, params["conv"].size / (24 + 72))
    assert not np.any(found["conv"]) and np.all(found["dense"])


def test_saliency_is_of_the_product():
    params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    grads = {"w": jnp.array([[8.0, -3.0, 1.0, 0.5]])}  # products 8, 6, 3, 2
    found = prune.mask(params, 0.5, method="saliency", grads=grads)
    assert found["w"].tolist() == [[True, True, False, False]]
    # Products below the smallest float32 are told apart.
    tiny = {"w": jnp.array([[2e-30, 1e-30]])}
    found = prune.mask(tiny, 0.5, method="saliency", grads={"w": jnp.array([[1e-30, 1e-30]])})
    assert found["w"].tolist() == [[True, False]]


def test_random_masks_are_of_the_key_and_fair():
    params = draw(w=(40, 50))
    keys = jax.random.split(jax.random.key(3), 20)
    found = [np.asarray(prune.mask(params, 0.3, method="random", key=k)["w"]) for k in keys]
    again = prune.mask(params, 0.3, method="random", key=keys[0])["w"]
    np.testing.assert_array_equal(found[0], again)
    # Both halves of the array: hypergeometric, deviation < sqrt(2000 .3 .7 / 4) = 10.3; 6 sigma.
    for one in found:
        assert abs(np.count_nonzero(~one[:20]) - 300) < 62
    assert not np.array_equal(found[0], found[1])
    legacy = prune.mask(params, 0.3, method="random", key=jax.random.PRNGKey(7))["w"]
    typed = prune.mask(params, 0.3, method="random", key=jax.random.key(7))["w"]
    np.testing.assert_array_equal(legacy, typed)


@pytest.mark.parametrize("method", ["magnitude", "saliency"])
def test_masks_follow_a_permutation(method):
    params, rng = draw(w=(8, 9)), np.random.default_rng(2)
    rows, columns = rng.permutation(8), rng.permutation(9)

    def move(one):
        return {"w": one["w"][rows][:, columns]}

    options: Any = inputs(method, params)
    moved: Any = options | {"grads": move(options["grads"])}
    expected = move(prune.mask(params, 0.4, **options))
    np.testing.assert_array_equal(prune.mask(move(params), 0.4, **moved)["w"], expected["w"])


def test_global_of_one_array_is_layerwise():
    params = draw(w=(7, 5))
    each = prune.mask(params, prune.uniform(params, 0.4))
    np.testing.assert_array_equal(prune.mask(params, 0.4)["w"], each["w"])
    np.testing.assert_array_equal(prune.mask(params["w"], 0.4), each["w"])


def test_narrow_and_wide_types(x64):
    rng = np.random.default_rng(0)
    wide = {"w": jnp.asarray(1 + 1e-12 * rng.permutation(100).reshape(10, 10))}
    assert wide["w"].dtype == np.float64
    kept = np.asarray(prune.mask(wide, 0.5)["w"])  # told apart in float64 alone
    assert np.asarray(wide["w"])[~kept].max() < np.asarray(wide["w"])[kept].min()
    narrow = {"w": jnp.asarray(rng.normal(size=(10, 10)), jnp.bfloat16)}
    same = {"w": narrow["w"].astype(jnp.float32)}
    np.testing.assert_array_equal(prune.mask(narrow, 0.5)["w"], prune.mask(same, 0.5)["w"])


def test_arrays_without_numbers():
    params = {"w": jnp.ones((2, 2)), "none": jnp.ones((0, 3))}
    for structure in (prune.Elements(), prune.Channels(order=math.inf)):
        found = prune.mask(params, 0.5, structure=structure)
        assert found["none"].shape == (0, 3) and prune.sparsity(found).total == (2, 2)
    each = prune.mask(params, prune.erk(params, 0.5))
    assert prune.sparsity(each).total == (2, 2)


# Structures.


def test_channels_are_ranked_by_their_norm():
    """L1, L2 and maximum norm prune another column each."""
    w = jnp.array([[1.0, 0.0, 1.7], [1.0, 2.5, 0.0], [1.0, 0.0, 1.7]])
    gone = {1: 1, 2: 0, math.inf: 0}  # L1 3, 2.5, 3.4; L2 1.73, 2.5, 2.40; max 1, 2.5, 1.7
    for order, column in gone.items():
        found = prune.mask({"w": w}, 0.34, structure=prune.Channels(order=order))["w"]
        np.testing.assert_array_equal(~np.asarray(found), np.tile(np.arange(3) == column, (3, 1)))
    rows = prune.mask({"w": w.T}, 0.34, structure=prune.Channels(axis=0, order=1))["w"]
    assert np.flatnonzero(~np.asarray(rows).any(1)).tolist() == [1]


@pytest.mark.parametrize("method", METHODS)
def test_whole_channels_are_pruned(method):
    params = draw(conv=(3, 3, 2, 10), dense=(5, 4))
    structure = prune.Channels()
    for amount in (0.0, 0.3, 0.5, 0.99):
        shares = prune.uniform(params, amount)
        found = prune.mask(params, shares, structure=structure, **inputs(method, params))
        for name, n in (("conv", 10), ("dense", 4)):
            rows = np.asarray(found[name]).reshape(-1, n)
            assert np.all(rows == rows[0])
            assert np.count_nonzero(~rows[0]) == prune.num_pruned(amount, n)


def test_biases_follow_their_channels():
    params = {"a": draw(kernel=(3, 4), bias=(4,)), "b": draw(kernel=(4, 2), scale=(4,))}
    shares = prune.uniform(params, 0.5)
    for biases in (False, True):
        found = prune.mask(params, shares, structure=prune.Channels(biases=biases))
        columns = np.asarray(found["a"]["kernel"])[0]
        np.testing.assert_array_equal(found["a"]["bias"], columns if biases else np.ones(4, bool))
        assert np.all(found["b"]["scale"])  # of another size than the outputs
    # A neuron that lost both gives act(0), whatever its input.
    silent = prune.apply_mask(params, found)["a"]
    out = np.tanh(np.ones((5, 3)) @ silent["kernel"] + silent["bias"])
    assert np.all((out == 0) == ~columns)


@pytest.mark.parametrize("method", METHODS)
def test_biases_that_follow_are_no_units(method):
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]] * 2), "bias": jnp.zeros(4)}
    options: Any = {"structure": prune.Channels(biases=True), **inputs(method, params)}
    expected = prune.mask(params, 0.5, **options)
    assert prune.sparsity(expected).by_leaf == {"bias": (2, 2), "kernel": (4, 4)}
    if method == "magnitude":
        assert expected["bias"].tolist() == [False, False, True, True]
    for amount in (0.5, prune.uniform(params, 0.5, "trainable")):
        found = prune.mask(params, amount, scope="trainable", **options)
        assert tree.digest(found) == tree.digest(expected)
    # A bias of another size than the outputs is ranked with them.
    other = dict(params, bias=jnp.zeros(3))
    found = prune.mask(other, 3 / 7, scope="trainable", structure=prune.Channels(biases=True))
    assert prune.sparsity(found).by_leaf == {"bias": (0, 3), "kernel": (8, 0)}


def test_channels_of_a_large_order():
    """The norm is between the largest score and n^(1/order) times it: order 100, n 2, 1.007."""
    columns = {"w": jnp.array([[3e-4, 1e-4, 2e-4]] * 2)}
    for order in (1, 2, 100, 1e6, math.inf):
        for scale in (1e-30, 1.0, 1e30):
            scaled = jax.tree.map(lambda w, s=scale: s * w, columns)
            found = prune.mask(scaled, 0.34, structure=prune.Channels(order=order))["w"]
            assert found.tolist() == [[True, False, True]] * 2
    assert prune.Channels(order=100).pool(np.zeros((2, 3))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_blocks(pool):
    w = np.full((4, 6), 0.5, np.float32)
    w[:2, :3], w[2:, 3:] = 0.3, 0.4
    w[0, 0] = 2.0  # mean of its block .583, max 2
    found = np.asarray(
        prune.mask({"w": jnp.asarray(w)}, 0.25, structure=prune.Blocks(2, 3, pool))["w"]
    )
    assert np.count_nonzero(~found) == 6 and not found[2:, 3:].any()
    found = prune.mask({"w": jnp.asarray(w)}, 0.75, structure=prune.Blocks(2, 3, pool))["w"]
    assert np.all(found[:2, :3]) and prune.sparsity({"w": found}).total == (6, 18)


@pytest.mark.parametrize("method", METHODS)
def test_n_of_m_keeps_n_in_every_group(method):
    params = draw(conv=(3, 3, 8, 4), dense=(12, 5), bias=(5,))
    for n, m, axis in ((2, 4, -2), (1, 4, -2), (4, 4, -2), (2, 3, 0)):
        scope = {"conv": True, "dense": True, "bias": False}
        found = prune.n_of_m(params, n, m, axis=axis, scope=scope, **inputs(method, params))
        assert np.all(found["bias"])
        for name in ("conv", "dense"):
            groups = np.moveaxis(np.asarray(found[name]), axis, -1).reshape(-1, m)
            assert np.all(groups.sum(1) == n)


def test_n_of_m_by_hand():
    w = {"w": jnp.array([[1.0, -4.0, 2.0, 2.0], [0.0, 0.0, -1.0, 0.0]])}
    found = prune.n_of_m(w, 2, 4, axis=-1)["w"]
    assert found.tolist() == [[False, True, False, True], [False, False, True, True]]


# Shares of layers.


SHAPES = {"a": (2, 4), "b": (3, 6), "c": (2, 4, 6)}


@pytest.mark.parametrize(
    ("amount", "options", "expected"),
    [
        (0.5, {}, (0.0, 0.31, 0.655)),
        (0.8, {}, (0.556, 0.70, 0.85)),
        (0.5, {"kernel": False}, (0.21, 0.47, 0.56)),
        (0.5, {"power": 2}, (0.0, 0.033, 0.758)),
    ],
)
def test_erk_gives_the_published_shares(amount, options, expected):
    """The facts of jaxpruner's tests, which state two places."""
    found = prune.erk(draw(**SHAPES), amount, **options)
    np.testing.assert_allclose([found[n] for n in "abc"], expected, atol=0.006)


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.8, 0.97])
def test_erk_keeps_as_many_as_the_arrays_would(amount):
    params = draw(**SHAPES, large=(3, 3, 32, 64), bias=(6,))
    found = prune.erk(params, amount)
    sizes = {n: x.size for n, x in params.items() if x.ndim > 1}
    kept = sum(size * (1 - found[n]) for n, size in sizes.items())
    assert kept == pytest.approx(sum(n - math.floor(amount * n) for n in sizes.values()))
    assert found["bias"] == 0 and all(0 <= share < 1 for share in found.values())
    mask = prune.mask(params, found)
    for name, size in sizes.items():
        counted = prune.sparsity(mask).by_leaf[name].pruned
        assert counted == prune.num_pruned(found[name], size)
    # Power 0: the same density everywhere.
    even = prune.erk(params, amount, power=0)
    assert len({round(even[n], 12) for n in sizes}) == 1


@pytest.mark.parametrize("dtype", [float, np.float32])
def test_an_amount_of_erk_is_the_decimal_number_it_is_written_as(dtype):
    params = draw(w=(10, 10))
    assert 0.29 * 100 < 29
    for amount, pruned in ((0.29, 29), (0.57, 57), (0.07, 7)):
        share = prune.erk(params, dtype(amount))["w"]
        # 1 - (1 - share) loses at most two roundings of numbers below 1.
        assert abs(share - pruned / 100) <= 2 * np.finfo(float).eps
        assert prune.sparsity(prune.mask(params, {"w": share})).total.pruned == pruned


def test_shares_by_name():
    params = {"a": draw(kernel=(4, 5), bias=(5,)), "head": draw(kernel=(5, 2))}
    shares = prune.by_name(params, {"*/kernel": 0.5, "head/*": 0.2})
    found = prune.sparsity(prune.mask(params, shares)).by_leaf
    assert [found[n].pruned for n in ("a/kernel", "a/bias", "head/kernel")] == [10, 0, 2]
    assert found["head/kernel"].sparsity == 0.2


# What is refused.


ANY: Any = prune  # for calls that are wrong


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: prune.mask(p, 1.0), "prune.mask: amount=1.0; .* 1 prunes everything"),
        (lambda p: prune.mask(p, 50), "amount=50; give the share"),
        (lambda p: prune.mask(p, -0.1), "amount=-0.1"),
        (lambda p: prune.mask(p, float("nan")), "amount=nan"),
        (lambda p: prune.mask(p, True), "amount=True"),
        (lambda p: prune.mask(p, None), "amount must have the tree structure of params"),
        (lambda p: prune.mask(p, {"dense": 0.5}), "amount must have .*'bias' is missing"),
        (lambda p: prune.mask(p, dict.fromkeys(p, 0.5)), "amount of 'bias' is 0.5, and scope"),
        (lambda p: prune.mask(p, dict.fromkeys(p, 1.0)), "amount of 'bias'=1.0"),
        (lambda p: ANY.mask(p, 0.5, method="magnitud"), "did you mean 'magnitude'"),
        (lambda p: prune.mask(p, 0.5, scope="kernel"), "no leaf is named 'kernel'"),
        (lambda p: prune.mask(p, 0.5, scope={"bias": True}), "scope must have the tree structure"),
        (lambda p: prune.mask({"b": p["bias"]}, 0.5), "chooses nothing of params"),
        (lambda p: prune.mask(p, 0.5, method="random"), "needs key=jax.random.key"),
        (lambda p: ANY.mask(p, 0.5, method="random", key=3), "key must be one random key"),
        (lambda p: prune.mask(p, 0.5, method="saliency"), "needs grads, a tree like params"),
        (
            lambda p: prune.mask(p, 0.5, method="saliency", grads={"dense": p["dense"]}),
            "grads must have .*'bias' is missing",
        ),
        (
            lambda p: prune.mask(dict(p, dense=p["dense"].at[0, 0].set(jnp.nan)), 0.5),
            "params hold numbers that are not finite, in 'dense'",
        ),
        (lambda p: prune.mask(dict(p, n=jnp.arange(3)), 0.5), "'n' is int32"),
        (lambda p: jax.jit(lambda q: prune.mask(q, 0.5))(p), "a mask is made on the host"),
        (lambda p: prune.mask(p, 0.5, structure=prune.Blocks(4, 4)), "blocks of 4 x 4"),
        (
            lambda p: prune.mask(p, 0.5, scope="trainable", structure=prune.Channels(axis=1)),
            "'bias' is .* and has no axis 1",
        ),
        (lambda p: prune.Channels(order=0.5), "order=0.5"),
        (lambda p: prune.Channels(axis=0, biases=True), "biases belong to the outputs"),
        (lambda p: prune.Blocks(0, 2), "height must be a whole number >= 1"),
        (lambda p: ANY.Blocks(1, 2, "sum"), "pool_by"),
        (lambda p: prune.n_of_m(p, 2, 4), "'dense' is .* no multiple of m=4"),
        (lambda p: prune.n_of_m(p, 3, 2), "n=3 of m=2"),
        (lambda p: prune.n_of_m(p, 0, 2), "n must be a whole number >= 1"),
        (lambda p: prune.erk(p, 1.0), "prune.erk: amount=1.0"),
        (lambda p: prune.erk(p, 0.5, power=-1), "power=-1"),
        (lambda p: prune.by_name(p, {"kernle": 0.5}), "no leaf is named 'kernle'"),
        (lambda p: prune.by_name(p, {"dense": 1}), r"amounts\['dense'\]=1"),
        (lambda p: prune.apply_mask(p, {"dense": True}), "apply_mask: mask .*'bias' is missing"),
        (
            lambda p: prune.apply_mask(p, {"dense": jnp.ones(3), "bias": True}),
            "mask of 'dense' is",
        ),
        (lambda p: prune.sparsity({"a": True}), "mask of 'a' is True and does not say of how many"),
        (lambda p: prune.sparsity({"a": True}, p), "'bias' is missing"),
        (lambda p: prune.sparsity({"dense": np.ones(3), "bias": True}, p), "mask of 'dense' is"),
    ],
)  # fmt: skip
def test_what_is_refused(call, words):
    with pytest.raises(UserError, match=words) as error:
        call(draw(dense=(6, 4), bias=(4,)))
    assert "\n" not in str(error.value)


# What a mask does.


def test_counts_of_masks_of_any_form():
    params = draw(w=(3, 4), b=(4,))
    found = prune.sparsity({"w": jnp.array([1, 0, 1, 0]), "b": True}, params)
    assert found.by_leaf == {"b": (4, 0), "w": (6, 6)} and found.total == (10, 6)
    assert found.total.sparsity == 6 / 16
    assert math.isnan(prune.sparsity({"w": np.ones((0,), bool)}).total.sparsity)
    # An array of shape [] is the mask of one number, unless params say otherwise.
    assert prune.sparsity({"w": np.array(True)}).total == (1, 0)
    assert prune.sparsity({"w": np.array(True)}, {"w": params["w"]}).total == (12, 0)


def test_parameters_and_statistics_are_ranked_together(x64):
    net = nets.conv_net()
    params, variables = net.params, net.model_fn.variables
    pruned, stats, mask = prune.prune_variables(params, variables, 0.8)
    both = {"params": params, "variables": variables}
    counts = prune.sparsity(mask)
    assert counts.total.pruned == prune.num_pruned(0.8, tree.size(both))
    assert any(c.pruned for n, c in counts.by_leaf.items() if n.startswith("variables"))
    assert any(c.pruned for n, c in counts.by_leaf.items() if n.startswith("params"))
    after = {"params": pruned, "variables": stats}
    for kept, x, y in zip(*map(jax.tree.leaves, (mask, both, after)), strict=True):
        np.testing.assert_array_equal(y, np.where(kept, x, 0))
    sizes = np.concatenate([np.abs(np.ravel(x)) for x in jax.tree.leaves(both)])
    left = np.concatenate([np.ravel(x) for x in jax.tree.leaves(mask)]).astype(bool)
    assert sizes[~left].max() <= sizes[left].min()


def test_a_mask_of_nothing_changes_nothing():
    params = draw()
    found = prune.apply_mask(params, prune.mask(params, 0.0, scope="trainable"))
    assert tree.digest(found) == tree.digest(params)


@pytest.mark.parametrize("kind", ["mlp", "conv_net"])
def test_curvature_of_a_masked_loss(kind, x64):
    """Rows and columns of pruned weights are 0, the rest is of the pruned model."""
    net = nets.NETS[kind]()
    mask = prune.mask(net.params, 0.6, scope="trainable")
    kept = np.concatenate([np.ravel(m) for m in jax.tree.leaves(mask)])
    pruned = prune.apply_mask(net.params, mask)
    loss = prune.masked_loss(net.loss, mask)

    def matrix(loss, params):
        operator = geometry.hessian(loss, params, net.batch)
        vector, unravel = ravel_pytree(params)
        product = operator.linearize()
        columns = jax.lax.map(lambda v: ravel_pytree(product(unravel(v)))[0], jnp.eye(vector.size))
        return np.asarray(columns)

    found = matrix(loss, net.params)
    assert not found[~kept].any() and not found[:, ~kept].any()
    expected = matrix(net.loss, pruned) * kept[:, None] * kept
    # Two programs of the same sums of fewer than 400 terms.
    np.testing.assert_allclose(found, expected, atol=1e-11 * np.abs(expected).max())
    # Of the pruned model as of the one it is made of.
    np.testing.assert_allclose(matrix(loss, pruned), found, atol=1e-11 * np.abs(expected).max())


def test_masked_losses_are_pytrees():
    """A mask of the same structure compiles nothing."""
    net = nets.mlp(dtype=np.float32)
    traced = []

    def count(loss, params):
        traced.append(1)
        return loss(params, net.batch)

    run = jax.jit(count)
    values = [
        run(prune.masked_loss(net.loss, prune.mask(net.params, amount)), net.params)
        for amount in (0.1, 0.5, 0.9)
    ]
    assert len(traced) == 1 and len({float(v) for v in values}) == 3
    masked = prune.masked_loss(Classification, True)
    assert masked.loss.func is Classification


def test_the_objective_takes_these_masks():
    model = nn.MLP(num_classes=3, width=4)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 2, 1)), jnp.float32)
    batch = {"image": image, "label": jnp.arange(6, dtype=jnp.int32) % 3}
    params = model.init(jax.random.key(0), image)["params"]
    mask = prune.mask(params, 0.5)
    grad = jax.jit(jax.grad(lambda p: Objective(model, mask=mask)(p, batch)[0]))
    grads = grad(params)
    for g, m in zip(jax.tree.leaves(grads), jax.tree.leaves(mask), strict=True):
        assert not np.any(np.asarray(g)[~np.asarray(m)])
    plain = Objective(model)(prune.apply_mask(params, mask), batch)[0]
    assert Objective(model, mask=mask)(params, batch)[0] == plain


# How much to prune.


def gaussian(n):
    """n quantiles of the normal distribution."""
    return np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])


def test_cosines():
    params = {n: jnp.asarray(x, jnp.float32) for n, x in draw().items()}
    every = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]).astype(np.float64)
    found = prune.cosines(params, FRACTIONS)
    for amount, cosine in zip(FRACTIONS, found, strict=True):
        mask = prune.mask(params, amount, scope="trainable")
        kept = every * np.concatenate([np.ravel(m) for m in jax.tree.leaves(mask)])
        by_definition = every @ kept / np.linalg.norm(every) / np.linalg.norm(kept)
        assert cosine == pytest.approx(by_definition, rel=1e-13)
        assert cosine == pytest.approx(np.linalg.norm(kept) / np.linalg.norm(every), rel=1e-13)
    kernels = prune.apply_mask(params, prune.mask(params, 0.5))
    ratio = float(tree.norm(kernels) / tree.norm(params))
    assert prune.cosines(params, [0.5], scope="kernels")[0] == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize(("s", "cosine"), [(0.1, 0.99974), (0.5, 0.96368), (0.9, 0.66279)])
def test_the_cosine_of_gaussian_weights(s, cosine):
    """sqrt(2 (t phi(t) + 1 - Phi(t))), with t = Phi^-1((1 + s) / 2)."""
    normal = NormalDist()
    t = normal.inv_cdf((1 + s) / 2)
    exact = math.sqrt(2 * (t * normal.pdf(t) + 1 - normal.cdf(t)))
    assert exact == pytest.approx(cosine, abs=5e-6)
    # The quantiles are the midpoint rule in probability: what they lose lies in the tails,
    # E[w^2; |w| beyond 1/n] = O(log(n) / n).
    n = 20_000
    found = prune.cosines({"w": gaussian(n)}, [s])[0]
    assert found == pytest.approx(exact, abs=2 * math.log(n) / n)


def test_the_amount_nearest_to_utopia():
    """Of equal weights cos = sqrt(1 - a) = x, and (1 - x)^2 + x^4 is least at 2 x^3 + x = 1."""
    x = next(r.real for r in np.roots([2, 0, 1, -1]) if abs(r.imag) < 1e-12)
    found = prune.optimal_amount({"w": np.full(1000, 0.3)})
    assert abs(found.amount - (1 - x**2)) <= 0.005
    assert found.cosine == pytest.approx(math.sqrt(1 - found.amount), rel=1e-13)
    assert found.distance == math.hypot(1 - found.cosine, 1 - found.amount)
    fine = prune.optimal_amount({"w": np.full(10**5, 0.3)}, [i / 10**5 for i in range(10**5)])
    assert fine.amount == pytest.approx(1 - x**2, abs=2e-5)
    # Where few weights are all of the norm, everything else may go.
    spiky = np.r_[np.full(990, 1e-6), np.ones(10)]
    assert prune.optimal_amount({"w": spiky}).amount == 0.99
    assert all(map(math.isnan, prune.optimal_amount({"w": np.zeros(9)})))
    with pytest.raises(UserError, match="prune.cosines: amount=1.0"):
        prune.optimal_amount({"w": spiky}, [0.5, 1.0])


def test_kurtosis_of_kurtoses():
    """Of an array that is 1 with probability p: (1 - 3 p (1 - p)) / (p (1 - p))."""

    def indicator(p, n=100):
        return 5 + 3e-5 * (np.arange(n) < p * n)

    def kurtosis(p):
        return (1 - 3 * p * (1 - p)) / (p * (1 - p))

    shares = (0.5, 0.1, 0.2, 0.01)
    each = np.array([kurtosis(p) for p in shares])
    centred = each - each.mean()
    expected = np.mean(centred**4) / np.mean(centred**2) ** 2
    arrays = [indicator(p) for p in shares]
    # 5 + 3e-5 is rounded to 1e-15, so deviations hold to 3e-11.
    assert prune.kurtosis_of_kurtoses(arrays) == pytest.approx(expected, rel=1e-9)
    two = prune.kurtosis_of_kurtoses([indicator(0.5), indicator(0.1)])
    assert two == pytest.approx(1, rel=1e-9)
    for undefined in ([indicator(0.5)], [*arrays, np.full(9, 0.1)], [*arrays, np.ones(1)]):
        assert math.isnan(prune.kurtosis_of_kurtoses(undefined))
    with_bias = {"kernel": [x[:, None] for x in arrays], "bias": np.zeros(3)}
    assert math.isnan(prune.kurtosis_of_kurtoses(with_bias))
    kernels = prune.kurtosis_of_kurtoses(with_bias, scope="kernels")
    assert kernels == pytest.approx(expected, rel=1e-9)


def test_the_safe_amount():
    assert prune.safe_amount(0.6, 2.7) == 0.6 / math.log2(2.7)  # below e
    assert prune.safe_amount(0.6, 2.8) == 0.6 / math.log(2.8)
    assert prune.safe_amount(0.6, 8.0) == pytest.approx(0.6 / (3 * math.log(2)))
    assert prune.safe_amount(0.6, 1.5) > 1  # as it is published
    assert all(math.isnan(prune.safe_amount(0.6, k)) for k in (1.0, 0.5, math.nan))
