"""Seal what a run will ask, and check that the run does what was sealed.

`launch.py --register` writes `registration.json`; the same command without the flag then runs under
it. A fresh run that asks the same as an official registration (`docs/registrations/`) takes that
one over.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sharpjax import schema, workdir
from sharpjax.errors import UserError
from sharpjax.protocol.claims import check
from sharpjax.protocol.planning import power
from sharpjax.protocol.seals import amendments, registration
from sharpjax.protocol.seals.registration import Registration
from sharpjax.provenance import machine, sources
from sharpjax.report import record
from sharpjax.runs import console, loading, read, standing, study
from sharpjax.runs.standing import UNREGISTERED
from sharpjax.schema import Config
from sharpjax.train import planning
from sharpjax.train.described import described

Say = Callable[[str], None]


def describe(
    config: Config,
    *,
    like: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    power: Iterable[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
) -> Registration:
    """The registration that this config would get now.

    Args:
        like: the plan of an earlier registration. With it, fields that were added to plans later
            count as no difference.
        data: digests of the data; None leaves them out.

    Raises:
        UserError: the study has no hypotheses, or they contradict each other or the arms.
    """
    hypotheses = study.hypotheses_of(config)
    if not hypotheses:
        raise UserError(
            f"study '{config.study}' has no hypotheses, so there is nothing to register; run it "
            f"without --register."
        )
    plan = study.plan_of(config)
    arms = planning.arms(plan)
    check(
        [h for h in hypotheses if not h.missing],
        arms=tuple(arms),
        metrics={metric for arm in arms for metric in planning.metrics(plan, arm)},
    )
    code, whole = sources.commit(), workdir.anywhere(config.to_dict())
    resolved = schema.resolve_arms(config)
    return registration.register(
        study=config.study,
        config_digest=workdir.config_digest(whole),
        arms={name: workdir.anywhere(arm.to_dict()) for name, arm in resolved.items()},
        seeds=config.seeds,
        measurements=whole.get("evaluate", {}),
        hypotheses=hypotheses,
        plan=described(plan, like or None),
        data=data or {},
        power=power,
        time=workdir.timestamp(),
        commit=code.commit or "",
        dirty=bool(code.dirty),
        environment=dict(environment or {}) | {"diff": code.diff},
        **study.digests_of(config),
    )


def held(there: Registration, config: Config) -> registration.Standing:
    """Compare what would be run with what was registered. It may run fewer seeds."""
    missing: tuple[int, ...] = ()
    if set(config.seeds) < set(there.seeds):
        missing = tuple(seed for seed in there.seeds if seed not in config.seeds)
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.seeds = there.seeds
    now = describe(config, like=there.plan)
    return registration.compare(there, now, missing_seeds=missing)


def register(config: Config, run: workdir.Run, *, name: str, say: Say = print) -> None:
    """Seal `registration.json` into a fresh run, and print the seal, the power and warnings.

    Args:
        name: of the config and its form, such as `sam_cifar-quick`. The official registration has
            this name.

    Raises:
        UserError: the run has begun, or is registered as something else; the data cannot be loaded
            (their digests are sealed); see also `describe`.
    """
    there = standing.read(run.path)
    if there is not None:
        _refuse(run, there, config)
        say(f"registered already, {there.time}: nothing was changed")
    elif _has_begun(run):
        raise UserError(
            f"workdir '{run.path}' has results, and what has been seen cannot be registered; give "
            f"another --workdir."
        )
    else:
        there = _take_over(run, config, say)
    if there is None:
        found = loading.digests(loading.load(study.plan_of(config)))
        units = study.study_of(config.study).units(config)
        planned = power.table(study.hypotheses_of(config), config.seeds, units=units)
        rows = [row.as_json() for row in planned]
        arms = planning.arms(study.plan_of(config))
        seen = standing.published(config.study, arms, config.seeds)
        environment = machine.environment() | ({"seen": seen} if seen else {})
        there = describe(config, data=found, power=rows, environment=environment)
        _warn(there, rows, say)  # before anything is sealed
        content = registration.to_json(there).encode()
        workdir.publish(run.path / workdir.REGISTRATION, content)
    else:
        _warn(there, there.power, say)
    _show(run, there, name, say)


def begin(config: Config, run: workdir.Run, *, name: str, say: Say = print) -> None:
    """Check a run against its registration before it goes on, or take over the official one.

    Raises:
        UserError: what was registered is not what would be run, the study of a registered run now
            has no hypotheses, or the folder is that of a form that is judged over other runs.
    """
    if run.is_done:
        return
    if (run.path / read.JOINT).exists():
        raise UserError(
            f"workdir '{run.path}' is judged over other runs ({read.JOINT}), and holds none of its "
            f"own; give another --workdir."
        )
    there = standing.read(run.path)
    if not study.hypotheses_of(config):
        if there is not None:
            raise UserError(f"workdir '{run.path}' is registered, and its study asks nothing now.")
        say(f"study '{config.study}' has no hypotheses; {UNREGISTERED}")
        return
    if there is None and not _has_begun(run):
        there = _take_over(run, config, say)
    if there is None:
        say(UNREGISTERED + _difference_from_official(config, name))
        return
    missing = _refuse(run, there, config)
    say(f"registered {there.time}, seal {there.seal[:12]}")
    if missing:
        say(
            f"{len(missing)} of {len(there.seeds)} registered seeds are not run: hypotheses that "
            f"need them end inconclusive"
        )
    lines = standing.amended(run.path)
    for digest, what in (("analysis", "that decides"), ("measures", "that makes the numbers")):
        sealed = getattr(there.digests, digest)
        known = amendments.named(lines, digest) | {sealed}
        if known != {""} and study.digests_of(config)[digest] not in known:
            say(
                f"the code {what} has changed since it was registered: the report will say so; "
                f"`studies amend` before a run is first started, with the reason, registers it"
            )


def _refuse(run: workdir.Run, there: Registration, config: Config) -> tuple[int, ...]:
    """Refuse a run that differs from its registration. Returns the registered seeds not run."""
    found = held(there, config)
    if found.refused:
        raise UserError(f"workdir '{run.path}': {found.refused}")
    return found.missing_seeds


def _has_begun(run: workdir.Run) -> bool:
    kept = (workdir.METRICS, workdir.ARRAYS, workdir.CHECKPOINTS)
    return run.is_done or any(any(workdir.walk(run.path / entry)) for entry in kept)


def foreseen(config: Config, name: str) -> str:
    """The registration that a fresh run would get, in words."""
    if path := _official(config):
        return f"takes over {_named(path)}"
    return UNREGISTERED + _difference_from_official(config, name)


def _official(config: Config) -> pathlib.Path | None:
    """An official registration that asks what this run asks, with at least this run's seeds."""
    for path, there in standing.official(config.study).items():
        if not held(there, config).refused:
            return path
    return None


