"""Paper 4 as a study: does registration keep what it promises? (arXiv 2510.11595, H4.3 to H4.5.)

Studies are simulated. Each is analysed by this package's own `protocol`, as a real study is. An arm
is a design and a way to analyse and publish it:

    registered        no effect; one contrast on the primary metric, decided by `judging.verdicts`
    flexible          no effect; several metrics, and a look after every further seed: the first
                      significant test is the result
    metrics_only, looks_only        each of the two liberties alone (explanation, not a hypothesis)
    planned           a true effect; n seeds a group, from `protocol.planning`
    small             the same effect, 3 seeds a group
    complete          an effect that n = 10 often misses; a registry pools every study
    significant_only  the same studies; the registry holds only those that were significant

A seed of the config is one independent stream of `simulate.studies` simulated studies. Arms of one
design see the same studies. Rows, all at step 0:

    metric                  of                value
    study/rejected          {"study": i}      1 if study i rejected its null, else 0
                                              (Quantity(..., over=("seed", "study"),
                                              independent=True))
    seed/rejection_rate     {}                its mean over the studies of one seed
    seed/exaggeration       {}                mean estimate of the seed's significant studies over
                                              the true effect; missing if none was significant;
                                              no row if there is no effect
    registry/estimate       {"registry": r}   mean estimate of the published studies among
                                              `simulate.registry` consecutive ones
    registry/truth          {"registry": r}   the true effect
    registry/bias           {"registry": r}   estimate - truth; missing, as the estimate is, if
                                              nothing was published
                                              (Quantity(..., over=("seed", "registry"),
                                              independent=True))

Only arms with `evaluate.each_study` write `study/rejected`: registered, flexible, planned, small.
The rates of the other arms are in `seed/rejection_rate`.
"""

import functools

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.protocol.claims import Hypothesis
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.papers import paper4
from sharpjax.studies.reproducibility import shows
from sharpjax.studies.reproducibility.simulate import METRICS, Setting, setting, study_values
from sharpjax.train.plan import Draw, Plan

# With fewer simulated studies, starting further processes is not worth its time.
FEW = 5_000


def plan(config: Config) -> Plan:
    """A stage of simulated studies for each arm of the config.

    Raises:
        UserError: the first look of an arm comes after the n that was planned for it.
    """
    seeds = tuple(config.seeds)
    arms = {name: _setting(name, arm) for name, arm in schema.complete_arms(config).items()}
    many = len(seeds) * sum(now.studies for now in arms.values()) >= FEW
    stages = tuple(
        Draw(
            arm=name,
            seeds=seeds,
            fn=functools.partial(study_values, now),
            metrics=METRICS,
            parallel=many,
            says=f"{len(seeds) * now.studies:,} studies, {_words(now)}",
        )
        for name, now in arms.items()
    )
    return Plan({}, stages)


def _setting(name: str, arm: Config) -> Setting:
    try:
        return setting(arm)
    except UserError as error:
        raise UserError(f"arm '{name}': {error}") from None


def hypotheses(config: Config) -> tuple[Hypothesis, ...]:
    """All hypotheses of paper 4; those that need bibliographic data say so."""
    arms = schema.complete_arms(config)
    levels = {name: arms.get(name, config).analysis.alpha for name in ("registered", "flexible")}
    return paper4.hypotheses(**levels, power=arms.get("planned", config).design.power)


def units(config: Config) -> dict[str, int]:
    """How many values of each further coordinate a seed has, for `planning.power.table`."""
    studies = config.simulate.studies
    return {"study": studies, "registry": studies // config.simulate.registry}


def _words(now: Setting) -> str:
    parts = [f"{now.test}, {now.n} and {now.n} seeds, effect {now.effect:g}"]
    if now.metrics > 1:
        parts.append(f"best of {now.metrics} metrics")
    if now.first_look < now.n:
        parts.append(f"looks from {now.first_look} seeds on")
    if now.publish == "significant":
        parts.append("only significant ones published")
    return ", ".join(parts)


STUDY = Study(plan, hypotheses, tables=shows.tables, units=units)
