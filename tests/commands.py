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

# Runs launch.py and stops the process at the first printed line that matches a pattern.
_STOPPING = """
import os, re, runpy, signal, sys
pattern, sys.argv = sys.argv[1], sys.argv[2:]

class Stopping:
    def __init__(self, stream):
        self.stream, self.line, self.done = stream, "", False
    def write(self, text):
        count = self.stream.write(text)
        self.line = (self.line + text)[-10_000:]
        *ended, self.line = self.line.split("\\n")
        if not self.done and any(re.search(pattern, line) for line in ended):
            self.done = True
            self.stream.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
        return count
    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout = Stopping(sys.stdout)
runpy.run_path(sys.argv[0], run_name="__main__")
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


def start_until(pattern, *arguments, **extra):
    """Start `launch.py`, in pipes; at the first line that matches it stops itself (SIGSTOP).

    So that what the process has done when the caller goes on does not hang on who is faster. It
    goes on at a SIGCONT, and a signal that is sent before it arrives then.
    """
    code = [sys.executable, "-u", "-c", _STOPPING, pattern, str(ROOT / "launch.py")]
    return subprocess.Popen(
        [*code, *map(str, arguments)],
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
