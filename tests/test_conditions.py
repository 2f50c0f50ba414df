"""Members that differ in one thing: what is equal is so to the bit, and what differs differs."""

import dataclasses

import jax
import numpy as np
import pytest

from sharpjax import data, nn, tree
from sharpjax.errors import UserError
from sharpjax.nn.resnet import ResNet
from sharpjax.train import planning
from sharpjax.train.conditions import Between, diddo, disdo, redrawn, siddo
from sharpjax.train.plan import Derive, Member, Ref, Subject, Teacher
from sharpjax.train.results import of
from sharpjax.train.steps import Own
from tests.plans import CIRCLES, a_plan, a_step, an_arm, run

CONDITIONS = {"base": lambda member: member, "siddo": siddo, "disdo": disdo, "diddo": diddo}
DIGITS = data.Images("digits", num_train=64)


def first_batch(member, step, spec):
    """By the step of training itself."""
    train = data.on_device(spec.load()).train
    order = data.epoch_order(member.stream("order"), 0, len(train.label))
    return step.batch(0, 0, train, Own(order, member.stream("augmentation")))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Each condition of two seeds; students that start where their teacher did; starts between."""
    folder = tmp_path_factory.mktemp("conditions") / "run"
    arms = [an_arm(name, [of_(Member(s)) for s in (0, 1)], evaluators=())
            for name, of_ in CONDITIONS.items()]  # fmt: skip
    self_taught = [
        siddo(Member(s, start=teacher._replace(at="start"), teacher=Teacher("model", (teacher,))))
        for s, teacher in enumerate([Ref("base", 0), Ref("base", 1)])
    ]
    between = Between((0, 25, 100), CIRCLES.input_shape)
    part = [Member(s, start=Ref("between", s, of(percent=25))) for s in (0, 1)]
    plan = a_plan(
        *arms,
        an_arm("self", self_taught, evaluators=()),
        Derive("between", "base", between, (), outputs=between.outputs),
        an_arm("part", part, evaluators=()),
    )
    return run(plan, folder)


def test_starts_and_first_batches_are_equal_or_differ(ran):
    starts = {name: ran[name]["params_at_start"] for name in CONDITIONS}
    ends = {name: ran[name]["params_at_end"] for name in CONDITIONS}
    for seed in (0, 1):
        start = {name: own[str(seed)] for name, own in starts.items()}
        batch = {
            name: tree.digest(first_batch(make(Member(seed)), a_step(), CIRCLES))
            for name, make in CONDITIONS.items()
        }
        assert start["base"] == start["siddo"] and batch["base"] != batch["siddo"]
        assert start["base"] != start["disdo"] and batch["base"] == batch["disdo"]
        # The draws of diddo are those of both.
        assert start["diddo"] == start["disdo"] and batch["diddo"] == batch["siddo"]
        assert len({own[str(seed)] for own in ends.values()}) == 4
    assert len({*starts["base"].values(), *starts["disdo"].values()}) == 4


def test_students_begin_where_their_teacher_did(ran):
    """With a teacher, and in another order: nothing else differs from siddo but the teacher."""
    assert ran["self"]["params_at_start"] == ran["base"]["params_at_start"]
    assert ran["self"]["stopped"] == {}
    ends = [ran[name]["params_at_end"] for name in ("self", "siddo", "base")]
    assert all(len({end[s] for end in ends}) == 3 for s in ("0", "1"))


def test_crops_and_the_noise_of_a_teacher_are_streams_of_their_own(tmp_path):
    """Other crops of the same examples; other noise of a teacher beside the same batch."""
    cropped = a_step(model=nn.build("mlp", num_classes=10, width=4), pad=1, flip=True)
    noise = Teacher("gaussian")
    members = {
        "base": Member(0),
        "augmentation": redrawn(Member(0), "augmentation"),
        "taught": Member(0, teacher=noise),
        "teacher": redrawn(Member(0, teacher=noise), "teacher"),
    }
    arms = [
        an_arm(name, [member], epochs=1, evaluators=(), step=cropped, data="digits")
        for name, member in members.items()
    ]
    done = run(a_plan(*arms, digits=DIGITS), tmp_path / "run")
    starts, ends = (
        {name: done[name][when]["0"] for name in members}
        for when in ("params_at_start", "params_at_end")
    )
    assert len({*starts.values()}) == 1 and len({*ends.values()}) == 4
    batch = {name: first_batch(member, cropped, DIGITS) for name, member in members.items()}
    one, other = batch["base"], batch["augmentation"]
    np.testing.assert_array_equal(one["label"], other["label"])
    # Of 9 crops and 2 flips two draws are equal once in 18 times; those of all 8, in 18^8.
    assert np.any(one["image"] != other["image"])
    assert tree.digest(batch["taught"]) == tree.digest(batch["teacher"]) == tree.digest(one)


def test_a_start_between_fresh_weights_and_a_teacher(ran):
    for seed in (0, 1):
        fresh, part, whole = (
            ran.library.state(Ref("between", seed, of(percent=c))) for c in (0, 25, 100)
        )
        teacher = ran.library.state(Ref("base", seed))
        assert tree.digest(whole.params) == tree.digest(teacher.params)
        assert tree.digest(fresh.params) != tree.digest(ran.library.state(
            Ref("base", seed, at="start")).params)  # fmt: skip
        each = (fresh, part, teacher)
        for w, between, W in zip(*(jax.tree.leaves(x.params) for x in each), strict=True):
            np.testing.assert_allclose(between, 0.75 * w + 0.25 * W, rtol=1e-6, atol=1e-7)
        first = ran["part"]["params_at_start"][str(seed)]
        assert first == tree.digest((part.params, part.variables))


def test_statistics_are_taken_between_too():
    model = ResNet(num_classes=3, width=2, blocks=(1,))
    variables = dict(jax.jit(model.init)(jax.random.key(0), np.zeros((1, 6, 6, 1), np.float32)))
    params = variables.pop("params")
    trained = jax.tree.map(lambda s: 3 * s + 0.5, variables)
    state = a_step().begin(params, {})
    state = dataclasses.replace(state, variables=trained)
    subject = Subject(0, (), 4, model, state, lambda which: state)
    made = dict(Between((0, 50, 100), (6, 6, 1))(subject, jax.random.key(1)))
    first, half, last = (made[of(percent=c)] for c in (0, 50, 100))
    assert tree.digest((last.params, last.variables)) == tree.digest((params, trained))
    assert tree.digest(first.variables) == tree.digest(variables)
    for before, between, after in zip(
        *(jax.tree.leaves(x) for x in (variables, half.variables, trained)), strict=True
    ):
        np.testing.assert_allclose(between, (before + after) / 2, rtol=1e-6)


def test_every_stream_is_drawn_apart():
    base = Member(3, streams=(("init", (7, "init")),))
    roles = ("init", "order", "augmentation", "dropout", "teacher")
    for role in roles:
        other = redrawn(base, role)
        assert [r for r in roles if other.decides(r) != base.decides(r)] == [role]
        assert not np.array_equal(*(jax.random.key_data(m.stream(role)) for m in (base, other)))
        assert redrawn(base, role, draw=2).decides(role) != other.decides(role)
        assert redrawn(other, role) == other
    assert redrawn(base, "init").decides("init") == (7, "init/1")
    # Whatever the condition, it is a model of the same seed, which is paired with its base.
    assert all(make(base).seed == 3 for make in CONDITIONS.values())


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="unknown role .* did you mean 'order'"):
        redrawn(Member(0), "ordr")
    begun = Member(0, start=Ref("base", 0, at="start"))
    for name in ("disdo", "diddo"):
        with pytest.raises(UserError, match=f"train.{name}: member 0 starts from .* 'base'"):
            CONDITIONS[name](begun)
    for percent, said in (((-1,), "-1"), ((101,), "at most 100"), ((5, 5), "each once")):
        with pytest.raises(UserError, match=f"train.Between: .*{said}"):
            Between(percent, (2,))
    # A start from a state at its start and the stream that drew it are one model.
    same = [dataclasses.replace(an_arm("b", [siddo(begun)])), an_arm("c", [siddo(Member(0))])]
    with pytest.raises(UserError, match="are the same model"):
        planning.check(a_plan(an_arm("base"), *same))
