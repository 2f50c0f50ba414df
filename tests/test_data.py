"""What `data.Images` promises of every set, shown on the digits: real data, always there."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from sharpjax import catalog, data, losses
from sharpjax.data import Images, normalization, spec
from sharpjax.data.examples import digest
from sharpjax.data.normalization import channel_statistics, padding_value
from sharpjax.errors import UserError


@pytest.fixture(scope="module")
def loaded():
    return Images("digits").load()


def test_importing_brings_in_no_source():
    script = (
        "import sys, sharpjax.data; sharpjax.data.Images('cifar10', num_validation=5_000); "
        "print([m for m in ('tensorflow_datasets', 'sklearn', "
        "'PIL', 'requests', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("name", catalog.DATA_SETS)
def test_every_loader_is_there(name):
    known = catalog.DATA_SETS[name]
    assert callable(catalog.resolve(known.loader))
    assert len(known.mean) == len(known.std) == known.shape[-1]


def test_digits_are_what_their_specification_says(loaded):
    said = Images("digits")
    train, test, validation = loaded.splits
    assert train.input.shape == (said.num_train, *said.input_shape) == (1_437, 8, 8, 1)
    assert test.input.shape == (catalog.DATA_SETS["digits"].num_test, 8, 8, 1)
    assert train.input.dtype == test.input.dtype == np.uint8 and said.input_dtype == "uint8"
    assert train.label.dtype == test.label.dtype == np.int32
    assert loaded.num_classes == said.num_classes == 10
    assert set(train.label) == set(test.label) == set(range(10))
    assert not said.is_per_seed
    assert validation is None and train.true_label is None


def test_digits_are_split_without_loss_or_overlap(loaded):
    train, test, _ = loaded.splits
    bunch = load_digits()
    grey = np.concatenate([train.input, test.input])[..., 0] / (255 / 16)
    label = np.concatenate([train.label, test.label])
    ours = sorted(
        (*image.ravel(), of) for image, of in zip(np.rint(grey).astype(int), label, strict=True)
    )
    theirs = sorted(
        (*image.ravel().astype(int), of)
        for image, of in zip(bunch["images"], bunch["target"], strict=True)
    )
    assert ours == theirs
    assert train.input.min() == 0 and train.input.max() == 255


def test_digits_are_the_same_everywhere(loaded):
    # A golden value: a change of it changes every result on this set.
    assert loaded.digests == {
        "train": "662c4771bdabd4da0a18572d721db8b3acc382eaead1159c31fdfbd9d4b13fb3",
        "test": "1435465c695384517eb8597fa07b0b64d4e5686f82f4d3654abc776443bb8f58",
    }
    np.testing.assert_array_equal(loaded.splits.train.label[:10], [2, 8, 2, 6, 6, 7, 1, 9, 8, 5])


def test_first_training_examples(loaded):
    whole, part = loaded.splits.train, Images("digits", num_train=100).load()
    train, test, _ = part.splits
    np.testing.assert_array_equal(train.input, whole.input[:100])
    np.testing.assert_array_equal(train.label, whole.label[:100])
    np.testing.assert_array_equal(test.input, loaded.splits.test.input)
    assert part.digests["test"] == loaded.digests["test"]
    assert part.digests["train"] != loaded.digests["train"]
    # Normalisation is by what is trained on, nothing else.
    np.testing.assert_allclose(train.mean, (train.input / 255).mean(), rtol=1e-6)
    assert not np.array_equal(train.mean, whole.mean)
    for split in part.splits[:2]:
        assert split.mean is train.mean and split.std is train.std


@pytest.mark.parametrize("num_train", [0, 1_000, 1_137])
def test_validation_is_taken_from_the_end_of_the_training_data(loaded, num_train):
    whole = loaded.splits.train
    part = Images("digits", num_train=num_train, num_validation=300).load()
    train, test, validation = part.splits
    num = num_train or 1_137
    for field in ("input", "label"):
        original = getattr(whole, field)
        np.testing.assert_array_equal(getattr(train, field), original[:num])
        np.testing.assert_array_equal(getattr(validation, field), original[1_137:])
        np.testing.assert_array_equal(getattr(test, field), getattr(loaded.splits.test, field))
    assert sorted(part.digests) == ["test", "train", "validation"]
    np.testing.assert_array_equal(train.mean, channel_statistics(train.input)[0])
    assert validation.mean is train.mean and validation.std is train.std


def test_equal_specifications_are_equal_numbers_wherever_they_lie():
    said = Images("digits", data_dir="here", manual_dir="there")
    assert said == Images("digits", num_train=1_437)  # 0 is the number that remains
    assert hash(said) == hash(Images("digits"))
    assert said.num_train == 1_437 and Images("digits", num_validation=437).num_train == 1_000
    for other in (
        {"num_train": 9},
        {"num_validation": 9},
        {"label_noise": 0.5},
        {"noise_seed": 1},
        {"noise_kind": "uniform"},
        {"image_size": 4},
        {"normalization": "half"},
        {"padding": "mean"},
    ):
        assert Images("digits", **other) != said
        assert spec.describe(Images("digits", **other)) != spec.describe(said)


def test_a_description_is_json_of_what_was_asked_for():
    said = Images("digits", data_dir="here", label_noise=0.2)
    described = {"kind": "Images", "name": "digits", "num_train": 1_437, "label_noise": 0.2}
    assert json.loads(json.dumps(spec.describe(said))) == described
    assert "here" not in json.dumps(spec.describe(said))


@pytest.mark.parametrize("kind, wrong", [("other", 360), ("uniform", None)])
def test_label_noise_is_of_the_training_labels_alone(loaded, kind, wrong):
    noise = {"label_noise": 0.3, "noise_seed": 5, "noise_kind": kind}
    noisy = Images("digits", num_validation=237, **noise).load()
    train, test, validation = noisy.splits
    np.testing.assert_array_equal(train.true_label, loaded.splits.train.label[:1_200])
    changed = train.label != train.true_label
    assert 0 < changed.sum() <= 360 and (wrong is None or changed.sum() == wrong)
    assert test.true_label is None and validation.true_label is None
    np.testing.assert_array_equal(validation.label, loaded.splits.train.label[1_200:])
    np.testing.assert_array_equal(test.label, loaded.splits.test.label)
    assert train.label.dtype == np.int32 and set(train.label) <= set(range(10))
    true = Images("digits", num_validation=237).load()
    assert true.digests["train"] != noisy.digests["train"]
    assert all(true.digests[name] == noisy.digests[name] for name in ("test", "validation"))


def test_normalizations(loaded):
    image = loaded.splits.train.input
    exact = {
        "mean_std": (catalog.DATA_SETS["digits"].mean, catalog.DATA_SETS["digits"].std),
        "half": ([0.5], [0.5]),
        "none": ([0.0], [1.0]),
        "measured": channel_statistics(image),
    }
    assert set(exact) == set(normalization.NORMALIZATIONS)
    for name, (mean, std) in exact.items():
        part = Images("digits", normalization=name).load()
        for split in part.splits[:2]:
            np.testing.assert_array_equal(split.mean, np.asarray(mean, np.float32))
            np.testing.assert_array_equal(split.std, np.asarray(std, np.float32))
        assert part.digests == loaded.digests  # of what is normalised
    plain = Images("digits", normalization="none").load().splits.train
    # 1 / 255 is rounded, and the product with it.
    np.testing.assert_allclose(
        data.batch(plain, np.arange(9))["image"], np.float64(image[:9]) / 255, rtol=3 * 2**-24
    )


def test_published_constants_are_measured_ones_to_four_digits(loaded):
    # Of the set that is at hand. Half a unit of the fourth digit.
    known, train = catalog.DATA_SETS["digits"], loaded.splits.train
    np.testing.assert_allclose(known.mean, train.mean, atol=5.1e-5, rtol=0)
    np.testing.assert_allclose(known.std, train.std, atol=5.1e-5, rtol=0)


def test_the_mean_of_padded_images_normalises_to_nearly_0(loaded):
    mean = np.float32([0.0, 0.3054, 0.5, 1.0])
    np.testing.assert_array_equal(padding_value("zero", mean), [0, 0, 0, 0])
    value = padding_value("mean", mean)
    np.testing.assert_array_equal(value, [0, 78, 128, 255])
    # Half a grey level.
    normal = data.normalize(jnp.asarray(value), mean, np.ones_like(mean))
    assert np.abs(normal).max() <= 0.5 / 255 + 1e-6
    # In a training step the mean is traced.
    traced = jax.jit(padding_value, static_argnums=0)("mean", mean)
    assert traced.dtype == np.uint8 and (traced == value).all()


def test_smaller_images():
    said = Images("digits", image_size=4, num_validation=100)
    part = said.load()
    whole = Images("digits", num_validation=100).load()
    assert said.input_shape == (4, 4, 1)
    for small, large in zip(part.splits, whole.splits, strict=True):
        blocks = large.input.astype(int).reshape(-1, 4, 2, 4, 2, 1).sum((2, 4))
        np.testing.assert_array_equal(small.input, (blocks + 2) // 4)
        np.testing.assert_array_equal(small.label, large.label)
    np.testing.assert_array_equal(
        part.splits.train.mean, channel_statistics(part.splits.train.input)[0]
    )
    assert all(part.digests[name] != whole.digests[name] for name in whole.digests)
    assert Images("digits", image_size=8).load().digests == Images("digits").load().digests


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"num_train": -1}, "num_train must be a whole number >= 0, got -1"),
        ({"num_train": 1_438}, "num_train=1438 .*digits has 1,437 training examples"),
        ({"num_validation": -1}, "num_validation must be a whole number"),
        ({"num_validation": 1_437}, "num_validation=1437, but digits has 1,437 training examples"),
        ({"num_train": 1_000, "num_validation": 438}, "num_train=1000 .*num_validation=438"),
        ({"label_noise": 1.0}, "label_noise=1.0: give a number that is at least 0 and less than 1"),
        ({"label_noise": -0.1}, "label_noise=-0.1"),
        ({"label_noise": float("nan")}, "label_noise=nan"),
        ({"label_noise": 1.1, "noise_kind": "uniform"}, "label_noise=1.1"),
        ({"label_noise": 1e-4}, "label_noise=0.0001 of 1437 labels replaces none"),
        ({"noise_kind": "symmetric"}, "unknown noise_kind 'symmetric'.*other, uniform"),
        ({"noise_seed": 2**32}, "noise_seed=4294967296"),
        ({"noise_seed": -1}, "noise_seed must be a whole number"),
        ({"image_size": 225}, "image_size=225; give 1 to 224 pixels"),
        ({"image_size": 2.5}, "image_size must be a whole number"),
        ({"normalization": "mean"}, "unknown normalization 'mean'.*half, mean_std, measured, none"),
        ({"padding": "reflect"}, "unknown padding 'reflect'.*mean, zero"),
        ({"padding": "mean", "normalization": "none"}, "padding='mean' would be 'zero'"),
    ],
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Images(**{"name": "digits"} | changes)
    assert "\n" not in str(caught.value)


def test_a_set_that_is_not_what_the_catalog_says(monkeypatch):
    known = catalog.DATA_SETS["digits"]
    for changes, message in (
        (
            {"num_test": 359},
            r"split 'test' has .*\[360, 8, 8, 1\].*should be uint8\[359, 8, 8, 1\]",
        ),
        ({"shape": (8, 8, 3)}, r"split 'train' has .*should be uint8\[1437, 8, 8, 3\]"),
    ):
        monkeypatch.setattr(catalog, "DATA_SETS", {"digits": known._replace(**changes)})
        with pytest.raises(UserError, match=message):
            Images("digits").load()


@pytest.mark.parametrize(("index", "wrong"), [([0, 3], 3), ([[1], [2**20]], 2**20), (-4, -4)])
def test_an_index_beyond_the_examples_is_refused(index, wrong):
    """Else the array would give its last or first example once more."""
    three = data.Examples(np.ones((3, 2), np.float32), np.int32([0, 1, 2]))
    for index_of in (np.array, jnp.array):
        for caller in ("batch", "take"):
            with pytest.raises(
                UserError, match=rf"data.{caller}: index {wrong} of 3 examples; give"
            ):
                getattr(data, caller)(three, index_of(index))
    assert data.take(three, np.array([2, -3, -1])).label.tolist() == [2, 0, 2]
    assert not data.take(three, jnp.arange(0)).label.size


def test_a_batch_is_what_losses_and_models_take(loaded):
    train = loaded.splits.train
    index = np.array([5, 0, 5])
    batch = data.batch(train, index)
    assert sorted(batch) == ["image", "label"]
    np.testing.assert_array_equal(
        batch["image"], data.normalize(jnp.asarray(train.input[index]), train.mean, train.std)
    )
    np.testing.assert_array_equal(batch["label"], train.label[index])
    # The same from the device, and in a trace; one lane of several.
    there = data.on_device(loaded).train
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(there))
    jax.tree.map(np.testing.assert_array_equal, data.batch(there, index), batch)
    traced = jax.jit(data.batch)(there, index)
    np.testing.assert_array_equal(traced["label"], batch["label"])
    # Fused, roundings of numbers up to 1 may fall away before the division by std.
    atol = 4 * 2**-24 / train.std.min()
    np.testing.assert_allclose(traced["image"], batch["image"], atol=atol, rtol=2**-22)
    lanes = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), there._replace(mean=None, std=None))
    two = jax.vmap(data.batch, in_axes=(0, None))(lanes, index)
    np.testing.assert_array_equal(two["image"][1], train.input[::-1][index])


def test_a_batch_of_targets_of_true_labels_and_of_tokens():
    inputs, index = np.float32([[1.0], [2.0]]), np.array([1])
    regression = data.batch(data.Examples(inputs, 3 * inputs), index)
    assert sorted(regression) == ["image", "target"]
    assert losses.SquaredError()(3 * regression["image"], regression) == 0
    noisy = data.Examples(inputs, np.int32([0, 1]), true_label=np.int32([0, 2]))
    assert {k: v.tolist() for k, v in data.batch(noisy, index).items()} == {
        "image": [[2.0]],
        "label": [1],
        "true_label": [2],
    }
    tokens = data.Examples(np.int32([[7, 8], [9, 7]]), np.int32([0, 1]))
    assert data.batch(tokens, index)["image"].dtype == jnp.int32


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


def test_every_specification_has_the_protocol():
    for said in (
        Images("digits"),
        data.Modular("+", 7, 0.5),
        data.Surface("booth"),
        data.Circles(),
    ):
        loaded = said.load(jax.random.key(0) if said.is_per_seed else None)
        train = loaded.splits.train
        assert train.input.shape == (said.num_train, *said.input_shape)
        assert train.input.dtype == said.input_dtype
        assert loaded.num_classes == said.num_classes
        assert (train.label.dtype == np.float32) == (said.num_classes == 0)
        assert hash(said) == hash(dataclasses.replace(said))
        assert json.loads(json.dumps(spec.describe(said)))["kind"] == type(said).__name__
