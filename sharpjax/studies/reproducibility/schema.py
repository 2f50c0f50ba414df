"""What a config of the reproducibility study must hold. Nothing heavy is imported here."""

from collections.abc import Mapping

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.schema import COUNT, COUNT_OR_0, FLAG, Config, Rule, Rules

# The tests of `protocol.tests.catalog` that compare two groups of seeds. Importing it would import
# scipy.
TESTS = ("welch", "mann-whitney", "mean-difference")
PAIRED_TESTS = ("paired-t", "wilcoxon")

_PROPER = Rule(lambda v: isinstance(v, float) and 0 < v < 1, "a number in (0, 1)")
_CORRELATION = Rule(  # numpy's, in float64
    lambda v: (isinstance(v, float) or COUNT_OR_0.holds(v)) and 0 <= v < 1, "a number in [0, 1)"
)

FIELDS: Mapping[str, Rule] = {
    "simulate.studies": COUNT,
    "simulate.registry": COUNT,
    "design.effect": schema.AT_LEAST_0,
    "design.n": COUNT_OR_0,
    "design.power": _PROPER,
    "design.metrics": COUNT,
    "design.correlation": _CORRELATION,
    "analysis.test": schema.one_of(*TESTS, *PAIRED_TESTS),
    "analysis.alpha": _PROPER,
    "analysis.first_look": COUNT_OR_0,
    "analysis.publish": schema.one_of("all", "significant"),
    "evaluate.each_study": FLAG,
}


def _check_arm(arm: Config) -> None:
    simulate, design, analysis = arm.simulate, arm.design, arm.analysis
    if simulate.studies % simulate.registry:
        raise UserError(
            f"config.simulate.registry={simulate.registry} does not divide "
            f"studies={simulate.studies}."
        )
    if design.n == 0 and not design.effect > 0:
        raise UserError(
            "config.design.n=0 plans n for the effect, and config.design.effect=0.0 is none; give "
            "an n of 2 or more."
        )
    if design.n == 1:
        raise UserError("config.design.n=1: a test needs 2 or more; 0 plans n for the effect.")
    if design.n == 0 and not analysis.alpha < design.power:
        raise UserError(
            f"config.design.power={design.power} must be above config.analysis.alpha="
            f"{analysis.alpha}."
        )
    first = analysis.first_look
    if first == 1 or (design.n and first > design.n):
        raise UserError(
            f"config.analysis.first_look={first}: give 2 to {design.n or 'n'}, or 0 for one look, "
            f"at the end."
        )


RULES = Rules(fields=FIELDS, check_arm=_check_arm, shared=("simulate",))
