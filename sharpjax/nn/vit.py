"""Vision transformers for small images (arXiv 2010.11929, 2112.13492)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.nn import layers


class Block(nn.Module):
    """x + attention(LN(x)), then x + dense(gelu(dense(LN(x)))), of tokens [B, L, width].

    Attributes: as those of `ViT`.
    """

    num_heads: int
    head_width: int
    hidden: int
    mask_self: bool
    learn_temperature: bool
    dtype: DTypeLike
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        batch, length, width = x.shape
        inner = self.num_heads * self.head_width
        joint = dense(3 * inner, self.dtype, use_bias=False)(layer_norm(self.dtype)(x))
        parts = jnp.split(joint, 3, axis=-1)
        q, k, v = (y.reshape(batch, length, self.num_heads, self.head_width) for y in parts)
        start = self.head_width**-0.5
        if self.learn_temperature:
            log = self.param("temperature", nn.initializers.constant(math.log(start)), ())
            scale = jnp.exp(log).astype(q.dtype)
        else:
            scale = jnp.asarray(start, q.dtype)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale
        if self.mask_self:
            scores = jnp.where(jnp.eye(length, dtype=bool)[None, None], -jnp.inf, scores)
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        out = dense(width, self.dtype)(attended.reshape(batch, length, inner))
        x = x + layers.dropout(out, self.dropout, train=train)
        units = dense(self.hidden, self.dtype)(layer_norm(self.dtype)(x))
        units = layers.dropout(nn.gelu(units, approximate=False), self.dropout, train=train)
        out = dense(width, self.dtype)(units)
        return x + layers.dropout(out, self.dropout, train=train)


class ViT(nn.Module):
    """Patches as tokens after a class token, learned positions, blocks of attention and GELU units
    with LayerNorm before each, and a linear layer on the normalised class token.

    The plain one. `SmallViT` has shifted patches and locality self-attention (arXiv 2112.13492).

    For images of any size: they are filled up with zeros, right and below, to whole patches. Linear
    layers start LeCun normal, positions and class token standard normal. Queries, keys and values
    have no biases.

    Attributes:
        width: numbers of a token.
        depth: blocks.
        num_heads, head_width: heads of the attention, and numbers in each.
        hidden: GELU units of a block.
        patch: pixels of a patch in each direction.
        shifted: tokens are of the image and four copies of it, moved by one pixel right, left, down
            and up, and normalised before they are embedded.
        mask_self: no token attends to itself.
        learn_temperature: scores are multiplied by exp(t), `t` learned and one for each block; else
            by 1 / sqrt(head_width), at which it starts. The scale of queries does the same.
        stem_stride: the image is first averaged over squares of so many pixels.
        dropout: rate at which, in training, embeddings, GELU units and what the halves of a block
            add are dropped; see `layers.dropout`.

    Parameters: 6,376,458 for 32 x 32 colour images of 10 classes.
    """

    num_classes: int
    width: int = 512
    depth: int = 6
    num_heads: int = 6
    head_width: int = 64
    hidden: int = 256
    patch: int = 4
    shifted: bool = False
    mask_self: bool = False
    learn_temperature: bool = False
    stem_stride: int = 1
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        image = averaged(filled(image, self.patch * self.stem_stride), self.stem_stride)
        if self.shifted:
            image = with_shifts(image)
        tokens = patches(image, self.patch)
        if self.shifted:
            tokens = layer_norm(self.dtype)(tokens)
        x = dense(self.width, self.dtype)(tokens)
        normal = nn.initializers.normal(1.0)
        first = self.param("class_token", normal, (1, 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.width)), x], axis=1)
        x = x + self.param("positions", normal, (1, *x.shape[1:])).astype(x.dtype)
        x = layers.dropout(x, self.dropout, train=train)
        for _ in range(self.depth):
            x = Block(
                self.num_heads,
                self.head_width,
                self.hidden,
                self.mask_self,
                self.learn_temperature,
                self.dtype,
                self.dropout,
            )(x, train=train)
        head = layers.head(self.num_classes, dtype=self.dtype)
        return head(layer_norm(self.dtype)(x[:, 0]))


class SmallViT(ViT):
    """The ViT of "A Function-Centric Perspective on Flat and Sharp Minima" (arXiv 2510.12451).

    Parameters: 6,475,248 for 32 x 32 colour images of 10 classes.
    """

    shifted: bool = True
    mask_self: bool = True
    learn_temperature: bool = True


class ViTNarrow(ViT):
    """A net of our own for two cores: as `SmallViT`, with its temperature fixed, 17 tokens of 64
    numbers for a 32 x 32 image, each of which covers 8 x 8 pixels.

    Parameters: 150,954 for 32 x 32 colour images of 10 classes.
    """

    width: int = 64
    depth: int = 4
    num_heads: int = 4
    head_width: int = 16
    hidden: int = 128
    shifted: bool = True
    mask_self: bool = True
    stem_stride: int = 2


def dense(features: int, dtype: DTypeLike, *, use_bias: bool = True) -> nn.Dense:
    """A linear layer that starts LeCun normal."""
    return nn.Dense(features, use_bias=use_bias, dtype=dtype)


def layer_norm(dtype: DTypeLike) -> nn.LayerNorm:
    """LayerNorm over the numbers of a token, with PyTorch's epsilon."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype)


def filled(image: jax.Array, multiple: int) -> jax.Array:
    """[B, H, W, C] with zeros right and below, so that `multiple` divides height and width."""
    height, width = image.shape[1:3]
    return jnp.pad(image, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))


def averaged(image: jax.Array, size: int) -> jax.Array:
    """Means over squares of `size` x `size` pixels."""
    if size == 1:
        return image
    b, h, w, c = image.shape
    return jnp.mean(image.reshape(b, h // size, size, w // size, size, c), axis=(2, 4))


def patches(image: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] as [B, H W / size^2, size^2 C]: rows of patches, and rows of pixels in each.

    >>> patches(jnp.arange(8).reshape(1, 2, 4, 1), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    b, h, w, c = image.shape
    cut = image.reshape(b, h // size, size, w // size, size, c)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


def with_shifts(image: jax.Array) -> jax.Array:
    """The image and four copies, moved by one pixel right, left, down and up, side by side in the
    channels; what moves in is zero."""
    moved = [image]
    for axis in (2, 1):
        for before, after in ((1, 0), (0, 1)):
            width = [(0, 0)] * 4
            width[axis] = (before, after)
            padded = jnp.pad(image, width)  # a column before moves the image right, and is kept
            moved.append(jax.lax.slice_in_dim(padded, after, after + image.shape[axis], axis=axis))
    return jnp.concatenate(moved, axis=-1)
