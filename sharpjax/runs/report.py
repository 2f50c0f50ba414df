"""The report of a finished run, from what is sealed in it; one page over several runs."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from sharpjax import catalog, workdir
from sharpjax.errors import UserError
from sharpjax.report.content import Content, commands_for, make
from sharpjax.report.overview import Run
from sharpjax.report.pages import overview_pages, pages
from sharpjax.runs import conclude, evidence, read, standing, verify
from sharpjax.runs.read import Folder
from sharpjax.runs.study import study_of

# What one page may embed; figures that are larger stay beside it.
MAX_FIGURES, MAX_FIGURE_BYTES = 50, 2**24
PAGE = "report.html"

Say = Callable[[str], None]


def content_of(folder: Folder, *, where: str = "") -> Content:
    """All that the report of a run shows.

    Args:
        where: how a person calls the folder; default: its path from here.
    """
    arms = folder.arms
    rows = list(read.in_order(read.rows(folder.path), arms))
    conclusion = conclude.conclude(folder.path, folder.config, rows)
    there, shown = conclusion.registered, evidence.evidence(folder)
    processes = folder.tables(workdir.PROCESSES)
    config_file = _config_file(processes)
    later = (row for path in read.exploratory(folder.path) for row in workdir.rows_in(path))
    return make(
        title=config_file or folder.study,
        config=folder.config,
        judgements=(*conclusion.judgements, *conclusion.exploratory),
        rows=rows,
        arms=arms,
        registration=there,
        later_rows=later,
        tables=study_of(folder.study).tables(rows) if folder.study in catalog.STUDIES else (),
        figures=_figures(folder.path),
        captions={k: v for k, v in folder.table(read.CAPTIONS).items() if isinstance(v, str)},
        warnings=(*shown.failures, *(shown.caveats if there else ())),
        funnel=conclusion.funnel,
        amendments=standing.amended(folder.path),
        environment=folder.tables(workdir.ENVIRONMENT),
        processes=processes,
        manifest=folder.manifest,
        commands=commands_for(
            config_file or "CONFIG",
            folder.table(workdir.OVERRIDES),
            folder=where or from_here(folder.path),
            is_registered=there is not None,
            commit=folder.commit,
        ),
    )


def from_here(path: epath.Path) -> str:
    """A path as one would type it: relative where it lies below the working directory."""
    return os.fspath(path).removeprefix(f"{os.getcwd()}{os.sep}")


def write(folder: epath.Path, *, where: str = "", leased: bool = False) -> None:
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


def report(folders: Sequence[str], output: str | None, say: Say) -> None:
    """Make the report of one run again; of several, `overview.html` and `.md` in `output`.

    Args:
        output: a folder; None: the one that holds the runs, where they lie in one. Given with a
            single run, it gets the overview of that.

    Raises:
        UserError: a run is not as it was sealed, or is named twice; nothing can be written.
    """
    runs = [verify.sound(folder) for folder in folders]
    paths = [run.path for run in runs]
    if twice := next((p for p in paths if paths.count(p) > 1), None):
        raise UserError(f"report: '{twice}' is named twice; name each run once.")
    if len(runs) == 1 and output is None:
        write(paths[0], where=folders[0])
        say(f"{paths[0] / PAGE}")
        return
    target = epath.Path(os.path.abspath(output) if output else paths[0].parent)
    if not output and any(path.parent != target for path in paths):
        raise UserError("report: the runs lie in several folders; name one by --output.")
    listed = [
        Run(path.name, content_of(run, where=name), _link(path, target))
        for name, run, path in zip(folders, runs, paths, strict=True)
    ]
    try:
        for name, content in overview_pages(catalog.resolve(catalog.PAPERS), listed).items():
            workdir.publish(target / name, content)
    except OSError as error:
        raise UserError(f"'{target}' cannot be written: {error.strerror}.") from error
    say(f"{target / 'overview.html'}")


def _link(path: epath.Path, target: epath.Path) -> str:
    """Where a page in `target` finds the report of a run; '': nowhere."""
    page = path / PAGE
    if not page.exists() or "://" in f"{os.fspath(path)}{os.fspath(target)}":
        return ""
    return pathlib.Path(os.path.relpath(page, target)).as_posix()


def _figures(folder: epath.Path) -> dict[str, bytes]:
    paths = [p for p in workdir.walk(folder / workdir.FIGURES) if p.name.endswith(".png")]
    return {
        path.name.removesuffix(".png"): workdir.read_bytes(path, most=MAX_FIGURE_BYTES)
        for path in paths[:MAX_FIGURES]
    }


def _config_file(processes: list[dict[str, Any]]) -> str:
    """The config that the first process was given, as `configs/sam_cifar.py:quick`."""
    command = processes[0].get("command") if processes else None
    for part in command if isinstance(command, list) else ():
        if isinstance(part, str) and part.startswith("--config="):
            return part.removeprefix("--config=")
    return ""
