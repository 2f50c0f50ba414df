"""The same curvature on one device, on many, on meshes of both kinds, and over two processes."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import CACHE
from tests.xla import added

ROOT = pathlib.Path(__file__).resolve().parent.parent
ONE_PROCESS = ("Auto:1:1", "Auto:8:1", "Auto:2:2", "Explicit:8:1", "Explicit:2:2")


def start(meshes, devices, *arguments):
    environment = os.environ | {
        "XLA_FLAGS": added("", f"--xla_force_host_platform_device_count={devices}"),
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "tests/sharded.py", ",".join(meshes), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def results(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {numbers.pop("mesh"): numbers for numbers in found}


@pytest.fixture(scope="module")
def found():
    return results(start(ONE_PROCESS, 8))


@pytest.fixture(scope="module")
def shared():
    """What each of two processes of two devices found on meshes over all four."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    meshes = ("Auto:4:1", "Explicit:2:2")
    both = [start(meshes, 2, process, coordinator) for process in ("0", "1")]
    return [results(process) for process in both]


def numbers(measured):
    """All numbers of one mesh by name."""
    return {k: v for k, v in measured.items() if isinstance(v, float | list) and k != "gathered"}


def assert_same(measured, expected):
    assert measured["converged"]
    for name, value in numbers(expected).items():
        np.testing.assert_allclose(measured[name], value, rtol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ONE_PROCESS[1:])
def test_many_devices(found, mesh):
    assert_same(found[mesh], found["Auto:1:1"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ONE_PROCESS[1:])
def test_a_basis_lies_as_the_parameters_and_is_never_gathered(found, mesh):
    over_model = not mesh.endswith(":1")
    for what in ("vectors", "lies"):
        assert ("'model'" in found[mesh][what]) or not over_model
    # One vector may travel (a kernel whose contraction is sharded), never a stack of them.
    for shape in found[mesh]["gathered"]:
        assert len(re.findall(r"\d+", shape.split("[")[1])) <= 2, shape


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["Auto:4:1", "Explicit:2:2"])
def test_two_processes(found, shared, mesh):
    first, second = (measured[mesh] for measured in shared)
    assert numbers(first) == numbers(second)
    assert_same(first, found["Auto:1:1"])
