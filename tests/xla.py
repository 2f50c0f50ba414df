"""Flags with which XLA compiles for the tests in a fifth of the time.

Most of the suite's time is compiling programs that run for milliseconds, so LLVM need not optimise
them, and loops are emitted directly instead of by way of MLIR, in one piece instead of 32. What is
simplified, partitioned and gathered was decided before, as in a user's program. But sums round
otherwise, so tests of the last bit are marked `usual_flags` and run by `test_xla.py` as a user
compiles them; so is a whole run, in its `:smoke` form. To test all so: XLA_FLAGS="..." make test,
with the flags of `USUAL`.
"""

import os
import subprocess
import sys

# Each flag with its value here and its usual one.
_VALUES = {
    "xla_backend_optimization_level": ("0", "3"),
    "xla_cpu_use_fusion_emitters": ("false", "true"),
    "xla_cpu_parallel_codegen_split_count": ("1", "32"),
}


# Where the answer is kept for the workers and commands that the first process starts.
_ANSWER = "SHARPJAX_TESTS_XLA_FLAGS"


def _starts(*names):
    """Whether XLA starts with these flags: it ends the process at one that it does not know."""
    flags = " ".join(f"--{name}={_VALUES[name][0]}" for name in names)
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=env, capture_output=True).returncode == 0


def _known():
    """The flags that this XLA knows, asked in processes of their own: a second, or three."""
    if _ANSWER not in os.environ:
        known = _VALUES if _starts(*_VALUES) else filter(_starts, _VALUES)
        os.environ[_ANSWER] = " ".join(known)
    return os.environ[_ANSWER].split()


_KNOWN = _known()
USUAL = tuple(f"--{name}={_VALUES[name][1]}" for name in _KNOWN)
# Where the caller asks for the usual ones, they are left.
_asked = [flag in os.environ.get("XLA_FLAGS", "") for flag in USUAL]
FLAGS = tuple(
    f"--{name}={_VALUES[name][0]}" for name, usual in zip(_KNOWN, _asked, strict=True) if not usual
)


def added(given, *flags):
    """The text of XLA_FLAGS with these among them."""
    return " ".join([given, *(flag for flag in (*FLAGS, *flags) if flag not in given)]).strip()
