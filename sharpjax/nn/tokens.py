"""Classifiers of token sequences, for modular arithmetic: integers [B, L] to logits [B, K].

Each can hold its matrices as SVD factors, with `decompose=Decomposition(0.125)`; see `svd`. The
factors then start as the decomposition of the parameters that the dense model draws from the same
key. Parameters are float32. `dtype` is the type of the computation; the last layer computes in
float32 at least. `model.apply(variables, tokens, mutable="intermediates")` also returns the hidden
units, as intermediates/units.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.errors import UserError
from sharpjax.nn import layers
from sharpjax.nn.factored import Dense, Embed
from sharpjax.nn.svd import Decomposition, assigned

# Variance 2 / fan_in, not truncated; `nn.initializers.he_normal` truncates.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class TokenMLP(nn.Module):
    """Concatenated embeddings, one hidden layer of ReLU units, and a linear layer.

    This is the network of "Decomposed Learning" (OpenReview LVuzwpMovE). Embeddings start standard
    normal, the weights of both linear layers normal with variance 2 / fan_in, and biases 0.
    Parameters: 91,107 for the 99 tokens of arithmetic modulo 97, and 15,955 if decomposed at a rank
    of 12.5 %.

    Attributes:
        num_classes: number of tokens, and of logits.
        width: hidden units.
        features: dimension of an embedding.
        decompose: which of embed/embedding, hidden/kernel and head/kernel are factors.
        dropout: rate at which hidden units are dropped in training; see `layers.dropout`.
        temperature: a constant that divides the logits, also in training. It changes their scale,
            but no weight and no prediction.

    Raises:
        UserError: when called, if tokens are not integers [B, L], or `decompose` does not fit.

    >>> model = TokenMLP(num_classes=99, decompose=Decomposition(0.125, layers="hidden/*"))
    >>> tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    >>> params["embed"]["embedding"].shape, params["hidden"]["kernel"]["U"].shape
    ((99, 128), (512, 16))
    """

    num_classes: int
    width: int = 128
    features: int = 128
    decompose: Decomposition | None = None
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    temperature: float = 1.0

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        check_tokens("nn.TokenMLP", tokens)
        factors = assigned(self.decompose, ("embed/embedding", "hidden/kernel", "head/kernel"))
        length, classes = tokens.shape[1], self.num_classes
        embed = Embed(
            classes,
            self.features,
            nn.initializers.normal(1.0),
            factors["embed/embedding"],
            dtype=self.dtype,
            name="embed",
        )
        hidden = Dense(
            length * self.features,
            self.width,
            kaiming_normal,
            factors["hidden/kernel"],
            dtype=self.dtype,
            name="hidden",
        )
        head = Dense(
            self.width,
            classes,
            kaiming_normal,
            factors["head/kernel"],
            dtype=head_dtype(self.dtype),
            name="head",
        )
        x = nn.relu(hidden.of_lookup(tokens, embed.table()))
        self.sow("intermediates", "units", x)
        logits = head(layers.dropout(x, self.dropout, train=train))
        return logits if self.temperature == 1 else logits / self.temperature


def head_dtype(dtype: DTypeLike) -> DTypeLike:
    """The type of the last layer, float32 or wider: see `layers.head`."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def check_tokens(caller: str, tokens: jax.Array, *, least: int = 1) -> None:
    """Refuses tokens that are not integers [B, L], or sequences of fewer than `least` tokens.

    Raises:
        UserError: says what was given.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(
            f"{caller}: tokens are {tokens.dtype}{list(tokens.shape)}; give integers [B, L]."
        )
    if tokens.shape[1] < least:
        raise UserError(
            f"{caller}: sequences of {tokens.shape[1]} tokens; give {least} or more, as "
            "`data.modular` makes them: [x, o, y, =]."
        )
