"""Image classification data in memory: arrays, their statistics and their digests."""

import dataclasses
import hashlib
import math
from typing import NamedTuple

import numpy as np

from sharpjax import catalog
from sharpjax.errors import UserError


class Splits(NamedTuple):
    """What a loader returns: images uint8 [N, H, W, C] and labels int32 [N] of both splits."""

    train_image: np.ndarray
    train_label: np.ndarray
    test_image: np.ndarray
    test_label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in host memory.

    Attributes:
        train_image, test_image: uint8 [N, H, W, C], in record order.
        train_label, test_label: int32 [N].
        mean, std: float32 [C], per channel over every pixel of `train_image` / 255.
        digests: SHA-256 of shapes, types and bytes of each split, `{'train': hex, 'test': hex}`:
            equal digests are equal numbers, whichever way the data came.
    """

    name: str
    train_image: np.ndarray
    train_label: np.ndarray
    test_image: np.ndarray
    test_label: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    digests: dict[str, str]


def load(name: str, *, data_dir: str = "", manual_dir: str = "", num_train: int = 0) -> Dataset:
    """Read a data set into memory, preparing it first where that is needed.

    The first call for a TFDS set may prepare it (from `manual_dir`, else by download: up to 170 MB
    and a minute); afterwards CIFAR-10 takes about seven seconds. No TensorFlow is involved.

    Args:
        name: a key of `catalog.DATA_SETS`.
        data_dir: where prepared TFDS sets lie; "": TFDS's default (`TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`).
        manual_dir: a folder with the set's upstream files, or with a folder `<name>` of them.
        num_train: keep only the first so many training examples; 0: all. TFDS stores examples in
            a fixed shuffled order, so these are a random sample; mean, std and digests are theirs.

    Raises:
        UserError: unknown name; more examples asked for than there are; the data are nowhere to
            be had, or damaged.

    >>> digits = load("digits", num_train=100)
    >>> digits.train_image.shape, digits.train_image.dtype, digits.test_label.shape
    ((100, 8, 8, 1), dtype('uint8'), (360,))
    """
    entry = catalog.lookup("data set", catalog.DATA_SETS, name)
    if not 0 <= num_train <= entry.num_train:
        raise UserError(
            f"data.load: num_train={num_train} (config.data.num_train), but {name} has "
            f"{entry.num_train:,} training examples; give 1 to {entry.num_train}, or 0 for all."
        )
    splits = catalog.resolve(entry.loader)(name, data_dir=data_dir, manual_dir=manual_dir)
    if num_train:
        splits = splits._replace(
            train_image=splits.train_image[:num_train], train_label=splits.train_label[:num_train]
        )
    mean, std = channel_statistics(splits.train_image)
    return Dataset(
        name=name,
        **splits._asdict(),
        num_classes=entry.num_classes,
        mean=mean,
        std=std,
        digests={
            "train": digest(splits.train_image, splits.train_label),
            "test": digest(splits.test_image, splits.test_label),
        },
    )


def channel_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 [C], of uint8 [N, H, W, C] images / 255.

    From counts of the 256 values, in exact integers: the same on every machine. A standard
    deviation is at least one grey level, so that a channel of one value can be divided by it.

    >>> mean, std = channel_statistics(np.array([[[[0]], [[255]]]], np.uint8))
    >>> float(mean[0]), float(std[0])
    (0.5, 0.5)
    """
    level = np.arange(256, dtype=np.int64)
    mean, std = [], []
    for channel in range(image.shape[-1]):
        count = np.zeros(256, np.int64)
        for start in range(0, len(image), 1_000):  # bincount makes eight bytes of each
            count += np.bincount(image[start : start + 1_000, ..., channel].ravel(), minlength=256)
        num, total, squares = int(count.sum()), int(count @ level), int(count @ level**2)
        mean.append(total / (255 * num))
        std.append(max(math.sqrt((num * squares - total**2) / num**2), 1.0) / 255)
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def digest(*arrays: np.ndarray) -> str:
    """SHA-256, in hex, over the types, shapes and bytes of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
