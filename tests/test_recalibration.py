"""Vector, matrix and step-wise scaling, and errors without a number of bins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from sharpjax.errors import UserError
from sharpjax.metrics import (
    adaptive,
    binned_scaling,
    linear_scaling,
    reliability,
    selective,
    smooth,
    temperature,
)


def softmax(z):
    p = np.exp(np.float64(z) - np.max(z, axis=1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def draw(seed, size=300):
    """Four classes; labels are drawn of other logits than those that are given."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(size, 4)) * 2
    truth = z * [0.3, 0.5, 0.7, 0.5] + [0.0, 1.0, 0.0, -1.0]
    return z, np.argmax(truth + rng.gumbel(size=z.shape), axis=1)


@pytest.mark.parametrize("kind", ["vector", "matrix"])
def test_the_linear_map_is_the_minimum(kind, x64):
    """Where the gradient is 0 of a function that curves by a ridge at least."""
    z, y = draw(0)
    ridge = 1e-3
    fit = linear_scaling.fit(z, y, kind, ridge=ridge)
    T = temperature.fit(z, y).temperature.value
    one = jnp.ones(4) if kind == "vector" else jnp.eye(4)

    def objective(weights, bias):
        centred = (z - z.mean(1, keepdims=True)) / T
        out = (centred * weights if kind == "vector" else centred @ weights.T) + bias
        nll = jnp.mean(jax.nn.logsumexp(out, axis=1) - out[jnp.arange(len(y)), y])
        return nll + ridge / 2 * (jnp.sum((weights - one) ** 2) + jnp.sum(bias**2)), nll

    slopes, nll = jax.grad(objective, (0, 1), has_aux=True)(fit.weights, fit.bias)
    assert np.sqrt(sum(float(jnp.sum(s**2)) for s in slopes)) <= 2e-10 and fit.error <= 1e-7
    np.testing.assert_allclose(nll, fit.nll_after, rtol=1e-12)
    assert fit.nll_after < fit.nll_temperature < fit.nll_before and fit.num_steps < 20
    test, label = draw(1)
    before, after = (
        np.mean(-np.log(softmax(x)[np.arange(len(label)), label]))
        for x in (temperature.apply(temperature.fit(z, y), test), linear_scaling.apply(fit, test))
    )
    assert after < before


def test_two_confidences_become_their_shares():
    """A slope and an intercept can be any two numbers, so the likeliest ones are the shares."""
    z = np.array([[0.0, 2.0]] * 10 + [[0.0, -1.0]] * 5)
    label = np.array([1] * 6 + [0] * 4 + [1] * 1 + [0] * 4)
    fit = linear_scaling.fit(z, label, "vector", ridge=1e-9)
    p = softmax(linear_scaling.apply(fit, z, allow_overlap=True))[:, 1]
    np.testing.assert_allclose(p, [0.6] * 10 + [0.2] * 5, atol=1e-6)


def test_numbers_added_to_logits_and_their_scale_change_nothing(x64):
    z, y = draw(2)
    shift = np.random.default_rng(0).normal(size=(len(z), 1))
    first = linear_scaling.apply(linear_scaling.fit(z, y, "matrix"), z, allow_overlap=True)
    moved = 7 * z + shift
    other = linear_scaling.apply(linear_scaling.fit(moved, y, "matrix"), moved, allow_overlap=True)
    np.testing.assert_allclose(other, first, atol=1e-5)  # 1e-10 / ridge from the minimum, each


def test_a_large_ridge_is_the_temperature(x64):
    z, y = draw(3)
    fit = linear_scaling.fit(z, y, "matrix", ridge=1e8)
    T = temperature.fit(z, y).temperature.value
    want = z / T - (z / T).mean(1, keepdims=True)
    np.testing.assert_allclose(linear_scaling.apply(fit, z, allow_overlap=True), want, atol=1e-5)


def test_a_class_without_examples_has_a_finite_bias():
    z, y = draw(4)
    kept = y != 2
    fit = linear_scaling.fit(z[kept], y[kept], "vector")
    assert np.isfinite(fit.bias).all() and fit.bias[2] == fit.bias.min()


@pytest.mark.parametrize("kind", ["histogram", "isotonic"])
def test_steps_are_the_shares_of_the_label(kind):
    """Of two classes: what is predicted is how often it is so, on what it was fitted on."""
    rng = np.random.default_rng(5)
    gap = np.round(rng.normal(size=300), 1)  # with ties
    label = (rng.uniform(size=300) < 1 / (1 + np.exp(-gap / 2))).astype(int)
    z = np.stack([np.zeros(300), gap], 1)
    fit = binned_scaling.fit(z, label, kind, num_bins=10)
    if kind == "isotonic":
        q = softmax(binned_scaling.apply(fit, z, allow_overlap=True))[:, 1]
        p = softmax(z)[:, 1]
        theirs = IsotonicRegression().fit(p, label).predict(p)
        np.testing.assert_allclose(q, theirs, atol=1e-6)
        order = np.argsort(gap)
        assert (np.diff(q[order]) >= 0).all()
    for k in (0, 1):
        place = np.searchsorted(fit.edges[k], softmax(z)[:, k])
        shares = [np.mean(label[place == m] == k) for m in range(len(fit.values[k]))]
        np.testing.assert_allclose(fit.values[k], shares, atol=1e-12)
        if kind == "histogram":
            count = np.bincount(place)
            tied = np.unique(gap, return_counts=True)[1].max()
            assert len(count) == 10 and 30 - tied < count.min() <= count.max() < 30 + tied


