"""What a study said it would do, sealed before it did it.

A registration is canonical JSON (one line) that ends with the SHA-256 of all else in it, its seal.
Three digests say what it rests on: `registration`, of what was asked (`asked`); `analysis`, of the
source that answers; `code`, of all source. Nothing here reads a file: sources, git and clocks are
read by who calls.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from sharpjax.errors import UserError
from sharpjax.protocol.canonical import canonical_json, digest, from_dict, to_dict
from sharpjax.protocol.claims import Hypothesis, check

FORMAT = 1
MOST_BYTES = 16 << 20  # larger is no registration; files may come from anybody
_HEX = frozenset("0123456789abcdef")


class Digests(NamedTuple):
    """SHA-256 in hex: of what was asked, of `protocol` and the study, of all of the package."""

    registration: str
    analysis: str
    code: str


@dataclass(frozen=True)
class Registration:
    """A study before it runs.

    Attributes:
        study: its name.
        config_digest: SHA-256 of the whole config.
        arms: the whole config of each.
        seeds: all that will run.
        measurements: evaluators with their settings, by name, where `arms` does not hold them.
        hypotheses: all of them.
        digests: as `Digests`.
        power: rows of `protocol.planning.power.table`, as plain JSON.
        time: UTC, ISO 8601.
        commit, dirty: of the repository; whether files differed from the commit.
        environment: versions and devices.
        seal: SHA-256 of the canonical JSON of all else.
    """

    study: str
    config_digest: str
    arms: Mapping[str, Any]
    seeds: tuple[int, ...]
    measurements: Mapping[str, Any]
    hypotheses: tuple[Hypothesis, ...]
    digests: Digests
    power: tuple[Mapping[str, Any], ...]
    time: str
    commit: str
    dirty: bool
    environment: Mapping[str, Any]
    seal: str = ""
    format: int = FORMAT


def asked(
    *,
    study: str,
    arms: Mapping[str, Any],
    seeds: Sequence[int],
    measurements: Mapping[str, Any],
    hypotheses: Iterable[Hypothesis],
) -> str:
    """The registration digest: of arms, seeds, evaluators, hypotheses and their tests.

    Neither time nor machine are in it, so that the same question has the same digest anywhere.
    """
    return digest(
        {
            "format": FORMAT,
            "study": study,
            "arms": arms,
            "seeds": list(seeds),
            "measurements": measurements,
            "hypotheses": [to_dict(h) for h in hypotheses],
        }
    )


def register(
    *,
    study: str,
    config_digest: str,
    arms: Mapping[str, Any],
    seeds: Sequence[int],
    measurements: Mapping[str, Any],
    hypotheses: Sequence[Hypothesis],
    analysis: str,
    code: str,
    power: Iterable[Mapping[str, Any]],
    time: str,
    commit: str,
    dirty: bool,
    environment: Mapping[str, Any],
) -> Registration:
    """Check the hypotheses, and seal all. Whether there are such arms, who makes the plan knows.

    Args:
        analysis, code: digests of sources, as `Digests`.

    Raises:
        UserError: as `hypotheses.check`; or something is no plain JSON.
    """
    check(hypotheses)
    question = {
        "study": study, "arms": arms, "seeds": seeds, "measurements": measurements,
        "hypotheses": hypotheses,
    }  # fmt: skip
    try:
        unsealed = Registration(
            study=study,
            config_digest=config_digest,
            arms=_plain(arms),
            seeds=tuple(seeds),
            measurements=_plain(measurements),
            hypotheses=tuple(hypotheses),
            digests=Digests(asked(**question), analysis, code),
            power=tuple(_plain(list(power))),
            time=time,
            commit=commit,
            dirty=dirty,
            environment=_plain(environment),
        )
        return replace(unsealed, seal=seal(unsealed))
    except (TypeError, ValueError) as error:
        raise UserError(f"a registration must be plain JSON: {error}.") from None


def seal(registration: Registration) -> str:
    """The SHA-256 that `registration.seal` must be."""
    document = _document(registration)
    del document["seal"]
    return digest(document)


def to_json(registration: Registration) -> str:
    """The text of `registration.json`."""
    return canonical_json(_document(registration)) + "\n"


def from_json(text: str | bytes, name: str = "registration.json") -> Registration:
    """Read a registration, from anybody, and check its seal.

    Args:
        name: what to call it in errors.

    Raises:
        UserError: it is no registration, or not the one that was sealed.
    """
    try:
        if len(text) > MOST_BYTES:
            raise UserError(f"more than {MOST_BYTES >> 20} MiB")
        text = text if isinstance(text, str) else text.decode()
        document = json.loads(text)
        registration = _from_document(document)
        if canonical_json(document) + "\n" != text:
            raise UserError("not written as it was sealed")
    except (UserError, ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, UserError) else "not readable JSON"
        raise UserError(f"{name} is damaged: {why.rstrip('.')}.") from None
    if registration.seal != seal(registration):
        raise UserError(
            f"{name} was changed after it was sealed: its seal is {registration.seal[:12]}, and "
            f"what it holds has {seal(registration)[:12]}. Bring it back from a copy."
        )
    if registration.digests.registration != asked_of(registration):
        raise UserError(f"{name}: its registration digest is not that of what it asks.")
    return registration


def asked_of(registration: Registration) -> str:
    """The registration digest that a registration must carry."""
    return asked(
        study=registration.study,
        arms=registration.arms,
        seeds=registration.seeds,
        measurements=registration.measurements,
        hypotheses=registration.hypotheses,
    )


def common_seal(seals: Mapping[str, str | None]) -> str | None:
    """The one seal under which results were made; None: all of them without one.

    Args:
        seals: of each result (a file, a run), by its name.

    Raises:
        UserError: results of different seals are mixed, or of some seal and none.

    >>> common_seal({"a": "12ab", "b": "12ab"})
    '12ab'
    """
    found: dict[str | None, str] = {}
    for name, value in seals.items():
        found.setdefault(value, name)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise UserError(
            f"results of different registrations are mixed: {first} has seal {_brief(one)}, "
            f"{second} has {_brief(other)}; analyse each by itself."
        )
    return next(iter(found), None)


class Standing(NamedTuple):
    """What follows for a run whose registration would now read otherwise.

    Attributes:
        refused: why it may not run under its registration, in one line; '': it may.
        missing_seeds: registered ones that it does not run; hypotheses that need them end
            inconclusive.
        analysis_differs: verdicts are marked until an amendment says why.
        code_differs: recorded and listed.
    """

    refused: str
    missing_seeds: tuple[int, ...]
    analysis_differs: bool
    code_differs: bool


def compare(registered: Registration, now: Registration) -> Standing:
    """What follows from the differences between a registration and the run as it is now."""
    missing = tuple(s for s in registered.seeds if s not in now.seeds)
    fewer = bool(missing) and set(now.seeds) < set(registered.seeds)
    differs = list(differences(registered, now))
    if fewer:  # and the digest of a config, which holds the seeds, tells nothing
        differs = [d for d in differs if not d.startswith(("seeds:", "config digest:"))]
    refused = ""
    if differs:
        more = f" (and {len(differs) - 1} more)" if len(differs) > 1 else ""
        refused = (
            f"what was registered differs from this run: {differs[0]}{more}. Run what was "
            f"registered, or register this in another workdir."
        )
    return Standing(
        refused,
        missing if fewer else (),
        registered.digests.analysis != now.digests.analysis,
        registered.digests.code != now.digests.code,
    )


def differences(registered: Registration, now: Registration) -> tuple[str, ...]:
    """Every field of the question that differs, in words; sources, times and machines are none.

    The digest of the config is named where nothing else tells what in the config differs.
    """
    found = []
    for name in ("study", "seeds", "arms", "measurements"):
        mine, theirs = _plain(getattr(registered, name)), _plain(getattr(now, name))
        found += _differ(name, mine, theirs)
    mine = {h.id: to_dict(h) for h in registered.hypotheses}
    theirs = {h.id: to_dict(h) for h in now.hypotheses}
    found += [
        line
        for id in dict.fromkeys([*mine, *theirs])
        for line in _differ(f"hypothesis {id}", mine.get(id), theirs.get(id))
    ]
    if not found and list(mine) != list(theirs):
        found.append("the hypotheses are in another order")
    if not found and registered.config_digest != now.config_digest:
        one, other = registered.config_digest[:12], now.config_digest[:12]
        found.append(f"config digest: {one} registered, {other} now")
    return tuple(found)


def _differ(where: str, mine: Any, theirs: Any) -> list[str]:
    if mine == theirs and type(mine) is type(theirs):
        return []
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = dict.fromkeys([*mine, *theirs])
        absent = object()
        return [
            line
            for name in names
            for line in _differ(f"{where}.{name}", mine.get(name, absent), theirs.get(name, absent))
        ]
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [line for i, (a, b) in pairs for line in _differ(f"{where}[{i}]", a, b)]
    return [f"{where}: {_text(mine)} registered, {_text(theirs)} now"]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        text = canonical_json(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return "absent"


def _brief(value: str | None) -> str:
    return "none" if value is None else value[:12]


def _plain(value: Any) -> Any:
    return json.loads(canonical_json(value))


def _document(registration: Registration) -> dict[str, Any]:
    document = {f.name: getattr(registration, f.name) for f in fields(registration)}
    document["hypotheses"] = [to_dict(h) for h in registration.hypotheses]
    document["digests"] = registration.digests._asdict()
    document["seeds"] = list(registration.seeds)
    document["power"] = list(registration.power)
    return document


def _from_document(document: Any) -> Registration:
    names = {f.name for f in fields(Registration)}
    if not isinstance(document, dict) or document.keys() != names:
        raise UserError("it has not the fields of a registration")
    if document["format"] != FORMAT or isinstance(document["format"], bool):
        raise UserError(f"its format is {document['format']!r}, and this program reads {FORMAT}")
    kinds = {
        "arms": dict, "measurements": dict, "environment": dict, "digests": dict, "seeds": list,
        "hypotheses": list, "power": list, "dirty": bool, "format": int,
    }  # fmt: skip
    for name in sorted(names):
        if not isinstance(document[name], kinds.get(name, str)):
            raise UserError(f"its field '{name}' is of the wrong type")
    if not all(isinstance(s, int) and not isinstance(s, bool) for s in document["seeds"]):
        raise UserError("its seeds are not whole numbers")
    digests = document["digests"]
    if digests.keys() != set(Digests._fields) or not all(map(_is_sha256, digests.values())):
        raise UserError("its digests are no SHA-256 sums")
    if not all(isinstance(row, dict) for row in document["power"]):
        raise UserError("its power table is none")
    hypotheses = tuple(from_dict(h) for h in document["hypotheses"])
    read = {
        "hypotheses": hypotheses, "digests": Digests(**digests), "seeds": tuple(document["seeds"]),
        "power": tuple(document["power"]),
    }  # fmt: skip
    return Registration(**(document | read))


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value)
