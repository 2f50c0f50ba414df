"""The hypotheses of the surfaces study, T1.1 to T1.10, by the arms and starts of a run.

None is a hypothesis of the paper, which gives no numbers for this study. They were written before
any run was looked at. With one start, as in the paper, only T1.1, T1.2 and T1.5 can be asked, with
the seven surfaces as seven units; their ids then end in `-one-start`.
"""

from collections.abc import Sequence
from functools import partial

from sharpjax import schema
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative
from sharpjax.schema import Config
from sharpjax.studies.papers import shorthand
from sharpjax.studies.papers.shorthand import same_arm, vote

SOURCE = "arXiv 2510.12451"
EARLY = 10  # steps: Adam has moved no weight by more than about .01
MARGIN = 0.3  # of a correlation; nothing smaller is of interest

ERROR, RELATIVE = Quantity("fit/test_mse"), Quantity("fit/test_relative")
AUTHORS = Quantity("authors/mean", of={"rho": "0.005"})  # their rho in the other studies
LAMBDA, TRACE = Quantity("defined/lambda_1"), Quantity("defined/trace")
SHARPNESS = (
    AUTHORS,
    LAMBDA,
    TRACE,
    Quantity("defined/average_sharpness", of={"rho": "0.05"}),
    Quantity("defined/worst_case_sharpness"),
    Quantity("defined/fisher_rao"),
    Quantity("defined/relative_flatness"),
)
FIRST_ORDER = Quantity("authors/first_order")

ask = partial(shorthand.ask, source=SOURCE, status="design", correction="holm")


def hypotheses(config: Config) -> tuple[Hypothesis, ...]:
    """The hypotheses that the arms and starts of a config can answer."""
    arms = tuple(schema.complete_arms(config))
    if len(config.seeds) == 1:
        return _over_surfaces(arms, "spearman-over-arms", "-one-start")
    asked = (*_over_surfaces(arms, "spearman", ""), *_by_surface(arms))
    return tuple(sorted(asked, key=lambda one: int(one.id.removeprefix("T1."))))


def _over_surfaces(arms: Sequence[str], test: str, suffix: str) -> tuple[Hypothesis, ...]:
    every = "|".join(arms)

    def follows(other: Quantity) -> Composite:
        return vote(
            same_arm(every, (sharpness, other), "greater", test, margin=MARGIN)
            for sharpness in SHARPNESS
        )

    # With so few arms, a correlation is only tested against 0.
    least = None if suffix else 0.5
    agrees = same_arm(every, (AUTHORS, LAMBDA), "greater", test, margin=MARGIN, null=least)
    words = "" if suffix else " (rho above .5)"
    return (
        ask(
            f"T1.1{suffix} At the end sharpness orders the surfaces as their test error does.",
            follows(ERROR),
            "toy regression: sharpness follows the function that is learned",
            refuted_if="most of seven measures of sharpness fall with the error, significantly",
            uncertain="both grow with the square of a surface's height; T1.2 takes that from the "
            "error",
        ),
        ask(
            f"T1.2{suffix} At the end sharpness orders the surfaces as their test error does over "
            "the variance of their heights.",
            follows(RELATIVE),
            "toy regression: sharpness follows the function that is learned",
            refuted_if="most of seven measures of sharpness fall with the relative error, "
            "significantly: surfaces that are learned better are sharper",
        ),
        ask(
            f"T1.5{suffix} At the end the authors' statistic orders models as the largest "
            f"eigenvalue does{words}.",
            (agrees,),
            "toy regression: their SAM-sharpness is read as curvature",
            refuted_if="rho is significantly below that",
        ),
    )


def _by_surface(arms: Sequence[str]) -> tuple[Hypothesis, ...]:
    def rises(*sharpness: Quantity) -> Composite:
        """On most surfaces the test error falls and sharpness rises from `EARLY` to the end."""
        return vote(
            Composite(
                (_later(arm, ERROR, "less"), *(_later(arm, s, "greater") for s in sharpness)),
                name=arm,
            )
            for arm in arms
        )

    def within(x: Quantity, y: Quantity) -> Composite:
        return vote(same_arm(arm, (x, y), "greater", "spearman", margin=MARGIN) for arm in arms)

    flat = "The common belief, from which the paper argues away: flatter is better."
    return (
        ask(
            f"T1.3 From step {EARLY} to the end test error falls while the largest eigenvalue and "
            "the trace of the Hessian rise, on most surfaces.",
            rises(LAMBDA, TRACE),
            "toy regression: a flat net is not a better one",
            refuted_if="on most surfaces the error rises or one of the two falls, significantly",
        ),
        ask(
            f"T1.4 From step {EARLY} to the end test error falls while the authors' statistic "
            "rises, on most surfaces.",
            rises(AUTHORS),
            "toy regression: a flat net is not a better one",
            refuted_if="on most surfaces the error rises or the statistic falls, significantly",
            uncertain="to first order it is the length of the gradient, which falls at a minimum",
        ),
        ask(
            "T1.6 Among the starts of one surface the authors' statistic orders models as the "
            "largest eigenvalue does, on most surfaces.",
            within(AUTHORS, LAMBDA),
            "toy regression: their SAM-sharpness is read as curvature",
            refuted_if="on most surfaces rho is significantly negative",
            uncertain="ten starts have little power",
        ),
        ask(
            "T1.7 Among the starts of one surface those of lower test error are flatter by the "
            "largest eigenvalue, on most surfaces.",
            within(LAMBDA, ERROR),
            "asks what it argues against",
            reference=flat,
            refuted_if="on most surfaces rho is significantly negative",
            uncertain="ten starts have little power",
        ),
        ask(
            "T1.8 Among the starts of one surface those of lower test error are flatter by the "
            "authors' statistic, on most surfaces.",
            within(AUTHORS, ERROR),
            "asks what it argues against",
            reference=flat,
            refuted_if="on most surfaces rho is significantly negative",
            uncertain="ten starts have little power",
        ),
        ask(
            "T1.9 At the end the authors' statistic at rho = 0.0005 is sqrt(2/pi) |g| / sqrt(P), "
            "within ten per cent, on every surface.",
            (
                Contrast(
                    (Quantity("authors/mean", of={"rho": "0.0005"}), FIRST_ORDER),
                    (arm, arm),
                    "two-sided",
                    "paired-ratio-of-means",
                    margin=0.1,
                    within=True,
                )
                for arm in arms
            ),
            "toy regression, smallest rho; the identity is derived here",
            refuted_if="on some surface the ratio is significantly further from 1",
        ),
        ask(
            "T1.10 At the end the authors' statistic at rho = 0.5 is more than twice that, on most "
            "surfaces: there it is curvature.",
            vote(
                Contrast(
                    (Quantity("authors/mean", of={"rho": "0.5"}), FIRST_ORDER),
                    (arm, arm),
                    "greater",
                    "paired-ratio-of-means",
                    null=2.0,
                )
                for arm in arms
            ),
            "toy regression, largest rho",
            refuted_if="on most surfaces the ratio is significantly below 2",
        ),
    )


def _later(arm: str, quantity: Quantity, direction: Alternative) -> Contrast:
    """The end against step `EARLY`, paired by start."""
    early = Quantity(quantity.metric, EARLY, quantity.of)
    return Contrast((quantity, early), (arm, arm), direction, "wilcoxon", MARGIN)
