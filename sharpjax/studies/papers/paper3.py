"""Decomposed learning and grokking (OpenReview LVuzwpMovE): H3.1 to H3.7.

Arms: `<task>-<model>-<fraction>`, as `add97-svd_25-50`. Tasks: add97 (addition modulo 97), add67,
sub97; fractions: 50, 65, 80, the per cent of all pairs that are trained on. Models: `dense`, and
`svd_100`, `svd_50`, `svd_25`, `svd_12`, in which the embedding and both linear layers are trained
as U diag(s) V^T of 100, 50, 25 and 12.5 per cent of the full rank. Ten seeds each; the split and
the initial weights follow from the seed. Epochs: `BUDGETS`.

Metrics, all at the last step of an arm:

    grok/epoch_of_best_test_accuracy    the first epoch, from 1, with the best test accuracy of the
                                        run
    grok/reached_full_test_accuracy     1 where that best is 100 per cent; 0: the run ended before,
                                        and the epoch is bounded by the budget (its `seen`)
    grok/best_test_accuracy             0 to 1
    grok/epoch_of_full_train_accuracy   the first epoch with a training accuracy of 100 per cent
    grok/delay                          epoch_of_best_test_accuracy - epoch_of_full_train_accuracy,
                                        of seeds that reached 100 per cent in both
    model/num_params

Training accuracy is that of an epoch's batches as they came, so that a seed may reach 100 per cent
of the test examples first; it has no delay then.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sharpjax.protocol.hypotheses import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative

DENSE = "dense"
MODELS = ("svd_100", "svd_50", "svd_25", "svd_12")
FRACTIONS = (50, 65, 80)
# Epochs by task, then by fraction.
BUDGETS: Mapping[str, Mapping[int, int]] = {
    "add97": {50: 40_000, 65: 20_000, 80: 10_000},
    "add67": {50: 120_000, 65: 60_000, 80: 25_000},
    "sub97": {50: 70_000, 65: 35_000, 80: 20_000},
}
EPOCH = Quantity("grok/epoch_of_best_test_accuracy")
ACCURACY = Quantity("grok/best_test_accuracy")
NUM_PARAMS = Quantity("model/num_params")

SOURCE = "OpenReview LVuzwpMovE"


class Cell(NamedTuple):
    """Ten models of the paper: best accuracy in per cent, and its epoch, with standard errors."""

    accuracy: float
    accuracy_error: float
    epoch: float
    epoch_error: float


# Table 1, addition modulo 97, by model and per cent of the pairs.
TABLE_1: Mapping[tuple[str, int], Cell] = {
    ("dense", 50): Cell(99.909, 0.051, 37886.4, 789.3),
    ("dense", 65): Cell(99.997, 0.003, 15302.7, 759.8),
    ("dense", 80): Cell(99.973, 0.015, 8049.8, 436.1),
    ("svd_100", 50): Cell(100.0, 0.0, 15270.0, 1066.7),
    ("svd_100", 65): Cell(100.0, 0.0, 4144.9, 527.5),
    ("svd_100", 80): Cell(100.0, 0.0, 494.7, 134.7),
    ("svd_50", 50): Cell(100.0, 0.0, 11827.9, 1114.6),
    ("svd_50", 65): Cell(100.0, 0.0, 3511.5, 367.8),
    ("svd_50", 80): Cell(100.0, 0.0, 720.2, 179.9),
    ("svd_25", 50): Cell(100.0, 0.0, 3646.2, 366.5),
    ("svd_25", 65): Cell(100.0, 0.0, 548.0, 93.1),
    ("svd_25", 80): Cell(100.0, 0.0, 233.8, 118.5),
    ("svd_12", 50): Cell(100.0, 0.0, 754.2, 259.6),
    ("svd_12", 65): Cell(100.0, 0.0, 446.8, 251.0),
    ("svd_12", 80): Cell(100.0, 0.0, 182.2, 42.3),
}


def epochs_of(fraction: int) -> str:
    """A column of table 1 in words.

    >>> epochs_of(80)
    '80% of the data: dense 8049.8 +- 436.1; svd 494.7, 720.2, 233.8, 182.2'
    """
    dense = TABLE_1[DENSE, fraction]
    others = ", ".join(str(TABLE_1[model, fraction].epoch) for model in MODELS)
    return f"{fraction}% of the data: dense {dense.epoch} +- {dense.epoch_error}; svd {others}"


def arm(task: str, model: str, fraction: int) -> str:
    """The name of an arm.

    >>> arm("add97", "svd_12", 50)
    'add97-svd_12-50'
    """
    return f"{task}-{model}-{fraction}"


def faster(task: str, models: Sequence[str] = MODELS, fractions: Sequence[int] = FRACTIONS):
    """Each decomposed model against the dense one, at each fraction: one family."""
    return tuple(
        Contrast(
            EPOCH, (arm(task, model, f), arm(task, DENSE, f)), "less", "mann-whitney",
            family=f"speed {task}",
        )
        for model, f in itertools.product(models, fractions)
    )  # fmt: skip


def ratio(task: str, fraction: int, direction: Alternative, null: float) -> Contrast:
    """Mean epoch at rank 12.5 per cent over that of the dense model."""
    groups = (arm(task, "svd_12", fraction), arm(task, DENSE, fraction))
    family = f"ratio {task}"
    return Contrast(EPOCH, groups, direction, "ratio-of-means", null=null, family=family)


def trend(task: str) -> Contrast:
    """The epoch falls with the rank, at half of the data."""
    groups = tuple(arm(task, model, 50) for model in MODELS)
    return Contrast(EPOCH, groups, "greater", "jonckheere", family=f"trend {task}")


def accurate(task: str) -> tuple[Contrast, ...]:
    """Best accuracy not lower than the dense model's by 0.1 point."""
    return tuple(
        Contrast(
            ACCURACY, (arm(task, model, f), arm(task, DENSE, f)), "greater", "non-inferiority",
            margin=0.001, family=f"accuracy {task}",
        )
        for model, f in itertools.product(MODELS, FRACTIONS)
    )  # fmt: skip


