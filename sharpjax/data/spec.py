"""Specifications of the data that a model is trained on, made without loading them.

A specification is a frozen dataclass, compared by value: equal specifications load equal numbers,
wherever the data are stored. It checks its fields when it is made. TFDS and scikit-learn are
imported only when they are needed to load.
"""

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from sharpjax import catalog
from sharpjax.data import label_noise, modular, normalization
from sharpjax.data.examples import Examples, Loaded, Splits, loaded
from sharpjax.data.resizing import resized
from sharpjax.errors import UserError, whole_number

MAX_IMAGE_SIZE = 224


class DataSpec(Protocol):
    """The interface of all specifications.

    Attributes:
        is_per_seed: whether each seed draws its own split.
        num_classes: 0 for a regression.
        num_train, num_test, num_validation: number of examples in each split.
        input_shape, input_dtype: of one example as it is stored: 'uint8' for images, 'int32' for
            tokens, or 'float32'.
    """

    @property
    def is_per_seed(self) -> bool: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def num_train(self) -> int: ...
    @property
    def num_test(self) -> int: ...
    @property
    def num_validation(self) -> int: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def input_dtype(self) -> str: ...

    def load(self, key: jax.Array | None = None) -> Loaded:
        """The data, in host memory. `key` is the random key of the split for specifications that
        split per seed; others do not use it."""
        ...


