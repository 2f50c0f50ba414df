"""Whether a run's folder is what was sealed, follows its registration, and holds what it may."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from etils import epath

from sharpjax import catalog, workdir
from sharpjax.errors import UserError
from sharpjax.provenance import sources
from sharpjax.runs import conclude, evidence, read, standing
from sharpjax.runs.read import Folder


class Verification(NamedTuple):
    """What was found.

    Attributes:
        problems: a line for each thing that is not as it was sealed, or should not be there.
        notes: what a reader should know beside; nothing is wrong with the folder.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify(path: os.PathLike | str) -> Verification:
    """Follow the chain from `DONE` to every byte, then the registration, then look into the files;
    ask what `evidence` asks; reach the verdicts again.

    Cost: all of the folder is read once, and its hypotheses are decided.

    Raises:
        UserError: `path` is the folder of no run.
    """
    folder = read.folder_at(path)
    problems = _refusals(lambda: workdir.verify(folder))
    try:
        run = read.read(folder)
    except UserError as error:
        return Verification(_ordered(problems or [str(error)], folder), ())
    problems += _damage(run)
    if problems:
        return Verification(_ordered(problems, folder), ())
    found = evidence.evidence(run)
    problems = [*found.failures, *_refusals(lambda: _check_verdicts(run))]
    differing, notes = _check_compared(run)
    problems += differing
    return Verification(_ordered(problems, folder), (*found.caveats, *notes, *_notes(run)))


def _damage(run: Folder) -> list[str]:
    """What is not as it was sealed, beyond the sums."""
    checks = (_check_config, _check_registration, _check_rows, _check_arrays)
    return [line for check in checks for line in _refusals(lambda check=check: check(run))]


def sound(path: os.PathLike | str) -> Folder:
    """A run of which every byte is as it was sealed.

    Raises:
        UserError: it is not, or `path` is the folder of no run.
    """
    run = read.read(path)
    problems = _refusals(lambda: workdir.verify(run.path)) or _damage(run)
    if problems := _ordered(problems, run.path):
        raise UserError(f"'{path}' is not as it was sealed: {problems[0]}.")
    return run


def _refusals(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except UserError as error:
        return [str(error)]


def _ordered(problems: list[str], folder: epath.Path) -> tuple[str, ...]:
    """Each once, with names as they are in the folder."""
    short = (line.replace(f"{folder}/", "").removesuffix(".") for line in problems)
    return tuple(dict.fromkeys(short))


def _check_config(run: Folder) -> list[str]:
    if run.recorded("config_digest") not in (None, workdir.config_digest(run.config)):
        return [f"{workdir.CONFIG} is not the config that the manifest names"]
    return []


def _check_registration(run: Folder) -> list[str]:
    there, recorded = standing.read(run.path), run.recorded("registration")
    if there is None:
        if recorded is not None:
            return [f"{workdir.REGISTRATION} is missing, and the manifest names a seal"]
        if (run.path / workdir.AMENDMENTS).exists():
            return [f"{workdir.AMENDMENTS} amends no registration"]
        return []
    problems = []
    if run.manifest is not None and recorded != there.seal:
        problems.append(f"{workdir.REGISTRATION} has another seal than the manifest names")
    if there.study != run.study or not _is_config_of(run, there.config_digest, there.seeds):
        problems.append(f"{workdir.CONFIG} is not the config that was registered")
    standing.amended(run.path)
    return problems


def _is_config_of(run: Folder, digest: str, seeds: tuple[int, ...]) -> bool:
    """Whether the config is the registered one, up to seeds that were left out."""
    own = run.config.get("seeds")
    subset = isinstance(own, list) and all(seed in seeds for seed in own)
    whole = workdir.anywhere(run.config | {"seeds": list(seeds)})
    return subset and digest == workdir.config_digest(whole)


def _check_rows(run: Folder) -> list[str]:
    """Every row is one and there once, and the results are what the segments hold."""
    if run.manifest is None:
        return []
    seen, problems = set(), []

    def once(row: workdir.Row) -> workdir.Row:
        key = workdir.canonical_json([row[name] for name in workdir.COLUMNS[:-2]])
        if key in seen and not problems:
            problems.append(f"{workdir.RESULTS} holds a row twice: {key}")
        seen.add(key)
        return row

    results = _fingerprint(map(once, read.rows(run.path)))
    segments = read.segments(run.path)
    if results != _fingerprint(row for path in segments for row in workdir.rows_in(path)):
        problems.append(f"{workdir.RESULTS} is not what {workdir.METRICS}/ holds")
    return problems


def _fingerprint(rows: Iterable[workdir.Row]) -> tuple[int, int]:
    """Of rows in any order: how many, and the sum of their hashes."""
    count = total = 0
    for row in rows:
        text = workdir.canonical_json(row).encode()
        count += 1
        total += int.from_bytes(hashlib.sha256(text).digest())
    return count, total


def _check_verdicts(run: Folder) -> list[str]:
    """The verdicts are those that the rows give here."""
    if (there := standing.read(run.path)) is None:
        return []
    return list(evidence.verdicts(run, conclude.judge(there, read.rows(run.path))))


def _check_compared(run: Folder) -> tuple[list[str], list[str]]:
    """Rows that compare arms follow from what is stored of these; or why that was not looked at."""
    stages = {path.parent.name for path in read.segments(run.path)} - set(run.arms)
    if not stages:
        return [], []
    from sharpjax.data import upstream
    from sharpjax.runs import replay  # and with it jax

    try:
        with upstream.no_downloads("verify"):
            lines, notes = replay.compare_again(run)
    except UserError as error:
        return [], [f"rows that compare arms were not computed again: {error}"]
    return [f"computed again from what is stored: {line}" for line in lines], notes


def _check_arrays(run: Folder) -> list[str]:
    """Arrays are arrays, and rows that were measured later are rows."""
    problems = []
    for name in (workdir.ARRAYS, workdir.EXPLORATORY):
        for path in workdir.walk(run.path / name):
            if path.name.endswith(".npz"):
                problems += _refusals(lambda path=path: workdir.check_arrays(path) or [])
    for path in read.exploratory(run.path):
        problems += _refusals(lambda path=path: [] if list(workdir.rows_in(path)) else [])
    return problems


def _notes(run: Folder) -> Iterator[str]:
    if (there := standing.read(run.path)) is not None:
        yield f"registered {there.time}, seal {there.seal}"
        if where := evidence.place(there):
            yield f"the registration is {where}"
        if len(run.config["seeds"]) < len(there.seeds):
            yield f"{len(run.config['seeds'])} of {len(there.seeds)} registered seeds were run"
    for amendment in standing.amended(run.path):
        yield f"amended {amendment.time}: {amendment.reason}"
    if run.study not in catalog.STUDIES:
        yield f"study '{run.study}' is none of this version"
    if run.recorded("code", "sources") != sources.code_digest():
        yield "the code that ran is not the code here; that changes no byte of the folder"
    if any(workdir.walk(run.path / workdir.EXPLORATORY)):
        yield f"{workdir.EXPLORATORY}/ holds measures that were taken later"
