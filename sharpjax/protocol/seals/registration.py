"""What a study said it would do, sealed before it did it.

A registration is one line of canonical JSON. Its seal is the SHA-256 of everything else in it. Four
digests say what it rests on: `design`, of the question (`asked`); `analysis`, of the sources that
answer it; `measures`, of the sources that make the numbers; `code`, of all sources. Nothing here
reads a file: the caller reads sources, git and clocks.

Registrations of format 1 have neither plan nor data, and no digest `measures`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from sharpjax.errors import UserError
from sharpjax.protocol.canonical import canonical_json, digest, from_dict, to_dict
from sharpjax.protocol.claims import Hypothesis, check

FORMAT = 2
MOST_BYTES = 16 << 20  # larger ones are refused; files may come from anybody
_HEX = frozenset("0123456789abcdef")


class Digests(NamedTuple):
    """SHA-256 in hex; `measures` is '' if it was not sealed."""

    design: str
    analysis: str
    measures: str
    code: str


@dataclass(frozen=True)
class Registration:
    """A study before it runs.

    Attributes:
        study: its name.
        config_digest: SHA-256 of the whole config.
        arms: the whole config of each arm.
        seeds: all that will run.
        measurements: evaluators with their settings, by name, if `arms` does not hold them.
        hypotheses: all of them.
        plan: everything that is done, as plain JSON.
        data: digests of the splits, by key of the plan's data.
        digests: as `Digests`.
        power: rows of `protocol.planning.power.table`, as plain JSON.
        time: UTC, ISO 8601.
        commit, dirty: of the repository; whether files differed from the commit.
        environment: versions and devices.
        seal: SHA-256 of the canonical JSON of everything else.
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
    plan: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    seal: str = ""
    format: int = FORMAT


def asked(registration: Registration) -> str:
    """The design digest that a registration must have.

    Time and machine are not part of it, so the same question has the same digest everywhere.
    """
    names = ["study", "arms", "seeds", "measurements"]
    names += ["plan", "data"] if registration.format > 1 else []
    question = {name: getattr(registration, name) for name in names}
    hypotheses = [to_dict(h) for h in registration.hypotheses]
    return digest(question | {"format": registration.format, "hypotheses": hypotheses})


def register(**given: Any) -> Registration:
    """Check the hypotheses and seal everything. The caller must check whether the arms exist.

    Args:
        given: the fields of a `Registration`; instead of `digests`, the three `analysis`,
            `measures` and `code`.

    Raises:
        UserError: as `claims.check`; or something is not plain JSON.
    """
    check(given["hypotheses"])
    sources = [given.pop(name) for name in ("analysis", "measures", "code")]
    try:
        plain: dict[str, Any] = {
            n: _plain(v) for n, v in given.items() if n not in ("hypotheses", "seeds")
        }
        plain["power"] = tuple(plain["power"])
        unsealed = Registration(
            **plain,
            hypotheses=tuple(given["hypotheses"]),
            seeds=tuple(given["seeds"]),
            digests=Digests("", *sources),
        )
        unsealed = replace(unsealed, digests=Digests(asked(unsealed), *sources))
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
    """Read a registration, which may come from anybody, and check its seal.

    Args:
        name: what errors call it.

    Raises:
        UserError: it is not a registration, or not the one that was sealed.
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
    if (there := registration.seal) != (here := seal(registration)):
        raise UserError(
            f"{name} was changed after it was sealed: its seal is {there[:12]}, and what it holds "
            f"has {here[:12]}. Bring it back from a copy."
        )
    if registration.digests.design != asked(registration):
        raise UserError(f"{name}: its design digest is not that of what it asks.")
    return registration


class Standing(NamedTuple):
    """What follows for a run whose registration would now read differently.

    Attributes:
        refused: why it may not run under its registration, in one line; '': it may.
        missing_seeds: registered seeds that it does not run; hypotheses that need them end
            inconclusive.
    """

    refused: str
    missing_seeds: tuple[int, ...]


def compare(
    registered: Registration, now: Registration, *, missing_seeds: tuple[int, ...] = ()
) -> Standing:
    """What follows from the differences between a registration and the run as it is now.

    Args:
        now: the run with all of its registered seeds.
        missing_seeds: those of them that are not run.
    """
    differs = list(differences(registered, now))
    if not differs:
        return Standing("", missing_seeds)
    more = f" (and {len(differs) - 1} more)" if len(differs) > 1 else ""
    refused = (
        f"what was registered differs from this run: {differs[0]}{more}. Run what was registered, "
        f"or register this in another workdir."
    )
    return Standing(refused, missing_seeds)


def differences(registered: Registration, now: Registration) -> tuple[str, ...]:
    """Every field of the question that differs, in words; sources, times and machines do not count.

    The plan and the digest of the config are named only if nothing else shows what differs; data
    only if both hold digests.
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
    if not found and registered.plan and now.plan:
        found += _differ("plan", registered.plan, now.plan)
    if registered.data and now.data:
        found += different_data(registered.data, now.data)
    if not found and registered.config_digest != now.config_digest:
        one, other = registered.config_digest[:12], now.config_digest[:12]
        found.append(f"config digest: {one} registered, {other} now")
    return tuple(found)


