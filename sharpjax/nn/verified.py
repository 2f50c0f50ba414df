"""Changes of the weights that are checked on data before they are accepted."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError

Params = Any
_GAIN = 16.0  # two passes, each of which may amplify the error of one layer by a factor of 8


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
    your own bound.

    Cost: two forward passes.

    Args:
        change: `change(params) -> params`, such as `functools.partial(nn.rescale_units, ...)`.
        params: pytree of arrays; or everything that `change` and `outputs` take, such as (params,
            statistics).
        outputs: `outputs(params) -> array`, what the network computes on a batch: logits, or their
            softmax if the change shifts logits. On accelerators use the matmul precision
            `"highest"`.
        bound: None: the bound above, with L and n from the arrays with two or more axes, and u of
            the coarsest type among parameters and outputs.

    Raises:
        UserError: the outputs moved by more than the bound, changed their shape or are not finite;
            or they are all 0, which shows nothing.

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
    computed, changed = outputs(params), change(params)
    before = _finite(caller, computed, "are")
    after = _finite(caller, outputs(changed), "became")
    if before.shape != after.shape:
        raise UserError(
            f"{caller}: outputs of shape {before.shape} came to have shape {after.shape}; give a "
            f"change after which the network computes the same."
        )
    size = float(np.abs(before).max(initial=0.0))
    if size == 0:
        raise UserError(f"{caller}: the outputs are all 0, which no change shows; give other data.")
    off = float(np.abs(after - before).max()) / size
    if bound is None:
        bound = _bound(params, computed)
    if not off <= bound:
        raise UserError(
            f"{caller}: the outputs moved by {off:.2g} of the largest; rounding explains "
            f"{bound:.2g}. Does the change fit the network (activation, evaluation mode, epsilon)?"
        )
    return Verified(changed, off, bound)


def _bound(params: Params, computed: Any) -> float:
    leaves = jax.tree.leaves(params)
    layers = [leaf for leaf in leaves if jnp.ndim(leaf) > 1] or leaves[:1]
    inputs = max(math.prod(jnp.shape(leaf)[:-1]) for leaf in layers)
    types = [jnp.result_type(x) for x in (*leaves, computed)]
    unit = max(float(jnp.finfo(t).eps) / 2 for t in types if jnp.issubdtype(t, jnp.floating))
    return _GAIN * len(layers) * math.sqrt(inputs) * unit


def _finite(caller: str, outputs: Any, verb: str) -> np.ndarray:
    values = np.asarray(outputs, np.float64)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise UserError(f"{caller}: {bad} of {values.size} outputs {verb} not finite.")
    return values
