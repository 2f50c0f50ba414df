"""Check that a run's folder is what was sealed, follows its registration, and holds valid files."""

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
    """The result of `verify`.

    Attributes:
        problems: a line for each thing that is not as it was sealed, or should not be there.
        notes: what a reader should also know. These are no faults of the folder.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify(path: os.PathLike | str) -> Verification:
    """Check all of a run's folder: sums from `DONE` down to every byte, config, registration, rows
    and arrays. If these hold, ask what `evidence` asks, judge the hypotheses again, and compute
    rows that compare arms again.

    Cost: the whole folder is read once, its hypotheses are decided, and measures that compare arms
    are computed again if the data are on this machine.

    Raises:
        UserError: `path` is not the folder of a run.
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
    """Faults of config, registration, rows and arrays that the sums do not show."""
    checks = (_check_config, check_registration, _check_rows, _check_arrays)
    return [line for check in checks for line in _refusals(lambda check=check: check(run))]


def sound(path: os.PathLike | str, *, besides: tuple[str, ...] = ()) -> Folder:
    """Read a run, and refuse one with a byte that is not as it was sealed.

    Args:
        besides: entries that are not looked at, because they will be made again.

    Raises:
        UserError: it is not as it was sealed, or `path` is not the folder of a run.
    """
    run = read.read(path)
    problems = _refusals(lambda: workdir.verify(run.path, besides=besides)) or _damage(run)
    if problems := _ordered(problems, run.path):
        raise UserError(f"'{path}' is not as it was sealed: {problems[0]}.")
    return run


def _refusals(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except UserError as error:
        return [str(error)]


def _ordered(problems: list[str], folder: epath.Path) -> tuple[str, ...]:
    """Each line once, with paths relative to the folder."""
    short = (line.replace(f"{folder}/", "").removesuffix(".") for line in problems)
    return tuple(dict.fromkeys(short))


def _check_config(run: Folder) -> list[str]:
    if run.recorded("config_digest") not in (None, workdir.config_digest(run.config)):
        return [f"{workdir.CONFIG} is not the config that the manifest names"]
    return []


def check_registration(run: Folder) -> list[str]:
    """How the registration of a run differs from its config and, if it is done, its manifest."""
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
    """Whether the config is the registered one, apart from seeds that were left out."""
    own = run.config.get("seeds")
    subset = isinstance(own, list) and all(seed in seeds for seed in own)
    whole = workdir.anywhere(run.config | {"seeds": list(seeds)})
    return subset and digest == workdir.config_digest(whole)


def _check_rows(run: Folder) -> list[str]:
    """Every row is valid and occurs once, and the results are the rows of the segments."""
    if run.manifest is None:
        return []
    seen, problems = set(), []

    def once(row: workdir.Row) -> workdir.Row:
        key = workdir.canonical_json([row[name] for name in workdir.COLUMNS[:-2]])
        if key in seen and not problems:
            problems.append(f"{workdir.RESULTS} holds a row twice: {key}")
        if not _is_usable(row) and not problems:
            problems.append(f"{workdir.RESULTS} holds a row that cannot be used: {key}")
        seen.add(key)
        return row

    results = _fingerprint(map(once, read.rows(run.path)))
    segments = read.segments(run.path)
    if results != _fingerprint(row for path in segments for row in workdir.rows_in(path)):
        problems.append(f"{workdir.RESULTS} is not what {workdir.METRICS}/ holds")
    return problems


def _is_usable(row: workdir.Row) -> bool:
    """Whether texts can be written as Unicode, and whole numbers fit into 64 bits."""
    numbers = (row[name] for name in ("seed", "step", "value", "standard_error"))
    texts = (row["study"], row["arm"], row["metric"], str(row["of"]))
    fits = all(abs(x) < 2**63 for x in numbers if isinstance(x, int))
    return fits and all(text.isascii() or _is_unicode(text) for text in texts)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _fingerprint(rows: Iterable[workdir.Row]) -> tuple[int, int]:
    """The number of rows and the sum of their hashes, which do not depend on their order."""
    count = total = 0
    for row in rows:
        text = workdir.canonical_json(row).encode()
        count += 1
        total += int.from_bytes(hashlib.sha256(text).digest())
    return count, total


def _check_verdicts(run: Folder) -> list[str]:
    """The recorded verdicts are those that the rows give here."""
    if (there := standing.read(run.path)) is None:
        return []
    return list(evidence.verdicts(run, conclude.judge(there, read.rows(run.path))))


def _check_compared(run: Folder) -> tuple[list[str], list[str]]:
    """Compute rows that compare arms again from what is stored; a note if that is not possible."""
    stages = {path.parent.name for path in read.segments(run.path)} - set(run.arms)
    if not stages:
        return [], []
    from sharpjax.data import upstream
    from sharpjax.runs import replay  # imports jax

    try:
        with upstream.no_downloads("verify"):
            lines, notes = replay.compare_again(run)
    except UserError as error:
        return [], [f"rows that compare arms were not computed again: {error}"]
    return [f"computed again from what is stored: {line}" for line in lines], notes


def _check_arrays(run: Folder) -> list[str]:
    """Files of arrays hold arrays, and files of later measures hold rows."""
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
