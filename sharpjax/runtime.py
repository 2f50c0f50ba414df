"""How jax is started for a run: its arithmetic tested, its compilations kept."""

import hashlib
import os
import pathlib
import platform

import jax

from sharpjax.arithmetic import check_arithmetic
from sharpjax.errors import UserError

_HOSTS = ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS")


def start() -> None:
    """Test the arithmetic, turn the persistent compilation cache on, refuse what is not built.

    The cache lies in `JAX_COMPILATION_CACHE_DIR`, else in `~/.cache/sharpjax/`, in a folder for
    each kind of processor: XLA's CPU code of one may not run on another. It keeps what took half a
    second, or `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`.

    Raises:
        UserError: several hosts are asked for, or the CPU computes wrong numbers.
    """
    hosts = [name for name in _HOSTS if os.environ.get(name)]
    if hosts or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        what = hosts[0] if hosts else "TPU_WORKER_HOSTNAMES"
        raise UserError(
            f"{what} names several hosts, and a run uses the devices of one. Unset it, and run "
            f"part of the seeds on each host: --config.seeds='(0,1,2,3)' --workdir=..."
        )
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    check_arithmetic()


def _cache_folder() -> pathlib.Path:
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return base / "sharpjax" / f"xla-{_digest(_features())}"


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Its model, and a digest of the features that XLA's code may use."""
    features = _features()
    model = next((x for x in features.splitlines() if x.startswith("model name")), features)
    return f"{model.partition(':')[2].strip() or model} ({_digest(features)})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _features() -> str:
    """The model and features of the processor, as far as the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in lines[:40] if line.startswith(("model name", "flags")))
