"""The hypotheses of the distillation study; a run is asked those that its arms allow.

H5.1 to H5.6 are the paper's, for the paper's nets. Other nets are asked the same under separate
ids, such as `H5.1 narrow`; a single narrow net under ids such as `H5.1 resnet_narrow` and
`D.1 resnet_narrow`; the paper's nets with fewer images or of other widths as `H5.1 other`. If a
config has the arms, these are asked too:

    D.1  at most weights, a student on logits ends nearer to its teacher than siddo, and nearer than
         a student whose loss passes through a second softmax, as in the authors' code of paper 7
    D.2  with a second softmax a student ends as far from its teacher as siddo, at each weight
    D.3  a teacher that keeps choice and confidence, but not the order of the other classes, still
         draws students nearer than no teacher does
    D.4  teachers without knowledge of the example (shuffled, entropy-matched) cost no accuracy
    D.5  these teachers leave students as far from the teacher as no teacher does
    D.6  with a second softmax a teacher draws students no nearer than one that says the same of
         every example
    D.7  at temperatures of 1, 2 and 8, too, students end nearer to their teacher than siddo
    D.8  students of half and twice its width end nearer to it than the same nets without a teacher

D.1 and D.2 together say whether "distillation transfers nothing" is an artefact of a loss. The runs
use SGD, not the authors' Adamax. If the labels have a weight of a tenth and the rest of the loss is
close to zero, SGD takes steps a tenth as long. D.6 therefore compares with the same loss and a
teacher that says the same of every example.

"As far" means that the ratio of distances is within 0.1 of 1. This is a fifth of the range that
H5.2 calls small (0.5 to 1). If a claim needs all its comparisons, each is tested at alpha (an
intersection-union test) and is a family of its own. If any one of several comparisons refutes a
claim, they are corrected together.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from sharpjax import schema
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis
from sharpjax.schema import Config
from sharpjax.studies.distillation.schema import SIZES, control_of
from sharpjax.studies.papers import cells, paper5, shorthand
from sharpjax.studies.papers.paper5 import ACCURACY, DISTANCE, no_less_accurate
from sharpjax.studies.papers.shorthand import all_of, names, vote

EXCESS, WEIGHTS = paper5.EXCESS, paper5.WEIGHTS
RATIO = "paired-ratio-of-means"
WITHOUT_KNOWLEDGE = ("shuffled_90", "entropy_90")
AUTHORS_LOSS = "of the authors' code of paper 7, OpenReview Q7GXKjmCSB"
CONTROLS = "of controls for distillation"

ask = partial(
    shorthand.ask, source="a question of this repository", status="design", correction="holm"
)


def hypotheses(config: Config) -> tuple[Hypothesis, ...]:
    """All hypotheses that the config's arms can answer, and those of the paper that they cannot."""
    every = schema.complete_arms(config)
    arms = list(every)
    by_place = dict.fromkeys(map(cells.place, arms))
    sets, nets = (tuple(dict.fromkeys(part)) for part in zip(*by_place, strict=True))
    differs = cells.differing({n: every[n] for n in arms if not n.endswith(SIZES)}, arms)
    asked = cells.asked_of(arms, paper5.HYPOTHESES, differs=differs)
    of_paper = {*nets} <= {*paper5.ARCHITECTURES} and {*sets} <= {*paper5.DATA_SETS}
    if not of_paper or differs:
        kind = "narrow" if {*sets} <= {*paper5.DATA_SETS} else "small"
        words, ours = f"{kind} nets", tuple(_own(arms))
        if of_paper:
            kind, words = cells.OTHER
        elif kind == "narrow" and len(nets) == 1:  # a part of `:cpu`
            kind = words = nets[0]
            ours = cells.of_others(ours, kind, words)
        # H5.6 is about the ViT, if there is one.
        vits = (cells.place(n)[1] for n in arms if every[n].model.name.startswith("vit"))
        theirs = _of_nets(arms, nets, sets, reordered=next(vits, nets[-1]))
        return asked + cells.of_others(theirs, kind, words) + ours
    return asked + tuple(_own(arms))


def _of_nets(
    arms: Collection[str], nets: Sequence[str], sets: Sequence[str], reordered: str
) -> list[Hypothesis]:
    """The paper's hypotheses for other nets; H5.4 only for nets that both data sets have."""
    first = tuple(net for net in nets if f"{sets[0]}-{net}-siddo" in arms)
    own = {h.id: h for h in paper5.hypotheses(first, sets[:1], reordered=reordered)}
    both = tuple(n for n in first if all(f"{s}-{n}-siddo" in arms for s in sets))
    if len(sets) > 1 and both:
        two = paper5.hypotheses(both, sets, reordered=reordered)
        own["H5.4"] = next(h for h in two if h.id == "H5.4")
    return [h for h in own.values() if h.missing or {*cells.arms_of(h)} <= {*arms}]


