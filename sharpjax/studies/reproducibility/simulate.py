"""Studies that nobody ran: simulated, then analysed by `protocol` as a real one is.

`study_rows` is one seed of one arm: a stream of simulated studies and what became of them. It is a
function of its arguments alone, imports nothing heavy, and so runs in any number of processes.
"""

import functools
import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from sharpjax.protocol import generative, power, verdicts
from sharpjax.protocol.catalog import TESTS
from sharpjax.protocol.hypotheses import Contrast, Hypothesis, Quantity
from sharpjax.protocol.result import Samples

METRIC, GROUPS = "test/score", ("treated", "control")


class Setting(NamedTuple):
    """What an arm simulates; the fields are those of the config.

    Attributes:
        effect: true difference of the two groups, in standard deviations.
        n: seeds of each group.
        metrics, correlation: how many metrics a study measures, and how they correlate.
        first_look: seeds at the first look, with a further one after every further seed; `n`: one
            look.
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
    """Of each simulated study: whether it rejected its null, and its estimate."""

    rejected: np.ndarray
    estimate: np.ndarray


def setting(arm: Any) -> Setting:
    """The setting of a resolved arm; where it says n = 0, n is planned for power."""
    design, analysis = arm.design, arm.analysis
    n = design.n or power.num_seeds(
        design.effect, design.power, test=analysis.test, alpha=analysis.alpha
    )
    return Setting(
        studies=arm.simulate.studies,
        registry=arm.simulate.registry,
        effect=float(design.effect),
        n=n,
        metrics=design.metrics,
        correlation=design.correlation,
        test=analysis.test,
        alpha=analysis.alpha,
        first_look=analysis.first_look or n,
        publish=analysis.publish,
        each_study=arm.evaluate.each_study,
    )


def study_rows(name: str, arm: str, now: Setting, seed: int) -> list[dict[str, Any]]:
    """The rows of one seed of an arm; `studies.reproducibility` names their metrics."""
    outcome = simulate(now, seed)
    common = {"study": name, "arm": arm, "seed": seed, "step": 0, "standard_error": 0.0}

    def row(metric: str, value: float, **of: int) -> dict[str, Any]:
        return common | {"of": of, "metric": metric, "value": float(value)}

    rows = []
    if now.each_study:
        rows += [row("study/rejected", r, study=i) for i, r in enumerate(outcome.rejected)]
    rows.append(row("seed/rejection_rate", outcome.rejected.mean()))
    if now.effect:
        estimate = _mean(outcome.estimate[outcome.rejected])
        rows.append(row("seed/exaggeration", estimate / now.effect))
    published = outcome.rejected if now.publish == "significant" else np.ones(now.studies, bool)
    for r, first in enumerate(range(0, now.studies, now.registry)):
        members = slice(first, first + now.registry)
        estimate = _mean(outcome.estimate[members][published[members]])
        rows.append(row("registry/estimate", estimate, registry=r))
        rows.append(row("registry/truth", now.effect, registry=r))
        rows.append(row("registry/bias", estimate - now.effect, registry=r))
    return rows


def num_rows(now: Setting) -> int:
    """How many rows `study_rows` gives."""
    studies = now.studies if now.each_study else 0
    return studies + 1 + bool(now.effect) + 3 * (now.studies // now.registry)


def simulate(now: Setting, seed: int) -> Outcome:
    """Simulate the studies of one seed and analyse each, by registration or at will."""
    analyse = registered if now.is_registered else flexible
    results = [analyse(values, now) for values in draw(now, seed)]
    rejected, estimates = zip(*results, strict=True)
    return Outcome(np.array(rejected, bool), np.array(estimates, np.float64))


def draw(now: Setting, seed: int) -> np.ndarray:
    """Values of all studies of one seed: [study, metric, group, unit], normal with deviation 1.

    Units of paired tests correlate between the groups as in `generative`. The stream depends on the
    seed and on the design, so that arms of one design see the same studies.
    """
    paired = TESTS[now.test].kind == "paired"
    design = [now.studies, now.effect, now.n, now.metrics, now.correlation, paired]
    rng = np.random.default_rng([seed, zlib.crc32(json.dumps(design).encode())])
    shape = (now.studies, now.metrics, 2, now.n)

    def noise(groups: int) -> np.ndarray:
        common = rng.standard_normal((now.studies, 1, groups, now.n))
        own = rng.standard_normal((now.studies, now.metrics, groups, now.n))
        return np.sqrt(now.correlation) * common + np.sqrt(1 - now.correlation) * own

    values = noise(2)
    if paired:
        shared = generative.PAIR_CORRELATION
        values = np.sqrt(shared) * noise(1) + np.sqrt(1 - shared) * values
    values[:, :, 0] += now.effect
    assert values.shape == shape
    return values


def registered(values: np.ndarray, now: Setting) -> tuple[bool, float]:
    """Decide the one hypothesis of a study from its rows, as `protocol.verdicts` does for all."""
    rows = [
        {
            "study": "simulated",
            "arm": group,
            "seed": seed,
            "step": 0,
            "of": {},
            "metric": METRIC,
            "value": value,
            "standard_error": 0.0,
        }
        for group, column in zip(GROUPS, values[0].tolist(), strict=True)
        for seed, value in enumerate(column)
    ]
    hypothesis = _hypothesis(now.test, now.alpha)
    (judgement,) = verdicts.decide((hypothesis,), rows, seeds=range(now.n))
    (finding,) = judgement.findings
    assert finding.result is not None, finding.reason
    return judgement.verdict == "supported", finding.result.effect


def flexible(values: np.ndarray, now: Setting) -> tuple[bool, float]:
    """Test every metric at every look and keep the first that is significant.

    Where none is, the result is the first metric's at the last look.
    """
    function = TESTS[now.test].function
    for n in range(now.first_look, now.n + 1):
        for treated, control in values[:, :, :n]:
            result = function(Samples((treated, control)), alternative="two-sided")
            if result.p <= now.alpha:
                return True, result.effect
    result = function(Samples((values[0, 0], values[0, 1])), alternative="two-sided")
    return False, result.effect


@functools.cache
def _hypothesis(test: str, alpha: float) -> Hypothesis:
    contrast = Contrast(Quantity(METRIC), GROUPS, "two-sided", test)
    return Hypothesis("X.1", "The groups differ.", (contrast,), alpha=alpha)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan
