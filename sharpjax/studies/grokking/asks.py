"""The hypotheses of the grokking study; a run is asked those that its arms allow.

H3.1 to H3.7 are the paper's, each over all of its cells. A form with fewer arms cannot answer them.
It then says which arms are lacking, and is asked the same of the cells that it has, under a
separate id such as `H3.1 add97-80`. Every form with dense and decomposed arms is also asked:

    Q.1 to Q.4  (ranks of 12.5, 25, 50 and 100 per cent) the time to generalise is shorter than the
                dense model's, by the log-rank test. Seeds that have not generalised by the end of
                the budget, which is the same in both arms, are censored there
    C.1 to C.4  the curvature differs before the accuracy does: see `curvature_first`
    D.1         H3.4 for subtraction, in either direction
    L.1 to L.3  for forms with dense models at the logit scale of decomposed ones (`dense_as_25`):
                does the scale of the logits explain the effect? See `logit_scale`
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.studies.papers import cells, paper3
from sharpjax.studies.papers.paper3 import DENSE, SOURCE

TIME = Quantity("grok/epochs", seen="grok/reached_full_test_accuracy")
RANKS = {"svd_12": "12.5", "svd_25": "25", "svd_50": "50", "svd_100": "100"}
# When curvature is compared: before any model of the paper or of the trial generalises.
EARLY_EPOCH = 10
EARLY_ACCURACY = Quantity("test/accuracy", at=EARLY_EPOCH)
CURVATURE: Sequence[tuple[str, str, str, str, Alternative]] = (
    ("C.1", "svd_12", "hessian/lambda_1", "top Hessian eigenvalue differs from", "two-sided"),
    ("C.2", "svd_12", "adaptive_sharpness", "adaptive sharpness is lower than", "less"),
    ("C.3", "svd_100", "hessian/lambda_1", "top Hessian eigenvalue differs from", "two-sided"),
    ("C.4", "svd_100", "adaptive_sharpness", "adaptive sharpness differs from", "two-sided"),
)
AS = f"-{DENSE}_as_"  # in the names of dense arms at the logit scale of an svd arm
# C.3 and C.4 come from a review after these arms had been registered, so they are not asked here.
SEALED_WITHOUT = ("add97", "80")


def asked_of(budgets: Mapping[str, int], measured: str) -> tuple[Hypothesis, ...]:
    """All hypotheses of a config.

    Args:
        budgets: epochs by arm; arms are named as `papers.paper3` names them.
        measured: the measurement set, as `train[:512]`.
    """
    differs = {
        name: f"{name} has {budgets[name]:,} epochs and not the paper's {epochs:,}."
        for name, epochs in paper3.budgets().items()
        if budgets.get(name, epochs) != epochs
    }
    return (
        *cells.asked_of(budgets, paper3.HYPOTHESES, cell=_cell, differs=differs),
        *more_data(budgets),
        *survival(budgets),
        *curvature_first(budgets, measured),
        *logit_scale(budgets),
    )


def more_data(names: Collection[str]) -> Iterator[Hypothesis]:
    """D.1: H3.4 for subtraction, where the paper says that there is no such effect."""
    contrast = paper3.more_data("sub97", "two-sided")
    if set(contrast.groups) <= set(names):
        yield Hypothesis(
            "D.1",
            "In subtraction more data changes how much the choice of rank matters.",
            (contrast,),
            source=f"{SOURCE}, which sees no such effect",
            status="design",
            refuted_if="never: a difference that is not seen is inconclusive",
        )


def survival(budgets: Mapping[str, int]) -> Iterator[Hypothesis]:
    """Q.1 to Q.4: time to generalise, with censoring.

    The log-rank test needs both arms to be watched equally long. Arms with different budgets are
    not compared.
    """
    for number, (model, rank) in enumerate(RANKS.items(), 1):
        pairs = [(a, b) for a, b in _pairs(budgets, model) if budgets[a] == budgets[b]]
        if pairs:
            yield Hypothesis(
                f"Q.{number}",
                f"At a rank of {rank} per cent seeds generalise earlier than dense.",
                tuple(Contrast(TIME, pair, "less", "log-rank") for pair in pairs),
                family="survival",
                correction="holm",
                source=f"{SOURCE}; table 1, read as times that may be censored",
                status="design",
                refuted_if="at some task and fraction they do so significantly later",
            )


def curvature_first(names: Collection[str], measured: str) -> Iterator[Hypothesis]:
    """C.1 to C.4: after `EARLY_EPOCH` epochs a decomposed and the dense model have the same test
    accuracy within a tenth, but not the same curvature in W.

    C.1 and C.3 are about the top Hessian eigenvalue, and claim no direction. C.2 and C.4 are about
    adaptive sharpness. C.1 and C.2 compare the lowest rank, whose truncation alone makes a
    difference at epoch 0, before any training. (This was seen in a trial with seeds 100 to 104; C.2
    was given its direction after it.) C.3 and C.4 compare the full rank, which starts as exactly
    the same function with the same W as the dense model. Any difference there comes from training.
    """
    for id, model, measure, words, direction in CURVATURE:
        sharp = Quantity(f"{measured}/{measure}", at=EARLY_EPOCH)
        compared = tuple(
            Composite(
                (
                    Contrast(sharp, pair, direction, "mann-whitney", family="curvature"),
                    Contrast(EARLY_ACCURACY, pair, "two-sided", "tost", margin=0.1, family="early"),
                ),
                name=pair[0],
            )
            for pair in _pairs(names, model)
            if model != "svd_100" or _cell(pair[0]) != SEALED_WITHOUT
        )
        slower = ", or the sharpness is significantly higher" if direction == "less" else ""
        if compared:
            yield Hypothesis(
                id,
                f"After {EARLY_EPOCH} epochs the {words} the dense model's at a rank of "
                f"{RANKS[model]} per cent, and the test accuracy does not differ yet.",
                compared,
                correction="holm",
                source=f"{SOURCE} measures no curvature; a question that it leaves open",
                status="design",
                refuted_if="at some task and fraction the test accuracies already differ by more "
                f"than a tenth{slower}",
            )


def logit_scale(budgets: Mapping[str, int]) -> Iterator[Hypothesis]:
    """L.1 to L.3: does decomposition save epochs because of the scale of the logits?

    Under cross-entropy, matching the effective logit scale recovers 83 to 89 per cent of the delay
    that larger weights cause (arXiv 2606.18465), and truncated matrices give smaller logits.
    `<task>-dense_as_<rank>-<fraction>` is the dense model with a temperature, fixed before any
    training, at which its logits start as large as those of `svd_<rank>`.

    If the scale were the cause, the matched dense model would save what the decomposed one saves.
    That is 87 and 98 per cent (rank 12.5 and 25 per cent, at 80 per cent of the pairs). 83 per cent
    of this would leave .28 and .19 of the epochs. The null of L.1, one half, is far from these and
    from 1. L.2 asks what is left of the effect at equal scale. At full rank the scale is equal
    without a temperature, because the same function starts (Q.4). To explain Q.4 by the scale, the
    logits would have to become smaller soon; L.3 asks whether they do.
    """
    matched = [name for name in budgets if AS in name]
    fields: dict[str, Any] = {
        "family": "logit scale",
        "correction": "holm",
        "source": "arXiv 2606.18465, a control of OpenReview LVuzwpMovE",
        "status": "design",
    }
    equal, halves = (
        [pair for pair in pairs if len({budgets.get(name) for name in pair}) == 1]
        for pairs in (
            [(name.replace(AS, "-svd_"), name) for name in matched],
            [(name, re.sub(f"{AS}[^-]+", f"-{DENSE}", name)) for name in matched],
        )
    )
    if halves:
        test = ("less", "paired-ratio-of-means")
        yield Hypothesis(
            "L.1",
            "At the logit scale of decomposed models the dense model takes less than half of its "
            "epochs.",
            tuple(Contrast(paper3.EPOCH, pair, *test, null=0.5) for pair in halves),
            refuted_if="at some rank it takes significantly more than half: the scale explains "
            "less than about half of what decomposition saves",
            **fields,
        )
    if equal:
        yield Hypothesis(
            "L.2",
            "At equal logit scale decomposed seeds still generalise earlier than dense ones.",
            tuple(Contrast(TIME, pair, "less", "log-rank") for pair in equal),
            refuted_if="at some rank they do so significantly later",
            **fields,
        )
    if matched and (pairs := _pairs(budgets, "svd_100")):
        scale = Quantity("logits/scale", at=EARLY_EPOCH)
        yield Hypothesis(
            "L.3",
            f"After {EARLY_EPOCH} epochs the logits are smaller at full rank than in the dense "
            "model, with which they started.",
            tuple(Contrast(scale, pair, "less", "wilcoxon") for pair in pairs),
            refuted_if="they are significantly larger: their scale would then make it slower",
            **fields,
        )


def _pairs(names: Collection[str], model: str) -> list[tuple[str, str]]:
    """Each arm of a model, with the dense arm of the same task and fraction."""
    own = f"-{model}-"
    pairs = ((name, name.replace(own, f"-{DENSE}-")) for name in names if own in name)
    return [(name, dense) for name, dense in pairs if dense in names]


def _cell(name: str) -> tuple[str, ...]:
    """Task and fraction."""
    return tuple(name.split("-")[::2])
