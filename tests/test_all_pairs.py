"""All pairs of models in one call, and metrics that are summed batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sharpjax.errors import UserError
from sharpjax.metrics import functional
from sharpjax.metrics.functional import METRICS, all_pairs, rankings, streaming
from sharpjax.protocol.tests.pairwise import jackknife

NAMES = list(METRICS)
SHARES = [name for name, metric in METRICS.items() if "scale" in metric.invariant_to
          and name not in ("kendall_distance", "spearman", "rank_biased_overlap")]  # fmt: skip


def outputs(num_models=4, num_examples=103, num_classes=6, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(num_examples, num_classes))
    z = 2 * (shared + rng.normal(size=(num_models, num_examples, num_classes)))
    return z.astype(np.float32), rng.integers(0, num_classes, num_examples)


def by_pairs(name, z, label):
    found = [[METRICS[name].fn(a, b, label) for b in z] for a in z]
    return np.where(np.eye(len(z), dtype=bool), np.nan, found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block_size", [None, 40, 1000])
def test_all_pairs_are_the_pairs(dtype, block_size):
    z, label = outputs()
    z = z.astype(dtype)
    found = all_pairs(z, NAMES, label, block_size=block_size)
    assert list(found) == NAMES
    for name in NAMES:
        bound = 1e-13 if dtype == np.float64 or name in SHARES else 1e-6
        want = by_pairs(name, z, label)
        size = np.nanmax(np.abs(want))
        np.testing.assert_allclose(found[name], want, atol=bound * size, rtol=0, err_msg=name)
        assert np.array_equal(found[name], found[name].T, equal_nan=True) == METRICS[name].symmetric


def test_many_classes_are_ranked_as_few():
    z, _ = outputs(3, 7, 200)
    for name in ("rank_disagreement", "footrule", "spearman", "rank_biased_overlap"):
        found = all_pairs(z, [name])[name]
        np.testing.assert_allclose(found, by_pairs(name, z, None), atol=1e-6, err_msg=name)


def test_near_models_are_told_apart_in_float32():
    """Of predictions that differ by e, divergences of e^2 are known to 1e-7 / e."""
    rng, e = np.random.default_rng(0), 1e-3
    p = np.full((2000, 4), 0.25) + e * np.array([1, -1, 1, -1]) * rng.uniform(size=(2000, 1))
    z = np.stack([np.log(p), np.zeros_like(p)])
    found = all_pairs(z.astype(np.float32), ["jsd", "cosine_distance", "l1"])
    for name, values in found.items():
        assert values[0, 1] == pytest.approx(METRICS[name].fn(*z), rel=1e-3), name


def test_the_most_precise_outputs_set_the_precision():
    """The first model is equally sure of both classes of example 0, also after rounding to float32;
    the second is not, by 1e-9. float16 and bfloat16 go together as float32."""
    one = np.array([[1.0, 1.0], [0.0, 1.0]])
    other = np.array([[1.0, 1.0 + 1e-9], [0.0, 1.0]])
    for narrow in (np.float32, jnp.bfloat16, np.int32):
        for z in ([one.astype(narrow), other], [other, one.astype(narrow)]):
            assert all_pairs(z, ["disagreement"])["disagreement"][0, 1] == 0.5
    z = [one.astype(np.float16), one.astype(jnp.bfloat16)]
    assert all_pairs(z, ["disagreement"])["disagreement"][0, 1] == 0


def test_a_model_that_predicts_nothing_has_no_pairs():
    z, label = outputs()
    z[1, 5, 2] = np.inf
    found = all_pairs(list(z), ["jsd", "error_ratio"], label)
    for values in found.values():
        assert np.isnan(values[1]).all() and np.isnan(values[:, 1]).all()
        assert np.isfinite(values[0, 2:]).all() and np.isfinite(values[2:, 0]).all()
    one = all_pairs(z[:2], ["jsd"])["jsd"]
    assert np.isnan(one).all() and np.isnan(all_pairs(z[:, :0], ["jsd"])["jsd"]).all()


def test_other_formulas_and_probabilities():
    z, _ = outputs()
    found = all_pairs(z, {"first two": rankings.top_k(2), "jsd": METRICS["jsd"]})
    assert found["first two"][0, 1] == functional.top_k_agreement(z[0], z[1], k=2)
    p = special.softmax(z.astype(np.float64), axis=-1)
    given = all_pairs(p, ["jsd", "kl"], probs=True)
    np.testing.assert_allclose(given["jsd"], found["jsd"], rtol=1e-5)
    assert given["kl"][0, 1] == pytest.approx(functional.kl(z[0], z[1]), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z, y: ((z[0], z[1][:50]), ["jsd"], y), "2 outputs of shapes .*same examples"),
        (lambda z, y: ((z[0], z[1][:, :3]), ["jsd"], y), "2 outputs of shapes .*classes"),
        (lambda z, y: (z[:1], ["jsd"], y), "1 outputs of shapes"),
        (lambda z, y: (z[0], ["jsd"], y), "give those of two models or more, each"),
        (lambda z, y: (z, ["jsn"], y), r"unknown metric \(functional.all_pairs\).*mean 'jsd'"),
        (lambda z, y: (z, "jsd", y), r"give several: \['jsd'\]"),
        (lambda z, y: (z, [], y), "no metrics"),
        (lambda z, y: (z, ["error_ratio"], None), "it reads labels"),
        (lambda z, y: (z, ["error_ratio"], y + 3), "a label is no class"),
        (lambda z, y: (z, ["jsd"], y[:9]), r"label is \[9\]"),
        (lambda z, y: (special.softmax(z, axis=-1), ["jsd"], y), "these are probabilities"),
        (lambda z, y: (z[..., :4], ["top_k_agreement"], y), "5 classes or more"),
        (lambda z, y: (z[..., :1], ["l1"], None), "of one class"),
    ],
)
def test_what_has_no_pairs_is_named(change, said):
    with pytest.raises(UserError, match=said) as error:
        all_pairs(*change(*outputs()))
    assert "\n" not in str(error.value)


def test_a_matrix_goes_into_the_jackknife():
    """Model i errs on n_i examples of its own, so that pairs disagree on n_i + n_j: the mean over
    pairs is twice the mean of n, with twice its standard error."""
    counts = np.array([3, 7, 1, 12, 5])
    ends = np.cumsum(counts)
    n = 2 * ends[-1]
    predicted = np.zeros((5, n), int)
    for i, (end, count) in enumerate(zip(ends, counts, strict=True)):
        predicted[i, end - count : end] = 1
    found = all_pairs(np.eye(3)[predicted], ["disagreement"])["disagreement"]
    mean, error = jackknife(found)
    assert mean == pytest.approx(2 * counts.mean() / n, rel=1e-12)
    assert error == pytest.approx(2 * counts.std(ddof=1) / np.sqrt(5) / n, rel=1e-12)


# Streams.


def streamed(z, label, sizes, dtype=jnp.float32, names=NAMES):
    totals, start = streaming.init(names, num_classes=z.shape[-1], dtype=dtype), 0
    for size in sizes:
        part = slice(start, start + size)
        totals = streaming.update(totals, z[0, part], z[1, part], label[part])
        start += size
    assert start == len(label)
    return {name: np.asarray(value) for name, value in streaming.compute(totals).items()}


BATCHES = ([32, 32, 32, 7], [7, 32, 32, 32])


@pytest.mark.parametrize("sizes", BATCHES)
def test_batches_of_any_sizes_give_the_same(sizes):
    z, label = outputs(2)
    whole, found = streamed(z, label, [103]), streamed(z, label, sizes)
    for name in NAMES:
        if name in SHARES:
            assert found[name] == whole[name], name
        np.testing.assert_array_max_ulp(found[name], whole[name], 2)
        want = METRICS[name].fn(z[0], z[1], label)
        np.testing.assert_allclose(found[name], want, rtol=2e-5, atol=1e-6, err_msg=name)


def test_float64_streams(x64):
    z, label = outputs(2)
    found = streamed(z.astype(np.float64), label, BATCHES[0], jnp.float64)
    for name in NAMES:
        want = METRICS[name].fn(z[0], z[1], label)
        np.testing.assert_allclose(found[name], want, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("rare", ["errors", "hits"])
def test_agreement_beyond_chance_keeps_its_digits_at_rare_events(rare, num_classes):
    """Two models err, or are right, on 5 examples of 50,000 each, never on the same. The values are
    1 minus a quotient near 1 of five means in float32: off by some 8 roundings, 2^-24 each."""
    n, label = 50_000, np.zeros(50_000, np.int32)
    usual, other = (0, 1) if rare == "errors" else (1, 0)
    predicted = np.full((2, n), usual)
    predicted[0, :5], predicted[1, 5:10] = other, other
    z = np.eye(num_classes, dtype=np.float32)[predicted]
    names = ["error_consistency", "chance_corrected_agreement"]
    found = streamed(z, label, [n], names=names)
    e, apart = 1e-4, (num_classes - 2) / (num_classes - 1)
    differ = 2 * e * (1 - e)  # of independent models: one is right alone
    both_wrong = e**2 if rare == "errors" else (1 - e) ** 2
    for name, by_chance in zip(names, (differ, differ + apart * both_wrong), strict=True):
        want = 1 - 2 * e / by_chance
        assert METRICS[name].fn(*z, label) == pytest.approx(want, rel=0, abs=8 * 2.0**-53), name
        assert found[name] == pytest.approx(want, rel=0, abs=8 * 2.0**-24), name


def test_a_mean_of_batches_is_another_number():
    z, label = outputs(2)
    names = ["normalized_disagreement", "jsd"]
    halves = [streamed(z[:, part], label[part], [len(label[part])], names=names)
              for part in (slice(0, 100), slice(100, None))]  # fmt: skip
    found = streamed(z, label, [100, 3], names=names)
    for name in names:
        assert abs(np.mean([half[name] for half in halves]) - found[name]) > 1e-3


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_batch_over_four_devices(kind):
    z, label = outputs(2)
    whole = streamed(z, label, [103])
    padding = np.full((2, 1, 6), np.nan, np.float32)
    a, b = np.concatenate([z, padding], axis=1)
    weight = np.arange(104) < 103
    mesh = jax.make_mesh((4,), ("data",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    with jax.set_mesh(mesh):
        lies = jax.NamedSharding(mesh, jax.P("data"))
        batch = jax.device_put((a, b, np.append(label, -1), weight * 1), lies)
        totals = jax.jit(streaming.update)(streaming.init(NAMES, num_classes=6), *batch)
        found = streaming.compute(totals)
    for name in NAMES:
        np.testing.assert_array_max_ulp(np.asarray(found[name]), whole[name], 2)


def test_many_pairs_and_parts_that_are_merged():
    z, label = outputs(4)
    names = ["jsd", "error_consistency"]
    start = streaming.init(names, num_classes=6)

    @jax.jit
    @jax.vmap
    def of_pair(a, b):
        first = streaming.update(start, a[:60], b[:60], label[:60])
        second = streaming.update(start, a[60:], b[60:], label[60:])
        return streaming.compute(streaming.merge(first, second))

    found = of_pair(z[:2], z[2:])
    for name in names:
        want = [METRICS[name].fn(z[i], z[i + 2], label) for i in range(2)]
        np.testing.assert_allclose(found[name], want, rtol=1e-5)
    other = streaming.init(["jsd"], num_classes=6)
    with pytest.raises(UserError, match="streaming.merge: .* not of the same"):
        streaming.merge(start, other)


def test_streams_of_nothing_and_of_what_predicts_nothing():
    z, label = outputs(2)
    totals = streaming.init(["jsd", "error_ratio"], num_classes=6)
    assert all(np.isnan(x) for x in streaming.compute(totals).values())
    broken = z.copy()
    broken[0, 3, 1] = np.nan
    found = streaming.compute(streaming.update(totals, *broken, label))
    assert all(np.isnan(x) for x in found.values())
    # Where it only pads, what a row holds does not matter.
    weight = (np.arange(103) != 3) * 1
    found = streaming.compute(streaming.update(totals, *broken, label, weight))
    kept = np.delete(z, 3, axis=1)
    want = functional.jensen_shannon(*kept)
    np.testing.assert_allclose(found["jsd"], want, rtol=1e-5)


def test_what_a_stream_refuses():
    z, label = outputs(2)
    p = special.softmax(z, axis=-1)
    totals = streaming.init(["jsd", "error_ratio"], num_classes=6)
    of_probs = streaming.init(["jsd"], num_classes=6, probs=True)
    one = np.ones(103)
    in_data = (
        (totals, (z[0], z[1], label + 1, one), "a label is no class: from 0 to 5"),
        (totals, (p[0], z[1], label, one), "these are probabilities"),
        (of_probs, (z[0], p[1], label, one), "probs=True, and these are no probabilities"),
        (totals, (z[0], z[1], label, one / 2), "a weight is neither 0 nor 1"),
    )
    for start, given, said in in_data:
        with pytest.raises(UserError, match=f"functional.streaming.update: {said}") as error:
            streaming.update(start, *given)
        assert "\n" not in str(error.value)
        inside = jax.jit(streaming.update)(start, *given)
        assert np.sum(inside.refused) == 1
        assert np.isnan(streaming.compute(inside)["jsd"])
    in_shapes = (
        ((z[0], z[1][:9], label, one), "a is .* of the same examples"),
        ((z[0][:, :3], z[1][:, :3], label, one), "totals are of 6 classes"),
        ((z[0], z[1], None, one), "a metric reads labels"),
        ((z[0], z[1], label * 1.0, one), "label is float32; give integers"),
        ((z[0], z[1], label, one[:3]), r"weight is \[3\]"),
    )
    for given, said in in_shapes:
        for update in (streaming.update, jax.jit(streaming.update)):
            with pytest.raises(UserError, match=said):
                update(totals, *given)
    for bad, said in ((dict(num_classes=4), "5 classes or more"), (dict(num_classes=1), ">= 2")):
        with pytest.raises(UserError, match=said):
            streaming.init(["top_k_agreement"], **bad)
    with pytest.raises(UserError, match="outside of jit"):
        jax.jit(functional.jensen_shannon)(z[0], z[1])
