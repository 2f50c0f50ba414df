"""Low rank and clusters, and what every form takes: counts by hand, errors in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.compress import size
from sharpjax.compress.casting import cast_params
from sharpjax.compress.clustering import cluster, cluster_params, uncluster, uncluster_params
from sharpjax.compress.truncation import is_low_rank, low_rank, merge_low_rank, rank_of_energy
from sharpjax.compress.weights import quantise_params
from sharpjax.errors import UserError
from sharpjax.nn import LeNet


def net(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    return {
        "conv": {"kernel": draw(3, 3, 2, 6), "bias": draw(6)},
        "head": {"kernel": draw(10, 8)},
        "query": {"kernel": draw(9, 2, 4)},
    }


# Low rank.


@pytest.mark.parametrize(
    ("how", "ranks"),
    [({"rank": 2}, (2, 2, 2)), ({"rank_fraction": 0.34}, (2, 2, 2)), ({"energy": 0.6}, None)],
    ids=str,
)
def test_the_error_is_what_was_cut(how, ranks, x64, strict):
    """Eckart and Young: the squares left out, summed; in the spectral norm the first of them."""
    params = net()
    held = low_rank(params, **how)
    merged = merge_low_rank(held)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert merged["conv"]["bias"] is params["conv"]["bias"]
    for i, (layer, shape) in enumerate({"conv": (18, 6), "head": (10, 8), "query": (9, 8)}.items()):
        w, node = np.asarray(params[layer]["kernel"]).reshape(shape), held[layer]["kernel"]
        s, k = np.linalg.svd(w, compute_uv=False), node.left.shape[1]
        if ranks:
            assert k == ranks[i]
        else:
            share = np.cumsum(s**2) / np.sum(s**2)
            assert share[k - 1] >= how["energy"] > share[k - 2]
        error = w - np.asarray(merged[layer]["kernel"]).reshape(shape)
        np.testing.assert_allclose(np.sum(error**2), np.sum(s[k:] ** 2), rtol=1e-11)
        np.testing.assert_allclose(np.linalg.norm(error, 2), s[k], rtol=1e-11)
        assert node.left.shape == (shape[0], k) and node.right.shape == (k, shape[1])


def test_what_would_not_be_smaller_stays():
    params = net()
    held = low_rank(params, energy=1.0)
    assert held["head"]["kernel"] is params["head"]["kernel"]
    # 18 x 6 in 4 ranks takes 96 of 108 numbers, in 5 it would take 120.
    assert is_low_rank(low_rank(params, rank=4)["conv"]["kernel"])
    assert not is_low_rank(low_rank(params, rank=5)["conv"]["kernel"])
    # Two singular values that are not 0 are all of it.
    thin = {"kernel": params["head"]["kernel"][:, :2] @ params["head"]["kernel"][:2]}
    held = low_rank(thin, energy=0.999999)["kernel"]
    assert held.left.shape[1] <= 2
    assert rank_of_energy([0.0, 0.0], 0.5) == 1


def test_a_population_of_low_rank(x64):
    population = jax.tree.map(lambda *w: jnp.stack(w), net(0), net(1))
    held = jax.vmap(functools.partial(low_rank, rank=2))(population)
    done = jax.tree.map(lambda w: np.asarray(w)[1], jax.vmap(merge_low_rank)(held))
    close = functools.partial(np.testing.assert_allclose, atol=1e-12)
    jax.tree.map(close, done, merge_low_rank(low_rank(net(1), rank=2)))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, r"give one\."),
        ({"rank": 1, "energy": 0.5}, r"give one\."),
        ({"rank": 0}, r"rank must be a whole number >= 1, got 0"),
        ({"energy": 0.0}, r"energy=0\.0; give"),
        ({"energy": 0.5, "scope": "embeddings"}, r"no leaf is named 'embeddings'"),
    ],
)
def test_ranks_that_are_refused(how, said):
    with pytest.raises(UserError, match=said):
        low_rank(net(), **how)


@pytest.mark.parametrize("how", [{"rank": 1}, {"rank_fraction": 0.25}, {"energy": 0.9}], ids=str)
def test_low_rank_of_short_floats_and_of_nothing(how, strict):
    kernel = jnp.outer(jnp.arange(1.0, 5), jnp.array([1.0, 2.0, 4.0, 8.0, 3.0]))
    empty = {"a": jnp.zeros((0, 3)), "b": jnp.zeros((3, 0))}
    params = {"kernel": kernel.astype(jnp.bfloat16)} | empty
    held = low_rank(params, **how, scope="*")
    assert held["kernel"].left.dtype == held["kernel"].right.dtype == jnp.bfloat16
    assert held["kernel"].left.shape == (4, 1) and held["a"] is params["a"]
    assert held["b"] is params["b"]
    numpy = low_rank({"kernel": np.ones((4, 5))}, **how)["kernel"]  # float64, without x64
    assert numpy.left.dtype == jnp.float32
    # Two factors and their product, each rounded to 8 binary places: less than 4 roundings.
    merged = np.asarray(merge_low_rank(held)["kernel"], np.float32)
    np.testing.assert_allclose(merged, kernel, rtol=4 * 2.0**-8)


def test_low_rank_of_what_has_none():
    with pytest.raises(UserError, match=r"^low_rank: energy decides how many numbers"):
        jax.jit(functools.partial(low_rank, energy=0.5))(net())
    with pytest.raises(UserError, match=r"^low_rank: 'kernel' holds NaN"):
        low_rank({"kernel": jnp.full((4, 4), jnp.nan)}, rank=1)


# Clusters.


def test_clusters_are_a_fixed_point(x64, strict):
    x = net()["head"]["kernel"]
    for k in (2, 5, 16):
        held = cluster(x, k)
        done = uncluster(held)
        assert held.labels.dtype == jnp.uint8 and done.dtype == x.dtype
        nearest = np.argmin(np.abs(np.asarray(x)[..., None] - np.asarray(held.centres)), -1)
        np.testing.assert_array_equal(held.labels, nearest)
        for label in np.unique(held.labels):
            own = np.asarray(x)[np.asarray(held.labels) == label]
            np.testing.assert_allclose(held.centres[label], own.mean(), rtol=1e-12)
        again = cluster(x, k)
        np.testing.assert_array_equal(again.labels, held.labels)


def test_clusters_that_are_known():
    x = jnp.array([[0.0, 10.0, 1.0], [11.0, 5.0, 10.5]])
    held = cluster(x, 3)
    np.testing.assert_array_equal(held.labels, [[0, 2, 0], [2, 1, 2]])
    np.testing.assert_array_equal(held.centres, [0.5, 5.0, 10.5])
    few = cluster(jnp.array([3.0, 3.0, 7.0]), 8)  # as many values as there are come back
    np.testing.assert_array_equal(uncluster(few), [3, 3, 7])
    np.testing.assert_array_equal(uncluster(cluster(jnp.full(3, 2.5), 2)), 2.5)
    # Small numbers beside large ones, whose prefix sums cancel: -1e9 + 1e-8 is -1e9.
    wide = cluster(jnp.array([-1e9, 1e-8, 1e-8, 1e9]), 3)
    np.testing.assert_array_equal(wide.centres, np.float32([-1e9, 1e-8, 1e9]))
    params = net()
    done = uncluster_params(cluster_params(params, 4))
    assert len(np.unique(done["conv"]["kernel"])) <= 4
    assert done["conv"]["bias"] is params["conv"]["bias"]


def test_clusters_that_are_refused():
    x = jnp.ones(3)
    for k in (1, 2.0):
        with pytest.raises(UserError, match=r"^cluster: k must be a whole number >= 2"):
            cluster(x, k)  # pyright: ignore
    with pytest.raises(UserError, match=r"^cluster: k=257; give at most 256"):
        cluster(x, 257)
    with pytest.raises(UserError, match=r"^cluster: call it outside of jit"):
        jax.jit(lambda x: cluster(x, 2))(x)
    with pytest.raises(UserError, match=r"^cluster: x holds NaN"):
        cluster(x * jnp.nan, 2)
    with pytest.raises(UserError, match=r"^cluster: x is empty"):
        cluster(jnp.zeros(0), 2)


# Sizes.


def test_counts_by_hand():
    params = jax.tree.map(jnp.float32, net())
    # Kernels of 108 and 80 and 72 numbers, a bias of 6.
    whole = size.layers(params)
    assert [row.name for row in whole] == [
        "conv/bias",
        "conv/kernel",
        "head/kernel",
        "query/kernel",
    ]
    assert [row.bits for row in whole] == [6 * 32, 108 * 32, 80 * 32, 72 * 32]
    assert size.bits(whole) == 32 * 266 and size.ratio(whole) == 1
    assert size.num_bytes(whole) == 4 * 266

    held = size.layers(quantise_params(params, 4))
    assert [row.form for row in held] == ["dense", *["quantised"] * 3]
    steps = (6, 8, 8)  # output channels; of query, 2 heads of 4
    by_hand = [192, *(4 * n + 32 * c for n, c in zip((108, 80, 72), steps, strict=True))]
    assert [row.bits for row in held] == by_hand
    assert size.ratio(held) == 32 * 266 / sum(by_hand)
    asymmetric = size.layers(quantise_params(params, 4, symmetric=False, per_channel=False))
    assert [row.bits for row in asymmetric] == [192, *(4 * n + 36 for n in (108, 80, 72))]

    half = size.layers(cast_params(params, "float16"))
    assert (
        size.ratio(half) == 2 and size.ratio(size.layers(cast_params(params, "float8_e5m2"))) == 4
    )

    thin = size.layers(low_rank(params, rank=2))
    assert [row.bits for row in thin] == [
        192,
        *(32 * 2 * (m + n) for m, n in ((18, 6), (10, 8), (9, 8))),
    ]
    assert [row.numbers for row in thin] == [6, 108, 80, 72]

    shared = size.layers(cluster_params(params, 5))
    assert [row.bits for row in shared] == [192, *(3 * n + 5 * 32 for n in (108, 80, 72))]


def test_counts_of_a_population_are_those_of_its_members():
    params = jax.tree.map(jnp.float32, net())
    population = jax.tree.map(lambda w: jnp.stack([w, 2 * w, 3 * w]), params)
    thin = functools.partial(low_rank, rank=2)
    (one, many) = (size.layers(held) for held in (thin(params), jax.vmap(thin)(population)))
    for row, rows in zip(one, many, strict=True):
        assert rows.form == row.form and rows[2:] == tuple(3 * count for count in row[2:])
    assert size.ratio(one) == size.ratio(many) > 1


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("int4", 4), ("uint4", 4), ("int8", 8), ("uint32", 32), ("bool", 8), ("bfloat16", 16)],
)
def test_bits_of_a_dtype(dtype, bits):
    (row,) = size.layers({"w": jax.ShapeDtypeStruct((4, 8), dtype)})
    assert (row.bits, row.dense_bits) == (32 * bits, 32 * 32)


@pytest.mark.parametrize("bits", [32, 4])
def test_counts_of_what_is_pruned(bits):
    params = jax.tree.map(jnp.float32, net())
    held = params if bits == 32 else quantise_params(params, bits)
    mask = jax.tree.map(lambda w: None, params)
    mask["conv"]["kernel"] = jnp.arange(108).reshape(3, 3, 2, 6) % 9 == 0
    mask["head"]["kernel"] = jnp.ones((10, 8), bool)
    rows = {row.name: row for row in size.layers(held, mask)}
    steps = 0 if bits == 32 else 32
    assert rows["conv/kernel"].kept == 12
    assert rows["conv/kernel"].bits == 108 + 12 * bits + 6 * steps
    assert rows["head/kernel"].bits == 80 * bits + 8 * steps  # nothing is pruned
    assert rows["conv/kernel"].form == ("bitmask" if bits == 32 else "quantised, bitmask")
    rows = {row.name: row for row in size.layers(held, mask, sparse="csr")}
    # 18 rows of 6: 12 columns and 19 offsets of 32 bits.
    assert rows["conv/kernel"].bits == 12 * bits + (12 + 19) * 32 + 6 * steps
    total = size.total(list(rows.values()))
    assert total.numbers == 266 and total.kept == 266 - 96 and total.dense_bits == 32 * 266


def test_sizes_need_no_numbers():
    """Paper 7's LeNet: of 225,034 parameters 224,800 are in kernels, of 234 output channels."""
    shapes = jax.eval_shape(LeNet(10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    assert size.bits(size.layers(shapes)) == 32 * 225_034
    held = jax.eval_shape(functools.partial(quantise_params, bits=8), shapes)
    assert size.bits(size.layers(held)) == 8 * 224_800 + 32 * 234 + 32 * 234
    assert 3.9 < size.ratio(size.layers(held)) < 4


def test_masks_that_are_refused():
    params = jax.tree.map(jnp.float32, net())
    mask = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    with pytest.raises(UserError, match=r"^size\.layers: masks must have the tree structure"):
        size.layers(params, {"conv": mask["conv"]})
    with pytest.raises(UserError, match=r"^size\.layers: the mask of 'conv/bias' is float32\[6\]"):
        size.layers(params, params)
    with pytest.raises(
        UserError, match=r"^size\.layers: 'conv/kernel' has a mask and is clustered"
    ):
        size.layers(cluster_params(params, 2), mask)
    with pytest.raises(UserError, match=r"^size\.layers: sparse='coo'"):
        size.layers(params, sparse="coo")  # pyright: ignore
    with pytest.raises(UserError, match=r"^size\.total: no rows"):
        size.ratio([])
