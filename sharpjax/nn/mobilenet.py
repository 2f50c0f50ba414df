"""MobileNetV1 (arXiv 1704.04861), with depthwise separable convolutions."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike

from sharpjax.nn import keras, layers


class Depthwise(nn.Module):
    """A 3 x 3 depthwise convolution without bias; n pixels become ceil(n / stride).

    It equals `nn.Conv` with as many groups as channels, kernel [3, 3, 1, C] and padding `SAME`. It
    is computed as a sum of nine shifted images, each multiplied by one weight per channel:

        y[b, i, j, c] = sum_uv w[u, v, c] x[b, s i + u - p, s j + v - p, c]

    The sum is in float32 at least. XLA on CPU convolves one group after another, so `nn.Conv` is
    slower. The sum took 0.1 ms instead of 9 (batch 64, 16 x 16 pixels, 16 channels), and a training
    step of `MobileNetNarrow` 43 ms instead of 144 (batch 64, 32 x 32 pixels, two cores,
    2026-11-29), with the same results up to rounding. `flops.count` counts only matrix products and
    convolutions, so it does not count this layer.
    """

    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, channels = x.shape
        kernel = self.param("kernel", keras.glorot, (3, 3, 1, channels))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        strides = (self.stride, self.stride)
        rows, columns = lax.padtype_to_pads((height, width), (3, 3), strides, "SAME")
        x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
        # The extent from the first to the last pixel that a weight is applied to.
        down, across = (1 + (n - 1) // self.stride * self.stride for n in (height, width))
        wide = layers.wide_type(self.dtype)
        terms = (
            x[:, u : u + down : self.stride, v : v + across : self.stride].astype(wide)
            * kernel[u, v].astype(wide)[None, None]
            for u in range(3)
            for v in range(3)
        )
        return sum(terms, start=jnp.zeros((), wide)).astype(self.dtype)


class Separable(nn.Module):
    """relu6(BN(conv(relu6(BN(depthwise(x)))))) with a 1 x 1 convolution; no biases."""

    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Depthwise(self.stride, self.dtype)(x)
        x = nn.relu6(batch_norm(train, self.dtype)(x))
        x = keras.conv(self.features, 1, use_bias=False, dtype=self.dtype)(x)
        return nn.relu6(batch_norm(train, self.dtype)(x))


class MobileNet(nn.Module):
    """MobileNetV1 as in `keras.applications`, with the head of "Neural Network Compression: The
    Functional Perspective" (Mason-Williams, 2024).

    A 3 x 3 convolution of stride 2, then stages of separable convolutions, the mean over pixels, a
    hidden layer and a linear layer. Each stage has twice the filters at half the resolution; the
    first stage keeps the resolution.

    For images of any size: n pixels become ceil(n / 2). Keras pads only at the end and drops the
    last pixel of an odd number; on 32 x 32 images no number is odd.

    Attributes:
        width: filters of the stem; the first stage has twice as many. 32 times Keras's `alpha`.
        blocks: separable convolutions in each stage.
        hidden: units of the hidden layer.
        dropout: rate at which inputs of the last layer are dropped in training; see
            `layers.dropout`. Not in the paper.

    Parameters: 3,736,906 for 32 x 32 colour images of 10 classes, 3,783,076 for 100; statistics of
    BatchNorm: 21,888.

    >>> model = MobileNet(num_classes=10, width=2)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> {k: v.shape for k, v in variables["params"]["Separable_12"]["Depthwise_0"].items()}
    {'kernel': (3, 3, 1, 64)}
    """

    num_classes: int
    width: int = 32
    blocks: tuple[int, ...] = (1, 2, 2, 6, 2)
    hidden: int = 512
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = keras.conv(self.width, 3, stride=2, use_bias=False, dtype=self.dtype)(image)
        x = nn.relu6(batch_norm(train, self.dtype)(x))
        for stage, num_blocks in enumerate(self.blocks):
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                x = Separable(2 * self.width * 2**stage, stride, self.dtype)(x, train=train)
        return keras.classified(
            x,
            self.num_classes,
            hidden=self.hidden,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
        )


class MobileNetNarrow(MobileNet):
    """Our own small model for two CPU cores: six separable convolutions of 32, 64 and 128 filters.

    Parameters: 71,722 for colour images of 10 classes.
    """

    width: int = 16
    blocks: tuple[int, ...] = (1, 2, 3)
    hidden: int = 128


def batch_norm(train: bool, dtype: DTypeLike) -> nn.BatchNorm:
    """BatchNorm with Keras's epsilon, 1e-3; only Keras's ResNets have another."""
    return keras.batch_norm(train, 1e-3, dtype)
