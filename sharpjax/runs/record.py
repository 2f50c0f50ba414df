"""What a run records beside its results: each process, its machine and its code."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sharpjax import workdir
from sharpjax.driver.interrupt import Interrupted
from sharpjax.errors import UserError
from sharpjax.protocol.seals import amendments
from sharpjax.provenance import machine


def record_environment(run: workdir.Run, say: Callable[[str], None]) -> None:
    """Add this process's machine to `environment.json`, unless it equals the last one.

    A run may resume on another machine; a line then says that bits may differ from those of one
    process.
    """
    earlier, here = _listed(run, workdir.ENVIRONMENT), machine.environment()
    if earlier and (differs := machine.difference(earlier[-1], here)):
        say(
            f"this run was started elsewhere ({differs}); bits may differ from those of one process"
        )
    if not earlier or earlier[-1] != here:
        _write(run, workdir.ENVIRONMENT, [*earlier, here])


def _without_places(argument: str) -> str:
    """Shorten an absolute path to its last part, so that folders of a machine are not recorded.

    >>> _without_places("--workdir=/home/ada/runs/first")
    '--workdir=first'
    >>> _without_places("--config=configs/sam_cifar.py:cpu")
    '--config=configs/sam_cifar.py:cpu'
    """
    flag, given, value = argument.rpartition("=")
    path = pathlib.PurePath(value).is_absolute() or value.startswith("~")
    return f"{flag}{given}{pathlib.PurePath(value).name}" if path else argument


@contextlib.contextmanager
def recorded(
    run: workdir.Run,
    code: Mapping[str, Any],
    seconds: Mapping[str, float],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Record the process that runs the block, in `environment.json` and `processes.json`.

    The entry is written at the start and completed however the block ends. If the process is
    killed, its entry has no end, time or memory. If the code is not that of the last process, a
    line says so.

    Args:
        run: open, and not sealed within the block.
        code: that the process runs, from `study.code_of`.
        seconds: by kind of work; read when the block ends.
        say: prints a line.
    """
    record_environment(run, say)
    earlier, started = _listed(run, workdir.PROCESSES), time.monotonic()
    if earlier and earlier[-1]["code"]["sources"] != code["sources"]:
        say("the code has changed since this run was last worked on; both are recorded")
    entry = {
        "command": [_without_places(argument) for argument in sys.argv],
        "code": code,
        "registration": _seal(run),
        "amended": _amended(run),
        "started": workdir.timestamp(),
        "ended": None,
        "outcome": "killed",
        "seconds": None,
        "peak_bytes": None,
    }
    _write(run, workdir.PROCESSES, [*earlier, entry])
    run.enter(len(earlier) + 1)
    entry["outcome"] = "failed"
    try:
        yield
        entry["outcome"] = "finished"
    except Interrupted:
        entry["outcome"] = "stopped"
        raise
    finally:
        used = dict(seconds) | {"total": time.monotonic() - started}
        entry |= {"ended": workdir.timestamp(), "seconds": used, "peak_bytes": machine.peak_bytes()}
        _write(run, workdir.PROCESSES, [*earlier, entry])


def manifest(config: Mapping[str, Any], run: workdir.Run) -> dict[str, Any]:
    """The entries of the manifest that every study has; `Run.seal` adds sums and times."""
    processes = _listed(run, workdir.PROCESSES)
    return {
        "study": config["study"],
        "config": workdir.plain(config),
        "config_digest": workdir.config_digest(config),
        "seeds": list(config["seeds"]),
        "registration": _seal(run),
        "code": processes[-1]["code"],
        "environments": _listed(run, workdir.ENVIRONMENT),
        "processes": processes,
    }


def _seal(run: workdir.Run) -> str | None:
    path = run.path / workdir.REGISTRATION
    return json.loads(path.read_bytes())["seal"] if path.exists() else None


def _amended(run: workdir.Run) -> str:
    """The end of the chain of amendments. It shows later which of them came before the data."""
    path = run.path / workdir.AMENDMENTS
    return amendments.end(path.read_bytes()) if path.exists() else ""


def _listed(run: workdir.Run, name: str) -> list[dict[str, Any]]:
    path = run.path / name
    found = workdir.read_json(path) if path.exists() else []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{path} is damaged: it lists no tables. Delete the folder to run anew.")
    return found


def _write(run: workdir.Run, name: str, value: Any) -> None:
    workdir.publish(run.path / name, workdir.json_file(value).encode())
