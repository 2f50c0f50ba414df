"""Sealing what a run will ask, and holding the run to it.

`launch.py --register` writes `registration.json`; the same command without the flag then runs under
it. A fresh run that asks what an official registration (`docs/registrations/`) asks takes it over.
"""

import datetime
import importlib
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath
from rich.console import Console
from rich.table import Table

from sharpjax import catalog, workdir
from sharpjax.errors import UserError, printable
from sharpjax.protocol import amendments, registration
from sharpjax.protocol.amendments import Amendment
from sharpjax.protocol.hypotheses import Hypothesis, check
from sharpjax.protocol.registration import MOST_BYTES, Registration
from sharpjax.runs import schema, sources
from sharpjax.runs.schema import Config

OFFICIAL = sources.ROOT / "docs" / "registrations"
UNREGISTERED = "unregistered: everything is exploratory"

Say = Callable[[str], None]


def hypotheses_of(config: Config) -> tuple[Hypothesis, ...]:
    """What the study of a config sets out to decide: its `hypotheses(config)` or `HYPOTHESES`."""
    module = module_of(config.study)
    if hasattr(module, "hypotheses"):
        return tuple(module.hypotheses(config))
    return tuple(getattr(module, "HYPOTHESES", ()))


def _units_of(config: Config) -> Mapping[str, int] | None:
    """How many values of a further coordinate a seed has, where the study says it."""
    module = module_of(config.study)
    return module.units(config) if hasattr(module, "units") else None


def module_of(study: str) -> Any:
    """The module of a study, by its name in a config."""
    return importlib.import_module(f"{catalog.STUDIES[study]}.plan")


def _metrics_of(config: Config) -> tuple[str, ...] | None:
    """What a study measures, from `metrics(config)` beside its `hypotheses`; None: it does not say.

    Not from the study's own module, whose source is part of the analysis that was sealed.
    """
    study = module_of(config.study)
    asks = getattr(study, "hypotheses", None)
    module = importlib.import_module(asks.__module__) if asks else study
    return tuple(module.metrics(config)) if hasattr(module, "metrics") else None


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
    hypotheses = hypotheses_of(config)
    if not hypotheses:
        raise UserError(
            f"study '{config.study}' has no hypotheses, so there is nothing to register; run it "
            f"without --register."
        )
    check(
        [h for h in hypotheses if not h.missing],
        arms=tuple(config.arms),
        metrics=_metrics_of(config),
    )
    code = sources.commit()
    whole = config.to_dict()
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
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=code.commit or "",
        dirty=bool(code.dirty),
        environment=dict(environment or {}) | {"diff": code.diff},
    )


def read(folder: epath.Path | pathlib.Path) -> Registration | None:
    """The registration of a run, its seal checked; None: it has none.

    Raises:
        UserError: it is damaged, or was changed after it was sealed.
    """
    path = epath.Path(folder) / workdir.REGISTRATION
    return _read(path) if path.exists() else None


def _read(path: epath.Path) -> Registration:
    return registration.from_json(workdir.read_bytes(path, most=MOST_BYTES), str(path))


# Before a run.


def register(config: Config, run: workdir.Run, *, name: str, say: Say = print) -> None:
    """Seal `registration.json` into a fresh run, and say seal, power and warnings.

    Args:
        name: of the config and its form, as `sam_cifar-quick`: the name of its official
            registration.

    Raises:
        UserError: the run has begun, or is registered as something else; see `describe`.
    """
    path = run.path / workdir.REGISTRATION
    here = describe(config)
    if path.exists():
        there = _read(path)
        _refuse(run, there, here)
        say(f"registered already, {there.time}: nothing was changed")
        _show(run, there, name, say)
        return
    if _has_begun(run):
        raise UserError(
            f"workdir '{run.path}' has results, and what has been seen cannot be registered; give "
            f"another --workdir."
        )
    if _take_over(run, here, say):
        _show(run, _read(path), name, say)
        return
    from sharpjax.protocol import power
    from sharpjax.runs import record

    planned = power.table(here.hypotheses, here.seeds, units=_units_of(config))
    rows = [row.as_json() for row in planned]
    sealed = describe(config, power=rows, environment=record.environment())
    workdir.publish(path, registration.to_json(sealed).encode())
    _show(run, sealed, name, say)


def begin(config: Config, run: workdir.Run, *, name: str, say: Say = print) -> None:
    """Hold a run to its registration before it goes on, or take over the official one.

    Raises:
        UserError: what was registered is not what would be run.
    """
    if run.is_done:
        return
    there = read(run.path)
    if not hypotheses_of(config):
        if there is not None:
            raise UserError(f"workdir '{run.path}' is registered, and its study asks nothing now.")
        say(f"study '{config.study}' has no hypotheses; {UNREGISTERED}")
        return
    here = describe(config)
    if there is None and not _has_begun(run) and _take_over(run, here, say):
        there = read(run.path)
    if there is None:
        say(UNREGISTERED + _difference_from_official(here, name))
        return
    _refuse(run, there, here)
    standing = registration.compare(there, here)
    say(f"registered {there.time}, seal {there.seal[:12]}")
    if standing.missing_seeds:
        say(
            f"{len(standing.missing_seeds)} of {len(there.seeds)} registered seeds are not run: "
            f"hypotheses that need them end inconclusive"
        )
    if standing.analysis_differs and not amendments.covered(amended(run.path), _analysis(there)):
        say(
            "the analysis has changed since it was registered: verdicts are marked so until amended"
        )


