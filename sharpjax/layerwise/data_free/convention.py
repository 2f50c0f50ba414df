"""How layers are read as eigenvalues, and which of these count as 0."""

import dataclasses
from typing import Literal

from sharpjax.errors import UserError, whole_number


@dataclasses.dataclass(frozen=True)
class Convention:
    """What the definitions of data-free metrics leave open.

    Attributes:
        convolution_factor: eigenvalues of the slices of a convolution are multiplied by it.
        floor: eigenvalues up to it are no part of a power law; None for the relative rule,
            (N eps s_max)^2, with N the longer side and eps that of the weights (of float32 for
            narrower ones): the singular values that `matrix_rank` counts as 0.
        min_evals: layers with fewer eigenvalues have no row of numbers.
        min_kept: nor have those with fewer eigenvalues above the floor.
        bulk: how the Marchenko-Pastur law is fitted: 'median' (that of the eigenvalues is that of
            the law) or 'density' (least squares from a kernel density estimate).

    Raises:
        UserError: a value that none of these can have.

    >>> Convention(min_evals=50).convolution_factor
    1.0
    """

    convolution_factor: float = 1.0
    floor: float | None = None
    min_evals: int = 10
    min_kept: int = 10
    bulk: Literal["median", "density"] = "median"

    def __post_init__(self) -> None:
        for name in ("min_evals", "min_kept"):
            whole_number("data_free.Convention", name, getattr(self, name), least=2)
        if not 0 < self.convolution_factor < float("inf"):
            raise UserError(
                f"data_free.Convention: convolution_factor={self.convolution_factor}; give a "
                "number above 0."
            )
        if self.floor is not None and not 0 <= self.floor < float("inf"):
            raise UserError(
                f"data_free.Convention: floor={self.floor}; give a number of 0 or more, or None "
                "for a floor that follows the scale of each layer."
            )
        if self.bulk not in ("median", "density"):
            raise UserError(
                f"data_free.Convention: bulk='{self.bulk}'; give 'median' or 'density'."
            )


SCALE_FREE = Convention()
"""alpha, D, ranks, entropy, spikes and mp_softrank of c W are those of W."""

WEIGHTWATCHER = Convention(convolution_factor=0.5, floor=1e-5, min_kept=2, bulk="density")
"""As WeightWatcher 0.7.5 does: eigenvalues of convolutions are halved, and 1e-5 is the floor
whatever the scale of a layer. Version 0.7.7 has `min_evals=8`, and another rule for alpha where a
layer has fewer than 20 eigenvalues, which is not built."""
