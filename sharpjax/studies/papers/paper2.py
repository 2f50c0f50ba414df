"""Data-free metrics and reparameterisation (OpenReview J0iFy6BxlC): H2.1 to H2.6.

Arms: `<net>-reinit` and `<net>-rerandom`, in which the layers of a trained net are replaced one by
one by their initial values, or by a fresh draw; ten seeds each. For H2.5 `<net>-init`, nets before
any training. A layer is robust where its replacement costs less than 2 points of accuracy, critical
elsewhere.

Metrics, all at the last step, for every layer (`of` = {"layer": name}), m being one of `DATA_FREE`:

    robust/m/value, critical/m/value     of the trained layer, in the arm in which it is so
    robust/m/change, critical/m/change   (after - before) / |before|
    robust/m/absolute_change             its absolute value
    layer/m                              after the replacement
    layer/accuracy                       test accuracy after the replacement
    layer/disagreement, layer/activation_distance, layer/jsd
                                         between the trained net and that with the layer replaced
    difference/m, difference/accuracy    re-initialised less re-randomised; rows of arm -reinit
    init/alpha_in_range                  1 where alpha of an untrained layer is in [2, 6]; `of` =
                                         {"layer": name, "draw": i}
"""

import itertools
from collections.abc import Mapping, Sequence

from sharpjax.protocol.hypotheses import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Alternative

NETS = ("mlp",)
ARMS = ("reinit", "rerandom")
LAYERS: Mapping[str, Sequence[str]] = {
    "mlp": ("dense_0", "dense_1", "dense_2", "dense_3", "dense_4", "dense_5"),
}
# Names and formulas of WeightWatcher.
DATA_FREE = (
    "alpha", "alpha_weighted", "log_alpha_norm", "log_norm", "log_spectral_norm", "stable_rank",
    "entropy", "mp_softrank",
)  # fmt: skip
DATA_DRIVEN = ("activation_distance", "disagreement", "jsd")

SOURCE = "OpenReview J0iFy6BxlC"
MISSING = "Replacing layers and the data-free metrics are not built."


def of_layers(metric: str) -> Quantity:
    """Layers are the units; those of one seed are a cluster."""
    return Quantity(metric, over=("seed", "layer"))


def hypotheses(
    nets: Sequence[str] = NETS,
    metrics: Sequence[str] = DATA_FREE,
    layers: Mapping[str, Sequence[str]] = LAYERS,
) -> tuple[Hypothesis, ...]:
    """H2.1 to H2.6 for these nets, data-free metrics and, in H2.5, layers of each net."""
    arms = [f"{net}-{arm}" for net, arm in itertools.product(nets, ARMS)]
    return (
        Hypothesis(
            "H2.1",
            "Data-free metrics change where a robust layer is replaced.",
            tuple(
                Contrast(of_layers(f"robust/{m}/change"), (arm,), "two-sided", "wilcoxon")
                for m, arm in itertools.product(metrics, arms)
            ),
            "majority",
            "never",
            correction="holm",
            source=f"{SOURCE}; abstract, review",
            status="partial",
            refuted_if="alpha changes by less than 5 per cent in both arms",
            uncertain="the threshold of robustness, the list of metrics, the margin",
            missing=MISSING,
            refuting=(
                Composite(
                    tuple(
                        Contrast(
                            of_layers("robust/alpha/absolute_change"), (arm,), "two-sided", "mean",
                            margin=0.05, within=True,
                        )
                        for arm in arms
                    ),
                    "all",
                    "never",
                    name="alpha as before, within 5 per cent, in both arms",
                ),
            ),
        ),
        Hypothesis(
            "H2.2",
            "Data-free metrics do not tell robust layers from critical ones.",
            tuple(
                _separation(m, arm, kind, "two-sided", margin=0.2)
                for m, arm, kind in itertools.product(metrics, arms, ("value", "change"))
            ),
            "majority",
            "never",
            correction="none",
            source=f"{SOURCE}; review",
            status="partial",
            refuted_if="for some metric the bound of max(AUC, 1 - AUC) is above 0.7, with one "
            "orientation in both arms",
            uncertain="the threshold; there are few layers in a net",
            missing=MISSING,
            refuting=tuple(
                Composite(
                    tuple(_separation(m, arm, kind, way, null=null) for arm in arms),
                    "all",
                    "never",
                    name=f"{m} ({kind}) tells them apart in both arms",
                )
                for m, kind in itertools.product(metrics, ("value", "change"))
                for way, null in _BEYOND_AUC
            ),
        ),
        Hypothesis(
            "H2.3",
            "Data-free metrics do not predict the accuracy after a replacement.",
            tuple(
                Composite(
                    tuple(c for arm in arms for c in _prediction(m, arm)), "all", "never", name=m
                )
                for m in metrics
            ),
            "majority",
            "never",
            source=f"{SOURCE}; abstract",
            status="partial",
            refuted_if="for some metric tau lies significantly beyond 0.5, with one sign in both "
            "arms and all nets",
            uncertain="whether the authors correlate over layers, over models or over both",
            missing=MISSING,
            refuting=tuple(
                Composite(
                    tuple(
                        Contrast(_accuracy(m), (arm, arm), way, "kendall", null=null)
                        for arm in arms
                    ),
                    "all",
                    "never",
                    name=f"{m} predicts accuracy in all arms",
                )
                for m in metrics
                for way, null in _beyond(0.5)
            ),
        ),
        Hypothesis(
            "H2.4",
            "Data-free metrics do not predict which replacement costs more.",
            tuple(
                Contrast(
                    _difference(m), (f"{net}-reinit",) * 2, "two-sided", "kendall", margin=0.3,
                    within=True,
                )
                for m, net in itertools.product(metrics, nets)
            ),
            "majority",
            "never",
            source=f"{SOURCE}; review",
            status="partial",
            refuted_if="for some metric tau is significantly beyond 0.3, with one sign in all nets",
            uncertain="the exact analysis",
            missing=MISSING,
            refuting=tuple(
                Composite(
                    tuple(
                        Contrast(_difference(m), (f"{net}-reinit",) * 2, way, "kendall", null=null)
                        for net in nets
                    ),
                    "all",
                    "never",
                    name=f"{m} predicts the difference",
                )
                for m in metrics
                for way, null in _beyond(0.3)
            ),
        ),
        Hypothesis(
            "H2.5",
            "An untrained layer can look well trained: its alpha falls in [2, 6] by chance.",
            tuple(
                Contrast(
                    Quantity(
                        "init/alpha_in_range", of={"layer": layer}, over=("seed", "draw"),
                        independent=True,
                    ),
                    (f"{net}-init",),
                    "greater",
                    "binomial",
                    null=0.001,
                )
                for net in nets
                for layer in layers[net]
            ),
            "any",
            "all",
            correction="holm",
            source=f"{SOURCE}; review",
            status="partial",
            refuted_if="the probability is significantly below 0.1 per cent for every layer",
            uncertain="what is not negligible, the shapes of layers, the law of initialisation",
            missing="The fit of alpha is not built.",
        ),
        _tracking(metrics, arms),
    )  # fmt: skip


