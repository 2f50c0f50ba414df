"""The worst case of each layer alone, or of all layers but one, with one compiled search."""

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
    """`worst_case_sharpness` with only one layer perturbed, for each layer by name. With
    `leave_out=True` all other layers are perturbed instead.

    Each value is that of `scaling=perturbation.only(...)`, but the search is compiled once for all
    layers. At a fixed radius, neither one layer nor all layers but one can exceed the whole
    network. The values do not add up.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w["a"] ** 2 + 3 * w["b"] ** 2)
    >>> w, key = {"a": jnp.float32(0), "b": jnp.float32(0)}, jax.random.key(0)
    >>> found = layerwise_sharpness(loss, w, jnp.ones(4), key=key, rho=0.5)
    >>> print({name: f"{one.value:.2f}" for name, one in found.items()})
    {'a': '0.25', 'b': '0.75'}

    Args:
        loss, params, batch, key, rho, scaling, norm, m, num_steps, restarts, microbatch_size: as in
            `worst_case_sharpness`.
        groups: as in `layers`. By default a layer is the leaves whose names differ only in the last
            part.
        leave_out: hold the layer fixed, and perturb the rest.

    Raises:
        UserError: an argument does not fit, a glob matches no leaf, or two groups share one.

    Cost: that of `worst_case_sharpness` for each layer; every gradient is over all parameters.
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
