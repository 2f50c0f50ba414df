"""Sharp minima: a geometric reappraisal (OpenReview AiRU8ZxQii): H1.1 to H1.11.

Arms: `<data set>-<architecture>-<condition>`, as `cifar10-resnet18-aug_sam`. Conditions: base,
base_sam, aug, aug_sam, wd, wd_sam; ten seeds each, the same initialisation and order of data in all
conditions of a seed. For H1.11 `<data set>-<architecture>-random_<p>`, where p = 0, 10, ..., 100
per cent of the training labels are drawn anew and training measures use the true ones.

Metrics, all at the last step:

    train/noise_sharpness, train/fisher_rao_norm, train/relative_flatness      larger: sharper
    train/nll                       on the whole training set, in eval mode
    test/gap                        training less test accuracy
    test/accuracy, test/ece
    test/corrupted_accuracy         mean over 19 corruptions x 5 severities
    test/disagreement               of one seed with the others of its arm, the mean over them
    test/mean_rank                  of the condition among the six, the mean over gap, accuracy,
                                    ece, corrupted accuracy and disagreement; 1 is best
"""

import itertools
from collections.abc import Iterator, Sequence

from sharpjax.protocol.hypotheses import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative

CONDITIONS = ("base_sam", "aug", "aug_sam", "wd", "wd_sam")
ARCHITECTURES = ("resnet18", "vgg19", "vit")
DATA_SETS = ("cifar10",)
MEMORISED = ("cifar10-resnet18",)
SHARPNESS = ("noise_sharpness", "fisher_rao_norm", "relative_flatness")
LEVELS = tuple(range(0, 101, 10))

SOURCE = "OpenReview AiRU8ZxQii"
MISSING = "The six conditions, VGG19, ViT and the corrupted test sets are not built as a study."
DIRECTIONS = "No numeric table is known; every regularised condition is said to be {} than Base."

# Metric, and the direction in which a condition is better than Base.
BETTER: Sequence[tuple[str, Alternative]] = (
    ("test/gap", "less"),
    ("test/accuracy", "greater"),
    ("test/ece", "less"),
    ("test/corrupted_accuracy", "greater"),
    ("test/disagreement", "less"),
)
SAFETY = ("test/ece", "test/corrupted_accuracy", "test/disagreement")

Cell = tuple[str, str]  # of arms: the condition, and its Base


def cells(
    conditions: Sequence[str], architectures: Sequence[str], data_sets: Sequence[str]
) -> Iterator[Cell]:
    """A condition and Base, in every architecture and data set."""
    for data_set, net in itertools.product(data_sets, architectures):
        for condition in conditions:
            yield f"{data_set}-{net}-{condition}", f"{data_set}-{net}-base"


def against_base(metric: str, cell: Cell, direction: Alternative, family: str | None) -> Contrast:
    """The authors' test: one-sided Wilcoxon signed-rank over the paired seeds."""
    return Contrast(Quantity(metric), cell, direction, "wilcoxon", family=family)


def sharper(cell: Cell, direction: Alternative = "greater", by: str | int = "majority"):
    """The three measures of sharpness, which are one family in each condition."""
    members = tuple(
        against_base(f"train/{name}", cell, direction, f"sharpness {cell[0]}") for name in SHARPNESS
    )
    return Composite(members, by, by, name=f"sharpness of {cell[0]}")


def better(cell: Cell) -> Composite:
    """Most of the five measures of H1.2 to H1.5; gap and accuracy are not corrected."""
    members = tuple(
        against_base(metric, cell, direction, f"{_family(metric)} {cell[0]}")
        for metric, direction in BETTER
    )
    return Composite(members, "majority", "majority", name=f"performance of {cell[0]}")


def _family(metric: str) -> str:
    return "safety" if metric in SAFETY else f"alone {metric}"


def both(cells: Sequence[Cell], direction: Alternative) -> tuple[Composite, ...]:
    """For each cell: at least 2 of 3 measures of sharpness in a direction, and better."""
    return tuple(
        Composite((sharper(cell, direction, 2), better(cell)), "all", "never", name=cell[0])
        for cell in cells
    )


