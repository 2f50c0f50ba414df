"""Logits of a linear head, kept as factors: no whole array of [tokens, classes] is ever formed."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import UserError

# Numbers in a block of logits: 64 MiB in float32. A product holds three or four such blocks.
BLOCK = 2**24
# Features and classes of the head that stands in for the real one when a loss is only tested.
_FEATURES, _CLASSES = 8, 64
_STAND_IN = np.random.default_rng(2).normal(size=(_FEATURES, _CLASSES)).astype(np.float32)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearLogits:
    """`features @ kernel + bias`, the logits of a linear head, without multiplying them out.

    A model returns this object instead of logits. Losses of this package (`CrossEntropy`,
    `cross_entropy`) then compute the logits of one block of rows at a time, and compute them again
    when a derivative needs them. No whole array of [tokens, classes] is ever formed: not for a
    value or a gradient, nor for products with Hessians, Gauss-Newton and Fisher matrices. All of
    these are exact: `sharpjax.geometry` treats the logits as the outputs of such a model.

    Cost, with T tokens, d features and K classes: a gradient takes 4 T d K multiplications in the
    head instead of the 3 T d K with a whole array of logits, a Gauss-Newton product 5 instead of 4,
    and a Hessian product 7 instead of 6. Memory besides features and kernel: three or four blocks
    of [block_rows, K].

    It is computed in at least float32, as in geometry.

    Attributes:
        features: [..., d], a row for each token.
        kernel: [d, K].
        bias: [K], or None.
        block_rows: rows whose logits are computed together; None for as many as make 2^24 logits
            (64 MiB in float32). Rows that fit into one block are not cut.

    The other fields are set by geometry.

    Raises:
        UserError: on use, if the shapes do not fit, or `block_rows` is not a whole number of at
            least 1.

    >>> import sharpjax.losses as losses
    >>> logits = losses.LinearLogits(jnp.eye(2), jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    >>> logits.multiply_out().tolist()
    [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    >>> print(losses.CrossEntropy()(logits, {"label": jnp.array([2, 0])}))
    0.7531091
    """

    features: jax.Array
    kernel: jax.Array
    bias: jax.Array | None = None
    block_rows: int | None = dataclasses.field(default=None, metadata={"static": True})
    is_affine: bool = dataclasses.field(
        default=False, repr=False, metadata={"static": True}
    )  # whether second derivatives omit that of the product
    classes: int | None = dataclasses.field(
        default=None, repr=False, metadata={"static": True}
    )  # number of classes, if each column of the kernel stands for several

    @property
    def num_classes(self) -> int:
        """K."""
        return self.kernel.shape[1] if self.classes is None else self.classes

    def check(self, caller: str) -> None:
        """Checks the shapes and `block_rows`.

        Raises:
            UserError: they do not fit. The message names `caller`.
        """
        features, kernel = jnp.shape(self.features), jnp.shape(self.kernel)
        bias = None if self.bias is None else jnp.shape(self.bias)
        fits = len(features) > 1 and len(kernel) == 2 and features[-1] == kernel[0]
        if not fits or bias not in (None, kernel[1:]):
            raise UserError(
                f"{caller}: LinearLogits takes features [..., d], a kernel [d, K] and a bias [K] "
                f"or None; got {features}, {kernel} and {bias}."
            )
        if self.block_rows is not None and not (
            isinstance(self.block_rows, int) and self.block_rows >= 1
        ):
            raise UserError(
                f"{caller}: block_rows of LinearLogits must be a whole number >= 1 or None, got "
                f"{self.block_rows!r}."
            )

    def multiply_out(self) -> jax.Array:
        """The logits as an array, [..., K], in at least float32.

        Raises:
            UserError: the shapes do not fit.
        """
        self.check("losses.LinearLogits")
        features, kernel, bias = tree.widen((self.features, self.kernel, self.bias))
        logits = (_product_without_bend if self.is_affine else jnp.matmul)(features, kernel)
        if bias is not None:
            logits = logits + jnp.expand_dims(bias, tuple(range(logits.ndim - 1)))
        if self.classes is None:
            return logits
        return jnp.take(logits, np.arange(self.classes) % logits.shape[-1], axis=-1)

    def affine(self) -> "LinearLogits":
        """The same logits, but with second derivatives that omit that of features times kernel.

        The Hessian of a loss of these logits, in features and kernel, is then `J'HJ`, with J the
        Jacobian of the logits and H the Hessian of the loss in the logits.
        """
        return dataclasses.replace(self, is_affine=True)

    def stand_in(self) -> tuple[jax.ShapeDtypeStruct, Callable[[jax.Array], "LinearLogits"]]:
        """Cheap logits with as many rows and classes, of which at most 64 columns differ. Returns
        the shape of an array and a function that makes logits from it. For testing whether a loss
        is a mean."""
        shape = (*self.features.shape[:-1], _FEATURES)
        dtype = jnp.float32 if tree.is_narrow(self.features) else self.features.dtype
        return jax.ShapeDtypeStruct(shape, dtype), _StandIn(self.num_classes)


@dataclasses.dataclass(frozen=True)
class _StandIn:
    classes: int

    def __call__(self, features: jax.Array) -> LinearLogits:
        kernel = jnp.asarray(_STAND_IN[:, : self.classes], features.dtype)
        return LinearLogits(features, kernel, classes=self.classes)


def map_rows(
    fn: Callable[..., jax.Array], caller: str, logits: LinearLogits, *rows: jax.Array
) -> jax.Array:
    """`fn(logits, *rows)`, computed one block of rows at a time.

    The logits of a block are dropped after use, and computed again for derivatives of any order.
    The rows of a block are evenly spaced, so that each device holds a share of them.

    Args:
        fn: a module-level function of logits [R, C] and arrays [R] that returns [R] and acts on
            each row separately; C is the number of columns of the kernel.
        caller: for errors.
        logits: features [..., d].
        *rows: arrays [...].

    Returns:
        An array [...].
    """
    logits.check(caller)
    shape, (width, columns) = logits.features.shape[:-1], logits.kernel.shape
    count = math.prod(shape)
    most = logits.block_rows or max(1, BLOCK // columns)
    features = logits.features.reshape(count, width)
    rows = tuple(x.reshape(count) for x in rows)
    head = dataclasses.replace(logits, features=None, classes=None)
    blocks = _count_blocks(count, most, features)
    if blocks == 1:
        return _on_block(fn, head, (features, *rows)).reshape(shape)
    size = math.ceil(count / blocks)

    def cut(x):
        if size * blocks > count:
            x = jnp.pad(x, [(0, size * blocks - count)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(size, blocks, *x.shape[1:]), 0, 1)

    found = _in_blocks(fn, head, tuple(map(cut, (features, *rows))))
    return jnp.swapaxes(found, 0, 1).reshape(size * blocks)[:count].reshape(shape)


def _count_blocks(count: int, most: int, features: jax.Array) -> int:
    """The smallest number of blocks of at most `most` rows. Up to twice as many if these then have
    equal lengths and divide evenly between devices, as far as the type of `features` shows its
    sharding."""
    fewest = max(1, math.ceil(count / most))
    sharding = jax.typeof(features).sharding
    axes = sharding.spec[0] if len(sharding.spec) else None
    axes = axes if isinstance(axes, tuple) else (axes,)
    shards = math.prod(sharding.mesh.shape[axis] for axis in axes if axis is not None)
    for blocks in range(fewest, 2 * fewest + 1):
        if count % (blocks * shards) == 0:
            return blocks
    return fewest


@functools.partial(jax.jit, static_argnums=0)  # compiled once when called outside of a jit
def _in_blocks(fn, head, blocks):
    on_block = jax.checkpoint(functools.partial(_on_block, fn), prevent_cse=False)
    return loops.map_over_chunks(on_block, head, blocks)


def _on_block(fn: Any, head: LinearLogits, block: tuple[jax.Array, ...]) -> jax.Array:
    features, *rows = block
    return fn(dataclasses.replace(head, features=features).multiply_out(), *rows)


@jax.custom_jvp
def _product_without_bend(features, kernel):
    return jnp.matmul(features, kernel)


@_product_without_bend.defjvp
def _along(primals, tangents):
    features, kernel = jax.lax.stop_gradient(primals)
    value = _product_without_bend(*primals)
    return value, jnp.matmul(tangents[0], kernel) + jnp.matmul(features, tangents[1])
