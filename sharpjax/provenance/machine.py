"""The machine that computes: processor, devices, versions, settings, memory."""

import os
import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from sharpjax import runtime, workdir

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


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """How two `environment`s differ in what may change bits, in words; '': not."""
    return workdir.difference(_bits(there), _bits(here))


def _bits(environment: Mapping[str, Any]) -> dict[str, Any]:
    idle = {f"packages.{name}" for name in PACKAGES if name not in COMPUTING} | {"system"}
    return {name: v for name, v in workdir.flat(environment).items() if name not in idle}


def packages() -> dict[str, str]:
    """Versions of what is installed, of `PACKAGES` and of accelerators."""
    installed = {
        name.lower().replace("_", "-"): distribution.version
        for distribution in metadata.distributions()
        if (name := distribution.metadata["Name"])
    }
    chosen = [name for name in installed if name in PACKAGES or name.startswith(ACCELERATORS)]
    return {name: installed[name] for name in sorted(chosen)}


def is_deterministic() -> bool:
    """Whether the same program gives the same bits twice: on a GPU only where XLA is told to."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return jax.default_backend() != "gpu" or "--xla_gpu_deterministic_ops=true" in flags


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


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | str) else str(value)
