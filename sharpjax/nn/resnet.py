"""Residual networks for small images (arXiv 1512.03385): 3 x 3 stem, no pooling before the mean."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.nn import layers


class BasicBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)).

    The shortcut is the identity, or a 1 x 1 convolution with BatchNorm if the shape changes
    (option B). All BatchNorm scales start at 1, as in the networks whose results are reproduced
    here. Starting the last scale of a block at 0 (arXiv 1706.02677) is meant for large batches.
    Also, a weight that is 0 drops out of element-wise adaptive sharpness.

    `dropout` is the rate at which inputs of the second convolution are dropped in training (arXiv
    1605.07146; see `layers.dropout`).
    """

    features: int
    stride: int
    dtype: DTypeLike
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = conv(self.features, 3, self.stride, self.dtype)(x)
        y = nn.relu(batch_norm(train, self.dtype)(y))
        y = layers.dropout(y, self.dropout, train=train)
        y = conv(self.features, 3, 1, self.dtype)(y)
        y = batch_norm(train, self.dtype)(y)
        if x.shape != y.shape:
            x = conv(self.features, 1, self.stride, self.dtype)(x)
            x = batch_norm(train, self.dtype)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A stem, then stages of basic blocks, each with twice the filters at half the resolution.

    For images of any size: a map of one pixel stays one pixel.

    Attributes:
        width: filters of the stem and the first stage.
        blocks: blocks in each stage.
        stem_stride: stride of the stem.
        dropout: rate of the dropout inside each block.
    """

    num_classes: int
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    stem_stride: int = 1

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = conv(self.width, 3, self.stem_stride, self.dtype)(image)
        x = nn.relu(batch_norm(train, self.dtype)(x))
        for stage, num_blocks in enumerate(self.blocks):
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                features = self.width * 2**stage
                x = BasicBlock(features, stride, self.dtype, self.dropout)(x, train=train)
        head = layers.head(self.num_classes, dtype=self.dtype)
        return head(jnp.mean(x, axis=(1, 2), dtype=head.dtype))


class ResNet18(ResNet):
    """ResNet-18 with the CIFAR stem.

    Parameters: 11,173,962 at width 64, for colour images of 10 classes.

    >>> model = ResNet18(num_classes=10, width=2)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    >>> sorted(variables), variables["params"]["head"]["kernel"].shape
    (['batch_stats', 'params'], (16, 10))
    """


class ResNet20(ResNet):
    """ResNet-20: three stages of three blocks.

    Parameters: 272,474 at width 16, for colour images of 10 classes.
    """

    width: int = 16
    blocks: tuple[int, ...] = (3, 3, 3)


class ResNetNarrow(ResNet):
    """Our own small model for two CPU cores: three stages of one block, a stem of stride 2.

    Parameters: 78,042 at width 16, for colour images of 10 classes.
    """

    width: int = 16
    blocks: tuple[int, ...] = (1, 1, 1)
    stem_stride: int = 2


def conv(features: int, size: int, stride: int, dtype: DTypeLike) -> nn.Conv:
    """A convolution before BatchNorm: no bias; n pixels become ceil(n / stride)."""
    return layers.conv(
        features, size, stride=stride, padding=size // 2, use_bias=False, dtype=dtype
    )


def batch_norm(train: bool, dtype: DTypeLike) -> nn.BatchNorm:
    """BatchNorm (arXiv 1502.03167) with PyTorch's constants, over batch and pixels.

    epsilon = 1e-5, and running <- 0.9 running + 0.1 batch, which PyTorch calls momentum 0.1. Batch
    and running variances divide by n = B H W; in PyTorch only the running variance divides by
    n - 1.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
