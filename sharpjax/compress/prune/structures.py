"""The units of pruning: single weights, output channels, or blocks of a matrix.

A structure pools the scores of weights into a score for each unit (`pool`), and spreads the choice
of units to their weights (`spread`), in numpy. `masks.mask` chooses among the units.
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

    The score of a channel is the norm of the scores of its weights, `(sum |s|^order)^(1/order)`, as
    in `torch.nn.utils.prune.ln_structured`. Norms of arrays of different sizes are not comparable,
    so give amounts layer by layer (`uniform`).

    Attributes:
        axis: the axis of the channels; -1 is the output axis of Flax kernels.
        order: order of the norm, a number >= 1, or inf.
        biases: whether to prune the entries of pruned channels also in arrays of one axis beside
            the kernel in the tree, in or out of scope. A pruned neuron then outputs act(0). These
            arrays are not counted among the units, and amounts given for them are not used.
            BatchNorm is a layer of its own and keeps its shift.

    Raises:
        UserError: `order` is below 1; `biases` with another axis than -1.
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
        rows = rows.astype(np.float64)
        # Powers of the largest score of a row, which is 1 here, neither overflow nor underflow.
        top = np.abs(rows).max(axis=1, initial=0.0)
        scaled = rows / np.where(top > 0, top, 1.0)[:, None]
        return top * np.linalg.norm(scaled, ord=self.order, axis=1)

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        own = [1] * len(shape)
        own[self.axis] = shape[self.axis]
        return np.broadcast_to(kept.reshape(own), shape)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of `height` x `width` numbers of the last two axes.

    Attributes:
        height, width: sizes of a block.
        pool_by: the score of a block: the 'mean' of the scores of its weights, or their 'max'.

    Raises:
        UserError: a size below 1, or an unknown `pool_by`.
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