def describe(spec: Any) -> dict[str, Any]:
    """The kind and the fields of a specification, for canonical JSON. It contains everything that
    determines the numbers, but not where the data are stored.

    Fields at their defaults are left out, so that a field added later changes no digest.

    >>> describe(Modular("+", 97, 0.5))
    {'kind': 'Modular', 'operation': '+', 'modulus': 97, 'train_fraction': 0.5}
    """
    fields = [f for f in dataclasses.fields(spec) if f.compare]
    given = {f.name: getattr(spec, f.name) for f in fields if getattr(spec, f.name) != f.default}
    return {"kind": type(spec).__name__, **given}


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a set in `catalog.DATA_SETS`, as bytes.

    Sets are stored in a fixed random order, so the first n examples are a random sample, and the
    last n are another one.

    Attributes:
        name: a key of `catalog.DATA_SETS`.
        num_train: number of training examples, taken from the start of the set's training split; 0:
            all that are not for validation (the field then holds their number).
        num_validation: number of validation examples, taken from the end of the set's training
            split, whatever `num_train` is.
        label_noise: share of the training labels that are replaced, as in `label_noise.noisy`;
            `Examples.true_label` has the original ones. Validation and test labels stay true.
        noise_seed, noise_kind: of the noise; the kind is 'other' or 'uniform'.
        image_size: height and width, as made by `resizing.resized`; 0: as stored.
        normalization: 'measured': with mean and deviation of the training examples that are used,
            after resizing. 'mean_std': with the set's published constants, which are those of its
            whole training split as stored. 'half': with 0.5 and 0.5. 'none': scaled to 0 to 1.
        padding: of images that are cropped in training: 'zero', or 'mean', which is about 0 after
            normalisation (`normalization.padding_value`).
        data_dir, manual_dir: where the set is stored, as `tfds.load` takes them; ignored in
            comparisons.

    Raises:
        UserError: an unknown name in any field; more examples than there are; label noise that is
            out of range or replaces no label; a size that is out of range.

    >>> spec = Images("digits", num_validation=437)
    >>> spec.num_train, spec.num_classes, spec.input_shape
    (1000, 10, (8, 8, 1))
    """

    is_per_seed = False
    input_dtype = "uint8"

    name: str
    num_train: int = 0
    num_validation: int = 0
    label_noise: float = 0.0
    noise_seed: int = 0
    noise_kind: str = "other"
    image_size: int = 0
    normalization: str = "measured"
    padding: str = "zero"
    data_dir: str = dataclasses.field(default="", compare=False)
    manual_dir: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        known = catalog.lookup("data set", catalog.DATA_SETS, self.name)
        for field in ("num_train", "num_validation", "image_size"):
            whole_number("data.Images", field, getattr(self, field), least=0)
        rest = known.num_train - self.num_validation
        if self.num_train > rest or rest < 1:
            raise UserError(
                f"data.Images: num_train={self.num_train} (0: all that remain) beside "
                f"num_validation={self.num_validation}, but {self.name} has {known.num_train:,} "
                "training examples; give numbers that add up to no more."
            )
        object.__setattr__(self, "num_train", self.num_train or rest)
        label_noise.check(
            self.label_noise, self.noise_seed, self.noise_kind, num_labels=self.num_train
        )
        normalization.check(self.normalization, self.padding)
        if self.image_size > MAX_IMAGE_SIZE:
            raise UserError(
                f"data.Images: image_size={self.image_size}; give 1 to {MAX_IMAGE_SIZE} pixels, "
                "or 0 for the size as stored."
            )

    @property
    def num_classes(self) -> int:
        return catalog.DATA_SETS[self.name].num_classes

    @property
    def num_test(self) -> int:
        return catalog.DATA_SETS[self.name].num_test

    @property
    def input_shape(self) -> tuple[int, ...]:
        height, width, channels = catalog.DATA_SETS[self.name].shape
        return self.image_size or height, self.image_size or width, channels

    def load(self, key: jax.Array | None = None) -> Loaded:
        """Read the images, after preparing the set if needed.

        The first call for a TFDS set may prepare it (from `manual_dir`, else by download: up to 170
        MB and a minute); afterwards CIFAR-10 takes about seven seconds. TensorFlow is not used.

        Raises:
            UserError: the data cannot be obtained, are damaged, or do not match the catalog.
        """
        del key
        known = catalog.DATA_SETS[self.name]
        read = catalog.resolve(known.loader)
        stored = read(self.name, data_dir=self.data_dir, manual_dir=self.manual_dir)
        _check_stored(self.name, stored, known)
        train = self._part(stored.train, 0, self.num_train)
        mean, std = normalization.statistics(
            self.normalization, train.input, (known.mean, known.std)
        )
        train = label_noise.noisy(
            train,
            share=self.label_noise,
            num_classes=known.num_classes,
            seed=self.noise_seed,
            kind=self.noise_kind,
        )
        first = known.num_train - self.num_validation
        validation = (
            self._part(stored.train, first, known.num_train)._replace(mean=mean, std=std)
            if self.num_validation
            else None
        )
        return loaded(
            Splits(
                train=train._replace(mean=mean, std=std),
                test=self._part(stored.test, 0, known.num_test)._replace(mean=mean, std=std),
                validation=validation,
            ),
            known.num_classes,
        )

    def _part(self, stored: Examples, start: int, stop: int) -> Examples:
        image = stored.input[start:stop]
        if self.image_size:
            image = resized(image, self.image_size)
        return Examples(image, stored.label[start:stop])


def _check_stored(name: str, stored: Splits, known: catalog.DataSet) -> None:
    for split, num in (("train", known.num_train), ("test", known.num_test)):
        examples: Examples = getattr(stored, split)
        expected = (((num, *known.shape), np.uint8), ((num,), np.int32))
        found = tuple((array.shape, array.dtype) for array in examples[:2])
        if found != expected:
            raise UserError(
                f"data.Images: what the loader of '{name}' gives is not what the catalog says: its "
                f"split '{split}' has images {found[0][1]}{list(found[0][0])} and labels "
                f"{found[1][1]}{list(found[1][0])}, which should be uint8{[num, *known.shape]} and "
                f"int32[{num}]."
            )


@dataclasses.dataclass(frozen=True)
class Modular:
    """A table of modular arithmetic, split differently for each seed; see `data.modular`.

    Attributes:
        operation, modulus, train_fraction: as in `modular.table` and `modular.split`.

    Raises:
        UserError: as in `modular.table` and `modular.split`.

    >>> spec = Modular("+", modulus=97, train_fraction=0.8)
    >>> spec.num_train, spec.num_test, spec.num_classes
    (7528, 1881, 99)
    >>> len(spec.load(jax.random.key(0)).splits.test.label)
    1881
    """

    is_per_seed = True
    num_validation = 0
    input_shape = (4,)
    input_dtype = "int32"

    operation: str
    modulus: int
    train_fraction: float

    def __post_init__(self) -> None:
        self.num_train  # noqa: B018 (refuses what cannot be split)

    @property
    def num_classes(self) -> int:
        """The number of tokens and of logits: the numbers, the operator and '='."""
        return self.modulus + 2

    @property
    def num_train(self) -> int:
        return modular.num_train(self._num_pairs, self.train_fraction)

    @property
    def num_test(self) -> int:
        return self._num_pairs - self.num_train

    @property
    def _num_pairs(self) -> int:
        return modular.num_pairs(self.operation, modulus=self.modulus)

    def load(self, key: jax.Array | None = None) -> Loaded:
        """The table, split by `key`. The key alone decides the split, so seeds with the same key
        have the same data.

        Raises:
            UserError: there is no key.
        """
        if key is None:
            raise UserError("data.Modular.load: each seed has its own split; give the key of it.")
        table = modular.table(self.operation, modulus=self.modulus)
        train, test = (
            Examples(*(column[np.asarray(index)] for column in table))
            for index in modular.split(key, len(table.label), self.train_fraction)
        )
        return loaded(Splits(train, test), self.num_classes)