def test_steps_without_ties_have_equal_mass_and_more_of_them_are_single():
    z, y = draw(6, size=60)
    fit = binned_scaling.fit(z, y, "histogram", num_bins=6)
    for k in range(4):
        place = np.searchsorted(fit.edges[k], softmax(z)[:, k])
        assert np.bincount(place).tolist() == [10] * 6
    alone = binned_scaling.fit(z, y, "histogram", num_bins=100)
    found = softmax(binned_scaling.apply(alone, z, allow_overlap=True))
    np.testing.assert_array_equal(found, np.eye(4)[y])
    # No class was ever the label at such probabilities: nothing is known.
    nothing = binned_scaling.Fit(alone.edges, tuple(0 * v for v in alone.values), alone.rows)
    found = softmax(binned_scaling.apply(nothing, z, allow_overlap=True))
    np.testing.assert_array_equal(found, 0.25)


def test_an_edge_between_neighbouring_floats():
    """Halfway between 1 - 2^-53 and 1 lies neither, and 1 is the even one."""
    low = np.nextafter(1.0, 0.0)
    confidence, right = np.array([low, low, 1.0, 1.0]), np.array([False, False, True, True])
    edges, values = binned_scaling._steps(confidence, right, "isotonic", 15)
    assert values[np.searchsorted(edges, [low, 1.0])].tolist() == [0.0, 1.0]


def test_what_is_fitted_is_not_measured_on_the_same():
    z, y = draw(7)
    for module, kind in ((linear_scaling, "vector"), (binned_scaling, "isotonic")):
        fit = module.fit(z, y, kind)
        with pytest.raises(UserError, match="300 of 300 examples .* fitted on"):
            module.apply(fit, z)
        with pytest.raises(UserError, match=r"logits is \[300, 3\]; give \[N, 4\]"):
            module.apply(fit, z[:, :3])
        with pytest.raises(UserError, match="unknown kind .*'platt'"):
            module.fit(z, y, "platt")
        with pytest.raises(UserError, match="these are probabilities"):
            module.fit(softmax(z), y, kind)
    for ridge in (0.0, float("nan"), -1.0):
        with pytest.raises(UserError, match="ridge must be a number > 0"):
            linear_scaling.fit(z, y, "vector", ridge=ridge)
    with pytest.raises(UserError, match="num_bins must be"):
        binned_scaling.fit(z, y, "histogram", num_bins=0)
    with pytest.raises(UserError, match="0 examples; give some"):
        binned_scaling.fit(z[:0], y[:0], "isotonic")


# Errors without a number of bins.


def test_the_smooth_error_is_its_fixed_point():
    """By the kernel itself, whose images lie behind the ends of [0, 1]."""
    z, y = draw(8, size=40)
    found = smooth.smooth_calibration_error(z, y)
    p = softmax(z)
    confidence, gap = p.max(1), (p.argmax(1) == y) - p.max(1)
    t = (np.arange(20_000) + 0.5) / 20_000
    smoothed = 0
    for image in (-2, 0, 2):
        for sign in (1, -1):
            way = (t[:, None] - image - sign * confidence) / found
            smoothed = smoothed + np.exp(-(way**2) / 2) / (found * np.sqrt(2 * np.pi)) @ gap
    np.testing.assert_allclose(np.mean(np.abs(smoothed / 40)), found, rtol=1e-5)
    again = smooth.smooth_calibration_error(z[::-1], y[::-1])
    np.testing.assert_allclose(again, found, atol=2e-9)


def test_the_smooth_error_is_continuous_and_small_where_there_is_none():
    def error(confidence, label):
        return smooth.smooth_calibration_error(np.log(np.stack([confidence, 1 - confidence], 1)),
                                               label)  # fmt: skip

    label = np.array([0, 1] * 50)
    # At the edge of two bins, right half the time on each side.
    near = error(np.where(label == 0, 0.6 + 1e-9, 0.6 - 1e-9), label)
    np.testing.assert_allclose(near, error(np.full(100, 0.6), label), atol=1e-6)
    np.testing.assert_allclose(near, 0.1, atol=1e-6)
    assert error(np.full(10, 0.6), np.array([0] * 6 + [1] * 4)) < 1e-9
    assert np.isnan(smooth.smooth_calibration_error(np.zeros((0, 2)), np.zeros(0, int)))
    assert np.isnan(error(np.array([np.nan]), np.array([0])))


