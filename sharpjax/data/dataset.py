"""Image classification data as eight fields: what callers of `data.load` still take."""

import dataclasses

import numpy as np

from sharpjax.data.spec import Images


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in host memory: the fields of `Loaded`, by other names."""

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
    """`Images(...).load()` as a `Dataset`."""
    spec = Images(name, num_train=num_train, data_dir=data_dir, manual_dir=manual_dir)
    loaded = spec.load()
    train, test = loaded.splits.train, loaded.splits.test
    return Dataset(
        name, train.input, train.label, test.input, test.label, spec.num_classes,
        train.mean, train.std, loaded.digests,
    )  # fmt: skip
