"""Plans for tests: small enough to be run whole, again and again, in this process."""

import dataclasses
import json
import pathlib

import jax

from sharpjax import data, nn, workdir
from sharpjax.driver.interrupt import Interrupt, Interrupted
from sharpjax.driver.progress import Progress
from sharpjax.optim import OptimizerSpec
from sharpjax.runs import loading
from sharpjax.runs import run as runner
from sharpjax.train import planning
from sharpjax.train.evaluators import Outputs, SplitMetrics
from sharpjax.train.library import Library
from sharpjax.train.plan import Member, Plan, Train, When
from sharpjax.train.steps import Steps
from sharpjax.train.task import Setting

CIRCLES = data.Circles(num_train=32)
END = When()
EACH = When(every_epochs=1)


def a_step(width=4, rate=0.1, batch_size=8, **changes):
    model = nn.build("mlp", num_classes=2, width=width)
    step = Steps(model, OptimizerSpec("sgd", rate, momentum=0.9), batch_size)
    return dataclasses.replace(step, **changes)


TESTED = (SplitMetrics(32, 5, EACH),)


def an_arm(name, members=(0, 1), epochs=2, evaluators=TESTED, **fields):
    """Two epochs of four steps on two circles, unless told otherwise."""
    members = tuple(m if isinstance(m, Member) else Member(m) for m in members)
    fields = {"data": "circles", "step": a_step(), "checkpoint_epochs": 1} | fields
    return Train(name, members, epochs=epochs, evaluators=tuple(evaluators), **fields)


def with_outputs(when=END):
    return SplitMetrics(32, 5, when), Outputs(END)


def a_plan(*stages, **specs):
    return Plan({"circles": CIRCLES} | specs, stages)


class Nervous(Interrupt):
    """Asked to stop at its n-th check, or at the n-th work that may be dropped."""

    def __init__(self, checks=None):
        super().__init__()
        self._left = checks

    def check(self):
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Interrupted(2)


class Died(Exception):
    pass


class Failing:
    """A run whose writes fail where `fails` says so, before or after they are done."""

    late = False

    def __init__(self, run):
        self._run = run

    def fails(self, what, *place):
        raise NotImplementedError

    def __getattr__(self, name):
        found = getattr(self._run, name)
        if name not in (
            "append",
            "publish_segment",
            "publish_arrays",
            "publish_unit",
            "publish_sums",
        ):
            return found

        def write(*args):
            dies = self.fails(name, *args[:2], *(args[2:3] if name == "publish_arrays" else ()))
            if dies and not self.late:
                raise Died
            found(*args)
            if dies:
                raise Died

        return write


class Ran(dict):
    """What each stage of a run returned; `library` reads what it left."""

    library: Library


def run(plan, folder, signals=None, say=lambda line: None, wrap=lambda run: run):
    """Carry out all stages, and seal the folder. `wrap` may make a run fail as it likes."""
    planning.check(plan)
    loaded = loading.on_device(loading.load(plan))
    ran = Ran()
    config = {"study": "sharpness", "arms": {}}
    with workdir.open_run(folder, config=config, overrides={}) as opened:
        ran.library = library = Library(plan, opened.path, opened.rows)
        setting = Setting(
            "sharpness", plan, loaded, wrap(opened), library, signals or Nervous(),
            Progress({}, say), say,
        )  # fmt: skip
        for stage in planning.ordered(plan):
            ran[planning.name_of(stage)] = runner.execute(setting, stage)
        opened.seal({})
    return ran


def files(folder):
    """Rows and arrays, to the bit."""
    folder = pathlib.Path(folder)
    found = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.glob("arrays/**/*.npz"))}
    return found | {"rows": (folder / "results.jsonl").read_bytes()}


def rows(folder, **wanted):
    table = map(json.loads, (pathlib.Path(folder) / "results.jsonl").read_text().splitlines())
    return [row for row in table if all(row[name] == value for name, value in wanted.items())]


def values(folder, **wanted):
    """By seed, step and coordinates."""
    return {
        (r["seed"], r["step"], *sorted(r["of"].items())): r["value"] for r in rows(folder, **wanted)
    }


def bits(tree):
    return jax.tree.map(lambda x: jax.device_get(x).tobytes(), tree)
