"""Layers as Keras has them, for the nets that a paper took from `keras.applications`.

Kernels, those of the last layer too, start Glorot uniform: on [-a, a], a^2 = 6 / (fan_in +
fan_out) (Glorot and Bengio, 2010). Biases start at 0. That matters where weights are compared over
layers, as pruning by magnitude does: of a depthwise convolution of 512 channels `a` is 0.036, where
a He normal start has a standard deviation of 0.47.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.nn import layers

glorot = nn.initializers.glorot_uniform()


def conv(
    features: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | str = "SAME",
    use_bias: bool = True,
    dtype: DTypeLike,
) -> nn.Conv:
    """A square convolution. `SAME` at stride 2 pads an even side by one pixel, at its end."""
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=padding,
        use_bias=use_bias,
        kernel_init=glorot,
        dtype=dtype,
    )


def batch_norm(train: bool, epsilon: float, dtype: DTypeLike) -> nn.BatchNorm:
    """BatchNorm over batch and pixels, with running <- 0.99 running + 0.01 batch.

    Batch variances divide by n = B H W, running ones too; TensorFlow's fused kernel divides the
    latter by n - 1.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=epsilon, dtype=dtype)


def classified(
    x: jax.Array, num_classes: int, *, hidden: int, dropout: float, train: bool, dtype: DTypeLike
) -> jax.Array:
    """Logits [B, num_classes] of maps [B, H, W, C]: their means over the pixels, `hidden` ReLU
    units, a linear layer `head`. Called inside a module, whose layers these become.

    Args:
        dropout: rate at which, in training, inputs of the linear layer are dropped.
    """
    x = jnp.mean(x, axis=(1, 2), dtype=layers.wide_type(dtype))
    x = nn.relu(nn.Dense(hidden, kernel_init=glorot, dtype=dtype)(x))
    x = layers.dropout(x, dropout, train=train)
    return layers.head(num_classes, kernel_init=glorot, dtype=dtype)(x)
