"""Corrupted images: severities in order, seeds, formulas, JPEG against pillow, official files."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sharpjax import catalog, metrics
from sharpjax.data import corruption
from sharpjax.data.corruption import filters, noise, published
from sharpjax.data.examples import Examples
from sharpjax.errors import UserError

SEVERITIES = jnp.arange(1, 6)


@functools.cache
def images(num=16, size=32, channels=3):
    """Like photographs: amplitudes fall with the frequency, and channels are alike."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = 1 / size
    z = np.fft.ifft2(np.fft.fft2(rng.normal(size=(num, channels, size, size))) / frequency).real
    z = z + (z.sum(1, keepdims=True) if channels > 1 else 0)
    z = (z - z.mean((1, 2, 3), keepdims=True)) / z.std((1, 2, 3), keepdims=True)
    return jnp.asarray(np.clip(127 + 55 * z, 0, 255).transpose(0, 2, 3, 1), jnp.uint8)


def distance(a, b):
    """Root mean square difference of each image, in grey levels."""
    difference = np.asarray(a, float) - np.asarray(b, float)
    return np.sqrt((difference**2).mean((-3, -2, -1)))


# What looks at the key, and what leaves the same grey everywhere as it is.
DRAWN = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur"),
    *("motion_blur", "snow", "frost", "fog", "spatter", "elastic_transform"),
)
KEEPING = (
    *("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast"),
    *("pixelate", "elastic_transform", "saturate", "jpeg_compression"),
)


@pytest.mark.parametrize("kind", corruption.KINDS)
def test_each_kind_at_each_severity(kind, key):
    """Four photographs, a flat image, and the first one again."""
    photographs = images()[:4]
    flat = jnp.full((1, 32, 32, 3), 99, jnp.uint8)
    x = jnp.concatenate([photographs, flat, photographs[:1]])
    every = jax.jit(jax.vmap(lambda k, s: corruption.corrupt(k, x, kind, s), (None, 0)))
    found = every(key, SEVERITIES)
    assert found.dtype == jnp.uint8 and found.shape == (5, *x.shape)
    mean = distance(found, x)[:, :4].mean(1)
    assert np.all(np.diff(mean) > 0), mean
    assert 0.5 < mean[0] and mean[-1] < 110, mean
    if kind in KEEPING:
        assert np.max(np.abs(found[:, 4].astype(int) - 99)) <= 1
    # Each image and each key has noise of its own.
    by_image = distance(found[2, 5], found[2, 0])
    by_key = distance(every(jax.random.key(1), SEVERITIES)[2], found[2])[:4]
    if kind in DRAWN:
        assert by_image > 0.5 and np.all(by_key > 0.5)
    else:
        assert by_image == 0 and not by_key.any()


def test_there_are_nineteen_at_five_severities():
    assert len(set(corruption.KINDS)) == 19 and corruption.SEVERITIES == (1, 2, 3, 4, 5)


# Formulas.


