"""The multilayer perceptron."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.nn import layers


class MLP(nn.Module):
    """`depth` hidden layers of `width` ReLU units on the flattened image of any size.

    In training, `dropout` is the rate at which hidden units are dropped (see `layers.dropout`).

    Parameters: 669,706 with the defaults on 28 x 28 images of 10 classes (784-512-512-10).

    >>> model = MLP(num_classes=10, width=8)
    >>> logits, variables = model.init_with_output(jax.random.key(0), jnp.zeros((4, 8, 8, 1)))
    >>> logits.shape, sorted(variables["params"])
    ((4, 10), ['Dense_0', 'Dense_1', 'head'])
    """

    num_classes: int
    width: int = 512
    depth: int = 2
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = image.reshape(image.shape[0], -1)
        for _ in range(self.depth):
            x = nn.relu(layers.dense(self.width, dtype=self.dtype)(x))
            x = layers.dropout(x, self.dropout, train=train)
        return layers.head(self.num_classes, dtype=self.dtype)(x)