@pytest.mark.parametrize("order", [1, 2])
def test_the_sweep_has_the_most_bins_that_increase(order):
    z, y = draw(9)
    p = softmax(z)
    order_of = np.argsort(p.max(1))
    confidence, right = p.max(1)[order_of], (p.argmax(1) == y)[order_of]
    for count in range(1, 301):
        # As many in each bin as when places are rounded down.
        parts = np.split(np.arange(300), np.arange(1, count) * 300 // count)
        means = [right[part].mean() for part in parts]
        if np.any(np.diff(means) < 0):
            break
        gaps = [abs(confidence[part].mean() - right[part].mean()) ** order for part in parts]
        want = sum(len(part) * gap for part, gap in zip(parts, gaps, strict=True)) / 300
    assert 2 < count < 50
    found = adaptive.sweep_calibration_error(z, y, order=order)
    np.testing.assert_allclose(found, want ** (1 / order), rtol=1e-10)
    shuffled = np.random.default_rng(0).permutation(300)
    again = adaptive.sweep_calibration_error(z[shuffled], y[shuffled], order=order)
    np.testing.assert_allclose(again, found, rtol=1e-12)
    # Equal confidences stay in one bin.
    ties = np.log([[0.6, 0.4]] * 10)
    got = adaptive.sweep_calibration_error(ties, np.array([0, 1] * 5), order=order)
    np.testing.assert_allclose(got, 0.1, rtol=1e-12)


FITS = {
    "temperature": (temperature, lambda z, y: temperature.fit(z, y)),
    "linear_scaling": (linear_scaling, lambda z, y: linear_scaling.fit(z, y, "vector")),
    "binned_scaling": (binned_scaling, lambda z, y: binned_scaling.fit(z, y, "isotonic")),
}


@pytest.mark.parametrize("name", FITS)
def test_what_is_no_logits_is_not_mapped(name):
    """Probabilities and fits of another kind are refused; NaN stays NaN."""
    z, y = draw(0)
    module, fit = FITS[name]
    found, other = fit(z, y), draw(1, 3)[0]
    with pytest.raises(UserError, match=f"{name}.apply: these are probabilities"):
        module.apply(found, softmax(other), allow_overlap=True)
    wrong = FITS["binned_scaling" if name == "temperature" else "temperature"][1](z, y)
    with pytest.raises(UserError, match=f"{name}.apply: fit must be from {name}.fit"):
        module.apply(wrong, other)
    narrow = jnp.asarray(softmax(other), jnp.bfloat16)
    with pytest.raises(UserError, match=f"{name}.apply: these are probabilities"):
        module.apply(found, narrow, allow_overlap=True)
    for bad in (other[0], other[None]):
        with pytest.raises(UserError, match=rf"{name}.apply: logits is .*; give \[N, K\]"):
            module.apply(found, bad)
    with pytest.raises(UserError, match=rf"{name}.apply: logits is \[3, 3\]; give \[N, 4\]"):
        module.apply(found, other[:, :3])
    other[1] = np.nan
    mapped = np.asarray(module.apply(found, other))
    np.testing.assert_array_equal(np.isnan(mapped).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(mapped[::2], module.apply(found, other[::2]))


def test_a_logit_of_minus_infinity():
    """A class that cannot be has a step, but no centred logits."""
    z, y = draw(0)
    other = draw(1, 3)[0]
    other[1, 0] = -np.inf
    mapped = linear_scaling.apply(linear_scaling.fit(z, y, "matrix"), other)
    np.testing.assert_array_equal(np.isnan(mapped).all(axis=1), [False, True, False])
    steps = binned_scaling.fit(z, y, "isotonic")
    finite = np.where(np.isfinite(other), other, -1e3)
    np.testing.assert_array_equal(
        binned_scaling.apply(steps, other), binned_scaling.apply(steps, finite)
    )


def test_inside_of_jit_what_computes_in_numpy_is_refused():
    z, y = draw(0, 20)
    bins, key = reliability.init(5), jax.random.key(0)
    found = {name: fit(z, y) for name, (_, fit) in FITS.items()}
    calls = [
        *(lambda z, name=name: FITS[name][1](z, y) for name in FITS),
        *(lambda z, name=name: FITS[name][0].apply(found[name], z) for name in FITS),
        lambda z: adaptive.adaptive_calibration_error(z, y),
        lambda z: adaptive.sweep_calibration_error(z, y),
        lambda z: adaptive.calibration_test(bins, z, y, key=key),
        lambda z: adaptive.compare_calibration(bins, z, z, y, key=key),
        lambda z: smooth.smooth_calibration_error(z, y),
        lambda z: selective.risk_coverage(z, y),
    ]
    for call in calls:
        with pytest.raises(UserError, match="outside of jit"):
            jax.jit(call)(jnp.asarray(z, jnp.float32))
