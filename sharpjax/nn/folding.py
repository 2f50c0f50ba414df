"""BatchNorm absorbed into the layer before it."""

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.nn.named_leaves import Chosen, Params, check_axis, check_floats, mapped, named


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
        UserError: there is no such layer or norm, or their numbers of channels differ; a leaf of
            them is not of floats; neither has a bias that could take the shift; `epsilon` is not in
            [0, 1); a variance plus `epsilon` is not above 0.

    >>> params = {"c": {"kernel": jnp.ones((1, 2))}, "n": {"scale": jnp.array([2.0, 4.0])}}
    >>> params["n"]["bias"] = jnp.zeros(2)
    >>> stats = {"n": {"mean": jnp.ones(2), "var": jnp.full(2, 4.0)}}
    >>> new, moved = absorb_norm(params, stats, layer="c", norm="n", epsilon=0.0)
    >>> new["c"]["kernel"].tolist(), new["n"]["bias"].tolist(), moved["n"]["var"].tolist()
    ([[1.0, 2.0]], [-1.0, -2.0], [1.0, 1.0])
    """
    caller = "absorb_norm"
    try:
        is_known = 0 <= float(epsilon) < 1
    except (TypeError, ValueError):
        is_known = False
    if not is_known:
        raise UserError(f"{caller}: epsilon must be a number in [0, 1), got {epsilon!r}.")
    kernel, bias, scale, shift = (
        Chosen(caller, argument, f"{name}/{leaf}")
        for argument, name, leaf in (
            ("layer", layer, "kernel"),
            ("layer", layer, "bias"),
            ("norm", norm, "scale"),
            ("norm", norm, "bias"),
        )
    )
    mean_of, var_of = (Chosen(caller, "norm", f"{norm}/{name}") for name in ("mean", "var"))
    mean, var = _leaf(statistics, mean_of), _leaf(statistics, var_of)
    check_axis(statistics, mean_of, -1, None)
    names, channels = tree.path_names(params), mean.shape[-1]
    present = [kernel, *(leaf for leaf in (bias, scale, shift) if leaf.where in names)]
    for chosen in present:
        _leaf(params, chosen)
        check_axis(params, chosen, -1, channels)
        check_floats(params, chosen)
    check_axis(statistics, var_of, -1, channels)
    for chosen in (mean_of, var_of):
        check_floats(statistics, chosen)
    if not loops.is_traced(var) and not jnp.all(var + epsilon > 0):
        raise UserError(
            f"{caller}: a variance of '{norm}' plus epsilon={epsilon} is not above 0, so that the "
            "norm divides by 0."
        )
    a = 1 / jnp.sqrt(var + epsilon)
    if scale in present:
        a = a * _leaf(params, scale)
    offset = -a * mean
    if shift in present:
        offset = offset + _leaf(params, shift)
    if bias in present:
        offset = offset + a * _leaf(params, bias)
    elif shift not in present:
        raise UserError(
            f"{caller}: neither '{layer}' nor '{norm}' has a bias, so that nothing can hold the "
            f"shift of the running mean; give one of them a bias."
        )
    new = mapped(params, kernel, lambda x: x * a, scales=a)
    new = mapped(new, bias if bias in present else shift, lambda x: offset)
    if scale in present:
        new = mapped(new, scale, jnp.ones_like)
    if bias in present and shift in present:
        new = mapped(new, shift, jnp.zeros_like)
    moved = mapped(statistics, mean_of, jnp.zeros_like)
    moved = mapped(moved, var_of, lambda x: jnp.full_like(x, 1 - epsilon))
    return new, moved


def _leaf(params: Params, chosen: Chosen) -> jax.Array:
    found = dict(named(params, chosen))
    if list(found) != [chosen.where]:  # of a layer chosen by a glob, `bias` would not be found
        raise UserError(
            f"{chosen.caller}: {chosen.argument} must be the name of one layer and no glob; "
            f"'{chosen.where}' selects {', '.join(map(repr, found))}."
        )
    return next(iter(found.values()))
