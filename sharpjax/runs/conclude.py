"""What a run's rows say of its hypotheses."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from sharpjax import catalog, workdir
from sharpjax.protocol.attrition import Funnel, funnel
from sharpjax.protocol.claims import Hypothesis
from sharpjax.protocol.judging.verdicts import Judgement, decide
from sharpjax.protocol.planning import power
from sharpjax.protocol.samples import Table, table
from sharpjax.report.console import verdict_table
from sharpjax.runs import read, study
from sharpjax.runs.standing import Standing, standing


class Conclusion(NamedTuple):
    """What a run came to.

    Attributes:
        standing: under which registration.
        judgements: of the registered hypotheses, all of them; of an unregistered run, of the
            study's.
        exploratory: of what the study asks beside, in a registered run.
        funnel: what became of each arm's seeds.
    """

    standing: Standing
    judgements: tuple[Judgement, ...]
    exploratory: tuple[Judgement, ...]
    funnel: tuple[Funnel, ...]


def conclude(
    folder: epath.Path, config: Mapping[str, Any], rows: Iterable[workdir.Row]
) -> Conclusion:
    """Judge every hypothesis by the rows of a run.

    Raises:
        UserError: the registration was tampered with, or rows are duplicated.
    """
    under, rows, own = standing(folder), list(rows), _hypotheses_of(config)
    there, index, others = under.registered, table(rows), ()
    if there is None:
        planned, judgements = config["seeds"], _decide(own, index, None)
    else:
        planned, ids = there.seeds, {h.id for h in there.hypotheses}
        judgements = _decide(there.hypotheses, index, planned)
        others = _decide([h for h in own if h.id not in ids], index, None)
    arms = list(dict.fromkeys([*(row["arm"] for row in rows), *config["arms"]]))
    seeds = funnel(index, arms=arms, seeds=list(planned))
    return Conclusion(under, judgements, others, seeds)


def _decide(
    hypotheses: Iterable[Hypothesis], index: Table, seeds: Sequence[int] | None
) -> tuple[Judgement, ...]:
    return decide(hypotheses, index, seeds=seeds, detectable=power.detectable)


def _hypotheses_of(config: Mapping[str, Any]) -> tuple:
    """Those that the study has now; none of a study or a config that this version does not know."""
    if config["study"] not in catalog.STUDIES:
        return ()
    try:
        return study.hypotheses_of(ConfigDict(read.tuples(config)))
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


def print_verdicts(config: ConfigDict, run: workdir.Run) -> None:
    """The verdict table of a finished run, and under which registration it stands."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    found = conclude(run.path, config.to_dict(), run.rows())
    there, warnings = found.standing.registered, found.standing.warnings
    title = f"registered {there.time}, seal {there.seal[:12]}" if there else warnings[0]
    if found.judgements:
        console.print(verdict_table(found.judgements, title))
    for warning in warnings if there else ():
        console.print(f"warning: {warning}", markup=False)