def hypotheses(
    conditions: Sequence[str] = CONDITIONS,
    architectures: Sequence[str] = ARCHITECTURES,
    data_sets: Sequence[str] = DATA_SETS,
    memorised: Sequence[str] = MEMORISED,
) -> tuple[Hypothesis, ...]:
    """H1.1 to H1.10 over these cells, and H1.11 over the places `memorised`, `<data set>-<net>`.

    A claim over many cells holds where most of them say so.
    """
    every = tuple(cells(conditions, architectures, data_sets))

    def each(metric: str, direction: Alternative, family: str | None = "safety"):
        return tuple(
            against_base(metric, cell, direction, family and f"{family} {cell[0]}")
            for cell in every
        )

    return (
        Hypothesis(
            "H1.1",
            "Regularised minima are sharper than the baseline's.",
            tuple(sharper(cell) for cell in every),
            "majority",
            "majority",
            correction="by",
            source=f"{SOURCE}; abstract, code",
            reference=DIRECTIONS.format("sharper"),
            refuted_if="in most cells the condition is significantly flatter",
            uncertain="which data sets and nets the workshop version covered; whether it survives "
            "sharpness that is measured on examples without augmentation",
            missing=MISSING,
        ),
        Hypothesis(
            "H1.2",
            "The same conditions generalise better.",
            tuple(
                Composite(
                    (
                        against_base("test/gap", cell, "less", f"H1.2 gap {cell[0]}"),
                        against_base("test/accuracy", cell, "greater", f"H1.2 accuracy {cell[0]}"),
                    ),
                    name=cell[0],
                )
                for cell in every
            ),
            "majority",
            "majority",
            source=f"{SOURCE}; abstract, code, review",
            reference="No numeric table is known; gap lower and accuracy higher than Base's.",
            refuted_if="gap greater or accuracy less, significantly, in most cells",
            uncertain="the baselines are weak (a constant learning rate of 1e-3)",
            missing=MISSING,
        ),
        Hypothesis(
            "H1.3",
            "The same conditions are better calibrated.",
            each("test/ece", "less"),
            "majority",
            "majority",
            correction="by",
            source=f"{SOURCE}; abstract, code",
            reference=DIRECTIONS.format("better calibrated"),
            refuted_if="ECE significantly greater than Base's in most cells",
            missing=MISSING,
        ),
        Hypothesis(
            "H1.4",
            "The same conditions are more robust to corruption.",
            each("test/corrupted_accuracy", "greater"),
            "majority",
            "majority",
            correction="by",
            source=f"{SOURCE}; abstract, code",
            reference=DIRECTIONS.format("more robust"),
            refuted_if="significantly lower than Base's in most cells",
            uncertain="a small surrogate of the -C sets changes the quantity",
            missing=MISSING,
        ),
        Hypothesis(
            "H1.5",
            "The same conditions give models that agree more from seed to seed.",
            each("test/disagreement", "less"),
            "majority",
            "majority",
            correction="by",
            source=f"{SOURCE}; abstract, code",
            reference=DIRECTIONS.format("more alike"),
            refuted_if="significantly greater than Base's in most cells",
            uncertain="the authors test 90 dependent ordered pairs; here one mean for each seed",
            missing=MISSING,
        ),
        Hypothesis(
            "H1.6",
            "Sharper and better occur together.",
            both(every, "greater"),
            "majority",
            "never",
            correction="by",
            source=f"{SOURCE}; abstract",
            status="partial",
            refuted_if="most cells are significantly flatter and better",
            uncertain="2 of 3 measures of sharpness, 3 of 5 of performance, and how cells are "
            "counted are choices made here",
            missing=MISSING,
            refuting=(
                Composite(both(every, "less"), "majority", "never", name="flatter and better"),
            ),
        ),
        Hypothesis(
            "H1.7",
            "Sharper and better occur together in every architecture.",
            tuple(
                Composite(
                    both(tuple(cells(conditions, (net,), data_sets)), "greater"),
                    "majority",
                    "never",
                    name=net,
                )
                for net in architectures
            ),
            "all",
            "never",
            correction="by",
            source=f"{SOURCE}; abstract",
            status="partial",
            refuted_if="in at least one architecture most cells are flatter and better",
            uncertain="the list of architectures in the workshop version",
            missing=MISSING,
            refuting=tuple(
                Composite(
                    both(tuple(cells(conditions, (net,), data_sets)), "less"),
                    "majority",
                    "never",
                    name=f"flatter and better in {net}",
                )
                for net in architectures
            ),
        ),
        *_correlations(conditions, architectures, data_sets),
        _memorisation(memorised),
    )


