"""Calibration errors, Brier scores, temperature, risk: closed forms and simulations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import plots, tree
from sharpjax.errors import UserError
from sharpjax.metrics import adaptive, reliability, scores, selective, temperature

update = jax.jit(reliability.update)


def two_classes(confidence):
    """Logits of a prediction of class 0 with this confidence."""
    confidence = np.asarray(confidence, np.float64)
    with np.errstate(divide="ignore"):
        z = np.log(confidence) - np.log1p(-confidence)
    return np.stack([np.clip(z, -200, 200), np.zeros_like(z)], -1).astype(np.float32)


def by_hand(found, confidence, label):
    """Bins with a few predictions of class 0, padded to ten, so that tests share a program."""
    rest = 10 - len(label)
    logits = two_classes([*confidence, *[0.5] * rest])
    weight = np.arange(10) < len(label)
    return update(found, logits, np.array([*label, *[0] * rest]), weight.astype(np.float32))


def values(found):
    return {name: float(estimate.value) for name, estimate in reliability.compute(found).items()}


def draw(seed, size=500, num_classes=4):
    """Predictions that are too sure: labels are drawn at temperature 2."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(size, num_classes)) * 2
    label = np.argmax(z / 2 + rng.gumbel(size=z.shape), axis=1)
    return z.astype(np.float32), label.astype(np.int32)


def softmax(z):
    p = np.exp(np.float64(z) - np.max(z, axis=1, keepdims=True))
    return p / p.sum(1, keepdims=True)


# Bins and their edges.


@pytest.mark.parametrize(
    ("closed", "error"), [("right", 0.475), ("left", 0.475), ("torchmetrics", 0.525)]
)
def test_a_confidence_of_1(closed, error):
    """Predictions of .95 and 1, right and wrong: apart |.05| + |1|, together |1.95 - 1|, halved."""
    found = by_hand(reliability.init(10, closed=closed), [0.95, 1.0], [0, 1])
    np.testing.assert_allclose(values(found)["ece"], error, rtol=1e-6)


@pytest.mark.parametrize(("closed", "places"), [("right", [0, 0, 1, 2]), ("left", [0, 1, 2, 2])])
def test_edges_belong_to_one_side(closed, places):
    found = reliability.init(edges=[0, 0.5, 0.75, 1], closed=closed)
    index = reliability.bin_of(found, jnp.array([0.0, 0.5, 0.75, 1.0]))
    assert index.tolist() == places


def test_constant_confidence_is_off_by_its_distance_from_the_accuracy():
    found = by_hand(reliability.init(10), [0.9] * 10, [0] * 6 + [1] * 4)
    got = values(found)
    for name in ("ece", "mce", "rmsce"):
        np.testing.assert_allclose(got[name], 0.3, rtol=1e-5)
    np.testing.assert_allclose(got["overconfidence"], 0.9 * 0.3, rtol=1e-5)
    np.testing.assert_allclose(got["rmsce_debiased"], np.sqrt(0.09 - 0.24 / 9), rtol=1e-5)
    # Beside it one alone in its bin, of which 0.9^2 or 0.1^2 would be the noise.
    more = by_hand(reliability.init(10), [0.9] * 9 + [0.6], [0] * 6 + [1] * 3 + [1])
    want = np.sqrt(0.9 * ((0.9 - 2 / 3) ** 2 - 2 / 9 / 8))
    np.testing.assert_allclose(values(more)["rmsce_debiased"], want, rtol=1e-5)
    # The excess of |.3 + sigma Z| over .3, sigma^2 = .024, by a million draws.
    noise = np.random.default_rng(0).normal(size=1_000_000)
    excess = np.abs(0.3 + np.sqrt(0.024) * noise).mean() - 0.3
    np.testing.assert_allclose(got["ece_debiased"], 0.3 - excess, atol=5 * 0.155 / 1000)