_BEYOND_AUC: Sequence[tuple[Alternative, float]] = (("greater", 0.7), ("less", 0.3))


def _beyond(threshold: float) -> Sequence[tuple[Alternative, float]]:
    return (("greater", threshold), ("less", -threshold))


def _accuracy(metric: str) -> tuple[Quantity, Quantity]:
    return of_layers(f"layer/{metric}"), of_layers("layer/accuracy")


def _difference(metric: str) -> tuple[Quantity, Quantity]:
    return of_layers(f"difference/{metric}"), of_layers("difference/accuracy")


def _separation(
    metric: str,
    arm: str,
    kind: str,
    direction: Alternative,
    *,
    margin: float | None = None,
    null: float | None = None,
) -> Contrast:
    """The AUC of robust against critical layers."""
    sides = (of_layers(f"robust/{metric}/{kind}"), of_layers(f"critical/{metric}/{kind}"))
    within = margin is not None
    return Contrast(sides, (arm, arm), direction, "auc", margin=margin, null=null, within=within)


def _prediction(metric: str, arm: str) -> tuple[Contrast, ...]:
    """Kendall's tau and Pearson's r within 0.5 of 0, and the RMSE of the line hardly reduced."""
    groups, sides = (arm, arm), _accuracy(metric)
    return (
        Contrast(sides, groups, "two-sided", "kendall", margin=0.5, within=True),
        Contrast(sides, groups, "two-sided", "pearson", margin=0.5, within=True),
        # r = 0.5 leaves 0.87 of the RMSE.
        Contrast(sides, groups, "greater", "fit-error", null=0.87),
    )


def _tracking(metrics: Sequence[str], arms: Sequence[str]) -> Hypothesis:
    def against(driven: str, free: str, arm: str, direction: Alternative) -> Contrast:
        names = (f"layer/{driven}", f"layer/{free}", "layer/accuracy")
        sides = tuple(of_layers(name) for name in names)
        return Contrast(sides, (arm,) * 3, direction, "kendall-difference")

    return Hypothesis(
        "H2.6",
        "Measures that see data track the accuracy better than data-free ones.",
        tuple(
            against(driven, free, arm, "greater")
            for driven, free, arm in itertools.product(DATA_DRIVEN, metrics, arms)
        ),
        "majority",
        "never",
        correction="holm",
        source=f"{SOURCE}; review of the extended version",
        status="partial",
        refuted_if="in some arm a data-free metric has a significantly larger |tau| than every "
        "measure that sees data",
        uncertain="the extended version only",
        missing=MISSING,
        refuting=tuple(
            Composite(
                tuple(against(driven, free, arm, "less") for driven in DATA_DRIVEN),
                "all",
                "never",
                name=f"{free} tracks accuracy better than all of them in {arm}",
            )
            for free, arm in itertools.product(metrics, arms)
        ),
    )


HYPOTHESES = hypotheses()
