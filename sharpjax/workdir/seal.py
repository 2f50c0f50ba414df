"""Seals a run with SHA-256 sums, from `DONE` down to every byte.

`DONE` holds the sum of `manifest.json`, which holds the sum of every sealed file. A checkpoint may
be large and has its own `SHA256SUMS`, so only that file of it is in the manifest. `derived.json`
holds the sums of what is added or made again later (figures, reports, amendments, further
measures), and is rewritten with them. It is easy to write a new DONE for another manifest. If you
need proof, keep its sum elsewhere.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from sharpjax.errors import UserError, printable
from sharpjax.workdir import journal, lease
from sharpjax.workdir.files import (
    TEMPORARY,
    is_link,
    is_regular,
    is_remote,
    json_file,
    name_in,
    publish,
    size_and_digest,
    size_of,
    timestamp,
    walk,
)
from sharpjax.workdir.untrusted import (
    MAX_FILES,
    MAX_JSON_BYTES,
    is_safe,
    parse_json,
    read_bytes,
    read_json,
)

CONFIG, OVERRIDES, RESULTS = "config.json", "overrides.json", "results.jsonl"
ENVIRONMENT, PROCESSES = "environment.json", "processes.json"
REGISTRATION, AMENDMENTS = "registration.json", "amendments.jsonl"
METRICS, ARRAYS, CHECKPOINTS = "metrics", "arrays", "checkpoints"
MANIFEST, DERIVED, DONE, SUMS = "manifest.json", "derived.json", "DONE", "SHA256SUMS"
LEFT_OUT, GROWING = "left_out.json", "growing.jsonl"
FIGURES, REPORTS, EXPLORATORY = "figures", ("report.html", "report.md"), "exploratory"

SEAL = (MANIFEST, DERIVED, DONE)
SEALED = (
    *(CONFIG, OVERRIDES, REGISTRATION, ENVIRONMENT, PROCESSES),
    *(journal.NAME, RESULTS, METRICS, ARRAYS, CHECKPOINTS),
)
# What may be made again or added afterwards.
MADE_AGAIN = (FIGURES, *REPORTS)
LATER = (*MADE_AGAIN, AMENDMENTS, EXPLORATORY, LEFT_OUT)
KNOWN = (*SEALED, *SEAL, *LATER, lease.NAME)

_SHA256 = re.compile("[0-9a-f]{64}")


class Entry(NamedTuple):
    """What is known of a file: bytes (None: not recorded) and SHA-256."""

    size: int | None
    digest: str


# One folder: the sums of a checkpoint.


def write_sums(folder: epath.Path) -> None:
    """Write `SHA256SUMS` of all files below `folder`, as its last file; for `sha256sum -c`, too."""
    publish(folder / SUMS, sums_text(folder))


def sums_text(folder: epath.Path) -> bytes:
    """What `SHA256SUMS` of `folder` must hold."""
    sums = {name: size_and_digest(path)[1] for name, path in _summed(folder).items()}
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()


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


def _read_sums(folder: epath.Path) -> dict[str, Entry] | None:
    try:
        lines = read_bytes(folder / SUMS, most=MAX_JSON_BYTES).decode().splitlines()
        sums = {name: Entry(None, digest) for digest, name in (x.split("  ", 1) for x in lines)}
    except ValueError:
        return None
    return sums if len(sums) == len(lines) and all(map(_is_entry, sums.items())) else None


def _is_entry(item: tuple[str, Entry]) -> bool:
    name, (size, digest) = item
    sized = size is None or (type(size) is int and size >= 0)
    return sized and isinstance(digest, str) and bool(_SHA256.fullmatch(digest)) and is_safe(name)


def _differences(expected: Mapping[str, Entry], found: Mapping[str, epath.Path]) -> Iterator[str]:
    for name in sorted(expected.keys() | found.keys()):
        shown = printable(name)
        if name not in found:
            yield f"{shown} is missing"
        elif is_link(found[name]):
            yield f"{shown} is a link"
        elif not is_regular(found[name]):
            yield f"{shown} is no regular file"
        elif name not in expected:
            yield f"{shown} is listed nowhere"
        else:
            size, digest = expected[name]
            if size is not None and (there := size_of(found[name])) != size:
                yield f"{shown} has {there} bytes instead of {size}"
            elif size_and_digest(found[name])[1] != digest:
                yield f"{shown} differs from its SHA-256"


# A whole run.


def sums_of(folder: epath.Path, *names: str) -> dict[str, str]:
    """SHA-256 of every file at or below entries of a folder, by its name in it, without segments
    that still grow."""
    files = _below(folder, names)
    return {n: size_and_digest(path)[1] for n, path in files.items() if path.name != GROWING}


def seal(folder: epath.Path, extra: Mapping[str, Any]) -> None:
    """Write `manifest.json` with `extra` in it, `derived.json`, and last `DONE`."""
    files = {}
    for name, path in _below(folder, SEALED, most=None).items():
        if name.startswith(f"{CHECKPOINTS}/") and path.name != SUMS:
            continue
        size, digest = size_and_digest(path)
        files[name] = {"bytes": size, "sha256": digest}
    times = {"started": _started(folder), "sealed": timestamp()}
    own = {"format": 1, "files": files, "times": times}
    if shadowed := own.keys() & extra.keys():
        raise ValueError(f"seal: {sorted(shadowed)} are fields of the manifest itself")
    publish(folder / MANIFEST, json_file(dict(extra) | own).encode())
    write_derived(folder)
    publish(folder / DONE, _done(folder))


def write_derived(folder: epath.Path, changed: tuple[str, ...] = LATER) -> None:
    """Record in `derived.json` the present sums of what is below the entries `changed`.

    All other sums stay as they were, so no damage elsewhere is sealed with a new report.
    """
    kept = {}
    if set(changed) != set(LATER) and (folder / DERIVED).exists():
        earlier = _derived(folder) or {}
        kept = {n: e.digest for n, e in earlier.items() if n.split("/", 1)[0] not in changed}
    sums = {name: size_and_digest(path)[1] for name, path in _below(folder, changed).items()}
    publish(folder / DERIVED, json_file({"files": kept | sums}).encode())


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """The manifest of a finished run, after its sum was compared with `DONE`.

    Raises:
        UserError: the run is not finished, or the manifest is damaged or not a list of safe names.
    """
    if (reason := _broken_root(folder)) is not None:
        raise UserError(f"'{folder}' is not a sound run: {reason}.")
    return read_json(folder / MANIFEST)


def broken(folder: epath.Path) -> str | None:
    """Why a finished run cannot be trusted (its manifest, its results), or None."""
    if (reason := _broken_root(folder)) is not None:
        return reason
    results = {name: entry for name, entry in listed(folder).items() if name == RESULTS}
    return next(_differences(results, _below(folder, (RESULTS,))), None)


def _broken_root(folder: epath.Path) -> str | None:
    if not (folder / DONE).exists():
        return f"{DONE} is missing: the run was not finished"
    for name in (MANIFEST, DONE):
        if is_link(folder / name):
            return f"{name} is a link"
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    if not is_regular(folder / MANIFEST) or not is_regular(folder / DONE):
        return f"{MANIFEST} or {DONE} is no regular file"
    if size_of(folder / MANIFEST) > MAX_JSON_BYTES:
        return f"{MANIFEST} is longer than {MAX_JSON_BYTES:,} bytes, the most it may be"
    if read_bytes(folder / DONE, most=1000) != _done(folder):
        return f"{MANIFEST} differs from the SHA-256 in {DONE}"
    try:
        listed(folder)
    except UserError as error:
        return str(error).removeprefix(f"{folder}/").removesuffix(".")
    return None


def verify(path: os.PathLike | str, *, besides: tuple[str, ...] = ()) -> list[str]:
    """Check a sealed run, from `DONE` to every byte.

    Args:
        besides: entries that are not looked at, nor what a kill left half-written of them.

    Returns:
        A line for each file that is missing, changed, a link, or listed nowhere. Empty: every file
        is the one that was sealed. The lease, which is empty when no run holds it, is not read; a
        line says if it is not a small regular file.

    Raises:
        UserError: there are more files or folders than any run makes.
    """
    folder = epath.Path(path)
    if (reason := _broken_root(folder)) is not None:
        return [reason]
    expected = listed(folder)
    ignored = {*besides, *(name + TEMPORARY for name in besides)}
    others = [path.name for path in folder.iterdir() if path.name not in {*KNOWN, *ignored}]
    found = _below(folder, (*SEALED, *others))
    for name in left_out(folder).keys() - found.keys():
        del expected[name]
    inside = []
    for sums in [name for name in expected if name.endswith(f"/{SUMS}") and name in found]:
        checkpoint = sums.removesuffix(f"/{SUMS}")
        if (reason := damage(folder / checkpoint)) is not None:
            inside.append(f"{checkpoint}: {reason}")
        found = {n: p for n, p in found.items() if n == sums or not n.startswith(f"{checkpoint}/")}
    # No reader needs it, and a sender can make it as large as they like.
    held = folder / lease.NAME
    if (held.exists() or is_link(held)) and (not is_regular(held) or size_of(held) > 1000):
        inside.append(f"{lease.NAME} is not what a run leaves")
    return [*_differences(expected, found), *inside, *_derived_differences(folder, besides)]


def left_out(folder: epath.Path) -> dict[str, Entry]:
    """The sealed arrays and checkpoints that a published folder lacks, by its `left_out.json`."""
    if not (folder / LEFT_OUT).exists():
        return {}
    try:
        named = read_json(folder / LEFT_OUT)["files"]
        entries = {name: Entry(own["bytes"], own["sha256"]) for name, own in named.items()}
    except (LookupError, TypeError, AttributeError):
        return {}
    sealed = listed(folder)
    may_lack = tuple(f"{name}/" for name in (ARRAYS, CHECKPOINTS))
    return {
        name: entry
        for name, entry in entries.items()
        if name.startswith(may_lack) and sealed.get(name) == entry
    }


def _derived_differences(folder: epath.Path, besides: tuple[str, ...]) -> list[str]:
    there = _derived(folder)
    if there is None:
        return [f"{DERIVED} is missing or damaged"]
    there = {name: entry for name, entry in there.items() if name not in besides}
    later = tuple(name for name in LATER if name not in besides)
    return list(_differences(there, _below(folder, later)))


def _derived(folder: epath.Path) -> dict[str, Entry] | None:
    """What `derived.json` lists; None if it is not as we write it, to the byte."""
    try:
        text = read_bytes(folder / DERIVED, most=MAX_JSON_BYTES)
        value = parse_json(text, DERIVED)
        there = {name: Entry(None, digest) for name, digest in value["files"].items()}
    except (UserError, LookupError, TypeError, AttributeError):
        return None
    sound = text == json_file(value).encode() and all(map(_is_entry, there.items()))
    return there if sound else None


def listed(folder: epath.Path) -> dict[str, Entry]:
    """Every file that the manifest seals, with size and sum.

    Raises:
        UserError: the manifest lists none, too many, or something that is not a file of a run.
    """
    manifest = read_json(folder / MANIFEST)
    try:
        entries = manifest["files"].items()
        files = {name: Entry(entry["bytes"], entry["sha256"]) for name, entry in entries}
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{MANIFEST} lists no files.") from None
    if len(files) > MAX_FILES:
        raise UserError(f"{MANIFEST} lists more than {MAX_FILES:,} files, the most it may.")
    for item in files.items():
        if item[1].size is None or not _is_entry(item):
            shown = printable(item[0])[:80]
            raise UserError(f"{MANIFEST} lists '{shown}', which is no file of a run.")
    return files


def _below(
    folder: epath.Path, names: tuple[str, ...], most: int | None = MAX_FILES
) -> dict[str, epath.Path]:
    """Every file at or below the entries `names` of `folder`, by its name in it."""
    files = {}
    for name in names:
        path = folder / name
        below = walk(path) if path.is_dir() and not is_link(path) else [path]
        for p in below:
            if p.exists() or is_link(p):
                files[name_in(folder, p)] = p
            if most is not None and len(files) > most:
                raise UserError(f"'{folder}' holds more than {most:,} files, the most it may.")
    return files


def _done(folder: epath.Path) -> bytes:
    return f"{size_and_digest(folder / MANIFEST)[1]}\n".encode()


def _started(folder: epath.Path) -> str | None:
    """When the config was written, as far as the store knows."""
    path = folder / CONFIG
    seconds = path.stat().mtime if is_remote(path) else os.path.getmtime(path)
    return timestamp(seconds) if seconds else None