def _correlations(
    conditions: Sequence[str], architectures: Sequence[str], data_sets: Sequence[str]
) -> tuple[Hypothesis, ...]:
    places = [f"{d}-{net}" for d, net in itertools.product(data_sets, architectures)]
    names = ("base", *conditions)
    pairs = {n: (Quantity(f"train/{n}"), Quantity("test/gap")) for n in SHARPNESS}

    def pooled(place: str) -> tuple[Contrast, ...]:
        group = "|".join(f"{place}-{name}" for name in names)
        return tuple(Contrast(pairs[n], (group, group), "less", "spearman") for n in SHARPNESS)

    def within(place: str, direction: Alternative) -> tuple[Contrast, ...]:
        return tuple(
            Contrast(pairs[n], (f"{place}-{name}",) * 2, direction, "spearman")
            for n in SHARPNESS
            for name in names
        )

    def pooled_less_within(place: str) -> tuple[Contrast, ...]:
        contrasts = []
        for n, name in itertools.product(SHARPNESS, names):
            order = (name, *(other for other in names if other != name))
            groups = tuple(f"{place}-{one}" for one in order for _ in range(2))
            quantity = pairs[n] * len(order)
            contrasts.append(Contrast(quantity, groups, "less", "spearman-pooled"))
        return tuple(contrasts)

    best, others = "aug_sam", [name for name in names if name != "aug_sam"]
    rank = Quantity("test/mean_rank")
    return (
        Hypothesis(
            "H1.8",
            "Pooled over conditions, sharpness and generalisation gap correlate negatively.",
            tuple(Composite(pooled(p), "majority", "majority", name=p) for p in places),
            "majority",
            "majority",
            correction="by",
            source=f"{SOURCE}; review",
            status="weak",
            refuted_if="rho > 0 with its interval above 0",
            uncertain="the coefficient that the authors used",
            missing=MISSING,
        ),
        Hypothesis(
            "H1.9",
            "Within one condition the sign can differ from that over conditions.",
            tuple(
                Composite(
                    (
                        Composite(pooled(p), "any", "never", name="pooled"),
                        Composite(within(p, "greater"), "any", "never", name="within"),
                        Composite(pooled_less_within(p), "any", "never", name="pooled less within"),
                    ),
                    "all",
                    "never",
                    name=p,
                )
                for p in places
            ),
            "any",
            "never",
            correction="holm",
            source=f"{SOURCE}; review",
            status="weak",
            refuted_if="every correlation within a condition is significantly negative",
            uncertain="a remark of reviewers, and ten seeds have little power; 30 are better",
            missing=MISSING,
            refuting=(
                Composite(
                    tuple(c for p in places for c in within(p, "less")),
                    "all",
                    "never",
                    name="negative within every condition",
                ),
            ),
        ),
        Hypothesis(
            "H1.10",
            "Augmentation with SAM is the best condition.",
            tuple(
                Composite(
                    (
                        Contrast(rank, tuple(f"{p}-{n}" for n in names), "two-sided", "friedman"),
                        *(
                            Contrast(rank, (f"{p}-{best}", f"{p}-{o}"), "less", "wilcoxon")
                            for o in others
                        ),
                    ),
                    name=p,
                )
                for p in places
            ),
            "majority",
            "majority",
            correction="holm",
            source=f"{SOURCE}; a summary of arXiv v1",
            status="weak",
            refuted_if="another condition has a significantly better mean rank",
            uncertain="rests on a summary",
            missing=MISSING,
        ),
    )


def _memorisation(places: Sequence[str]) -> Hypothesis:
    groups = ["|".join(f"{place}-random_{level}" for level in LEVELS) for place in places]
    return Hypothesis(
        "H1.11",
        "Under memorisation, sharpness and training loss are negatively related.",
        tuple(
            Contrast(
                (Quantity(f"train/{name}"), Quantity("train/nll")),
                (group, group),
                "less",
                "spearman",
            )
            for group in groups
            for name in ("fisher_rao_norm", "relative_flatness")
        ),
        correction="holm",
        source=f"{SOURCE}; code",
        status="weak",
        refuted_if="rho > 0, significantly",
        uncertain="only names of figures are known, and the sign is not confirmed",
        missing="Training on labels that are partly drawn anew is not built.",
    )


HYPOTHESES = hypotheses()
