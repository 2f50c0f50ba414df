"""Which code this is: digests of its sources, and what git knows of them."""

import functools
import hashlib
import pathlib
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sharpjax import catalog
from sharpjax.protocol.canonical import canonical_json
from sharpjax.protocol.claims import Hypothesis, tests_of
from sharpjax.protocol.tests.catalog import TESTS, Test
from sharpjax.provenance import imports

PACKAGE = imports.PACKAGE
ROOT = PACKAGE.parent
_PROTOCOL = "sharpjax.protocol"
_CATALOG = f"{_PROTOCOL}.tests.catalog"
# Of files that git does not follow: what is longer counts by its length alone.
MAX_HASHED_BYTES = 2**24


class Commit(NamedTuple):
    """The state of the repository; all None where the code lies in none.

    Attributes:
        commit: the hash of HEAD.
        dirty: whether anything differs from it, or is not followed.
        diff: SHA-256 of what differs; None where nothing does.
    """

    commit: str | None
    dirty: bool | None
    diff: str | None


def digest(files: Mapping[str, pathlib.Path]) -> str:
    """SHA-256 over names, lengths and bytes of files, in the order of names.

    The names are given, since where a package lies is not what it says.
    """
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


@functools.cache
def code_digest() -> str:
    """That of all of `sharpjax/`."""
    return digest({path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")})


def digests(
    hypotheses: Iterable[Hypothesis], study: str, config: Mapping[str, Any]
) -> dict[str, str]:
    """Digests of the sources that a run rests on: analysis, measures, code.

    `measures` is '' for a study that this version does not know.
    """
    known, names = study in catalog.STUDIES, frozenset(_texts(config))
    return {
        "analysis": analysis_digest(tests_of(hypotheses)),
        "measures": measures_digest(study, names) if known else "",
        "code": code_digest(),
    }


def analysis_digest(tests: Iterable[str]) -> str:
    """That of what turns rows into verdicts, for hypotheses that name these tests.

    It covers `runs/conclude.py` and what that imports of `protocol`; what reads rows (`_READS`); of
    each test its module, what that imports there, and its entry in the catalog; and all else that
    the catalog says and does. Planning, wording and other tests are not in it. A test that this
    version does not have counts by its name.
    """
    known = {name: TESTS.get(name) for name in sorted(set(tests))}
    files = imports.closure(["sharpjax.runs.conclude", *_READS], _decides)
    modules = [test.function.__module__ for test in known.values() if test]
    files |= imports.closure(modules, _is_part_of_a_test)
    entries: dict[str, Any] = {name: _entry(test) for name, test in known.items()}
    entries["called by"] = imports.statements(_CATALOG, besides="TESTS")
    return _sum(files, canonical_json(entries))


_READS = ("sharpjax.runs.read", "sharpjax.workdir.rows")


def _decides(name: str) -> bool:
    others = ("tests", "planning", "seals", "wording", "attrition")
    return _is_of(name, _PROTOCOL) and not _is_of(name, *(f"{_PROTOCOL}.{x}" for x in others))


def _is_part_of_a_test(name: str) -> bool:
    return _is_of(name, f"{_PROTOCOL}.tests") and name != _CATALOG


def _entry(test: Test | None) -> list[str]:
    """All that the catalog says of a test."""
    fields = test._asdict() if test else {}
    return [f"{n}={getattr(v, '__qualname__', None) or repr(v)}" for n, v in fields.items()]


def measures_digest(study: str, names: frozenset[str]) -> str:
    """That of what makes the numbers of a study: evaluators, metrics, geometry, training.

    It covers what the study's `plan` imports of this package; what loads, trains, goes on from a
    checkpoint, and writes rows and arrays; and the modules and entries of the catalog that a config
    names; not what the study asks, shows and lets a config hold, in modules of these names.

    Args:
        names: all texts in the config.
    """
    entries = dict(_named(names))
    own = catalog.STUDIES[study]
    besides = [f"{own}.{module}" for module in ("asks", "shows", "schema")]
    roots = [f"{own}.plan", *_MAKES]
    roots += [module for entry in entries.values() for module in _modules(entry)]
    files = imports.closure(roots, lambda name: name not in besides and _measures(name))
    return _sum(files, canonical_json(entries))


# Beside the plan of the study.
_MAKES = ("sharpjax.train.task", "sharpjax.train.units", "sharpjax.runs.loading",
          "sharpjax.runs.run", "sharpjax.workdir.run", "sharpjax.workdir.rows",
          "sharpjax.workdir.arrays", "sharpjax.workdir.files")  # fmt: skip
# Rooms in which no number is made: what they say is in the plan, or is of the whole package alone.
_NO_MEASURES = ("catalog", "commandline", "driver.interrupt", "driver.progress", "errors", "plots",
                "protocol.claims", "provenance", "report", "runs", "schema", "studies.papers",
                "workdir")  # fmt: skip
# What measures all the same: numbers by the papers' own code.
_BUT_THESE = ("studies.papers.authors", "studies.papers.conventions")


def _measures(name: str) -> bool:
    none, but = ([f"sharpjax.{room}" for room in x] for x in (_NO_MEASURES, _BUT_THESE))
    return name != "sharpjax" and (_is_of(name, *but) or not _is_of(name, *none))


def _is_of(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _named(names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """The entries of the catalog's tables that a config names."""
    for table, entries in sorted(vars(catalog).items()):
        if table.isupper() and isinstance(entries, Mapping) and table != "STUDIES":
            for name in sorted(names & entries.keys()):
                yield f"{table}.{name}", entries[name]


def _texts(value: Any) -> Iterator[str]:
    """All texts in a config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _modules(entry: Any) -> Iterator[str]:
    """The modules that an entry refers to, as `sharpjax.nn.mlp:MLP`."""
    for text in entry if isinstance(entry, tuple) else (entry,):
        if isinstance(text, str) and text.startswith("sharpjax."):
            yield text.partition(":")[0]


def _sum(files: Mapping[str, pathlib.Path], entries: str) -> str:
    return hashlib.sha256(f"{digest(files)}\n{entries}".encode()).hexdigest()


def package_of(study: str) -> pathlib.Path:
    """The folder of a study, without importing it."""
    path = imports.source_of(catalog.STUDIES[study])
    if path is None:
        raise ModuleNotFoundError(f"the package of study '{study}' is missing")
    return path.parent


@functools.cache
def commit() -> Commit:
    """What git says of the repository that follows these sources."""
    if _git("ls-files", "--error-unmatch", str(PACKAGE / "__init__.py")) is None:
        return Commit(None, None, None)  # installed, perhaps inside somebody else's repository
    head = _git("rev-parse", "HEAD")
    if head is None:  # no commit yet
        return Commit(None, True, None)
    diff = _git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color") or b""
    others = _git("ls-files", "--others", "--exclude-standard", "-z") or b""
    names = sorted(name for name in others.decode(errors="surrogateescape").split("\0") if name)
    if not diff and not names:
        return Commit(head.decode().strip(), False, None)
    total = hashlib.sha256(diff)
    for name in names:
        total.update(_untracked(name))
    return Commit(head.decode().strip(), True, total.hexdigest())


def added(path: pathlib.Path) -> str:
    """The commit that brought a file as it is now, and its date; '': none did."""
    if _git("diff", "--quiet", "HEAD", "--", str(path)) is None:
        return ""
    found = _git("log", "-1", "--format=%h (%cs)", "--", str(path))
    return (found or b"").decode().strip()


def _untracked(name: str) -> bytes:
    path = ROOT / name
    size = path.lstat().st_size if path.is_symlink() or path.exists() else -1
    small = path.is_file() and not path.is_symlink() and size <= MAX_HASHED_BYTES
    return f"\0{name}\0{size}\0".encode(errors="surrogateescape") + (
        path.read_bytes() if small else b""
    )


def _git(*arguments: str) -> bytes | None:
    """What a git command prints; None where it fails, or there is no git."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
