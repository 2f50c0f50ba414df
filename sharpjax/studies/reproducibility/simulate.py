"""Simulated studies, analysed by `protocol` as a real study is.

`study_values` gives one seed of one arm: a stream of simulated studies and their results. It
depends only on its arguments and imports nothing heavy, so it can run in any number of processes.
"""

import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.protocol.judging import verdicts
from sharpjax.protocol.planning import sensitivity, simulation
from sharpjax.protocol.tests.catalog import TESTS, run
from sharpjax.protocol.tests.result import Samples

METRIC, GROUPS = "test/score", ("treated", "control")


class Setting(NamedTuple):
    """What an arm simulates. The fields are those of the config.

    Attributes:
        effect: true difference of the two groups, in standard deviations.
        n: seeds of each group.
        metrics, correlation: how many metrics a study measures, and how they correlate.
        first_look: seeds at the first look; another look follows after every further seed. `n`: one
            look only.
        publish: which studies a registry pools.
    """

    studies: int
    registry: int
    effect: float
    n: int
    metrics: int
    correlation: float
    test: str
    alpha: float
    first_look: int
    publish: str
    each_study: bool

    @property
    def is_registered(self) -> bool:
        """Whether the analysis is the one contrast that was written down before."""
        return self.metrics == 1 and self.first_look == self.n


class Outcome(NamedTuple):
    """For each simulated study: whether it rejected its null, and its estimate (`difference`)."""

    rejected: np.ndarray
    estimate: np.ndarray


def setting(arm: Any) -> Setting:
    """The setting of a resolved arm. If the arm has n = 0, n is planned for power.

    Raises:
        UserError: the first look comes after the n that was planned.
    """
    design, analysis = arm.design, arm.analysis
    n = design.n or sensitivity.num_seeds(
        design.effect, design.power, test=analysis.test, alpha=analysis.alpha
    )
    if analysis.first_look > n:
        raise UserError(
            f"config.analysis.first_look={analysis.first_look}: the n planned for "
            f"config.design.effect={design.effect} is {n}, so there would be no look; give 2 to "
            f"{n}, or 0 for one look, at the end."
        )
    blocks = (arm.simulate, design, analysis, arm.evaluate)
    fields = {k: v for block in blocks for k, v in block.items() if k in Setting._fields}
    planned = {"effect": float(design.effect), "n": n, "first_look": analysis.first_look or n}
    return Setting(**(fields | planned))


METRICS = (
    *("study/rejected", "seed/rejection_rate", "seed/exaggeration"),
    *("registry/estimate", "registry/truth", "registry/bias"),
)


def study_values(now: Setting, seed: int) -> dict[tuple[str, tuple], float]:
    """The values of one seed of an arm, by metric and further coordinates; `plan` explains them."""
    outcome = simulate(now, seed)
    found: dict[tuple[str, tuple], float] = {}
    if now.each_study:
        for i, rejected in enumerate(outcome.rejected):
            found["study/rejected", (("study", i),)] = float(rejected)
    found["seed/rejection_rate", ()] = float(outcome.rejected.mean())
    if now.effect:
        estimate = _mean(outcome.estimate[outcome.rejected])
        found["seed/exaggeration", ()] = estimate / now.effect
    published = outcome.rejected if now.publish == "significant" else np.ones(now.studies, bool)
    for r, first in enumerate(range(0, now.studies, now.registry)):
        members = slice(first, first + now.registry)
        estimate = _mean(outcome.estimate[members][published[members]])
        own = (("registry", r),)
        found["registry/estimate", own] = estimate
        found["registry/truth", own] = now.effect
        found["registry/bias", own] = estimate - now.effect
    return found


def simulate(now: Setting, seed: int) -> Outcome:
    """Simulate the studies of one seed and analyse each, as registered or flexibly."""
    analyse = registered if now.is_registered else flexible
    results = [analyse(values, now) for values in draw(now, seed)]
    rejected, estimates = zip(*results, strict=True)
    return Outcome(np.array(rejected, bool), np.array(estimates, np.float64))


def draw(now: Setting, seed: int) -> np.ndarray:
    """Values of all studies of one seed: [study, metric, group, unit], normal with deviation 1.

    Units of paired tests correlate between the groups as in `planning.simulation`. The stream
    depends only on the seed and the design, so arms of one design see the same studies.
    """
    paired = TESTS[now.test].kind == "paired"
    design = [now.studies, now.effect, now.n, now.metrics, now.correlation, paired]
    rng = np.random.default_rng([seed, zlib.crc32(json.dumps(design).encode())])

    def noise(groups: int) -> np.ndarray:
        common = rng.standard_normal((now.studies, 1, groups, now.n))
        own = rng.standard_normal((now.studies, now.metrics, groups, now.n))
        return np.sqrt(now.correlation) * common + np.sqrt(1 - now.correlation) * own

    values = noise(2)
    if paired:
        shared = simulation.PAIR_CORRELATION
        values = np.sqrt(shared) * noise(1) + np.sqrt(1 - shared) * values
    values[:, :, 0] += now.effect
    return values


def registered(values: np.ndarray, now: Setting) -> tuple[bool, float]:
    """Decide the one hypothesis of a study from its rows, by `judging.verdicts` as always."""
    common = {"study": "simulated", "step": 0, "of": {}, "metric": METRIC, "standard_error": 0.0}
    rows = [
        common | {"arm": group, "seed": seed, "value": value}
        for group, column in zip(GROUPS, values[0].tolist(), strict=True)
        for seed, value in enumerate(column)
    ]
    contrast = Contrast(Quantity(METRIC), GROUPS, "two-sided", now.test)
    hypothesis = Hypothesis("X.1", "The groups differ.", (contrast,), alpha=now.alpha)
    (judgement,) = verdicts.decide((hypothesis,), rows, seeds=range(now.n))
    (finding,) = judgement.findings
    assert finding.result is not None, finding.reason
    return judgement.verdict == "supported", difference(*values[0], test=now.test)


def flexible(values: np.ndarray, now: Setting) -> tuple[bool, float]:
    """Test every metric at every look and keep the first significant result.

    If there is none, the result is that of the first metric at the last look.
    """
    for n in range(now.first_look, now.n + 1):
        for treated, control in values[:, :, :n]:
            result = run(now.test, Samples((treated, control)), alternative="two-sided")
            if result.p <= now.alpha:
                return True, difference(treated, control, test=now.test)
    return False, difference(*values[0], test=now.test)


def difference(treated: np.ndarray, control: np.ndarray, *, test: str) -> float:
    """The estimate of a study: mean of the treated less mean of the controls, whatever the test.

    It is in standard deviations, as the true effect is. The effect of a rank test is in other
    units. In a paired test it is the mean of the differences.

    >>> difference(np.array([5.0, 6.0]), np.array([1.0, 2.0]), test="mann-whitney")
    4.0
    """
    if TESTS[test].kind == "paired":
        return float((treated - control).mean())
    return float(treated.mean() - control.mean())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan
