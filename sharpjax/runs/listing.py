"""List the studies, the configs, and the runs in a folder."""

import ast
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from sharpjax import catalog, workdir
from sharpjax.errors import UserError, printable
from sharpjax.provenance import sources
from sharpjax.runs import read

MAX_RUNS = 1_000


def studies() -> Iterator[str]:
    """A line for each study: its name and the first line of its package's docstring."""
    for name in catalog.STUDIES:
        yield f"{name:<18} {says_of(name)}"


def says_of(study: str) -> str:
    """The first line of the docstring of a study's package, without its full stop."""
    return _says(sources.package_of(study) / "__init__.py").rstrip(".")


def configs(folder: pathlib.Path = sources.ROOT / "configs") -> Iterator[str]:
    """A line for each config file: its path and the first line of its docstring."""
    for path in sorted(folder.glob("*.py")):
        yield f"{path.relative_to(folder.parent).as_posix():<30} {_says(path)}"


def _says(path: pathlib.Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n")[0]


def runs(folder: os.PathLike | str) -> Iterator[str]:
    """A line for each run in `folder`: its state and its registration."""
    base = epath.Path(folder)
    if not base.is_dir():
        return
    for path in sorted(base.iterdir())[:MAX_RUNS]:
        if (path / workdir.CONFIG).exists():
            yield printable(f"{path.name:<40} {state(path)}")


def state(path: epath.Path) -> str:
    """The state of a run in words; if it is damaged, the reason."""
    try:
        run = read.read(path)
    except UserError as error:
        return f"damaged: {error}"
    seeds = run.config.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else 0
    if run.manifest is not None:
        how = f"sealed {run.recorded('times', 'sealed') or 'some time'}"
    elif next(iter(read.segments(run.path)), None) is not None:
        how = "not finished; the same command goes on"
    elif (run.path / read.JOINT).exists():
        how = "judged over other runs"
    else:
        how = "not begun"
    seal = (run.registration or {}).get("seal")
    under = f"registered ({str(seal)[:12]})" if seal else "unregistered: everything is exploratory"
    return f"{run.study}, {count} seeds; {how}; {under}"
