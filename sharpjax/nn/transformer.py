"""The one-layer transformer for modular arithmetic."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.errors import UserError
from sharpjax.nn import layers
from sharpjax.nn.factored import Dense, Embed
from sharpjax.nn.svd import Decomposition, assigned
from sharpjax.nn.tokens import check_tokens, head_dtype

ATTENTION = ("query", "key", "value", "out")


class Transformer(nn.Module):
    """One block of attention and ReLU units, without layer normalisation (arXiv 2301.05217).

    Embeddings plus learned positions, `num_heads` heads, an MLP of 4 `width` units, and a linear
    layer to the logits. All weights start normal, with variance 1 / width, or 1 / num_classes for
    the last layer. Biases start at 0. Parameters: 226,816 for 114 tokens in sequences of 3.

    The prediction is made at the last token, which attends to all tokens. Since there is only one
    layer, only the keys and values of the other tokens are needed and computed. A causal mask would
    change nothing.

    Attributes:
        num_classes: number of tokens, and of logits.
        width: dimension of an embedding.
        num_heads: number of heads; must divide the width.
        decompose: which of embed/embedding, position/embedding, query/kernel, key/kernel,
            value/kernel, out/kernel, up/kernel, down/kernel and head/kernel are factors. A kernel
            holds all heads.
        dropout: rate at which embeddings, and the outputs of attention and of the MLP, are dropped
            in training (arXiv 1706.03762, section 5.4; see `layers.dropout`).

    Raises:
        UserError: when called, if tokens are not integers [B, L], the heads do not divide the
            width, or `decompose` does not fit.
    """

    num_classes: int
    width: int = 128
    num_heads: int = 4
    decompose: Decomposition | None = None
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        check_tokens("nn.Transformer", tokens)
        if self.num_heads < 1 or self.width % self.num_heads:
            raise UserError(
                f"nn.Transformer: {self.num_heads} heads do not divide a width of {self.width}; "
                "give a divisor."
            )
        kernels = (*ATTENTION, "up", "down", "head")
        factors = assigned(
            self.decompose,
            ("embed/embedding", "position/embedding", *(f"{name}/kernel" for name in kernels)),
        )
        normal = nn.initializers.normal(self.width**-0.5)

        def embed(name: str, rows: int) -> Embed:
            of = factors[f"{name}/embedding"]
            return Embed(rows, self.width, normal, of, dtype=self.dtype, name=name)

        def dense(name: str, m: int, n: int, *, use_bias: bool) -> Dense:
            of = factors[f"{name}/kernel"]
            return Dense(m, n, normal, of, use_bias=use_bias, dtype=self.dtype, name=name)

        (batch, length), width, classes = tokens.shape, self.width, self.num_classes
        query, key, value, out = (dense(name, width, width, use_bias=False) for name in ATTENTION)
        up = dense("up", width, 4 * width, use_bias=True)
        down = dense("down", 4 * width, width, use_bias=True)
        head = Dense(
            width,
            classes,
            nn.initializers.normal(classes**-0.5),
            factors["head/kernel"],
            use_bias=False,
            dtype=head_dtype(self.dtype),
            name="head",
        )

        def drop(x: jax.Array) -> jax.Array:
            return layers.dropout(x, self.dropout, train=train)

        positions = embed("position", length)(jnp.arange(length))
        x = drop(embed("embed", classes)(tokens) + jnp.expand_dims(positions, 0))
        last = x[:, -1]
        heads = (self.num_heads, width // self.num_heads)
        q = query(last).reshape(batch, *heads)
        k, v = (layer(x).reshape(batch, length, *heads) for layer in (key, value))
        scores = jnp.einsum("bhd,blhd->bhl", q, k) / math.sqrt(heads[1])
        attended = jnp.einsum("bhl,blhd->bhd", jax.nn.softmax(scores), v)
        last = last + drop(out(attended.reshape(batch, width)))
        hidden = nn.relu(up(last))
        self.sow("intermediates", "units", hidden)
        return head(last + drop(down(hidden)))
