"""The clock, the machine, and the file of measurements that a killed run goes on from."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import time
from typing import Any

import jax

from benchmarks.workloads import HERE

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "torch"),
    *("pyhessian", "curvlinops-for-pytorch", "hessian-eigenthings", "matfree", "traceax"),
)


class Clock:
    """`with Clock() as clock: ...`, then `clock.seconds`."""

    def __enter__(self):
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self.start


class Store:
    """One JSON line for each measurement; what was measured with other sources is left alone.

    Args:
        path: the file.
        stamp: of what is measured; lines with another one are not seen, unless `any_stamp`.
    """

    def __init__(self, path: pathlib.Path, stamp: str, *, any_stamp: bool = False):
        self.path, self.stamp, self.session = path, stamp, f"{time.time():.0f}"
        self.lines, self.ignored = [], 0
        path.parent.mkdir(parents=True, exist_ok=True)
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the line that a kill cut short
                continue
            if any_stamp or line["stamp"] == stamp:
                self.lines.append(line)
            else:
                self.ignored += 1

    def add(self, **line: Any) -> dict:
        line |= {"stamp": self.stamp, "session": self.session}
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        return line

    def find(self, **fields: Any) -> list[dict]:
        return [x for x in self.lines if all(x.get(k) == v for k, v in fields.items())]


def hardware() -> str:
    """A name for files: the GPU, or the CPU and its cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return _slug(device.device_kind)
    return f"{_slug(_cpu())}-{len(os.sched_getaffinity(0))}-cores"


def environment() -> dict:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def stamp(settings: Any) -> str:
    """Of versions, settings, and the sources of this library and of the benchmarks."""
    digest = hashlib.sha256(json.dumps([environment()["versions"], settings]).encode())
    package = HERE.parent / "sharpjax"
    sources = [*(package / "geometry").rglob("*.py"), package / "loops.py", package / "tree.py"]
    for path in sorted([*sources, *HERE.rglob("*.py"), *HERE.glob("peers/*.py")]):
        if path.name not in ("run.py", "table.py", "targets.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("(r)", "").replace("(tm)", "")).strip(
        "-"
    )
