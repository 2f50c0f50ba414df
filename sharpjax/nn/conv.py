"""Convolutional networks without BatchNorm.

`dropout` is the rate at which inputs of the last layer are dropped in training: see
`layers.dropout`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax import catalog
from sharpjax.errors import UserError
from sharpjax.nn import layers


class SmallConv(nn.Module):
    """Two 3 x 3 convolutions (`width` filters, then 2 `width` at stride 2) and a linear layer.

    For images of any size. Parameters: 9,930 at width 16 on 8 x 8 digits of 10 classes. There, a
    third convolution was not better, and slower.

    >>> model = SmallConv(num_classes=10)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    >>> {name: leaves["kernel"].shape for name, leaves in sorted(params.items())}
    {'Conv_0': (3, 3, 1, 16), 'Conv_1': (3, 3, 16, 32), 'head': (512, 10)}
    """

    num_classes: int
    width: int = 16
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.relu(layers.conv(self.width, 3, padding=1, dtype=self.dtype)(image))
        x = nn.relu(layers.conv(2 * self.width, 3, stride=2, padding=1, dtype=self.dtype)(x))
        x = layers.dropout(x.reshape(x.shape[0], -1), self.dropout, train=train)
        return layers.head(self.num_classes, dtype=self.dtype)(x)


class LeNet(nn.Module):
    """Two unpadded 3 x 3 convolutions (`width`, 2 `width` filters) with 2 x 2 max-pools, and a
    hidden layer of 4 `width` units.

    The LeNet of "Neural Network Compression: The Functional Perspective" (Mason-Williams, 2024).
    Parameters: 225,034 at width 32 on 28 x 28 images of 10 classes.

    Raises:
        UserError: when called with images smaller than 10 x 10, of which nothing would be left.
    """

    num_classes: int
    width: int = 32
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        height, width = image.shape[1:3]
        smallest = catalog.SMALLEST_IMAGE["lenet"]
        if min(height, width) < smallest:
            raise UserError(
                f"nn.LeNet: nothing is left of images of {height} x {width} after two unpadded "
                f"convolutions and two poolings; give {smallest} x {smallest} or more, or take "
                "'small_conv', 'mlp' or a ResNet, which work at any size."
            )
        x = image
        for features in (self.width, 2 * self.width):
            x = layers.max_pool(nn.relu(layers.conv(features, 3, dtype=self.dtype)(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(layers.dense(4 * self.width, dtype=self.dtype)(x))
        x = layers.dropout(x, self.dropout, train=train)
        return layers.head(self.num_classes, dtype=self.dtype)(x)
