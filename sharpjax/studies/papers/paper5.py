"""Knowledge distillation: the functional perspective (OpenReview Cgo73ZnAQc): H5.1 to H5.6.

Arms: `<data set>-<architecture>-<condition>`. Conditions:

    kd_<w>      students that learn from a teacher with weight w per cent (10, 50, 90), from its
                initialisation and in another order of data
    siddo       the same without a teacher
    disdo       another initialisation and the teacher's order
    uniform_<w>, gaussian_<w>   students of a teacher that is noise

Ten seeds each. Each seed has its own teacher, the same in all arms: several students of one teacher
would be a cluster, and arms are compared seed by seed.

Metrics, all at the last step, on the test set:

    teacher/activation_distance, teacher/cosine_distance, teacher/jsd, teacher/disagreement,
    teacher/l1                      between a student and its teacher
    wrong/excess_agreement, right/excess_agreement
                                    agreement with the teacher where it is wrong (right), less that
                                    of the siddo student of the seed
    test/accuracy                   0 to 1
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.studies.papers import shorthand
from sharpjax.studies.papers.shorthand import all_of, most, names, same_arm, vote

ARCHITECTURES = ("resnet18", "vgg19", "vit")
DATA_SETS = ("cifar10", "cifar100")
WEIGHTS = (10, 50, 90)
NOISE = ("uniform", "gaussian")
DISTANCES = ("activation_distance", "cosine_distance", "jsd", "disagreement", "l1")
DISTANCE = Quantity("teacher/activation_distance")
DISAGREEMENT = Quantity("teacher/disagreement")
EXCESS = ("wrong/excess_agreement", "right/excess_agreement")
ACCURACY = Quantity("test/accuracy")

ask = partial(
    shorthand.ask,
    source="OpenReview Cgo73ZnAQc",
    status="partial",
    correction="holm",
)


def closer(place: str, weight: int, control: str) -> Composite:
    """A student of the teacher against one control: most of the five distances are smaller."""
    groups = names([place], [f"kd_{weight}", control])
    family = f"{groups[0]} and {control}"
    members = (
        Contrast(Quantity(f"teacher/{d}"), groups, "less", "wilcoxon", family=family)
        for d in DISTANCES
    )
    return vote(members, f"{groups[0]} against {control}")


def than_controls(place: str, weight: int) -> Composite:
    """A student of the teacher against the four control conditions."""
    controls = ("siddo", "disdo", *(f"{noise}_{weight}" for noise in NOISE))
    members = tuple(closer(place, weight, control) for control in controls)
    return Composite(members, "all", "all", f"{place}, weight {weight}%")


def no_less_accurate(arm: str, other: str) -> Contrast:
    """An arm loses less than half a point of accuracy against another.

    A claim that needs several of these tests each at alpha (an intersection-union test), so each is
    a family of its own.
    """
    family, test = f"{arm} as accurate as {other}", "paired-non-inferiority"
    return Contrast(ACCURACY, (arm, other), "greater", test, 0.005, family=family)


def hypotheses(
    architectures: Sequence[str] = ARCHITECTURES,
    data_sets: Sequence[str] = DATA_SETS,
    weights: Sequence[int] = WEIGHTS,
    reordered: str = "vit",
) -> tuple[Hypothesis, ...]:
    """H5.1 to H5.6. All use the first data set; H5.4 compares it with the second.

    Claims about one weight of the teacher use the largest. H5.6 is about the net `reordered`.
    """
    data, strongest = data_sets[0], weights[-1]
    places = names([data], architectures)
    two = min(2, len(places))
    nets = architectures if len(data_sets) > 1 else ()
    orders = names([data], [reordered], ["siddo", "disdo"])
    apart = 0.012 if orders[0] == "cifar10-vit-siddo" else None  # 0.263 - 0.251
    student, noisy = f"kd_{strongest}", [f"{noise}_{strongest}" for noise in NOISE]

    def in_two(
        members: Iterable[shorthand.Part], refuted_by: int | str, name: str = ""
    ) -> Composite:
        return Composite(tuple(members), two, refuted_by, name)

    def ratio(place: str, direction: Alternative, null: float) -> Contrast:
        """Distance of students to the teacher, over that of models with the same start and no
        teacher."""
        groups = names([place], [student, "siddo"])
        return Contrast(DISTANCE, groups, direction, "paired-ratio-of-means", null=null)

    def over_data(net: str, margin: float | None = None) -> Contrast:
        """That ratio on the first data set against the second."""
        groups, within = names(data_sets[:2], [net], [student, "siddo"]), margin is not None
        test = "paired-difference-of-ratios"
        return Contrast(DISTANCE, groups, "two-sided", test, margin, within=within)

    def as_accurate(place: str) -> Composite:
        """Students of noise lose less than half a point against plain ones and a teacher's
        students."""
        pairs = [names([place], pair) for pair in itertools.product(noisy, ["siddo", student])]
        return Composite(tuple(no_less_accurate(*pair) for pair in pairs), name=place)

    def more_accurate(noise: str) -> Composite:
        """Students of a teacher are over half a point more accurate than those of noise."""
        pairs = [names([place], [student, noise]) for place in places]
        return all_of(
            (Contrast(ACCURACY, pair, "greater", "paired-t", null=0.005) for pair in pairs),
            f"better than {noise.split('_')[0]} noise by more than half a point, everywhere",
        )

    def less_accurate(place: str, noise: str) -> Contrast:
        """Students of noise are less accurate than plain ones."""
        return Contrast(ACCURACY, names([place], [noise, "siddo"]), "less", "paired-t")

    return (
        ask(
            "H5.1 A student is functionally closer to its teacher than each of four controls, in "
            "two of three architectures.",
            in_two((vote((than_controls(p, w) for w in weights), p) for p in places), two),
            "abstract, review",
            correction="by",
            reference="accepted for two of three architectures",
            refuted_if="students are significantly farther than controls in two architectures",
            uncertain="the four controls, nets, weights and seeds; the test: the follow-up is said "
            "to use Mann-Whitney's, which ignores that arms share teachers",
        ),
        ask(
            "H5.2 The transfer is significant but small: the ratio of distances is between 0.5 "
            "and 1.",
            in_two(
                (all_of((ratio(p, "less", 1.0), ratio(p, "greater", 0.5)), p) for p in places),
                "never",
            ),
            "abstract",
            refuted_if="the ratio is significantly below 0.5 in two architectures",
            refuting=in_two((ratio(p, "less", 0.5) for p in places), "never", "strong transfer"),
            uncertain="the authors give no threshold for less than expected",
        ),
        ask(
            "H5.3 Noise teachers give the accuracy benefit too.",
            all_of(map(as_accurate, places)),
            "abstract",
            refuted_if="students of a teacher exceed those of noise by more than half a point in "
            "all architectures, or those of noise are significantly worse than plain training",
            refuting=(
                *map(more_accurate, noisy),
                *itertools.starmap(less_accurate, itertools.product(places, noisy)),
            ),
            uncertain="which comparison the authors made; the law of the noise",
        ),
        ask(
            "H5.4 The effect depends on the data.",
            most(map(over_data, nets)),
            "abstract",
            status="weak",
            refuted_if="the ratios of H5.2 are equal within 0.05 across data sets in all "
            "architectures",
            refuting=(
                all_of((over_data(net, 0.05) for net in nets), "equal ratios across data sets"),
            )
            if nets
            else (),
            uncertain="data-dependent is not defined in the abstract; the benefit in accuracy, on "
            "another scale for each data set, is shown and not tested",
            missing="" if nets else "It compares two data sets.",
        ),
        ask(
            "H5.5 Students take over their teacher's wrong predictions more than its right ones.",
            vote(same_arm(f"{place}-{student}", EXCESS, "greater", "wilcoxon") for place in places),
            "review",
            source="arXiv 2510.12615 (the follow-up)",
            status="weak",
            refuted_if="the excess is significantly greater on right ones",
            uncertain="the exact definition in the follow-up",
        ),
        ask(
            "H5.6 The order of data matters more than the initialisation.",
            [Contrast(DISAGREEMENT, orders, "greater", "wilcoxon", reported=apart)],
            "code",
            source="the authors' blog post The functional perspective of neural networks",
            correction="none",
            reference="disagreement with Base 0.263 (another order) and 0.251 (another start)",
            refuted_if="another initialisation gives significantly more disagreement",
            uncertain="the number of seeds",
        ),
    )


HYPOTHESES = hypotheses()
