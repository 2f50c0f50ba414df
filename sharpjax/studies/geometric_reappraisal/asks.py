"""The hypotheses of the geometric reappraisal; a run is asked those that its arms allow.

H1.1 to H1.11 are the paper's, for the paper's nets. Other nets are asked the same under separate
ids, such as `H1.1 narrow`; a single narrow net under ids such as `H1.1 vgg_narrow` and
`G1.1 vgg_narrow`; the paper's nets with fewer images or of other widths as `H1.1 other`. What the
paper calls SAM-sharpness is measured here as the mean rise of the loss at random points of a
sphere. The authors' own number is in the further hypotheses:

    G1.1  (a) the authors' noise sharpness of augmented models on images that are augmented anew at
          each draw is at least twice that on augmented images that are held fixed
    G1.2  (a) on fixed images without augmentation, augmented models are still sharper by it
    G1.3  (b) it orders models as the length of the gradient does
    G1.4  (b) at least nine tenths of it come from the first order in the gradient
    G1.5  (c) H1.1 at equal training loss: each model after the first epoch with a training loss of
          at most `evaluate.matched.nll`
    G1.6  (c) H1.1 with logits of one length
    G1.7  H1.11 with the loss on the labels that the models are trained on
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.studies.papers import cells, paper1, shorthand
from sharpjax.studies.papers.paper1 import against_base, correlation, sharper
from sharpjax.studies.papers.shorthand import same_arm, vote

MATCHED = "matched"  # ending of the names of arms at equal training loss
AUGMENTED = ("aug", "aug_sam")
LEAST_SHARE = 0.9
ALIKE = 0.9

ask = partial(shorthand.ask, source="a question of this repository", status="design")


def names_of(examples: int, corrupted: int, labels: str = "") -> dict[str, str]:
    """The names that the paper's metrics have here."""
    where, test = f"train[:{examples}]{labels}", f"test[:{corrupted}]"
    return {
        "train/noise_sharpness": f"{where}/noise_sharpness",
        "train/fisher_rao_norm": f"{where}/fisher_rao",
        "train/relative_flatness": f"{where}/relative_flatness_normalised",
        "train/nll": f"{where}/nll",
        "test/corrupted_accuracy": f"{test}/corrupted_accuracy",
    }


def hypotheses(
    arms: Collection[str],
    *,
    examples: int,
    corrupted: int,
    matched: bool,
    differs: Mapping[str, str] | None = None,
) -> tuple[Hypothesis, ...]:
    """All hypotheses that these arms can answer, and those of the paper that they cannot.

    Args:
        arms: names of the config's arms.
        examples, corrupted: sizes of the sets that are measured.
        matched: whether there are arms at equal training loss.
        differs: arms that are not trained as the paper's, and how; see `cells.asked_of`.
    """
    places = cells.having(arms, "base", *paper1.CONDITIONS)
    noisy = cells.having(arms, *(f"random_{level}" for level in paper1.LEVELS))
    sets, nets = (tuple(dict.fromkeys(x)) for x in zip(*map(cells.place, arms), strict=True))
    named = partial(cells.measured_as, metrics=names_of(examples, corrupted))
    of_labels = partial(cells.measured_as, metrics=names_of(examples, corrupted, "/true"))

    def measured(asked: Sequence[Hypothesis]) -> tuple[Hypothesis, ...]:
        return *named(asked[:-1]), *of_labels(asked[-1:])

    asked = cells.asked_of(arms, measured(paper1.HYPOTHESES), differs=differs)
    ours = named(tuple(_own(places, examples, matched))) if places else ()
    of_paper = {*nets} <= {*paper1.ARCHITECTURES} and {*sets} <= {*paper1.DATA_SETS}
    if not of_paper or differs:
        own = paper1.hypotheses(architectures=nets, data_sets=sets, memorised=noisy)
        there = [h for h in measured(own) if h.contrasts and {*cells.arms_of(h)} <= {*arms}]
        kind = "narrow" if {*sets} <= {*paper1.DATA_SETS} else "small"
        words = f"{kind} nets"
        if of_paper:
            kind, words = cells.OTHER
        elif kind == "narrow" and places and len(nets) == 1:  # a part of `:cpu`
            kind = words = nets[0]
            ours = cells.of_others(ours, kind, words)
        asked += cells.of_others(there, kind, words)
    return asked + ours + tuple(_of_labels(noisy, examples))


