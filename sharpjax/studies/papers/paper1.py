"""Sharp minima: a geometric reappraisal (OpenReview AiRU8ZxQii): H1.1 to H1.11.

Arms: `<data set>-<architecture>-<condition>`, as `cifar10-resnet18-aug_sam`. The conditions are
base, base_sam, aug, aug_sam, wd, wd_sam, with ten seeds each; all conditions of a seed share
initialisation and order of data. For H1.11 the arms are `<data set>-<architecture>-random_<p>`: p =
0, 10, ..., 100 per cent of the training labels are drawn anew, and training measures use the true
ones.

Metrics, all at the last step:

    train/noise_sharpness, train/fisher_rao_norm, train/relative_flatness      larger: sharper
    train/nll                       on the whole training set, in eval mode
    test/gap                        training less test accuracy
    test/accuracy, test/ece
    test/corrupted_accuracy         mean over 19 corruptions x 5 severities
    test/disagreement               of two seeds of one arm: `of` = {"pair": [i, j]}
    test/mean_rank                  rank of the condition among the six, by seed, averaged over
                                    `RANKED`; 1 is best
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.studies.papers import shorthand
from sharpjax.studies.papers.shorthand import all_of, any_of, most, names, same_arm, vote

CONDITIONS = ("base_sam", "aug", "aug_sam", "wd", "wd_sam")
ARCHITECTURES = ("resnet18", "vgg19", "vit")
DATA_SETS = ("cifar10",)
MEMORISED = ("cifar10-resnet18",)
SHARPNESS = ("noise_sharpness", "fisher_rao_norm", "relative_flatness")
LEVELS = tuple(range(0, 101, 10))
# Metric, and the direction that is better than Base.
BETTER: Mapping[str, Alternative] = {
    "test/gap": "less",
    "test/accuracy": "greater",
    "test/ece": "less",
    "test/corrupted_accuracy": "greater",
    "test/disagreement": "less",
}
SAFETY = ("test/ece", "test/corrupted_accuracy", "test/disagreement")
DISAGREEMENT = Quantity("test/disagreement", over=("pair",))
# Metrics with one value per seed. The mean over the pairs of a seed is not one: seeds share pairs.
RANKED = tuple(metric for metric in BETTER if metric != DISAGREEMENT.metric)
DIRECTIONS = "No numeric table is known; every regularised condition is said to be {} than Base."

Cell = tuple[str, str]  # two arms: the condition, and its Base

ask = partial(shorthand.ask, source="OpenReview AiRU8ZxQii", correction="by")


def against_base(metric: str, cell: Cell, direction: Alternative, family: str) -> Contrast:
    """The authors' test: one-sided Wilcoxon signed-rank over the paired seeds.

    For disagreement it is the jackknife over seeds: each seed is left out with all its pairs.
    """
    of_pairs = metric == DISAGREEMENT.metric
    quantity = DISAGREEMENT if of_pairs else Quantity(metric)
    test = "pairwise-difference" if of_pairs else "wilcoxon"
    return Contrast(quantity, cell, direction, test, family=f"{family} {cell[0]}")


def generalises(cell: Cell) -> Composite:
    """Both measures of H1.2, each a family of its own."""
    gap = against_base("test/gap", cell, "less", "H1.2 gap")
    accuracy = against_base("test/accuracy", cell, "greater", "H1.2 accuracy")
    return Composite((gap, accuracy), name=cell[0])


def sharper(cell: Cell, direction: Alternative = "greater", by: str | int = "majority"):
    """The three measures of sharpness, which are one family in each condition."""
    members = tuple(against_base(f"train/{m}", cell, direction, "sharpness") for m in SHARPNESS)
    return Composite(members, by, by, f"sharpness of {cell[0]}")


def better(cell: Cell) -> Composite:
    """Most of the five measures of H1.2 to H1.5; gap and accuracy are not corrected."""
    members = (
        against_base(m, cell, way, "safety" if m in SAFETY else f"alone {m}")
        for m, way in BETTER.items()
    )
    return vote(members, f"performance of {cell[0]}")


def both(cells: Iterable[Cell], direction: Alternative, name: str = "") -> Composite:
    """In most cells: at least 2 of 3 measures of sharpness in one direction, and better."""
    return most((all_of((sharper(c, direction, 2), better(c)), c[0]) for c in cells), name)


def correlation(
    sharpness: str,
    group: str,
    direction: Alternative = "less",
    other: str = "test/gap",
    family: str | None = None,
) -> Contrast:
    sides = (f"train/{sharpness}", other)
    return same_arm(group, sides, direction, "spearman", family=family)


def cells(places: Iterable[str], conditions: Iterable[str]) -> list[Cell]:
    """Each condition with Base, at every place `<data set>-<net>`."""
    return [(f"{p}-{c}", f"{p}-base") for p in places for c in conditions]


def hypotheses(
    conditions: Sequence[str] = CONDITIONS,
    architectures: Sequence[str] = ARCHITECTURES,
    data_sets: Sequence[str] = DATA_SETS,
    memorised: Sequence[str] = MEMORISED,
) -> tuple[Hypothesis, ...]:
    """H1.1 to H1.10 over these cells, and H1.11 over the places `memorised`, `<data set>-<net>`.

    A claim over many cells holds if most of them support it.
    """
    places = names(data_sets, architectures)
    every = cells(places, conditions)
    in_net = {net: cells(names(data_sets, [net]), conditions) for net in architectures}
    arms = {place: names([place], ["base", *conditions]) for place in places}

    def each(metric: str) -> Composite:
        return vote(against_base(metric, cell, BETTER[metric], "safety") for cell in every)

    def pooled(sharpness: str, place: str, family: str | None = None) -> Contrast:
        return correlation(sharpness, "|".join(arms[place]), family=family)

    def within(sharpness: str, place: str, direction: Alternative) -> list[Contrast]:
        one = partial(correlation, sharpness, direction=direction, family=f"signs {place}")
        return [one(arm) for arm in arms[place]]

    def signs(place: str) -> Composite:
        """For some measure rho is negative over all conditions, and positive within one of them."""
        members = (
            all_of((pooled(m, place, f"signs {place}"), any_of(within(m, place, "greater"))), m)
            for m in SHARPNESS
        )
        return any_of(members, place)

    def best(place: str) -> Composite:
        rank, one = Quantity("test/mean_rank"), f"{place}-aug_sam"
        members = (
            Contrast(rank, arms[place], "two-sided", "friedman"),
            *(Contrast(rank, (one, o), "less", "wilcoxon") for o in arms[place] if o != one),
        )
        return Composite(members, name=place)

    return (
        ask(
            "H1.1 Regularised minima are sharper than the baseline's.",
            vote(map(sharper, every)),
            "abstract, code",
            reference=DIRECTIONS.format("sharper"),
            refuted_if="in most cells the condition is significantly flatter",
            uncertain="which data sets and nets the workshop version covered; whether it survives "
            "sharpness that is measured on examples without augmentation",
        ),
        ask(
            "H1.2 The same conditions generalise better.",
            vote(map(generalises, every)),
            "abstract, code, review",
            correction="none",
            reference="No numeric table is known; gap lower and accuracy higher than Base's.",
            refuted_if="gap greater or accuracy less, significantly, in most cells",
            uncertain="the baselines are weak (a constant learning rate of 1e-3)",
        ),
        ask(
            "H1.3 The same conditions are better calibrated.",
            each("test/ece"),
            "abstract, code",
            reference=DIRECTIONS.format("better calibrated"),
            refuted_if="ECE significantly greater than Base's in most cells",
        ),
        ask(
            "H1.4 The same conditions are more robust to corruption.",
            each("test/corrupted_accuracy"),
            "abstract, code",
            reference=DIRECTIONS.format("more robust"),
            refuted_if="significantly lower than Base's in most cells",
            uncertain="a small surrogate of the -C sets changes the quantity",
        ),
        ask(
            "H1.5 The same conditions give models that agree more from seed to seed.",
            each("test/disagreement"),
            "abstract, code",
            reference=DIRECTIONS.format("more alike"),
            refuted_if="significantly greater than Base's in most cells",
            uncertain="the authors test 90 ordered pairs as if they were independent; here each "
            "of ten models is left out with its pairs. Their test of the ten means, which share "
            "pairs, rejects a true null in 11 to 21 per cent at 5 (simulated)",
        ),
        ask(
            "H1.6 Sharper and better occur together.",
            both(every, "greater"),
            "abstract",
            status="partial",
            refuted_if="most cells are significantly flatter and better",
            refuting=both(every, "less", "flatter and better"),
            uncertain="2 of 3 measures of sharpness, 3 of 5 of performance, and how cells are "
            "counted are choices made here",
        ),
        ask(
            "H1.7 Sharper and better occur together in every architecture.",
            all_of(both(own, "greater", net) for net, own in in_net.items()),
            "abstract",
            status="partial",
            refuted_if="in at least one architecture most cells are flatter and better",
            refuting=(
                both(own, "less", f"flatter and better in {net}") for net, own in in_net.items()
            ),
            uncertain="the list of architectures in the workshop version",
        ),
        ask(
            "H1.8 Pooled over conditions, sharpness and generalisation gap correlate negatively.",
            vote(vote((pooled(m, p) for m in SHARPNESS), p) for p in places),
            "review",
            status="weak",
            refuted_if="rho > 0 with its interval above 0",
            uncertain="the coefficient that the authors used",
        ),
        ask(
            "H1.9 Within one condition the sign can differ from that over conditions.",
            most(map(signs, places)),
            "review",
            correction="holm",
            status="weak",
            refuted_if="every correlation within a condition is significantly negative",
            refuting=all_of(
                (c for p in places for m in SHARPNESS for c in within(m, p, "less")),
                "negative within every condition",
            ),
            uncertain="a remark of reviewers, and ten seeds have little power; 30 are better. Both "
            "signs are asked of one measure, so that their difference is shown with them",
        ),
        ask(
            "H1.10 Augmentation with SAM is the best condition.",
            vote(map(best, places)),
            "a summary of arXiv v1",
            correction="holm",
            status="weak",
            refuted_if="another condition has a significantly better mean rank",
            uncertain="rests on a summary, whose rank counts disagreement too: seeds share its "
            "pairs, so that with it the test over seeds rejects a true null in 6 to 7 per cent at "
            "5 (simulated); H1.5 asks of it alone",
        ),
        ask(
            "H1.11 Under memorisation, sharpness and training loss are negatively related.",
            (
                correlation(m, "|".join(f"{place}-random_{p}" for p in LEVELS), other="train/nll")
                for place in memorised
                for m in ("fisher_rao_norm", "relative_flatness")
            ),
            "code",
            correction="holm",
            status="weak",
            refuted_if="rho > 0, significantly",
            uncertain="only names of figures are known, and the sign is not confirmed",
        ),
    )


HYPOTHESES = hypotheses()
