"""Verdicts over several runs: a question is registered as a whole, and run in parts.

A form of a config with all the arms of a question is registered by `launch.py --register`, and is
never run itself. It is judged over runs of forms with some of these arms, each registered by
itself. `joint.json` in its folder holds the verdicts, and the relative path of each run with the
sum of its manifest. The rows stay in the folders of the runs (`read.rows`).
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.protocol import claims
from sharpjax.protocol.seals import amendments
from sharpjax.protocol.seals.registration import Registration
from sharpjax.runs import conclude, evidence, read, standing, verify
from sharpjax.runs.read import JOINT, Folder
from sharpjax.runs.verify import Verification

SEEN, IN_PART = "seen before", "seen in part"


class Joint(NamedTuple):
    """What a reader must know of verdicts over several runs.

    Attributes:
        problems: why these runs cannot be judged together.
        warnings: what a reader must know before the verdicts.
        seen: by the id of a hypothesis, `SEEN` if all of its arms had been run when it was
            registered, `IN_PART` if some had.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    seen: Mapping[str, str] = {}


def join(target: str, folders: Sequence[str]) -> epath.Path:
    """Judge a registered form over runs, and write the runs and the verdicts into its folder.

    Returns:
        The folder of the form; its pages are not made.

    Raises:
        UserError: nothing is registered there, or it has rows of its own; a run does not pass
            `verify` or is not registered, differs from the form in study, seeds, data or an arm, or
            shares an arm with another run. The error names the first problem.
    """
    whole = read.read(target)
    if standing.read(whole.path) is None:
        raise UserError(f"report: nothing is registered in '{target}'; give --joint a folder that "
                        "`launch.py --register` made.")  # fmt: skip
    if whole.manifest is not None or any(read.segments(whole.path)):
        raise UserError(f"report: '{target}' has rows of its own; give --joint a folder that was "
                        "registered and never run.")  # fmt: skip
    runs = [read.read(folder) for folder in folders]
    problems = [*verify.check_registration(whole), *_unsound(run.path for run in runs)]
    problems = problems or of(whole, runs).problems
    if problems:
        raise UserError(f"report: these runs cannot be judged together: {problems[0]}.")
    named = {os.path.relpath(run.path, whole.path): _sum(run.path) for run in runs}
    rows = [row for run in runs for row in read.rows(run.path)]
    judged = conclude.conclude(whole.path, whole.config, rows).judgements
    kept = {"runs": named, "verdicts": conclude.words(judged)}
    workdir.publish(whole.path / JOINT, workdir.json_file(kept).encode())
    return whole.path


def of(whole: Folder, runs: Sequence[Folder]) -> Joint:
    """What to say of verdicts over these runs. Their sums are not checked here."""
    there = standing.read(whole.path)
    if there is None:
        return Joint((f"nothing is registered in {whole.path.name}",))
    if problems := tuple(_differences(there, runs)):
        return Joint(problems)
    before = [run for run in runs if evidence.begun(run) <= there.time]
    seen = {arm for run in before for arm in run.arms}.union(*_published(there).values())
    asked = {h.id: arms for h in there.hypotheses if (arms := _arms(h))}
    tags = {id: SEEN if arms <= seen else IN_PART for id, arms in asked.items() if arms & seen}
    warnings = (
        f"Judged over {len(runs)} runs of forms, each registered by itself and as it was sealed: "
        f"{_names(runs)}. What each was asked alone stands in its own report.",
        *_of_the_seal(there, before, asked, seen),
        *_of_gaps(runs, asked),
        *_of_code(whole, there, runs),
    )
    return Joint((), warnings, tags)


def check(target: os.PathLike | str) -> Verification:
    """Check that the runs are those that were judged, are sound, and give the recorded verdicts.

    Raises:
        UserError: `target` is not the folder of a run.
    """
    whole = read.read(target)
    try:
        paths, kept = read.joined(whole.path), whole.table(JOINT)
        pairs = zip(paths, kept["runs"].values(), strict=True)
        problems = [f"{path.name} is not the run that was judged" for path, digest in pairs
                    if _sum(path) != digest]  # fmt: skip
        shown = evidence.evidence(whole)
        problems += [*verify.check_registration(whole), *_unsound(paths), *shown.failures]
        if not isinstance(kept.get("verdicts"), dict):
            problems.append(f"{JOINT} holds no verdicts")
        found = of(whole, [] if problems else [read.read(path) for path in paths])
        if problems := problems or list(found.problems):
            return Verification(tuple(problems), ())
        judged = conclude.conclude(whole.path, whole.config, read.rows(whole.path)).judgements
        differing = tuple(evidence.verdicts(recorded(whole), judged))
        return Verification(differing, (*found.warnings, *shown.caveats))
    except UserError as error:
        return Verification((str(error),), ())


def recorded(whole: Folder) -> Folder:
    """A form with the verdicts of its `joint.json` in the place of a manifest; a run as it is."""
    if whole.manifest is not None or not (whole.path / JOINT).exists():
        return whole
    return whole._replace(manifest={"verdicts": whole.table(JOINT).get("verdicts")})