@pytest.mark.parametrize("of", ["top", "classes"])
def test_numpy_in_float64(of):
    z, y = draw(0)
    p = softmax(z)
    right = y[:, None] == np.arange(4)
    if of == "top":
        p, right = p.max(1, keepdims=True), (p.argmax(1) == y)[:, None]
    ece, debiased, null, parts = [], [], [], np.zeros(4)
    for c, hit in zip(p.T, right.T, strict=True):
        index = np.searchsorted(np.arange(1, 15) / 15, c, side="left")
        total = np.zeros(3)
        for b in np.unique(index):
            own = index == b
            f, n = own.mean(), own.sum()
            gap, noise = abs(c[own].mean() - hit[own].mean()), hit[own].var()
            total += f * np.array(
                [gap, gap**2 - noise / (n - 1) if n > 1 else 0,
                 np.sqrt(2 * (c[own] * (1 - c[own])).mean() / (np.pi * n))]
            )  # fmt: skip
            residual = ((hit[own] - c[own]) ** 2).mean() - gap**2 - noise
            parts += f * np.array([gap**2, (hit[own].mean() - hit.mean()) ** 2, 0, residual])
        parts[2] += hit.mean() * (1 - hit.mean())
        ece.append(total[0]), debiased.append(total[1]), null.append(total[2])
    found = reliability.init(15, of=of, num_classes=4 if of == "classes" else None)
    got = values(update(found, z, y))
    np.testing.assert_allclose(got["ece"], np.mean(ece), rtol=1e-5)
    np.testing.assert_allclose(got["rmsce_debiased"] ** 2, max(np.mean(debiased), 0), rtol=1e-4)
    np.testing.assert_allclose(got["ece_null"], np.mean(null), rtol=1e-4)
    names = ("reliability", "resolution", "uncertainty", "within")
    np.testing.assert_allclose([got[f"brier_{name}"] for name in names], parts, atol=2e-6)
    signed = parts[0] - parts[1] + parts[2] + parts[3]
    brier = ((right - p) ** 2).sum(1)
    np.testing.assert_allclose([signed, got["brier"]], brier.mean(), rtol=1e-6)
    if of == "classes":
        np.testing.assert_allclose(scores.brier(z, y), brier, rtol=1e-5, atol=1e-7)
        assert np.isnan(reliability.compute(update(found, z, y))["ece"].standard_error)


def test_batches_order_merging_and_padding():
    z, y = draw(1)
    order = np.random.default_rng(2).permutation(500)
    empty = reliability.init(15, of="classes", num_classes=4)
    one = values(update(empty, z, y))
    lanes = jax.jit(jax.vmap(reliability.update, (None, 0, 0)))(
        empty, z[order].reshape(2, 250, 4), y[order].reshape(2, 250)
    )
    halves = [tree.index(lanes, i) for i in (0, 1)]
    junk = np.full((3, 4), np.nan, np.float32)
    padded = update(empty, np.concatenate([z, junk]), np.append(y, [9, -1, 0]),
                    np.arange(503) < 500)  # fmt: skip
    for other in (reliability.merge(*halves), reliability.merge(*halves[::-1]), padded):
        assert values(other) == pytest.approx(one, rel=1e-6, abs=1e-7)
    assert jax.vmap(reliability.compute)(lanes)["ece"].value.shape == (2,)
    both = jax.vmap(reliability.merge)(lanes, lanes)
    np.testing.assert_array_equal(both.count, 2 * lanes.count)
    with pytest.raises(UserError, match="not the same bins"):
        reliability.merge(empty, reliability.init(15))
    assert np.isnan(list(values(empty).values())).all()


def test_the_null_expectation_is_that_of_calibrated_models():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.5, 1.0, (300, 500))
    label = jnp.asarray(rng.uniform(size=confidence.shape) >= confidence, jnp.int32)
    logits = jnp.stack([jnp.asarray(two_classes(c)) for c in confidence])

    def run(z, y):
        return reliability.compute(reliability.update(reliability.init(), z, y))

    found = jax.jit(jax.vmap(run))(logits, label)
    mean, spread = np.mean(found["ece"].value), np.std(found["ece"].value) / np.sqrt(300)
    # The normal approximation is good to 2 %.
    np.testing.assert_allclose(
        np.mean(found["ece_null"].value), mean, atol=5 * spread + 0.02 * mean
    )
    # Of normal noise E|X| = sqrt(2 / pi) and E|X + Z| is sqrt(2) times as large.
    left = np.mean(found["ece_debiased"].value) / mean
    np.testing.assert_allclose(left, 2 - np.sqrt(2), atol=0.05)


