"""Tiny TFDS data sets from files in the upstream formats, so that no test needs a network."""

import gzip
import hashlib
import io
import pathlib
import struct
import tarfile
from typing import NamedTuple

import numpy as np
import pytest

from sharpjax import catalog
from sharpjax.data import builders, tfds

NUM_TRAIN, NUM_TEST = 40, 11
NAMES = ("cifar10", "cifar100", "fashion_mnist", "mnist")


class Source(NamedTuple):
    """Upstream files and what is in them, in upstream order."""

    folder: pathlib.Path
    train_image: np.ndarray
    train_label: np.ndarray
    test_image: np.ndarray
    test_label: np.ndarray


def idx_bytes(array):
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_upstream(name, folder):
    """Files of the published format and names for `name`, with random content."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(name))
    known = catalog.DATA_SETS[name]
    images, labels = [], []
    for num in (NUM_TRAIN, NUM_TEST):
        images.append(rng.integers(0, 256, (num, *known.shape), np.uint8))
        labels.append(rng.integers(0, known.num_classes, num, dtype=np.int32))
    if "cifar" not in name:
        for prefix, image, label in zip(("train", "t10k"), images, labels, strict=True):
            for part, array in (("images-idx3", image[..., 0]), ("labels-idx1", label)):
                path = folder / f"{prefix}-{part}-ubyte.gz"
                path.write_bytes(gzip.compress(idx_bytes(array), mtime=0))
    else:
        builder = builders.BUILDERS[name]
        content = {}
        for (_, files), image, label in zip(builder.BATCHES.items(), images, labels, strict=True):
            rows = np.concatenate(
                [np.full_like(label[:, None], 3)] * (len(builder.LABELS) - 1)
                + [label[:, None], image.transpose(0, 3, 1, 2).reshape(len(label), -1)],
                axis=1,
            ).astype(np.uint8)
            content |= {
                f: r.tobytes() for f, r in zip(files, np.array_split(rows, len(files)), strict=True)
            }
        for feature, file in builder.LABELS.items():
            num = 20 if feature == "coarse_label" else known.num_classes
            content[file] = "".join(f"{feature}-{i}\n" for i in range(num)).encode() + b"\n"
        with tarfile.open(folder / builder.UPSTREAM[0].name, "w:gz") as tar:
            for file, blob in content.items():
                member = tarfile.TarInfo(f"{builder.FOLDER}/{file}")
                member.size = len(blob)
                tar.addfile(member, io.BytesIO(blob))
    return Source(folder, images[0], labels[0], images[1], labels[1])


def tiny_builder(name, source, address="http://127.0.0.1:9"):
    """Our builder of `name`, for the files of `source`."""
    base = builders.BUILDERS[name]
    files = tuple(
        file._replace(
            url=f"{address}/{file.name}",
            size=(source.folder / file.name).stat().st_size,
            sha256=hashlib.sha256((source.folder / file.name).read_bytes()).hexdigest(),
        )
        for file in base.UPSTREAM
    )

    class Tiny(base, skip_registration=True):
        name = base.name
        UPSTREAM = files

    return Tiny


def install(name, source, **kwargs):
    """Make `name` mean the tiny set, for `data.Images` and all below it."""
    known = catalog.DATA_SETS[name]._replace(num_train=NUM_TRAIN, num_test=NUM_TEST)
    catalog.DATA_SETS = {**catalog.DATA_SETS, name: known}
    builders.BUILDERS = {**builders.BUILDERS, name: tiny_builder(name, source, **kwargs)}


@pytest.fixture(name="restored")
def restored_fixture(monkeypatch):
    """Undoes `install`, and keeps the environment of whoever runs the tests out of them."""
    monkeypatch.setattr(catalog, "DATA_SETS", catalog.DATA_SETS)
    monkeypatch.setattr(builders, "BUILDERS", builders.BUILDERS)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture(name="tiny")
def tiny_fixture(tmp_path, restored):
    """`tiny(name)`: the source of a tiny `name`, which is installed."""

    def make(name, **kwargs):
        source = write_upstream(name, tmp_path / "upstream" / name)
        install(name, source, **kwargs)
        return source

    return make


@pytest.fixture(name="prepared")
def prepared_fixture(tmp_path, tiny):
    """A prepared tiny mnist: its data_dir, its folder and what is in it."""
    source = tiny("mnist")
    splits = tfds.load("mnist", data_dir=str(tmp_path / "data"), manual_dir=str(source.folder))
    return tmp_path / "data", tmp_path / "data" / "mnist" / "3.0.1", splits


def record_order(num, split):
    """Stock order, written anew: TFDS sorts by the MD5 of the split's name and the key."""
    return sorted(range(num), key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest())


def everything(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def assert_holds(splits, source):
    """`splits` is `source` in the stock order."""
    train, test = record_order(NUM_TRAIN, "train"), record_order(NUM_TEST, "test")
    np.testing.assert_array_equal(splits.train.input, source.train_image[train])
    np.testing.assert_array_equal(splits.train.label, source.train_label[train])
    np.testing.assert_array_equal(splits.test.input, source.test_image[test])
    np.testing.assert_array_equal(splits.test.label, source.test_label[test])


def paragraph(info):
    """The message of a caught error, which must be one paragraph."""
    assert "\n" not in str(info.value)
    return str(info.value)
