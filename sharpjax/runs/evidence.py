"""Check whether the verdicts of a run can be trusted.

Was it registered before it began? Is the seal the one in the repository? Did the registered code
make the numbers, and decide? Was each file of rows written by a process of the run?
"""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sharpjax import workdir
from sharpjax.errors import UserError, printable
from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.protocol.seals import amendments, registration
from sharpjax.protocol.seals.amendments import Amendment
from sharpjax.protocol.seals.registration import Registration
from sharpjax.provenance import sources
from sharpjax.runs import conclude, read, standing
from sharpjax.runs.read import Folder
from sharpjax.workdir import journal

Official = Mapping[pathlib.Path, Registration]


class Evidence(NamedTuple):
    """The result, in sentences. All of them stand at the top of the page.

    Attributes:
        failures: what does not hold. Each makes `verify` fail.
        caveats: what a reader should know.
    """

    failures: tuple[str, ...]
    caveats: tuple[str, ...]


def evidence(run: Folder) -> Evidence:
    """Make all checks of a folder that compute no result again.

    Raises:
        UserError: its registration or its amendments are damaged.
    """
    there = standing.read(run.path)
    failures = [*_journal(run), *_strangers(run, there)]
    if there is None:
        return Evidence(tuple(failures), ("Unregistered: everything is exploratory.",))
    lines, held = standing.amended(run.path), standing.official(there.study)
    early = _before_the_data(run, lines)
    asked = (
        *_silent(run, there),
        *_order(run, there),
        *_seal(run, there, held),
        *different_data(run, there),
    )
    failures = [*asked, *_code(run, there, early), *failures]
    return Evidence(tuple(failures), tuple(_caveats(run, there, lines, early, held)))


def _times(run: Folder) -> list[str]:
    """When each process started."""
    processes = run.tables(workdir.PROCESSES)
    return [p["started"] for p in processes if isinstance(p.get("started"), str)]


def begun(run: Folder) -> str:
    """The earliest time that a run's files record, of a process or of a write; '' if none."""
    try:
        written = [entry.time for entry in journal.read(run.path)]
    except UserError:
        written = []
    return min([*_times(run), *written], default="")


def first_begun(runs: Iterable[Folder]) -> str:
    """The earliest time that files of these runs record; '~', later than all, if there is none."""
    return min(filter(None, map(begun, runs)), default="~")


def _before_the_data(run: Folder, lines: tuple[Amendment, ...]) -> tuple[Amendment, ...]:
    """The amendments that the first process found and whose time is not later than its start.

    Those of a form that is judged over runs came before the first of these runs began.
    """
    first = first_begun([read.read(path) for path in read.joined(run.path)] or [run])
    processes = run.tables(workdir.PROCESSES)
    found = processes[0].get("amended") if processes else None
    if isinstance(found, str):  # the oldest runs did not record it
        lines = amendments.until(lines, found)
    return tuple(line for line in lines if line.time <= first)


# Entries that the manifest must have, because the folder is checked against them.
_RECORDED = ("config_digest", "code", "processes", "environments", "data", "verdicts")


def _silent(run: Folder, there: Registration) -> Iterator[str]:
    if run.manifest is None:
        return
    missing = [name for name in _RECORDED if run.recorded(name) is None]
    missing += [f"data '{printable(key)}'" for key in there.data if not run.recorded("data", key)]
    if missing:
        yield f"{workdir.MANIFEST} says nothing of: {', '.join(missing)}."


def _order(run: Folder, there: Registration) -> Iterator[str]:
    """It was registered before it was run."""
    first, sealed = begun(run), run.recorded("times", "sealed")
    if not _times(run) and run.manifest is not None:
        yield f"{workdir.PROCESSES} names no process, so nothing says when the run was begun."
    for kept, name in (("processes", workdir.PROCESSES), ("environments", workdir.ENVIRONMENT)):
        if run.recorded(kept) not in (None, run.tables(name)):
            yield f"{name} is not what {workdir.MANIFEST} holds of the run's {kept}."
    if first and there.time > first:
        yield (
            f"It was registered {there.time}, after the run had begun ({first}): what it asks may "
            f"have been chosen by what was seen."
        )
    elif isinstance(sealed, str) and there.time > sealed:
        yield f"It was registered {there.time}, after the run was sealed ({sealed})."
    if there.time > workdir.timestamp():
        yield f"It was registered {there.time}, which has not come yet."