def test_the_test_of_calibration(key):
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.5, 1.0, 400)
    logits, uniform = two_classes(confidence), rng.uniform(size=400)
    for shift, calibrated in ((0.0, True), (-0.25, False)):
        label = (uniform >= confidence + shift).astype(np.int32)
        bins = reliability.init(10)
        found = adaptive.calibration_test(bins, logits, label, key=key, num_draws=200)
        np.testing.assert_allclose(found.ece, values(update(bins, logits, label))["ece"], rtol=1e-5)
        assert found.low < found.mean < found.high < 0.1
        assert found.p_value > 0.05 if calibrated else found.p_value == 1 / 201
    classes = reliability.init(10, of="classes", num_classes=4)
    z, y = draw(5)
    found = adaptive.calibration_test(classes, z, y, key=key, num_draws=200)
    np.testing.assert_allclose(found.ece, values(update(classes, z, y))["ece"], rtol=1e-5)
    assert found.p_value == 1 / 201  # too sure, by construction
    with pytest.raises(UserError, match="calibration_test: logits of 3 classes, and .* are of 4"):
        adaptive.calibration_test(classes, z[:, :3], y % 3, key=key, num_draws=2)


def test_p_values_of_calibrated_models_are_uniform(key):
    """On 1/101 to 1: their mean is 0.505, and that of 50 of them is off by 0.29 / sqrt 50."""
    rng, bins = np.random.default_rng(16), reliability.init(10)
    confidence = rng.uniform(0.5, 1.0, (50, 400))
    label = (rng.uniform(size=confidence.shape) >= confidence).astype(np.int32)
    p = [
        adaptive.calibration_test(bins, two_classes(c), y, key=k, num_draws=100).p_value
        for c, y, k in zip(confidence, label, jax.random.split(key, 50), strict=True)
    ]
    assert abs(np.mean(p) - 0.505) < 4 * 0.29 / np.sqrt(50)
    assert min(p) < 0.2 and max(p) > 0.8


def test_errors_that_are_equal_count_as_large(key):
    # A gap of 0: no calibrated model has a smaller one.
    label = np.random.default_rng(17).permutation(np.arange(2000) >= 1900).astype(np.int32)
    bins, z = reliability.init(15), two_classes([0.95] * 2000)
    assert adaptive.calibration_test(bins, z, label, key=key, num_draws=200).p_value == 1
    # 1,890 and 1,910 right are equally far from the 1,900 expected.
    below, above = (
        adaptive.calibration_test(bins, z, np.int32(np.arange(2000) >= n), key=key, num_draws=200)
        for n in (1890, 1910)
    )
    assert below.p_value == above.p_value


def test_models_of_equal_errors_count_as_far():
    """In one bin the predictions of two examples change places, twice: the errors differ by 0."""
    confidence, places = np.random.default_rng(19).uniform(0.6, 0.99, 300), [0, 100, 200, 299]
    confidence[places], other = (0.71, 0.72, 0.73, 0.77), confidence.copy()
    other[places] = 0.72, 0.71, 0.77, 0.73
    pair = two_classes(confidence), two_classes(other)
    found = adaptive.compare_calibration(
        reliability.init(10), *pair, np.zeros(300, np.int32), key=jax.random.key(0), num_draws=200
    )
    # Two sums of some 80 gaps below 0.3, each rounded 80 times in float64, over 300.
    assert abs(found.difference) < 2 * 80 * 80 * 0.3 * 2.0**-53 / 300 and found.p_value == 1


