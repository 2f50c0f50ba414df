"""How layers are read as eigenvalues, and which eigenvalues count as 0."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from sharpjax.errors import UserError, whole_number


@dataclasses.dataclass(frozen=True)
class Convention:
    """The choices that the definitions of data-free metrics leave open.

    Attributes:
        convolution_factor: multiplies the eigenvalues of the slices of a convolution.
        floor: eigenvalues up to it are left out of the power law. None for the relative rule,
            (N eps s_max)^2, with N the longer side and eps that of the weights (of float32 for
            narrower ones): the singular values that `matrix_rank` counts as 0.
        min_evals: layers with fewer eigenvalues have no numbers.
        min_kept: layers with fewer eigenvalues above the floor have no power law; with fewer above
            rounding they have no Marchenko-Pastur law by 'median'.
        bulk: how the Marchenko-Pastur law is fitted: 'median' (its median is that of the
            eigenvalues) or 'density' (least squares from a kernel density estimate).

    Raises:
        UserError: a value out of range.

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
        if not (_is_finite(self.convolution_factor) and self.convolution_factor > 0):
            raise UserError(
                f"data_free.Convention: convolution_factor={self.convolution_factor!r}; give a "
                "number above 0."
            )
        if self.floor is not None and not (_is_finite(self.floor) and self.floor >= 0):
            raise UserError(
                f"data_free.Convention: floor={self.floor!r}; give a number of 0 or more, or None "
                "for a floor that follows the scale of each layer."
            )
        if self.bulk not in ("median", "density"):
            raise UserError(
                f"data_free.Convention: bulk={self.bulk!r}; give 'median' or 'density'."
            )


def _is_finite(value: Any) -> bool:
    number = isinstance(value, float | int | np.floating | np.integer)
    return number and not isinstance(value, bool) and math.isfinite(value)


SCALE_FREE = Convention()
"""For this convention alpha, D, ranks, entropy, spikes and mp_softrank of c W are those of W."""

WEIGHTWATCHER = Convention(convolution_factor=0.5, floor=1e-5, min_kept=2, bulk="density")
"""As in WeightWatcher 0.7.7: eigenvalues of convolutions are halved, and the floor is 1e-5 for any
scale of a layer. Its `min_evals` is 8. With fewer than 20 eigenvalues above the floor it fits alpha
by another rule, which is not implemented: such layers have the status OTHER_RULE."""


def check_convention(caller: str, convention: Any) -> None:
    """Refuses anything but a `Convention`.

    Raises:
        UserError: names `caller`.
    """
    if not isinstance(convention, Convention):
        raise UserError(
            f"{caller}: convention={convention!r}; give `data_free.SCALE_FREE`, "
            "`data_free.WEIGHTWATCHER` or a `data_free.Convention`."
        )


def other_rule_below(convention: Convention) -> int:
    """With fewer eigenvalues above the floor than this, the program that a convention follows fits
    a power law by a rule that is not implemented. 0 if the convention follows no program.

    >>> other_rule_below(WEIGHTWATCHER), other_rule_below(SCALE_FREE)
    (20, 0)
    """
    limits = {name: getattr(WEIGHTWATCHER, name) for name in ("min_evals", "min_kept")}
    return 20 if dataclasses.replace(convention, **limits) == WEIGHTWATCHER else 0
