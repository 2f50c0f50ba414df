"""Accuracy and calibration on corrupted images."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import metrics
from sharpjax.data import DataSpec, Examples, Splits, corruption
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.losses import Classification
from sharpjax.metrics import reliability, scores
from sharpjax.train.evaluators import logits_of, split_of
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Of, Results, exact, of
from sharpjax.train.sharpness import as_measured
from sharpjax.train.streams import stream


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Accuracy and calibration of a model on the first images of a split, corrupted in every kind
    and severity. `<set>` is `<split>[:num_examples]`:

        <set>/clean_accuracy, clean_ece     of the same images without corruption
        <set>/corrupted_accuracy            the mean over all cells
        <set>/corrupted_ece                 the mean over all cells
        <set>/accuracy_by_severity          of {"severity": s}: the mean over kinds

    The arrays `accuracy` and `ece`, [kinds, severities], hold the cells. The corruptions are our
    own (`data.corruption`), so these are not CIFAR-10-C numbers. The noise is the same for all
    models and severities. The means over cells have no standard error, because cells share their
    images. The model computes in float32, whatever the training precision.

    Cost: `num_examples` forward passes per cell. The corrupted images are made once for each data
    set and stay in host memory: 146 MB for 500 CIFAR images in 95 cells.

    Attributes:
        kinds, severities: of `corruption.KINDS` and `corruption.SEVERITIES`; 'saturate' needs
            colour images.

    Raises:
        UserError: an unknown kind or severity; no kind or no severity. When it is called: a kind
            that needs colours on grey images.
    """

    when: When
    num_examples: int = 500
    split: str = "test"
    kinds: tuple[str, ...] = corruption.KINDS
    severities: tuple[int, ...] = corruption.SEVERITIES
    batch_size: int = 500
    num_bins: int = 15
    name: str = "corrupted"
    kind: str = "evaluation"

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in corruption.KINDS:
                raise unknown("corruption (train.Corrupted)", str(kind), corruption.KINDS)
        for severity in self.severities:
            whole_number("train.Corrupted", "severities", severity)
            if severity not in corruption.SEVERITIES:
                raise UserError(f"train.Corrupted: severities has {severity}; give 1 to 5.")
        if not self.kinds or not self.severities:
            raise UserError("train.Corrupted: name a kind and a severity at the least.")

    @property
    def counted(self) -> str:
        return self.split

    @property
    def set_name(self) -> str:
        return f"{self.split}[:{self.num_examples}]"

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ("clean_accuracy", "clean_ece", "corrupted_accuracy", "corrupted_ece")
        names += ("accuracy_by_severity",)
        return tuple(f"{self.set_name}/{name}" for name in names)

    def cost(self, spec: DataSpec) -> Cost:
        cells = len(self.kinds) * len(self.severities)
        padded = -(-self.num_examples // self.batch_size) * self.batch_size
        return Cost((cells + 1) * padded, stored=2 * 8 * cells)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        clean = split_of(data, self.split)
        own = _Set(clean, self.num_examples, self.kinds, self.severities)
        accuracy, ece = self._scores(subject, own.clean)
        found: dict[tuple[str, Of], Estimate]
        found = {("clean_accuracy", ()): accuracy, ("clean_ece", ()): ece}
        cells = {cell: self._scores(subject, split) for cell, split in _cells(own).items()}
        right, off = (
            {cell: float(np.asarray(pair[i].value)) for cell, pair in cells.items()}
            for i in range(2)
        )
        errors = {cell: 1 - value for cell, value in right.items()}
        summary = metrics.robustness(errors, clean=1 - float(np.asarray(accuracy.value)))
        found["corrupted_accuracy", ()] = exact(np.mean(list(right.values())))
        found["corrupted_ece", ()] = exact(np.mean(list(off.values())))
        for severity, value in summary.by_severity.items():
            found["accuracy_by_severity", of(severity=severity)] = exact(value)
        shape = len(self.kinds), len(self.severities)
        arrays = {
            name: np.array(list(values.values()), np.float32).reshape(shape)
            for name, values in (("accuracy", right), ("ece", off))
        }
        rows = {(f"{self.set_name}/{name}", of): x for (name, of), x in found.items()}
        return carry, Results(rows, arrays)

    def _scores(self, subject: Subject, split: Examples) -> tuple[Any, Any]:
        loss = Classification(as_measured(subject.model), subject.state.variables)
        logits = logits_of(loss, subject.state.params, split, batch_size=self.batch_size)
        label = jnp.asarray(split.label)
        bins = reliability.update(reliability.init(self.num_bins), jnp.asarray(logits), label)
        return scores.mean(logits.argmax(1) == np.asarray(label)), reliability.compute(bins)["ece"]


@dataclasses.dataclass(frozen=True)
class _Set:
    """The images of a split; equal to another if input array (by id), number and cells are."""

    split: Examples
    num_examples: int
    kinds: tuple[str, ...]
    severities: tuple[int, ...]

    @property
    def clean(self) -> Examples:
        first = slice(self.num_examples)
        return Examples(
            self.split.input[first], self.split.label[first], None, self.split.mean, self.split.std
        )

    def _key(self) -> tuple:
        return id(self.split.input), self.num_examples, self.kinds, self.severities

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Set) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@functools.lru_cache(maxsize=2)
def _cells(own: _Set) -> Mapping[tuple[str, int], Examples]:
    """The images of each cell, on the host. The cache keeps the split, so its id stays unique."""
    key, block = stream(0, "corruption"), min(500, own.num_examples)
    return {
        (kind, severity): corruption.corrupted(own.clean, kind, severity, key=key, block=block)
        for kind in own.kinds
        for severity in own.severities
    }
