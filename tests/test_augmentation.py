"""Augmentation and order: against NumPy, and as pure functions of their keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.data import augment, epoch_order, normalize
from sharpjax.errors import UserError


def images(num, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(1, 256, (num, *shape), np.uint8)


def in_numpy(key, image, *, pad, flip, fill=0):
    """The same draws, and then the recipe in words: pad, crop, mirror."""
    offset_key, flip_key = jax.random.split(key)
    offset = np.asarray(
        jax.random.randint(offset_key, (len(image), 2), 0, 2 * pad + 1, dtype=jnp.int32)
    )
    coin = np.asarray(jax.random.bernoulli(flip_key, 0.5, (len(image), 1)))[:, 0]
    height, width = image.shape[1:3]
    out = []
    for one, (top, left), mirrored in zip(image, offset, coin, strict=True):
        canvas = np.empty((height + 2 * pad, width + 2 * pad, one.shape[-1]), np.uint8)
        canvas[:] = fill
        canvas[pad : pad + height, pad : pad + width] = one
        crop = canvas[top : top + height, left : left + width]
        out.append(crop[:, ::-1] if flip and mirrored else crop)
    return np.stack(out)


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("jitted", [False, True])
def test_equals_numpy(key, strict, pad, flip, jitted):
    image = images(50)
    function = jax.jit(augment, static_argnames=("pad", "flip")) if jitted else augment
    result = function(key, jnp.asarray(image), pad=pad, flip=flip)
    assert result.dtype == jnp.uint8
    np.testing.assert_array_equal(result, in_numpy(key, image, pad=pad, flip=flip))


@pytest.mark.parametrize("fill", [0, 128, np.uint8(255), np.array([1, 128, 255], np.uint8)])
def test_what_is_padded_with(key, strict, fill):
    image = images(50)
    expected = in_numpy(key, image, pad=3, flip=True, fill=fill)
    result = augment(key, jnp.asarray(image), pad=3, flip=True, fill=fill)
    np.testing.assert_array_equal(result, expected)
    traced = jax.jit(augment, static_argnames=("pad", "flip"))
    pixel = jnp.asarray(fill, jnp.uint8)
    np.testing.assert_array_equal(
        traced(key, jnp.asarray(image), pad=3, flip=True, fill=pixel), expected
    )


@pytest.mark.parametrize(
    "fill", [-1, 256, 0.5, np.zeros(2, np.uint8), np.zeros(3, np.int32), np.zeros((1, 3), np.uint8)]
)
def test_augment_refuses_what_is_no_pixel(key, fill):
    with pytest.raises(UserError, match=r"data.augment: fill .*whole number from 0 to 255"):
        augment(key, jnp.asarray(images(2)), pad=1, flip=False, fill=fill)


def test_nothing_to_do_is_the_image_itself(key):
    image = jnp.asarray(images(3))
    assert augment(key, image, pad=0, flip=False) is image


def test_every_shift_and_both_sides_come_up_equally_often(key):
    """One bright pixel in the middle tells its shift; its neighbour tells the side."""
    num, pad = 9_000, 1
    image = np.zeros((num, 5, 5, 1), np.uint8)
    image[:, 2, 2], image[:, 2, 3] = 200, 100
    result = np.asarray(augment(key, jnp.asarray(image), pad=pad, flip=True))[..., 0]
    _, row, column = np.nonzero(result == 200)
    mirrored = np.nonzero(result == 100)[2] < column
    count = np.zeros((2, 3, 3))
    np.add.at(count, (mirrored.astype(int), row - 1, column - 1), 1)
    expected = num / 18
    # Chi-squared of 17 degrees of freedom: below 40.8 in 999 cases of 1,000.
    assert ((count - expected) ** 2 / expected).sum() < 40.8


def test_border_is_black_not_grey(key):
    result = np.asarray(augment(key, jnp.full((64, 4, 4, 1), 255, jnp.uint8), pad=2, flip=False))
    assert set(np.unique(result)) == {0, 255}


def test_lanes_have_their_own_draws(key):
    image = jnp.asarray(images(8))
    keys = jax.random.split(key, 3)
    lanes = jax.vmap(lambda k: augment(k, image, pad=2, flip=True))(keys)
    for lane, k in zip(lanes, keys, strict=True):
        np.testing.assert_array_equal(lane, augment(k, image, pad=2, flip=True))
    assert not np.array_equal(lanes[0], lanes[1])


@pytest.mark.parametrize(
    "image, pad",
    [
        (jnp.zeros((2, 4, 4, 1), jnp.float32), 1),
        (jnp.zeros((4, 4, 1), jnp.uint8), 1),
        (jnp.zeros((2, 4, 4, 1), jnp.uint8), -1),
    ],
)
def test_augment_refuses(key, image, pad):
    with pytest.raises(UserError, match="data.augment"):
        augment(key, image, pad=pad, flip=True)


def test_normalize_equals_numpy(strict):
    image = images(7)
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.25, 0.3])
    expected = (image.astype(np.float64) / 255 - mean) / std
    for at in (slice(None), 0, None):  # any leading axes
        result = normalize(jnp.asarray(image[at]), mean, std)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected[at], atol=1e-6)


def test_normalized_training_images_have_mean_0_and_deviation_1():
    image = images(40)
    scaled = image / 255
    result = np.asarray(
        normalize(jnp.asarray(image), scaled.mean((0, 1, 2)), scaled.std((0, 1, 2)))
    )
    np.testing.assert_allclose(result.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize(
    "image, mean",
    [
        (jnp.zeros((2, 4, 4, 3), jnp.float32), [0.0, 0.0, 0.0]),
        (jnp.zeros((2, 4, 4, 3), jnp.uint8), [0.0]),
        (jnp.zeros((2, 4, 4, 3), jnp.uint8), 0.0),
    ],
)
def test_normalize_refuses(image, mean):
    with pytest.raises(UserError, match="data.normalize"):
        normalize(image, mean, jnp.ones_like(jnp.asarray(mean)))


def test_order_is_a_permutation_of_its_arguments_alone(key):
    first = epoch_order(key, 2, 100)
    assert first.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    epoch_order(key, 3, 100)  # no state in between
    np.testing.assert_array_equal(first, epoch_order(key, 2, 100))
    traced = jax.jit(epoch_order, static_argnums=2)(key, jnp.int32(2), 100)
    np.testing.assert_array_equal(first, traced)
    for other in (
        epoch_order(key, 3, 100),
        epoch_order(jax.random.key(1), 2, 100),
        np.arange(100),
    ):
        assert not np.array_equal(first, other)


def test_lanes_have_their_own_order(key):
    keys = jax.random.split(key, 3)
    lanes = jax.vmap(lambda k: epoch_order(k, 5, 30))(keys)
    for lane, k in zip(lanes, keys, strict=True):
        np.testing.assert_array_equal(lane, epoch_order(k, 5, 30))
    assert not np.array_equal(lanes[0], lanes[1])


def test_every_example_comes_first_equally_often(key):
    orders = jax.vmap(lambda epoch: epoch_order(key, epoch, 10))(jnp.arange(4_000))
    count = np.bincount(orders[:, 0], minlength=10)
    assert ((count - 400) ** 2 / 400).sum() < 27.9  # 999 cases of 1,000, 9 degrees of freedom


@pytest.mark.parametrize("num", [0, -3])
def test_order_refuses(key, num):
    with pytest.raises(UserError, match="data.epoch_order: num_examples"):
        epoch_order(key, 0, num)


def test_one_example():
    assert epoch_order(jax.random.key(0), 0, 1).tolist() == [0]
