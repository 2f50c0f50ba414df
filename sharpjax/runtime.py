"""How jax is started for a run: with tested arithmetic and a persistent compilation cache."""

import gc
import hashlib
import math
import os
import pathlib
import platform

import jax

from sharpjax.arithmetic import check_arithmetic
from sharpjax.errors import UserError

_HOSTS = ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS")


def start() -> None:
    """Test the arithmetic, turn on the persistent compilation cache, refuse runs on several hosts.

    The cache is `JAX_COMPILATION_CACHE_DIR` if set. Otherwise it is a folder in `sharpjax/` under
    `XDG_CACHE_HOME` (default `~/.cache`), one for each kind of processor, because XLA's CPU code
    for one kind may not run on another. It keeps programs that took at least half a second to
    compile, or `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`.

    Raises:
        UserError: several hosts are configured, or the CPU computes wrong numbers.
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


def make_room(*, share: float = 0.5) -> bool:
    """Drop all compiled programs if the process has used this share of its memory maps.

    Linux limits the memory maps of a process (`vm.max_map_count`, 65,530 by default). XLA's CPU
    code holds some maps for each program, and LLVM ends the process when it gets no more. A study
    of 24 arms of six nets reached the limit after 71 minutes. A dropped program that is needed
    again comes from the persistent cache, or is compiled again.

    Returns:
        Whether the programs were dropped.
    """
    used, most = _memory_maps()
    if used < share * most:
        return False
    jax.clear_caches()
    gc.collect()
    return True


def _memory_maps() -> tuple[int, float]:
    """The number of memory maps of this process, and its limit; (0, inf) if the system has no such
    limit."""
    try:
        with open("/proc/self/maps", "rb") as file:
            used = sum(1 for _ in file)
        return used, int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0, math.inf


def cores() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor model, and a digest of the features that XLA's code may use."""
    features = _features()
    model = next((x for x in features.splitlines() if x.startswith("model name")), features)
    return f"{model.partition(':')[2].strip() or model} ({_digest(features)})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _features() -> str:
    """The model and features of the processor, as far as the system reports them."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in lines[:40] if line.startswith(("model name", "flags")))
