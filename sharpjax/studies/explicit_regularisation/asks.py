"""The hypotheses of the study: H6.1 to H6.9 of the paper, and our own.

Ids without an ending are for the paper's nets. Other nets are asked the same one by one, as
`H6.2 resnet_narrow`, and H6.9 over all of them, as `H6.9 narrow`; so are the paper's nets with
fewer images or of other widths, as `H6.2 vgg19` and `H6.9 other`. Everything is measured by the
definitions. H6.1 to H6.3 are also asked of the numbers that the authors' code computes, as
`H6.2 resnet_narrow (authors)`. A report thus shows whether a conclusion depends on the convention.

    N.1  the authors' number is larger if augmentation is drawn anew during the measurement
    N.2  their number follows the length of the gradient: Spearman's rho is above 0.8
    N.3  at their distance, the gradient adds more to the loss at random points than curvature does:
         to second order the ratio of both falls as the distance grows
    N.4  with logits of one length, augmentation and weight decay are sharper than the baseline
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from sharpjax import schema
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.schema import Config
from sharpjax.studies.papers import cells, paper6
from sharpjax.studies.papers.paper6 import SHARPER
from sharpjax.studies.papers.shorthand import names, same_arm, vote

SAID_BY_BOTH = ("H6.1", "H6.2", "H6.3")
LARGE_RHO = 0.8
VALIDATED = 5_000  # images that the full form sets aside
NETS = {"vit": {"width": 768, "depth": 4}}  # of the full form
NOT_THEIR_VIT = (
    "The paper's ViT has two layers after its last block; {} has the linear head of all nets here."
)


def right(where: str) -> dict[str, str]:
    """The metric of each quantity of the paper, by its definition, on a measurement set."""
    flatness = "relative_flatness_normalised"
    return {
        "train/weight_norm": f"{where}/head_norm",
        "train/fisher_rao_norm": f"{where}/fisher_rao",
        "train/relative_flatness": f"{where}/{flatness}",
        "train/scaled/relative_flatness": f"{where}/scaled/{flatness}",
        "train/noise_sharpness": f"{where}/noise_sharpness",
        "train/igs": f"{where}/information_sharpness",
        "train/nll": f"{where}/nll",
    }


def theirs(where: str) -> dict[str, str]:
    """The same, with three of them as the authors' code computes them."""
    return right(where) | {
        "train/fisher_rao_norm": f"{where}/authors/fisher_rao",
        "train/relative_flatness": f"{where}/authors/relative_flatness",
        "train/noise_sharpness": f"{where}/authors/noise_sharpness",
    }


def hypotheses(config: Config) -> tuple[Hypothesis, ...]:
    """All hypotheses; each says what the config lacks."""
    trained = tuple(config.arms)
    there = (*trained, *(f"{name}-es" for name in trained))
    where = f"train[:{config.evaluate.sharpness.num_examples}]"
    by_place = dict.fromkeys(map(cells.place, trained))
    data_sets, nets = (tuple(dict.fromkeys(part)) for part in zip(*by_place, strict=True))
    otherwise = cells.differing(schema.complete_arms(config), there, validated=VALIDATED, nets=NETS)
    differs = {name: NOT_THEIR_VIT.format(name) for name in there if cells.place(name)[1] == "vit"}
    papers = cells.measured_as(paper6.HYPOTHESES, right(where))
    of_papers = {*paper6.CLASSES} - {cells.place(name)[1] for name in otherwise}
    others = tuple(net for net in nets if net not in of_papers)
    return (
        *cells.asked_of(there, papers, differs=otherwise | differs),
        *(asked for net in others for asked in of_net(net, data_sets, there, where)),
        *of_all_nets(others, data_sets, there, where),
        *own_questions(trained, where, config.evaluate),
    )


