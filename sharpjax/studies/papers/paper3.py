"""Decomposed learning and grokking (OpenReview LVuzwpMovE): H3.1 to H3.7.

Arms: `<task>-<model>-<fraction>`, as `add97-svd_25-50`. Tasks: add97 (addition modulo 97), add67,
sub97. Fractions: 50, 65, 80, the per cent of all pairs that are trained on. Models: `dense`, and
`svd_100`, `svd_50`, `svd_25`, `svd_12`, whose embedding and two linear layers are trained as U
diag(s) V^T of 100, 50, 25 and 12.5 per cent of the full rank. Ten seeds each; the seed determines
the split and the initial weights. Epochs: `BUDGETS`.

Metrics, all at the last step of an arm:

    grok/epoch_of_best_test_accuracy    the first epoch, from 1, with the best test accuracy of the
                                        run
    grok/reached_full_test_accuracy     1 if that best is 100 per cent; 0: the run ended before, and
                                        the epoch is bounded by the budget (its `seen`)
    grok/best_test_accuracy             0 to 1
    grok/epoch_of_full_train_accuracy   the first epoch with a training accuracy of 100 per cent
    grok/delay                          epoch_of_best_test_accuracy - epoch_of_full_train_accuracy,
                                        of seeds that reached 100 per cent in both
    model/num_params

Training accuracy is that of the batches of an epoch as they came. So a seed may reach 100 per cent
of the test examples first; it then has no delay.
"""

import itertools
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.studies.papers import shorthand
from sharpjax.studies.papers.shorthand import all_of

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
ask = partial(shorthand.ask, source=SOURCE, correction="holm")


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


def budgets() -> dict[str, int]:
    """The paper's epochs, by the names of its arms."""
    return {
        arm(task, model, fraction): epochs
        for task, by_fraction in BUDGETS.items()
        for fraction, epochs in by_fraction.items()
        for model in (DENSE, *MODELS)
    }


def pair(task: str, model: str, fraction: int) -> tuple[str, str]:
    """A decomposed model, and the dense one trained on the same data."""
    return arm(task, model, fraction), arm(task, DENSE, fraction)


def against_dense(
    task: str, models: Iterable[str], family: str, quantity: Quantity, *test: Any, **more: Any
) -> tuple[Contrast, ...]:
    """Each decomposed model against the dense one, at each fraction; together one family."""
    return tuple(
        Contrast(quantity, pair(task, model, f), *test, family=f"{family} {task}", **more)
        for model, f in itertools.product(models, FRACTIONS)
    )


def faster(task: str, models: Iterable[str] = MODELS, direction: Alternative = "less"):
    """The epoch is earlier than the dense model's."""
    return against_dense(task, models, "speed", EPOCH, direction, "mann-whitney")


def accurate(task: str) -> tuple[Contrast, ...]:
    """Best accuracy is not lower than the dense model's by more than 0.1 point."""
    test = ("greater", "non-inferiority")
    return against_dense(task, MODELS, "accuracy", ACCURACY, *test, margin=0.001)


def ratios(task: str, direction: Alternative = "less", null: float = 0.05) -> tuple[Contrast, ...]:
    """Ratio of the mean epoch at rank 12.5 per cent to that of the dense model."""
    test = (direction, "ratio-of-means")
    return against_dense(task, ["svd_12"], "ratio", EPOCH, *test, null=null)


def trend(task: str) -> Contrast:
    """The epoch is earlier at lower rank, with half of the data."""
    groups = tuple(arm(task, model, 50) for model in MODELS)
    return Contrast(EPOCH, groups, "greater", "jonckheere", family=f"trend {task}")


def more_data(task: str, direction: Alternative) -> Contrast:
    """How much the lowest rank saves compared with the full one, with more data and with less."""
    groups = tuple(arm(task, model, f) for f in (80, 50) for model in ("svd_12", "svd_100"))
    return Contrast(EPOCH, groups, direction, "difference-of-ratios")


def smaller(task: str, model: str) -> Composite:
    """Fewer parameters, and still faster."""
    fewer = (
        # Both counts are the same for every seed: p is exactly 0 or 1.
        Contrast(NUM_PARAMS, pair(task, model, f), "less", "identical", family=f"size {model} {f}")
        for f in FRACTIONS
    )
    return Composite((*fewer, *faster(task, (model,))), name=model)


HYPOTHESES: tuple[Hypothesis, ...] = (
    ask(
        "H3.1 Training U, s and V in place of W shortens the time to generalise.",
        faster("add97"),
        "abstract, table 1",
        reference="; ".join(map(epochs_of, FRACTIONS)),
        refuted_if="any of the 12 cells is significantly slower than the dense model",
        uncertain="the seeds; how runs that end below 100 per cent are counted",
    ),
    ask(
        "H3.2 At rank 12.5 per cent grokking is practically removed: 95 per cent fewer epochs.",
        all_of(ratios("add97")),
        "abstract, table 1",
        reference="98.00, 97.08 and 97.74 per cent fewer at 50, 65 and 80% of the data",
        refuted_if="at any fraction the reduction is significantly below 90 per cent",
        refuting=ratios("add97", "greater", 0.10),
        uncertain="the authors do not say what it means to eliminate grokking",
    ),
    ask(
        "H3.3 A lower rank is faster when data is scarce.",
        [trend("add97")],
        "table 1",
        correction="none",
        reference="15270.0, 11827.9, 3646.2, 754.2 epochs at ranks 100, 50, 25, 12.5%",
        refuted_if="there is a significant trend the other way",
        uncertain="at 80% of the data ranks 100 and 50% are in the other order",
    ),
    ask(
        "H3.4 With more data the choice of rank matters less, in addition.",
        [more_data("add97", "greater")],
        "table 1",
        correction="none",
        reference="12.5% against 100%: 95.06 per cent fewer epochs at 50%, 63.17 at 80%",
        refuted_if="R(50%) - R(80%) is significantly below 0",
        uncertain="the paper says that subtraction does not show it; the two-sided test there "
        "belongs in a report as exploratory",
    ),
    ask(
        "H3.5 Accuracy is not paid for speed.",
        accurate("add97"),
        "table 1",
        reference="dense 99.909, 99.997, 99.973; svd 100 throughout",
        refuted_if="some rank is lower by more than 0.1 point, its interval beyond that",
    ),
    ask(
        "H3.6 Fewer parameters suffice.",
        [smaller("add97", model) for model in MODELS[1:]],
        "table 1",
        reference="91,107 parameters; 63,595, 31,683 and 15,955 at 50, 25 and 12.5%",
        refuted_if="H3.1 is refuted at any of these ranks",
    ),
    ask(
        "H3.7 The effect carries over to addition modulo 67 and subtraction modulo 97.",
        all_of(
            all_of((*faster(task), *ratios(task), trend(task), *accurate(task)), task)
            for task in ("add67", "sub97")
        ),
        "table 2, appendix B",
        reference="held out until ours is registered and run",
        refuted_if="any cell of either task is significantly slower than the dense model",
        refuting=(c for task in ("add67", "sub97") for c in faster(task, direction="greater")),
        uncertain="the table's parameter counts are those of modulo 97",
    ),
)