def _own(places: Sequence[str], examples: int, matched: bool) -> Iterator[Hypothesis]:
    every = paper1.cells(places, paper1.CONDITIONS)
    where = f"train[:{examples}]"
    authors = f"{where}/authors/noise_sharpness"
    augmented = [(f"{place}-{c}", f"{place}-base") for place in places for c in AUGMENTED]
    pooled = ["|".join(shorthand.names([place], ["base", *paper1.CONDITIONS])) for place in places]
    anew = (
        f"{where}/resampled/authors/noise_sharpness",
        f"{where}/augmented/authors/noise_sharpness",
    )
    yield ask(
        "G1.1 On an augmented loader half of the authors' noise sharpness or more is augmentation.",
        vote(same_arm(a, anew, "greater", "paired-ratio-of-means", null=2.0) for a, _ in augmented),
        "of the authors' code, arXiv 2510.12451",
        correction="holm",
        refuted_if="in most cells the ratio of both is significantly below 2",
    )
    yield ask(
        "G1.2 By the authors' noise sharpness on fixed images augmented minima are sharper.",
        vote(Contrast(Quantity(authors), cell, "greater", "wilcoxon") for cell in augmented),
        "of the authors' code, arXiv 2510.12451",
        correction="holm",
        refuted_if="in most cells significantly flatter",
    )
    lengths = authors, f"{where}/gradient_norm"
    yield ask(
        "G1.3 The authors' noise sharpness orders models of a net as the gradient norm does.",
        vote(same_arm(group, lengths, "greater", "spearman", null=ALIKE) for group in pooled),
        "of the authors' code, arXiv 2510.12451",
        correction="holm",
        refuted_if="in most nets rho is significantly below .9",
    )
    share = Quantity(f"{where}/authors/gradient_share")
    yield ask(
        "G1.4 Nine tenths of the authors' noise sharpness or more are the gradient's.",
        vote(Contrast(share, (group,), "greater", "mean", null=LEAST_SHARE) for group in pooled),
        "of the authors' code, arXiv 2510.12451",
        correction="holm",
        refuted_if="in most nets the mean share is significantly below .9",
    )
    if matched:
        pairs = [(f"{a}-{MATCHED}", f"{base}-{MATCHED}") for a, base in every]
        yield ask(
            "G1.5 At equal training loss regularised minima are sharper than the baseline's.",
            vote(map(sharper, pairs)),
            "after H1.1",
            correction="by",
            refuted_if="in most cells significantly flatter",
            uncertain="losses are equal up to one epoch of training",
        )
    yield ask(
        "G1.6 With logits of one length regularised minima are sharper than the baseline's.",
        vote(_normalised(cell, f"{where}/normalised") for cell in every),
        "after H1.1",
        correction="by",
        refuted_if="in most cells significantly flatter",
    )


def _normalised(cell: paper1.Cell, where: str) -> Composite:
    """Two of the three measures. Relative flatness is left out: it needs logits from a linear
    layer."""
    members = (
        against_base(f"{where}/{m}", cell, "greater", "normalised")
        for m in ("noise_sharpness", "fisher_rao")
    )
    return Composite(tuple(members), "all", "all", f"sharpness of {cell[0]}")


def _of_labels(places: Sequence[str], examples: int) -> Iterator[Hypothesis]:
    """G1.7: one test for each place and measure."""
    if places:
        members = (
            correlation(m, "|".join(f"{p}-random_{level}" for level in paper1.LEVELS),
                        other="fit/nll")
            for p in places for m in ("fisher_rao_norm", "relative_flatness")
        )  # fmt: skip
        own = ask(
            "G1.7 Sharpness and the loss on the labels trained on are negatively related.",
            members,
            "after H1.11",
            correction="holm",
            refuted_if="rho > 0, significantly",
        )
        yield from cells.measured_as([own], names_of(examples, 0, "/true"))
