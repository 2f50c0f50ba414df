"""What lives on the last bit, compiled as for a user and not as for the other tests."""

import re
import subprocess
import sys

import pytest

from tests.commands import ROOT, environment
from tests.xla import FLAGS, USUAL

MARK = "pytest.mark.usual_flags"


@pytest.mark.skipif(not FLAGS, reason="all tests are compiled as for a user")
def test_the_last_bit_as_a_user_compiles():
    here = sorted((ROOT / "tests").glob("test_*.py"))
    files = [str(path) for path in here if f"@{MARK}" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "usual_flags", *files]
    env = environment(XLA_FLAGS=" ".join(USUAL))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 8
