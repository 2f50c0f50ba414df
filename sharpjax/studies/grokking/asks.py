"""What a run of the grokking study is asked, by its arms.

H3.1 to H3.7 are the paper's, each over all of its cells. A form with fewer arms cannot answer them;
it says which arms are lacking, and is asked the same of the cells that it has, under an id of their
own, as `H3.1 add97-80`. Beside them, of every form with dense and decomposed arms:

    Q.1 to Q.4  (ranks of 12.5, 25, 50 and 100 per cent) the time to generalise is shorter than the
                dense model's, by the log-rank test: seeds that have not generalised by the end of
                the budget, the same in both arms, are censored there
    C.1 to C.4  the curvature differs before the accuracy does: see `curvature_first`
    D.1         of subtraction alone, H3.4 in either direction
"""

import dataclasses
from collections.abc import Mapping, Sequence

from sharpjax.protocol.hypotheses import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative
from sharpjax.studies.papers import cells, paper3
from sharpjax.studies.papers.paper3 import DENSE, MODELS, SOURCE

TIME = Quantity("grok/epochs", seen="grok/reached_full_test_accuracy")
RANKS = {"svd_100": "100", "svd_50": "50", "svd_25": "25", "svd_12": "12.5"}
# When the curvature is looked at: before any model of the paper, or of the trial, generalises.
EARLY_EPOCH = 10
ACCURACY_MARGIN = 0.1
# C.3 and C.4 are of a review after these arms had been registered, and are not asked of them.
SEALED_WITHOUT = ("add97", "80")


def asked_of(budgets: Mapping[str, int], measured: str) -> tuple[Hypothesis, ...]:
    """All hypotheses of a config.

    Args:
        budgets: epochs by arm; arms are named as `papers.paper3` names them.
        measured: the measurement set, as `train[:512]`.
    """
    published = {name: _published(name) for name in budgets}
    differs = {
        name: f"{name} has {budgets[name]:,} epochs and not the paper's {epochs:,}."
        for name, epochs in published.items()
        if epochs not in (None, budgets[name])
    }
    return (
        *cells.asked_of(budgets, paper3.HYPOTHESES, cell=_cell, differs=differs),
        *more_data(list(budgets)),
        *survival(budgets),
        *curvature_first(list(budgets), measured),
    )


def _published(name: str) -> int | None:
    """The paper's budget of an arm; None for an arm that is not in the paper."""
    task, _, fraction = _split(name)
    return paper3.BUDGETS.get(task, {}).get(int(fraction)) if fraction.isdecimal() else None


def more_data(names: Sequence[str]) -> tuple[Hypothesis, ...]:
    """D.1: H3.4 of subtraction, for which the paper says that there is no such effect."""
    (whole,) = (h for h in paper3.HYPOTHESES if h.id == "H3.4")
    (contrast,) = whole.contrasts
    assert isinstance(contrast, Contrast)
    groups = tuple(name.replace("add97", "sub97") for name in contrast.groups)
    if not all(name in names for name in groups):
        return ()
    return (
        Hypothesis(
            "D.1",
            "In subtraction more data changes how much the choice of rank matters.",
            (dataclasses.replace(contrast, groups=groups, direction="two-sided"),),
            source=f"{SOURCE}, which sees no such effect",
            status="design",
            refuted_if="never: a difference that is not seen is inconclusive",
        ),
    )


def survival(budgets: Mapping[str, int]) -> tuple[Hypothesis, ...]:
    """Q.1 to Q.4: time to generalise, with censoring.

    The log-rank test wants both arms to be watched equally long; others are not compared.
    """
    asked = []
    for number, model in enumerate(reversed(MODELS), 1):
        pairs = [(a, b) for a, b in _pairs(list(budgets), model) if budgets[a] == budgets[b]]
        if pairs:
            asked.append(
                Hypothesis(
                    f"Q.{number}",
                    f"At a rank of {RANKS[model]} per cent seeds generalise earlier than dense.",
                    tuple(Contrast(TIME, pair, "less", "log-rank") for pair in pairs),
                    family="survival",
                    correction="holm",
                    source=f"{SOURCE}; table 1, read as times that may be censored",
                    status="design",
                    refuted_if="at some task and fraction they do so significantly later",
                )
            )
    return tuple(asked)


