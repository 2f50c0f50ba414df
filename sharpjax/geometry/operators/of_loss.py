"""The fields shared by all operators of one loss at one point."""

import dataclasses
from typing import Any

from sharpjax.geometry.loss.assumptions import Assuming
from sharpjax.geometry.loss.differentiable import How
from sharpjax.geometry.operators.algebra import Operator, Params


@dataclasses.dataclass(frozen=True)
class OfLoss(Operator, Assuming):
    """Base class of the operators of one loss at one point.

    Attributes:
        loss: callable pytree.
        params, batch: the arguments of the loss.
        microbatch_size: examples per pass, or None for all at once.
        how: how its products are computed.
    """

    loss: Any
    params: Params
    batch: Any
    microbatch_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    how: How = How()

    @property
    def like(self) -> Any:
        return self.params