def of_net(
    net: str, data_sets: Sequence[str], there: Sequence[str], where: str
) -> Iterator[Hypothesis]:
    """H6.1 to H6.8 for a net that is not the paper's, and three of them by the authors' code."""
    *every, _ = paper6.hypotheses((net,), data_sets, (net,))
    again = [h for h in every if h.id in SAID_BY_BOTH]
    for kind, asked, metrics in ((net, every, right(where)),
                                 (f"{net} (authors)", again, theirs(where))):  # fmt: skip
        words = kind.replace(" (authors)", ", by the authors' code")
        own = cells.of_others(cells.measured_as(asked, metrics), kind, words)
        yield from cells.asked_of(there, own)


def of_all_nets(
    nets: Sequence[str], data_sets: Sequence[str], there: Sequence[str], where: str
) -> tuple[Hypothesis, ...]:
    """H6.9 over the nets that are not the paper's, or trained otherwise, if there are two."""
    if len(nets) < 2:
        return ()
    across = paper6.hypotheses(nets, data_sets, nets)[-1:]
    own = cells.measured_as(across, right(where))
    named = cells.OTHER if {*nets} & {*paper6.CLASSES} else ("narrow", "narrow nets")
    return cells.asked_of(there, cells.of_others(own, *named))


def own_questions(trained: Sequence[str], where: str, evaluate: Config) -> Iterator[Hypothesis]:
    """N.1 to N.4, each if the config has the arms that it needs."""
    places = tuple(dict.fromkeys("-".join(cells.place(name)) for name in trained))
    noise, length = f"{where}/authors/noise_sharpness", f"{where}/gradient_norm"
    anew, fixed = (f"{where}/{kind}/authors/noise_sharpness" for kind in ("resampled", "augmented"))
    augmented = [name for name in trained if name.endswith("-augmentation")]
    by_place = {p: [n for n in trained if n.startswith(f"{p}-")] for p in places}
    pooled = ["|".join((*own, *(f"{name}-es" for name in own))) for own in by_place.values()]
    slope, rise = f"{where}/noise_sharpness/slope", f"{where}/noise_sharpness"
    at, ours = evaluate.authors.rho, evaluate.sharpness.noise_rho
    normalised = [f"{where}/normalised/{name}" for name in ("noise_sharpness", "fisher_rao")]
    pairs = [
        (names([place], [regulariser], ["es"])[0], f"{place}-baseline-es")
        for place, regulariser in itertools.product(places, SHARPER)
        if {f"{place}-{regulariser}", f"{place}-baseline"} <= set(trained)
    ]
    asked: Mapping[str, tuple[str, list, str]] = {
        "N.1": (
            "The authors' noise sharpness of models that were trained with augmentation is larger "
            "where images are augmented anew for each loss than on a fixed augmented set.",
            [same_arm(name, (anew, fixed), "greater", "wilcoxon") for name in augmented],
            "in most places it is significantly smaller",
        ),
        "N.2": (
            f"The authors' noise sharpness follows the length of the gradient, rho > {LARGE_RHO}.",
            [same_arm(group, (noise, length), "greater", "spearman", null=LARGE_RHO)
             for group in pooled],
            f"in most places rho is significantly below {LARGE_RHO}",
        ),
        "N.3": (
            f"At random points at a distance of {at} the gradient changes the loss by more, as "
            f"a root mean square, than curvature raises it: at {ours}, where it is measured, by "
            f"more than {at / ours:g} of that.",
            [same_arm(name, (slope, rise), "greater", "paired-ratio-of-means", null=at / ours)
             for name in trained],
            "of most arms it is significantly less",
        ),
        "N.4": (
            "With logits of one length augmentation and weight decay end sharper than the "
            "baseline.",
            [vote((Contrast(Quantity(m), pair, "greater", "wilcoxon") for m in normalised), pair[0])
             for pair in pairs],
            "most are significantly flatter",
        ),
    }  # fmt: skip
    for id, (claim, members, refuted_if) in asked.items():
        if members:
            whole = vote(members)
            yield Hypothesis(
                id, claim, whole.members, whole.supported_by, whole.refuted_by,
                correction="holm",
                source="a question of this repository, of the conventions in OpenReview ZQTiGcykl6",
                status="design",
                refuted_if=refuted_if,
            )  # fmt: skip