def test_bins_of_equal_mass():
    z, y = draw(6)
    p = softmax(z)
    confidence, right = p.max(1), p.argmax(1) == y
    order = np.argsort(confidence)
    parts = np.array_split(order, 7)
    want = sum(abs((confidence - right)[part].sum()) for part in parts) / 500
    got = adaptive.adaptive_calibration_error(z, y, num_bins=7, of="top")
    np.testing.assert_allclose(got, want, rtol=1e-12)
    shuffled = np.random.default_rng(0).permutation(500)
    for num_bins in (7, 500, 1000):
        ace = [adaptive.adaptive_calibration_error(z[i], y[i], num_bins=num_bins)
               for i in (slice(None), shuffled)]  # fmt: skip
        np.testing.assert_allclose(*ace, rtol=1e-12)
    # Alone in its bin, each example is as far off as it is.
    alone = adaptive.adaptive_calibration_error(z, y, num_bins=500, of="top")
    np.testing.assert_allclose(alone, np.abs(confidence - right).mean(), rtol=1e-12)
    # What is equal stays together: in two bins it would not cancel.
    ties = two_classes([0.5] * 4)
    assert adaptive.adaptive_calibration_error(ties, np.array([0, 0, 1, 1]), num_bins=2) == 0


def test_a_threshold_leaves_out_small_probabilities():
    z, y = draw(14)
    p, right = softmax(z), y[:, None] == np.arange(4)
    errors = []
    for c, hit in zip(p.T, right.T, strict=True):
        order = np.argsort(c)
        order = order[c[order] >= 0.1]
        parts = np.array_split(order, 5)
        errors.append(sum(abs((c - hit)[part].sum()) for part in parts) / len(order))
    got = adaptive.adaptive_calibration_error(z, y, num_bins=5, threshold=0.1)
    np.testing.assert_allclose(got, np.mean(errors), rtol=1e-12)
    with pytest.raises(UserError, match="threshold=1"):
        adaptive.adaptive_calibration_error(z, y, threshold=1)


def test_two_models_are_compared_on_the_same_examples(key):
    rng = np.random.default_rng(15)
    confidence = rng.uniform(0.5, 0.95, 400)
    label = (rng.uniform(size=400) >= confidence).astype(np.int32)
    good = two_classes(confidence)
    sure = two_classes(1 - (1 - confidence) / 5)
    bins = reliability.init(10)
    found = adaptive.compare_calibration(bins, sure, good, label, key=key, num_draws=200)
    errors = [values(update(bins, z, label))["ece"] for z in (sure, good)]
    np.testing.assert_allclose(found.difference, errors[0] - errors[1], rtol=1e-4)
    assert found.p_value == 1 / 201
    back = adaptive.compare_calibration(bins, good, sure, label, key=key, num_draws=200)
    assert back.difference == -found.difference and back.p_value == found.p_value
    same = adaptive.compare_calibration(bins, good, good, label, key=key, num_draws=200)
    assert same == (0.0, 1.0)
    classes = reliability.init(of="classes", num_classes=2)
    with pytest.raises(UserError, match="bins of the top class"):
        adaptive.compare_calibration(classes, good, good, label, key=key)


def test_a_diagram_and_its_picture():
    found = by_hand(reliability.init(10), [0.55, 0.58, 0.95], [0, 1, 0])
    diagram = reliability.diagram(found)
    assert diagram.count.tolist() == [0] * 5 + [2] + [0] * 3 + [1]
    np.testing.assert_allclose(diagram.confidence[5], 0.565, rtol=1e-6)
    assert diagram.accuracy[5] == 0.5 and np.isnan(diagram.accuracy[0])
    # Wilson, by its definition: the p at which (a - p)^2 = z^2 p (1 - p) / n.
    for p in (diagram.low[5], diagram.high[5]):
        np.testing.assert_allclose((0.5 - p) ** 2, 1.959964**2 * p * (1 - p) / 2, rtol=1e-5)
    sure = by_hand(reliability.init(10, closed="torchmetrics"), [1.0], [0])
    drawn = plots.reliability({"sgd": diagram, "sam": reliability.diagram(sure)})
    shares = [patch.get_data().values for patch in drawn.axes[1].patches]
    np.testing.assert_allclose(shares, [[0] * 5 + [2 / 3, 0, 0, 0, 1 / 3], [0] * 9 + [1]])
    assert len(plots.png(drawn)) > 1000
    assert [axis.get_ylabel() for axis in drawn.axes] == ["accuracy", "share"]
    classes = reliability.diagram(reliability.init(10, of="classes", num_classes=3))
    for bad in ({}, {"a": classes}, {"a": diagram, "b": classes}):
        with pytest.raises(UserError, match="plots.reliability"):
            plots.reliability(bad)


