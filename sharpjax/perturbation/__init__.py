"""Perturbations of the weights: their units, the steepest perturbation, and balls.

A scaling `T` gives every weight its own unit. The ball of radius `rho` is `{e : ||e / T||_2 <=
rho}`, and the worst first-order perturbation in it is `rho T^2 g / ||T g||_2`. A scaling is a
*rule* that is evaluated on parameters. It is a frozen dataclass, hashable and equal by value, so it
can be a static argument and a field of a config. All functions here compute in at least float32 and
are safe at zero gradients and zero weights.
"""

from sharpjax.perturbation.ball import (
    Norm,
    ascent,
    from_unit,
    lost_fraction,
    perturb,
    project,
    to_unit,
)
from sharpjax.perturbation.scaling import (
    AdaptiveScaling,
    Bias,
    NoScaling,
    OnlyScaling,
    Scaling,
    SupportScaling,
    check_scaling,
    check_units,
    element,
    filters,
    layers,
    none,
    only,
    support,
    units,
)

__all__ = [
    "AdaptiveScaling",
    "Bias",
    "NoScaling",
    "Norm",
    "OnlyScaling",
    "Scaling",
    "SupportScaling",
    "ascent",
    "check_scaling",
    "check_units",
    "element",
    "filters",
    "from_unit",
    "layers",
    "lost_fraction",
    "none",
    "only",
    "perturb",
    "project",
    "support",
    "to_unit",
    "units",
]
