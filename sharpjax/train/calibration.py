"""Calibration of a model on a split, before and after temperature scaling."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.data import DataSpec, Splits
from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.losses import Classification
from sharpjax.metrics import reliability, scores, temperature
from sharpjax.metrics.reliability import Diagram
from sharpjax.train.evaluators import logits_of, split_of
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Results, exact, results
from sharpjax.train.sharpness import as_measured, fitted

BINNED = ("ece", "ece_debiased", "ece_null", "mce", "brier", "overconfidence")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of the outputs on a split, as rows `<split>/accuracy` and so on:

        accuracy, error, nll
        ece, ece_debiased, ece_null, mce, brier, overconfidence      `metrics.reliability.compute`
        temperature                         fitted on the validation split, if `scaled`
        temperature/fitted                  1 if a best temperature exists, else 0
        scaled/nll, scaled/ece, ...         of logits / temperature
        ece_reduction                       1 - scaled/ece / ece
        gap                                 accuracy on training examples without augmentation,
                                            minus this accuracy, if `gap_examples` is above 0

    The bins, plain and scaled, are stored as arrays for diagrams (`diagram_of`). Some models have
    no best temperature, such as one without mistakes on the validation split. Then
    `temperature/fitted` is 0, and the temperature and all scaled values are NaN.

    It computes in float32, whatever the training precision. Cost: a forward pass of the examples of
    the split, of the validation split, and of `gap_examples`.

    Attributes:
        num_bins: number of bins, of equal width and closed above.
        num_examples: how many examples of the split, from the first; 0: all.
        gap_examples: how many training examples for `gap`, from the first; 0: no gap.
        of: the split; 'validation' only if not `scaled`.

    Raises:
        UserError: `scaled`, and `of` is the split that the temperature is fitted on.
    """

    when: When
    batch_size: int = 500
    num_bins: int = 15
    scaled: bool = True
    num_examples: int = 0
    gap_examples: int = 0
    of: str = "test"
    kind: str = "evaluation"

    def __post_init__(self) -> None:
        if self.scaled and self.of == "validation":
            raise UserError(
                "train.Calibration: of='validation' with scaled=True would score the temperature "
                "on the examples that it is fitted on; give of='test', or scaled=False."
            )

    @property
    def name(self) -> str:
        return f"calibration-{self.of}"

    @property
    def split(self) -> str:
        """A split that the data must have besides `of`."""
        return "validation" if self.scaled else self.of

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ["accuracy", "error", "nll", *BINNED]
        if self.scaled:
            names += ["temperature", "temperature/fitted", "scaled/nll", "ece_reduction"]
            names += [f"scaled/{name}" for name in BINNED]
        names += ["gap"] if self.gap_examples else []
        return tuple(f"{self.of}/{name}" for name in names)

    def cost(self, spec: DataSpec) -> Cost:
        there = getattr(spec, f"num_{self.of}")
        sizes = [min(self.num_examples or there, there), min(self.gap_examples, spec.num_train)]
        sizes += [spec.num_validation] if self.scaled else []
        return Cost(sum(-(-size // self.batch_size) * self.batch_size for size in sizes))

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss = Classification(as_measured(subject.model), subject.state.variables)
        params = subject.state.params
        split = split_of(data, self.of)
        count, size = self.num_examples, self.batch_size
        logits = jnp.asarray(logits_of(loss, params, split, count, batch_size=size))
        split = split._replace(label=split.label[: len(logits)])
        right = scores.mean(jnp.argmax(logits, 1) == split.label)
        found = {"accuracy": right, "error": right._replace(value=1 - np.asarray(right.value))}
        plain, arrays = self._binned(logits, split.label)
        found |= plain
        if self.scaled:
            fit = fitted(loss, params, data)
            found["temperature/fitted"] = exact(fit is not None)
            found["temperature"] = fit.temperature if fit else _unknown()
            after: dict[str, Estimate] = dict.fromkeys(plain, _unknown())
            if fit is not None:
                # Equal rows of logits in validation and test (such as constant outputs) do not mean
                # that the temperature was fitted on the test examples.
                tempered = temperature.apply(fit, logits, allow_overlap=True)
                after, more = self._binned(tempered, split.label)
                arrays |= {f"scaled_{name}": x for name, x in more.items()}
            found |= {f"scaled/{name}": x for name, x in after.items()}
            ratio = np.asarray(after["ece"].value) / np.asarray(plain["ece"].value)
            found["ece_reduction"] = Estimate(1 - ratio, np.float32(np.nan), right.num_evaluations)
        if self.gap_examples:
            train = split_of(data, "train")
            own = logits_of(loss, params, train, self.gap_examples, batch_size=size)
            there = scores.mean(own.argmax(1) == np.asarray(train.label[: len(own)]))
            error = np.hypot(there.standard_error, right.standard_error)
            value = np.asarray(there.value) - np.asarray(right.value)
            found["gap"] = Estimate(value, error, len(own) + len(logits))
        return carry, Results(
            results({f"{self.of}/{name}": x for name, x in found.items()}).rows, arrays
        )

    def _binned(
        self, logits: jax.Array, label: jax.Array
    ) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
        bins = reliability.update(reliability.init(self.num_bins), logits, label)
        computed, drawn = reliability.compute(bins), reliability.diagram(bins)
        found = {"nll": scores.mean(scores.nll(logits, label))}
        return found | {n: computed[n] for n in BINNED}, {n: np.asarray(x) for n, x in
                                                          drawn._asdict().items()}  # fmt: skip


def diagram_of(arrays: Any, *, scaled: bool = False) -> Diagram | None:
    """The reliability diagram that `Calibration` stored, or None if there is none."""
    prefix = "scaled_" * scaled
    found = {name: arrays.get(f"{prefix}{name}") for name in Diagram._fields}
    return None if any(x is None for x in found.values()) else Diagram(**found)


def _unknown() -> Estimate:
    return Estimate(np.float32(np.nan), np.float32(np.nan), np.int32(0))