def _unsound(folders: Iterable[epath.Path]) -> Iterator[str]:
    """For each run that does not pass `verify` or is not registered, the reason."""
    for path in folders:
        if problems := verify.verify(path).problems:
            yield f"{path.name} does not pass verify: {problems[0].removesuffix('.')}"
        elif standing.read(path) is None:
            yield f"{path.name} is {standing.UNREGISTERED}"


def _differences(there: Registration, runs: Sequence[Folder]) -> Iterator[str]:
    """How runs differ from what was registered, and which arms two runs share."""
    owners: dict[str, str] = {}
    for run in runs:
        name, own = run.path.name, standing.read(run.path)
        if own is None or own.study != there.study:
            yield f"{name} is no registered run of the study '{there.study}'"
            continue
        if own.seeds != there.seeds:
            yield f"{name} has the seeds {list(own.seeds)}, and not {list(there.seeds)}"
        for arm, config in own.arms.items():
            if arm not in there.arms:
                yield f"{name} has the arm {arm}, which is none of those registered together"
            elif differs := _difference(there.arms[arm], config):
                yield f"{name} has another arm {arm} than was registered: {differs}"
            elif arm in owners:
                yield f"{name} and {owners[arm]} both have the arm {arm}"
            owners[arm] = name
        yield from (f"{name}: {line}" for line in evidence.different_data(run, there))


def _difference(there: Mapping, here: Mapping) -> str:
    return workdir.difference(workdir.flat(there), workdir.flat(here))


def _of_the_seal(
    there: Registration,
    before: Sequence[Folder],
    asked: Mapping[str, set[str]],
    seen: set[str],
) -> Iterator[str]:
    """Which arms had been run when the form was registered."""
    if not seen:
        return
    runs = ", ".join(dict.fromkeys([*_published(there), *(run.path.name for run in before)]))
    parts = [
        f"{id} ({len(arms & seen)} of its {len(arms)} arms)"
        for id, arms in asked.items()
        if arms & seen and not arms <= seen
    ]
    kinds = {
        "seen before": [id for id, arms in asked.items() if arms <= seen],
        "seen in part": parts,
        "not seen": [id for id, arms in asked.items() if not arms & seen],
    }
    said = "; ".join(f"{kind}: {', '.join(ids)}" for kind, ids in kinds.items() if ids)
    yield (
        f"Not all of this was sealed before its data: when it was registered, {there.time}, "
        f"{len(seen & there.arms.keys())} of {len(there.arms)} arms had been run ({runs}). "
        f"{said[:1].upper()}{said[1:]}."
    )


def _of_gaps(runs: Sequence[Folder], asked: Mapping[str, set[str]]) -> Iterator[str]:
    """Which arms no run has, and which hypotheses need them."""
    has = {arm for run in runs for arm in run.arms}
    lacking = list(dict.fromkeys(arm for arms in asked.values() for arm in sorted(arms - has)))
    if lacking:
        ids = [f"{id} ({len(arms - has)})" for id, arms in asked.items() if arms - has]
        yield (
            f"No run here has {len(lacking)} of the arms that it asks for: {', '.join(lacking)}. "
            f"Comparisons that need one are not run, and count as p = 1 in their families: of "
            f"{', '.join(ids)}."
        )


def _of_code(whole: Folder, there: Registration, runs: Sequence[Folder]) -> Iterator[str]:
    """Which runs were measured by code that is neither registered nor named by an amendment.

    The digest of measures depends on the nets of a form. So a run also passes if the digest of all
    code is known. An amendment counts if it came before the first run began.
    """
    first = evidence.first_begun(runs)
    lines = [line for line in standing.amended(whole.path) if line.time <= first]
    measures = {there.digests.measures} | amendments.named(lines, "measures")
    sources = {there.digests.code} | amendments.named(lines, "code")
    others: dict[str, list[str]] = {}
    for run in runs:
        for process in run.tables(workdir.PROCESSES):
            code = process.get("code")
            code = code if isinstance(code, dict) else {}
            if code.get("measures") not in measures and code.get("sources") not in sources:
                made = str(code.get("sources") or "not recorded")[:12]
                others.setdefault(made, []).append(run.path.name)
    if others:
        said = "; ".join(f"{m} {', '.join(dict.fromkeys(names))}" for m, names in others.items())
        yield (
            f"The numbers were not all made by the code that was registered here "
            f"({there.digests.code[:12]}) or amended before the first run, but some by what their "
            f"own runs name: {said}."
        )


def _published(there: Registration) -> Mapping[str, list[str]]:
    """The arms of published runs when it was registered, as the registration records them."""
    seen = there.environment.get("seen")
    return seen if isinstance(seen, dict) else {}


def _arms(hypothesis: claims.Hypothesis) -> set[str]:
    groups = (g for contrast in claims.contrasts(hypothesis) for g in contrast.groups)
    return set() if hypothesis.missing else {arm for g in groups for arm in claims.arms(g)}


def _names(runs: Iterable[Folder]) -> str:
    return ", ".join(run.path.name for run in runs)


def _sum(path: epath.Path) -> str:
    """The SHA-256 of a run's manifest, which holds the sums of all other sealed files."""
    return workdir.read_bytes(path / workdir.DONE, most=1000).decode(errors="replace").strip()
