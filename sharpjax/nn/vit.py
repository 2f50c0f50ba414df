"""Vision transformers for small images (arXiv 2010.11929, 2112.13492)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.nn import layers


class Block(nn.Module):
    """x + attention(LN(x)), then x + dense(gelu(dense(LN(x)))), for tokens [B, L, width].

    Attributes: as in `ViT`.
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
    """The plain vision transformer: a class token and patches as tokens, learned positions, blocks
    of attention and GELU units with LayerNorm before each, and a linear layer on the normalised
    class token.

    `SmallViT` adds shifted patches and locality self-attention (arXiv 2112.13492).

    For images of any size: they are padded with zeros, right and below, to whole patches. Linear
    layers start LeCun normal, positions and class token standard normal. Queries, keys and values
    have no biases.

    Attributes:
        width: dimension of a token.
        depth: number of blocks.
        num_heads, head_width: number of attention heads, and dimension of each.
        hidden: GELU units of a block.
        patch: side of a patch in pixels.
        shifted: tokens are made of the image and four copies of it, shifted by one pixel right,
            left, down and up, and are normalised before the embedding.
        mask_self: no token attends to itself.
        learn_temperature: scores are multiplied by exp(t), with one learned `t` for each block that
            starts at exp(t) = 1 / sqrt(head_width); else by the constant 1 / sqrt(head_width). The
            scale of the queries has the same effect.
        stem_stride: side in pixels of the squares that the image is first averaged over.
        dropout: rate at which embeddings, GELU units, and the outputs of attention and of the MLP
            are dropped in training; see `layers.dropout`.

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
    """Our own small model for two CPU cores: `SmallViT` with a fixed temperature. A 32 x 32 image
    gives 17 tokens of dimension 64; each patch covers 8 x 8 pixels.

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
    """LayerNorm over the entries of a token, with PyTorch's epsilon, 1e-5."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype)


def filled(image: jax.Array, multiple: int) -> jax.Array:
    """[B, H, W, C] padded with zeros, right and below, so that `multiple` divides both sides."""
    height, width = image.shape[1:3]
    return jnp.pad(image, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))


def averaged(image: jax.Array, size: int) -> jax.Array:
    """Means over squares of `size` x `size` pixels."""
    if size == 1:
        return image
    b, h, w, c = image.shape
    return jnp.mean(image.reshape(b, h // size, size, w // size, size, c), axis=(2, 4))


def patches(image: jax.Array, size: int) -> jax.Array:
    """Patches of [B, H, W, C] as [B, H W / size^2, size^2 C]; both patches and the pixels inside
    them are in row order.

    >>> patches(jnp.arange(8).reshape(1, 2, 4, 1), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    b, h, w, c = image.shape
    cut = image.reshape(b, h // size, size, w // size, size, c)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


def with_shifts(image: jax.Array) -> jax.Array:
    """The image and four copies, shifted by one pixel right, left, down and up and padded with
    zeros, concatenated along the channels."""
    moved = [image]
    for axis in (2, 1):
        for before, after in ((1, 0), (0, 1)):
            width = [(0, 0)] * 4
            width[axis] = (before, after)
            padded = jnp.pad(image, width)  # a column of zeros in front shifts the image right
            moved.append(jax.lax.slice_in_dim(padded, after, after + image.shape[axis], axis=axis))
    return jnp.concatenate(moved, axis=-1)
