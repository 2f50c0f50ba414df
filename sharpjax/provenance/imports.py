"""What a module of this package imports, and what that imports: read from the sources, not run."""

import ast
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Iterable

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
OWN = PACKAGE.name


@functools.cache
def source_of(name: str) -> pathlib.Path | None:
    """The file of a module, without importing it; None: it has none."""
    first, *rest = name.split(".")
    base = PACKAGE if first == OWN else _package(first)
    if base is None:
        return None
    path = base.joinpath(*rest)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((p for p in candidates if p.is_file()), None)


def _package(name: str) -> pathlib.Path | None:
    """The folder of a package that is at hand."""
    spec = importlib.util.find_spec(name)
    folders = spec.submodule_search_locations if spec else None
    return pathlib.Path(next(iter(folders))).resolve() if folders else None


@functools.cache
def imported(name: str) -> tuple[str, ...]:
    """The modules that a module imports, wherever in it; a package counts with what it lies in."""
    path = source_of(name)
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(path.read_bytes())) if path else ():
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [_above(name, path, node.level), node.module]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for one in names:
            parts = one.split(".")
            for end in range(1, len(parts) + 1):
                found[".".join(parts[:end])] = None
    return tuple(module for module in found if _is_module(module, name))


def _above(name: str, path: pathlib.Path | None, level: int) -> str:
    """The package that a relative import of a module starts from; '': it is not relative."""
    parts = name.split(".")
    own = len(parts) if path and path.name == "__init__.py" else len(parts) - 1
    return ".".join(parts[: own + 1 - level]) if level else ""


def statements(name: str, besides: str) -> list[str]:
    """The texts of what a module does when it is imported: all but its docstring, its imports, and
    what it assigns to the name `besides`."""
    path = source_of(name)
    text = path.read_text() if path else ""
    found = [n for n in ast.parse(text).body if not isinstance(n, ast.Import | ast.ImportFrom)]
    kept = (node for node in found if not _is_text(node) and besides not in _assigned(node))
    return ["\n".join(text.splitlines()[_first(n) - 1 : n.end_lineno]) for n in kept]


def _first(node: ast.stmt) -> int:
    """The first line of a statement, with its decorators."""
    return min(n.lineno for n in (node, *getattr(node, "decorator_list", ())))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _assigned(node: ast.stmt) -> list[str]:
    """The names that a statement gives a value, whole."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def closure(roots: Iterable[str], follow: Callable[[str], bool]) -> dict[str, pathlib.Path]:
    """The files of `roots` and of all that they import, directly or not, where `follow(name)`."""
    found: dict[str, pathlib.Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = source_of(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [module for module in imported(name) if follow(module)]
    return found


def _is_module(name: str, by: str) -> bool:
    """Whether a dotted name is a module of this package, or of the one that imports it."""
    own = {OWN, by.split(".")[0]}
    return name.split(".")[0] in own and source_of(name) is not None
