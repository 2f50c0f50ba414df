"""What the commands on runs know of a study."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from sharpjax import catalog
from sharpjax.plots import Figure
from sharpjax.protocol.claims import Hypothesis
from sharpjax.provenance import sources
from sharpjax.report.content import Table
from sharpjax.schema import Config
from sharpjax.train import planning
from sharpjax.train.plan import Plan
from sharpjax.train.results import Row


class Arrays(Protocol):
    """Gives the arrays that an arm stored under a name, such as 'curves', by member."""

    def __call__(
        self, arm: str, name: str, *, every_step: bool = False
    ) -> Mapping[Any, Mapping[str, Any]]:
        """Arrays from the end of the arm; with `every_step` from all steps, on a leading axis."""
        ...


def nothing(*args: Any) -> tuple:
    return ()


class Study(NamedTuple):
    """A study. The catalog names its package; the module `plan` of it holds the study as `STUDY`.

    Attributes:
        plan: makes the plan from a config.
        hypotheses: makes the hypotheses from a config.
        tables, figures: what the report shows beside the metrics. Both read rows in the order of
            the plan; `figures` also reads what the arms stored (`Arrays`).
        units: how many values of a further coordinate each seed has, for planning the power.
    """

    plan: Callable[[Config], Plan]
    hypotheses: Callable[[Config], tuple[Hypothesis, ...]] = nothing
    tables: Callable[[list[Row]], tuple[Table, ...]] = nothing
    figures: Callable[[list[Row], Any], Iterable[Figure]] = nothing
    units: Callable[[Config], Mapping[str, int] | None] = lambda config: None


@functools.cache
def study_of(name: str) -> Study:
    """The study that has this name in the catalog."""
    return catalog.resolve(f"{catalog.lookup('study', catalog.STUDIES, name)}.plan:STUDY")


def plan_of(config: Config) -> Plan:
    """The plan of a config, checked.

    Raises:
        UserError: it cannot be run.
    """
    plan = study_of(config.study).plan(config)
    planning.check(plan)
    return plan


def hypotheses_of(config: Config) -> tuple[Hypothesis, ...]:
    """The hypotheses of a config."""
    return tuple(study_of(config.study).hypotheses(config))


def digests_of(config: Config) -> dict[str, str]:
    """Digests of the sources that a run of a config uses: analysis, measures, code."""
    return sources.digests(hypotheses_of(config), config.study, config.to_dict())


def code_of(config: Config) -> dict[str, Any]:
    """The entry for the code in manifests: what git knows of it, and its digests."""
    digests = digests_of(config)
    return sources.commit()._asdict() | {"sources": digests.pop("code")} | digests
