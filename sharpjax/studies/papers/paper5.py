"""Knowledge distillation: the functional perspective (OpenReview Cgo73ZnAQc): H5.1 to H5.6.

Arms: `<data set>-<architecture>-<condition>`. Conditions: kd_<w>, students that learn from a
teacher with weight w per cent (10, 50, 90), from its initialisation and in another order of data;
siddo, the same without a teacher; disdo, another initialisation and the teacher's order;
uniform_<w> and gaussian_<w>, students of a teacher that is noise. Ten students each: seed s has
teacher s mod 3.

Metrics, all at the last step, on the test set:

    teacher/activation_distance, teacher/cosine_distance, teacher/jsd, teacher/disagreement,
    teacher/l1                      between a student and its teacher
    wrong/excess_agreement, right/excess_agreement
                                    agreement with the teacher where that is wrong (right), less
                                    the same of the siddo student of the seed
    test/accuracy                   0 to 1
"""

import itertools
from collections.abc import Sequence

from sharpjax.protocol.hypotheses import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative

ARCHITECTURES = ("resnet18", "vgg19", "vit")
DATA_SETS = ("cifar10", "cifar100")
WEIGHTS = (10, 50, 90)
NOISE = ("uniform", "gaussian")
DISTANCES = ("activation_distance", "cosine_distance", "jsd", "disagreement", "l1")

SOURCE = "OpenReview Cgo73ZnAQc"
MISSING = "Distillation and its controls are not built."


def controls(weight: int) -> tuple[str, ...]:
    """The four conditions that a student is compared with."""
    return ("siddo", "disdo", *(f"{noise}_{weight}" for noise in NOISE))


def closer(place: str, weight: int, control: str) -> Composite:
    """A student of the teacher against one control: most of the five distances."""
    groups = (f"{place}-kd_{weight}", f"{place}-{control}")
    family = f"{groups[0]} and {control}"
    members = tuple(
        Contrast(Quantity(f"teacher/{d}"), groups, "less", "mann-whitney", family=family)
        for d in DISTANCES
    )
    return Composite(members, "majority", "majority", name=f"{groups[0]} against {control}")


