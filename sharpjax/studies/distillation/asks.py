"""What a run of the distillation study is asked, by its arms.

H5.1 to H5.6 are the paper's, of the paper's nets. Of other nets the same is asked under ids of
their own, as `H5.1 narrow`. Beside them, where a config has the arms:

    D.1  at each weight a student ends nearer to its teacher than one whose loss passes through a
         second softmax, as in the authors' code of paper 7
    D.2  through a second softmax a student ends as far from its teacher as without one
    D.3  a teacher that keeps choice and confidence, but not the order of the other classes, still
         draws students nearer than none
    D.4  teachers without knowledge of the example (shuffled, entropy-matched) cost no accuracy
    D.5  and leave students as far from the teacher as none
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from sharpjax import schema
from sharpjax.protocol.claims import Contrast, Hypothesis
from sharpjax.schema import Config
from sharpjax.studies.papers import cells, paper5, shorthand
from sharpjax.studies.papers.paper5 import ACCURACY, DISTANCE
from sharpjax.studies.papers.shorthand import all_of, equal, names, vote

EXCESS = paper5.EXCESS
RATIO = "paired-ratio-of-means"
WITHOUT_KNOWLEDGE = ("shuffled_90", "entropy_90")

ask = partial(
    shorthand.ask, source="a question of this repository", status="design", correction="holm"
)


def hypotheses(config: Config) -> tuple[Hypothesis, ...]:
    """All that can be asked of the config's arms, and the paper's that cannot."""
    arms = list(schema.complete_arms(config))
    by_place = dict.fromkeys(map(cells.place, arms))
    sets, nets = (tuple(dict.fromkeys(part)) for part in zip(*by_place, strict=True))
    asked = cells.asked_of(arms, paper5.HYPOTHESES)
    if not {*nets} <= {*paper5.ARCHITECTURES} or not {*sets} <= {*paper5.DATA_SETS}:
        kind = "narrow" if {*sets} <= {*paper5.DATA_SETS} else "small"
        asked += cells.of_others(_of_nets(arms, nets, sets), kind, f"{kind} nets")
    return asked + tuple(_own(arms))


def _of_nets(arms: Collection[str], nets: Sequence[str], sets: Sequence[str]) -> list[Hypothesis]:
    """The paper's, of nets that are not the paper's; H5.4 of those that there are on two sets."""
    reordered = nets[-1]  # the ViT is the last of each form
    first = tuple(net for net in nets if f"{sets[0]}-{net}-siddo" in arms)
    own = {h.id: h for h in paper5.hypotheses(first, sets[:1], reordered=reordered)}
    both = tuple(n for n in first if all(f"{s}-{n}-siddo" in arms for s in sets))
    if len(sets) > 1 and both:
        two = paper5.hypotheses(both, sets, reordered=reordered)
        own["H5.4"] = next(h for h in two if h.id == "H5.4")
    return [h for h in own.values() if h.missing or {*cells.arms_of(h)} <= {*arms}]


def _own(arms: Collection[str]) -> Iterator[Hypothesis]:
    """D.1 to D.5, of the places that have their arms."""

    def having(*conditions: str) -> list[str]:
        every = dict.fromkeys("-".join(cells.place(arm)) for arm in arms)
        return [p for p in every if all(f"{p}-{c}" in arms for c in conditions)]

    weights = paper5.WEIGHTS
    twice = having("siddo", *(f"kd_paper_{w}" for w in weights), *(f"kd_{w}" for w in weights))
    if twice:
        pairs = [names([p], [f"kd_{w}", f"kd_paper_{w}"]) for p in twice for w in weights]
        yield ask(
            "D.1 A student on logits ends nearer to its teacher than one through a second softmax.",
            vote(Contrast(DISTANCE, pair, "less", "wilcoxon") for pair in pairs),
            "of the authors' code of paper 7, OpenReview Q7GXKjmCSB",
            refuted_if="at most weights significantly farther",
        )
        yield ask(
            "D.2 Through a second softmax a student ends as far from its teacher as without one.",
            all_of(
                equal(DISTANCE, names([p], [f"kd_paper_{w}", "siddo"]), RATIO, 0.1)
                for p in twice for w in weights
            ),
            "of the authors' code of paper 7, OpenReview Q7GXKjmCSB",
            correction="none",
            refuted_if="at some weight the ratio of distances is significantly below 0.9",
            refuting=(
                Contrast(DISTANCE, names([p], [f"kd_paper_{w}", "siddo"]), "less", RATIO, null=0.9)
                for p in twice for w in weights
            ),
        )  # fmt: skip
    if permuted := having("permuted_90", "siddo"):
        yield ask(
            "D.3 Choice and confidence of a teacher alone draw students nearer to it.",
            vote(
                Contrast(DISTANCE, names([p], ["permuted_90", "siddo"]), "less", "wilcoxon")
                for p in permuted
            ),
            "of controls for distillation",
            refuted_if="significantly farther",
        )
    if without := having(*WITHOUT_KNOWLEDGE, "siddo"):
        pairs = [names([p], [c, "siddo"]) for p in without for c in WITHOUT_KNOWLEDGE]
        yield ask(
            "D.4 Teachers without knowledge of the example cost no half point of accuracy.",
            all_of(
                Contrast(ACCURACY, pair, "greater", "paired-non-inferiority", 0.005)
                for pair in pairs
            ),
            "of controls for distillation",
            refuted_if="significantly less accurate than without a teacher",
            refuting=(Contrast(ACCURACY, pair, "less", "paired-t") for pair in pairs),
        )
        yield ask(
            "D.5 Teachers without knowledge of the example leave students as far from the teacher.",
            all_of(equal(DISTANCE, pair, RATIO, 0.1) for pair in pairs),
            "of controls for distillation",
            correction="none",
            refuted_if="the ratio of distances is significantly below 0.9",
            refuting=(Contrast(DISTANCE, pair, "less", RATIO, null=0.9) for pair in pairs),
        )
