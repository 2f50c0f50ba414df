"""Computed sets: minima that are known, circles that are circles, and streams of their own."""

import numpy as np
import pytest
from sklearn.datasets import make_circles

from sharpjax.data import Circles, Surface
from sharpjax.data.synthetic import SURFACES
from sharpjax.errors import UserError

# Where each surface is 0, its least value.
MINIMA = {
    "sphere": [(0, 0)],
    "rosenbrock": [(1, 1)],
    "rastrigin": [(0, 0)],
    "beale": [(3, 0.5)],
    "booth": [(1, 3)],
    "three_hump_camel": [(0, 0)],
    "himmelblau": [
        (3, 2), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126),
    ],
}  # fmt: skip
# And what it is at (2, 1), by hand.
AT_2_1 = {
    "sphere": 5,
    "rosenbrock": 1 + 100 * 9,
    "rastrigin": 5,
    "beale": 1.5**2 + 2.25**2 + 2.625**2,
    "booth": 9 + 0,
    "three_hump_camel": 8 - 16.8 + 64 / 6 + 2 + 1,
    "himmelblau": 36 + 16,
}


@pytest.mark.parametrize("name", SURFACES)
def test_surfaces_are_what_they_are_called(name):
    surface = SURFACES[name]
    for x, y in MINIMA[name]:
        assert abs(surface(float(x), float(y))) < 1e-9  # coordinates to 6 digits, squared
    assert surface(2.0, 1.0) == pytest.approx(AT_2_1[name], rel=1e-12)
    grid = np.meshgrid(*[np.linspace(-4, 4, 101)] * 2)
    assert surface(*grid).min() >= -1e-12


@pytest.mark.parametrize("name", SURFACES)
def test_targets_are_the_heights_of_their_points(name):
    train, test, validation = Surface(name, num_train=200, num_test=50).load().splits
    assert validation is None
    for split, num in ((train, 200), (test, 50)):
        assert split.input.shape == (num, 2) and split.label.shape == (num, 1)
        assert split.input.dtype == split.label.dtype == np.float32
        assert np.abs(split.input).max() <= 3.5 and split.mean is None
        x, y = split.input.astype(np.float64).T
        # Rounded once to float32.
        np.testing.assert_allclose(split.label[:, 0], SURFACES[name](x, y), rtol=2**-24)


def test_splits_have_streams_of_their_own():
    small, large = (Surface("sphere", num_train=n, num_test=20).load() for n in (10, 30))
    np.testing.assert_array_equal(small.splits.train.input, large.splits.train.input[:10])
    assert small.digests["test"] == large.digests["test"]
    assert small.digests["train"] != large.digests["train"]
    assert not np.isin(large.splits.train.input, large.splits.test.input).any()
    other = Surface("sphere", num_train=10, num_test=20, seed=1).load()
    assert not np.isin(other.splits.train.input, small.splits.train.input).any()
    # Golden: the stream is frozen.
    np.testing.assert_array_equal(small.splits.train.input[0], np.float32(GOLDEN))


GOLDEN = [-2.444979190826416, -2.1312010288238525]


def test_points_fill_the_square_evenly():
    point = Surface("sphere", num_train=20_000, bound=2.0).load().splits.train.input
    count = np.histogram2d(*point.T, bins=5, range=[[-2, 2]] * 2)[0]
    # Given the seed a fixed number; chi-squared of 24 degrees of freedom, 99.9 % of it below.
    assert ((count - 800) ** 2 / 800).sum() < 51.2


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9])
def test_training_points_are_those_of_scikit_learn(factor):
    train = Circles(num_train=60, factor=factor).load().splits.train
    point, label = make_circles(60, noise=None, factor=factor, shuffle=False)
    ours = np.concatenate([train.input[train.label == i] for i in (0, 1)])
    np.testing.assert_array_equal(np.sort(train.label), label)
    np.testing.assert_allclose(ours, point, atol=1e-7)  # float32, of numbers up to 1
    np.testing.assert_array_equal(train.label[:4], [0, 1, 0, 1])


def test_test_points_lie_half_way_between():
    train, test, _ = Circles(num_train=40, factor=0.5).load().splits
    np.testing.assert_array_equal(train.label, test.label)
    for split in (train, test):
        radius = np.linalg.norm(split.input, axis=1)
        np.testing.assert_allclose(radius, np.where(split.label, 0.5, 1), atol=2e-7)
    gap = np.pi / 20  # half of the angle between two training points of a class
    for which, radius in ((0, 1.0), (1, 0.5)):
        one, two = (s.input[s.label == which] for s in (train, test))
        distance = np.linalg.norm(one[:, None] - two[None], axis=-1).min(0)
        np.testing.assert_allclose(distance, 2 * radius * np.sin(gap / 2), atol=1e-6)


def test_circles_with_noisy_labels():
    train, test, _ = Circles(num_train=100, label_noise=0.25, noise_seed=2).load().splits
    assert (train.label != train.true_label).sum() == 25
    assert test.true_label is None
    true = Circles(num_train=100).load().splits.train
    np.testing.assert_array_equal(train.true_label, true.label)
    np.testing.assert_array_equal(train.input, true.input)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Surface("spher"), "unknown surface 'spher'; did you mean 'sphere'"),
        (lambda: Surface("booth", num_train=0), "num_train must be a whole number >= 1"),
        (lambda: Surface("booth", num_test=0), "num_test must be a whole number >= 1"),
        (lambda: Surface("booth", seed=-1), "seed must be a whole number"),
        (lambda: Surface("booth", seed=2**32), "seed=4294967296"),
        (lambda: Surface("booth", bound=0.0), "bound=0.0; give a number above 0"),
        (lambda: Surface("booth", bound=float("nan")), "bound=nan"),
        (lambda: Circles(num_train=5), "num_train=5; give an even number"),
        (lambda: Circles(num_train=0), "num_train must be a whole number >= 2"),
        (lambda: Circles(factor=1.0), "factor=1.0; give the radius"),
        (lambda: Circles(label_noise=1.0), "label_noise=1.0"),
        (lambda: Circles(num_train=4, label_noise=0.1), "of 4 labels replaces none"),
        (lambda: Circles(noise_kind="some"), "unknown noise_kind"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
