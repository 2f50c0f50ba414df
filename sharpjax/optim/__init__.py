"""The SAM family as optax transforms, and a factory that builds them from a config.

Names are loaded when they are first used, so that `from sharpjax.optim import settings`, which
checks the values of a config, does not import jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharpjax.optim.chunks import sam_value_and_grad
    from sharpjax.optim.directions import coupled_rho, friendly, random_direction
    from sharpjax.optim.factory import Hyperparameters, OptimizerSpec, from_config
    from sharpjax.optim.sharpness_aware import SAM_STATIC_ARGS, SamState, SamStatistics, sam

__all__ = [
    "SAM_STATIC_ARGS",
    "Hyperparameters",
    "OptimizerSpec",
    "SamState",
    "SamStatistics",
    "coupled_rho",
    "friendly",
    "from_config",
    "random_direction",
    "sam",
    "sam_value_and_grad",
]

# The module of `sam` is not called sam.py: importing a submodule of that name would replace the
# function by the module.
_HOMES = {
    "sam_value_and_grad": "chunks",
    **dict.fromkeys(("coupled_rho", "friendly", "random_direction"), "directions"),
    **dict.fromkeys(("Hyperparameters", "OptimizerSpec", "from_config"), "factory"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = _HOMES.get(name, "sharpness_aware")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
