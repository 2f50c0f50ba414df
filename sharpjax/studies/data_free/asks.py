"""The hypotheses of the data-free study, net by net.

H2.1 to H2.6 are the paper's, for six-layer MLPs on MNIST with all images. Other nets and data are
asked the same, net by net, under separate ids such as `H2.3 cifar10-vgg_narrow`. Each net is also
asked:

    D.1  layers with more curvature before are those whose replacement costs more
    D.2  curvature orders layers by that cost better than the data-free metrics of the same trained
         net
    D.3  D.1 at equal depth and size of the layers
    D.4  a change of the weights that leaves the function as it is moves alpha by more than 5 per
         cent if each unit has its own factor; one factor for a layer, or another order, does not
         (only nets with ReLU or BatchNorm: no factor of GELU units leaves the function as it is)
    D.5  before training alpha is in [2, 6] in most draws, for every shape of a layer

What is sealed, and why. A layer is critical if `paper2.CRITICAL_DROP` is lost; this threshold and
the margins of H2.* are from `papers/paper2`. The metrics are the eight columns of WeightWatcher
that need neither data nor chance (those that shuffle a layer are themselves random). The 5 per cent
of D.4 are the margin within which H2.1 calls alpha unchanged. D.1 to D.3 take curvature as it is,
in the units of the weights, and the worst case at a tenth of a layer's own norm: a replacement
moves a layer by a multiple of its norm, not by a number that is the same for all layers. D.2
compares each measure with each metric, so one good metric is enough to make it fail. Each net is a
family of its own: with 10 seeds the smallest p is 2^-10, and the 48 comparisons of one net are the
most that Holm's correction leaves decidable.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.schema import Config
from sharpjax.studies.data_free.preserved import Site
from sharpjax.studies.data_free.schema import BASE
from sharpjax.studies.papers import cells, paper2, shorthand
from sharpjax.studies.papers.paper2 import ARMS, DATA_FREE, of_layers
from sharpjax.studies.papers.shorthand import all_of, equal, most, vote
from sharpjax.train.layer_curvature import MEASURES

PAPERS = ("mnist-mlp", 6)  # the place, and how many layers its net has
UNCHANGED = 0.05  # margin of a relative change, as in H2.1
SAME = 1e-3  # margin in float32 for what does not change in closed form
MOST = 0.5

ask = partial(shorthand.ask, source="a question of this repository", status="design")


def hypotheses(
    arms: Mapping[str, Config],
    layers: Mapping[str, Sequence[str]],
    sites: Mapping[str, Sequence[Site]],
) -> tuple[Hypothesis, ...]:
    """All hypotheses that these arms can answer, and those of the paper that they cannot.

    Args:
        arms: of the config, by name.
        layers: for each place, a layer of each shape.
        sites: for each place, the layers whose units can be changed.
    """
    there = [
        f"{place}-{condition}" for place in layers for condition in (BASE, *ARMS, "init", "same")
    ]
    differs = {
        arm: why
        for place in layers
        if (why := _other_than_the_papers(place, arms[f"{place}-{BASE}"]))
        for arm in there
        if arm.startswith(f"{place}-")
    }
    asked = cells.asked_of(there, paper2.HYPOTHESES, differs=differs)
    for place in layers:
        if place != PAPERS[0] or f"{place}-{BASE}" in differs:
            own = paper2.hypotheses((place,), layers=layers)
            data, net = cells.place(place)
            asked += cells.of_others(own, place, f"{net} on {data}")
    for place in layers:
        data, net = cells.place(place)
        own = tuple(_own(place, layers[place], sites[place]))
        asked += cells.of_others(own, place, f"{net} on {data}")
    return asked


def _other_than_the_papers(place: str, arm: Config) -> str:
    """Why an arm with the paper's name is not the paper's net; '' if it is."""
    if place != PAPERS[0]:
        return ""
    name, left_open = f"{place}-{BASE}", {cells.place(place)[1]: {"width": None, "depth": None}}
    if differs := cells.differing({name: arm}, (name,), nets=left_open):
        return differs[name]
    if arm.model.depth + 1 != PAPERS[1]:
        return f"The paper's net has six layers, and this one {(arm.model.depth or 2) + 1}."
    return ""


def _own(place: str, layers: Sequence[str], sites: Sequence[Site]) -> Iterator[Hypothesis]:
    """D.1 to D.5 for a place."""
    base, replaced = f"{place}-{BASE}", [f"{place}-{arm}" for arm in ARMS]
    drop, accuracy = of_layers("layer/accuracy_drop"), of_layers("layer/accuracy")
    held = (of_layers("layer/depth"), of_layers("layer/num_params"))
    cases = list(itertools.product(MEASURES, replaced))
    yield ask(
        "D.1 Layers of more curvature are the ones that cannot be replaced.",
        vote(
            Contrast((of_layers(f"layer/{m}"), drop), (base, arm), "greater", "kendall")
            for m, arm in cases
        ),
        "after H2.3",
        correction="holm",
        refuted_if="in most cases tau is significantly below 0",
    )

    def tracks(measure: str, metric: str, arm: str, direction) -> Contrast:
        sides = (of_layers(f"layer/{measure}"), of_layers(f"layer/{metric}"), accuracy)
        return Contrast(sides, (base, base, arm), direction, "kendall-difference")

    yield ask(
        "D.2 Curvature tracks the cost of a replacement better than the weights do.",
        most(tracks(c, m, arm, "greater") for c, m, arm in itertools.product(
            MEASURES, DATA_FREE, replaced)),
        "after H2.6",
        correction="holm",
        refuted_if="in some arm a data-free metric has a significantly larger |tau| than every "
        "measure of curvature",
        refuting=(
            all_of(
                (tracks(curvature, metric, arm, "less") for curvature in MEASURES),
                f"{metric} tracks the cost better than all of them in {arm}",
            )
            for metric, arm in itertools.product(DATA_FREE, replaced)
        ),
    )  # fmt: skip
    yield ask(
        "D.3 Of equal depth and size, too, those of more curvature cannot be replaced.",
        vote(
            Contrast(
                (of_layers(f"layer/{m}"), drop, *held), (base, arm, base, base), "greater",
                "partial-spearman",
            )
            for m, arm in cases
        ),
        "after H2.3",
        correction="holm",
        refuted_if="in most cases the partial rho is significantly below 0",
    )  # fmt: skip
    if any("units" in site.changes for site in sites):
        yield _of_preserved(place, sites)
    shares = (_share(place, layer) for layer in layers)
    yield ask(
        "D.5 Before training alpha is in [2, 6] in most draws, for every shape.",
        Composite(tuple(shares), "all", "any"),
        "after H2.5",
        correction="holm",
        refuted_if="for some shape significantly fewer than half of the draws are",
    )


def _of_preserved(place: str, sites: Sequence[Site]) -> Hypothesis:
    arm = (f"{place}-same",)
    known = {change for site in sites for change in site.changes}

    def moved(change: str) -> Quantity:
        return Quantity("same/alpha/absolute_change", of={"change": change},
                        over=("seed", "layer"), optional=True)  # fmt: skip

    away = (c for c in ("units", "absorption") if c in known)
    stays = (c for c in ("factor", "permutation") if c in known)
    return ask(
        "D.4 Alpha moves where the function does not, by factors of single units alone.",
        all_of((
            *(Contrast(moved(c), arm, "greater", "mean", null=UNCHANGED) for c in away),
            *(equal(moved(c), arm, "mean", SAME) for c in stays),
        )),
        "in closed form: docs/layers.md",
        refuted_if="a factor for each unit changes alpha by significantly less than 5 per cent",
        refuting=tuple(
            Contrast(moved(c), arm, "less", "mean", null=UNCHANGED)
            for c in ("units", "absorption")
            if c in known
        ),
    )  # fmt: skip


def _share(place: str, layer: str) -> Contrast:
    quantity = Quantity(
        "init/alpha_in_range", of={"layer": layer}, over=("seed", "draw"), independent=True
    )
    return Contrast(quantity, (f"{place}-init",), "greater", "binomial", null=MOST)