def hypotheses(
    architectures: Sequence[str] = ARCHITECTURES,
    data_sets: Sequence[str] = DATA_SETS,
    weights: Sequence[int] = WEIGHTS,
    reordered: str = "vit",
) -> tuple[Hypothesis, ...]:
    """H5.1 to H5.6; the first data set is that of all but H5.4, which compares it with the second.

    Where a claim is about one weight of the teacher, it is the largest; H5.6 is about the net
    `reordered`.
    """
    data, strongest = data_sets[0], weights[-1]
    places = [f"{data}-{net}" for net in architectures]
    two = min(2, len(places))
    return (
        Hypothesis(
            "H5.1",
            "A student is functionally closer to its teacher than each of four controls, in two of "
            "three architectures.",
            tuple(
                Composite(
                    tuple(
                        Composite(
                            tuple(closer(p, w, control) for control in controls(w)),
                            "all",
                            "all",
                            name=f"{p}, weight {w}%",
                        )
                        for w in weights
                    ),
                    "majority",
                    "majority",
                    name=p,
                )
                for p in places
            ),
            two,
            two,
            correction="by",
            source=f"{SOURCE}; abstract, review",
            status="partial",
            reference="accepted for two of three architectures",
            refuted_if="students are significantly farther than controls in two architectures",
            uncertain="the four controls, the test, nets, weights and seeds",
            missing=MISSING,
        ),
        Hypothesis(
            "H5.2",
            "The transfer is significant but small: the ratio of distances is between 0.5 and 1.",
            tuple(
                Composite((_ratio(p, strongest, "less", 1.0), _ratio(p, strongest, "greater", 0.5)),
                          "all", "never", name=p)
                for p in places
            ),
            two,
            "never",
            correction="holm",
            source=f"{SOURCE}; abstract",
            status="partial",
            refuted_if="the ratio is significantly below 0.5 in two architectures",
            uncertain="the authors give no threshold for less than expected",
            missing=MISSING,
            refuting=(
                Composite(
                    tuple(_ratio(p, strongest, "less", 0.5) for p in places), two, "never",
                    name="strong transfer",
                ),
            ),
        ),
        Hypothesis(
            "H5.3",
            "Noise teachers give the accuracy benefit too.",
            tuple(
                Composite(
                    tuple(
                        _accuracy(p, f"{noise}_{strongest}", other, "greater", "non-inferiority")
                        for noise in NOISE
                        for other in ("siddo", f"kd_{strongest}")
                    ),
                    name=p,
                )
                for p in places
            ),
            "all",
            "never",
            correction="holm",
            source=f"{SOURCE}; abstract",
            status="partial",
            refuted_if="students of a teacher exceed those of noise by more than half a point in "
            "all architectures, or those of noise are significantly worse than plain training",
            uncertain="which comparison the authors made; the law of the noise",
            missing=MISSING,
            refuting=(
                *(
                    Composite(
                        tuple(
                            _accuracy(p, f"kd_{strongest}", f"{noise}_{strongest}", "greater",
                                      "welch", null=0.005)
                            for p in places
                        ),
                        "all",
                        "never",
                        name=f"better than {noise} noise by more than half a point, everywhere",
                    )
                    for noise in NOISE
                ),
                *(
                    _accuracy(p, f"{noise}_{strongest}", "siddo", "less", "welch")
                    for p, noise in itertools.product(places, NOISE)
                ),
            ),
        ),
        _data_dependence(architectures, data_sets, strongest),
        Hypothesis(
            "H5.5",
            "Students take over their teacher's wrong predictions more than its right ones.",
            tuple(
                Contrast(
                    (Quantity("wrong/excess_agreement"), Quantity("right/excess_agreement")),
                    (f"{p}-kd_{strongest}",) * 2,
                    "greater",
                    "wilcoxon",
                )
                for p in places
            ),
            "majority",
            "majority",
            correction="holm",
            source="arXiv 2510.12615 (the follow-up); review",
            status="weak",
            refuted_if="the excess is significantly greater on right ones",
            uncertain="the exact definition in the follow-up",
            missing=MISSING,
        ),
        Hypothesis(
            "H5.6",
            "The order of data matters more than the initialisation.",
            (
                Contrast(
                    Quantity("teacher/disagreement"),
                    (f"{data}-{reordered}-siddo", f"{data}-{reordered}-disdo"),
                    "greater",
                    "mann-whitney",
                ),
            ),
            source="the authors' blog post The functional perspective of neural networks; code",
            status="partial",
            reference="disagreement with Base 0.263 (another order) and 0.251 (another start)",
            refuted_if="another initialisation gives significantly more disagreement",
            uncertain="the number of seeds",
            missing=MISSING,
        ),
    )  # fmt: skip


def _ratio(place: str, weight: int, direction: Alternative, null: float) -> Contrast:
    """Distance to the teacher, of students over that of the same start without a teacher."""
    groups = (f"{place}-kd_{weight}", f"{place}-siddo")
    quantity = Quantity("teacher/activation_distance")
    return Contrast(quantity, groups, direction, "ratio-of-means", null=null)


def _accuracy(
    place: str, one: str, other: str, direction: Alternative, test: str, null: float | None = None
) -> Contrast:
    margin = 0.005 if test == "non-inferiority" else None
    groups = (f"{place}-{one}", f"{place}-{other}")
    return Contrast(Quantity("test/accuracy"), groups, direction, test, margin=margin, null=null)


def _data_dependence(
    architectures: Sequence[str], data_sets: Sequence[str], weight: int
) -> Hypothesis:
    nets = architectures if len(data_sets) > 1 else ()

    def difference(net: str, within: bool) -> Contrast:
        groups = tuple(
            f"{data}-{net}-{name}" for data in data_sets[:2] for name in (f"kd_{weight}", "siddo")
        )
        return Contrast(
            Quantity("teacher/activation_distance"), groups, "two-sided", "difference-of-ratios",
            margin=0.05 if within else None, within=within,
        )  # fmt: skip

    return Hypothesis(
        "H5.4",
        "The effect depends on the data.",
        tuple(difference(net, False) for net in nets),
        "majority",
        "never",
        correction="holm",
        source=f"{SOURCE}; abstract",
        status="weak",
        refuted_if="the ratios of H5.2 are equal within 0.05 across data sets in all architectures",
        uncertain="data-dependent is not defined in the abstract",
        missing=MISSING if nets else "It compares two data sets.",
        refuting=(
            Composite(
                tuple(difference(net, True) for net in nets),
                "all",
                "never",
                name="equal ratios across data sets",
            ),
        )
        if nets
        else (),
    )


HYPOTHESES = hypotheses()
