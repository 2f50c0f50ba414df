"""Examples in memory, in splits: pytrees of numpy arrays (host) or jax arrays (device)."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax.data.augmentation import normalize
from sharpjax.errors import UserError


class Examples(NamedTuple):
    """One split.

    Attributes:
        input: uint8 [N, H, W, C] images, int32 [N, T] tokens, or float32 [N, ...].
        label: int32 [N] classes, or float32 [N, ...] targets of a regression.
        true_label: int32 [N] if `label` is noisy, else None.
        mean, std: float32 [C], with which `data.normalize` scales uint8 images; None: the input is
            used as it is.
    """

    input: Any
    label: Any
    true_label: Any = None
    mean: Any = None
    std: Any = None


class Splits(NamedTuple):
    """Examples for training, for testing, and for choices made by validation (None without)."""

    train: Examples
    test: Examples
    validation: Examples | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A data set in host memory.

    Attributes:
        splits: of numpy arrays.
        num_classes: 0 for a regression.
        digests: `digest` of each split by its name: 'train', 'test', and 'validation' if there is
            one. Equal digests mean equal numbers, wherever the data came from.
    """

    splits: Splits
    num_classes: int
    digests: dict[str, str]


def loaded(splits: Splits, num_classes: int) -> Loaded:
    """`splits` with their digests, of inputs, labels and, if there are any, true labels."""
    named = {name: split for name, split in splits._asdict().items() if split is not None}
    arrays = {name: split[:2] if split[2] is None else split[:3] for name, split in named.items()}
    return Loaded(splits, num_classes, {name: digest(*arrays[name]) for name in named})


def on_device(loaded: Loaded) -> Splits:
    """The splits as jax arrays on the default device."""
    return jax.tree.map(jnp.asarray, loaded.splits)


def batch(examples: Examples, index: Any) -> dict[str, jax.Array]:
    """The examples at `index`, normalised but not augmented, as losses and models take them.

    Args:
        examples: numpy or jax arrays; under `jax.vmap`, those of one lane.
        index: integers, of any shape; a negative one counts from the end.

    Returns:
        'image': the inputs, float32 if they were normalised. 'label': the classes, or 'target': the
        targets of a regression, as `losses.SquaredError` takes them. 'true_label', if there are
        any.

    Raises:
        UserError: an index beyond the examples. In a trace this cannot be checked, and such an
            index gives the first or the last example.

    >>> images = np.full((2, 1, 1, 1), 255, np.uint8)
    >>> examples = Examples(images, np.int32([3, 4]), mean=np.float32([0.5]), std=np.float32([0.5]))
    >>> {name: value.tolist() for name, value in batch(examples, np.array([1])).items()}
    {'image': [[[[1.0]]]], 'label': [4]}
    """
    return as_batch(_taken("data.batch", examples, index))


def take(examples: Examples, index: Any) -> Examples:
    """The examples at `index`, as they are stored. Index and errors are those of `batch`."""
    return _taken("data.take", examples, index)


def _taken(caller: str, examples: Examples, index: Any) -> Examples:
    examples = jax.tree.map(jnp.asarray, examples)
    places = None if isinstance(index, Tracer) else np.asarray(index)
    if places is not None and places.size and np.issubdtype(places.dtype, np.integer):
        least, most, count = places.min(), places.max(), examples.label.shape[0]
        if most >= count or least < -count:
            raise UserError(
                f"{caller}: index {most if most >= count else least} of {count:,} examples; give "
                f"indices from {-count} to {count - 1}."
            )
    value, label, true_label = (None if x is None else x[index] for x in examples[:3])
    return Examples(value, label, true_label, examples.mean, examples.std)


def as_batch(examples: Examples) -> dict[str, jax.Array]:
    """All of the examples, as `batch` returns them."""
    value, label = examples.input, examples.label
    if examples.mean is not None:
        value = normalize(value, examples.mean, examples.std)
    kind = "target" if jnp.issubdtype(label.dtype, jnp.floating) else "label"
    found = {"image": value, kind: label}
    if examples.true_label is not None:
        found["true_label"] = examples.true_label
    return found


def digest(*arrays: np.ndarray) -> str:
    """SHA-256, in hex, over the dtypes, shapes and bytes of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