def _take_over(run: workdir.Run, config: Config, say: Say) -> Registration | None:
    """Copy the official registration, if there is one, with its amendments."""
    path = _official(config)
    if path is None:
        return None
    amended = path.with_suffix(f".{workdir.AMENDMENTS}")
    if amended.exists():  # first: if killed after this, the next run writes both files again
        workdir.publish(run.path / workdir.AMENDMENTS, amended.read_bytes())
    workdir.publish(run.path / workdir.REGISTRATION, path.read_bytes())
    say(f"takes over {_named(path)}")
    return standing.read_file(path)


def _difference_from_official(config: Config, name: str) -> str:
    path = standing.OFFICIAL / f"{name}.json"
    if not path.exists():
        return ""
    there = standing.read_file(path)
    differs = registration.differences(there, describe(config, like=there.plan))
    return f" ({_named(path)} is of another run: {differs[0]})" if differs else ""


def _named(path: pathlib.Path) -> str:
    return str(path.relative_to(sources.ROOT) if path.is_relative_to(sources.ROOT) else path)


def _warn(asked: Registration, rows: Sequence[Mapping[str, Any]], say: Say) -> None:
    """Print which effects the seeds can detect, and which verdicts cannot occur."""
    shown = record.power_table(_alike(rows), f"what {len(asked.seeds)} seeds can see")
    say(console.as_text(console.table(shown.compact("Warning"))))
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("warning"):
            alike.setdefault((row["hypothesis"], row["warning"]), []).append(row["contrast"])
    for (hypothesis, warning), (contrast, *others) in alike.items():
        more = f" (and {len(others)} more of its comparisons)" if others else ""
        say(f"warning: {hypothesis}: {contrast}{more}: {warning}")
    for line in power.hopeless(asked.hypotheses, rows):
        say(f"warning: {line}")


def _alike(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge comparisons of a hypothesis that differ only in name; the row says how many."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        told = {name: value for name, value in row.items() if name != "contrast"}
        found.setdefault(json.dumps(told, sort_keys=True), []).append(row)
    return [
        {**one, "contrast": f"{one['contrast']} (and {len(others)} more like it)"}
        if others
        else dict(one)
        for one, *others in found.values()
    ]


def _show(run: workdir.Run, sealed: Registration, name: str, say: Say) -> None:
    for name_of_run, arms in sealed.environment.get("seen", {}).items():
        say(f"published already, and sealed as seen: {len(arms)} of its arms, in {name_of_run}")
    for hypothesis in sealed.hypotheses:
        if hypothesis.missing:
            say(f"warning: {hypothesis.id} will not be run: {hypothesis.missing}")
    if sealed.dirty:
        say("warning: files differ from the commit, so others cannot see the code that was sealed")
    if not sealed.commit:
        say("warning: this code lies in no git repository; only the digests of its sources tell it")
    say(f"seal {sealed.seal}")
    say(f"design {sealed.digests.design}, {len(sealed.hypotheses)} hypotheses")
    official = standing.OFFICIAL / f"{name}.json"
    if not official.exists():
        say(f"official once committed: cp {run.path / workdir.REGISTRATION} {_named(official)}")
    say("the same command without --register runs under it")
