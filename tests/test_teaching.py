"""Teachers in a plan: every control trains, and one that diverged is named and teaches nobody."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from sharpjax import data, losses, nn, tree
from sharpjax.errors import RunFailed, UserError
from sharpjax.train import planning, teaching
from sharpjax.train.described import described
from sharpjax.train.plan import Derive, Member, Ref, Teacher
from tests.plans import a_plan, a_step, an_arm, rows, run

DIGITS = {
    "data": "digits",
    "epochs": 1,
    "evaluators": (),
    "step": dataclasses.replace(a_step(), model=nn.build("mlp", num_classes=10, width=4)),
}
OWN, OTHER = Ref("teacher", 0), Ref("teacher", 1)
CONTROLS = {
    "trained": Teacher("model", (OWN,)),
    "untrained": Teacher("model", (OWN._replace(at="start"),)),
    "permuted": Teacher("permuted", (OWN,)),
    "shuffled": Teacher("shuffled", (OWN,)),
    "entropy": Teacher("entropy-matched", (OWN,)),
    "ensemble": Teacher("ensemble", (OWN, OTHER)),
    "uniform": Teacher("uniform"),
    "uniform-fixed": Teacher("uniform", fresh=False),
    "gaussian": Teacher("gaussian"),
    "gaussian-fixed": Teacher("gaussian", fresh=False),
    "smoothed": Teacher("constant"),
    "marginal": Teacher("constant", prior="labels"),
    "reverse": Teacher("model", (OWN,), 3.0, divergence="reverse-kl"),
    "stored": Teacher("stored", (OWN, OTHER)),
    "twice": Teacher("model", (OWN,), 3.0, inputs="probabilities"),
}


def arms_of(controls):
    return [an_arm(name, [Member(0, teacher=t)], **DIGITS) for name, t in controls.items()]


def test_every_control_can_be_planned_and_trains(tmp_path):
    """From the same start each ends elsewhere, and with a loss."""
    plan = a_plan(
        an_arm("teacher", **DIGITS), *arms_of(CONTROLS), an_arm("alone", (0,), **DIGITS,
        repeats=True), digits=data.Images("digits", num_train=32),
    )  # fmt: skip
    ran = run(plan, tmp_path / "run")
    ends = {name: ran[name]["params_at_end"]["0"] for name in (*CONTROLS, "alone")}
    del ends["stored"]
    assert len({*ends.values()}) == len(ends)
    losses_of = {}
    for name in CONTROLS:
        assert ran[name]["stopped"] == {}
        assert ran[name]["params_at_start"]["0"] == ran["alone"]["params_at_start"]["0"]
        (loss,) = (r["value"] for r in rows(tmp_path / "run", arm=name, metric="train/loss"))
        # The untrained teacher is the student's own start, which it stays at but for rounding.
        assert abs(loss) < 1e-5 if name == "untrained" else 0 < loss < np.inf
        losses_of[name] = loss
    # The same teachers, asked before: outputs of other batches are rounded otherwise.
    assert losses_of["stored"] == pytest.approx(losses_of["ensemble"], rel=1e-5)


def test_outputs_that_are_stored(monkeypatch):
    """In parts, the last of which is not full."""
    train = data.on_device(data.Images("digits", num_train=32).load()).train
    model = DIGITS["step"].model
    batch = data.batch(train, jnp.arange(32))
    params = model.init(jax.random.key(0), batch["image"])["params"]
    teacher = losses.Teacher(kind="model", weight=1.0, temperature=1.0, model=model, params=params)
    monkeypatch.setattr(teaching, "_AT_ONCE", 12)
    found = teaching.outputs_of(teacher, train, 10)
    want = model.apply({"params": params}, batch["image"])
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_the_shares_of_labels():
    train = data.on_device(data.Images("digits", num_train=32).load()).train
    shares = teaching.label_shares(train, 10)
    np.testing.assert_allclose(shares, np.bincount(train.label, minlength=10) / 32, rtol=1e-6)


# One that diverged.


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """Of seed 1 weights that are NaN, or so large that outputs overflow."""

    factor: float

    def __call__(self, subject, key):
        factor = self.factor if subject.seed == 1 else 1.0
        params = jax.tree.map(lambda x: factor * x, subject.state.params)
        yield (), dataclasses.replace(subject.state, params=params)


def spoilt(factor, seeds=(0, 1), kind="model"):
    members = [Member(s, teacher=Teacher(kind, (Ref("made", s),))) for s in seeds]
    return a_plan(
        an_arm("a", evaluators=()), Derive("made", "a", Spoilt(factor), ()), an_arm("b", members)
    )


class Softmaxed(nn.MLP):
    """Gives probabilities."""

    @linen.compact
    def __call__(self, x, *, train=False):
        return jax.nn.softmax(super().__call__(x, train=train))


def test_a_teacher_that_gives_probabilities_teaches_nobody(tmp_path):
    """They would pass a second softmax."""
    model = Softmaxed(num_classes=2, width=4)
    arm = an_arm("a", epochs=0, evaluators=(), step=a_step(model=model))
    taught = an_arm("b", [Member(2, teacher=Teacher("model", (Ref("a", 0),)))])
    with pytest.raises(RunFailed, match="model 2: its teacher 'a' 0 gives probabilities, not log"):
        run(a_plan(arm, taught), tmp_path / "run")
    # The same net without its softmax teaches.
    plain = dataclasses.replace(arm, step=a_step(model=nn.MLP(num_classes=2, width=4)))
    run(a_plan(plain, taught), tmp_path / "plain")


@pytest.mark.parametrize(
    ("factor", "reason"), [(np.nan, "turned non-finite"), (1e30, "gives non-finite outputs")]
)
def test_who_has_a_teacher_that_diverged_is_not_trained(factor, reason, tmp_path):
    said = []
    ran = run(spoilt(factor), tmp_path / "run", say=said.append)
    told = [line for line in said if "its teacher" in line]
    assert told == [f"b: model 1: its teacher 'made' 1 {reason}, and it is not trained"]
    assert ran["b"]["stopped"] == {"1": 0}
    start, end = (ran["b"][f"params_at_{at}"] for at in ("start", "end"))
    assert start["1"] == end["1"] and start["0"] != end["0"]
    dead = {(r["metric"], r["value"]) for r in rows(tmp_path / "run", arm="b", seed=1)}
    assert dead == {("train/alive", 0)}
    alive = rows(tmp_path / "run", arm="b", seed=0, metric="train/loss")
    assert alive and all(np.isfinite(r["value"]) for r in alive)


def test_an_arm_without_a_sound_teacher_does_not_begin(tmp_path):
    said = "arm 'b' has no sound teacher; model 1: its teacher 'made' 1 turned non-finite."
    with pytest.raises(RunFailed, match=re.escape(said)) as error:
        run(spoilt(np.nan, seeds=(1,)), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_one_that_was_frozen_in_its_training_is_not_sound(tmp_path):
    """Its weights are finite: those of its last finite step. Before its first it was sound."""
    step = a_step(rate=1e30)
    wild = an_arm("wild", (0,), step=step, evaluators=())
    library = FakeLibrary(tree.scale(1.0, step.init(jnp.zeros((1, 2)), jax.random.key(0)).params))
    members = [
        Member(0, teacher=Teacher("model", (Ref("wild", 0, at=at),))) for at in ("start", "end")
    ]
    train = data.on_device(a_plan().data["circles"].load()).train
    found = teaching.unsound(a_plan(wild), library, members, [train] * 2)
    assert found == {1: "its teacher 'wild' 0 turned non-finite"}


class FakeLibrary:
    """Of a model that is alive at its start and not at its end, with the same weights."""

    def __init__(self, params):
        self._params = params

    def state(self, ref):
        begun = a_step().begin(self._params, {})
        return dataclasses.replace(begun, alive=jnp.asarray(ref.at == "start"))


# What a plan says.


def test_new_fields_stay_out_of_what_was_sealed():
    plan = spoilt(1.0)
    document = described(plan)
    older = described(plan)
    for member in older["stages"][2]["members"]:
        for name in ("divergence", "inputs", "prior"):
            del member["teacher"][name]
    assert described(plan, older) == older != document
    other = [Member(0, teacher=Teacher("uniform", divergence="hard"))]
    plan = a_plan(an_arm("b", other))
    older = described(a_plan(an_arm("b", [Member(0, teacher=Teacher("uniform"))])), None)
    del older["stages"][0]["members"][0]["teacher"]["divergence"]
    assert described(plan, older)["stages"][0]["members"][0]["teacher"]["divergence"] == "hard"


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        ([Teacher("uniform", divergence="kll")], "unknown divergence .* 'kll'; did you mean 'kl'"),
        ([Teacher("uniform", inputs="logit")], "unknown inputs .* did you mean 'logits'"),
        ([Teacher("constant", prior="label")], "unknown prior .* did you mean 'labels'"),
        ([Teacher("uniform", prior="labels")], "of kind 'uniform' has no prior 'labels'"),
        ([Teacher("uniform"), Teacher("uniform", divergence="hard")], "make arms of them"),
        ([Teacher("constant"), Teacher("constant", prior="labels")], "make arms of them"),
    ],
)
def test_teachers_of_a_plan_that_are_impossible(teachers, said):
    members = [Member(i, teacher=teacher) for i, teacher in enumerate(teachers)]
    with pytest.raises(UserError, match=said):
        planning.check(a_plan(an_arm("a", members)))


def test_stored_outputs_are_not_of_augmented_images():
    members = [Member(0, teacher=Teacher("stored", (OWN,)))]
    flipped = an_arm("a", members, step=a_step(flip=True))
    with pytest.raises(UserError, match="arm 'a' augments, and a 'stored' teacher knows images"):
        planning.check(a_plan(an_arm("teacher"), flipped))
