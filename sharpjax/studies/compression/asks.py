"""The hypotheses of the compression study; a run is asked those that its arms allow.

H7.1 to H7.6 are the paper's, for its nets trained on all images. Fewer images, other widths and
other nets are asked the same under separate ids, such as `H7.1 mnist-lenet`. If a config has the
arms, these are asked too (with an id such as `C.1 mnist-lenet` if the config has only one place):

    C.1  over models, sharpness before predicts the rise of the loss after pruning, and in few bits
    C.2  over layers, the sharpness of a layer predicts the rise if only this layer is held in few
         bits
    C.3  models that were trained with SAM lose less in few bits, and by pruning
    C.4  pruning BatchNorm statistics with the weights explains the collapse of MobileNet at 10
         per cent
"""

from collections.abc import Collection, Iterator
from functools import partial

from sharpjax import schema
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.schema import Config
from sharpjax.studies.papers import cells, paper7, shorthand
from sharpjax.studies.papers.shorthand import names, same_arm, vote

OF_LAYER = "layer/noise_sharpness"
RISE = Quantity("test/nll_rise")
ACCURACY = Quantity("test/accuracy")
LOW_BITS = ("int4", "int3")
PRUNED = ("pruned_50", "pruned_70")
COLLAPSE = -10.0  # per cent of the accuracy
RHO = 0.3  # the smallest correlation of interest
COLLAPSING = (*paper7.COLLAPSING, "mobilenet_narrow")  # collapse at 10 per cent, in the paper

ask = partial(shorthand.ask, source="a question of this repository", status="design")


def hypotheses(config: Config, there: Collection[str]) -> tuple[Hypothesis, ...]:
    """Hypotheses that the arms in `there` can answer, and those of the paper that they cannot."""
    arms = schema.complete_arms(config)
    by_place = dict.fromkeys(map(cells.place, arms))
    differs = cells.differing(arms, there)
    asked = cells.asked_of(there, paper7.HYPOTHESES, differs=differs)
    papers = {(s, n) for s in paper7.DATA_SETS for n in paper7.NETS}
    if differs or not {*by_place} <= papers:
        whole = [p for p in by_place if f"{'-'.join(p)}-independent" in arms]
        own = [h for place in whole for h in _of_place(*place)]
        asked += tuple(h for h in own if {*cells.arms_of(h)} <= {*there})
    ours = tuple(_own(there))
    if len(by_place) == 1:
        ours = _named(ours, *next(iter(by_place)))
    return asked + ours


def _of_place(data: str, net: str) -> tuple[Hypothesis, ...]:
    return _named(paper7.hypotheses((net,), (data,), ()), data, net)


def _named(asked: tuple[Hypothesis, ...], data: str, net: str) -> tuple[Hypothesis, ...]:
    return cells.of_others(asked, f"{data}-{net}", f"{net} on {data}")


def _own(arms: Collection[str]) -> Iterator[Hypothesis]:
    """C.1 to C.4, for the places that have the arms."""
    having = partial(cells.having, arms)
    both = having(*LOW_BITS, *PRUNED, *(f"sam_{c}" for c in (*LOW_BITS, *PRUNED)))
    if both:
        sides = "source/noise_sharpness", "test/nll_rise"
        yield ask(
            "C.1 Over models sharpness before predicts the rise of the loss after compression.",
            vote(
                same_arm("|".join(names([p], [c, f"sam_{c}"])), sides, "greater", "spearman",
                         margin=RHO)
                for p in both for c in (*LOW_BITS, *PRUNED)
            ),
            "sharpness before compression",
            correction="holm",
            refuted_if="in most cases rho is significantly below 0",
            uncertain="models with and without SAM are pooled; within one kind it may be otherwise",
        )  # fmt: skip
    layered = [(p, b) for b in LOW_BITS for p in having(f"layers_{b}")]
    if layered:
        of_layers = [Quantity(m, over=("seed", "layer"))
                     for m in ("layer/sharpness", "layer/nll_rise")]  # fmt: skip
        yield ask(
            "C.2 Over layers sharpness before predicts the rise of the loss in few bits.",
            vote(
                same_arm(f"{p}-layers_{b}", of_layers, "greater", "spearman", margin=RHO)
                for p, b in layered
            ),
            "sharpness before compression",
            correction="holm",
            refuted_if="in most cases rho is significantly below 0",
            uncertain="all layers are moved by one radius, and rounded by steps of their own",
        )
    if both:
        yield ask(
            "C.3 Models that were trained with SAM lose less by compression.",
            vote(
                Contrast(RISE, names([p], [f"sam_{c}", c]), "less", "wilcoxon")
                for p in both for c in (*LOW_BITS, *PRUNED)
            ),
            "a claim made of large language models",
            correction="holm",
            refuted_if="in most cases they lose significantly more",
            uncertain="one radius of SAM, and nets of hundreds of thousands of parameters",
        )  # fmt: skip
    pairs = having("everything_10", "pruned_10")
    if collapsing := [p for p in pairs if cells.place(p)[1] in COLLAPSING]:
        change = Quantity("test/accuracy_change")
        members = [
            part
            for p in collapsing
            for part in (
                Contrast(ACCURACY, names([p], ["pruned_10", "everything_10"]), "greater",
                         "wilcoxon"),
                Contrast(change, names([p], ["everything_10"]), "less", "mean", null=COLLAPSE),
                Contrast(change, names([p], ["pruned_10"]), "greater", "mean", null=COLLAPSE),
            )
        ]  # fmt: skip
        yield ask(
            "C.4 Pruning a tenth of all numbers, BatchNorm statistics included, costs more than a "
            "tenth of the accuracy; pruning a tenth of the weights does not.",
            members,
            "of the authors' code, OpenReview Q7GXKjmCSB",
            correction="holm",
            refuted_if="any of the three is significantly the other way",
            uncertain="ResNet-50, which has BatchNorm too, loses nothing up to 70 per cent there",
        )
