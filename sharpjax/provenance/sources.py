"""Which code this is: digests of its sources, and what git knows of them."""

import functools
import hashlib
import importlib.util
import os
import pathlib
import subprocess
from collections.abc import Iterable
from typing import Any, NamedTuple

from sharpjax import catalog

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent
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


def digest(files: Iterable[pathlib.Path], base: pathlib.Path) -> str:
    """SHA-256 over the names below `base`, lengths and bytes of files, in the order of names."""
    total = hashlib.sha256()
    named = ((pathlib.Path(os.path.relpath(path, base)).as_posix(), path) for path in files)
    for name, path in sorted(named):
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


@functools.cache
def code_digest() -> str:
    """That of all of `sharpjax/`."""
    return digest(PACKAGE.rglob("*.py"), PACKAGE)


@functools.cache
def analysis_digest(study: str) -> str:
    """That of what turns rows into verdicts: `protocol/` and the package of the study."""
    own = package_of(study)
    return digest([*(PACKAGE / "protocol").rglob("*.py"), *own.glob("*.py")], PACKAGE)


def package_of(study: str) -> pathlib.Path:
    """The folder of a study, without importing it."""
    spec = importlib.util.find_spec(catalog.STUDIES[study])
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package of study '{study}' is missing")
    return pathlib.Path(spec.submodule_search_locations[0]).resolve()


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


def state(study: str) -> dict[str, Any]:
    """The code as manifests and registrations record it."""
    return commit()._asdict() | {"sources": code_digest(), "analysis": analysis_digest(study)}


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
