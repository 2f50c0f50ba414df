"""Load the data of a plan into host memory and onto the device, and compute their digests."""

from collections.abc import Mapping
from typing import Any

from sharpjax import data
from sharpjax.train import planning
from sharpjax.train.plan import Plan
from sharpjax.train.streams import stream


def load(plan: Plan) -> dict[str, Any]:
    """The data of a plan in host memory, by key. Data that each seed draws are also by seed."""
    found: dict[str, Any] = {}
    for name, spec in plan.data.items():
        if spec.is_per_seed:
            seeds = planning.seeds(plan, name)
            found[name] = {seed: spec.load(stream(seed, "split")) for seed in seeds}
        else:
            found[name] = spec.load(None)
    return found


def on_device(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The loaded data as jax arrays."""
    return {
        name: {seed: data.on_device(one) for seed, one in found.items()}
        if isinstance(found, Mapping)
        else data.on_device(found)
        for name, found in loaded.items()
    }


def digests(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """SHA-256 of each split of all data, by key. Data that each seed draws are also by seed."""
    return {name: digests_of(found) for name, found in loaded.items()}


def digests_of(found: Any) -> dict[str, Any]:
    """SHA-256 of each split. Data that each seed draws are also by seed."""
    if isinstance(found, Mapping):
        return {str(seed): one.digests for seed, one in found.items()}
    return dict(found.digests)
