"""Explicit regularisation, sharpness and calibration (OpenReview ZQTiGcykl6): H6.1 to H6.9.

Arms: `<data set>-<net>-<regulariser>[-es]`; regularisers baseline, augmentation, dropout,
weight_decay; `-es`: the checkpoint with the best validation accuracy. Ten seeds each (the paper has
three), shared by all arms: a correlation has one point for each model, and seeds are clusters. So
its p is about other seeds of these arms, not about other regularisers; the report's, over eight
means, is about neither and has little power.

Metrics, all at the last step of an arm:

    train/weight_norm, train/fisher_rao_norm, train/relative_flatness, train/noise_sharpness,
    train/igs                               larger: sharper (igs: arms -es only)
    train/nll                               the loss without regularisers, in eval mode
    test/error, test/ece
    test/scaled/ece, train/scaled/relative_flatness    after temperature scaling
    test/ece_reduction                      1 - scaled ECE / ECE
"""

import itertools
from collections.abc import Sequence

from sharpjax.protocol.hypotheses import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative

NETS = ("vgg19",)
CLASSES = ("vgg19", "resnet20", "vit")
DATA_SETS = ("cifar10", "cifar100")
REGULARISERS = ("baseline", "augmentation", "dropout", "weight_decay")
SHARPER = ("augmentation", "weight_decay")
MEASURES = ("weight_norm", "fisher_rao_norm", "relative_flatness", "noise_sharpness", "igs")
OF_MINIMA = MEASURES[1:]  # weight decay lowers the norm by itself

SOURCE = "OpenReview ZQTiGcykl6"
MISSING = "The regularisers, early stopping and VGG19 are not built as a study."


def pooled(place: str, measure: str) -> str:
    """Every model of a net and data set in which a measure was taken."""
    endings = ("-es",) if measure == "igs" else ("", "-es")
    return "|".join(f"{place}-{r}{end}" for r, end in itertools.product(REGULARISERS, endings))


def correlation(
    place: str, measure: str, other: str, direction: Alternative, null: float | None = None
) -> Contrast:
    """Spearman's rho of a measure of sharpness with another quantity, over those models."""
    scaled = other == "test/scaled/ece" and measure == "relative_flatness"
    name = f"train/scaled/{measure}" if scaled else f"train/{measure}"
    group = pooled(place, measure)
    quantity = (Quantity(name), Quantity(other))
    return Contrast(quantity, (group, group), direction, "spearman", null=null)


def _most(
    place: str,
    measures: Sequence[str],
    other: str,
    direction: Alternative,
    null: float | None = None,
    refuted_by: str = "majority",
) -> Composite:
    members = tuple(correlation(place, m, other, direction, null) for m in measures)
    return Composite(members, "majority", refuted_by, name=f"{place}, {other}")  # fmt: skip


def not_predicted(places: Sequence[str]) -> tuple[Composite, ...]:
    """H6.1: rho of sharpness and test error is below 0.3 for most measures."""
    return tuple(_most(p, MEASURES, "test/error", "less", 0.3, "never") for p in places)


def calibrated_are_sharper(places: Sequence[str]) -> tuple[Composite, ...]:
    """H6.2: rho of sharpness and ECE is negative for most measures, before and after scaling."""
    return tuple(
        _most(p, MEASURES, ece, "less", refuted_by="never") for p in places for ece in _ECES
    )


def calibrated_are_flatter(places: Sequence[str]) -> tuple[Composite, ...]:
    """What refutes H6.2."""
    positive = (
        Composite((correlation(p, "relative_flatness", ece, "greater"),), name=f"{p}, {ece}")
        for p in places
        for ece in _ECES
    )
    return (*positive, *(_most(p, MEASURES, e, "greater") for p in places for e in _ECES))


def regularised_are_sharper(places: Sequence[str]) -> tuple[Composite, ...]:
    """H6.3: augmentation and weight decay against the baseline."""
    return tuple(
        Composite(
            tuple(
                Contrast(
                    Quantity(f"train/{m}"), (f"{p}-{r}-es", f"{p}-baseline-es"), "greater",
                    "wilcoxon",
                )
                for m in OF_MINIMA
            ),
            "majority",
            "majority",
            name=f"{p}-{r}",
        )
        for p, r in itertools.product(places, SHARPER)
    )  # fmt: skip


