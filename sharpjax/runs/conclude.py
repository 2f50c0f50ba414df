"""What a run's rows say of its hypotheses, and the report of it."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from sharpjax import catalog, workdir
from sharpjax.errors import UserError
from sharpjax.protocol.funnel import Funnel, funnel
from sharpjax.protocol.samples import table
from sharpjax.protocol.verdicts import Judgement, decide
from sharpjax.report.console import verdict_table
from sharpjax.report.content import Content, Table, commands_for, make
from sharpjax.report.pages import pages
from sharpjax.runs import read, register
from sharpjax.runs.read import Folder
from sharpjax.runs.register import Standing

# What one page may embed; figures that are larger stay beside it.
MAX_FIGURES, MAX_FIGURE_BYTES = 50, 2**24


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
    standing = register.standing(folder)
    index, there = table(rows), standing.registered
    own = _hypotheses_of(config)
    arms, seeds = list(config["arms"]), list(config["seeds"])
    if there is None:
        judgements, others = decide(own, index, seeds=None), ()
        planned = seeds
    else:
        judgements = decide(there.hypotheses, index, seeds=there.seeds)
        ids = {h.id for h in there.hypotheses}
        others = decide([h for h in own if h.id not in ids], index, seeds=None)
        planned = list(there.seeds)
    return Conclusion(standing, judgements, others, funnel(index, arms=arms, seeds=planned))


def _hypotheses_of(config: Mapping[str, Any]) -> tuple:
    """Those that the study has now; none of a study or a config that this version does not know."""
    if config["study"] not in catalog.STUDIES:
        return ()
    try:
        return register.hypotheses_of(ConfigDict(read.tuples(config)))
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


def _tables_of(config: Mapping[str, Any], rows: list[workdir.Row]) -> tuple[Table, ...]:
    """The `tables(rows)` of the study, where it has any."""
    if config["study"] not in catalog.STUDIES:
        return ()
    module = register.module_of(config["study"])
    return tuple(module.tables(rows)) if hasattr(module, "tables") else ()


def print_verdicts(config: ConfigDict, run: workdir.Run) -> None:
    """The verdict table of a finished run, and under which registration it stands."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    found = conclude(run.path, config.to_dict(), run.rows())
    there = found.standing.registered
    title = (
        f"registered {there.time}, seal {there.seal[:12]}" if there else found.standing.warnings[0]
    )
    if found.judgements:
        console.print(verdict_table(found.judgements, title))
    for warning in found.standing.warnings if there else ():
        console.print(f"warning: {warning}", markup=False)
    console.print(f"report: {_from_here(run.path / 'report.html')}", markup=False)


def content_of(folder: Folder, *, where: str = "") -> Content:
    """All that the report of a run shows.

    Args:
        where: how a person calls the folder; default: its path from here.
    """
    rows = list(read.rows(folder.path))
    conclusion = conclude(folder.path, folder.config, rows)
    standing = conclusion.standing
    processes = _list_of_tables(folder.path / workdir.PROCESSES)
    later = (row for path in read.exploratory(folder.path) for row in workdir.rows_in(path))
    return make(
        title=f"{_config_file(processes) or folder.study}",
        config=folder.config,
        judgements=(*conclusion.judgements, *conclusion.exploratory),
        rows=rows,
        registration=standing.registered,
        later_rows=later,
        tables=_tables_of(folder.config, rows),
        figures=_figures(folder.path),
        captions=_captions(folder.path),
        warnings=standing.warnings if standing.registered else (),
        funnel=conclusion.funnel,
        amendments=standing.amendments,
        environment=_list_of_tables(folder.path / workdir.ENVIRONMENT),
        processes=processes,
        manifest=folder.manifest,
        commands=commands_for(
            _config_file(processes) or "CONFIG",
            _table(folder.path / workdir.OVERRIDES),
            folder=where or _from_here(folder.path),
            is_registered=standing.registered is not None,
            commit=_commit(processes),
        ),
    )


def _from_here(path: epath.Path) -> str:
    """A path as one would type it: relative where it lies below the working directory."""
    return os.fspath(path).removeprefix(f"{os.getcwd()}{os.sep}")


def write_report(folder: epath.Path, *, where: str = "", leased: bool = False) -> None:
    """Make `report.html` and `report.md` of a finished run, from what is sealed in it.

    Args:
        where: how a person calls the folder; default: its path from here.
        leased: whether the caller holds the folder's lease, as the run does that has just ended.

    Raises:
        UserError: the run is not finished or is damaged, or nothing can be written there.
    """
    run = read.read(folder)
    if run.manifest is None:
        raise UserError(f"'{folder}' is not finished; the same command goes on with it.")
    if (reason := workdir.broken(folder)) is not None:
        raise UserError(f"'{folder}' is damaged: {reason}.")
    workdir.replace_reports(folder, pages(content_of(run, where=where)), leased=leased)


def _figures(folder: epath.Path) -> dict[str, bytes]:
    paths = [p for p in workdir.walk(folder / workdir.FIGURES) if p.name.endswith(".png")]
    return {
        path.name.removesuffix(".png"): workdir.read_bytes(path, most=MAX_FIGURE_BYTES)
        for path in paths[:MAX_FIGURES]
    }


def _captions(folder: epath.Path) -> dict[str, str]:
    captions = _table(folder / workdir.FIGURES / read.CAPTIONS)
    return {name: text for name, text in captions.items() if isinstance(text, str)}


def _table(path: epath.Path) -> dict[str, Any]:
    value = workdir.read_json(path) if path.exists() else {}
    return value if isinstance(value, dict) else {}


def _list_of_tables(path: epath.Path) -> list[dict[str, Any]]:
    value = workdir.read_json(path) if path.exists() else []
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _config_file(processes: list[dict[str, Any]]) -> str:
    """The config that the first process was given, as `configs/sam_cifar.py:quick`."""
    command = processes[0].get("command") if processes else None
    for part in command if isinstance(command, list) else ():
        if isinstance(part, str) and part.startswith("--config="):
            return part.removeprefix("--config=")
    return ""


def _commit(processes: list[dict[str, Any]]) -> str:
    code = processes[-1].get("code") if processes else None
    commit = code.get("commit") if isinstance(code, dict) else None
    return commit if isinstance(commit, str) else ""
