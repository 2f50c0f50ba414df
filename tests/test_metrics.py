"""Accuracy, NLL and ECE: closed forms, numpy in float64, and independence of the batching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import metrics, tree
from sharpjax.errors import UserError
from sharpjax.metrics import calibration, summation

update = jax.jit(metrics.update)


def totals_of(logits, label, num_bins=15, batch_size=None, weight=None):
    logits, label = jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.int32)
    weight = jnp.ones(label.shape) if weight is None else jnp.asarray(weight, jnp.float32)
    size = batch_size or len(label)
    totals = metrics.init(num_bins)
    for i in range(0, len(label), size):
        part = slice(i, i + size)
        totals = update(totals, logits[part], label[part], weight[part])
    return totals


def values(totals):
    return {name: float(estimate.value) for name, estimate in metrics.compute(totals).items()}


def two_classes(confidence):
    """Logits of a prediction of class 0 with this confidence."""
    confidence = np.asarray(confidence, np.float64)
    with np.errstate(divide="ignore"):
        z = np.log(confidence) - np.log1p(-confidence)
    return np.stack([np.minimum(z, 200.0), np.zeros_like(z)], -1)


# Closed forms.


def test_perfect_predictions():
    result = metrics.compute(totals_of(1000 * np.eye(6), np.arange(6)))
    assert set(result) == {"accuracy", "nll", "ece"}
    for name, value in {"accuracy": 1.0, "nll": 0.0, "ece": 0.0}.items():
        assert result[name] == (value, 0.0, 6)


def test_uniform_predictions():
    label = np.arange(20) % 10
    result = metrics.compute(totals_of(np.full((20, 10), 3.0), label, num_bins=10))
    assert result["accuracy"].value == np.float32(0.1)  # the first class wins every tie
    np.testing.assert_allclose(result["nll"].value, np.log(10), rtol=1e-6)
    assert result["nll"].standard_error == 0.0
    np.testing.assert_allclose(result["ece"].value, 0.0, atol=1e-7)


def test_uniform_confidence_is_an_edge_and_belongs_to_the_bin_below():
    # 1/K is the edge b/M also where M = (b + 1) K, and b/M is not b times the rounded 1/M.
    for k, num_bins in ((3, 3), (31, 31), (10, 100), (7, 49), (5, 25)):
        bins = totals_of(np.zeros((1, k)), [0], num_bins=num_bins).bins
        np.testing.assert_array_equal(bins.count, np.eye(num_bins)[num_bins // k - 1])


def test_certain_predictions_are_in_the_last_bin():
    # Confidences .95 and 1, right and wrong: .475; a bin for 1.0 alone would give .525.
    totals = totals_of(two_classes([0.95, 1.0]), [0, 1])
    np.testing.assert_array_equal(totals.bins.count[-2:], [0, 2])
    np.testing.assert_allclose(values(totals)["ece"], 0.475, rtol=1e-6)


def test_edges_are_closed_above():
    confidence = [0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.6, 0.75, 0.76, 1.0]
    bins = calibration.empty(4)
    yes = jnp.ones(6, bool)
    bins = calibration.add(bins, jnp.asarray(confidence, jnp.float32), yes, yes)
    np.testing.assert_array_equal(bins.count, [0, 1, 3, 2])
    np.testing.assert_array_equal(bins.correct, [0, 1, 3, 2])
    for index, inside in enumerate(([0.5], confidence[1:4], confidence[4:]), start=1):
        total = summation.value(bins.confidence)[index]
        np.testing.assert_allclose(total, np.sum(inside, dtype=np.float64), rtol=1e-7)


@pytest.mark.parametrize("confidence", [0.55, 0.8, 0.97])
@pytest.mark.parametrize("right", [0, 13, 20])
def test_constant_confidence_misses_by_its_distance_from_the_accuracy(confidence, right):
    logits, label = two_classes(np.full(20, confidence)), np.arange(20) >= right
    result = metrics.compute(totals_of(logits, label))
    p = right / 20
    np.testing.assert_allclose(result["ece"].value, abs(p - confidence), rtol=1e-6)
    np.testing.assert_allclose(result["accuracy"].value, p, rtol=1e-6)
    nll = -p * np.log(confidence) - (1 - p) * np.log(1 - confidence)
    # log(1 + s) of float32 is good to 6e-8, however small s is.
    np.testing.assert_allclose(result["nll"].value, nll, rtol=1e-6, atol=1e-7)
    # right - confidence varies as right does, a coin; so does -log p, between two values.
    coin = np.sqrt(p * (1 - p) / 19)
    spread = np.log(confidence) - np.log(1 - confidence)
    np.testing.assert_allclose(result["accuracy"].standard_error, coin, rtol=1e-6)
    np.testing.assert_allclose(result["ece"].standard_error, coin, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(result["nll"].standard_error, coin * spread, rtol=1e-5, atol=1e-7)


def test_gaps_of_different_bins_do_not_cancel_and_one_bin_lets_them():
    # Overconfident by .4 at .9, underconfident by .4 at .6.
    logits = two_classes([0.9] * 10 + [0.6] * 10)
    label = [0] * 5 + [1] * 5 + [0] * 10
    np.testing.assert_allclose(values(totals_of(logits, label, 10))["ece"], 0.4, rtol=1e-6)
    np.testing.assert_allclose(values(totals_of(logits, label, 1))["ece"], 0.0, atol=1e-7)


# Against numpy.


def draw(seed, size, num_classes=10):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, num_classes)).astype(np.float32) * 3
    label = np.where(
        rng.uniform(size=size) < 0.7, logits.argmax(-1), rng.integers(0, num_classes, size)
    )
    return logits, label.astype(np.int32)


def numpy_metrics(logits, label, num_bins=15):
    """`{name: (value, standard error)}` in float64."""
    z = logits.astype(np.float64)
    z = z - z.max(-1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    n, example = len(label), np.arange(len(label))
    nll, right, confidence = -np.log(p[example, label]), p.argmax(-1) == label, p.max(-1)
    index = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")
    gaps = np.bincount(index, right - confidence, num_bins)
    signed = np.sign(gaps)[index] * (right - confidence)
    columns = {"accuracy": right, "nll": nll, "ece": signed}
    assert np.isclose(signed.mean(), np.abs(gaps).sum() / n)
    return {k: (x.mean(), x.std(ddof=1) / np.sqrt(n)) for k, x in columns.items()}


def assert_close(result, expected, rtol):
    for name, (value, error) in expected.items():
        np.testing.assert_allclose(result[name].value, value, rtol=rtol, err_msg=name)
        np.testing.assert_allclose(result[name].standard_error, error, rtol=1e-5, err_msg=name)


@pytest.mark.usual_flags
@pytest.mark.parametrize("batch_size", [20_011, 500, 37])
def test_twenty_thousand_examples_equal_numpy_in_float64(batch_size):
    logits, label = draw(0, 20_011)
    result = metrics.compute(totals_of(logits, label, batch_size=batch_size))
    assert_close(result, numpy_metrics(logits, label), rtol=3e-7)
    assert all(estimate.num_evaluations == 20_011 for estimate in result.values())


@pytest.mark.usual_flags
def test_small_examples_after_a_huge_one_are_not_lost():
    # One loss of 1e7 and 9,999 of log 2: float32 beside 1e7 has a spacing of 1.
    logits = np.zeros((10_000, 2), np.float32)
    logits[0, 1] = 1e7
    label = np.zeros(10_000, np.int32)
    exact = (1e7 + 9_999 * np.log(2)) / 10_000
    for size in (100, 10_000):
        nll = values(totals_of(logits, label, batch_size=size))["nll"]
        np.testing.assert_allclose(nll, exact, rtol=1e-7)


def test_float64_and_strict_types(x64, strict):
    logits, label = draw(1, 50)
    totals = metrics.update(
        metrics.init(15),
        jnp.asarray(logits, jnp.float64),
        jnp.asarray(label, jnp.int64),
        jnp.ones(50, jnp.float64),
    )
    again = metrics.update(
        metrics.init(15), jnp.asarray(logits), jnp.asarray(label), jnp.ones(50, jnp.float32)
    )
    tree.check_same_structure("test", "totals", totals, metrics.init(15))
    assert tree.digest(totals) == tree.digest(again)
    assert_close(metrics.compute(totals), numpy_metrics(logits, label), rtol=3e-7)


# Streaming.


@pytest.mark.usual_flags
def test_numbers_do_not_depend_on_batches_or_order():
    logits, label = draw(2, 1_000)
    order = np.random.default_rng(3).permutation(1_000)
    one = metrics.compute(totals_of(logits, label))
    for size, index in ((1_000, order), (125, slice(None)), (8, order)):
        other = metrics.compute(totals_of(logits[index], label[index], batch_size=size))
        for name in one:
            # Compensated sums agree to one rounding of the result (jax 0.12 shows it; 0.10 none).
            np.testing.assert_array_max_ulp(other[name].value, one[name].value, maxulp=1)
            np.testing.assert_allclose(
                other[name].standard_error, one[name].standard_error, rtol=1e-6
            )


def test_padding_is_invisible():
    logits, label = draw(4, 90)
    junk = np.concatenate([logits, np.full((10, 10), np.nan, np.float32)])
    junk[95:] = np.inf
    padded_label = np.concatenate([label, np.full(10, 99)])
    weight = np.arange(100) < 90
    padded = totals_of(junk, padded_label, weight=weight, batch_size=50)
    assert tree.digest(metrics.compute(padded)) == tree.digest(
        metrics.compute(totals_of(logits, label, batch_size=50))
    )
    # A batch of padding alone, first or last.
    nothing = (jnp.asarray(junk[90:]), jnp.asarray(padded_label[90:]), jnp.zeros(10))
    first = update(update(metrics.init(15), *nothing), logits, label, jnp.ones(90))
    last = update(totals_of(logits, label), *nothing)
    assert tree.digest(first) == tree.digest(last) == tree.digest(totals_of(logits, label))


def test_totals_run_in_a_scan():
    logits, label = draw(5, 60)
    batches = (logits.reshape(6, 10, 10), label.reshape(6, 10), jnp.ones((6, 10)))

    def step(totals, batch):
        return metrics.update(totals, *batch), None

    totals, _ = jax.lax.scan(step, metrics.init(15), batches)
    assert tree.digest(totals) == tree.digest(totals_of(logits, label, batch_size=10))


def test_a_batch_over_several_devices():
    logits, label = draw(7, 80)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.NamedSharding(mesh, jax.P("data"))
    batch = jax.device_put((logits, label, np.ones(80, np.float32)), place)
    spread, alone = update(metrics.init(15), *batch), totals_of(logits, label)
    for name, estimate in metrics.compute(alone).items():
        other = metrics.compute(spread)[name]
        assert other.value == estimate.value
        np.testing.assert_allclose(other.standard_error, estimate.standard_error, rtol=1e-6)


def test_vmap_over_three_models_equals_three_calls():
    drawn = [draw(seed, 40) for seed in range(3)]
    logits, label = (jnp.stack(x) for x in zip(*drawn, strict=True))

    def run(logits, label):
        return metrics.compute(metrics.update(metrics.init(15), logits, label, jnp.ones(40)))

    together = jax.vmap(run)(logits, label)
    for i, (z, y) in enumerate(drawn):
        alone = metrics.compute(totals_of(z, y))
        for name in alone:
            for a, b in zip(together[name], alone[name], strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-6, err_msg=name)


def test_nothing_one_example_and_what_is_not_finite():
    empty = metrics.compute(metrics.init(15))
    assert all(np.isnan(e.value) and e.num_evaluations == 0 for e in empty.values())
    one = metrics.compute(totals_of([[1.0, 0.0]], [0]))
    assert one["accuracy"].value == 1.0
    assert all(np.isnan(e.standard_error) for e in one.values())
    # A loss of infinity is not a NaN, and neither is hidden by what follows.
    impossible = np.array([[0.0, -np.inf]] + [[0.0, 0.0]] * 3)
    assert values(totals_of(impossible, [1, 0, 0, 0], batch_size=1))["nll"] == np.inf
    broken = np.array([[0.0, np.nan]] + [[0.0, 0.0]] * 3)
    result = values(totals_of(broken, [1, 0, 0, 0], batch_size=1))
    assert np.isnan(list(result.values())).all()
    # Nothing is predicted here either, although the label has a loss of infinity.
    overflown = values(totals_of([[np.inf, 0.0]] + [[0.0, 0.0]] * 3, [1, 0, 0, 0], batch_size=1))
    assert np.isnan(list(overflown.values())).all()


# The standard error of the calibration error, and the bias that it does not show.


def simulated(probability_of_right, runs=600, size=1_000):
    rng = np.random.default_rng(6)
    confidence = rng.uniform(0.5, 1.0, (runs, size))
    wrong = rng.uniform(size=(runs, size)) >= probability_of_right(confidence)

    def run(logits, label):
        return metrics.update(metrics.init(15), logits, label, jnp.ones(size))

    logits = jnp.asarray(two_classes(confidence), jnp.float32)
    totals = jax.jit(jax.vmap(run))(logits, jnp.asarray(wrong, jnp.int32))
    ece = jax.vmap(metrics.compute)(totals)["ece"]
    return ece, np.std(ece.value, ddof=1), np.mean(ece.standard_error), confidence


def test_standard_error_where_gaps_stand_out():
    ece, spread, error, confidence = simulated(lambda c: c - 0.4)
    np.testing.assert_allclose(np.mean(ece.value), 0.4, atol=0.01)
    # 600 runs know the spread to 3 %.
    assert 0.88 < error / spread < 1.12


def test_standard_error_and_bias_where_gaps_are_noise():
    ece, spread, error, confidence = simulated(lambda c: c)
    assert 1.3 < error / spread < 1.66 * 1.12
    # sum_b p_b sqrt(2 v_b / (pi n p_b)); eight of the bins are in use.
    edges = np.linspace(0, 1, 16)
    index = np.digitize(confidence.ravel(), edges) - 1
    share = np.bincount(index, minlength=15) / index.size
    variance = np.bincount(index, (confidence * (1 - confidence)).ravel(), 15)
    used = share > 0
    v = variance[used] / (share[used] * index.size)
    bias = np.sum(share[used] * np.sqrt(2 * v / (np.pi * 1_000 * share[used])))
    assert 0.02 < bias < 0.04
    np.testing.assert_allclose(np.mean(ece.value), bias, rtol=0.05)


# What is refused.


@pytest.mark.parametrize("num_bins", [0, -3, 2.5, None])
def test_impossible_numbers_of_bins(num_bins):
    with pytest.raises(UserError, match="metrics.init: num_bins=.*integer of 1 or more"):
        metrics.init(num_bins)


@pytest.mark.parametrize(
    ("logits", "label", "weight"),
    [((4,), (4,), (4,)), ((4, 3), (3,), (4,)), ((4, 3), (4,), (4, 1)), ((4, 3), (4, 3), (4,))],
)
def test_shapes_that_do_not_fit(logits, label, weight):
    arrays = jnp.zeros(logits), jnp.zeros(label, jnp.int32), jnp.zeros(weight)
    with pytest.raises(UserError, match=r"metrics.update: logits is .*give \[B, K\]"):
        metrics.update(metrics.init(5), *arrays)


# What is refused.


@pytest.mark.parametrize(
    "logits, label, weight, place, message",
    [
        (np.zeros((3, 4)), [0, -1, 2], [1, 1, 1], 0, "label is no class: from 0 to 3"),
        (np.zeros((3, 4)), [0, 4, 2], [1, 1, 1], 0, "label is no class"),
        (np.full((3, 4), 0.25), [0, 1, 2], [1, 1, 1], 1, "these are probabilities"),
        (np.zeros((3, 4)), [0, 1, 2], [1, 0.5, 1], 2, "weight is neither 0 nor 1"),
    ],
)
def test_what_is_refused(logits, label, weight, place, message):
    """Outside of a trace by an error; inside, all is NaN, and the totals say why."""
    arguments = (jnp.asarray(logits), jnp.asarray(label), jnp.asarray(weight, jnp.float32))
    with pytest.raises(UserError, match=message):
        metrics.update(metrics.init(5), *arguments)
    totals = update(metrics.init(5), *arguments)
    np.testing.assert_array_equal(totals.refused, np.arange(3) == place)
    found = metrics.compute(update(totals, *(x[2:] for x in arguments)))  # and stays so
    for value, error, count in found.values():
        assert np.isnan(value) and np.isnan(error) and count > 0


def test_what_only_pads_is_not_refused():
    """Labels of -1, and rows of probabilities, where the weight is 0; nor logits of 0 and 1."""
    hard = update(metrics.init(5), jnp.eye(3), jnp.arange(3), jnp.ones(3))
    assert not hard.refused.any() and values(hard)["accuracy"] == 1
    logits = jnp.asarray([[0.2, 0.9], [0.5, 0.5], [0.3, 0.3]])
    totals = update(metrics.init(5), logits, jnp.array([1, -1, 0]), jnp.array([1, 0, 1]))
    assert not totals.refused.any() and values(totals)["accuracy"] == 1
    nothing = update(metrics.init(5), logits, jnp.array([-1, -1, 9]), jnp.zeros(3))
    assert not nothing.refused.any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probabilities_are_known_by_their_sums(dtype):
    z = jax.random.normal(jax.random.key(0), (64, 10))
    label, weight = jnp.zeros(64, jnp.int32), jnp.ones(64)
    probabilities = jax.nn.softmax(z).astype(dtype)
    assert update(metrics.init(5), probabilities, label, weight).refused[1]
    assert not update(metrics.init(5), z.astype(dtype), label, weight).refused.any()


@pytest.mark.parametrize("step", [metrics.update, update])
def test_labels_in_a_byte(step):
    """Class 261 is not class 5, and 255 is a class of 256."""
    logits = jnp.zeros((2, 300)).at[jnp.arange(2), jnp.array([261, 7])].set(9.0)
    for label in (jnp.array([5, 7], jnp.uint8), np.array([5, 7], np.int8)):
        totals = step(metrics.init(5), logits, label, jnp.ones(2))
        assert not totals.refused.any() and values(totals)["accuracy"] == 0.5
    ends = jnp.zeros((2, 256)).at[jnp.arange(2), jnp.array([0, 255])].set(9.0)
    totals = step(metrics.init(5), ends, jnp.array([0, 255], jnp.uint8), jnp.ones(2))
    assert not totals.refused.any() and values(totals)["accuracy"] == 1


def test_one_logit_is_refused():
    with pytest.raises(UserError, match="of one class"):
        metrics.update(metrics.init(5), jnp.zeros((3, 1)), jnp.zeros(3, int), jnp.ones(3))
