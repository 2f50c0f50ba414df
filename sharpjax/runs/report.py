"""The report of a finished run, made from its sealed files, and pages over several runs."""

import os
import pathlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from sharpjax import catalog, workdir
from sharpjax.errors import UserError
from sharpjax.report import describe, overview
from sharpjax.report.content import Command, Content, make
from sharpjax.runs import conclude, evidence, export, joint, listing, read, standing, verify
from sharpjax.runs.read import Folder
from sharpjax.runs.study import study_of

# What one page may embed. Further figures are left out; longer figures and longer rows stay beside
# the page.
MAX_FIGURES, MAX_FIGURE_BYTES, MAX_CSV_BYTES = 50, 2**24, 2**19
PAGE = "report.html"

Say = Callable[[str], None]


def content_of(folder: Folder, *, where: str = "") -> Content:
    """All that the report of a run shows.

    Args:
        where: the folder as the user wrote it; default: its path from the working directory.
    """
    arms = folder.arms
    runs = [read.read(path) for path in read.joined(folder.path)]
    whole = joint.of(folder, runs) if runs else joint.Joint(())
    rows = list(read.in_order(read.rows(folder.path), arms))
    conclusion = conclude.conclude(folder.path, folder.config, rows)
    there, shown = conclusion.registered, evidence.evidence(folder)
    recorded = joint.recorded(folder)
    others = evidence.verdicts(recorded, conclusion.judgements) if there else ()
    if recorded.recorded("verdicts") and not conclusion.judgements:
        others = ("The folder holds verdicts, and this version cannot judge its rows again.",)
    processes, environment = (
        [entry for run in runs or [folder] for entry in run.tables(name)]
        for name in (workdir.PROCESSES, workdir.ENVIRONMENT)
    )
    config_file = "" if runs else _config_file(processes)
    later = (row for path in read.exploratory(folder.path) for row in workdir.rows_in(path))
    return make(
        title=_title(folder.study),
        source=config_file,
        config=folder.config,
        judgements=(*conclusion.judgements, *conclusion.exploratory),
        results=rows,
        arms=arms,
        registration=there,
        later_results=later,
        tables=study_of(folder.study).tables(rows) if folder.study in catalog.STUDIES else (),
        figures=_figures(folder.path),
        rows=csv if len(csv := export.as_csv(rows)) <= MAX_CSV_BYTES else None,
        captions=folder.table(read.CAPTIONS),
        warnings=(
            *(f"These runs cannot be judged together: {line}." for line in whole.problems),
            *whole.warnings,
            *_broken(runs or [folder]),
            *(*shown.failures, *others, *(shown.caveats if there else ())),
        ),
        seen=whole.seen,
        funnel=conclusion.funnel,
        place=evidence.place(there) if there else "",
        amendments=standing.amended(folder.path),
        environment=tuple(environment),
        processes=tuple(processes),
        manifest=folder.manifest or {"data": data_of(runs)},
        commands=commands_for(
            config_file or "CONFIG",
            folder.table(workdir.OVERRIDES),
            folder=where or from_here(folder.path),
            is_registered=there is not None,
            commit=folder.commit,
            runs=[from_here(run.path) for run in runs],
        ),
    )


def _broken(runs: Iterable[Folder]) -> Iterable[str]:
    """For each finished run whose results are not as they were sealed, the reason."""
    for run in runs:
        if run.manifest is not None and (reason := workdir.broken(run.path)) is not None:
            yield f"{run.path.name} is damaged: {reason}."


def data_of(runs: Iterable[Folder]) -> dict[str, Any]:
    """The data of runs, from their manifests. If two share a name and differ, the run is named."""
    found: dict[str, Any] = {}
    for run in runs:
        for name, own in (run.recorded("data") or {}).items():
            found[name if found.get(name, own) == own else f"{name}, {run.path.name}"] = own
    return found


