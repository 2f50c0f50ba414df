"""What a run writes down of itself beside its results: code, machine, versions, time, memory."""

import contextlib
import datetime
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax

from sharpjax import runtime, workdir
from sharpjax.runs import sources
from sharpjax.train.interrupt import Interrupted

# What numbers, figures and files come from. Of accelerators, whatever is installed.
PACKAGES = (
    *("absl-py", "array-record", "etils", "flax", "jax", "jaxlib", "matplotlib", "ml-collections"),
    *("ml-dtypes", "numpy", "optax", "orbax-checkpoint", "pillow", "rich", "scikit-learn", "scipy"),
    *("sharpjax", "tensorflow-datasets", "tensorstore"),
)
ACCELERATORS = ("jax-", "libtpu", "nvidia-")
# Those of them that compute.
COMPUTING = ("flax", "jax", "jaxlib", "ml-dtypes", "numpy", "optax")
# Read by XLA and its libraries, and no part of jax's own settings.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
SETTINGS = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_default_dtype_bits"),
    *("jax_default_prng_impl", "jax_threefry_partitionable", "jax_numpy_dtype_promotion"),
    *("jax_debug_nans", "jax_disable_jit"),
)


def environment() -> dict[str, Any]:
    """What bits depend on, beside code and config."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": runtime.processor(),
        "packages": packages(),
        "platform": jax.default_backend(),
        "platform_version": " ".join(device.client.platform_version.split()),
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "variables": {name: os.environ.get(name, "") for name in VARIABLES},
        "settings": {
            name: _plain(jax.config.values[name]) for name in SETTINGS if name in jax.config.values
        },
    }


def bits(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an `environment` that may change bits, as a flat table."""
    table = workdir.flat(environment)
    idle = {f"packages.{name}" for name in PACKAGES if name not in COMPUTING} | {"system"}
    return {name: value for name, value in table.items() if name not in idle}


def packages() -> dict[str, str]:
    """Versions of what is installed, of `PACKAGES` and of accelerators."""
    installed = {
        name.lower().replace("_", "-"): distribution.version
        for distribution in metadata.distributions()
        if (name := distribution.metadata["Name"])
    }
    chosen = [name for name in installed if name in PACKAGES or name.startswith(ACCELERATORS)]
    return {name: installed[name] for name in sorted(chosen)}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def environments(run: workdir.Run) -> list[dict[str, Any]]:
    """Those of the processes that worked on a run, in order; equal ones in a row count as one."""
    return _listed(run, workdir.ENVIRONMENT)


def processes(run: workdir.Run) -> list[dict[str, Any]]:
    """What is known of each process that worked on a run: its command, code, time, memory."""
    return _listed(run, workdir.PROCESSES)


def _listed(run: workdir.Run, name: str) -> list[dict[str, Any]]:
    path = run.path / name
    return json.loads(path.read_bytes()) if path.exists() else []


def record_environment(run: workdir.Run, say: Callable[[str], None]) -> None:
    """Add this process's `environment` to `environment.json`, unless it is as the last one was.

    A run that goes on elsewhere goes on, and says that its bits need not be those of one process.
    """
    earlier, now = environments(run), environment()
    if earlier and (differs := workdir.difference(bits(earlier[-1]), bits(now))):
        say(
            f"this run was started elsewhere ({differs}); bits may differ from those of one process"
        )
    if not earlier or earlier[-1] != now:
        workdir.publish(run.path / workdir.ENVIRONMENT, _file([*earlier, now]))


@contextlib.contextmanager
def recorded(
    run: workdir.Run, study: str, seconds: Mapping[str, float], say: Callable[[str], None]
) -> Iterator[None]:
    """Record the process that does the block, in `environment.json` and `processes.json`.

    Args:
        run: open, and not sealed within the block.
        study: its name, for the digest of its sources.
        seconds: by kind of work; read when the block ends.
        say: prints a line.

    The entry is there from the start, and completed however the block ends. That of a process that
    was killed has no end, time or memory. Other code than the last process ran is said and listed.
    """
    record_environment(run, say)
    earlier, started = processes(run), time.monotonic()
    code = sources.state(study)
    if earlier and earlier[-1]["code"]["sources"] != code["sources"]:
        say("the code has changed since this run was last worked on; both are recorded")
    entry = {
        "command": sys.argv,
        "code": code,
        "started": _now(),
        "ended": None,
        "outcome": "killed",
        "seconds": None,
        "peak_bytes": None,
    }
    workdir.publish(run.path / workdir.PROCESSES, _file([*earlier, entry]))
    entry["outcome"] = "failed"
    try:
        yield
        entry["outcome"] = "finished"
    except Interrupted:
        entry["outcome"] = "stopped"
        raise
    finally:
        total = {"total": time.monotonic() - started}
        entry |= {"ended": _now(), "seconds": dict(seconds) | total, "peak_bytes": peak_bytes()}
        workdir.publish(run.path / workdir.PROCESSES, _file([*earlier, entry]))


def peak_bytes() -> dict[str, int]:
    """The most memory this process has held: of the host, and of each device that counts it."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    for device in jax.local_devices():
        statistics = device.memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            peak[f"{device.platform}:{device.id}"] = int(statistics["peak_bytes_in_use"])
    return peak


def manifest(config: Mapping[str, Any], run: workdir.Run) -> dict[str, Any]:
    """The part of the manifest that is the same in every study; `Run.seal` adds sums and times."""
    done = processes(run)
    return {
        "study": config["study"],
        "config": workdir.plain(config),
        "config_digest": workdir.config_digest(config),
        "seeds": list(config["seeds"]),
        "registration": registered_seal(run),
        "code": done[-1]["code"] if done else sources.state(config["study"]),
        "environments": environments(run),
        "processes": done,
    }


def registered_seal(run: workdir.Run) -> str | None:
    """The seal of the registration that a run is under; None: everything in it is exploratory."""
    path = run.path / workdir.REGISTRATION
    return json.loads(path.read_bytes())["seal"] if path.exists() else None


def _file(value: Any) -> bytes:
    return workdir.json_file(value).encode()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
