"""Neural network compression: the functional perspective (OpenReview Q7GXKjmCSB): H7.1 to H7.6.

Arms: `<data set>-<net>-<method>`. Methods: float16, int8 (quantised after training); pruned_<p>
(the p per cent of smallest weights, no fine-tuning); kd_<w> (students with weight w per cent of the
teacher, on logits) and kd_paper_<w> (softmax twice, as in the authors' code); independent (two
more nets). A seed is one base model; ten of them.

Metrics, all at the last step, on the test set; d is one of `DISTANCES`:

    base/d      from the arm's model to the base model of the seed; for independent and students
                the mean over those of the seed
    init/d      to the initialisation of the base
"""

import itertools
from collections.abc import Sequence

from sharpjax.protocol.hypotheses import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative

NETS = ("lenet", "resnet50", "mobilenet")
DATA_SETS = ("cifar10",)
# Collapses in the paper because the authors prune its normalisation too.
COLLAPSING = ("mobilenet",)
DISTANCES = ("disagreement", "activation_distance", "cosine_distance", "jsd", "l1")
PRIMARY = Quantity("base/activation_distance")
QUANTISED = ("float16", "int8")
LEVELS = (10, 30, 50, 70, 90)
WEIGHTS = (10, 50, 90)

SOURCE = "OpenReview Q7GXKjmCSB"
MISSING = "Quantisation, pruning and distillation are not built."


def ratio(
    place: str,
    method: str,
    direction: Alternative,
    *,
    distance: str = "activation_distance",
    null: float | None = None,
    margin: float | None = None,
) -> Contrast:
    """Distance to the base over that of independent nets; with a margin, a claim of equality."""
    groups = (f"{place}-{method}", f"{place}-independent")
    return Contrast(
        Quantity(f"base/{distance}"), groups, direction, "paired-ratio-of-means", null=null,
        margin=margin, within=margin is not None,
    )  # fmt: skip


