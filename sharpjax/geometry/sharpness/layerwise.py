"""The worst case of each layer by itself, or of all but one, by one compiled search."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax import perturbation, tree
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.operators.blocks import Groups, groups_of
from sharpjax.geometry.sharpness import ascent, measures

Params = Any

_NO_SCALING = perturbation.none()


def layerwise_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    rho: ArrayLike,
    groups: Groups | None = None,
    leave_out: bool = False,
    scaling: perturbation.Scaling = _NO_SCALING,
    norm: ascent.Norm = "l2",
    m: int | None = None,
    num_steps: int = 20,
    restarts: int = 1,
    microbatch_size: int | None = None,
) -> dict[str, measures.Sharpness]:
    """`worst_case_sharpness` where one layer alone is perturbed, for each by its name; with
    `leave_out=True` where all others are.

    Each is that of `scaling=perturbation.only(...)`, but compiled once for all of them. Within one
    radius no layer can exceed the whole, nor can the whole without it; they do not add up.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w["a"] ** 2 + 3 * w["b"] ** 2)
    >>> w, key = {"a": jnp.float32(0), "b": jnp.float32(0)}, jax.random.key(0)
    >>> found = layerwise_sharpness(loss, w, jnp.ones(4), key=key, rho=0.5)
    >>> print({name: f"{one.value:.2f}" for name, one in found.items()})
    {'a': '0.25', 'b': '0.75'}

    Args:
        loss, params, batch, key, rho, scaling, norm, m, num_steps, restarts, microbatch_size: as in
            `worst_case_sharpness`.
        groups: as in `layers`: by default leaves that differ in the last part of their name are a
            layer.
        leave_out: hold the layer fixed, and perturb the rest.

    Raises:
        UserError: an argument does not fit, a glob matches no leaf, or two groups share one.

    Cost: that of `worst_case_sharpness` for each layer; every gradient is a whole one.
    """
    how = scaling, norm, m, num_steps, restarts, microbatch_size
    caller = "layerwise_sharpness"
    problem = measures.prepare(caller, loss, params, batch, key, rho, *how)
    like, found = problem.operands.params, {}
    for name, where in groups_of(caller, like, groups).items():
        moves = jax.tree.map(
            lambda hit: jnp.asarray(np.bool_(hit != leave_out)), tree.select(like, where)
        )
        one = measures.over_radii(lambda r, moves=moves: measures.find(problem, r, moves), rho)
        found[name] = mark(one, problem.checked)
    return found
