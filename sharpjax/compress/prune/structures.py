"""What is pruned as one: single weights, output channels, blocks of a matrix.

A structure says what the scores of the weights come to for each of its units (`pool`), and which
weights a unit is (`spread`), in numpy. `masks.mask` chooses among units.
"""

import dataclasses
import math
import numbers
from typing import Literal

import numpy as np

from sharpjax.errors import UserError, unknown, whole_number

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Elements:
    """Single weights."""

    def units(self, name: str, shape: Shape) -> Shape:
        return shape

    def pool(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        return kept


@dataclasses.dataclass(frozen=True)
class Channels:
    """Whole slices along an axis: output channels of convolutions, output neurons of dense layers.

    The score of a channel is the norm of its scores, `(sum |s|^order)^(1/order)`, as in
    `torch.nn.utils.prune.ln_structured`. Norms of arrays of other sizes are not comparable, so give
    amounts layer by layer (`uniform`).

    Attributes:
        axis: of the channels; -1 is that of the outputs of Flax kernels.
        order: a number >= 1, or inf.
        biases: whether arrays of one axis that lie beside a kernel in the tree lose the numbers of
            its pruned channels, in or out of scope: a pruned neuron then gives act(0). They are not
            counted among the units. BatchNorm, which is a layer of its own, keeps its shift.
    """

    axis: int = -1
    order: float = 2
    biases: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.order, numbers.Real) or not self.order >= 1:
            raise UserError(f"prune.Channels: order={self.order!r}; give a number >= 1, or inf.")
        if self.biases and self.axis != -1:
            raise UserError(
                f"prune.Channels: biases belong to the outputs, axis=-1, and axis={self.axis}."
            )

    def units(self, name: str, shape: Shape) -> Shape:
        if not -len(shape) <= self.axis < len(shape):
            raise UserError(
                f"prune.Channels: '{name}' is {list(shape)} and has no axis {self.axis}; leave it "
                "out by scope."
            )
        return (shape[self.axis],)

    def pool(self, scores: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(scores, self.axis, 0).reshape(scores.shape[self.axis], -1)
        return np.linalg.norm(rows.astype(np.float64), ord=self.order, axis=1)

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        own = [1] * len(shape)
        own[self.axis] = shape[self.axis]
        return np.broadcast_to(kept.reshape(own), shape)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of `height` x `width` numbers of the last two axes.

    Attributes:
        pool_by: the score of a block: the 'mean' of its scores, or their 'max'.
    """

    height: int
    width: int
    pool_by: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        whole_number("prune.Blocks", "height", self.height)
        whole_number("prune.Blocks", "width", self.width)
        if self.pool_by not in ("mean", "max"):
            raise unknown("pool_by (prune.Blocks)", str(self.pool_by), ("mean", "max"))

    def units(self, name: str, shape: Shape) -> Shape:
        if len(shape) < 2 or shape[-2] % self.height or shape[-1] % self.width:
            raise UserError(
                f"prune.Blocks: '{name}' is {list(shape)} and cannot be cut into blocks of "
                f"{self.height} x {self.width}; choose others, or leave it out by scope."
            )
        return (*shape[:-2], shape[-2] // self.height, shape[-1] // self.width)

    def pool(self, scores: np.ndarray) -> np.ndarray:
        *before, rows, columns = scores.shape
        count = math.prod(before)
        tall, wide = rows // self.height, columns // self.width
        cut = scores.reshape(count, tall, self.height, wide, self.width).astype(np.float64)
        pooled = cut.mean((2, 4)) if self.pool_by == "mean" else cut.max((2, 4))
        return pooled.reshape(*before, tall, wide)

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        return kept.repeat(self.height, axis=-2).repeat(self.width, axis=-1)


Structure = Elements | Channels | Blocks
