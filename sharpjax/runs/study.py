"""What a study is to everything that is done to its runs."""

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
    """Arm and name of what was stored at its end, as 'curves' -> arrays by member."""

    def __call__(
        self, arm: str, name: str, *, every_step: bool = False
    ) -> Mapping[Any, Mapping[str, Any]]:
        """With `every_step` as `Library.trajectory`: at all steps, on a leading axis."""
        ...


def nothing(*args: Any) -> tuple:
    return ()


class Study(NamedTuple):
    """A study. The catalog names its package, whose module `plan` holds it as `STUDY`.

    Attributes:
        plan: what is done, from a config.
        hypotheses: what it sets out to decide.
        tables, figures: what its report shows beside the metrics, from its rows, in plan order, and
            what was stored at the ends of its arms.
        units: how many values of a further coordinate a seed has, for planning.
    """

    plan: Callable[[Config], Plan]
    hypotheses: Callable[[Config], tuple[Hypothesis, ...]] = nothing
    tables: Callable[[list[Row]], tuple[Table, ...]] = nothing
    figures: Callable[[list[Row], Any], Iterable[Figure]] = nothing
    units: Callable[[Config], Mapping[str, int] | None] = lambda config: None


@functools.cache
def study_of(name: str) -> Study:
    """The study that the catalog knows by a name."""
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
    """What the study of a config sets out to decide."""
    return tuple(study_of(config.study).hypotheses(config))


def digests_of(config: Config) -> dict[str, str]:
    """Digests of the sources that a run of a config rests on: analysis, measures, code."""
    return sources.digests(hypotheses_of(config), config.study, config.to_dict())


def code_of(config: Config) -> dict[str, Any]:
    """The code as manifests record it: what git knows of it, and its digests."""
    digests = digests_of(config)
    return sources.commit()._asdict() | {"sources": digests.pop("code")} | digests
