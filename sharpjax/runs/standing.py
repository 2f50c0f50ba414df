"""The registration of a run: read it, amend it, and compare the data with it."""

import functools
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.protocol.claims import tests_of
from sharpjax.protocol.seals import amendments, registration
from sharpjax.protocol.seals.amendments import Amendment
from sharpjax.protocol.seals.registration import MOST_BYTES, Registration
from sharpjax.provenance import sources
from sharpjax.runs import read as runs

OFFICIAL = sources.ROOT / "docs" / "registrations"
PUBLISHED = sources.ROOT / "docs" / "results"
UNREGISTERED = "unregistered: everything is exploratory"


def read(folder: os.PathLike | str) -> Registration | None:
    """The registration of a run, with its seal checked; None if it has none.

    Raises:
        UserError: it is damaged, or was changed after it was sealed.
    """
    path = epath.Path(folder) / workdir.REGISTRATION
    return read_file(path) if path.exists() else None


def read_file(path: os.PathLike | str) -> Registration:
    """The registration in a file, with its seal checked."""
    return _sealed(workdir.read_bytes(epath.Path(path), most=MOST_BYTES), str(path))


@functools.lru_cache(maxsize=8)  # a command reads the same registration many times
def _sealed(content: bytes, name: str) -> Registration:
    return registration.from_json(content, name)


def amended(folder: os.PathLike | str) -> tuple[Amendment, ...]:
    """The amendments of a registered run, with their chain checked.

    Raises:
        UserError: the chain is broken.
    """
    there, path = read(folder), epath.Path(folder) / workdir.AMENDMENTS
    if there is None or not path.exists():
        return ()
    return amendments.read(workdir.read_bytes(path, most=MOST_BYTES), seal=there.seal)


def amend(folder: epath.Path, reason: str) -> Amendment:
    """Append an amendment to a registered run: the reason, and the digests of the code now.

    Raises:
        UserError: the run is not registered, the reason is empty, or the chain is broken.
    """
    there = read(folder)
    if there is None:
        raise UserError(f"'{folder}' is {UNREGISTERED}, so there is nothing to amend.")
    config = workdir.read_json(folder / workdir.CONFIG)
    entry = {"seal": there.seal, "reason": reason, "time": workdir.timestamp()}
    entry |= sources.digests(there.hypotheses, there.study, config)
    workdir.append_amendment(folder, lambda chain: amendments.append(chain, **entry))
    return amended(folder)[-1]


def analysis_here(there: Registration) -> str:
    """The digest of the analysis in this version of the code."""
    return sources.analysis_digest(tests_of(there.hypotheses))


def hold_data(folder: epath.Path, digests: Mapping[str, Any]) -> None:
    """Refuse data that differ from those that were registered.

    Raises:
        UserError: they differ; the error names the data and the split.
    """
    there = read(folder)
    if there is not None and (lines := registration.different_data(there.data, digests)):
        raise UserError(
            f"workdir '{folder}': what was registered differs from this run: {lines[0]}. Give the "
            f"data that were registered, or register these in another workdir."
        )


def published(study: str, arms: Collection[str], seeds: Collection[int]) -> dict[str, list[str]]:
    """For each run published in the repository with some of these seeds, which of `arms` it has.

    Arms that are derived from others count, too. A form that is judged over runs has none of its
    own.
    """
    found = {}
    for path in sorted(PUBLISHED.glob(f"*/{workdir.DONE}")):
        run = runs.read(path.parent)
        if run.study == study and {*seeds} & {*run.config["seeds"]}:
            found[path.parent.name] = [arm for arm in run.arms if arm in arms]
    return {name: own for name, own in found.items() if own}


def official(study: str) -> dict[pathlib.Path, Registration]:
    """The registrations of a study in the repository, by file.

    Raises:
        UserError: one of them is damaged, or a file does not name its study.
    """
    files = (path for path in sorted(OFFICIAL.glob("*.json")) if _may_be_of(study, path))
    found = {path: read_file(path) for path in files}
    return {path: there for path, there in found.items() if there.study == study}


def _may_be_of(study: str, path: pathlib.Path) -> bool:
    """Whether a file names this study, or names none in the usual format."""
    named = re.findall(rb'"study":"([^"]*)"', path.read_bytes())
    return not named or study.encode() in named
