"""Distances between the predictions of models, and what pairs of models say together."""

import numpy as np
import pytest
from scipy.spatial import distance as scipy_distance

from sharpjax import metrics
from sharpjax.errors import UserError
from sharpjax.metrics import functional
from sharpjax.protocol.tests.pairwise import jackknife

DISTANCES = (
    functional.disagreement,
    functional.normalized_disagreement,
    functional.jensen_shannon,
    functional.activation_distance,
)


def outputs(num_models=5, size=200, num_classes=4):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(size, num_classes))
    label = rng.integers(0, num_classes, size)
    noise = rng.normal(size=(num_models, size, num_classes))
    return [2 * (shared + own) for own in noise], label


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def test_against_scipy():
    (a, b, *_), _ = outputs()
    p, q = softmax(a), softmax(b)
    want = scipy_distance.jensenshannon(p, q, axis=1) ** 2
    np.testing.assert_allclose(functional.jensen_shannon(a, b), want.mean(), rtol=1e-10)
    want = [scipy_distance.euclidean(x, y) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(functional.activation_distance(a, b), np.mean(want), rtol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_symmetric_zero_of_equals_and_blind_to_a_shift_of_logits(distance):
    (a, b, *_), label = outputs()
    found = distance(a, b, label)
    assert found > 0 and distance(a, a, label) == 0
    assert distance(b, a, label) == pytest.approx(found, rel=1e-12)
    shift = np.random.default_rng(1).normal(size=(len(a), 1))
    assert distance(a + shift, b - shift, label) == pytest.approx(found, rel=1e-10)
    with pytest.raises(UserError, match="b is not finite"):
        distance(a, np.where(a > 3, np.inf, b), label)


def test_independent_errors_have_twice_the_rate():
    rng = np.random.default_rng(2)
    a, b = (np.where(rng.uniform(size=(20_000, 2)) < [1.0, 0.02], 1.0, 0.0) for _ in "ab")
    a[:, 0], b[:, 0] = 0.5, 0.5  # the second class, wrongly, in 2 of 100
    found = functional.normalized_disagreement(a, b, np.zeros(20_000, int))
    # Errors in common leave 2 (1 - .02); some 800 disagreements are off by less than 5 sqrt(800).
    np.testing.assert_allclose(found, 1.96, rtol=5 / np.sqrt(800))


@pytest.mark.parametrize("distance", DISTANCES)
def test_outputs_of_other_examples_are_refused(distance):
    (a, b, *_), label = outputs()
    for given in ((a, b[:1], label), (a, b, label[:, None]), (a[0], b[0], label)):
        with pytest.raises(UserError, match=f"{distance.__name__}: a is .* of the same examples"):
            distance(*given)


@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_opposite_certainties_are_as_far_as_can_be(factor):
    a = factor * np.array([[100.0, 0.0, 0.0]])
    b = a[:, ::-1]
    np.testing.assert_allclose(functional.jensen_shannon(a, b), np.log(2), rtol=1e-12)
    np.testing.assert_allclose(functional.activation_distance(a, b), np.sqrt(2), rtol=1e-12)


def test_independent_rare_errors_have_a_normalised_disagreement_of_2_less_what_coincides():
    """At error rates e: 2 e - 2 e^2 + (errors that differ) over e."""
    rng = np.random.default_rng(2)
    label, n, e = np.zeros(100_000, int), 100_000, 0.05
    models = []
    for _ in range(2):
        predicted = np.where(rng.uniform(size=n) < e, rng.integers(1, 4, n), 0)
        models.append(np.eye(4)[predicted] * 5)
    want = (2 * e * (1 - e) + e**2 * 2 / 3) / e
    # The share of disagreements has a standard deviation of sqrt(2 e / n).
    error = np.sqrt(2 * e / n) / e
    assert abs(functional.normalized_disagreement(*models, label) - want) < 6 * error
    assert np.isnan(functional.normalized_disagreement(np.eye(2), np.eye(2), np.arange(2)))


@pytest.mark.parametrize("distance", [functional.jensen_shannon, functional.activation_distance])
def test_probabilities_are_refused(distance):
    (a, b, *_), _ = outputs()
    with pytest.raises(UserError, match="these are probabilities"):
        distance(softmax(a), b)
    with pytest.raises(UserError, match="these are probabilities"):
        distance(a, softmax(b).astype(np.float32))


def test_pairs_of_models_and_their_jackknife():
    models, label = outputs()
    found = metrics.pairwise(models, functional.jensen_shannon)
    np.testing.assert_array_equal(found, found.T)
    assert np.isnan(np.diag(found)).all()
    assert found[1, 3] == functional.jensen_shannon(models[3], models[1])
    mean, error = jackknife(found)
    assert mean == pytest.approx(found[~np.eye(5, dtype=bool)].mean())
    # By hand: leave out one model at a time.
    without = [jackknife(np.delete(np.delete(found, i, 0), i, 1))[0] for i in range(5)]
    spread = np.sum((np.array(without) - np.mean(without)) ** 2)
    assert error == pytest.approx(np.sqrt(4 / 5 * spread)) and error > 0
    for bad in (models[:1], [models[0], models[1][:50]]):
        with pytest.raises(UserError, match="metrics.pairwise"):
            metrics.pairwise(bad)
