"""The data of a plan: in host memory, on the device, and by their digests."""

from collections.abc import Mapping
from typing import Any

from sharpjax import data
from sharpjax.train import planning
from sharpjax.train.plan import Plan
from sharpjax.train.streams import stream


def load(plan: Plan) -> dict[str, Any]:
    """The data of a plan in host memory; of data that each seed draws, by seed."""
    found: dict[str, Any] = {}
    for name, spec in plan.data.items():
        if spec.is_per_seed:
            seeds = planning.seeds(plan, name)
            found[name] = {seed: spec.load(stream(seed, "split")) for seed in seeds}
        else:
            found[name] = spec.load(None)
    return found


def on_device(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Its splits as arrays of jax."""
    return {
        name: {seed: data.on_device(one) for seed, one in found.items()}
        if isinstance(found, Mapping)
        else data.on_device(found)
        for name, found in loaded.items()
    }


def digests(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """SHA-256 of each split of all data, by key; of data that each seed draws, by seed."""
    return {name: digests_of(found) for name, found in loaded.items()}


def digests_of(found: Any) -> dict[str, Any]:
    """SHA-256 of each split; of data that each seed draws, by seed."""
    if isinstance(found, Mapping):
        return {str(seed): one.digests for seed, one in found.items()}
    return dict(found.digests)