def commands_for(
    config: str,
    overrides: Mapping[str, Any],
    *,
    folder: str,
    is_registered: bool = False,
    commit: str = "",
    runs: Sequence[str] = (),
) -> tuple[Command, ...]:
    """The shell commands that repeat the run and check it.

    Args:
        runs: for a form that is not run itself, the runs over which it is judged.

    >>> commands_for("configs/sam_cifar.py:quick", {"optim.rho": 0.1}, folder="runs/a")[0].line
    'python launch.py --config=configs/sam_cifar.py:quick --config.optim.rho=0.1'
    """
    flags = [f"--config={config}"]
    flags += [f"--config.{name}={value}" for name, value in overrides.items()]
    launch = shlex.join(["python", "launch.py", *flags])
    studies = "python -m sharpjax.studies"
    first = [Command("Run it again, in a new folder", launch)]
    if is_registered:
        first.insert(0, Command("Register it: seals what is asked", f"{launch} --register"))
    if commit:
        first.insert(0, Command("The code as it was", shlex.join(["git", "checkout", commit])))
    path = shlex.quote(folder)
    if runs:
        joint = shlex.join([*studies.split(), "report", *runs, "--joint", folder])
        return (
            Command("Judge it over these runs again", joint),
            Command("Check every byte of them, and the verdicts", f"{studies} verify {path}"),
        )
    return (
        *first,
        Command("Check every byte of this run", f"{studies} verify {path}"),
        Command("Train some steps anew and compare them", f"{studies} replay {path}"),
        Command("Make this report again", f"{studies} report {path}"),
        Command("All results as CSV", f"{studies} export --format=csv {path}"),
    )


def from_here(path: epath.Path) -> str:
    """A path as a user would type it: relative if it is below the working directory."""
    return os.fspath(path).removeprefix(f"{os.getcwd()}{os.sep}")


def write(folder: epath.Path, *, where: str = "", leased: bool = False) -> None:
    """Make `report.html` and `report.md` of a finished run, from its sealed files.

    Args:
        where: the folder as the user wrote it; default: its path from the working directory.
        leased: whether the caller holds the folder's lease, as a run that has just ended does.

    Raises:
        UserError: the run is not finished or is damaged, or nothing can be written there.
    """
    run = read.read(folder)
    if run.manifest is None:
        raise UserError(f"'{folder}' is not finished; the same command goes on with it.")
    if (reason := workdir.broken(folder)) is not None:
        raise UserError(f"'{folder}' is damaged: {reason}.")
    workdir.replace_reports(folder, describe.pages(content_of(run, where=where)), leased=leased)


def report(folders: Sequence[str], output: str | None, say: Say, whole: str | None = None) -> None:
    """Make the report of one run again; of several, `overview.html` and `.md` in `output`.

    Args:
        whole: a folder in which a form with the arms of all these runs is registered. The form is
            judged over these runs, and the report goes there. See `joint`.
        output: a folder; None: the one that holds all the runs. With a single run, the overview of
            that run is written there.

    Raises:
        UserError: a run is not as it was sealed, or is named twice; the runs lie in several folders
            and `output` is None; both `whole` and `output` are given; nothing can be written.
    """
    if whole is not None:
        if output is not None:
            raise UserError("report: --joint names where the report goes; leave out --output.")
        path = joint.join(whole, folders)
        workdir.replace_reports(path, describe.pages(content_of(read.read(path), where=whole)))
        say(f"{path / PAGE}")
        return
    alone = len(folders) == 1 and output is None  # an interrupted page, too, is made again
    runs = [verify.sound(name, besides=workdir.REPORTS if alone else ()) for name in folders]
    paths = [run.path for run in runs]
    if twice := next((p for p in paths if paths.count(p) > 1), None):
        raise UserError(f"report: '{twice}' is named twice; name each run once.")
    if alone:
        write(paths[0], where=folders[0])
        say(f"{paths[0] / PAGE}")
        return
    target = epath.Path(os.path.abspath(output) if output else paths[0].parent)
    if not output and any(path.parent != target for path in paths):
        raise UserError("report: the runs lie in several folders; name one by --output.")
    listed = [
        overview.Run(path.name, content_of(run, where=name), _first_of(path, target, [PAGE]))
        for name, run, path in zip(folders, runs, paths, strict=True)
    ]
    try:
        made = overview.pages(catalog.resolve(catalog.PAPERS), listed)
        for name, content in zip(("overview.html", "overview.md"), made, strict=True):
            workdir.publish(target / name, content)
    except OSError as error:
        raise UserError(f"'{target}' cannot be written: {error.strerror}.") from error
    say(f"{target / 'overview.html'}")


