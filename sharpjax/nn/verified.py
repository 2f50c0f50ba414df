"""Changes of the weights that are checked on data before they are accepted."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from sharpjax import loops
from sharpjax.errors import UserError

Params = Any
_GAIN = 16.0  # two passes, each of which may amplify the error of one layer by a factor of 8
_LARGEST = 0.1  # a bound from which on changes that anybody would see pass as rounding


class Verified(NamedTuple):
    """Parameters after a change that kept the function, and how exactly it did.

    Attributes:
        params: the new parameters.
        off: largest difference of outputs over the batch, relative to the largest output.
        bound: the largest `off` that rounding alone may explain.
    """

    params: Params
    off: float
    bound: float


def apply_verified(
    change: Callable[[Params], Params],
    params: Params,
    outputs: Callable[[Params], Any],
    *,
    bound: float | None = None,
) -> Verified:
    """Changes parameters, and raises an error if the outputs on a batch move by more than rounding.

        off = max |outputs(change(params)) - outputs(params)| / max |outputs(params)|

    **The bound.** A rounded sum of n products equals the exact sum with weights that are off by a
    relative sqrt(n) u, with high probability (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). Here
    u is the unit roundoff. So L layers of at most n inputs each are off by L sqrt(n) u, if the
    relative error of a layer reaches the outputs unamplified. The bound 16 L sqrt(n) u allows for
    two passes and a gain of 8. If layers cancel, or a matrix has a large condition number, give
    your own bound. A bound of 0.1 or more would let a change of the function pass as rounding, and
    is refused: that is so for most networks in bfloat16 and for wide or deep ones in float16.

    Cost: two forward passes, and a trace of `outputs` to find the arrays that it reads.

    Args:
        change: `change(params) -> params`, such as `functools.partial(nn.rescale_units, ...)`.
        params: pytree of arrays; or everything that `change` and `outputs` take, such as (params,
            statistics).
        outputs: `outputs(params) -> array`, what the network computes on a batch: logits, or their
            softmax if the change shifts logits. Real or complex. On accelerators use the matmul
            precision `"highest"`.
        bound: from 0 to below 1. None: the bound above, with L and n from the arrays with two or
            more axes, and u of the coarsest type among parameters and outputs. Only parameters that
            `outputs` reads count, or all of them if `outputs` cannot be traced.

    Raises:
        UserError: the outputs moved by more than the bound, changed their shape or are not finite;
            they are all 0, or do not depend on the parameters, which shows nothing; they are no
            array of numbers; the parameters hold no array; the bound above is 0.1 or more, or the
            bound given is not in [0, 1); the call is traced.

    >>> from sharpjax.nn import rescale_units
    >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0], [1.0]])}
    >>> def outputs(p, activation=jax.nn.relu):
    ...     return activation(jnp.array([[1.0], [-1.0]]) @ p["a"]) @ p["b"]
    >>> def double(p):
    ...     return rescale_units(p, 2.0, into="a", out="b")
    >>> apply_verified(double, params, outputs).off
    0.0
    >>> apply_verified(double, params, lambda p: outputs(p, jnp.tanh))
    Traceback (most recent call last):
        ...
    sharpjax.errors.UserError: apply_verified: the outputs moved by 0.28 of the largest; rounding...
    """
    caller = "apply_verified"
    _check(caller, params, bound)
    computed = outputs(params)
    before = _finite(caller, computed, "are")
    if bound is None:
        bound = _bound(caller, params, outputs, jnp.result_type(np.asarray(computed)))
    size = float(np.abs(before).max(initial=0.0))
    if size == 0:
        raise UserError(f"{caller}: the outputs are all 0, which no change shows; give other data.")
    changed = change(params)
    after = _finite(caller, outputs(changed), "became")
    if before.shape != after.shape:
        raise UserError(
            f"{caller}: outputs of shape {before.shape} came to have shape {after.shape}; give a "
            f"change after which the network computes the same."
        )
    off = float(np.abs(after - before).max()) / size
    if not off <= bound:
        raise UserError(
            f"{caller}: the outputs moved by {off:.2g} of the largest; rounding explains "
            f"{bound:.2g}. Does the change fit the network (activation, evaluation mode, epsilon)?"
        )
    return Verified(changed, off, bound)


def _check(caller: str, params: Params, bound: Any) -> None:
    if not jax.tree.leaves(params):
        raise UserError(f"{caller}: params holds no array at all.")
    if loops.is_traced(params) or loops.inside_jit():
        raise UserError(f"{caller}: it compares numbers; call it outside of `jit` and `vmap`.")
    if bound is not None:
        try:
            is_known = 0 <= float(bound) < 1
        except (TypeError, ValueError):
            is_known = False
        if not is_known:
            raise UserError(
                f"{caller}: bound must be a number from 0 to below 1, the change of outputs "
                f"relative to the largest, got {bound!r}."
            )


def _bound(caller: str, params: Params, outputs: Callable, computed: np.dtype) -> float:
    leaves = _read(params, outputs)
    if not leaves:
        raise UserError(
            f"{caller}: outputs reads none of the parameters that it is given, so no change of "
            "them shows; compute it from its argument."
        )
    layers = [leaf for leaf in leaves if jnp.ndim(leaf) > 1] or leaves[:1]
    inputs = max(math.prod(jnp.shape(leaf)[:-1]) for leaf in layers)
    types = [t for t in (*map(jnp.result_type, leaves), computed) if jnp.issubdtype(t, jnp.inexact)]
    if not types:
        return 0.0  # whole numbers are not rounded
    coarsest = max(types, key=lambda t: jnp.finfo(t).eps)
    bound = _GAIN * len(layers) * math.sqrt(inputs) * float(jnp.finfo(coarsest).eps) / 2
    if not bound < _LARGEST:
        raise UserError(
            f"{caller}: rounding of {coarsest} may move the outputs of {len(layers)} layers with "
            f"up to {inputs} inputs by {bound:.2g} of the largest, so nothing can be verified; "
            "give float32 parameters or a finer type, or a bound."
        )
    return bound


def _read(params: Params, outputs: Callable) -> list[Any]:
    """The leaves that the outputs depend on; all, if jax cannot trace them."""
    leaves = jax.tree.leaves(params)
    try:
        # A new function: jax keeps traces by function, and mixes those with and without x64.
        jaxpr = jax.make_jaxpr(lambda p: outputs(p))(params).jaxpr
        _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    except Exception:  # such as a function of numpy, which has given its numbers already
        return leaves
    return [leaf for leaf, is_used in zip(leaves, used, strict=True) if is_used]


def _finite(caller: str, outputs: Any, verb: str) -> np.ndarray:
    try:
        values = np.asarray(outputs)
        if values.dtype == object:
            raise TypeError
        wide = np.complex128 if jnp.issubdtype(values.dtype, jnp.complexfloating) else np.float64
        values = values.astype(wide)
    except (TypeError, ValueError):
        raise UserError(
            f"{caller}: outputs must return one array of numbers, got a {type(outputs).__name__}; "
            "return the logits."
        ) from None
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise UserError(f"{caller}: {bad} of {values.size} outputs {verb} not finite.")
    return values