def _seal(run: Folder, there: Registration, official: Official) -> Iterator[str]:
    """All processes ran under one seal, and the repository has no other for this config."""
    for number, process in enumerate(run.tables(workdir.PROCESSES), 1):
        if "registration" not in process:
            yield f"Process {number} does not say under which registration it ran."
        elif (seal := process["registration"]) != there.seal:
            what = f"the registration with seal {seal[:12]}" if isinstance(seal, str) else "none"
            yield (
                f"Process {number} ran under {what}, and the registration here has seal "
                f"{there.seal[:12]}."
            )
    for path, held in official.items():
        if held.config_digest == there.config_digest and held.seal != there.seal:
            yield (
                f"The registration of this config in the repository ({path.name}) has another "
                f"seal, {held.seal[:12]}, than the one here, {there.seal[:12]}."
            )


def different_data(run: Folder, there: Registration) -> Iterator[str]:
    """The data of the run are those that were registered."""
    recorded = run.recorded("data")
    tables = recorded if isinstance(recorded, dict) else {}
    digests = {key: own.get("digests") for key, own in tables.items() if isinstance(own, dict)}
    for line in registration.different_data(there.data, digests):
        yield f"The data were not those that were registered: {line}."


def _code(run: Folder, there: Registration, early: tuple[Amendment, ...]) -> Iterator[str]:
    """Numbers and verdicts come from registered code, or that of an amendment before the data."""
    known = amendments.named(early, "measures") | {there.digests.measures}
    if known != {""}:
        for number, process in enumerate(run.tables(workdir.PROCESSES), 1):
            code = process.get("code")
            made = code.get("measures") if isinstance(code, dict) else None
            if made not in known:
                yield (
                    f"The numbers were not made by the code that was registered: process "
                    f"{number} measured with {_brief(made)}, and "
                    f"{_brief(there.digests.measures)} was sealed."
                )
    decided = run.recorded("code", "analysis")
    known = amendments.named(early, "analysis") | {there.digests.analysis}
    if run.manifest is not None and decided not in known:
        yield (
            f"The verdicts were not reached by the analysis that was registered: the run decided "
            f"with {_brief(decided)}, and {_brief(there.digests.analysis)} was sealed."
        )


def _brief(digest: object) -> str:
    return digest[:12] if isinstance(digest, str) and digest else "code that is not recorded"


def _journal(run: Folder) -> Iterator[str]:
    """Each file of rows and arrays, and each checkpoint, is as a process of the run wrote it."""
    try:
        entries = journal.read(run.path)
    except UserError as error:
        yield f"{str(error).removesuffix('.')}."
        return
    sums = workdir.sums_of(run.path, workdir.METRICS, workdir.ARRAYS)
    sums |= {
        name: entry.digest
        for name, entry in workdir.left_out(run.path).items()
        if name.startswith(f"{workdir.ARRAYS}/")
    }
    if not entries:
        if sums or run.manifest is not None:
            yield f"It has no {journal.NAME}: which process wrote which rows is not recorded."
        return
    weights = {name for name in journal.latest(entries) if name.startswith(workdir.CHECKPOINTS)}
    if weights:  # the oldest journals name no checkpoints
        there = workdir.walk(run.path / workdir.CHECKPOINTS)
        kept = [path.relative_to(run.path) for path in there if path.name == workdir.SUMS]
        sums |= workdir.sums_of(run.path, *(path.as_posix() for path in kept))
        # Older checkpoints of each arm are deleted, and publishing leaves all of them out.
        entries = tuple(e for e in entries if e.file in sums or e.file not in weights)
    yield from (f"{line}." for line in journal.differences(entries, sums))
    processes = run.tables(workdir.PROCESSES)
    for number in sorted({entry.process for entry in entries}):
        own = [entry.time for entry in entries if entry.process == number]
        process = processes[number - 1] if 0 < number <= len(processes) else {}
        if not process:
            yield f"Rows were written by process {number}, which {workdir.PROCESSES} does not name."
            continue
        started, ended = process.get("started"), process.get("ended") or "~"
        if not isinstance(started, str) or min(own) < started or max(own) > ended:
            yield f"Rows of process {number} were written before it started, or after it ended."


