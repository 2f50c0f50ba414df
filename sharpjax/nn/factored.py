"""Linear layers and tables of embeddings whose matrix may be the factors of its SVD; see `svd`.

Parameters are named as those of `nn.Dense` and `nn.Embed`. With a decomposition the matrix is
{'U', 's', 'Vt'}, and starts as the truncated SVD of the very matrix that the layer without one
draws from the same key. How a product is computed is decided when it is traced, by counting
multiplications; the backward pass takes twice as many of each, so one count decides for both.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.nn import svd
from sharpjax.nn.svd import Decomposition

Weight = Any  # an array [m, n], or its factors


def should_form(rows: int, m: int, n: int, k: int, *, distinct: int | None = None) -> bool:
    """Whether x U diag(s) V', for x [rows, m], is cheaper with W = U diag(s) V' formed.

    Multiplications, less the k min(m, n) of s that both need:

        formed     m k n + distinct m n
        factored   distinct m k + rows k n

    Equal counts are formed: fewer and larger products.

    Args:
        rows, m, n, k: sizes; k is the rank.
        distinct: how many rows the first product has where that is not `rows`: the size of the
            vocabulary, where x is looked up from a table that can be multiplied instead.

    >>> should_form(512, 512, 128, 16), should_form(512, 512, 128, 128)
    (False, True)
    """
    first = rows if distinct is None else distinct
    return m * k * n + first * m * n <= first * m * k + rows * k * n


def should_form_table(rows: int, m: int) -> bool:
    """Whether the lookup of `rows` rows of U diag(s) V' [m, n] is cheaper with the table formed.

    Formed it takes m k n multiplications, and factored, as U[tokens] diag(s) V', rows k n.

    >>> should_form_table(4 * 512, 99), should_form_table(4, 99)
    (True, False)
    """
    return m <= rows


def lookup(tokens: jax.Array, table: Weight) -> jax.Array:
    """The rows of a table [m, n] that `tokens` name, [*tokens.shape, n]; NaN beyond the table."""
    if not svd.is_factors(table):
        return jnp.take(table, tokens, axis=0)
    if should_form_table(tokens.size, table["U"].shape[0]):
        return jnp.take(svd.product(table), tokens, axis=0)
    return jnp.take(table["U"], tokens, axis=0) @ _right(table)


def linear(x: jax.Array, kernel: Weight) -> jax.Array:
    """x W, [..., m] to [..., n]."""
    first, second = _in_turn(kernel, x.size // x.shape[-1])
    y = x @ first
    return y if second is None else y @ second


def linear_of_lookup(tokens: jax.Array, table: Weight, kernel: Weight) -> jax.Array:
    """`linear(lookup(tokens, table) side by side, kernel)`: [B, L] tokens to [B, n].

    A sum over positions, x W = sum_l E[token_l] W_l, with W_l the d rows of W that read position l.
    Where the table has fewer rows than the batch, m = L d, E W_l is computed for all tokens and
    looked up: v m n multiplications in place of B m n. With v = 99 tokens, B = 512 and m = 512,
    n = 128 a gradient of the token MLP took 0.6 ms instead of 1.6 on one CPU core.
    """
    if svd.is_factors(table):
        if not should_form_table(tokens.size, table["U"].shape[0]):
            return linear(lookup(tokens, table).reshape(len(tokens), -1), kernel)
        table = svd.product(table)
    rows, (vocabulary, features) = len(tokens), table.shape
    if rows <= vocabulary:
        return linear(lookup(tokens, table).reshape(rows, -1), kernel)
    first, second = _in_turn(kernel, rows, distinct=vocabulary)
    positions = first.reshape(-1, features, first.shape[-1])
    terms = [
        jnp.take(table @ positions[at], tokens[:, at], axis=0) for at in range(tokens.shape[1])
    ]
    y = sum(terms[1:], start=terms[0])
    return y if second is None else y @ second


class Dense(nn.Module):
    """x W + b: `nn.Dense`, with W as factors where there is a decomposition.

    Attributes:
        in_features, features: W is [in_features, features].
        kernel_init, use_bias, dtype: as in `nn.Dense`; parameters are float32.
        decomposition: gives the rank; None: W itself is the parameter.

    Raises:
        UserError: the decomposition leaves rank 0.

    >>> layer = Dense(6, 4, nn.initializers.lecun_normal(), Decomposition(0.5))
    >>> params = layer.init(jax.random.key(0), jnp.ones((1, 6)))["params"]
    >>> {name: leaf.shape for name, leaf in sorted(params["kernel"].items())}, params["bias"].shape
    ({'U': (6, 2), 'Vt': (2, 4), 's': (2,)}, (4,))
    """

    in_features: int
    features: int
    kernel_init: Callable[..., jax.Array]
    decomposition: Decomposition | None = None
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = (self.in_features, self.features)
        self.kernel = _matrix(self, "kernel", self.kernel_init, shape)
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in_features] to [..., features]."""
        return self._add_bias(linear(x.astype(self.dtype), _cast(self.kernel, self.dtype)))

    def of_lookup(self, tokens: jax.Array, table: Weight) -> jax.Array:
        """The layer of the rows of a table, side by side; see `linear_of_lookup`."""
        table, kernel = _cast(table, self.dtype), _cast(self.kernel, self.dtype)
        return self._add_bias(linear_of_lookup(tokens, table, kernel))

    def _add_bias(self, y: jax.Array) -> jax.Array:
        if not self.use_bias:
            return y
        return y + self.bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class Embed(nn.Module):
    """The rows of a table that tokens name: `nn.Embed`, with the table as factors where there is a
    decomposition.

    Attributes:
        num_embeddings, features: the table is [num_embeddings, features].
        embedding_init, dtype: as in `nn.Embed`; parameters are float32.
        decomposition: gives the rank; None: the table itself is the parameter.

    Raises:
        UserError: the decomposition leaves rank 0.
    """

    num_embeddings: int
    features: int
    embedding_init: Callable[..., jax.Array]
    decomposition: Decomposition | None = None
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = (self.num_embeddings, self.features)
        self.embedding = _matrix(self, "embedding", self.embedding_init, shape)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Integers [...] to [..., features]."""
        return lookup(tokens, self.table())

    def table(self) -> Weight:
        """The table, or its factors."""
        return _cast(self.embedding, self.dtype)


def _matrix(module: Any, name: str, init: Callable[..., Any], shape: tuple[int, int]) -> Any:
    if module.decomposition is None:
        return module.param(name, init, shape, jnp.float32)
    rank = module.decomposition.rank(*shape, name="/".join((*module.path, name)))
    return module.param(name, lambda key: svd.factorise(init(key, shape, jnp.float32), rank))


def _cast(weight: Weight, dtype: DTypeLike) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), weight)


def _in_turn(
    kernel: Weight, rows: int, *, distinct: int | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """The one or two matrices that x is multiplied by."""
    if not svd.is_factors(kernel):
        return kernel, None
    m, n, k = kernel["U"].shape[0], kernel["Vt"].shape[1], kernel["s"].size
    if should_form(rows, m, n, k, distinct=distinct):
        return svd.product(kernel), None
    if m <= n:
        return kernel["U"] * jnp.expand_dims(kernel["s"], 0), kernel["Vt"]
    return kernel["U"], _right(kernel)


def _right(factors: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.expand_dims(factors["s"], 1) * factors["Vt"]