_ECES = ("test/ece", "test/scaled/ece")


def hypotheses(
    nets: Sequence[str] = NETS,
    data_sets: Sequence[str] = DATA_SETS,
    classes: Sequence[str] = CLASSES,
) -> tuple[Hypothesis, ...]:
    """H6.1 to H6.8 for `nets`, and H6.9 over `classes` of models.

    H6.5 compares the first data set, the easy one, with the second.
    """
    pairs = itertools.product(nets if len(data_sets) > 1 else (), OF_MINIMA, SHARPER)
    places = [f"{data}-{net}" for data, net in itertools.product(data_sets, nets)]
    return (
        Hypothesis(
            "H6.1",
            "Flatness does not predict generalisation.",
            not_predicted(places),
            "all",
            "never",
            correction="holm",
            source=f"{SOURCE}; abstract, report",
            reference="rho with the error, CIFAR-10: weight norm -0.74, relative flatness -0.2, "
            "others 0.3 to 0.4 (8 means)",
            refuted_if="rho > 0, significantly, for most measures",
            uncertain="power at 8 means is low: only the weight norm is significant; over models, "
            "the report's FR, noise sharpness and IGS would count against it on CIFAR-10",
            missing=MISSING,
            refuting=tuple(
                _most(p, MEASURES, "test/error", "greater", refuted_by="never") for p in places
            ),
        ),
        Hypothesis(
            "H6.2",
            "Better calibrated models are sharper.",
            calibrated_are_sharper(places),
            "majority",
            "never",
            correction="holm",
            source=f"{SOURCE}; abstract, report",
            reference="rho of ECE and relative flatness, CIFAR-10: -0.75, and -0.78 after scaling",
            refuted_if="rho > 0, significantly, for relative flatness or for most measures",
            uncertain="significant for relative flatness alone; IGS has 4 points",
            missing=MISSING,
            refuting=calibrated_are_flatter(places),
        ),
        Hypothesis(
            "H6.3",
            "Augmentation and weight decay end sharper than the baseline.",
            regularised_are_sharper(places),
            correction="holm",
            source=f"{SOURCE}; report, tables 1 and 2",
            reference="relative flatness, CIFAR-10 and -100: baseline 2.2, 4.4; augmentation 12.1, "
            "78.4; weight decay 4.5, 28.2",
            refuted_if="significantly flatter on most measures",
            missing=MISSING,
        ),
        Hypothesis(
            "H6.4",
            "Augmentation has the lowest error and the lowest calibration error.",
            tuple(
                Contrast(
                    Quantity(metric), (f"{p}-augmentation-es", f"{p}-{r}-es"), "less",
                    "mann-whitney",
                )
                for p in places
                for metric in ("test/error", "test/ece")
                for r in REGULARISERS
                if r != "augmentation"
            ),
            correction="holm",
            source=f"{SOURCE}; report, tables 1 and 2",
            reference="CIFAR-10: error 11.1 % against 14.4, 13.9, 18.2; ECE 6.6 against 11.0, "
            "11.0, 10.8",
            refuted_if="another regulariser is significantly better on either",
            uncertain="after temperature scaling ECE is nearly tied with weight decay's",
            missing=MISSING,
        ),
        Hypothesis(
            "H6.5",
            "The pattern is stronger on the harder data set.",
            tuple(_harder(net, data_sets, measure, name) for net, measure, name in pairs),
            "majority",
            "majority",
            correction="holm",
            source=f"{SOURCE}; abstract, report",
            reference="relative flatness, augmentation over baseline: 5.5 on CIFAR-10, 17.8 on "
            "CIFAR-100",
            refuted_if="the interval lies below 0 for most measures",
            missing=MISSING if len(data_sets) > 1 else "It compares two data sets.",
        ),
        _scaling(places),
        Hypothesis(
            "H6.7",
            "Temperature scaling helps regularised models more.",
            tuple(
                Contrast(
                    Quantity("test/ece_reduction"),
                    ("|".join(f"{p}-{r}-es" for r in SHARPER),
                     "|".join(f"{p}-{r}-es" for r in ("baseline", "dropout"))),
                    "greater",
                    "auc",
                )
                for p in places
            ),
            correction="holm",
            source=f"{SOURCE}; report",
            reference="58 to 77 per cent against 29 to 31",
            refuted_if="significantly less",
            missing=MISSING,
        ),
        Hypothesis(
            "H6.8",
            "The training loss explains sharpness.",
            tuple(correlation(p, m, "train/nll", "greater") for p in places for m in _CONFOUNDED),
            "majority",
            "never",
            correction="holm",
            source=f"{SOURCE}; report",
            reference="rho with IGS 1.0, noise sharpness 0.86, relative flatness 0.67",
            refuted_if="rho is significantly below 0.3 for most measures",
            missing=MISSING,
            refuting=tuple(
                _most(p, _CONFOUNDED, "train/nll", "less", 0.3, "never") for p in places
            ),
        ),
        _over_classes(classes, data_sets),
    )  # fmt: skip


