"""Layers as in Keras, for the models that a paper took from `keras.applications`.

All kernels, also those of the last layer, start Glorot uniform: on [-a, a], a^2 = 6 / (fan_in +
fan_out) (Glorot and Bengio, 2010). Biases start at 0. This matters if weights are compared across
layers, as in magnitude pruning. For a depthwise convolution of 512 channels `a` is 0.036, while a
He normal start has a standard deviation of 0.47.
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

    Batch and running variances divide by n = B H W; TensorFlow's fused kernel divides the running
    variances by n - 1.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=epsilon, dtype=dtype)


def classified(
    x: jax.Array, num_classes: int, *, hidden: int, dropout: float, train: bool, dtype: DTypeLike
) -> jax.Array:
    """Logits [B, num_classes] from feature maps [B, H, W, C]: the mean over pixels, `hidden` ReLU
    units, a linear layer `head`. Call it inside a module; the layers become part of that module.

    Args:
        dropout: rate at which inputs of the linear layer are dropped in training.
    """
    x = jnp.mean(x, axis=(1, 2), dtype=layers.wide_type(dtype))
    x = nn.relu(nn.Dense(hidden, kernel_init=glorot, dtype=dtype)(x))
    x = layers.dropout(x, dropout, train=train)
    return layers.head(num_classes, kernel_init=glorot, dtype=dtype)(x)