# Temperature.


@pytest.mark.parametrize("factor", [1e-30, 0.2, 1.0, 3.0, 40.0, 1e30])
def test_the_temperature_of_rescaled_log_probabilities(factor):
    """Labels in just the shares that p says: the gradient is 0 at T = factor."""
    p = np.array([[0.25, 0.75]] * 4 + [[0.6, 0.4]] * 5)
    label = np.array([0, 1, 1, 1, 0, 0, 0, 1, 1])
    fit = temperature.fit(factor * np.log(p), label)
    assert fit.temperature.value == pytest.approx(factor, rel=1e-9)
    assert fit.nll_after <= fit.nll_before + 1e-15 and fit.num_steps < 60


def test_one_example_says_nothing_of_the_error_of_a_temperature():
    fit = temperature.fit(np.array([[2.0, 1.0, -9.0]]), np.array([1]))
    assert fit.temperature.value > 0 and np.isnan(fit.temperature.standard_error)


def test_the_temperature_is_the_minimum_and_keeps_predictions():
    z, y = draw(7)
    fit = temperature.fit(z, y)
    T, error, _ = fit.temperature
    assert abs(T - 2) < 5 * error and 0.05 < error < 0.4
    near = [np.mean(scores.nll(z / (T * c), y)) for c in (1.0, 0.98, 1.02)]
    assert near[0] < min(near[1:])
    np.testing.assert_allclose([fit.nll_after], near[0], rtol=1e-6)
    test, label = draw(8)
    scaled = temperature.apply(fit, test)
    np.testing.assert_array_equal(np.argmax(scaled, 1), np.argmax(test, 1))
    before, after = (values(update(reliability.init(), x, label))["ece"] for x in (test, scaled))
    assert after < before


def test_a_temperature_is_not_applied_to_what_it_was_fitted_on():
    z, y = draw(9)
    fit = temperature.fit(z[:100], y[:100])
    with pytest.raises(UserError, match="100 of 500 examples .* fitted on"):
        temperature.apply(fit, z)
    np.testing.assert_array_equal(
        temperature.apply(fit, z, allow_overlap=True)[100:], temperature.apply(fit, z[100:])
    )


@pytest.mark.parametrize(
    ("logits", "label", "words"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1], "all 2 predictions are right"),
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0], "temperature is infinite"),
        ([[2.0, 2.0], [1.0, 1.0]], [0, 1], "all equal"),
        ([[2.0, np.inf], [0.0, 1.0]], [0, 1], "not finite"),
        ([[0.4, 0.6], [0.9, 0.1]], [0, 1], "these are probabilities"),
    ],
)
def test_temperatures_that_there_are_not(logits, label, words):
    with pytest.raises(UserError, match=words):
        temperature.fit(np.array(logits), np.array(label))


def test_gaps_of_very_different_size():
    """50 pairs of gap 1 that are right, one of gap g that is wrong, b = 1 / T: the derivative
    -50 / (1 + exp b) + g / (1 + exp -gb) is 0 where b = log(100 / g - 1), as far as g b is 0."""
    for g in (1e-12, 1e-44):
        fit = temperature.fit(np.array([[1.0, 0.0]] * 50 + [[0.0, g]]), np.zeros(51, int))
        np.testing.assert_allclose(1 / fit.temperature.value, np.log(100 / g - 1), rtol=1e-9)


