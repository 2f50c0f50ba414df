"""Judge the hypotheses of a run by its rows. A registration seals this module as its analysis."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from sharpjax import catalog, workdir
from sharpjax.protocol.attrition import Funnel, funnel
from sharpjax.protocol.claims import Hypothesis
from sharpjax.protocol.judging.verdicts import Judgement, decide
from sharpjax.protocol.planning import power
from sharpjax.protocol.samples import Table, table
from sharpjax.protocol.seals.registration import Registration
from sharpjax.runs import read, standing


class Conclusion(NamedTuple):
    """The conclusions of a run.

    Attributes:
        registered: the registration of the run; None: everything is exploratory.
        judgements: of all registered hypotheses; of an unregistered run, of those of the study.
        exploratory: in a registered run, of the study's hypotheses that were not registered.
        funnel: for each arm, how many seeds were planned, done and failed.
    """

    registered: Registration | None
    judgements: tuple[Judgement, ...]
    exploratory: tuple[Judgement, ...]
    funnel: tuple[Funnel, ...]


def words(judgements: Iterable[Judgement]) -> dict[str, str]:
    """The verdict of each hypothesis, by its id."""
    return {found.hypothesis.id: found.verdict for found in judgements}


def conclude(
    folder: epath.Path, config: Mapping[str, Any], rows: Iterable[workdir.Row]
) -> Conclusion:
    """Judge every hypothesis by the rows of a run.

    Raises:
        UserError: the registration was changed after it was sealed, or rows occur twice.
    """
    there, rows, own = standing.read(folder), list(rows), _hypotheses_of(config)
    index, others = table(rows), ()
    if there is None:
        planned, judgements = config["seeds"], _decide(own, index, None)
    else:
        planned, ids = there.seeds, {h.id for h in there.hypotheses}
        judgements = judge(there, index)
        others = _decide([h for h in own if h.id not in ids], index, None)
    arms = list(dict.fromkeys([*(row["arm"] for row in rows), *config["arms"]]))
    return Conclusion(there, judgements, others, funnel(index, arms=arms, seeds=list(planned)))


def judge(there: Registration, rows: Iterable[workdir.Row] | Table) -> tuple[Judgement, ...]:
    """Judge the registered hypotheses only; no study is imported."""
    return _decide(there.hypotheses, table(rows), there.seeds)


def _decide(
    hypotheses: Iterable[Hypothesis], index: Table, seeds: Sequence[int] | None
) -> tuple[Judgement, ...]:
    return decide(hypotheses, index, seeds=seeds, detectable=power.detectable)


def _hypotheses_of(config: Mapping[str, Any]) -> tuple[Hypothesis, ...]:
    """The hypotheses that the study has now; none if this version lacks the study or its config."""
    if config["study"] not in catalog.STUDIES:
        return ()
    from sharpjax.runs import study  # imports jax

    try:
        return study.hypotheses_of(ConfigDict(read.tuples(config)))
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()
