"""VGG with BatchNorm for small images (arXiv 1409.1556): 3 x 3 convolutions and 2 x 2 max-pools."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.nn import layers
from sharpjax.nn.resnet import batch_norm


class VGG(nn.Module):
    """Stages of relu(BN(conv(x))) that end with a max-pool, then a hidden layer relu(BN(dense(x)))
    as wide as the last stage, and a linear layer.

    These are the models of "A Function-Centric Perspective on Flat and Sharp Minima" (arXiv
    2510.12451) and "Explicit Regularisation, Sharpness and Calibration" (OpenReview ZQTiGcykl6). As
    there, convolutions have biases although BatchNorm follows.

    For images of any size: if the number of rows or columns is odd, the last window of a pool holds
    a single one.

    Attributes:
        width: filters of the first stage; each stage doubles them, up to `widest` times as many.
        blocks: convolutions in each stage.
        widest: see `width`.
        stem_stride: stride of the first convolution.
        dropout: rate at which inputs of the hidden layer are dropped in training; see
            `layers.dropout`.
    """

    num_classes: int
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 3, 3, 3)
    widest: int = 8
    stem_stride: int = 1
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x, stride = image, self.stem_stride
        features = self.width
        for stage, num_layers in enumerate(self.blocks):
            features = self.width * min(2**stage, self.widest)
            for _ in range(num_layers):
                x = layers.conv(features, 3, stride=stride, padding=1, dtype=self.dtype)(x)
                x = nn.relu(batch_norm(train, self.dtype)(x))
                stride = 1
            x = layers.max_pool(x, ceil=True)
        x = layers.dropout(x.reshape(x.shape[0], -1), self.dropout, train=train)
        x = layers.dense(features, dtype=self.dtype)(x)
        x = nn.relu(batch_norm(train, self.dtype)(x))
        return layers.head(self.num_classes, dtype=self.dtype)(x)


class VGG9(VGG):
    """Seven convolutions in three stages.

    Parameters: 2,789,706 at width 64, for 32 x 32 colour images of 10 classes.
    """

    blocks: tuple[int, ...] = (2, 2, 3)


class VGG16(VGG):
    """Thirteen convolutions in five stages; with the paper's hidden layer and head, 15 layers.

    Parameters: 14,991,946 at width 64, for 32 x 32 colour images of 10 classes.

    >>> model = VGG16(num_classes=10, width=2)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> variables["params"]["Dense_0"]["kernel"].shape
    (16, 16)
    """


class VGG19(VGG):
    """Sixteen convolutions in five stages.

    Parameters: 20,304,202 at width 64, for 32 x 32 colour images of 10 classes.
    """

    blocks: tuple[int, ...] = (2, 2, 4, 4, 4)


class VGGNarrow(VGG):
    """Our own small model for two CPU cores: convolutions of 16, 32 and four times 64 filters, with
    stem stride 2.

    Parameters: 139,914 for 32 x 32 colour images of 10 classes.
    """

    width: int = 16
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    widest: int = 4
    stem_stride: int = 2