def hypotheses(
    nets: Sequence[str] = NETS,
    data_sets: Sequence[str] = DATA_SETS,
    collapsing: Sequence[str] = COLLAPSING,
) -> tuple[Hypothesis, ...]:
    """H7.1 to H7.6 for these nets; H7.2 and H7.6 leave out those that are `collapsing`."""
    pairs = tuple(itertools.product(data_sets, nets))
    places = [f"{data}-{net}" for data, net in pairs]
    steady = [f"{data}-{net}" for data, net in pairs if net not in collapsing] or places
    return (
        Hypothesis(
            "H7.1",
            "Quantised models are functionally the base model.",
            tuple(_distances(p, q, "less", 0.2) for p in places for q in QUANTISED),
            "all",
            "never",
            correction="holm",
            source=f"{SOURCE}; abstract, report",
            reference="by t-SNE alone; accuracy changes by less than 1 per cent",
            refuted_if="the ratio is significantly above 0.5 for most distances",
            uncertain="the thresholds are chosen here",
            missing=MISSING,
            refuting=tuple(_distances(p, q, "greater", 0.5) for p in places for q in QUANTISED),
        ),
        Hypothesis(
            "H7.2",
            "Pruned models stay close to the base until high sparsity.",
            tuple(_pruned(p) for p in steady),
            correction="holm",
            source=f"{SOURCE}; abstract, report",
            reference="accuracy of LeNet on CIFAR-10 at 10, 30, 50, 70, 90%: changed by -0.25, "
            "-0.60, -2.95, -14.56, -78.5 per cent",
            refuted_if="in LeNet or ResNet-50 a pruned model at 10 to 50% is farther than "
            "independent ones, or the trend is the other way",
            uncertain="MobileNet collapses in the authors' code, which prunes statistics too",
            missing=MISSING,
        ),
        Hypothesis(
            "H7.3",
            "Distilled students are as far from their teacher as independent models.",
            tuple(
                Composite(
                    tuple(
                        ratio(p, f"{mode}_{w}", "two-sided", margin=0.1)
                        for p, w in itertools.product(places, WEIGHTS)
                    ),
                    "all",
                    "never",
                    name=name,
                )
                for mode, name in _MODES
            ),
            "all",
            "never",
            source=f"{SOURCE}; abstract, report",
            refuted_if="in either form of the loss students are closer: most ratios below 0.9",
            uncertain="in the authors' code the teacher's signal is almost absent, so that it may "
            "hold there and not on logits",
            missing=MISSING,
            refuting=tuple(
                Composite(
                    tuple(
                        ratio(p, f"{mode}_{w}", "less", null=0.9)
                        for p, w in itertools.product(places, WEIGHTS)
                    ),
                    "majority",
                    "never",
                    name=f"closer than independent models, {name}",
                )
                for mode, name in _MODES
            ),
        ),
        _no_difference(places),
        Hypothesis(
            "H7.5",
            "Extreme pruning returns the model towards its initialisation.",
            tuple(
                Contrast(
                    (Quantity("init/activation_distance"), PRIMARY),
                    (f"{p}-pruned_90",) * 2,
                    "less",
                    "wilcoxon",
                )
                for p in places
            ),
            correction="holm",
            source=f"{SOURCE}; report",
            status="partial",
            refuted_if="significantly farther from the initialisation than from the base",
            uncertain="seen in t-SNE only",
            missing=MISSING,
        ),
        Hypothesis(
            "H7.6",
            "Quantised models are nearest to the base, then pruned ones, then students and "
            "independent models.",
            tuple(
                Contrast(
                    PRIMARY,
                    tuple(f"{p}-{m}" for m in ("int8", "pruned_50", "kd_50", "independent")),
                    "less",
                    "page",
                )
                for p in steady
            ),
            correction="holm",
            source=f"{SOURCE}; abstract, report",
            refuted_if="there is a significant trend in the other order",
            uncertain="one method stands for its kind, chosen here",
            missing=MISSING,
        ),
    )


_MODES = (("kd", "on logits"), ("kd_paper", "as in the authors' code"))


def _distances(place: str, method: str, direction: Alternative, null: float) -> Composite:
    members = tuple(ratio(place, method, direction, distance=d, null=null) for d in DISTANCES)
    return Composite(members, "majority", "never", name=f"{place}-{method}")


def _pruned(place: str) -> Composite:
    arms = [f"{place}-pruned_{level}" for level in LEVELS]
    members = (
        *(Contrast(PRIMARY, (arm, f"{place}-independent"), "less", "wilcoxon") for arm in arms[:3]),
        Contrast(PRIMARY, tuple(arms), "less", "page"),
    )
    return Composite(members, name=place)


def _no_difference(places: Sequence[str]) -> Hypothesis:
    def groups(place: str, weights: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"{place}-kd_{w}" for w in weights)

    return Hypothesis(
        "H7.4",
        "The weight of the teacher makes no difference.",
        tuple(
            Contrast(
                PRIMARY, groups(p, pair), "two-sided", "paired-ratio-of-means", margin=0.1,
                within=True,
            )
            for p in places
            for pair in itertools.combinations(WEIGHTS, 2)
        ),
        "all",
        "never",
        source=f"{SOURCE}; report",
        refuted_if="the distance differs between weights and depends on them monotonically",
        uncertain="the authors' text and code give the weight opposite directions",
        missing=MISSING,
        refuting=tuple(
            Composite(
                (
                    Contrast(PRIMARY, groups(p, WEIGHTS), "two-sided", "kruskal-wallis"),
                    Contrast(PRIMARY, groups(p, WEIGHTS), "two-sided", "jonckheere"),
                ),
                "all",
                "never",
                name=f"monotone dependence in {p}",
            )
            for p in places
        ),
    )  # fmt: skip


HYPOTHESES = hypotheses()