def index(folder: str, say: Say) -> None:
    """List the finished runs in a folder as `README.md` and `index.html`, with what can be read of
    each. For other folders it says why they are not listed.

    Raises:
        UserError: there is no such folder, it holds a page that this command did not write or more
            than `listing.MAX_RUNS` folders, or nothing can be written there.
    """
    target = epath.Path(os.path.abspath(folder))
    if not target.is_dir():
        raise UserError(f"'{folder}' is no folder; name one that holds folders of runs.")
    names = ("index.html", "README.md")
    for name in names:
        if (target / name).exists() and not _is_ours(target / name):
            raise UserError(
                f"'{folder}' holds a {name} that `index` did not write, and it would be lost; move "
                f"it, or name a folder that holds runs alone."
            )
    paths = [path for path in sorted(target.iterdir()) if path.is_dir()]
    if len(paths) > listing.MAX_RUNS:
        raise UserError(f"'{folder}' holds {len(paths):,} folders; {listing.MAX_RUNS:,} at most.")
    runs = []
    for path in paths:
        where = f"{folder.rstrip('/')}/{path.name}"
        try:
            content, problem = _finished(where), ""
        except UserError as error:
            content, problem = None, str(error)
        # A folder may come from anybody, and one must not hide the others.
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            content, problem = None, f"it is no sound run ({type(error).__name__}: {error})"
        if content is None:
            say(f"{where}: not listed: {problem}")
        link = _first_of(path, target, (PAGE, "report.md", "README.md"))
        rows = _first_of(path, target, (workdir.RESULTS,))
        runs.append(overview.Run(path.name, content, link, rows, problem))
    try:
        made = overview.pages(catalog.resolve(catalog.PAPERS), runs)
        for name, content in zip(names, made, strict=True):
            workdir.publish(target / name, content)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error.strerror}.") from error
    say(f"{target / 'README.md'}: {len(runs)} runs")


def _finished(where: str) -> Content:
    """What a finished run shows.

    Raises:
        UserError: it cannot be read, or is not finished. Verdicts of a part would be none.
    """
    run = read.read(where)
    if run.manifest is None and not read.joined(run.path):
        raise UserError(f"'{where}' is not finished; the same command goes on with it.")
    return content_of(run, where=where)


def _is_ours(page: epath.Path) -> bool:
    """Whether a page was written by `index`, by its title."""
    return overview.TITLE.encode() in workdir.read_bytes(page, most=2**28)[:10_000]


def _first_of(path: epath.Path, target: epath.Path, names: Sequence[str]) -> str:
    """Link from `target` to the first of these files that the run has; '' if there is none."""
    there = next((path / name for name in names if (path / name).exists()), None)
    if there is None or "://" in f"{os.fspath(path)}{os.fspath(target)}":
        return ""
    return pathlib.Path(os.path.relpath(there, target)).as_posix()


def _figures(folder: epath.Path) -> dict[str, bytes]:
    paths = [p for p in workdir.walk(folder / workdir.FIGURES) if p.name.endswith(".png")]
    most = MAX_FIGURE_BYTES
    return {
        path.name.removesuffix(".png"): b""
        if path.stat().length > most
        else workdir.read_bytes(path, most=most)
        for path in paths[:MAX_FIGURES]
    }


def _title(study: str) -> str:
    """What a study asks, in the words of its package."""
    return listing.says_of(study) if study in catalog.STUDIES else study


def _config_file(processes: list[dict[str, Any]]) -> str:
    """The config that the first process was given, such as `configs/sam_cifar.py:quick`."""
    command = processes[0].get("command") if processes else None
    for part in command if isinstance(command, list) else ():
        if isinstance(part, str) and part.startswith("--config="):
            return part.removeprefix("--config=")
    return ""