def different_data(registered: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, ...]:
    """How the digests of the data here differ from the registered ones, if there are any.

    Data that only the registration has are not compared.
    """
    if not registered:
        return ()
    shared = {key: _shared(registered.get(key), own) for key, own in here.items()}
    found = [_differ(f"data '{key}'", *both) for key, both in shared.items()]
    return tuple(line for lines in found for line in lines)


def _shared(there: Any, here: Any) -> tuple[Any, Any]:
    """Both digests; for data that each seed draws, without seeds that are not run here."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        return {name: there[name] for name in there if name in here}, here
    return there, here


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


def _plain(value: Any) -> Any:
    return json.loads(canonical_json(value))


_OF_FORMAT_2 = ("plan", "data", "measures")


def _document(registration: Registration) -> dict[str, Any]:
    document = {f.name: getattr(registration, f.name) for f in fields(registration)}
    document["hypotheses"] = [to_dict(h) for h in registration.hypotheses]
    document["digests"] = registration.digests._asdict()
    document["seeds"] = list(registration.seeds)
    document["power"] = list(registration.power)
    if registration.format == 1:
        digests = document["digests"]
        digests["registration"] = digests.pop("design")
        for table in (document, digests):
            for name in _OF_FORMAT_2:
                table.pop(name, None)
    return document


def _from_document(document: Any) -> Registration:
    names = {f.name for f in fields(Registration)}
    form = document.get("format", FORMAT) if isinstance(document, dict) else None
    if (old := form == 1) and not isinstance(form, bool):
        names -= set(_OF_FORMAT_2)
    if not isinstance(document, dict) or document.keys() != names:
        raise UserError("it does not have the fields of a registration")
    if form not in (1, FORMAT) or isinstance(form, bool):
        raise UserError(f"its format is {form!r}, and this program reads {FORMAT}")
    kinds = {
        "arms": dict, "measurements": dict, "environment": dict, "digests": dict, "seeds": list,
        "hypotheses": list, "power": list, "dirty": bool, "format": int, "plan": dict, "data": dict,
    }  # fmt: skip
    for name in sorted(document):
        if not isinstance(document[name], kinds.get(name, str)):
            raise UserError(f"its field '{name}' is of the wrong type")
    if not all(isinstance(s, int) and not isinstance(s, bool) for s in document["seeds"]):
        raise UserError("its seeds are not whole numbers")
    digests = dict(document["digests"])
    expected = {"registration", "analysis", "code"} if old else set(Digests._fields)
    if digests.keys() != expected or not all(map(_is_sha256, digests.values())):
        raise UserError("its digests are not SHA-256 sums")
    if old:
        digests = {"design": digests.pop("registration"), "measures": ""} | digests
    if not all(isinstance(row, dict) for row in document["power"]):
        raise UserError("its power table is malformed")
    hypotheses = tuple(from_dict(h) for h in document["hypotheses"])
    read = {
        "hypotheses": hypotheses, "digests": Digests(**digests), "seeds": tuple(document["seeds"]),
        "power": tuple(document["power"]),
    }  # fmt: skip
    return Registration(**(document | read))


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value)
