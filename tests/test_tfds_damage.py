"""Prepared TFDS data that are damaged or of another kind: one paragraph, never other numbers."""

import importlib.util
import shutil

import jax
import numpy as np
import pytest

from sharpjax import catalog
from sharpjax.data import builders, tfds
from sharpjax.errors import UserError
from tests.tiny_tfds import (  # noqa: F401 (fixtures)
    NUM_TEST,
    NUM_TRAIN,
    paragraph,
    prepared_fixture,
    restored_fixture,
    tiny_fixture,
)


def refuse(data_dir, folder, *parts):
    with pytest.raises(UserError) as info:
        tfds.load("mnist", data_dir=str(data_dir))
    message = paragraph(info)
    for part in (f"prepared data in {folder}", "delete that folder", *parts):
        assert part in message, message


SHARD = "mnist-train.array_record-00000-of-00001"


def test_a_flipped_byte_is_found_wherever_it_matters(prepared):
    data_dir, folder, splits = prepared
    path = folder / SHARD
    good = path.read_bytes()
    used = [i for i, byte in enumerate(good) if byte]
    rng = np.random.default_rng(0)
    found = 0
    for at in rng.choice(used, 40, replace=False):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x04]) + good[at + 1 :])
        try:
            again = tfds.load("mnist", data_dir=str(data_dir))
        except UserError as error:
            found += 1
            assert f"prepared data in {folder} cannot be read" in str(error)
        else:
            for one, two in zip(jax.tree.leaves(again), jax.tree.leaves(splits), strict=True):
                np.testing.assert_array_equal(one, two)
    assert found > 30
    path.write_bytes(good)
    tfds.load("mnist", data_dir=str(data_dir))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_shard(prepared, share):
    data_dir, folder, _ = prepared
    good = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(good[: int(share * len(good))])
    refuse(data_dir, folder)


def test_missing_shard(prepared):
    data_dir, folder, _ = prepared
    (folder / SHARD).unlink()
    refuse(data_dir, folder, "No such file or directory")


def test_shards_that_changed_places(prepared):
    data_dir, folder, _ = prepared
    shutil.copy(folder / SHARD.replace("train", "test"), folder / SHARD)
    refuse(data_dir, folder)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("{", "", ""),
        (f'"{NUM_TRAIN}"', f'"{NUM_TRAIN - 1}"', "39 examples, which should be 40"),
        (f'"{NUM_TEST}"', f'"{NUM_TEST + 1}"', "12 examples, which should be 11"),
        ('"name": "train"', '"name": "trail"', "train"),
        ('"3.0.1"', '"3.0.0"', ""),
    ],
)
def test_wrong_dataset_info(prepared, old, new, said):
    data_dir, folder, _ = prepared
    path = folder / "dataset_info.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refuse(data_dir, folder, said)


@pytest.mark.parametrize("content", [None, ""])
def test_missing_or_empty_dataset_info(prepared, content):
    data_dir, folder, _ = prepared
    (folder / "dataset_info.json").unlink()
    if content is not None:
        (folder / "dataset_info.json").write_text(content)
    refuse(data_dir, folder)


def test_features_are_known_without_their_file(prepared):
    data_dir, folder, splits = prepared
    (folder / "features.json").unlink()
    again = tfds.load("mnist", data_dir=str(data_dir))
    np.testing.assert_array_equal(again.train.input, splits.train.input)


def test_data_that_only_tensorflow_can_read(prepared):
    data_dir, folder, _ = prepared
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="format tfrecord.*TensorFlow.*another folder") as info:
        tfds.load("mnist", data_dir=str(data_dir))
    paragraph(info)


def test_bucket_without_the_package_that_reads_it():
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(
        UserError, match=r"cannot look into gs://bucket/tfds.*gcsfs.*\[gcp\]"
    ) as info:
        tfds.load("mnist", data_dir="gs://bucket/tfds")
    paragraph(info)


def test_records_that_do_not_belong(prepared, monkeypatch):
    data_dir, folder, _ = prepared
    known = catalog.DATA_SETS["mnist"]
    for other, said in (
        (known._replace(num_classes=5), "labels outside 0 to 4"),
        (known._replace(shape=(32, 32, 3)), r"an image is uint8[28, 28, 1]"),
    ):
        monkeypatch.setattr(catalog, "DATA_SETS", {"mnist": other})
        refuse(data_dir, folder, said)


def test_every_bit_of_a_png_counts():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    good = builders.png(image[..., 0])
    for at in range(len(good)):
        broken = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
        try:
            again = tfds.decode(broken, image.shape)
        except Exception:
            continue
        np.testing.assert_array_equal(again, image)  # a byte that nothing depends on


def test_an_error_of_the_program_is_not_called_damage(prepared, monkeypatch):
    data_dir, _, _ = prepared

    def misfit(*args, **kwargs):
        raise AttributeError("no such thing in this version")

    monkeypatch.setattr(tfds, "decode", misfit)
    with pytest.raises(AttributeError, match="in this version"):
        tfds.load("mnist", data_dir=str(data_dir))