def hypotheses() -> tuple[Hypothesis, ...]:
    """H3.1 to H3.7."""
    task = "add97"
    smaller = tuple(
        Composite(
            (
                *(
                    # Both counts are the same for every seed: p is exactly 0 or 1.
                    Contrast(
                        NUM_PARAMS, (arm(task, model, f), arm(task, DENSE, f)), "less", "identical",
                        family=f"size {model} {f}",
                    )
                    for f in FRACTIONS
                ),
                *faster(task, (model,)),
            ),
            name=model,
        )
        for model in MODELS[1:]
    )  # fmt: skip
    return (
        Hypothesis(
            "H3.1",
            "Training U, s and V in place of W shortens the time to generalise.",
            faster(task),
            correction="holm",
            source=f"{SOURCE}; abstract, table 1",
            reference="; ".join(map(epochs_of, FRACTIONS)),
            refuted_if="any of the 12 cells is significantly slower than the dense model",
            uncertain="the seeds; how runs that end below 100 per cent are counted",
        ),
        Hypothesis(
            "H3.2",
            "At rank 12.5 per cent grokking is practically removed: 95 per cent fewer epochs.",
            tuple(ratio(task, f, "less", 0.05) for f in FRACTIONS),
            "all",
            "never",
            correction="holm",
            source=f"{SOURCE}; abstract, table 1",
            reference="98.00, 97.08 and 97.74 per cent fewer at 50, 65 and 80% of the data",
            refuted_if="at any fraction the reduction is significantly below 90 per cent",
            uncertain="the authors do not say what it means to eliminate grokking",
            refuting=tuple(ratio(task, f, "greater", 0.10) for f in FRACTIONS),
        ),
        Hypothesis(
            "H3.3",
            "A lower rank is faster when data is scarce.",
            (trend(task),),
            source=f"{SOURCE}; table 1",
            reference="15270.0, 11827.9, 3646.2, 754.2 epochs at ranks 100, 50, 25, 12.5%",
            refuted_if="there is a significant trend the other way",
            uncertain="at 80% of the data ranks 100 and 50% are in the other order",
        ),
        Hypothesis(
            "H3.4",
            "With more data the choice of rank matters less, in addition.",
            (
                Contrast(
                    EPOCH,
                    tuple(arm(task, m, f) for f in (80, 50) for m in ("svd_12", "svd_100")),
                    "greater",
                    "difference-of-ratios",
                ),
            ),
            source=f"{SOURCE}; table 1",
            reference="12.5% against 100%: 95.06 per cent fewer epochs at 50%, 63.17 at 80%",
            refuted_if="R(50%) - R(80%) is significantly below 0",
            uncertain="the paper says that subtraction does not show it; the two-sided test there "
            "belongs in a report as exploratory",
        ),
        Hypothesis(
            "H3.5",
            "Accuracy is not paid for speed.",
            accurate(task),
            correction="holm",
            source=f"{SOURCE}; table 1",
            reference="dense 99.909, 99.997, 99.973; svd 100 throughout",
            refuted_if="some rank is lower by more than 0.1 point, its interval beyond that",
        ),
        Hypothesis(
            "H3.6",
            "Fewer parameters suffice.",
            smaller,
            correction="holm",
            source=f"{SOURCE}; table 1",
            reference="91,107 parameters; 63,595, 31,683 and 15,955 at 50, 25 and 12.5%",
            refuted_if="H3.1 is refuted at any of these ranks",
        ),
        Hypothesis(
            "H3.7",
            "The effect carries over to addition modulo 67 and subtraction modulo 97.",
            tuple(_carried_over(task) for task in ("add67", "sub97")),
            "all",
            "never",
            correction="holm",
            source=f"{SOURCE}; table 2, appendix B",
            reference="held out until ours is registered and run",
            refuted_if="any cell of either task is significantly slower than the dense model",
            uncertain="the table's parameter counts are those of modulo 97",
            refuting=tuple(
                Contrast(
                    EPOCH, contrast.groups, "greater", "mann-whitney", family=contrast.family
                )
                for task in ("add67", "sub97")
                for contrast in faster(task)
            ),
        ),
    )  # fmt: skip


def _carried_over(task: str) -> Composite:
    members = (
        *faster(task),
        *(ratio(task, f, "less", 0.05) for f in FRACTIONS),
        trend(task),
        *accurate(task),
    )
    return Composite(members, "all", "never", name=task)


HYPOTHESES = hypotheses()
