"""Stages that go on from one another: what each leaves, and what the next one makes of it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import data, nn, tree, workdir
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.train.evaluators import Outputs, SplitMetrics
from sharpjax.train.plan import (
    Best,
    Compare,
    Derive,
    Draw,
    Member,
    Ref,
    Snapshots,
    Teacher,
    When,
    as_is,
)
from sharpjax.train.results import Results, exact, of
from tests.draws import draws
from tests.plans import (
    CIRCLES,
    EACH,
    END,
    Died,
    Failing,
    a_plan,
    a_step,
    an_arm,
    files,
    rows,
    run,
    values,
    with_outputs,
)


def digest(state):
    return tree.digest((state.params, state.variables))


def steps_of(folder, arm):
    return {row["step"] for row in rows(folder, arm=arm)}


# States that are left to later stages.


@dataclasses.dataclass(frozen=True)
class Scale:
    """Several models of one: its weights times a number."""

    percent: tuple[int, ...] = (0, 50)

    @property
    def outputs(self):
        return tuple(of(percent=percent) for percent in self.percent)

    def __call__(self, subject, key):
        for own, percent in zip(self.outputs, self.percent, strict=True):
            params = tree.scale(percent / 100, subject.state.params)
            yield own, dataclasses.replace(subject.state, params=params)


SCALE = Scale()


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an evaluator sees of a model: kept in a list."""

    told: list
    when: When = END
    name: str = "seen"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ("seen/draw",)

    def init(self, subject, data):
        return ()

    def __call__(self, carry, subject, data, key):
        self.told.append(subject)
        return carry, Results({("seen/draw", ()): exact(jax.random.uniform(key))})


def on_from(arm, seeds=(0, 1), of=(), at="end", order="more"):
    return [Member(s, streams=(("order", (s, order)),), start=Ref(arm, s, of, at)) for s in seeds]