def _refuse(run: workdir.Run, there: Registration, here: Registration) -> None:
    if refused := registration.compare(there, here).refused:
        raise UserError(f"workdir '{run.path}': {refused}")


def _has_begun(run: workdir.Run) -> bool:
    kept = (workdir.METRICS, workdir.ARRAYS, workdir.CHECKPOINTS)
    return run.is_done or any(any(workdir.walk(run.path / entry)) for entry in kept)


def _take_over(run: workdir.Run, here: Registration, say: Say) -> bool:
    """Copy the official registration that asks what this run asks, of as many seeds or more."""
    for path in sorted(OFFICIAL.glob("*.json")):
        there = _read(epath.Path(path))
        if not registration.compare(there, here).refused:
            workdir.publish(run.path / workdir.REGISTRATION, path.read_bytes())
            say(f"takes over {_named(path)}")
            return True
    return False


def _difference_from_official(here: Registration, name: str) -> str:
    path = OFFICIAL / f"{name}.json"
    if not path.exists():
        return ""
    differs = registration.differences(_read(epath.Path(path)), here)
    return f" ({_named(path)} is of another run: {differs[0]})" if differs else ""


def _named(path: pathlib.Path) -> str:
    return str(path.relative_to(sources.ROOT) if path.is_relative_to(sources.ROOT) else path)


def _show(run: workdir.Run, sealed: Registration, name: str, say: Say) -> None:
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    with console.capture() as capture:
        console.print(_power_table(sealed))
    say(capture.get().rstrip())
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
    official = _named(OFFICIAL / f"{name}.json")
    if not (OFFICIAL / f"{name}.json").exists():
        say(f"official once committed: cp {run.path / workdir.REGISTRATION} {official}")
    say("the same command without --register runs under it")


def _power_table(sealed: Registration) -> Table:
    seeds = f"{len(sealed.seeds)} seeds"
    table = Table(title=f"what {seeds} can see", title_justify="left")
    for name in ("hypothesis", "contrast"):
        table.add_column(name, overflow="fold")
    for name in ("n", "alpha", "smallest p", "power at 1 sd", "seen with power 0.8"):
        table.add_column(name, justify="right")
    for row in sealed.power:
        detectable = row.get("detectable")
        table.add_row(
            str(row.get("hypothesis", "")),
            str(row.get("contrast", "")),
            ", ".join(map(str, row.get("n", ()))),
            _number(row.get("alpha")),
            _number(row.get("smallest_p")),
            _number((row.get("power") or {}).get("1.0")),
            "-" if detectable is None else f"{_number(detectable)} sd",
        )
    return table


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


# After a run.


class Standing(NamedTuple):
    """Under which registration results stand.

    Attributes:
        registered: None: none, everything is exploratory.
        amendments: in order.
        analysis_differs: the code that answers is not the registered one, nor the last amended one.
        code_differs: some of `sharpjax/` is not what it was.
        warnings: the same in words, for the top of a report.
    """

    registered: Registration | None
    amendments: tuple[Amendment, ...]
    analysis_differs: bool
    code_differs: bool
    warnings: tuple[str, ...]


def standing(folder: epath.Path) -> Standing:
    """How a run's registration stands to the code that analyses it now.

    Raises:
        UserError: its registration or its amendments are damaged.
    """
    there = read(folder)
    if there is None:
        return Standing(None, (), False, False, (UNREGISTERED,))
    lines = amended(folder)
    now = _analysis(there)
    analysis = there.digests.analysis != now and not amendments.covered(lines, now)
    code = there.digests.code != sources.code_digest()
    warnings = []
    if analysis:
        warnings.append(
            f"the analysis (sources of protocol and of the study) is {_brief(now)} and was "
            f"registered as {there.digests.analysis[:12]}: these verdicts are not those of the "
            f"registered analysis until an amendment says why"
        )
    if there.dirty:
        warnings.append("registered with files that differed from the commit")
    return Standing(there, lines, analysis, code, tuple(warnings))


def amended(folder: epath.Path) -> tuple[Amendment, ...]:
    """The amendments of a registered run, their chain checked.

    Raises:
        UserError: the chain is broken.
    """
    there = read(folder)
    path = epath.Path(folder) / workdir.AMENDMENTS
    if there is None or not path.exists():
        return ()
    return amendments.read(workdir.read_bytes(path, most=MOST_BYTES), seal=there.seal)


def amend(folder: epath.Path, reason: str) -> Amendment:
    """Append a line to the amendments of a registered run: the reason, and the code as it is now.

    Raises:
        UserError: the run is not registered, the reason is empty, or the chain is broken.
    """
    there = read(folder)
    if there is None:
        raise UserError(f"'{folder}' is {UNREGISTERED}, so there is nothing to amend.")
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def extend(chain: bytes) -> bytes:
        return amendments.append(
            chain,
            seal=there.seal,
            reason=reason,
            time=moment,
            analysis=_analysis(there) or "",
            code=sources.code_digest(),
        )

    workdir.append_amendment(folder, extend)
    return amended(folder)[-1]


def _analysis(there: Registration) -> str:
    """The digest of the analysis now; '' for a study that this version does not know."""
    return sources.analysis_digest(there.study) if there.study in catalog.STUDIES else ""


def _brief(digest: str) -> str:
    return digest[:12] if digest else printable("that of no study known here")
