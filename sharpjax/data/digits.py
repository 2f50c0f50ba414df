"""Handwritten digits that come with scikit-learn: real data without a download."""

import numpy as np

from sharpjax import catalog
from sharpjax.data.examples import Examples, Splits


def load(name: str = "digits", *, data_dir: str = "", manual_dir: str = "") -> Splits:
    """1,797 images of 8 x 8 (Alpaydin and Kaynak, 1998, the test part of UCI optdigits).

    The grey levels 0 to 16 are scaled to 0 to 255 and rounded. The split follows
    `RandomState(0).permutation(1797)`, a stream that NumPy has frozen: its first 1,437 images are
    for training, the other 360 for testing. The split mixes the writers, so the test accuracy is
    measured on writers seen in training.

    Args:
        name: the set's key in `catalog.DATA_SETS`.
        data_dir, manual_dir: not used; every loader takes them.

    >>> load().train.input.shape, load().test.label.shape
    ((1437, 8, 8, 1), (360,))
    """
    del data_dir, manual_dir
    from sklearn.datasets import load_digits  # takes a second to import

    value, label = load_digits(return_X_y=True)
    image = np.rint(value * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    label = np.asarray(label, np.int32)
    order = np.random.RandomState(0).permutation(len(label))
    num_train = catalog.DATA_SETS[name].num_train
    train, test = order[:num_train], order[num_train:]
    return Splits(*(Examples(image[part], label[part]) for part in (train, test)))
