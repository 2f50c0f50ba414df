"""Running `launch.py` as a person would, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

from tests.xla import added

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Runs launch.py and says on the last line whether anything heavy was imported.
_PROBE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *(m for m in ("jax", "flax", "numpy", "orbax") if m in sys.modules))
"""


def environment(**extra):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["XLA_FLAGS"] = added("")
    env["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "xla")
    env["JAX_PLATFORMS"] = "cpu"
    return env | {"PYTHONPATH": str(ROOT)} | extra


def launch(*arguments, cwd=ROOT, timeout=300, **extra):
    """Run `python launch.py ARGUMENTS`; a finished process with its output as text."""
    command = [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=timeout
    )


def studies(*arguments, timeout=300):
    """Run `python -m sharpjax.studies ARGUMENTS`, likewise."""
    command = [sys.executable, "-m", "sharpjax.studies", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def launch_probed(*arguments, cwd=ROOT):
    """The same, with the heavy modules that were imported on the last line of stdout."""
    command = [sys.executable, "-c", _PROBE, str(ROOT / "launch.py"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60
    )


def start(*arguments, **extra):
    """Start `launch.py` and return the running process, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "launch.py"), *map(str, arguments)],
        cwd=ROOT,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_one_line(done, code, *words):
    """An exit code, and one line on stderr that holds all the words."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