TOLD = []
PLAN = a_plan(
    # Named in another order than they can be run in.
    Derive("twice", "scaled", as_is, (Seen(TOLD),)),
    an_arm("c", on_from("scaled", of=of(percent=50)), epochs=1),
    an_arm("b", on_from("a"), epochs=1, evaluators=()),
    an_arm("late", on_from("a", at=8), epochs=1, evaluators=()),
    Derive("scaled", "a", SCALE, with_outputs(), outputs=SCALE.outputs),
    an_arm(
        "a",
        epochs=3,
        evaluators=with_outputs(EACH),
        snapshots=Snapshots(When(every_epochs=2, end=False)),
        best=Best("test/nll", "most"),
    ),
    Derive("a-es", "a", as_is, (SplitMetrics(32, 5, END), Seen(TOLD)), at="best"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "run"
    TOLD.clear()
    return run(PLAN, folder), folder


def test_every_stage_ran_and_the_folder_is_sound(whole):
    ran, folder = whole
    assert list(ran) == ["a", "b", "late", "scaled", "twice", "c", "a-es"]
    assert workdir.verify(folder) == []


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_the_start_is_computed_again_to_the_bit(mode, tmp_path):
    """One by one, whether the arm ran in lanes or in turn; of nets with several kinds of layers."""
    conv = nn.build("small_conv", num_classes=10, width=2)
    step = dataclasses.replace(a_step(), model=conv, batch_size=16)
    images = data.Images("digits", num_train=32)
    arms = (
        an_arm("mlp", (0, 1, 2), epochs=0, population=mode),
        an_arm("conv", (0, 1), epochs=0, population=mode, data="digits", step=step),
    )
    ran = run(a_plan(*arms, digits=images), tmp_path / "run")
    for arm in arms:
        assert ran[arm.arm]["population"] == mode
        for member in arm.members:
            state = ran.library.state(Ref(arm.arm, member.seed, at="start"))
            assert digest(state) == ran[arm.arm]["params_at_start"][member.key]


def test_states_that_are_kept_are_those_that_were(whole):
    ran, folder = whole
    for seed in (0, 1):
        ended = ran.library.state(Ref("a", seed))
        assert digest(ended) == ran["a"]["params_at_end"][str(seed)]
        snapshot = ran.library.state(Ref("a", seed, at=8))
        with np.load(folder / "arrays" / "a" / "8" / "params_sha256.npz") as found:
            assert digest(snapshot) == found[str(seed)].tobytes().hex()
    kept = {path.name for path in (folder / "arrays" / "a").glob("*/state-*.npz")}
    assert kept == {"state-0.npz", "state-1.npz"}
    assert {path.parent.name for path in (folder / "arrays" / "a").glob("*/state-*")} == {"8", "12"}
    # What no stage reads is not stored.
    assert not list((folder / "arrays" / "b").glob("*/state-*"))


def test_an_arm_that_starts_where_another_ended(whole):
    """The same parameters, to the bit; a fresh optimiser; step 0."""
    ran, folder = whole
    assert ran["b"]["params_at_start"] == ran["a"]["params_at_end"]
    assert ran["late"]["params_at_start"] != ran["a"]["params_at_end"]
    assert ran["b"]["params_at_end"] != ran["b"]["params_at_start"]
    start = ran.library.start(PLAN.stages[2], PLAN.stages[2].members[0])
    assert not any(np.any(x) for x in jax.tree.leaves(start.opt_state))
    assert steps_of(folder, "b") == {4}
    rate = {r["step"]: r["value"] for r in rows(folder, arm="b", metric="train/learning_rate")}
    assert rate == {4: pytest.approx(0.1)}


def test_an_arm_that_starts_from_a_derived_model(whole):
    ran, _ = whole
    for seed in (0, 1):
        made = ran.library.state(Ref("scaled", seed, of(percent=50)))
        assert digest(made) == ran["c"]["params_at_start"][str(seed)]
        half = tree.scale(0.5, ran.library.state(Ref("a", seed)).params)
        assert tree.digest(half) == tree.digest(made.params)


def test_rows_of_a_derived_arm_stand_at_the_last_step_of_its_source(whole):
    _, folder = whole
    for arm in ("scaled", "twice", "a-es"):
        assert steps_of(folder, arm) == {12}
    found = values(folder, arm="scaled", metric="test/nll")
    assert list(found) == [(s, 12, ("percent", p)) for s in (0, 1) for p in (0, 50)]
    for seed in (0, 1):  # weights of 0 say the same of both classes
        assert found[seed, 12, ("percent", 0)] == pytest.approx(math.log(2), rel=1e-6)
        assert found[seed, 12, ("percent", 50)] != found[seed, 12, ("percent", 0)]


def test_what_an_evaluator_sees_of_a_derived_model(whole):
    ran, folder = whole
    twice = [s for s in TOLD if s.source is not None and s.source.source is None and s.of]
    assert [(s.seed, s.of) for s in twice] == [
        (seed, own) for seed in (0, 1) for own in SCALE.outputs
    ]
    for subject in twice:
        assert subject.step == 12
        assert (subject.source.seed, subject.source.of) == (subject.seed, subject.of)
        assert digest(subject.at("start")) == ran["a"]["params_at_start"][str(subject.seed)]
        assert digest(subject.at("end")) == ran["a"]["params_at_end"][str(subject.seed)]
        logits = subject.model.apply({"params": subject.state.params}, jnp.ones((1, 2)))
        assert np.isfinite(logits).all() and np.any(logits) == (subject.of == of(percent=50))


def test_best_states_are_those_of_their_epochs(whole):
    """The worst of all, here, so that it is none of the last."""
    _, folder = whole
    nll = values(folder, arm="a", metric="test/nll")
    best = [s for s in TOLD if not s.of]
    for subject in best:
        steps = {step: value for (seed, step), value in nll.items() if seed == subject.seed}
        worst = max(steps.values())
        assert subject.step == min(step for step, value in steps.items() if value == worst)
        own = values(folder, arm="a-es", metric="test/nll")[subject.seed, 12]
        assert own == pytest.approx(worst, rel=1e-6)
    assert [s.seed for s in best] == [0, 1]


def test_outputs_that_are_stored_are_the_logits(whole):
    ran, folder = whole
    test = CIRCLES.load().splits.test
    for arm, own in (("a", ()), ("scaled", of(percent=50))):
        member = Member(1, own)
        stored = ran.library.arrays(arm, "outputs", member)["logits"]
        loss = Classification(a_step().model)
        params = ran.library.state(Ref(arm, 1, own)).params
        expected = loss.logits(params, data.batch(test, np.arange(32)))
        assert stored.dtype == np.float32 and stored.shape == (32, 2)
        # Two programs, of batches of other sizes: within rounding of sums of four products.
        np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-5)
        accuracy = np.mean(stored.argmax(1) == test.label)
        found = values(folder, arm=arm, metric="test/accuracy")
        assert found[(1, 12, *own)] == pytest.approx(accuracy)
    assert ran.library.arrays("a", "outputs", Member(7)) == {}


@pytest.mark.parametrize(("count", "size"), [(20, 7), (0, 500), (3, 2)])
def test_outputs_in_batches_of_any_size(count, size, tmp_path):
    whole, part = Outputs(END, batch_size=32), Outputs(END, "test", count, size)
    ran = run(
        a_plan(*(an_arm(n, (0,), epochs=0, evaluators=(x,), repeats=True)
                 for n, x in (("whole", whole), ("part", part)))),
        tmp_path / "run",
    )  # fmt: skip
    one, other = (ran.library.arrays(arm, "outputs", Member(0))["logits"] for arm in ran)
    assert len(other) == (count or 32)
    np.testing.assert_allclose(other, one[: len(other)], rtol=1e-5, atol=1e-6)


def test_snapshots_that_would_take_too_much_are_refused(tmp_path):
    params = a_step().init(jnp.ones((1, 2)), jax.random.key(0)).params
    size = 4 * sum(x.nbytes for x in jax.tree.leaves(params))
    few = an_arm("a", snapshots=Snapshots(EACH, most_bytes=size - 1))
    with pytest.raises(UserError, match=f"2 snapshots of 2 models of arm 'a' take {size:,} bytes"):
        run(a_plan(few), tmp_path / "run")
    assert not list((tmp_path / "run").glob("arrays/a/*"))
    enough = dataclasses.replace(few, snapshots=Snapshots(EACH, most_bytes=size))
    run(a_plan(enough), tmp_path / "enough")
    kept = (tmp_path / "enough" / "arrays" / "a").glob("*/state-*.npz")
    assert sorted(f"{path.parent.name} {path.stem}" for path in kept) == [
        *("4 state-0", "4 state-1", "8 state-0", "8 state-1")
    ]


@dataclasses.dataclass(frozen=True)
class Break:
    """Makes a model of seed 1 that is not finite."""

    def __call__(self, subject, key):
        factor = jnp.nan if subject.seed == 1 else 1.0
        params = jax.tree.map(lambda x: x * factor, subject.state.params)
        yield (), dataclasses.replace(subject.state, params=params)


def test_a_model_that_is_made_not_finite_is_not_measured(tmp_path):
    """Of NaN there would be an accuracy: that of the first class."""
    made = Derive("made", "a", Break(), with_outputs())
    run(a_plan(an_arm("a"), made), tmp_path / "run")
    assert set(values(tmp_path / "run", arm="made", metric="test/accuracy")) == {(0, 8)}
    assert values(tmp_path / "run", arm="made", metric="train/alive") == {(1, 8): 0}


# Best.


@dataclasses.dataclass(frozen=True)
class Told:
    """Measures what it is told, epoch by epoch."""

    values: tuple[float, ...]
    when: When = When(start=True, every_epochs=1)
    name: str = "told"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ("told/value",)

    def init(self, subject, data):
        return ()

    def __call__(self, carry, subject, data, key):
        return carry, Results({("told/value", ()): exact(self.values[subject.step // 4])})


@pytest.mark.parametrize(
    ("rule", "told", "epoch"),
    [
        (Best("told/value", "least"), (3, 1, 2, 1), 1),
        (Best("told/value", "most"), (math.nan, 1, 2, 2), 2),
        (Best("told/value", "least", target=2), (3, 2, 1, 0), 1),
        (Best("told/value", "least"), (math.nan,) * 4, 0),
        # Equal in float32 alone: float64 would see the last one as better, or as worse.
        (Best("told/value", "least"), (1, 0.1, 0.1, 0.1), 1),
        (Best("told/value", "most"), (0, 0.7, 0.7, 0.7), 1),
    ],
)
def test_which_state_is_the_best(rule, told, epoch, tmp_path):
    seen = []
    plan = a_plan(
        an_arm("a", (0,), epochs=3, evaluators=(Told(told),), best=rule),
        Derive("es", "a", as_is, (Seen(seen),), at="best"),
    )
    ran = run(plan, tmp_path / "run")
    assert [s.step for s in seen] == [4 * epoch]
    if not epoch:
        assert digest(seen[0].state) == ran["a"]["params_at_start"]["0"]
    assert steps_of(tmp_path / "run", "es") == {12}


class OfLayers(Told):
    """Its metric has further coordinates, and no value of the whole model."""

    def __call__(self, carry, subject, data, key):
        return carry, Results({("told/value", of(layer="head")): exact(1.0)})


def test_a_best_state_needs_a_value_of_the_whole_model(tmp_path):
    rule, told = Best("told/value", "least"), OfLayers((), when=END)
    with pytest.raises(UserError, match=r"arm 'a' is chosen by 'told/value', .*'layer': 'head'"):
        run(a_plan(an_arm("a", (0,), evaluators=(told,), best=rule)), tmp_path / "run")


# Members.


def test_streams_of_another_seed(tmp_path):
    """A member is what its streams say; its own seed decides what they leave out."""
    init, order = ("init", (0, "init")), ("order", (0, "order"))
    members = [
        Member(0),
        Member(1, of(copy=1)),
        Member(1, of(copy=2), streams=(init,)),
        Member(1, of(copy=3), streams=(init, order)),
    ]
    ran = run(a_plan(an_arm("a", members, repeats=True)), tmp_path / "run")
    start, end = ran["a"]["params_at_start"], ran["a"]["params_at_end"]
    zero, one, two, three = (member.key for member in members)
    assert start[zero] == start[two] == start[three] != start[one]
    assert end[zero] == end[three] and len(set(end.values())) == 3
    found = values(tmp_path / "run", metric="test/nll")
    assert found[0, 8] == found[1, 8, ("copy", 3)]
    assert len(found) == 2 * 4 and (1, 8) not in found
    with np.load(tmp_path / "run" / "arrays" / "a" / "8" / "params_sha256.npz") as digests:
        assert set(digests) == {"0", "1-copy=1", "1-copy=2", "1-copy=3"} == set(start)


def test_arrays_of_members_whose_names_begin_alike(tmp_path):
    members = [Member(0, of(p=p)) for p in ("0", "0.5")]
    members = [m._replace(streams=(("init", (i, "init")),)) for i, m in enumerate(members)]
    ran = run(a_plan(an_arm("a", members, evaluators=with_outputs())), tmp_path / "run")
    one, other = (ran.library.arrays("a", "outputs", member) for member in members)
    assert set(one) == set(other) == {"logits"}
    assert not np.array_equal(one["logits"], other["logits"])


def test_pruned_weights_stay_pruned(tmp_path):
    """From a mask of the arm before: at the start, and at the end; who reads it finds it so."""

    def halves(subject, key):
        params = jax.tree.map(
            lambda w: jnp.where(jnp.abs(w) < jnp.median(jnp.abs(w)), 0, w), subject.state.params
        )
        yield (), dataclasses.replace(subject.state, params=params)

    members = [Member(s, start=Ref("a", s, at="start"), mask=Ref("pruned", s)) for s in (0, 1)]
    plan = a_plan(
        an_arm("a"),
        Derive("pruned", "a", halves, ()),
        an_arm("ticket", members),
        Derive("after", "ticket", as_is, ()),
        Derive("before", "ticket", as_is, (), at="start"),
    )
    ran = run(plan, tmp_path / "run")
    for seed in (0, 1):
        mask = jax.tree.map(lambda w: w != 0, ran.library.state(Ref("pruned", seed)).params)
        first = ran.library.state(Ref("a", seed, at="start")).params
        start, end = (ran.library.state(Ref("ticket", seed, at=at)) for at in ("start", "end"))
        assert digest(start) == ran["ticket"]["params_at_start"][str(seed)]
        each = (first, start.params, end.params, mask)
        for drawn, before, after, own in zip(*map(jax.tree.leaves, each), strict=True):
            np.testing.assert_array_equal(before, np.where(own, drawn, 0))
            assert not np.any(np.asarray(after)[~np.asarray(own)])
        assert digest(end) != digest(start)


def test_a_teacher_is_seen_and_teaches(tmp_path):
    """One for each seed; a weight of 0 teaches nothing."""
    seen = []
    wide = an_arm("teacher", step=a_step(width=6), epochs=6)
    members = {
        name: [Member(s, teacher=Teacher("model", (Ref("teacher", s),), 2.0, w)) for s in (0, 1)]
        for name, w in (("taught", 1.0), ("untaught", 0.0))
    }
    arms = [an_arm(name, own, evaluators=(Seen(seen),)) for name, own in members.items()]
    ran = run(a_plan(wide, *arms, an_arm("alone")), tmp_path / "run")
    assert [s.seed for s in seen] == [0, 1, 0, 1]
    for subject in seen:
        assert subject.teacher.seed == subject.seed and subject.teacher.step == 24
        own = ran["teacher"]["params_at_end"][str(subject.seed)]
        assert digest(subject.teacher.state) == own
        assert subject.teacher.model != subject.model
    assert ran["taught"]["params_at_end"] != ran["alone"]["params_at_end"]
    untaught, alone = (
        values(tmp_path / "run", arm=arm, metric="train/loss") for arm in ("untaught", "alone")
    )
    assert untaught == pytest.approx(alone, rel=1e-4)  # another program of the same function


# Derived arms.


def test_a_transform_must_keep_structures_and_its_word(tmp_path):
    def other(change):
        def transform(subject, key):
            yield (), dataclasses.replace(subject.state, **change(subject.state))

        return transform

    half = other(lambda s: {"params": jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.params)})
    fewer = other(lambda s: {"params": dict(list(s.params.items())[1:])})
    more = other(lambda s: {"variables": {"batch_stats": {"mean": jnp.zeros(2)}}})
    start = an_arm("a", (0,), epochs=0)
    for i, (transform, words) in enumerate(
        [
            (half, "returns a state of another structure"),
            (fewer, "returns a state of another structure"),
            (more, "returns a state of another structure"),
            (SCALE, r"gives .*percent.* where Derive.outputs names \(\)"),
            (lambda subject, key: iter(()), r"gives None where Derive.outputs names \(\)"),
            (lambda subject, key: iter([((), subject.state)] * 2), "outputs names None"),
        ]
    ):
        plan = a_plan(start, Derive("made", "a", transform, ()))
        with pytest.raises(UserError, match=words):
            run(plan, tmp_path / str(i))


def overflowing(subject, key):
    """Weights whose loss overflows, of seed 1."""
    factor = 1e30 if subject.seed == 1 else 1.0
    params = tree.scale(factor, subject.state.params)
    yield (), dataclasses.replace(subject.state, params=params)


def test_what_is_made_of_a_model_that_blew_up(tmp_path):
    """Is it too, and so is what is made of that, or starts from it: a row says so."""
    start = an_arm("drawn", epochs=0)
    plan = a_plan(
        start,
        Derive("huge", "drawn", overflowing, ()),
        an_arm("a", on_from("huge"), best=Best("test/nll", "least")),
        Derive("scaled", "a", SCALE, with_outputs(), outputs=SCALE.outputs),
        Derive("again", "scaled", as_is, with_outputs()),
        Derive("es", "a", as_is, with_outputs(), at="best"),
        an_arm("more", on_from("scaled", of=of(percent=50), order="last")),
    )
    ran = run(plan, tmp_path / "run")
    assert ran["a"]["stopped"] == {"1": 0} == ran["more"]["stopped"]
    more = plan.stages[-1]
    starts = [ran.library.start(more, member) for member in more.members]
    assert [(bool(one.alive), int(one.stopped_at)) for one in starts] == [(True, -1), (False, 0)]
    for arm, outputs in (("scaled", SCALE.outputs), ("again", SCALE.outputs), ("es", ((),))):
        dead = rows(tmp_path / "run", arm=arm, seed=1)
        assert {(r["metric"], r["value"], r["step"]) for r in dead} == {("train/alive", 0, 8)}
        assert [r["of"] for r in dead] == [dict(own) for own in outputs]
        alive = {r["metric"] for r in rows(tmp_path / "run", arm=arm, seed=0)}
        assert "test/nll" in alive and "train/alive" not in alive
        assert ran.library.arrays(arm, "outputs", Member(1, outputs[0])) == {}
    assert {(r["metric"], r["value"]) for r in rows(tmp_path / "run", arm="more", seed=1)} == {
        ("train/alive", 0)
    }


def test_a_resumed_stage_makes_no_model_again(tmp_path):
    """One transform for each model whose outputs are not all there."""
    made = []

    def counted(subject, key):
        made.append(subject.seed)
        yield from SCALE(subject, key)

    plan = a_plan(
        an_arm("a", (0, 1, 2), epochs=0, evaluators=()),
        Derive("scaled", "a", counted, with_outputs(), outputs=SCALE.outputs),
    )
    whole = run(plan, tmp_path / "whole")
    assert made == [0, 1, 2]

    class Dies(Failing):
        def fails(self, what, *place):
            return what == "publish_unit" and place[1] == 3

    made.clear()
    with pytest.raises(Died):
        run(plan, tmp_path / "run", wrap=Dies)
    assert made == [0, 1]
    made.clear()
    assert run(plan, tmp_path / "run") == whole
    assert made == [1, 2]
    assert files(tmp_path / "run") == files(tmp_path / "whole")


# Comparisons.


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of each model, the mean of its outputs; from rows, its rank among the models of all arms."""

    arms: tuple[str, ...]
    name: str = "mean"
    metrics: tuple[str, ...] = ("outputs/mean",)

    def __call__(self, view):
        for arm in self.arms:
            for member in view.members(arm):
                logits = view.arrays(arm, "outputs", member)["logits"]
                assert len(view.data(arm, member).test.label) == len(logits)
                yield arm, member, self.metrics[0], (), exact(logits.mean())


@dataclasses.dataclass(frozen=True)
class Rank(Mean):
    name: str = "rank"
    metrics: tuple[str, ...] = ("outputs/rank",)

    def __call__(self, view):
        found = {
            (arm, m): r["value"] for arm in self.arms for m in view.members(arm)
            for r in view.rows(arm)
            if r["metric"] == "outputs/mean" and (r["seed"], r["of"]) == (m.seed, dict(m.of))
        }  # fmt: skip
        for rank, (arm, member) in enumerate(sorted(found, key=found.get)):
            yield arm, member, "outputs/rank", of(among="all"), exact(rank)


def test_rows_of_a_comparison_join_the_arms(tmp_path):
    arms = ("a", "scaled")
    plan = a_plan(
        Compare("means", arms, (Mean(arms), Rank(arms))),
        Derive("scaled", "a", SCALE, with_outputs(), outputs=SCALE.outputs),
        an_arm("a", evaluators=with_outputs()),
    )
    ran = run(plan, tmp_path / "run")
    found = {arm: values(tmp_path / "run", arm=arm, metric="outputs/mean") for arm in arms}
    assert list(found["a"]) == [(0, 8), (1, 8)] and len(found["scaled"]) == 4
    ranks = values(tmp_path / "run", arm="a", metric="outputs/rank")
    ranks |= values(tmp_path / "run", arm="scaled", metric="outputs/rank")
    assert sorted(ranks.values()) == [0, 1, 2, 3, 4, 5]
    assert all(("among", "all") in place for place in ranks)
    for arm in arms:
        for seed, _, *own in found[arm]:
            logits = ran.library.arrays(arm, "outputs", Member(seed, tuple(own)))["logits"]
            assert found[arm][(seed, 8, *own)] == np.mean(logits)


def test_a_comparison_keeps_to_the_arms_that_it_reads(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Stranger:
        name: str = "stranger"
        metrics: tuple[str, ...] = ("x",)

        def __call__(self, view):
            yield "b", Member(0), "x", (), exact(1)

    arms = an_arm("a", epochs=0, evaluators=()), an_arm("b", (2,), epochs=0, evaluators=())
    for i, (measure, words) in enumerate(
        [(Stranger(), "gives rows of 'b', an arm it does not read"),
         (Mean(("b",)), "looks at arm 'b', which it does not read")]
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            run(a_plan(*arms, Compare("pairs", ("a",), (measure,))), tmp_path / str(i))


# Draws.


def test_draws_are_the_same_from_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("sharpjax.runtime.cores", lambda: 2)
    seeds = (5, 3, 4)
    for parallel in (False, True):
        stage = Draw("draws", seeds, draws, ("draw/value",), parallel)
        run(a_plan(stage), tmp_path / str(parallel))
    assert files(tmp_path / "False") == files(tmp_path / "True")
    found = values(tmp_path / "True", metric="draw/value")
    assert found == {(s, 0, ("i", i)): s + 0.5**i for s in sorted(seeds) for i in range(3)}


def test_draws_go_on_with_the_seed_that_was_not_drawn(tmp_path):
    drawn = []

    def heard(seed):
        drawn.append(seed)
        return draws(seed)

    class Dies(Failing):
        def fails(self, what, *place):
            return what == "publish_unit" and place[1] == 1

    stage = Draw("draws", (5, 3, 4), heard, ("draw/value",))
    with pytest.raises(Died):
        run(a_plan(stage), tmp_path / "run", wrap=Dies)
    assert drawn == [5, 3]
    run(a_plan(stage), tmp_path / "run")
    assert drawn == [5, 3, 3, 4]
    run(a_plan(Draw("draws", (5, 3, 4), draws, ("draw/value",))), tmp_path / "whole")
    assert files(tmp_path / "run") == files(tmp_path / "whole")
