"""What was written is what is read: SHA-256 sums from `DONE` down to every byte of a run.

`DONE` holds the sum of `manifest.json`, and that the sum of every sealed file. A checkpoint, which
may be large and has its own `SHA256SUMS`, is sealed by that file. `derived.json` holds the sums of
what is made from sealed files (figures, reports), and is rewritten with them.
"""

import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from sharpjax.workdir import lease
from sharpjax.workdir.files import (
    is_link,
    is_remote,
    json_file,
    name_in,
    publish,
    size_and_digest,
    walk,
)

CONFIG, OVERRIDES, RESULTS = "config.json", "overrides.json", "results.jsonl"
ENVIRONMENT = "environment.json"
METRICS, ARRAYS, CHECKPOINTS = "metrics", "arrays", "checkpoints"
MANIFEST, DERIVED, DONE, SUMS = "manifest.json", "derived.json", "DONE", "SHA256SUMS"

SEAL = (MANIFEST, DERIVED, DONE)
SEALED = (CONFIG, OVERRIDES, ENVIRONMENT, RESULTS, METRICS, ARRAYS, CHECKPOINTS)
MADE_AGAIN = ("figures", "report.html", "report.md")
# What may change, or be added, afterwards.
OUTSIDE = (lease.NAME, "amendments.jsonl", "exploratory")


# One folder: the sums of a checkpoint.


def write_sums(folder: epath.Path) -> None:
    """Write `SHA256SUMS` of all files below `folder`, for `sha256sum -c` too; its last file."""
    sums = {name: size_and_digest(path)[1] for name, path in _summed(folder).items()}
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    publish(folder / SUMS, text.encode())


def damage(folder: epath.Path) -> str | None:
    """How a folder differs from its `SHA256SUMS`, or None."""
    if not (folder / SUMS).exists():
        return f"{SUMS} is missing"
    expected = _read_sums(folder)
    if expected is None:
        return f"{SUMS} is not a list of sums"
    return next(_differences(expected, _summed(folder)), None)


def _summed(folder: epath.Path) -> dict[str, epath.Path]:
    return {name_in(folder, path): path for path in walk(folder) if path != folder / SUMS}


def _read_sums(folder: epath.Path) -> dict[str, tuple[None, str]] | None:
    try:
        lines = (folder / SUMS).read_bytes().decode().splitlines()
        return {name: (None, digest) for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return None


def _differences(
    expected: Mapping[str, tuple[int | None, str]], found: Mapping[str, epath.Path]
) -> Iterator[str]:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif is_link(found[name]):
            yield f"{name} is a link"
        elif name not in expected:
            yield f"{name} is listed nowhere"
        else:
            size, digest = expected[name]
            found_size, found_digest = size_and_digest(found[name])
            if size is not None and found_size != size:
                yield f"{name} has {found_size} bytes instead of {size}"
            elif found_digest != digest:
                yield f"{name} differs from its SHA-256"


# A whole run.


def seal(folder: epath.Path, extra: Mapping[str, Any]) -> None:
    """Write `manifest.json` with `extra` in it, `derived.json`, and at last `DONE`."""
    files = {}
    for name, path in _below(folder, SEALED).items():
        if name.startswith(f"{CHECKPOINTS}/") and path.name != SUMS:
            continue
        size, digest = size_and_digest(path)
        files[name] = {"bytes": size, "sha256": digest}
    times = {"started": _started(folder), "sealed": _iso(datetime.datetime.now(datetime.UTC))}
    own = {"format": 1, "files": files, "times": times}
    if shadowed := own.keys() & extra.keys():
        raise ValueError(f"seal: {sorted(shadowed)} are fields of the manifest itself")
    publish(folder / MANIFEST, json_file(dict(extra) | own).encode())
    write_derived(folder)
    publish(folder / DONE, _done(folder))


def write_derived(folder: epath.Path) -> None:
    """Record the sums of figures and reports in `derived.json`, after they were made again."""
    derived = {name: size_and_digest(p)[1] for name, p in _below(folder, MADE_AGAIN).items()}
    publish(folder / DERIVED, json_file({"files": derived}).encode())


def broken(folder: epath.Path) -> str | None:
    """Why a finished run is not to be believed (its manifest, its results), or None."""
    if (reason := _broken_root(folder)) is not None:
        return reason
    results = {name: sum for name, sum in _listed(folder).items() if name == RESULTS}
    return next(_differences(results, _below(folder, (RESULTS,))), None)


def _broken_root(folder: epath.Path) -> str | None:
    if not (folder / DONE).exists():
        return f"{DONE} is missing: the run was not finished"
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    if (folder / DONE).read_bytes() != _done(folder):
        return f"{MANIFEST} differs from the SHA-256 in {DONE}"
    return None


def verify(path: os.PathLike | str) -> list[str]:
    """Check a sealed run, from `DONE` to every byte.

    Returns:
        A line for each file that is missing, changed, a link, or listed nowhere. What is outside
        the seal (`OUTSIDE`) is not looked at. Empty: every file is the one that was sealed.
    """
    folder = epath.Path(path)
    if (reason := _broken_root(folder)) is not None:
        return [reason]
    expected = _listed(folder)
    known = SEALED + SEAL + MADE_AGAIN + OUTSIDE
    others = [path.name for path in folder.iterdir() if path.name not in known]
    found = _below(folder, (*SEALED, *others))
    inside = []
    for sums in [name for name in expected if name.endswith(f"/{SUMS}") and name in found]:
        checkpoint = sums.removesuffix(f"/{SUMS}")
        if (reason := damage(folder / checkpoint)) is not None:
            inside.append(f"{checkpoint}: {reason}")
        found = {n: p for n, p in found.items() if n == sums or not n.startswith(f"{checkpoint}/")}
    return [*_differences(expected, found), *inside, *_derived_differences(folder)]


def _derived_differences(folder: epath.Path) -> list[str]:
    try:
        text = (folder / DERIVED).read_bytes().decode()
        listed = json.loads(text)
        expected = {name: (None, digest) for name, digest in listed["files"].items()}
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return [f"{DERIVED} is missing or damaged"]
    if text != json_file(listed):  # a byte that changes no value
        return [f"{DERIVED} is missing or damaged"]
    return list(_differences(expected, _below(folder, MADE_AGAIN)))


def _listed(folder: epath.Path) -> dict[str, tuple[int, str]]:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}


def _below(folder: epath.Path, names: tuple[str, ...]) -> dict[str, epath.Path]:
    """Every file at or below the entries `names` of `folder`, by its name in it."""
    files = {}
    for name in names:
        path = folder / name
        below = walk(path) if path.is_dir() and not is_link(path) else [path]
        files |= {name_in(folder, p): p for p in below if p.exists() or is_link(p)}
    return files


def _done(folder: epath.Path) -> bytes:
    return f"{hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}\n".encode()


def _started(folder: epath.Path) -> str | None:
    """When the config was written, as far as the store tells."""
    path = folder / CONFIG
    seconds = path.stat().mtime if is_remote(path) else os.path.getmtime(path)
    return _iso(datetime.datetime.fromtimestamp(seconds, datetime.UTC)) if seconds else None


def _iso(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="seconds")
