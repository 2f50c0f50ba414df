"""What the operators of one loss at one point have in common."""

import dataclasses
from typing import Any

from sharpjax.geometry.loss.assumptions import Assuming
from sharpjax.geometry.loss.differentiable import How
from sharpjax.geometry.operators.algebra import Operator, Params


@dataclasses.dataclass(frozen=True)
class OfLoss(Operator, Assuming):
    """The fields of such an operator.

    Attributes:
        loss: callable pytree.
        params, batch: what it is called with.
        microbatch_size: examples per pass, or None for all at once.
        how: the way to its products.
    """

    loss: Any
    params: Params
    batch: Any
    microbatch_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    how: How = How()

    @property
    def like(self) -> Any:
        return self.params