_CONFOUNDED = ("igs", "noise_sharpness", "relative_flatness")


def _harder(net: str, data_sets: Sequence[str], measure: str, regulariser: str) -> Contrast:
    easy, hard = data_sets[:2]
    groups = tuple(
        f"{data}-{net}-{name}-es" for data in (hard, easy) for name in (regulariser, "baseline")
    )
    return Contrast(Quantity(f"train/{measure}"), groups, "greater", "log-ratio-difference")


def _scaling(places: Sequence[str]) -> Hypothesis:
    def change(place: str, regulariser: str, metric: str, direction: Alternative) -> Contrast:
        part, name = metric.split("/")
        sides = (Quantity(f"{part}/scaled/{name}"), Quantity(metric))
        return Contrast(sides, (f"{place}-{regulariser}-es",) * 2, direction, "wilcoxon")

    pairs = tuple(itertools.product(places, REGULARISERS))
    return Hypothesis(
        "H6.6",
        "Temperature scaling improves calibration without flattening.",
        tuple(
            Composite(
                (
                    change(p, r, "test/ece", "less"),
                    change(p, r, "train/relative_flatness", "greater"),
                ),
                "all",
                "never",
                name=f"{p}-{r}",
            )
            for p, r in pairs
        ),
        "majority",
        "never",
        correction="holm",
        source=f"{SOURCE}; report, tables 1 to 4",
        reference="CIFAR-10, baseline: ECE 11.0 to 7.5 %, relative flatness 2.2 to 3.8",
        refuted_if="relative flatness is significantly less on most regularisers",
        uncertain="it falls for augmentation on CIFAR-100 (78.4 to 71.7)",
        missing=MISSING,
        refuting=(
            Composite(
                tuple(change(p, r, "train/relative_flatness", "less") for p, r in pairs),
                "majority",
                "never",
                name="flatter after scaling",
            ),
        ),
    )


def _over_classes(classes: Sequence[str], data_sets: Sequence[str]) -> Hypothesis:
    members, against = [], []
    for net in classes:
        places = [f"{data}-{net}" for data in data_sets]
        members.append(
            Composite(
                (
                    Composite(not_predicted(places), "all", "never", name=f"H6.1 in {net}"),
                    Composite(
                        calibrated_are_sharper(places), "majority", "never", name=f"H6.2 in {net}"
                    ),
                    Composite(regularised_are_sharper(places), name=f"H6.3 in {net}"),
                ),
                "all",
                "any",
                name=net,
            )
        )
        against += calibrated_are_flatter(places)
    return Hypothesis(
        "H6.9",
        "The pattern holds across classes of models.",
        tuple(members),
        "all",
        "any",
        correction="holm",
        source=f"{SOURCE}; abstract",
        status="weak",
        refuted_if="H6.2 or H6.3 is refuted in one class",
        uncertain="the results of ResNet20 and ViT are not known",
        missing="VGG19, ViT, the regularisers and early stopping are not built as a study.",
        refuting=tuple(against),
    )


HYPOTHESES = hypotheses()
