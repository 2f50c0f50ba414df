"""Data-free metrics and reparameterisation (OpenReview J0iFy6BxlC): H2.1 to H2.6.

Arms, ten seeds each: in `<data set>-<net>-reinit` and `-rerandom`, the layers of a trained net are
replaced one by one by their initial values, or by a fresh draw. For H2.5, `-init` are nets before
any training, with a layer of each shape. A layer is critical if its replacement costs
`CRITICAL_DROP` of test accuracy or more, otherwise robust.

Metrics, all at the last step, for every layer (`of` = {"layer": name}); m is one of `DATA_FREE`:

    robust/m/value, critical/m/value     of the trained layer, in the arm in which it is so
    robust/m/change, critical/m/change   (after - before) / |before|
    robust/m/absolute_change             its absolute value; with several draws both are means
    layer/m                              after the replacement
    layer/accuracy                       test accuracy after the replacement
    layer/disagreement, layer/activation_distance, layer/jsd
                                         between the trained net and that with the layer replaced
    difference/m, difference/accuracy    re-initialised less re-randomised; rows of arm -reinit
    init/alpha_in_range                  1 if alpha of an untrained layer is in [2, 6], else 0; `of`
                                         = {"layer": name, "draw": i}
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.studies.papers import shorthand
from sharpjax.studies.papers.shorthand import all_of, equal, most, names, same_arm

NETS = ("mnist-mlp",)
ARMS = ("reinit", "rerandom")
# For each net, a layer of each shape: the six layers have three shapes.
LAYERS: Mapping[str, Sequence[str]] = {"mnist-mlp": ("Dense_0", "Dense_1", "head")}
# Names and formulas of WeightWatcher.
DATA_FREE = (
    "alpha", "alpha_weighted", "log_alpha_norm", "log_norm", "log_spectral_norm", "stable_rank",
    "entropy", "mp_softrank",
)  # fmt: skip
DATA_DRIVEN = ("activation_distance", "disagreement", "jsd")
# In test accuracy, 0 to 1. A robust layer is one whose replacement does no harm, and H2.1 says that
# metrics move while the function does not. The other common threshold, a tenth of the accuracy,
# would be 9.8 points for a net at 98 per cent. 1 point can be noise on a small test set.
CRITICAL_DROP = 0.02
THRESHOLD = (
    f"when a layer is critical: here where {100 * CRITICAL_DROP:g} points of accuracy or more are "
    "lost, not a tenth of it, since a robust layer is one that can be replaced without harm"
)

ask = partial(
    shorthand.ask,
    source="OpenReview J0iFy6BxlC",
    status="partial",
)


def of_layers(metric: str) -> Quantity:
    """A metric whose units are layers; the layers of one seed are a cluster.

    A net may have no robust layer, or no critical one.
    """
    optional = metric.split("/")[0] in ("robust", "critical")
    return Quantity(metric, over=("seed", "layer"), optional=optional)


def beside(
    arm: str, metrics: Iterable[str], direction: Alternative, test: str, **more: Any
) -> Contrast:
    """Several quantities of the layers of an arm."""
    return same_arm(arm, map(of_layers, metrics), direction, test, **more)


def unrelated(arm: str, metrics: Iterable[str], test: str, margin: float) -> Contrast:
    """Two quantities of the layers of an arm are not related."""
    return beside(arm, metrics, "two-sided", test, margin=margin, within=True)


def related(
    name: str, sides: Mapping[str, Iterable[str]], arms: Sequence[str], test: str, *bounds: float
) -> Iterator[Composite]:
    """In all arms the test of two quantities lies significantly above the first bound, or in all
    arms below the second."""
    ways: tuple[Alternative, ...] = ("greater", "less")
    for label, two in sides.items():
        for way, null in zip(ways, bounds, strict=True):
            members = (beside(arm, two, way, test, null=null) for arm in arms)
            yield all_of(members, name.format(label))


def separation(metric: str, kind: str) -> tuple[str, str]:
    return f"robust/{metric}/{kind}", f"critical/{metric}/{kind}"


def unchanged(arm: str) -> Contrast:
    return equal(of_layers("robust/alpha/absolute_change"), (arm,), "mean", 0.05)


def chance(net: str, layer: str) -> Contrast:
    """Alpha of an untrained layer is in [2, 6] in more than one draw of a thousand."""
    quantity = Quantity(
        "init/alpha_in_range", of={"layer": layer}, over=("seed", "draw"), independent=True
    )
    return Contrast(quantity, (f"{net}-init",), "greater", "binomial", null=0.001)


def tracks(driven: str, free: str, arm: str, direction: Alternative) -> Contrast:
    """Which of two measures has the larger |tau| with the accuracy."""
    sides = (f"layer/{driven}", f"layer/{free}", "layer/accuracy")
    return beside(arm, sides, direction, "kendall-difference")


def hypotheses(
    nets: Sequence[str] = NETS,
    metrics: Sequence[str] = DATA_FREE,
    layers: Mapping[str, Sequence[str]] = LAYERS,
) -> tuple[Hypothesis, ...]:
    """H2.1 to H2.6 for these nets (each with its data set), data-free metrics and, for H2.5, layers
    of each net."""
    arms, reinit = names(nets, ARMS), names(nets, ["reinit"])
    kinds = ("value", "change")
    apart = {f"{m} ({kind})": separation(m, kind) for m in metrics for kind in kinds}
    accuracy = {m: (f"layer/{m}", "layer/accuracy") for m in metrics}
    difference = {m: (f"difference/{m}", "difference/accuracy") for m in metrics}

    def unpredictable(arm: str, metric: str) -> tuple[Contrast, ...]:
        """Kendall's tau and Pearson's r are near 0, and a line hardly reduces the RMSE."""
        return (
            unrelated(arm, accuracy[metric], "kendall", 0.5),
            unrelated(arm, accuracy[metric], "pearson", 0.5),
            # r = 0.5 leaves sqrt(1 - 0.25) = 0.87 of the RMSE.
            beside(arm, accuracy[metric], "greater", "fit-error", null=0.87),
        )

    return (
        ask(
            "H2.1 Data-free metrics change where a robust layer is replaced.",
            most(
                Contrast(of_layers(f"robust/{m}/change"), (arm,), "two-sided", "wilcoxon")
                for m, arm in itertools.product(metrics, arms)
            ),
            "abstract, review",
            correction="holm",
            refuted_if="alpha changes by less than 5 per cent in both arms",
            refuting=all_of(
                map(unchanged, arms), "alpha as before, within 5 per cent, in both arms"
            ),
            uncertain=f"{THRESHOLD}; the list of metrics, the margin",
        ),
        ask(
            "H2.2 Data-free metrics do not tell robust layers from critical ones.",
            most(
                unrelated(arm, separation(m, kind), "auc", 0.2)
                for m, arm, kind in itertools.product(metrics, arms, kinds)
            ),
            "review",
            refuted_if="for some metric the bound of max(AUC, 1 - AUC) is above 0.7, with one "
            "orientation in both arms",
            refuting=related("{} tells them apart in both arms", apart, arms, "auc", 0.7, 0.3),
            uncertain=f"{THRESHOLD}; there are few layers in a net",
        ),
        ask(
            "H2.3 Data-free metrics do not predict the accuracy after a replacement.",
            most(all_of((c for arm in arms for c in unpredictable(arm, m)), m) for m in metrics),
            "abstract",
            refuted_if="for some metric tau lies significantly beyond 0.5, with one sign in both "
            "arms and all nets",
            refuting=related(
                "{} predicts accuracy in all arms", accuracy, arms, "kendall", 0.5, -0.5
            ),
            uncertain="whether the authors correlate over layers, over models or over both",
        ),
        ask(
            "H2.4 Data-free metrics do not predict which replacement costs more.",
            most(unrelated(arm, difference[m], "kendall", 0.3) for m in metrics for arm in reinit),
            "review",
            refuted_if="for some metric tau is significantly beyond 0.3, with one sign in all nets",
            refuting=related(
                "{} predicts the difference", difference, reinit, "kendall", 0.3, -0.3
            ),
            uncertain="the exact analysis",
        ),
        ask(
            "H2.5 An untrained layer can look well trained: its alpha falls in [2, 6] by chance.",
            Composite(
                tuple(chance(net, layer) for net in nets for layer in layers[net]), "any", "all"
            ),
            "review",
            correction="holm",
            refuted_if="the probability is significantly below 0.1 per cent for every layer",
            uncertain="what is not negligible, the shapes of layers, the law of initialisation",
        ),
        ask(
            "H2.6 Measures that see data track the accuracy better than data-free ones.",
            most(
                tracks(driven, free, arm, "greater")
                for driven, free, arm in itertools.product(DATA_DRIVEN, metrics, arms)
            ),
            "review of the extended version",
            correction="holm",
            refuted_if="in some arm a data-free metric has a significantly larger |tau| than every "
            "measure that sees data",
            refuting=(
                all_of(
                    (tracks(driven, free, arm, "less") for driven in DATA_DRIVEN),
                    f"{free} tracks accuracy better than all of them in {arm}",
                )
                for free, arm in itertools.product(metrics, arms)
            ),
            uncertain="the extended version only",
        ),
    )


HYPOTHESES = hypotheses()
