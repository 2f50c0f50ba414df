"""Images of another size: exact where the answer is known, and against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from sharpjax.data import resizing
from sharpjax.data.resizing import overlaps, resized


def images(num, height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, channels), np.uint8)


@pytest.mark.parametrize("size", [1, 3, 8, 12, 28, 64])
def test_a_constant_stays_what_it_is(size):
    for value in (0, 1, 127, 255):
        image = np.full((2, 12, 10, 3), value, np.uint8)
        result = resized(image, size)
        assert result.shape == (2, size, size, 3) and result.dtype == np.uint8
        assert (result == value).all()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_integer_factor_is_the_mean_of_blocks(factor):
    image = images(5, 12, 12)
    size = 12 // factor
    total = image.astype(int).reshape(5, size, factor, size, factor, 3).sum((2, 4))
    # To the nearest, a half up: floor(mean + 1/2).
    expected = (2 * total + factor**2) // (2 * factor**2)
    np.testing.assert_array_equal(resized(image, size), expected)


def test_the_same_size_and_an_integer_factor_up():
    image = images(4, 6, 6)
    np.testing.assert_array_equal(resized(image, 6), image)
    np.testing.assert_array_equal(resized(image, 18), image.repeat(3, 1).repeat(3, 2))


@pytest.mark.parametrize(("height", "width", "size"), [(5, 5, 3), (7, 5, 4), (3, 4, 5)])
def test_every_pixel_is_the_mean_of_the_area_that_it_covers(height, width, size):
    image = images(2, height, width)
    result = resized(image, size)

    def parts(i, old):
        """Which old pixels the i-th new one covers, each with the length of its part."""
        low, high = Fraction(i * old, size), Fraction((i + 1) * old, size)
        common = {j: min(high, j + 1) - max(low, j) for j in range(old)}
        return {j: length for j, length in common.items() if length > 0}

    area = Fraction(height, size) * Fraction(width, size)
    for i in range(size):
        for j in range(size):
            for n, c in np.ndindex(2, 3):
                mean = sum(
                    a * b * int(image[n, y, x, c])
                    for y, a in parts(i, height).items()
                    for x, b in parts(j, width).items()
                ) / area  # fmt: skip
                assert result[n, i, j, c] == (mean + Fraction(1, 2)).__floor__()


def test_blocks_of_images_do_not_show(monkeypatch):
    image = images(7, 6, 6)
    whole = resized(image, 4)
    monkeypatch.setattr(resizing, "BLOCK", 3)
    np.testing.assert_array_equal(resized(image, 4), whole)


def test_overlaps_cover_everything_once():
    for old, new in ((32, 16), (28, 32), (5, 3), (3, 7)):
        weights = overlaps(old, new)
        np.testing.assert_array_equal(weights.sum(1), np.full(new, old))
        np.testing.assert_array_equal(weights.sum(0), np.full(old, new))