def _strangers(run: Folder, there: Registration | None) -> Iterator[str]:
    """All rows are of the run's study and arms, and none is of a seed that was registered and not
    run. A segment of an arm holds rows of that arm only."""
    arms, own = set(run.arms), run.config.get("seeds")
    seeds = [s for s in there.seeds if s not in own] if there and isinstance(own, list) else []
    for path in read.segments(run.path):
        owner = path.parent.name
        for row in workdir.rows_in(path):
            if row["study"] != run.study or row["arm"] not in arms:
                what = f"of study '{row['study']}', arm '{row['arm']}', which is none of the run"
            elif owner in arms and row["arm"] != owner:
                what = f"of arm '{row['arm']}'"
            elif row["seed"] in seeds:
                what = f"of seed {row['seed']}, which was registered and not run"
            else:
                continue
            yield f"{workdir.METRICS}/{owner}/{path.name} holds a row {what}."
            break


def _caveats(
    run: Folder,
    there: Registration,
    lines: tuple[Amendment, ...],
    early: tuple[Amendment, ...],
    official: Official,
) -> Iterator[str]:
    here = standing.analysis_here(there)
    if here not in amendments.named(early, "analysis") | {there.digests.analysis}:
        later = next((a for a in lines if a.analysis == here), None)
        why = f": it was amended {later.time}, after the run had begun" if later else ""
        yield (
            f"The analysis that decides on this page ({here[:12]}) is not the one that was "
            f"registered ({there.digests.analysis[:12]}){why}."
        )
    if not there.digests.measures and not amendments.named(early, "measures"):
        yield "Its registration is of a format that did not seal the code that makes the numbers."
    path = next((path for path, held in official.items() if held.seal == there.seal), None)
    if path is None or not sources.added(path):
        what = f"in no commit ({path.name})" if path else "none that the repository holds"
        yield f"Its registration is {what}: when it was sealed, this folder alone says."
    registered = there.environment.get("settings")
    for machine in run.tables(workdir.ENVIRONMENT):
        own = machine.get("settings")
        if isinstance(registered, dict) and isinstance(own, dict) and registered != own:
            differs = workdir.difference(registered, own)
            yield f"It ran under other settings of jax than were registered: {differs}."
            break
    if there.dirty or run.recorded("code", "dirty"):
        when = "it was sealed" if there.dirty else "it ran"
        yield f"Files differed from the commit when {when}: others cannot see all of the code."


def verdicts(run: Folder, here: Iterable[Judgement]) -> Iterator[str]:
    """A sentence for each recorded verdict that differs from what the rows give here.

    Args:
        here: the judgements of the registered hypotheses here.
    """
    recorded, words = run.recorded("verdicts"), conclude.words(here)
    for name in dict.fromkeys([*recorded, *words]) if isinstance(recorded, dict) else ():
        there, now = recorded.get(name, "absent"), words.get(name, "absent")
        if there != now:
            yield f"{printable(name)} is {there} in the folder, and {now} by the analysis here."


def place(there: Registration) -> str:
    """The file of a registration in the repository, and since which commit; '' if there is none."""
    for path, held in standing.official(there.study).items():
        if held.seal == there.seal:
            since = sources.added(path)
            how = f"in the repository since {since}" if since else "which is not committed"
            return f"docs/registrations/{path.name}, {how}"
    return ""
