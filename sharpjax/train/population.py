"""All seeds of an arm: as one array program where that is fast, one after another where it is not.

On CPU a vmapped convolution kernel costs 2.4 times its own, and a gradient convolution inside an
XLA loop tens of times: there the seeds of a convolutional net run in turn (`loop`); everywhere else
they are lanes (`vmap`). How much that wins for convolutions on GPU has not been measured yet:
compare `--config.train.population=loop` there. A population is the same pytree with a leading axis
(`vmap`), or a tuple of them (`loop`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sharpjax import loops, tree
from sharpjax.train.state import TrainState, initial_state
from sharpjax.train.step import Carry, LoopStep, Own, SeedStep, Shared
from sharpjax.train.streams import stream

Mode = Literal["vmap", "loop"]
AXES = ("seed", "data")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the seeds run, and where they and their batches lie. Make it with `choose_layout`."""

    mode: Mode
    mesh: Mesh

    @property
    def seeds(self) -> NamedSharding:
        """Lanes over the `seed` axis; a single seed on every device."""
        return NamedSharding(self.mesh, P("seed") if self.mode == "vmap" else P())

    @property
    def batch(self) -> NamedSharding | None:
        """The examples of one seed's batch over the `data` axis; None where that has one device."""
        return NamedSharding(self.mesh, P("data")) if self.mesh.shape["data"] > 1 else None


def choose_layout(
    mode: str, model: nn.Module, shape: tuple[int, ...], *, num_seeds: int, batch_size: int
) -> Layout:
    """Seeds go to devices first, because they never talk to each other; the rest share each batch.

    Args:
        mode: 'vmap', 'loop', or 'auto': what is fast on this backend.
        model: whether it convolves decides 'auto' on CPU.
        shape: of one image.
        num_seeds, batch_size: what is to be divided among the devices. Devices that neither
            divides stay idle.
    """
    if mode == "auto":
        forward = functools.partial(model.init, train=False)
        image = jnp.zeros((1, *shape), jnp.float32)
        on_cpu = jax.default_backend() == "cpu"
        convolves = on_cpu and loops.holds_convolution(forward, jax.random.key(0), image)
        mode = "loop" if convolves else "vmap"
    return lay_out(cast(Mode, mode), num_seeds=num_seeds, batch_size=batch_size)


def lay_out(mode: Mode, *, num_seeds: int, batch_size: int = 1) -> Layout:
    """The devices that so many seeds use in a mode that has been chosen."""
    devices = np.array(jax.devices())
    lanes = int(np.gcd(num_seeds, devices.size)) if mode == "vmap" else 1
    share = int(np.gcd(batch_size, devices.size // lanes))
    used = devices[: lanes * share].reshape(lanes, share)
    mesh = Mesh(used, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(mode, mesh)


def initial(seeds: Sequence[int], step: SeedStep, shape: tuple[int, ...], layout: Layout) -> Any:
    """Fresh states, each the function of its own seed alone; born where they will live."""
    keys = [stream(seed, "init") for seed in seeds]

    def init(key: jax.Array) -> TrainState:
        return initial_state(key, step.model, step.optimizer, shape)

    if layout.mode == "vmap":
        return jax.jit(jax.vmap(init), out_shardings=layout.seeds)(jnp.stack(keys))
    one = jax.jit(init, out_shardings=layout.seeds)
    return tuple(one(key) for key in keys)


def members(population: Any, layout: Layout) -> list[Any]:
    """The states one by one."""
    if layout.mode == "loop":
        return list(population)
    return [_member(population, i) for i in range(population.alive.shape[0])]


# Jitted: one program, not one slice a leaf. `i` is traced, so it is compiled once.
_member = jax.jit(tree.index)


def map_members(fn: Callable[[TrainState], TrainState], population: Any, layout: Layout) -> Any:
    """`fn`, a module-level function of single arrays, on the whole population at once."""
    if layout.mode == "loop":
        return tuple(map(fn, population))
    return jax.jit(fn)(population)


def gather(values: Sequence[Any], layout: Layout) -> Any:
    """The population of single-seed pytrees; the inverse of `members`."""
    values = tuple(values) if layout.mode == "loop" else tree.stack(values)
    return jax.device_put(values, layout.seeds)


def alive(population: Any, layout: Layout) -> np.ndarray:
    """Which seeds are still finite: bool [seeds], on the host. Waits for the population."""
    if layout.mode == "loop":
        return np.array([bool(state.alive) for state in population])
    return np.asarray(population.alive)


def advance(
    step: SeedStep,
    population: Any,
    shared: Shared,
    own: Any,
    *,
    start: int,
    offset: int,
    num_steps: int,
    layout: Layout,
) -> Any:
    """`num_steps` steps of every seed, from step `start`, the `offset`-th of its epoch."""
    loop_step = LoopStep(step, lanes=layout.mode == "vmap")

    def run(state: Any, one: Own) -> Any:
        carry = Carry(jnp.int32(start), jnp.int32(offset), state)
        carry, _ = loops.iterate(loop_step, carry, (shared, one), max_steps=num_steps)
        return carry.state

    if layout.mode == "vmap":
        return run(population, own)
    return tuple(run(state, one) for state, one in zip(population, own, strict=True))
