"""How a run stands to its registration: read, held to the code here, amended."""

import os
from typing import NamedTuple

from etils import epath

from sharpjax import catalog, workdir
from sharpjax.errors import UserError
from sharpjax.protocol.seals import amendments, registration
from sharpjax.protocol.seals.amendments import Amendment
from sharpjax.protocol.seals.registration import MOST_BYTES, Registration
from sharpjax.provenance import sources

UNREGISTERED = "unregistered: everything is exploratory"


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


def read(folder: os.PathLike | str) -> Registration | None:
    """The registration of a run, its seal checked; None: it has none.

    Raises:
        UserError: it is damaged, or was changed after it was sealed.
    """
    path = epath.Path(folder) / workdir.REGISTRATION
    return read_file(path) if path.exists() else None


def read_file(path: os.PathLike | str) -> Registration:
    """As `read`, of a file."""
    content = workdir.read_bytes(epath.Path(path), most=MOST_BYTES)
    return registration.from_json(content, str(path))


def standing(folder: epath.Path) -> Standing:
    """How a run's registration stands to the code that analyses it now.

    Raises:
        UserError: its registration or its amendments are damaged.
    """
    there = read(folder)
    if there is None:
        return Standing(None, (), False, False, (UNREGISTERED,))
    lines = amended(folder)
    now, then = _analysis(there), there.digests.analysis
    analysis = then != now and not amendments.covered(lines, now)
    warnings = []
    if analysis:
        warnings.append(
            f"the analysis (sources of protocol and of the study) is "
            f"{now[:12] or 'that of no study known here'} and was registered as {then[:12]}: these "
            f"verdicts are not those of the registered analysis until an amendment says why"
        )
    if there.dirty:
        warnings.append("registered with files that differed from the commit")
    code = there.digests.code != sources.code_digest()
    return Standing(there, lines, analysis, code, tuple(warnings))


def amended(folder: epath.Path) -> tuple[Amendment, ...]:
    """The amendments of a registered run, their chain checked.

    Raises:
        UserError: the chain is broken.
    """
    there, path = read(folder), epath.Path(folder) / workdir.AMENDMENTS
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
    entry = {"seal": there.seal, "reason": reason, "time": workdir.timestamp()}
    entry |= {"analysis": _analysis(there), "code": sources.code_digest()}
    workdir.append_amendment(folder, lambda chain: amendments.append(chain, **entry))
    return amended(folder)[-1]


def _analysis(there: Registration) -> str:
    """The digest of the analysis now; '' for a study that this version does not know."""
    return sources.analysis_digest(there.study) if there.study in catalog.STUDIES else ""
