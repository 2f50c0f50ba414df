"""TFDS builders that prepare without TensorFlow.

The stock builders need TensorFlow to unpack upstream files and to encode PNG, although the result
can be read without it. These builders keep the stock names, versions, features and keys, and so the
record order, and encode with Pillow. The stock builders can read what they prepare, and the other
way round. Nothing is extracted to disk: TFDS names an extracted file after its archive alone, and
the archives of MNIST and Fashion-MNIST have the same names.
"""

import gzip
import io
import struct
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from sharpjax.data.upstream import Upstream


def upstream(stock: Any) -> tuple[Upstream, ...]:
    """The upstream files of a stock builder, from the checksums that TFDS carries."""
    return tuple(
        Upstream(info.filename, url, int(info.size), info.checksum)
        for url, info in sorted(stock.url_infos.items())
    )


def png(image: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3].

    >>> image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> bool((np.asarray(Image.open(io.BytesIO(png(image)))) == image).all())
    True
    """
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "PNG")
    return stream.getvalue()


def idx(data: bytes) -> np.ndarray:
    """Decode the IDX format of MNIST for bytes: 0, 0, 8, the rank, big-endian sizes, the values.

    >>> idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
    [[7, 8, 9]]
    """
    kind, rank = struct.unpack(">HBB", data[:4])[1:]
    if kind != 8:
        raise ValueError(f"IDX of type {kind}, not of unsigned bytes")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


class Files:
    """Base class with the upstream files of a builder.

    Attributes:
        UPSTREAM: the files it needs.
        files: their paths by name; to be set before preparing.
    """

    UPSTREAM: ClassVar[tuple[Upstream, ...]]
    files: Mapping[str, epath.Path]


class Idx(Files):
    """Prepares a set from four gzipped IDX files."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # the files are already there
        return {
            "train": self._generate_examples("train"),
            "test": self._generate_examples("t10k"),
        }

    def _generate_examples(self, prefix: str) -> Iterator[tuple[int, dict[str, Any]]]:
        image, label = (
            idx(gzip.decompress(self.files[f"{prefix}-{part}-ubyte.gz"].read_bytes()))
            for part in ("images-idx3", "labels-idx1")
        )
        for i, (one, of) in enumerate(zip(image, label, strict=True)):
            yield i, {"image": png(one), "label": int(of)}


class Cifar(Files):
    """Prepares a set from one tar archive of binary batches.

    A record has one byte for each label and 3 x 32 x 32 bytes for the image.

    Attributes:
        FOLDER: the folder in the archive.
        BATCHES: the files of each split, in order.
        LABELS: features in the order of their bytes, each with the file of its class names.
    """

    FOLDER: ClassVar[str]
    BATCHES: ClassVar[Mapping[str, tuple[str, ...]]]
    LABELS: ClassVar[Mapping[str, str]]
    info: Any

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager
        (archive,) = self.files.values()
        with archive.open("rb") as stream, tarfile.open(fileobj=stream) as tar:
            content = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore
        for feature, file in self.LABELS.items():
            names = content[f"{self.FOLDER}/{file}"].decode().split("\n")
            self.info.features[feature].names = [name for name in names if name]
        return {
            split: self._generate_examples(
                split, b"".join(content[f"{self.FOLDER}/{file}"] for file in files)
            )
            for split, files in self.BATCHES.items()
        }

    def _generate_examples(self, split: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        rank = len(self.LABELS)
        record = np.frombuffer(data, np.uint8).reshape(-1, rank + 3 * 32 * 32)
        image = record[:, rank:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i in range(len(record)):
            label = {feature: int(record[i, at]) for at, feature in enumerate(self.LABELS)}
            yield i, {"id": f"{split}_{i:05d}", "image": png(image[i]), **label}


_stock = tfds.image_classification


# The stock builders have already registered these names.
class MNIST(Idx, _stock.MNIST, skip_registration=True):
    UPSTREAM = upstream(_stock.MNIST)


class FashionMNIST(Idx, _stock.FashionMNIST, skip_registration=True):
    UPSTREAM = upstream(_stock.FashionMNIST)


class Cifar10(Cifar, _stock.Cifar10, skip_registration=True):
    UPSTREAM = upstream(_stock.Cifar10)
    FOLDER = "cifar-10-batches-bin"
    BATCHES = {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    }
    LABELS = {"label": "batches.meta.txt"}


class Cifar100(Cifar, _stock.Cifar100, skip_registration=True):
    UPSTREAM = upstream(_stock.Cifar100)
    FOLDER = "cifar-100-binary"
    BATCHES = {"train": ("train.bin",), "test": ("test.bin",)}
    LABELS = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}


BUILDERS: Mapping[str, Any] = {b.name: b for b in (Cifar10, Cifar100, FashionMNIST, MNIST)}
