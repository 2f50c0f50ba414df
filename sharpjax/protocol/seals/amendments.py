"""What was changed after registration: a chain of lines that can only grow.

Each line of `amendments.jsonl` is canonical JSON and holds the SHA-256 of the line before it; the
first one holds the registration's seal. So no line can be edited, moved or taken out of the middle
unnoticed. (If lines are cut from the end, the rest is still a sound chain; the manifest of a later
run, or a copy, shows that they are missing.)
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sharpjax.errors import UserError
from sharpjax.protocol.canonical import canonical_json, digest
from sharpjax.protocol.seals.registration import MOST_BYTES


class Amendment(NamedTuple):
    """One line of the file.

    Attributes:
        reason: why, in the author's words.
        time: UTC, ISO 8601.
        analysis, measures, code: digests of the sources from then on.
        previous: SHA-256 of the line before, or the seal.
    """

    reason: str
    time: str
    analysis: str
    measures: str
    code: str
    previous: str


def append(data: bytes, *, seal: str, reason: str, time: str, **digests: str) -> bytes:
    """The content of `amendments.jsonl` with one more line; the lines before stay as they are.

    Args:
        data: its present content; may be empty.
        digests: of the sources: `analysis`, `measures` and `code`, as in `Amendment`.

    Raises:
        UserError: the reason is empty, or the chain is already broken.
    """
    if not reason.strip():
        raise UserError("an amendment needs a reason; say what was changed and why.")
    read(data, seal=seal)
    line = Amendment(reason.strip(), time, previous=end(data) or seal, **digests)
    return data + canonical_json(line._asdict()).encode() + b"\n"


def read(data: bytes, *, seal: str, name: str = "amendments.jsonl") -> tuple[Amendment, ...]:
    """The amendments, in order, after checking their chain.

    Raises:
        UserError: a line is damaged, or does not follow from the one before; the message names the
            line. Or the file is too long.
    """
    if len(data) > MOST_BYTES:
        raise UserError(
            f"{name} has more than {MOST_BYTES >> 20} MiB; it is no list of amendments."
        )
    if data and not data.endswith(b"\n"):
        raise UserError(f"{name} ends in the middle of a line.")
    amendments = []
    previous = seal
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        amendment = _read(line)
        if amendment is None:
            raise UserError(f"{name}, line {number}, is damaged.")
        if amendment.previous != previous:
            before = f"line {number - 1}" if number > 1 else "the registration"
            raise UserError(
                f"{name}, line {number}, does not follow {before}: something was changed, added or "
                f"taken out there."
            )
        amendments.append(amendment)
        previous = hashlib.sha256(line).hexdigest()
    return tuple(amendments)


def named(amendments: Iterable[Amendment], name: str) -> set[str]:
    """The digests, of `analysis` or of `measures`, that amendments name."""
    return {getattr(a, name) for a in amendments}


def until(amendments: Sequence[Amendment], end: str) -> tuple[Amendment, ...]:
    """The amendments up to the line with this SHA-256; none if there is no such line."""
    sums = [digest(amendment._asdict()) for amendment in amendments]
    return tuple(amendments[: sums.index(end) + 1]) if end in sums else ()


def end(data: bytes) -> str:
    """SHA-256 of the last line; '' if there is none."""
    lines = data.split(b"\n")[:-1]
    return hashlib.sha256(lines[-1]).hexdigest() if lines else ""


def _read(line: bytes) -> Amendment | None:
    try:
        document = json.loads(line)
        whole = document.keys() == set(Amendment._fields)
        texts = all(isinstance(value, str) for value in document.values())
        if whole and texts and canonical_json(document).encode() == line:
            return Amendment(**document)
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    return None
