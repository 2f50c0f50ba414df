"""Sealing what a run will ask, and holding the run to it.

`launch.py --register` writes `registration.json`; the same command without the flag then runs under
it. A fresh run that asks what an official registration (`docs/registrations/`) asks takes it over.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sharpjax import schema, workdir
from sharpjax.errors import UserError
from sharpjax.protocol.claims import check
from sharpjax.protocol.planning import power
from sharpjax.protocol.seals import amendments, registration
from sharpjax.protocol.seals.registration import Registration
from sharpjax.provenance import machine, sources
from sharpjax.report.console import as_text, power_table
from sharpjax.runs import standing, study
from sharpjax.runs.standing import UNREGISTERED
from sharpjax.schema import Config
from sharpjax.train import planning

OFFICIAL = sources.ROOT / "docs" / "registrations"

Say = Callable[[str], None]


def describe(
    config: Config,
    *,
    power: Iterable[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
) -> Registration:
    """What a registration of this config would say now.

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
    code, whole = sources.commit(), config.to_dict()
    return registration.register(
        study=config.study,
        config_digest=workdir.config_digest(whole),
        arms={name: arm.to_dict() for name, arm in schema.resolve_arms(config).items()},
        seeds=config.seeds,
        measurements=whole.get("evaluate", {}),
        hypotheses=hypotheses,
        analysis=sources.analysis_digest(config.study),
        code=sources.code_digest(),
        power=power,
        time=workdir.timestamp(),
        commit=code.commit or "",
        dirty=bool(code.dirty),
        environment=dict(environment or {}) | {"diff": code.diff},
    )


def register(config: Config, run: workdir.Run, *, name: str, say: Say = print) -> None:
    """Seal `registration.json` into a fresh run, and say seal, power and warnings.

    Args:
        name: of the config and its form, as `sam_cifar-quick`: the name of its official
            registration.

    Raises:
        UserError: the run has begun, or is registered as something else; see `describe`.
    """
    here, there = describe(config), standing.read(run.path)
    if there is not None:
        _refuse(run, there, here)
        say(f"registered already, {there.time}: nothing was changed")
    elif _has_begun(run):
        raise UserError(
            f"workdir '{run.path}' has results, and what has been seen cannot be registered; give "
            f"another --workdir."
        )
    else:
        there = _take_over(run, here, say)
    if there is None:
        units = study.study_of(config.study).units(config)
        planned = power.table(here.hypotheses, here.seeds, units=units)
        rows = [row.as_json() for row in planned]
        there = describe(config, power=rows, environment=machine.environment())
        content = registration.to_json(there).encode()
        workdir.publish(run.path / workdir.REGISTRATION, content)
    _show(run, there, name, say)


def begin(config: Config, run: workdir.Run, *, name: str, say: Say = print) -> None:
    """Hold a run to its registration before it goes on, or take over the official one.

    Raises:
        UserError: what was registered is not what would be run.
    """
    if run.is_done:
        return
    there = standing.read(run.path)
    if not study.hypotheses_of(config):
        if there is not None:
            raise UserError(f"workdir '{run.path}' is registered, and its study asks nothing now.")
        say(f"study '{config.study}' has no hypotheses; {UNREGISTERED}")
        return
    here = describe(config)
    if there is None and not _has_begun(run):
        there = _take_over(run, here, say)
    if there is None:
        say(UNREGISTERED + _difference_from_official(here, name))
        return
    _refuse(run, there, here)
    differs = registration.compare(there, here)
    say(f"registered {there.time}, seal {there.seal[:12]}")
    if differs.missing_seeds:
        say(
            f"{len(differs.missing_seeds)} of {len(there.seeds)} registered seeds are not run: "
            f"hypotheses that need them end inconclusive"
        )
    lines = standing.amended(run.path)
    if differs.analysis_differs and not amendments.covered(lines, here.digests.analysis):
        say(
            "the analysis has changed since it was registered: verdicts are marked so until amended"
        )


def _refuse(run: workdir.Run, there: Registration, here: Registration) -> None:
    if refused := registration.compare(there, here).refused:
        raise UserError(f"workdir '{run.path}': {refused}")


def _has_begun(run: workdir.Run) -> bool:
    kept = (workdir.METRICS, workdir.ARRAYS, workdir.CHECKPOINTS)
    return run.is_done or any(any(workdir.walk(run.path / entry)) for entry in kept)


def foreseen(here: Registration, name: str) -> str:
    """How a fresh run would stand."""
    if path := _official(here):
        return f"takes over {_named(path)}"
    return UNREGISTERED + _difference_from_official(here, name)


def _official(here: Registration) -> pathlib.Path | None:
    """The official registration that asks what this run asks, of as many seeds or more."""
    for path in sorted(OFFICIAL.glob("*.json")):
        if not registration.compare(standing.read_file(path), here).refused:
            return path
    return None


def _take_over(run: workdir.Run, here: Registration, say: Say) -> Registration | None:
    """Copy the official registration, if there is one."""
    if path := _official(here):
        workdir.publish(run.path / workdir.REGISTRATION, path.read_bytes())
        say(f"takes over {_named(path)}")
    return standing.read_file(path) if path else None


def _difference_from_official(here: Registration, name: str) -> str:
    path = OFFICIAL / f"{name}.json"
    if not path.exists():
        return ""
    differs = registration.differences(standing.read_file(path), here)
    return f" ({_named(path)} is of another run: {differs[0]})" if differs else ""


def _named(path: pathlib.Path) -> str:
    return str(path.relative_to(sources.ROOT) if path.is_relative_to(sources.ROOT) else path)


def _show(run: workdir.Run, sealed: Registration, name: str, say: Say) -> None:
    say(as_text(power_table(sealed.power, f"what {len(sealed.seeds)} seeds can see")))
    for row in sealed.power:
        if row.get("warning"):
            say(f"warning: {row['hypothesis']}: {row['contrast']}: {row['warning']}")
    for hypothesis in sealed.hypotheses:
        if hypothesis.missing:
            say(f"warning: {hypothesis.id} will not be run: {hypothesis.missing}")
    if sealed.dirty:
        say("warning: files differ from the commit, so others cannot see the code that was sealed")
    if not sealed.commit:
        say("warning: this code lies in no git repository; only the digests of its sources tell it")
    say(f"seal {sealed.seal}")
    say(f"registration {sealed.digests.registration}, {len(sealed.hypotheses)} hypotheses")
    official = OFFICIAL / f"{name}.json"
    if not official.exists():
        say(f"official once committed: cp {run.path / workdir.REGISTRATION} {_named(official)}")
    say("the same command without --register runs under it")