def _own(arms: Collection[str]) -> Iterator[Hypothesis]:
    """D.1 to D.8, for the places that have the arms."""
    having = partial(cells.having, arms)
    twice = having("siddo", *(f"kd_paper_{w}" for w in WEIGHTS), *(f"kd_{w}" for w in WEIGHTS))
    if twice:
        yield ask(
            "D.1 A student on logits ends nearer to its teacher than one without, and than one "
            "through a second softmax.",
            vote(
                Composite(
                    tuple(
                        Contrast(DISTANCE, names([p], [f"kd_{w}", other]), "less", "wilcoxon")
                        for other in ("siddo", f"kd_paper_{w}")
                    ),
                    refuted_by="all",
                    name=f"{p}, weight {w}%",
                )
                for p in twice
                for w in WEIGHTS
            ),
            AUTHORS_LOSS,
            refuted_if="at most weights significantly farther than both",
            uncertain="at a weight of 90% the second softmax leaves SGD little but a tenth of the "
            "labels' loss",
        )
        yield ask(
            "D.2 Through a second softmax a student ends as far from its teacher as without one.",
            all_of(_as_far(f"{p}-kd_paper_{w}", f"{p}-siddo") for p in twice for w in WEIGHTS),
            AUTHORS_LOSS,
            refuted_if="at some weight the ratio of distances is significantly below 0.9",
            refuting=[_nearer(f"{p}-kd_paper_{w}", f"{p}-siddo") for p in twice for w in WEIGHTS],
            uncertain="as D.1",
        )
    if permuted := having("permuted_90", "siddo"):
        yield ask(
            "D.3 Choice and confidence of a teacher alone draw students nearer to it.",
            vote(
                Contrast(DISTANCE, names([p], ["permuted_90", "siddo"]), "less", "wilcoxon")
                for p in permuted
            ),
            CONTROLS,
            refuted_if="significantly farther",
        )
    if without := having(*WITHOUT_KNOWLEDGE, "siddo"):
        pairs = [names([p], [c, "siddo"]) for p in without for c in WITHOUT_KNOWLEDGE]
        yield ask(
            "D.4 Teachers without knowledge of the example cost no half point of accuracy.",
            all_of(no_less_accurate(*pair) for pair in pairs),
            CONTROLS,
            refuted_if="significantly over half a point less accurate than without a teacher",
            refuting=(Contrast(ACCURACY, p, "less", "paired-t", null=-0.005) for p in pairs),
        )
        yield ask(
            "D.5 Teachers without knowledge of the example leave students as far from the teacher.",
            all_of(_as_far(*pair) for pair in pairs),
            CONTROLS,
            refuted_if="the ratio of distances is significantly below 0.9",
            refuting=[_nearer(*pair) for pair in pairs],
        )
    if constant := having("constant_paper_90", "kd_paper_90"):
        pairs = [names([p], ["kd_paper_90", "constant_paper_90"]) for p in constant]
        yield ask(
            "D.6 Through a second softmax a teacher draws students no nearer than one that says "
            "the same of every example.",
            all_of(_as_far(*pair) for pair in pairs),
            AUTHORS_LOSS,
            refuted_if="the ratio of distances is significantly below 0.9",
            refuting=[_nearer(*pair) for pair in pairs],
        )
    others = {
        "D.7": ("At other temperatures", lambda name: name.rpartition("_t")[2].isdigit()),
        "D.8": ("Of half and twice the teacher's width", lambda name: name.endswith(SIZES)),
    }
    for name, (where, holds) in others.items():
        students = [a for a in arms if "-kd_" in a and holds(a) and control_of(a) in arms]
        if students:
            yield ask(
                f"{name} {where} students end nearer to it than the same nets without a teacher.",
                vote(
                    Contrast(DISTANCE, (arm, control_of(arm)), "less", "wilcoxon")
                    for arm in students
                ),
                CONTROLS,
                refuted_if="in most cases significantly farther",
            )


def _as_far(arm: str, other: str) -> Contrast:
    """Distances to the teacher are equal within a tenth; each test is a family of its own."""
    family = f"{arm} as far as {other}"
    return Contrast(DISTANCE, (arm, other), "two-sided", RATIO, 0.1, family=family, within=True)


def _nearer(arm: str, other: str) -> Contrast:
    """Nearer to the teacher by more than a tenth."""
    return Contrast(DISTANCE, (arm, other), "less", RATIO, null=0.9)
