"""What is measured in training, and when. An evaluator sees one model; `loop` shows it every seed
in turn."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sharpjax import data, geometry, loops, metrics
from sharpjax.estimate import Estimate
from sharpjax.losses import Classification
from sharpjax.train.state import TrainState
from sharpjax.train.step import Shared


class Data(NamedTuple):
    """Both splits on the device."""

    train: Shared
    test: Shared


class Results(NamedTuple):
    """Estimates by metric name, which become rows, and arrays by name, which become files.

    `by_layer`: estimates by metric name and layer, which become rows of `{"layer": name}`.
    """

    estimates: Mapping[str, Estimate]
    arrays: Mapping[str, np.ndarray]
    by_layer: Mapping[tuple[str, str], Estimate] = MappingProxyType({})


class Evaluator(Protocol):
    """One kind of measurement.

    `name` names its stream of randomness, `kind` the work it counts as (`evaluation` or
    `geometry`). `every_epochs` is its period; it also runs at the end, and only there where the
    period is 0. Calls take and give a carry, which is kept in the checkpoint: what a later call may
    start from.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def every_epochs(self) -> int: ...

    def init(self, state: TrainState) -> Any: ...
    def __call__(
        self, carry: Any, state: TrainState, data: Data, key: jax.Array
    ) -> tuple[Any, Results]: ...


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Accuracy, NLL and calibration error on the whole test split."""

    model: nn.Module
    batch_size: int
    num_bins: int
    every_epochs: int
    name: str = "test"
    kind: str = "evaluation"

    def init(self, state: TrainState) -> tuple:
        return ()

    def __call__(self, carry: Any, state: TrainState, data: Data, key: jax.Array):
        loss = Classification(self.model, state.variables)
        start = (jnp.int32(0), metrics.init(self.num_bins))
        num_batches = -(-len(data.test.label) // self.batch_size)
        (_, totals), _ = loops.iterate(
            CountBatch(self.batch_size),
            start,
            (loss, state.params, data.test),
            max_steps=num_batches,
        )
        named = {f"test/{name}": estimate for name, estimate in metrics.compute(totals).items()}
        return carry, Results(named, {})


@dataclasses.dataclass(frozen=True)
class CountBatch:
    """Add the next `batch_size` examples to the totals; those past the end weigh nothing."""

    batch_size: int

    def __call__(self, carry, operands):
        start, totals = carry
        loss, params, split = operands
        index = start + jnp.arange(self.batch_size, dtype=start.dtype)
        weight = (index < len(split.label)).astype(jnp.float32)
        batch = examples(split, jnp.minimum(index, len(split.label) - 1))
        logits = loss.logits(params, batch)
        totals = metrics.update(totals, logits, batch["label"], weight)
        return start + self.batch_size, totals


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Curvature and sharpness on frozen, un-augmented training examples `first` to `first +
    num_examples`.

    In float32 whatever the training precision, in eval mode with frozen BatchNorm statistics. Seeds
    are measured one by one: a lane holds a Krylov basis, and lanes that have converged would wait
    for the slowest.
    """

    model: nn.Module
    first: int
    num_examples: int
    where: str
    microbatch_size: int
    num_eigenvalues: int
    tol: float
    max_products: int
    trace_error: float
    max_probes: int
    sam_rho: float
    adaptive_rho: float
    adaptive_m: int
    adaptive_steps: int
    every_epochs: int
    kind: str = "geometry"

    @property
    def name(self) -> str:
        last = self.first + self.num_examples
        return f"train[{self.first or ''}:{last}]"

    def init(self, state: TrainState) -> tuple:
        return ()

    def __call__(self, carry: Any, state: TrainState, data: Data, key: jax.Array):
        loss = Classification(self.model.clone(dtype=jnp.float32), state.variables)
        params = state.params
        batch = examples(data.train, self.first + jnp.arange(self.num_examples))
        eigen_key, trace_key, ascent_key = jax.random.split(key, 3)
        size = self.microbatch_size
        hessian = geometry.hessian(loss, params, batch, where=self.where, microbatch_size=size)
        pairs = geometry.top_eigenpairs(
            hessian,
            key=eigen_key,
            k=self.num_eigenvalues,
            tol=self.tol,
            max_products=self.max_products,
            vectors=False,
        )
        trace = geometry.trace(
            hessian, key=trace_key, relative_error=self.trace_error, max_probes=self.max_probes
        )
        curvature = geometry.directional_curvature(loss, params, batch, microbatch_size=size)
        sam = geometry.sam_sharpness(loss, params, batch, rho=self.sam_rho, microbatch_size=size)
        adaptive = geometry.adaptive_sharpness(
            loss,
            params,
            batch,
            key=ascent_key,
            rho=self.adaptive_rho,
            m=self.adaptive_m,
            steps=self.adaptive_steps,
            microbatch_size=min(size, self.adaptive_m),
        )
        converged = {
            "converged": Estimate(jnp.mean(pairs.converged), np.float32(0), pairs.num_products)
        }
        named = {
            f"{self.name}/{prefix}{name}": estimate
            for prefix, estimates in (
                ("hessian/", pairs.estimates() | converged),
                ("hessian/", trace.estimates()),
                ("", curvature.estimates()),
                ("", sam.estimates()),
                ("", adaptive.estimates()),
            )
            for name, estimate in estimates.items()
        }
        return carry, Results(named, {})


def examples(split: Shared, index: jax.Array) -> dict[str, jax.Array]:
    """The examples at `index`, normalised and not augmented."""
    image = data.normalize(split.image[index], split.mean, split.std)
    return {"image": image, "label": split.label[index]}
