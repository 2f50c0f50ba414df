"""Residual networks of bottleneck blocks (arXiv 1512.03385), with the stem for large images."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from sharpjax.nn import keras


class Bottleneck(nn.Module):
    """relu(shortcut(x) + F(x)), with F three convolutions with BatchNorm, and ReLUs between them.

    The convolutions are 1 x 1 to `features` filters with the stride, 3 x 3, and 1 x 1 to four times
    as many filters. The shortcut is the identity, or a 1 x 1 convolution with BatchNorm if the
    shape changes. As in Keras, convolutions have biases although BatchNorm follows.
    """

    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = keras.conv(self.features, 1, stride=self.stride, dtype=self.dtype)(x)
        y = nn.relu(batch_norm(train, self.dtype)(y))
        y = keras.conv(self.features, 3, dtype=self.dtype)(y)
        y = nn.relu(batch_norm(train, self.dtype)(y))
        y = keras.conv(4 * self.features, 1, dtype=self.dtype)(y)
        y = batch_norm(train, self.dtype)(y)
        if x.shape != y.shape:
            x = keras.conv(4 * self.features, 1, stride=self.stride, dtype=self.dtype)(x)
            x = batch_norm(train, self.dtype)(x)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """ResNet-50 as in `keras.applications`, with the head of "Neural Network Compression: The
    Functional Perspective" (Mason-Williams, 2024).

    A 7 x 7 convolution and a 3 x 3 max-pool, each of stride 2, then stages of bottlenecks, the mean
    over pixels, a hidden layer and a linear layer. Each stage has twice the filters. The first
    stage keeps the resolution; each later stage halves it in the first convolution of its first
    block. So 32 x 32 pixels become 8 x 8, 4 x 4, 2 x 2 and 1 in the four stages.

    For images of any size: a map of one pixel stays one pixel.

    Attributes:
        width: filters of the stem, and of the inner convolutions of the first stage.
        blocks: bottlenecks in each stage.
        hidden: units of the hidden layer.
        dropout: rate at which inputs of the last layer are dropped in training; see
            `layers.dropout`. Not in the paper.

    Parameters: 24,588,810 for colour images of 10 classes, 24,634,980 for 100; statistics of
    BatchNorm: 53,120.

    >>> model = ResNet50(num_classes=10, width=2)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> variables["params"]["Bottleneck_15"]["Conv_2"]["kernel"].shape
    (1, 1, 16, 64)
    """

    num_classes: int
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    hidden: int = 512
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = keras.conv(self.width, 7, stride=2, padding=3, dtype=self.dtype)(image)
        x = max_pool(nn.relu(batch_norm(train, self.dtype)(x)))
        for stage, num_blocks in enumerate(self.blocks):
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                x = Bottleneck(self.width * 2**stage, stride, self.dtype)(x, train=train)
        return keras.classified(
            x,
            self.num_classes,
            hidden=self.hidden,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
        )


class ResNet50Narrow(ResNet50):
    """Our own small model for two CPU cores: three stages of two bottlenecks.

    Parameters: 75,130 for colour images of 10 classes.
    """

    width: int = 8
    blocks: tuple[int, ...] = (2, 2, 2)
    hidden: int = 128


def batch_norm(train: bool, dtype: DTypeLike) -> nn.BatchNorm:
    """BatchNorm with the epsilon of Keras's ResNets, 1.001e-5."""
    return keras.batch_norm(train, 1.001e-5, dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """3 x 3 max-pool of [B, H, W, C] at stride 2, padded by one pixel; n pixels become ceil(n / 2).

    It takes maxima along one axis, then along the other. Compared with `nn.max_pool`, a gradient
    took 2 ms instead of 6 on two CPU cores (batch 64, 16 x 16 pixels, 16 channels), with the same
    numbers.
    """
    for axis in (1, 2):
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1)
        end = x.shape[axis] + x.shape[axis] % 2 - 1
        x = jnp.pad(x, pads, mode="edge")  # copies of edge pixels change no maximum
        first, second, third = (lax.slice_in_dim(x, i, i + end, 2, axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x
