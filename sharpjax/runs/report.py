"""`python -m sharpjax.studies report`: the report of a run made again; one page over several."""

import os
import pathlib
from collections.abc import Callable, Sequence

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.report.overview import Run
from sharpjax.report.pages import overview_pages
from sharpjax.runs import conclude, verify
from sharpjax.studies.papers import HYPOTHESES

Say = Callable[[str], None]


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
        conclude.write_report(paths[0], where=folders[0])
        say(f"{paths[0] / 'report.html'}")
        return
    target = epath.Path(os.path.abspath(output) if output else paths[0].parent)
    if not output and any(path.parent != target for path in paths):
        raise UserError("report: the runs lie in several folders; name one by --output.")
    listed = [
        Run(path.name, conclude.content_of(run, where=name), _link(path, target))
        for name, run, path in zip(folders, runs, paths, strict=True)
    ]
    pages = overview_pages(HYPOTHESES, listed)
    try:
        for name, content in pages.items():
            workdir.publish(target / name, content)
    except OSError as error:
        raise UserError(f"'{target}' cannot be written: {error.strerror}.") from error
    say(f"{target / 'overview.html'}")


def _link(path: epath.Path, target: epath.Path) -> str:
    """Where a page in `target` finds the report of a run; '': nowhere."""
    page = path / "report.html"
    if not page.exists() or "://" in f"{os.fspath(path)}{os.fspath(target)}":
        return ""
    return pathlib.Path(os.path.relpath(page, target)).as_posix()
