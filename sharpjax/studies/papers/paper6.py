"""Explicit regularisation, sharpness and calibration (OpenReview ZQTiGcykl6): H6.1 to H6.9.

Arms: `<data set>-<net>-<regulariser>[-es]`. The regularisers are baseline, augmentation, dropout
and weight_decay; `-es` is the checkpoint with the best validation accuracy. Ten seeds each (the
paper has three), shared by all arms. A correlation has one point for each model, and seeds are
clusters. Its p is therefore about other seeds of these arms, not about other regularisers. The
report's p, over eight means, is about neither and has little power.

Metrics, all at the last step of an arm:

    train/weight_norm, train/fisher_rao_norm, train/relative_flatness, train/noise_sharpness,
    train/igs                               larger: sharper (igs: only arms -es)
    train/nll                               the loss without regularisers, in eval mode
    test/error, test/ece
    test/scaled/ece, train/scaled/relative_flatness    after temperature scaling
    test/ece_reduction                      1 - scaled ECE / ECE
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.studies.papers import shorthand
from sharpjax.studies.papers.shorthand import all_of, in_family, most, names, same_arm, vote

NETS = ("vgg19",)
CLASSES = ("vgg19", "resnet20", "vit")
DATA_SETS = ("cifar10", "cifar100")
REGULARISERS = ("baseline", "augmentation", "dropout", "weight_decay")
SHARPER = ("augmentation", "weight_decay")
MEASURES = ("weight_norm", "fisher_rao_norm", "relative_flatness", "noise_sharpness", "igs")
OF_MINIMA = MEASURES[1:]  # weight decay lowers the norm by itself
CONFOUNDED = ("igs", "noise_sharpness", "relative_flatness")
FLATNESS = "train/relative_flatness"
ECES = ("test/ece", "test/scaled/ece")

# Tables 1 and 2 of the report, with early stopping, means of three seeds: by arm, then by metric.
# ECE has 10 bins there.
TABLES: Mapping[str, Mapping[str, float]] = {
    f"{arm}-es": dict(zip(
        ("test/error", "test/ece", "test/scaled/ece", "train/fisher_rao_norm",
         "train/relative_flatness", "train/scaled/relative_flatness"), values, strict=True))
    for arm, values in {
        "cifar10-vgg19-baseline": (0.144, 0.110, 0.075, 0.8, 2.2, 3.8),
        "cifar10-vgg19-augmentation": (0.111, 0.066, 0.027, 2.3, 12.1, 13.2),
        "cifar10-vgg19-dropout": (0.139, 0.110, 0.076, 0.8, 1.2, 2.9),
        "cifar10-vgg19-weight_decay": (0.182, 0.108, 0.029, 3.9, 4.5, 6.2),
        "cifar100-vgg19-baseline": (0.499, 0.384, 0.271, 0.6, 4.4, 19.7),
        "cifar100-vgg19-augmentation": (0.395, 0.200, 0.061, 5.4, 78.4, 71.7),
        "cifar100-vgg19-dropout": (0.474, 0.362, 0.249, 1.1, 6.9, 17.0),
        "cifar100-vgg19-weight_decay": (0.498, 0.250, 0.059, 6.7, 28.2, 32.3),
    }.items()
}  # fmt: skip
# Spearman's rho over the eight means of CIFAR-10 (four for igs), if the report gives it.
CORRELATIONS: Mapping[tuple[str, str], float] = {
    ("train/weight_norm", "test/error"): -0.74,
    ("train/relative_flatness", "test/error"): -0.2,
    ("train/relative_flatness", "test/ece"): -0.75,
    ("train/scaled/relative_flatness", "test/scaled/ece"): -0.78,
    ("train/igs", "test/ece"): -0.74,
    ("train/igs", "test/scaled/ece"): -0.80,
    ("train/igs", "train/nll"): 1.0,
    ("train/noise_sharpness", "train/nll"): 0.86,
    ("train/relative_flatness", "train/nll"): 0.67,
}

ask = partial(shorthand.ask, source="OpenReview ZQTiGcykl6", correction="holm")


def reported(*sides: tuple[str, str], log: bool = False) -> float | None:
    """The report's number for metrics of arms: the first less the second; None if it has none.

    Args:
        sides: pairs of arm and metric, one, two or four.
        log: of four, log(a/b) - log(c/d).

    >>> regularised, plain = (f"cifar10-vgg19-{r}-es" for r in ("augmentation", "baseline"))
    >>> reported((regularised, FLATNESS), (plain, FLATNESS))
    9.9
    """
    means = [TABLES.get(arm, {}).get(metric, math.nan) for arm, metric in sides]
    if any(map(math.isnan, means)):
        return None
    signed = zip((1, -1, -1, 1), map(math.log, means) if log else means, strict=False)
    return round(sum(sign * mean for sign, mean in signed), 4)


def correlation(
    place: str, measure: str, other: str, direction: Alternative, null: float | None = None
) -> Contrast:
    """Spearman's rho of a measure of sharpness with another quantity, over every model of a net and
    data set for which the measure exists."""
    scaled = other == "test/scaled/ece" and measure == "relative_flatness"
    name = f"train/scaled/{measure}" if scaled else f"train/{measure}"
    endings = ["-es"] if measure == "igs" else ["", "-es"]
    group = "|".join(f"{place}-{r}{end}" for r, end in itertools.product(REGULARISERS, endings))
    said = CORRELATIONS.get((name, other)) if place == "cifar10-vgg19" else None
    return same_arm(group, (name, other), direction, "spearman", null=null, reported=said)


def over_measures(
    rule: Callable[..., Composite], place: str, other: str, *than: Any, measures=MEASURES
) -> Composite:
    """The correlations of several measures with one quantity, as votes."""
    return rule((correlation(place, m, other, *than) for m in measures), f"{place}, {other}")


def not_predicted(places: Iterable[str]) -> list[Composite]:
    """H6.1: rho of sharpness and test error is below 0.3 for most measures."""
    return [over_measures(most, p, "test/error", "less", 0.3) for p in places]


def calibrated_are_sharper(places: Iterable[str]) -> list[Composite]:
    """H6.2: rho of sharpness and ECE is negative for most measures, before and after scaling."""
    return [over_measures(most, p, ece, "less") for p in places for ece in ECES]


def calibrated_are_flatter(places: Sequence[str]) -> tuple[Composite, ...]:
    """What refutes H6.2."""
    pairs = [(p, ece) for p in places for ece in ECES]
    return (
        *(
            Composite((correlation(p, "relative_flatness", ece, "greater"),), name=f"{p}, {ece}")
            for p, ece in pairs
        ),
        *(over_measures(vote, p, ece, "greater") for p, ece in pairs),
    )


def regularised_are_sharper(places: Iterable[str]) -> Iterator[Composite]:
    """H6.3: augmentation and weight decay against the baseline."""
    for place, regulariser in itertools.product(places, SHARPER):
        groups = names([place], [regulariser, "baseline"], ["es"])
        sharper = (against(f"train/{m}", groups, "greater") for m in OF_MINIMA)
        yield vote(sharper, f"{place}-{regulariser}")


def against(metric: str, groups: tuple[str, ...], direction: Alternative) -> Contrast:
    """One arm against another, seed by seed."""
    # The report's Fisher-Rao norm has a factor of 6 at any depth: only ratios are comparable.
    known = "fisher_rao_norm" not in metric
    said = reported(*((arm, metric) for arm in groups)) if known else None
    return Contrast(Quantity(metric), groups, direction, "wilcoxon", reported=said)


def scaled(arm: str, metric: str, direction: Alternative) -> Contrast:
    """A quantity after temperature scaling against before."""
    part, name = metric.split("/")
    arm, after = f"{arm}-es", f"{part}/scaled/{name}"
    said = reported((arm, after), (arm, metric))
    return same_arm(arm, (after, metric), direction, "wilcoxon", reported=said)


def in_class(net: str, places: Sequence[str]) -> Composite:
    """H6.1 to H6.3 for one class of models, each with its own correction."""
    first, second, third = (f"{name} in {net}" for name in ("H6.1", "H6.2", "H6.3"))
    members = (
        all_of(in_family(not_predicted(places), first), first),
        most(in_family(calibrated_are_sharper(places), second), second),
        Composite(in_family(regularised_are_sharper(places), third), name=third),
    )
    return Composite(members, name=net)


def hypotheses(
    nets: Sequence[str] = NETS,
    data_sets: Sequence[str] = DATA_SETS,
    classes: Sequence[str] = CLASSES,
) -> tuple[Hypothesis, ...]:
    """H6.1 to H6.8 for `nets`, and H6.9 over `classes` of models.

    H6.5 compares the first data set, which is the easy one, with the second.
    """
    places = names(data_sets, nets)
    arms = names(places, REGULARISERS)
    of_class = {net: names(data_sets, [net]) for net in classes}
    several = len(data_sets) > 1

    def lowest(place: str, metric: str) -> list[Contrast]:
        """Augmentation against each of the others."""
        others = [r for r in REGULARISERS if r != "augmentation"]
        pairs = (names([place], ["augmentation", r], ["es"]) for r in others)
        return [against(metric, pair, "less") for pair in pairs]

    def harder(net: str, measure: str, regulariser: str) -> Contrast:
        """The regulariser's ratio to the baseline on the hard data set, against the easy one."""
        easy, hard = data_sets[:2]
        groups = names([hard, easy], [net], [regulariser, "baseline"], ["es"])
        metric, test = f"train/{measure}", "paired-log-ratio-difference"
        said = reported(*((arm, metric) for arm in groups), log=True)
        return Contrast(Quantity(metric), groups, "greater", test, reported=said)

    def reduction(place: str) -> Contrast:
        """How much scaling reduces ECE: regularisers that sharpen against the others.

        Seeds are clusters of all four arms.
        """
        sides = (SHARPER, ("baseline", "dropout"))
        groups = tuple("|".join(names([place], side, ["es"])) for side in sides)
        return Contrast(Quantity("test/ece_reduction"), groups, "greater", "auc")

    return (
        ask(
            "H6.1 Flatness does not predict generalisation.",
            all_of(not_predicted(places)),
            "abstract, report",
            reference="rho with the error, CIFAR-10: weight norm -0.74, relative flatness -0.2, "
            "others 0.3 to 0.4 (8 means)",
            refuted_if="rho > 0, significantly, for most measures",
            refuting=(over_measures(most, p, "test/error", "greater") for p in places),
            uncertain="power at 8 means is low: only the weight norm is significant; over models, "
            "the report's FR, noise sharpness and IGS would count against it on CIFAR-10",
        ),
        ask(
            "H6.2 Better calibrated models are sharper.",
            most(calibrated_are_sharper(places)),
            "abstract, report",
            reference="rho of ECE and relative flatness, CIFAR-10: -0.75, and -0.78 after scaling",
            refuted_if="rho > 0, significantly, for relative flatness or for most measures",
            refuting=calibrated_are_flatter(places),
            uncertain="significant for relative flatness alone; IGS has 4 points",
        ),
        ask(
            "H6.3 Augmentation and weight decay end sharper than the baseline.",
            regularised_are_sharper(places),
            "report, tables 1 and 2",
            reference="relative flatness, CIFAR-10 and -100: baseline 2.2, 4.4; augmentation 12.1, "
            "78.4; weight decay 4.5, 28.2",
            refuted_if="significantly flatter on most measures",
        ),
        ask(
            "H6.4 Augmentation has the lowest error and the lowest calibration error.",
            (c for p in places for metric in ("test/error", "test/ece") for c in lowest(p, metric)),
            "report, tables 1 and 2",
            reference="CIFAR-10: error 11.1 % against 14.4, 13.9, 18.2; ECE 6.6 against 11.0, "
            "11.0, 10.8",
            refuted_if="another regulariser is significantly better on either",
            uncertain="after temperature scaling ECE is nearly tied with weight decay's",
        ),
        ask(
            "H6.5 The pattern is stronger on the harder data set.",
            vote(harder(net, m, r) for net in nets if several for m in OF_MINIMA for r in SHARPER),
            "abstract, report",
            reference="relative flatness, augmentation over baseline: 5.5 on CIFAR-10, 17.8 on "
            "CIFAR-100",
            refuted_if="the interval lies below 0 for most measures",
            missing="" if several else "It compares two data sets.",
        ),
        ask(
            "H6.6 Temperature scaling improves calibration without flattening.",
            most(
                all_of((scaled(arm, "test/ece", "less"), scaled(arm, FLATNESS, "greater")), arm)
                for arm in arms
            ),
            "report, tables 1 to 4",
            reference="CIFAR-10, baseline: ECE 11.0 to 7.5 %, relative flatness 2.2 to 3.8",
            refuted_if="relative flatness is significantly less on most regularisers",
            refuting=most((scaled(arm, FLATNESS, "less") for arm in arms), "flatter after scaling"),
            uncertain="it falls for augmentation on CIFAR-100 (78.4 to 71.7)",
        ),
        ask(
            "H6.7 Temperature scaling helps regularised models more.",
            map(reduction, places),
            "report",
            reference="58 to 77 per cent against 29 to 31",
            refuted_if="significantly less",
        ),
        ask(
            "H6.8 The training loss explains sharpness.",
            most(correlation(p, m, "train/nll", "greater") for p in places for m in CONFOUNDED),
            "report",
            reference="rho with IGS 1.0, noise sharpness 0.86, relative flatness 0.67",
            refuted_if="rho is significantly below 0.3 for most measures",
            refuting=(
                over_measures(most, p, "train/nll", "less", 0.3, measures=CONFOUNDED)
                for p in places
            ),
        ),
        ask(
            "H6.9 The pattern holds across classes of models.",
            itertools.starmap(in_class, of_class.items()),
            "abstract",
            status="weak",
            refuted_if="H6.2 or H6.3 is refuted in one class",
            refuting=(
                part
                for net, own in of_class.items()
                for part in in_family(calibrated_are_flatter(own), f"H6.2 in {net}")
            ),
            uncertain="the results of ResNet20 and ViT are not known; each class is tested by "
            "itself, so that one of three is refuted by chance up to three times as often as one",
        ),
    )


HYPOTHESES = hypotheses()
