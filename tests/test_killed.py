"""A run of several stages that is killed anywhere ends with the files of one that was not."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from sharpjax.driver import interrupt
from sharpjax.driver.interrupt import Interrupted
from sharpjax.errors import UserError
from sharpjax.train.plan import Best, Compare, Derive, Member, Ref, Snapshots
from tests.plans import (
    EACH,
    Died,
    Failing,
    Nervous,
    a_plan,
    a_step,
    an_arm,
    files,
    run,
    with_outputs,
)
from tests.test_stages import SCALE, Mean

ROOT = pathlib.Path(__file__).resolve().parent.parent


def the_plan():
    """Two trained arms, one from the other's end, then models of one, then measures of all."""
    more = [Member(s, streams=(("order", (s, "more")),), start=Ref("a", s)) for s in (0, 1)]
    arms = ("a", "b", "scaled")
    return a_plan(
        Compare("means", arms, (Mean(arms), Mean(("b",), "again", ("outputs/again",)))),
        Derive("scaled", "a", SCALE, with_outputs(), at="best", outputs=SCALE.outputs),
        an_arm("b", more, epochs=1, evaluators=with_outputs()),
        an_arm(
            "a",
            evaluators=with_outputs(EACH),
            snapshots=Snapshots(EACH),
            best=Best("test/nll", "least"),
        ),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run(the_plan(), folder), files(folder)


@pytest.mark.parametrize("late", [False, True])
def test_it_may_die_at_every_write(whole, late, tmp_path):
    """Before it, or after: at each place of a file or of rows the first time that it is reached."""
    seen = set()

    class Dies(Failing):
        def fails(self, *place):
            new = str(place) not in seen  # rows are told apart, as text
            seen.add(str(place))
            return new

    Dies.late = late
    ran, attempts = None, 0
    while ran is None:
        try:
            ran = run(the_plan(), tmp_path / "run", wrap=Dies)
        except Died:
            attempts += 1
    assert (ran, files(tmp_path / "run")) == whole
    for name in ("append", "publish_segment", "publish_arrays", "publish_unit"):
        assert any(name in place for place in seen)
    assert attempts == len(seen) > 20


def test_it_may_be_asked_to_stop_at_any_look(whole, tmp_path):
    """Looks are taken between segments of steps, and before each piece of work that is dropped."""
    ran, stopped = None, 0
    while ran is None:
        try:
            ran = run(the_plan(), tmp_path / "run", Nervous(1 + stopped % 3))
        except interrupt.Interrupted:
            stopped += 1
    assert (ran, files(tmp_path / "run")) == whole
    assert stopped >= 5


SCRIPT = """
import os, signal, sys
import tests.conftest
from tests.plans import Failing, run
from tests.test_killed import the_plan

class Killed(Failing):
    left = int(sys.argv[2])

    def fails(self, *place):
        Killed.left -= 1
        if not Killed.left:
            os.kill(os.getpid(), signal.SIGKILL)

run(the_plan(), sys.argv[1], wrap=Killed)
"""


def test_processes_that_are_killed(whole, tmp_path):
    """The first at a write of any stage; the lease of the dead does not keep the second one out."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    codes = []
    for writes in (random.randint(1, 25), 10**6):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(writes)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        codes.append(done.returncode)
    assert codes == [-signal.SIGKILL, 0], done.stderr
    assert files(tmp_path / "run") == whole[1]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """And of an earlier state of this one; an older checkpoint of its own is gone on from."""
    plan = a_plan(an_arm("a", epochs=3))
    run(a_plan(an_arm("a", epochs=3, step=a_step(rate=0.2))), tmp_path / "other")
    with pytest.raises(Interrupted):
        run(plan, tmp_path / "run", signals=Nervous(0))
    own, others = (tmp_path / name / "checkpoints" / "a" for name in ("run", "other"))
    newest = max(others.iterdir(), key=lambda path: int(path.name))
    shutil.copytree(newest, own / newest.name)
    with pytest.raises(UserError, match="written by none of the run's processes"):
        run(plan, tmp_path / "run")
    assert (own / newest.name).exists()  # nothing is lost
    shutil.rmtree(own / newest.name)
    run(plan, tmp_path / "run")
    run(plan, tmp_path / "sound")
    assert files(tmp_path / "run") == files(tmp_path / "sound")
