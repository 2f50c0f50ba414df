"""The layers that the models share: how each one starts, and in which type it computes.

Weights before a ReLU are He normal (arXiv 1502.01852): variance 2 / fan_in, truncated at two
standard deviations. Those of the last layer are LeCun normal, variance 1 / fan_in, so that logits
start of the size of the features. Biases start at 0.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax.errors import UserError


def conv(
    features: int,
    size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    use_bias: bool = True,
    dtype: DTypeLike,
) -> nn.Conv:
    """A square convolution, padded alike on all sides as in PyTorch (`SAME` at stride 2 is not)."""
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=padding,
        use_bias=use_bias,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
    )


def dense(features: int, *, dtype: DTypeLike) -> nn.Dense:
    """A fully connected layer that a ReLU follows."""
    return nn.Dense(features, kernel_init=nn.initializers.he_normal(), dtype=dtype)


def head(
    num_classes: int,
    *,
    dtype: DTypeLike,
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal(),  # noqa: B008
) -> nn.Dense:
    """The last layer, `head` in the parameters. It computes in float32 at least.

    bfloat16 keeps eight bits: a logit of 20 would be a multiple of 0.125, and a loss made of such
    logits is too coarse to differentiate twice. One small matrix product in float32 costs nothing
    beside the net.
    """
    wide = wide_type(dtype)
    return nn.Dense(num_classes, kernel_init=kernel_init, dtype=wide, name="head")


def wide_type(dtype: DTypeLike) -> DTypeLike:
    """The type itself, or float32 where it has fewer bits."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def dropout(x: jax.Array, rate: float, *, train: bool) -> jax.Array:
    """In training each number is 0 with probability `rate`, else divided by 1 - rate (arXiv
    1207.0580).

    The draw is from Flax's "dropout" stream: `model.apply(..., train=True, rngs={"dropout": key})`.
    Evaluation needs no key. At rate 0 there is no such layer at all.

    Raises:
        UserError: a rate outside [0, 1).
    """
    rate = check_rate("nn", rate)
    return nn.Dropout(rate, deterministic=not train)(x) if rate else x


def check_rate(caller: str, rate: Any) -> float:
    """A rate of dropout as a float.

    Raises:
        UserError: it is no number in [0, 1).
    """
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= float(rate) < 1:
        raise UserError(f"{caller}: dropout={rate!r}; give a rate in [0, 1), 0 for none.")
    return float(rate)


def max_pool(x: jax.Array, *, ceil: bool = False) -> jax.Array:
    """2 x 2 maxima of [B, H, W, C], without the last row or column where their number is odd; with
    `ceil` these are windows of their own.

    A reduction of a reshaped array: against `nn.max_pool` a LeNet gradient took 14 ms instead of 54
    on two CPU cores (batch 128, 28 x 28), a Hessian product 32 instead of 75, with the same
    numbers.
    """
    if ceil:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    return jnp.max(x, axis=(2, 4))