def test_integer_logits_are_numbers():
    z, y = np.array([[3, 0], [0, 2], [1, 0]]), np.array([0, 1, 1])
    fit = temperature.fit(z, y)
    for given in (z, z.astype(np.float32)):
        scaled = temperature.apply(fit, given + 10)
        np.testing.assert_allclose(scaled, (z + 10) / fit.temperature.value, rtol=1e-6)
    np.testing.assert_allclose(scores.nll(z, y), np.log1p(np.exp([-3.0, -2.0, 1.0])), rtol=1e-6)
    with pytest.raises(UserError, match="label is float32; give integers"):
        scores.nll(z, y.astype(np.float32))


# Selective prediction and scores.


def test_the_area_under_the_risk_is_the_mean_over_orders_of_ties():
    z = two_classes([0.9, 0.8, 0.8, 0.8, 0.6])
    y = np.array([1, 0, 1, 0, 0])
    found = selective.risk_coverage(z, y)
    orders = [[1, a, b, c, 0] for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    risks = [np.cumsum(order) / np.arange(1, 6) for order in orders]
    np.testing.assert_allclose(found.risk, np.mean(risks, 0), rtol=1e-12)
    best = np.cumsum([0, 0, 0, 1, 1]) / np.arange(1, 6)
    np.testing.assert_allclose(found.excess_aurc, np.mean(risks) - best.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.coverage, np.arange(1, 6) / 5)
    again = selective.risk_coverage(z[::-1], y[::-1])
    np.testing.assert_array_equal(again.risk, found.risk)
    # Confidences that are 1 in float32 keep their order.
    sure = np.array([[30.0, 0.0], [60.0, 0.0]])
    assert selective.risk_coverage(sure, np.array([1, 0])).risk.tolist() == [0.0, 0.5]
    # A class that cannot be is one of probability 0; infinity, or nothing but it, is no prediction.
    found = selective.risk_coverage([[0.0, -np.inf], [1.0, 0.0], [2.0, 0.0]], np.array([0, 1, 0]))
    assert found.risk.tolist() == [0.0, 0.0, 1 / 3]
    for row in ([0.0, np.inf], [-np.inf, -np.inf]):
        with np.errstate(invalid="ignore"):
            assert np.isnan(selective.risk_coverage([row, [1.0, 0.0]], np.array([0, 0])).aurc)


def test_scores_and_their_means():
    z, y = draw(10)
    p = softmax(z)
    want = -np.log(p[np.arange(500), y])
    np.testing.assert_allclose(scores.nll(z, y), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.entropy(z), -(p * np.log(p)).sum(1), rtol=1e-5)
    assert scores.entropy(jnp.array([[0.0, -jnp.inf]])).tolist() == [0.0]
    found = scores.mean(scores.nll(z, y))
    np.testing.assert_allclose(found.standard_error, np.std(scores.nll(z, y), ddof=1) / 500**0.5)
    with pytest.raises(UserError, match=r"scores.mean: values is \[500, 4\]; give \[N\]"):
        scores.mean(p)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ([np.zeros(9)], {"level": 1}, "level=1"),
        ([np.zeros(9)], {"num_draws": 1}, "num_draws=1 with level=0.95; give 40 or more"),
        ([np.zeros(9)], {"num_draws": 199, "level": 0.99}, ".*; give 200 or more"),
        ([np.zeros(9), np.zeros(8)], {}, r"arrays of shapes \[\[9\], \[8\]\]; give one or more"),
        ([np.zeros(9), 1.0], {}, r"arrays of shapes \[\[9\], \[\]\]"),
        ([], {}, r"arrays of shapes \[\]"),
    ],
)
def test_bootstraps_that_say_nothing(arrays, options, words):
    def sums(*arrays):
        return sum(map(jnp.mean, arrays))

    with pytest.raises(UserError, match=f"scores.bootstrap_interval: {words}"):
        scores.bootstrap_interval(sums, *arrays, key=jax.random.key(0), **options)


