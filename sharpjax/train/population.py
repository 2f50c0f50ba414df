"""The models of an arm: one array program if that is fast, else one model after another.

A population is the same pytree with a leading axis (`vmap`), or a tuple of pytrees (`loop`). On CPU
a vmapped convolution kernel costs 2.4 times a single one, and a gradient convolution inside an XLA
loop tens of times, so there the seeds of a convolutional net run in turn. How much lanes gain for
convolutions on GPU has not been measured yet: compare `--config.train.population=loop` there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sharpjax import tree

Mode = Literal["vmap", "loop"]
AXES = ("seed", "data")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How models run, and on which devices they and their batches lie. Make it with `lay_out`."""

    mode: Mode
    mesh: Mesh

    @property
    def seeds(self) -> NamedSharding:
        """Lanes over the `seed` axis; in a loop, each model on every device."""
        return NamedSharding(self.mesh, P("seed") if self.mode == "vmap" else P())

    @property
    def batch(self) -> NamedSharding | None:
        """One model's batch over the `data` axis; None if that axis has one device."""
        return NamedSharding(self.mesh, P("data")) if self.mesh.shape["data"] > 1 else None

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, P())


def lay_out(mode: str, *, num_seeds: int, batch_size: int = 1) -> Layout:
    """Models go to devices first, because they do not communicate; the remaining devices share each
    batch.

    Args:
        mode: 'vmap' or 'loop'.
        num_seeds, batch_size: what is divided among the devices. Devices that fit neither as a
            divisor stay idle.
    """
    devices = np.array(jax.devices())
    lanes = int(np.gcd(num_seeds, devices.size)) if mode == "vmap" else 1
    share = int(np.gcd(batch_size, devices.size // lanes))
    used = devices[: lanes * share].reshape(lanes, share)
    mesh = Mesh(used, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(cast(Mode, mode), mesh)


def members(population: Any, layout: Layout) -> list[Any]:
    """The states one by one."""
    if layout.mode == "loop":
        return list(population)
    return [_member(population, i) for i in range(len(jax.tree.leaves(population)[0]))]


# Jitted: one program instead of one slice per leaf. `i` is traced, so it is compiled once.
_member = jax.jit(tree.index)


def map_members(fn: Callable[[Any], Any], population: Any, layout: Layout) -> Any:
    """`fn` of each model. Lanes are passed together, so the module-level function `fn` must do the
    same to every entry of an array."""
    if layout.mode == "loop":
        return tuple(map(fn, population))
    return jax.jit(fn)(population)


def gather(values: Sequence[Any], layout: Layout) -> Any:
    """The population of single pytrees; the inverse of `members`."""
    values = tuple(values) if layout.mode == "loop" else tree.stack(values)
    return jax.device_put(values, layout.seeds)


def alive(population: Any, layout: Layout) -> np.ndarray:
    """Which models are still finite: bool [members], on the host. Waits for the population."""
    if layout.mode == "loop":
        return np.array([bool(state.alive) for state in population])
    return np.asarray(population.alive)
