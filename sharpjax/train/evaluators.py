"""Measurements of outputs: accuracy and calibration on a split, and the stored outputs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import data, loops, metrics
from sharpjax.data import DataSpec, Examples, Splits
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Results, results


@dataclasses.dataclass(frozen=True)
class SplitMetrics:
    """Accuracy, NLL and calibration error on a whole split, as `<split>/accuracy` and so on.

    Attributes:
        split: 'test' or 'validation'.
    """

    batch_size: int
    num_bins: int
    when: When
    split: str = "test"
    kind: str = "evaluation"

    @property
    def name(self) -> str:
        return self.split

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"{self.split}/{name}" for name in ("accuracy", "ece", "nll"))

    def cost(self, spec: DataSpec) -> Cost:
        return Cost(-(-getattr(spec, f"num_{self.split}") // self.batch_size) * self.batch_size)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        split = split_of(data, self.split)
        loss = Classification(subject.model, subject.state.variables)
        start = (jnp.int32(0), metrics.init(self.num_bins))
        num_batches = -(-len(split.label) // self.batch_size)
        (_, totals), _ = loops.iterate(
            CountBatch(self.batch_size),
            start,
            (loss, subject.state.params, split),
            max_steps=num_batches,
        )
        found = metrics.compute(totals)
        return carry, results({f"{self.split}/{name}": x for name, x in found.items()})


@dataclasses.dataclass(frozen=True)
class CountBatch:
    """Adds the next `batch_size` examples to the totals; places past the end have weight 0."""

    batch_size: int

    def __call__(self, carry, operands):
        start, totals = carry
        loss, params, split = operands
        index = start + jnp.arange(self.batch_size, dtype=start.dtype)
        weight = (index < len(split.label)).astype(jnp.float32)
        batch = data.batch(split, jnp.minimum(index, len(split.label) - 1))
        logits = loss.logits(params, batch)
        totals = metrics.update(totals, logits, batch["label"], weight)
        return start + self.batch_size, totals


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Stores the logits, float32 [N, K], of the first `num_examples` of a split; 0: of all.

    The measures of a `Compare` stage compute distances between models from them.
    """

    when: When
    split: str = "test"
    num_examples: int = 0
    batch_size: int = 500
    name: str = "outputs"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ()

    def cost(self, spec: DataSpec) -> Cost:
        there = getattr(spec, f"num_{self.split}")
        count = min(self.num_examples or there, there)
        passes = -(-count // self.batch_size) * self.batch_size
        return Cost(passes, stored=4 * count * max(spec.num_classes, 1))

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        split = split_of(data, self.split)
        count, size = self.num_examples, self.batch_size
        loss = Classification(subject.model, subject.state.variables)
        logits = logits_of(loss, subject.state.params, split, count, batch_size=size)
        return carry, Results({}, {"logits": logits})


def logits_of(
    loss: Classification, params: Any, split: Examples, count: int = 0, *, batch_size: int
) -> np.ndarray:
    """The logits of the first `count` examples of a split, float32 [count, K]; 0: of all.

    A count beyond the split gives all.
    """
    count = min(count or len(split.label), len(split.label))
    places = np.arange(-(-count // batch_size) * batch_size)
    batches = np.minimum(places, len(split.label) - 1).reshape(-1, batch_size)
    parts = [_forward(loss, params, split, index) for index in batches]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])[:count]


@jax.jit
def _forward(loss, params, split, index):
    return loss.logits(params, data.batch(split, index))


def split_of(splits: Splits, name: str) -> Examples:
    """The split with this name.

    Raises:
        UserError: the data have no such split.
    """
    found = getattr(splits, name, None)
    if found is None:
        there = [field for field, value in splits._asdict().items() if value is not None]
        raise UserError(f"the data have no split '{name}'; they have {', '.join(there)}.")
    return found