def test_a_bootstrap_interval_of_a_calibration_error(key):
    """Where gaps stand out, and the bias is not all there is: it holds the truth."""
    rng = np.random.default_rng(11)
    confidence = rng.uniform(0.7, 1.0, 1000)
    label = (rng.uniform(size=1000) >= confidence - 0.2).astype(np.int32)

    @jax.jit
    def ece(z, y):
        return reliability.compute(reliability.update(reliability.init(10), z, y))["ece"].value

    low, high = scores.bootstrap_interval(
        ece, two_classes(confidence), label, key=key, num_draws=100
    )
    assert low < 0.2 < high and high - low < 0.09


# What is refused.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_bins": 0}, "num_bins must be a whole number >= 1, got 0"),
        ({"num_bins": 5, "edges": [0, 1]}, "num_bins or edges, not both"),
        ({"edges": [0.1, 1]}, "increase from 0 to 1"),
        ({"edges": [0, 0.5, 0.5, 1]}, "increase from 0 to 1"),
        ({"closed": "top"}, "unknown closed .*'top'"),
        ({"of": "classes"}, "num_classes=None with of='classes'"),
        ({"num_classes": 3}, "num_classes=3 with of='top'"),
        ({"of": "classes", "num_classes": 0}, "num_classes must be a whole number >= 1, got 0"),
    ],
)
def test_bins_that_are_none(options, words):
    with pytest.raises(UserError, match=words):
        reliability.init(**options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "metric",
    [
        lambda z, y: reliability.update(reliability.init(), z, y),
        scores.nll,
        scores.brier,
        selective.risk_coverage,
        adaptive.adaptive_calibration_error,
        lambda z, y: adaptive.calibration_test(
            reliability.init(), z, y, key=jax.random.key(0), num_draws=1
        ),
    ],
)
def test_probabilities_are_refused(metric, dtype):
    z, y = draw(12)
    with pytest.raises(UserError, match="these are probabilities"):
        metric(jnp.asarray(softmax(z), dtype), y)


def test_inside_a_trace_probabilities_give_nan():
    z, y = draw(13)
    p = jnp.asarray(softmax(z), jnp.float32)
    found = update(reliability.init(), p, y)
    assert np.isnan(list(values(found).values())).all()
    with pytest.raises(UserError, match="these are probabilities"):
        reliability.diagram(found)
    assert np.isnan(jax.jit(scores.nll)(p, y)).all()
    with pytest.raises(UserError, match="logits of 4 classes, and the bins are of 3"):
        reliability.update(reliability.init(of="classes", num_classes=3), z, y)
    assert tree.size(dataclasses.replace(found, edges=jnp.zeros(0))) == 15 * 8 + 3


def test_nothing_is_said_of_no_predictions(key):
    z, y, bins = np.full((10, 2), np.nan, np.float32), np.zeros(10, int), reliability.init(10)
    for found in (by_hand(bins, [np.nan], [0]), by_hand(bins, [], [])):
        assert np.isnan(list(values(found).values())).all()
    for n, words in ((10, "not finite"), (0, "there are no examples")):
        none, own = z[:n], y[:n]
        found = adaptive.calibration_test(bins, none, own, key=key, num_draws=2)
        assert np.isnan(found).all()
        found = adaptive.compare_calibration(bins, none, none, own, key=key, num_draws=2)
        assert np.isnan(found).all()
        assert np.isnan(selective.risk_coverage(z[:n], y[:n])[2:]).all()
        with pytest.raises(UserError, match=f"temperature.fit: .*{words}"):
            temperature.fit(z[:n], y[:n])


def test_one_example_has_no_standard_error():
    for confidence in (0.51, 0.57, 0.63, 0.69, 0.71):  # whose gap^2 may not be ece^2 to the bit
        found = by_hand(reliability.init(10), [confidence], [1])
        assert np.isnan(reliability.compute(found)["ece"].standard_error)
