"""What `data.load` promises of every set, shown on the digits: real data that are always there."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sharpjax import catalog, data
from sharpjax.data import dataset as dataset_module
from sharpjax.data import digits
from sharpjax.data.dataset import channel_statistics, digest
from sharpjax.errors import UserError


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits")


def test_doctests():
    for module in (dataset_module, digits):
        assert doctest.testmod(module).failed == 0


def test_importing_brings_in_no_source():
    script = (
        "import sys, sharpjax.data; print([m for m in ('tensorflow_datasets', 'sklearn', "
        "'PIL', 'requests', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("name", catalog.DATA_SETS)
def test_every_loader_is_there(name):
    assert callable(catalog.resolve(catalog.DATA_SETS[name].loader))


def test_digits_are_what_the_catalog_says(dataset):
    known = catalog.DATA_SETS["digits"]
    assert dataset.train_image.shape == (known.num_train, *known.shape)
    assert dataset.test_image.shape == (known.num_test, *known.shape)
    assert dataset.train_image.dtype == dataset.test_image.dtype == np.uint8
    assert dataset.train_label.dtype == dataset.test_label.dtype == np.int32
    assert dataset.num_classes == known.num_classes
    assert set(dataset.train_label) == set(dataset.test_label) == set(range(10))


def test_digits_are_split_without_loss_or_overlap(dataset):
    bunch = load_digits()
    grey = np.concatenate([dataset.train_image, dataset.test_image])[..., 0] / (255 / 16)
    label = np.concatenate([dataset.train_label, dataset.test_label])
    ours = sorted(
        (*image.ravel(), of) for image, of in zip(np.rint(grey).astype(int), label, strict=True)
    )
    theirs = sorted(
        (*image.ravel().astype(int), of)
        for image, of in zip(bunch["images"], bunch["target"], strict=True)
    )
    assert ours == theirs
    assert dataset.train_image.min() == 0 and dataset.train_image.max() == 255


def test_digits_are_the_same_everywhere(dataset):
    # A golden value: a change of it changes every result on this set.
    assert dataset.digests == {
        "train": "662c4771bdabd4da0a18572d721db8b3acc382eaead1159c31fdfbd9d4b13fb3",
        "test": "1435465c695384517eb8597fa07b0b64d4e5686f82f4d3654abc776443bb8f58",
    }
    np.testing.assert_array_equal(dataset.train_label[:10], [2, 8, 2, 6, 6, 7, 1, 9, 8, 5])


def test_first_training_examples(dataset):
    part = data.load("digits", num_train=100)
    np.testing.assert_array_equal(part.train_image, dataset.train_image[:100])
    np.testing.assert_array_equal(part.train_label, dataset.train_label[:100])
    np.testing.assert_array_equal(part.test_image, dataset.test_image)
    assert part.digests["test"] == dataset.digests["test"]
    assert part.digests["train"] != dataset.digests["train"]
    # Normalisation is by what is trained on, nothing else.
    np.testing.assert_allclose(part.mean, (part.train_image / 255).mean(), rtol=1e-6)
    assert not np.array_equal(part.mean, dataset.mean)


@pytest.mark.parametrize("num", [-1, 1_438])
def test_more_examples_than_there_are(num):
    with pytest.raises(UserError, match=r"num_train=-?\d+ .*1,437 training examples"):
        data.load("digits", num_train=num)


def test_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match="unknown data set 'digit'; did you mean 'digits'"):
        data.load("digit")


def test_statistics_equal_numpy_over_several_blocks():
    rng = np.random.default_rng(0)
    image = rng.integers(0, [40, 200, 256], (2_345, 4, 3, 3)).astype(np.uint8)
    mean, std = channel_statistics(image)
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (3,)
    scaled = image.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-7)


def test_statistics_do_not_depend_on_the_order():
    image = np.random.default_rng(1).integers(0, 256, (1_500, 3, 3, 2), np.uint8)
    for one, two in zip(channel_statistics(image), channel_statistics(image[::-1]), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_channel_of_one_value_can_be_divided_by():
    image = np.zeros((4, 2, 2, 2), np.uint8)
    image[..., 1] = 255
    mean, std = channel_statistics(image)
    np.testing.assert_array_equal(mean, np.float32([0, 1]))
    np.testing.assert_array_equal(std, np.float32([1 / 255, 1 / 255]))


def test_digest_sees_values_types_shapes_and_borders():
    array = np.arange(6, dtype=np.int32)
    others = [
        (array.astype(np.int64),),
        (array.reshape(2, 3),),
        (array[::-1],),
        (array[:3], array[3:]),
    ]
    digests = {digest(array), *(digest(*other) for other in others)}
    assert len(digests) == 1 + len(others)
    # It is of the values, not of how they lie in memory.
    square = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert digest(np.asfortranarray(square)) == digest(square)
