"""BatchNorm absorbed into the layer before it."""

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.nn.named_leaves import Params, check_axis, mapped, named


def absorb_norm(
    params: Params, statistics: Params, *, layer: str, norm: str, epsilon: float
) -> tuple[Params, Params]:
    """Folds statistics, scale and shift of a BatchNorm into the kernel and bias before it.

    With a = scale / sqrt(var + epsilon), in evaluation mode

        kernel <- a kernel      bias <- a (bias - mean) + shift

    The BatchNorm stays in the model but becomes the identity: scale 1, shift 0, mean 0,
    var 1 - epsilon. If the layer has no bias (as in ResNets of basic blocks and in `MobileNet`),
    the norm keeps a shift of shift - a mean, and is the identity otherwise. The model stays the
    same module, and the kernel is then the matrix that the network multiplies by. The result is the
    same whether or not `scale_before_norm` was applied first.

    Args:
        params: pytree of arrays.
        statistics: `variables["batch_stats"]`.
        layer: the layer whose `kernel`, and `bias` if it has one, feed the norm, with channels on
            the last axis: `"BasicBlock_0/Conv_0"`.
        norm: the BatchNorm, `"BasicBlock_0/BatchNorm_0"`.
        epsilon: epsilon of that norm: 1e-5 in most models here, Keras's in `MobileNet` and
            `ResNet50`.

    Returns:
        The new parameters, and the new statistics.

    Raises:
        UserError: there is no such layer or norm, or their numbers of channels differ; neither has
            a bias that could take the shift; `epsilon` is not in [0, 1).

    >>> params = {"c": {"kernel": jnp.ones((1, 2))}, "n": {"scale": jnp.array([2.0, 4.0])}}
    >>> params["n"]["bias"] = jnp.zeros(2)
    >>> stats = {"n": {"mean": jnp.ones(2), "var": jnp.full(2, 4.0)}}
    >>> new, moved = absorb_norm(params, stats, layer="c", norm="n", epsilon=0.0)
    >>> new["c"]["kernel"].tolist(), new["n"]["bias"].tolist(), moved["n"]["var"].tolist()
    ([[1.0, 2.0]], [-1.0, -2.0], [1.0, 1.0])
    """
    caller = "absorb_norm"
    if not 0 <= epsilon < 1:
        raise UserError(f"{caller}: epsilon must be in [0, 1), got {epsilon}.")
    mean, var = (_leaf(statistics, f"{norm}/{name}") for name in ("mean", "var"))
    names = tree.path_names(params)
    kernel, bias = f"{layer}/kernel", f"{layer}/bias"
    scale, shift = f"{norm}/scale", f"{norm}/bias"
    check_axis(caller, params, kernel, -1, mean.shape[-1])
    a = 1 / jnp.sqrt(var + epsilon)
    if scale in names:
        a = a * _leaf(params, scale)
    offset = -a * mean
    if shift in names:
        offset = offset + _leaf(params, shift)
    if bias in names:
        offset = offset + a * _leaf(params, bias)
    elif shift not in names:
        raise UserError(
            f"{caller}: neither '{layer}' nor '{norm}' has a bias, so that nothing can hold the "
            f"shift of the running mean; give one of them a bias."
        )
    takes, cleared = (bias, shift) if bias in names else (shift, "")
    new = mapped(params, kernel, lambda x: x * a)
    new = mapped(new, takes, lambda x: offset)
    if scale in names:
        new = mapped(new, scale, jnp.ones_like)
    if cleared in names:
        new = mapped(new, cleared, jnp.zeros_like)
    moved = mapped(statistics, f"{norm}/mean", jnp.zeros_like)
    moved = mapped(moved, f"{norm}/var", lambda x: jnp.full_like(x, 1 - epsilon))
    return new, moved


def _leaf(params: Params, name: str) -> jax.Array:
    ((_, leaf),) = named(params, name)
    return leaf