def test_moments_of_noise(key):
    """At mid-grey, where nothing is cut off."""
    x = jnp.full((100, 100, 3), 0.5)
    i = jnp.int32(4)
    n = x.size
    for fn, deviation in (
        (noise.gaussian_noise, 0.1),
        (noise.speckle_noise, 0.1),
        (noise.shot_noise, np.sqrt(0.5 / 50)),
    ):
        found = np.asarray(jax.jit(fn)(key, x, i)) - 0.5
        assert abs(found.mean()) < 5 * deviation / np.sqrt(n)
        # The variance of a squared deviation is at most 3 of its squares here.
        assert abs(found.var() / deviation**2 - 1) < 5 * np.sqrt(3 / n)
    found = np.asarray(noise.impulse_noise(key, x, i))
    for value in (0.0, 1.0):
        share = np.mean(found == value)
        assert abs(share - 0.035) < 5 * np.sqrt(0.035 / n)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_gaussian_blur_is_scipys(sigma):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(9, 12, 2)).astype(np.float32)
    rows, columns = (filters.gaussian_matrix(n, sigma) for n in (9, 12))
    want = ndimage.gaussian_filter(x.astype(float), (sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(filters.separable(jnp.asarray(x), rows, columns), want, atol=1e-6)


def test_disks_shifts_boxes_and_places_between_pixels():
    kernel = filters.disk_kernel(1.8, 5)
    assert kernel.sum() == pytest.approx(1, abs=1e-6) and kernel[0, 0] == 0
    np.testing.assert_allclose(kernel[2, 2], 1 / (np.pi * 1.8**2), rtol=0.01)
    rng = np.random.default_rng(2)
    x = rng.uniform(size=(6, 7, 1)).astype(np.float32)
    want = ndimage.correlate(x[..., 0], kernel, mode="nearest")
    got = filters.convolved(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(got[..., 0], want, atol=1e-6)
    row, column = rng.uniform(-2, 8, (2, 6, 7)).astype(np.float32)
    want = ndimage.map_coordinates(x[..., 0], [row, column], order=1, mode="mirror")
    got = filters.sampled(jnp.asarray(x), jnp.asarray(row), jnp.asarray(column))
    np.testing.assert_allclose(got[..., 0], want, atol=1e-5)
    box = filters.box_matrix(6, 3)
    np.testing.assert_allclose(box, np.kron(np.eye(3), np.full((2, 2), 0.5)), atol=1e-6)
    np.testing.assert_allclose(filters.box_matrix(32, 27).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(filters.box_matrix(32, 32), np.eye(32), atol=1e-6)


def test_brightness_and_saturation_by_hand(key):
    x = jnp.asarray([[[[100, 50, 0], [0, 0, 0], [255, 255, 255]]]], jnp.uint8)
    found = corruption.corrupt(key, x, "brightness", 5)[0, 0]
    # The largest rises by 76.5, and the others in proportion.
    assert found.tolist() == [[176, 88, 0], [76, 76, 76], [255, 255, 255]]
    x = jnp.asarray([[[[200, 150, 100], [70, 70, 70]]]], jnp.uint8)
    # A saturation of .5 becomes .62: 200 - 100 * .62 / .5 and 200 - 50 * .62 / .5.
    assert corruption.corrupt(key, x, "saturate", 1)[0, 0].tolist() == [[200, 138, 76], [70] * 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels, key):
    x = images(channels=channels)
    for severity, quality in ((1, 80), (5, 40)):
        found = np.asarray(corruption.corrupt(key, x, "jpeg_compression", severity), float)
        for image, ours in zip(np.asarray(x)[:4], found, strict=False):
            file = io.BytesIO()
            Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
            theirs = np.asarray(Image.open(file), float).reshape(ours.shape)
            # Its integer transforms are off by .4 grey levels on average, and where that moves a
            # coefficient over half a step of its table, by more.
            error = np.abs(ours - theirs).mean()
            assert error < 3 and error < 0.3 * np.abs(image - theirs).mean()


@pytest.mark.parametrize("kind", ["gaussian_blur", "fog", "snow", "spatter", "jpeg_compression"])
def test_grey_small_and_oblong_images(kind, key):
    x = images(num=2, size=28, channels=1)[:, :20]
    found = corruption.corrupt(key, x, kind, 4)
    assert found.shape == x.shape and np.all(distance(found, x) > 1)


# A split, and what is refused.


def test_a_split_is_corrupted_block_by_block(key):
    x = np.asarray(images())
    split = Examples(x, np.arange(16, dtype=np.int32), mean=np.float32([0.5] * 3))
    found = corruption.corrupted(split, "gaussian_noise", 2, key=key, block=10)
    assert isinstance(found.input, np.ndarray) and found.input.shape == x.shape
    assert found.label is split.label and found.mean is split.mean
    first = corruption.corrupt(jax.random.fold_in(key, 0), jnp.asarray(x[:10]), "gaussian_noise", 2)
    np.testing.assert_array_equal(found.input[:10], first)
    assert distance(found.input[10:], x[10:]).min() > 5


@pytest.mark.parametrize(
    ("kind", "severity", "image", "words"),
    [
        ("gausian_noise", 1, (1, 4, 4, 3), "did you mean 'gaussian_noise'"),
        ("fog", 0, (1, 4, 4, 3), "severity must be a whole number >= 1, got 0"),
        ("fog", 6, (1, 4, 4, 3), "severity=6; give 1 to 5"),
        ("fog", jnp.int32(0), (1, 4, 4, 3), "severity must be a whole number >= 1"),
        ("fog", 1.5, (1, 4, 4, 3), "severity must be a whole number"),
        ("fog", 1, (4, 4, 3), r"uint8\[4, 4, 3\]; give uint8 \[B, H, W, C\]"),
        ("fog", 1, (1, 4, 4, 2), "of 1 or 3 channels"),
        ("saturate", 1, (1, 4, 4, 1), "these images are grey"),
    ],
)
def test_what_is_refused(kind, severity, image, words, key):
    with pytest.raises(UserError, match=words):
        corruption.corrupt(key, jnp.zeros(image, jnp.uint8), kind, severity)


def test_floats_are_refused(key):
    with pytest.raises(UserError, match="before normalisation"):
        corruption.corrupt(key, jnp.zeros((1, 4, 4, 3)), "fog", 1)


# The official files.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images at each severity in the place of 10,000."""
    monkeypatch.setattr(published, "_NUM", 3)
    image = np.broadcast_to(np.arange(15, dtype=np.uint8).reshape(-1, 1, 1, 1), (15, 32, 32, 3))
    np.save(tmp_path / "fog.npy", image)
    np.save(tmp_path / "labels.npy", np.tile(np.uint8([7, 8, 9]), 5))
    return tmp_path


def test_rows_of_a_severity(folder):
    found = corruption.official(str(folder), "fog", 4)
    assert found.input[:, 0, 0, 0].tolist() == [9, 10, 11] and found.input.shape == (3, 32, 32, 3)
    assert found.label.tolist() == [7, 8, 9] and found.label.dtype == np.int32


def test_files_that_are_not_there_or_not_right(folder):
    with pytest.raises(UserError, match="snow.npy is not there; give the folder"):
        corruption.official(str(folder), "snow", 1)
    with pytest.raises(UserError, match="severity=6"):
        corruption.official(str(folder), "fog", 6)
    with pytest.raises(UserError, match="unknown corruption 'fogg'"):
        corruption.official(str(folder), "fogg", 1)
    np.save(folder / "snow.npy", np.zeros((15, 32, 32), np.uint8))
    with pytest.raises(UserError, match=r"should hold integers \[15, 32, 32, 3\]"):
        corruption.official(str(folder), "snow", 1)
    (folder / "frost.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match="frost.npy cannot be read"):
        corruption.official(str(folder), "frost", 1)
    np.save(folder / "snow.npy", np.full((15, 32, 32, 3), 300))
    with pytest.raises(UserError, match="outside of 0 to 255"):
        corruption.official(str(folder), "snow", 1)


# What is said of a model on them.


def test_means_over_kinds_and_severities():
    rng = np.random.default_rng(0)
    table, other = rng.uniform(0.2, 0.9, (2, 19, 5))
    errors, baseline = (
        {(k, s): t[i, s - 1] for i, k in enumerate(corruption.KINDS) for s in range(1, 6)}
        for t in (table, other)
    )
    found = metrics.robustness(errors, clean=0.1, baseline=baseline, baseline_clean=0.15)
    np.testing.assert_allclose(found.accuracy, 1 - table.mean())
    np.testing.assert_allclose(list(found.by_kind.values()), 1 - table.mean(1))
    np.testing.assert_allclose([found.by_severity[s] for s in range(1, 6)], 1 - table.mean(0))
    np.testing.assert_allclose(found.mce, (table.mean(1) / other.mean(1)).mean())
    want = ((table.mean(1) - 0.1) / (other.mean(1) - 0.15)).mean()
    np.testing.assert_allclose(found.relative_mce, want)
    own = metrics.robustness(errors, clean=0.1, baseline=errors, baseline_clean=0.1)
    assert own.mce == own.relative_mce == 1
    assert np.isnan(metrics.robustness(errors, clean=0.1).mce)
    # A baseline that errs no more on a kind than on clean images, and one that never errs on it.
    fog = {("fog", s): 0.0 for s in range(1, 6)}
    for other_fog, mce_is_known in ((0.15, True), (0.1, True), (0.0, False)):
        worse = baseline | dict.fromkeys(fog, other_fog)
        found = metrics.robustness(errors, clean=0.1, baseline=worse, baseline_clean=0.15)
        assert np.isnan(found.relative_mce) and np.isfinite(found.mce) == mce_is_known
    for rates in ({"clean": 10.0}, {"clean": np.nan}, {"clean": 0.1, "baseline_clean": -0.1}):
        with pytest.raises(UserError, match=r"clean=.*; give an error rate in \[0, 1\]"):
            metrics.robustness(errors, baseline=baseline, **({"baseline_clean": 0.1} | rates))
    del errors["fog", 3]
    refused = (
        (errors, {}, r"\('fog', 3\) is missing in errors"),
        ({}, {}, "errors is empty"),
        ({("fog", 1): 32.0}, {}, "not all rates"),
        (baseline, {"baseline": baseline}, "baseline_clean, or neither"),
        ({("fog", 1): 0.1}, {"baseline": baseline, "baseline_clean": 0.1}, "other kinds"),
    )
    for given, options, words in refused:
        with pytest.raises(UserError, match=words):
            metrics.robustness(given, clean=0.1, **options)


def test_no_name_of_ours_is_that_of_the_official_set():
    assert not [name for name in catalog.DATA_SETS if name.lower().endswith(("_c", "-c"))]
    assert "never report results on it as CIFAR-10-C" in corruption.__doc__.replace("\n", " ")