def curvature_first(names: Sequence[str], measured: str) -> tuple[Hypothesis, ...]:
    """C.1 to C.4: after `EARLY_EPOCH` epochs a decomposed and the dense model have the same test
    accuracy within a tenth, and not the same curvature in W.

    C.1 and C.3 are of the top Hessian eigenvalue, and claim no direction; C.2 and C.4 of adaptive
    sharpness. C.1 and C.2 compare the lowest rank, whose truncation alone makes a difference at
    epoch 0, before any training (seen in a trial with seeds 100 to 102, after which C.2 was given
    its direction). C.3 and C.4 compare the full rank, which starts as the very function of the
    dense model with the very same W: what differs there, training has made.
    """
    accuracy = Quantity("test/accuracy", at=EARLY_EPOCH)
    asked = []
    questions: tuple[tuple[str, str, str, str, Alternative], ...] = (
        ("C.1", "svd_12", "hessian/lambda_1", "top Hessian eigenvalue differs from", "two-sided"),
        ("C.2", "svd_12", "adaptive_sharpness", "adaptive sharpness is lower than", "less"),
        ("C.3", "svd_100", "hessian/lambda_1", "top Hessian eigenvalue differs from", "two-sided"),
        ("C.4", "svd_100", "adaptive_sharpness", "adaptive sharpness differs from", "two-sided"),
    )
    for id, model, measure, words, direction in questions:
        pairs = _pairs(names, model)
        if model == "svd_100":
            pairs = [pair for pair in pairs if _cell(pair[0]) != SEALED_WITHOUT]
        if not pairs:
            continue
        sharp = Quantity(f"{measured}/{measure}", at=EARLY_EPOCH)
        compared = tuple(
            Composite(
                (
                    Contrast(sharp, pair, direction, "mann-whitney", family="curvature"),
                    Contrast(
                        accuracy, pair, "two-sided", "tost", margin=ACCURACY_MARGIN, family="early"
                    ),
                ),
                name=pair[0],
            )
            for pair in pairs
        )
        slower = ", or the sharpness is significantly higher" if direction == "less" else ""
        asked.append(
            Hypothesis(
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
        )
    return tuple(asked)


def metrics(measured: str, *, in_factors: bool) -> tuple[str, ...]:
    """What a run measures of its arms, so that a hypothesis that asks for something else is refused
    before the run."""
    sets = (measured, f"{measured}/factors") if in_factors else (measured,)
    return (
        *(f"grok/{name}" for name in _OUTCOMES),
        *("model/num_params", "train/alive"),
        *(f"{split}/{name}" for split in ("train", "test") for name in ("loss", "accuracy")),
        *(f"{where}/{name}" for where in sets for name in _OF_A_SET),
        *(f"weights/{name}" for name in _OF_WEIGHTS),
    )


_OUTCOMES = (
    *("epoch_of_best_test_accuracy", "reached_full_test_accuracy", "best_test_accuracy"),
    *("epoch_of_full_train_accuracy", "delay", "epochs"),
)
_OF_A_SET = (
    *("adaptive_sharpness", "hessian/lambda_1", "hessian/lambda_1_residual"),
    *("hessian/num_products", "hessian/trace"),
)
_OF_WEIGHTS = (
    *("norm", "parameter_norm", "effective_rank", "stable_rank", "orthogonality_error"),
    *("fourier/concentration", "fourier/gini"),
)


def _pairs(names: Sequence[str], model: str) -> list[tuple[str, str]]:
    """Each arm of a model with the dense one of its task and fraction."""
    pairs = []
    for name in names:
        task, own, fraction = _split(name)
        dense = f"{task}-{DENSE}-{fraction}"
        if own == model and dense in names:
            pairs.append((name, dense))
    return pairs


def _cell(name: str) -> tuple[str, ...]:
    """Task and fraction."""
    return _split(name)[::2]


def _split(name: str) -> tuple[str, str, str]:
    parts = name.split("-")
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else (name, "", "")
