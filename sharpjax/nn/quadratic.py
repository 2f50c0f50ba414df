"""The quadratic network, and closed-form weights that solve modular addition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.errors import UserError, whole_number
from sharpjax.nn import layers
from sharpjax.nn.factored import Dense, Embed
from sharpjax.nn.svd import Decomposition, assigned
from sharpjax.nn.tokens import check_tokens, head_dtype


class QuadraticMLP(nn.Module):
    """f(a, b) = W (U e_a + V e_b)^2, without biases (Gromov, arXiv 2301.02679).

    It reads the first and the third of the tokens [x, o, y, =]. Weights start normal with standard
    deviation 0.5 / (2 N)^(1/3), N = `width`. Parameters: 145,500 for p = 97, N = 500.

    Attributes:
        num_classes: number of rows of both tables, and of logits; p is enough.
        width: N.
        decompose: which of left/embedding, right/embedding and head/kernel are factors.
        dropout: rate at which squared units are dropped in training; see `layers.dropout`.

    Raises:
        UserError: when called, if tokens are not integers [B, L] with L >= 3, or `decompose` does
            not fit.
    """

    num_classes: int
    width: int = 500
    decompose: Decomposition | None = None
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        check_tokens("nn.QuadraticMLP", tokens, least=3)
        factors = assigned(self.decompose, ("left/embedding", "right/embedding", "head/kernel"))
        init = nn.initializers.normal(0.5 / (2 * self.width) ** (1 / 3))
        left, right = (
            Embed(
                self.num_classes,
                self.width,
                init,
                factors[f"{name}/embedding"],
                dtype=self.dtype,
                name=name,
            )
            for name in ("left", "right")
        )
        head = Dense(
            self.width,
            self.num_classes,
            init,
            factors["head/kernel"],
            use_bias=False,
            dtype=head_dtype(self.dtype),
            name="head",
        )
        x = jnp.square(left(tokens[:, 0]) + right(tokens[:, 2]))
        self.sow("intermediates", "units", x)
        return head(layers.dropout(x, self.dropout, train=train))


def addition(modulus: int, width: int = 0, *, key: jax.Array | None = None) -> dict[str, dict]:
    """Parameters of `QuadraticMLP(num_classes=modulus)` that add modulo p (arXiv 2301.02679).

    Neuron j has a frequency k and two phases:

        U_ja = cos(2 pi k a / p + u),   V_jb = cos(2 pi k b / p + v),
        W_qj = cos(2 pi k q / p + u + v)

    W_qj (U_ja + V_jb)^2 expands into cosines. Only one of them has no phase,
    cos(2 pi k (a + b - q) / p) / 2. Its sum over all frequencies is largest at q = a + b. The
    others average out over the phases:

    - with a key, phases and frequencies are random, as published. All answers are right if there
      are enough neurons (500 at p = 97), else most.
    - without a key, each frequency has six neurons, with u = j pi / 3 and v = 4 u, for which the
      other terms cancel. For odd p, each set of 3 (p - 1) neurons adds logits of exactly
      3 (p [q = a + b] - 1) / 2.

    Args:
        modulus: p, 3 or more; must be odd without a key.
        width: N; 0 takes 3 (p - 1). Without a key it must be a multiple of 3 (p - 1).
        key: random key of phases and frequencies; None for the exact weights.

    Raises:
        UserError: `modulus` is less than 3; without a key, `modulus` is even or `width` is not such
            a multiple.

    >>> params = addition(5)
    >>> tokens = jnp.array([[3, 5, 4, 6]])
    >>> QuadraticMLP(5, width=12).apply({"params": params}, tokens).round(3).astype(int).tolist()
    [[-1, -1, 6, -1, -1]]
    """
    p = whole_number("nn.quadratic.addition", "modulus", modulus, least=3)
    n = whole_number("nn.quadratic.addition", "width", width, least=0) or 3 * (p - 1)
    if key is None:
        if p % 2 == 0 or n % (3 * (p - 1)):
            raise UserError(
                f"nn.quadratic.addition: modulus={p} and width={n} have no exact solution here; "
                "give an odd modulus and a multiple of 3 (modulus - 1), or a key for a random one."
            )
        neuron = np.arange(n)
        frequency = jnp.asarray(1 + neuron // 6 % ((p - 1) // 2), jnp.int32)
        u = jnp.asarray(neuron % 6 * (np.pi / 3), jnp.float32)
        return _waves(p, frequency, u, 4 * u)
    one, two = jax.random.split(key)
    frequency = jax.random.randint(one, (n,), 1, p, jnp.int32)
    phases = jax.random.uniform(two, (2, n), jnp.float32, minval=-np.pi, maxval=np.pi)
    return _waves(p, frequency, phases[0], phases[1])


@functools.partial(jax.jit, static_argnums=0)
def _waves(p: int, frequency: jax.Array, u: jax.Array, v: jax.Array) -> dict[str, dict]:
    # Take the remainder first: angles are then below 2 pi, and cosines accurate to the last digits.
    turns = jnp.outer(jnp.arange(p, dtype=jnp.int32), frequency) % p
    angle = turns.astype(jnp.float32) * (2 * np.pi / p)
    return {
        "left": {"embedding": jnp.cos(angle + jnp.expand_dims(u, 0))},
        "right": {"embedding": jnp.cos(angle + jnp.expand_dims(v, 0))},
        "head": {"kernel": jnp.cos(angle + jnp.expand_dims(u + v, 0)).T},
    }
