"""The Fisher-Rao norm: the length of the parameters in the metric of the Fisher matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import perturbation, tree
from sharpjax.estimate import Estimate
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.operators.algebra import Params, linearize
from sharpjax.geometry.operators.gauss_newton import Fisher, Labels, fisher
from sharpjax.geometry.status import if_finite


class FisherRao(NamedTuple):
    """The length of the parameters.

    Attributes:
        value: `sqrt(w'Fw)`.
        status: `Status`, int32.
    """

    value: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`fisher_rao`, exact on these examples."""
        one = jnp.ones(jnp.shape(self.value), jnp.int32)
        return {"fisher_rao": Estimate(self.value, jnp.zeros_like(self.value), one)}


def fisher_rao(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    labels: Labels = "model",
    key: jax.Array | None = None,
    microbatch_size: int | None = None,
) -> FisherRao:
    """`sqrt(w'Fw)`, with F the Fisher matrix at the parameters w (Liang et al., 2019, arXiv
    1711.01530).

    Rescalings of the weights that leave the function unchanged do not change it. It is exact for
    any model: `w'Fw` takes one product. The formula `L^2 E <z, dl/dz>^2`, with z the outputs and L
    the number of layers, holds only for networks that are homogeneous of degree L: ReLU without
    biases, shortcuts and normalisation. (Public codes take `L + 1`.)

    Cost: one product with F.

    Args:
        loss, params, batch, labels, key, microbatch_size: as in `fisher`. "observed" is the norm as
            Liang et al. compute it, `E <w, g_n>^2` with the labels of the batch.

    Raises:
        UserError: as in `fisher`.

    >>> from sharpjax.geometry import composed
    >>> from sharpjax.losses import SquaredError
    >>> loss = composed(lambda w, batch: batch["x"] @ w, SquaredError())
    >>> batch = {"x": jnp.eye(2), "target": jnp.zeros(2)}
    >>> print(f"{fisher_rao(loss, jnp.array([3.0, 1.0]), batch).value ** 2:.4f}")  # (9 + 1) / 2
    5.0000
    """
    operator = fisher(loss, params, batch, labels=labels, key=key, microbatch_size=microbatch_size)
    return mark(_length(operator), operator.checked)


@jax.jit
def _length(operator: Fisher) -> FisherRao:
    params = tree.widen(operator.params)
    # Along a unit vector, so that no square of the parameters overflows or underflows.
    unit = perturbation.ascent(params, params, rho=1.0)
    along = tree.vdot(unit, linearize(operator)(unit))
    value = tree.vdot(unit, params) * jnp.sqrt(jnp.maximum(along, 0))
    return FisherRao(value, if_finite(jnp.isfinite(value)))
