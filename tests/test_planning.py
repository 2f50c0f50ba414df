"""What can be said of a plan before it runs: its order, what is due when, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpjax import data, nn
from sharpjax.errors import UserError
from sharpjax.metrics.functional import disagreement
from sharpjax.optim import OptimizerSpec
from sharpjax.studies.compression.plan import LayerNoise
from sharpjax.studies.data_free.preserved import Preserved
from sharpjax.studies.papers.authors import AuthorsSharpness
from sharpjax.train import planning
from sharpjax.train.corruption import Corrupted
from sharpjax.train.curvature import Curvature
from sharpjax.train.epochs import Epochs
from sharpjax.train.evaluators import Outputs, SplitMetrics
from sharpjax.train.landscape import Landscape
from sharpjax.train.layer_curvature import LayerCurvature
from sharpjax.train.layerwise import Replaced
from sharpjax.train.measures import ToReference, Within
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
from sharpjax.train.results import of
from sharpjax.train.sharpness import Sharpness
from tests.plans import EACH, END, TESTED, a_plan, a_step, an_arm, with_outputs

COPIES = tuple(of(copy=i) for i in (1, 2))


def a_draw(name="draws"):
    return Draw(name, (0, 1), dict)


def after(name, source, at="end", **fields):
    """An arm that goes on from each model of another, in another order."""
    streams = (("order", (0, name)),)
    members = [Member(s, streams=streams, start=Ref(source, s, at=at)) for s in (0, 1)]
    return an_arm(name, members, **fields)


def taught(name, source, **fields):
    members = [Member(s, teacher=Teacher("model", (Ref(source, s),))) for s in (0, 1)]
    return an_arm(name, members, **fields)


# Order.


def test_a_stage_comes_after_those_that_it_reads():
    stages = (
        Compare("pairs", ("made", "a"), ()),
        Derive("twice", "made", as_is, ()),
        taught("student", "twice"),
        Derive("made", "b", as_is, ()),
        after("b", "a"),
        a_draw(),
        an_arm("a"),
    )
    plan = a_plan(*stages)
    planning.check(plan)
    names = [planning.name_of(stage) for stage in planning.ordered(plan)]
    # Of those that can run, the first that was named.
    assert names == ["draws", "a", "b", "made", "pairs", "twice", "student"]
    assert list(planning.arms(plan)) == ["twice", "student", "made", "b", "draws", "a"]


@given(st.permutations(range(6)), st.data())
def test_any_plan_without_a_circle_has_an_order(places, draw):
    """Stage i reads some of those before it, in whatever order they are named."""
    reads = [draw.draw(st.sets(st.integers(0, i - 1)) if i else st.just(set())) for i in range(6)]
    names = [f"c{i}" for i in range(6)]
    stages = [
        an_arm(n, [Member(s, start=Ref(names[s], 0)) for s in sorted(own)] or (0,))
        for n, own in zip(names, reads, strict=True)
    ]
    plan = a_plan(*(stages[i] for i in places))
    order = [planning.name_of(stage) for stage in planning.ordered(plan)]
    assert sorted(order) == names
    for i, own in enumerate(reads):
        assert all(order.index(names[j]) < order.index(names[i]) for j in own)


def test_what_is_known_of_derived_models():
    members = [Member(3), Member(4, of(noise="0.5"))]
    plan = a_plan(
        an_arm("a", members, epochs=3),
        Derive("made", "a", as_is, TESTED, outputs=COPIES),
        Derive("again", "made", as_is, (), outputs=tuple(of(bits=n) for n in (2, 4, 8))),
        Compare("pairs", ("made",), (_Measure(),)),
        a_draw(),
    )
    made, again = planning.members(plan, "made"), planning.members(plan, "again")
    assert [(m.seed, m.of) for m in made[1:3]] == [
        (3, (("copy", 2),)),
        (4, (("copy", 1), ("noise", "0.5"))),
    ]
    assert len(again) == 12 and again[7].key == "4-bits=4-copy=1-noise=0_5"
    for i, member in enumerate(again):
        ref = Ref("again", member.seed, member.of)
        assert planning.number(plan, ref) == i
        assert planning.origin(plan, ref) == members[i // 6]
    assert planning.source_of(plan, "again") is plan.stages[0]
    assert planning.last_step(plan, "again") == 12 and planning.last_step(plan, "draws") == 0
    assert planning.kept(plan, "a") == {"end"} == planning.kept(plan, "made")
    assert planning.kept(plan, "again") == set()
    assert planning.metrics(plan, "made") == (
        *("train/alive", "test/accuracy", "test/ece", "test/nll", "distance"),
    )
    assert planning.members(plan, "draws") == (Member(0), Member(1))


@dataclasses.dataclass(frozen=True)
class _Measure:
    name: str = "distance"
    metrics: tuple[str, ...] = ("distance",)

    def __call__(self, view):
        return ()


# When.


whens = st.builds(
    When,
    start=st.booleans(),
    end=st.booleans(),
    every_epochs=st.integers(0, 5),
    epochs=st.lists(st.integers(0, 12), max_size=3).map(tuple),
    per_decade=st.integers(0, 4),
)


@given(whens, st.integers(0, 10), st.integers(1, 7))
def test_when(when, epochs, per_epoch):
    total = epochs * per_epoch
    due = when.steps(total, per_epoch)
    assert all(0 <= step <= total for step in due)
    assert not when.start or 0 in due
    assert not when.end or total in due
    for step in range(total + 1):
        epoch, within = divmod(step, per_epoch)
        reasons = (
            (when.start or when.per_decade > 0) and step == 0,
            when.end and step == total,
            bool(when.every_epochs) and not within and epoch and not epoch % when.every_epochs,
            not within and epoch in when.epochs,
            _is_power(step, when.per_decade),
        )
        assert (step in due) == any(reasons), (step, reasons)


def _is_power(step, per_decade):
    if not per_decade or not step:
        return False
    near = per_decade * math.log10(step)
    return any(round(10 ** (i / per_decade)) == step for i in range(int(near) - 3, int(near) + 5))


@given(whens, st.integers(1, 10), st.integers(1, 7))
def test_a_longer_training_moves_only_the_end(when, epochs, per_epoch):
    """What is due on the way does not depend on when it ends."""
    when = dataclasses.replace(when, end=False)
    short, long = when.steps(epochs * per_epoch, per_epoch), when.steps(10**3, per_epoch)
    assert short == {step for step in long if step <= epochs * per_epoch}


# Best.


def best_of(rule, found):
    """Which of some values the rule chooses, one after the other; None: none of them."""
    place, value = None, math.nan
    for i, new in enumerate(found):
        if rule.better(new, value):
            place, value = i, new
    return place


numbers = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), max_size=8)


@given(numbers, st.sampled_from(["least", "most"]))
def test_best_is_the_first_of_the_extreme(found, direction):
    sound = [x for x in found if not math.isnan(x)]
    extreme = (min if direction == "least" else max)(sound, default=None)
    expected = found.index(extreme) if sound else None
    assert best_of(Best("test/nll", direction), found) == expected


@given(numbers, st.sampled_from(["least", "most"]), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_a_target_is_the_first_that_reaches_it(found, direction, target):
    reached = [
        i for i, x in enumerate(found) if (x <= target if direction == "least" else x >= target)
    ]
    rule = Best("test/nll", direction, target)
    expected = reached[0] if reached else best_of(rule._replace(target=None), found)
    assert best_of(rule, found) == expected


@pytest.mark.parametrize(("direction", "target"), [("most", 0.9), ("least", 0.3)])
def test_a_target_is_reached_by_the_float32_number_nearest_to_it(direction, target):
    """Float32(0.9) is below 0.9, and float32(0.3) above 0.3."""
    value, sign = float(np.float32(target)), 1 if direction == "most" else -1
    assert sign * (value - target) < 0
    rule = Best("test/accuracy", direction, target)
    assert best_of(rule, [value - sign / 8, value, value + sign / 16]) == 1


# What is refused, in one line.

TABLE = data.Modular("+", 7, 0.8)
ADAM = OptimizerSpec("adam", 0.1)


class _Untested(data.Modular):
    num_test = 0  # pyright: ignore[reportAssignmentType,reportIncompatibleMethodOverride]


def refused(*stages, **specs):
    with pytest.raises(UserError) as error:
        planning.check(a_plan(*stages, **specs))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_that_are_there_twice():
    assert "two stages are called 'a'" in refused(an_arm("a"), an_arm("a"))
    assert "called 'a'" in refused(an_arm("a"), Compare("a", ("a",), ()))
    assert "two members '3'" in refused(an_arm("a", (3, 3)))
    copies = (of(copy=1), of(copy=1))
    made = Derive("made", "a", as_is, (), outputs=copies)
    assert "two members '0-copy=1'" in refused(an_arm("a"), made)
    assert "two evaluators 'outputs'" in refused(an_arm("a", evaluators=[Outputs(END)] * 2))
    tests = [SplitMetrics(32, 5, END), Outputs(END), _Named("more", ("test/nll",))]
    assert "two metrics 'test/nll'" in refused(an_arm("a", evaluators=tests))
    copy = an_arm("a", [Member(0, of(copy=1))])
    made = Derive("made", "a", as_is, (), outputs=COPIES)
    assert "two coordinates of one member, 'copy'" in refused(copy, made)
    # Values that one file name could not tell apart.
    like = [Member(0, of(p=p)) for p in ("0.5", "0_5")]
    assert "two members '0-p=0_5'" in refused(an_arm("a", like))


@dataclasses.dataclass(frozen=True)
class _Named:
    name: str
    metrics: tuple[str, ...]
    kind: str = "evaluation"
    when: When = END


def test_what_is_not_there():
    assert "unknown arm, read by 'b', 'teh'; did you mean 'the'?" in refused(
        an_arm("the"), after("b", "teh")
    )
    assert "unknown arm, read by 'made', 'x'" in refused(Derive("made", "x", as_is, ()))
    assert "read by 'pairs', 'x'" in refused(Compare("pairs", ("x",), ()))
    # One that an arm reads by way of a derived one, named later.
    assert "read by 'made', 'x'" in refused(after("b", "made"), Derive("made", "x", as_is, ()))
    assert "unknown data of arm 'a' 'squares'" in refused(an_arm("a", data="squares"))
    assert "arm 'a' has no members" in refused(an_arm("a", ()))
    other = an_arm("b", [Member(0, start=Ref("a", 7))])
    assert "reads 'end' of 'a', member 7; it has 0, 1" in refused(an_arm("a"), other)
    made = Derive("made", "a", as_is, (), outputs=COPIES)
    lost = an_arm("b", [Member(0, start=Ref("made", 0, of(copy=3)))])
    assert "member 0-copy=3; it has 0-copy=1, 0-copy=2, 1-" in refused(an_arm("a"), made, lost)
    assert "plan: arm 'a': epochs must be a whole number >= 0" in refused(an_arm("a", epochs=-1))
    assert "checkpoint_epochs must be" in refused(an_arm("a", checkpoint_epochs=0))


def test_circles():
    assert "in a circle: 'a' reads 'b', 'b' reads 'a'" in refused(after("a", "b"), after("b", "a"))
    assert "'a' reads 'a'" in refused(after("a", "a"))
    made = Derive("a", "b", as_is, ()), Derive("b", "a", as_is, ())
    assert "in a circle" in refused(*made)
    assert "in a circle" in refused(after("c", "a"), *made)


def test_what_is_drawn_has_no_models():
    words = "reads 'draws', an arm that is drawn and has no models"
    assert words in refused(a_draw(), Derive("made", "draws", as_is, ()))
    assert words in refused(a_draw(), after("a", "draws"))
    assert words in refused(a_draw(), taught("a", "draws"))
    planning.check(a_plan(a_draw(), Compare("rows", ("draws",), ())))


def test_states_that_are_not_kept():
    some = Snapshots(When(epochs=(1,)))
    for what in (lambda at: after("b", "a", at), lambda at: Derive("b", "a", as_is, (), at=at)):
        assert "no rule for its best state; give Train.best" in refused(an_arm("a"), what("best"))
        assert "snapshots of steps: none; see Train.snapshots" in refused(an_arm("a"), what(4))
        assert "snapshots of steps: 4, 8" in refused(an_arm("a", snapshots=some), what(5))
        assert "reads 'middle' of 'a', which has 'start'" in refused(an_arm("a"), what("middle"))
        planning.check(a_plan(an_arm("a", snapshots=some), what(4)))
        planning.check(a_plan(an_arm("a", best=Best("test/nll", "least")), what("best")))
    made = Derive("made", "a", as_is, ())
    for at in ("start", "best", 4):
        for reader in (after("b", "made", at), Derive("b", "made", as_is, (), at=at)):
            assert "was never trained; it has 'end' alone" in refused(an_arm("a"), made, reader)
    unknown = refused(an_arm("a", best=Best("test/nnl", "least")))
    assert "metric of the best state of arm 'a' 'test/nnl'; did you mean 'test/nll'?" in unknown


@pytest.mark.parametrize("metric", ["test/nll", "train/loss"])
def test_a_best_state_needs_a_metric_that_is_measured(metric):
    """Never measured, all values would be missing, and the best state the one before training."""
    best, never = Best(metric, "least"), When(end=False, epochs=(10**6,))
    evaluators = (SplitMetrics(32, 5, never),)
    words = f"chosen by '{metric}', which is not measured at any step"
    for rows in (never, When(start=True, end=False)):
        assert words in refused(an_arm("a", best=best, evaluators=evaluators, rows=rows))
    planning.check(a_plan(an_arm("a", best=best)))
    planning.check(a_plan(an_arm("a", best=best, epochs=0)))


def test_models_that_do_not_fit():
    wide = an_arm("wide", step=a_step(width=6))
    assert "starts from 'wide', whose model is another" in refused(wide, after("b", "wide"))
    masked = an_arm("b", [Member(0, mask=Ref("wide", 0))])
    assert "whose model is another" in refused(wide, masked)
    planning.check(a_plan(wide, taught("student", "wide")))
    model = dataclasses.replace(a_step().model, num_classes=10)
    digits = an_arm("ten", data="digits", step=a_step(model=model))
    words = refused(digits, taught("two", "ten"), digits=data.Images("digits"))
    assert "arm 'two' has 2 classes of inputs (2,), and its teacher 'ten' has 10 of" in words
    both = an_arm("b", [Member(s, teacher=Teacher("model", (Ref(n, s),)))
                        for s, n in ((0, "a"), (1, "wide"))])  # fmt: skip
    assert "teachers of several models" in refused(an_arm("a"), wide, both)


def test_teachers_that_cannot_be():
    lonely = an_arm("b", [Member(0, teacher=Teacher("model"))])
    assert "a teacher of kind 'model' has 1 models, not 0" in refused(lonely)
    noise = an_arm("b", [Member(0, teacher=Teacher("gaussian", (Ref("a", 0),)))])
    assert "has 0 models, not 1" in refused(an_arm("a"), noise)
    assert "ensemble' has one model or more, not 0" in refused(
        an_arm("b", [Member(0, teacher=Teacher("ensemble"))])
    )
    some = an_arm("b", [Member(0), Member(1, teacher=Teacher("uniform"))])
    assert "has members with masks or teachers of several kinds" in refused(some)


@pytest.mark.parametrize(
    ("evaluator", "split"),
    [
        (Curvature(END, 33, 0.1, 1, 0.1, 1, 0.1, 1), "train"),
        (Sharpness(END, 32, first=1), "train"),
        (AuthorsSharpness(END, 3, first=30), "train"),
        (Landscape(END, 33), "train"),
        (LayerCurvature(END, ("head",), 33, 1, 1, 0.1, 1), "train"),
        (LayerNoise(END, ("head",), 33, 0.1, 1), "train"),
        (Preserved(END, (), (), 33), "train"),
        (Corrupted(END, 33), "test"),
        (Replaced(END, "initial", ("head",), (), (2,), 33, 0.1), "test"),
    ],
)
def test_examples_that_the_data_do_not_have(evaluator, split):
    """The circles have 32 examples in each split."""
    words = f"'{evaluator.name}' measures {split} examples up to number 33, and its data have 32"
    assert words in refused(an_arm("a", evaluators=[evaluator]))
    assert words in refused(an_arm("a"), Derive("b", "a", as_is, (evaluator,)))
    enough = dataclasses.replace(evaluator, num_examples=evaluator.num_examples - 1)
    planning.check(a_plan(an_arm("a", evaluators=[enough])))


def test_what_a_step_cannot_train_on():
    epochs = Epochs(a_step().model, ADAM, 8)
    student = taught("student", "a", step=epochs)
    assert "by whole epochs, and these take no teacher and no mask" in refused(an_arm("a"), student)
    masked = an_arm("b", [Member(0, mask=Ref("a", 0))], step=epochs)
    assert "take no teacher and no mask" in refused(an_arm("a"), masked)
    drops = dataclasses.replace(epochs, model=dataclasses.replace(epochs.model, dropout=0.5))
    sam = dataclasses.replace(epochs, optimizer=dataclasses.replace(ADAM, rho=0.1))
    for step in (drops, sam):
        assert "know neither dropout nor SAM" in refused(an_arm("a", step=step))
    images = an_arm("a", data="digits", step=epochs)
    assert "normalise no images" in refused(images, digits=data.Images("digits"))
    surface = an_arm("a", data="plane", step=epochs)
    assert "fit no targets" in refused(surface, plane=data.Surface("sphere", num_train=8))
    assert "its data are of each seed" in refused(an_arm("a", data="numbers"), numbers=TABLE)
    assert "has batches of 64, and 32 training examples" in refused(
        an_arm("a", step=a_step(batch_size=64))
    )
    numbers = an_arm("a", data="numbers", step=epochs, evaluators=())
    assert "have no test examples" in refused(numbers, numbers=_Untested("+", 7, 0.8))
    planning.check(a_plan(numbers, numbers=TABLE))


def other(role, name="b", seed=0, **fields):
    return an_arm(name, [Member(seed, streams=((role, (9, role)),))], **fields)


def test_two_models_that_are_one():
    one = an_arm("a", (0,))
    words = "the same model: same start, order, data and step. Give them other streams, or say"
    assert words in refused(one, an_arm("b", (0,)))
    assert "b 0 and a 0 are the same" in refused(one, an_arm("b", (0,), evaluators=()))
    for declared in ((True, False), (False, True)):
        arms = [an_arm(n, (0,), repeats=x) for n, x in zip("ab", declared, strict=True)]
        planning.check(a_plan(*arms))
    # What makes another model of it.
    others = (
        an_arm("b", (1,)),
        an_arm("b", (0,), epochs=3),
        an_arm("b", (0,), step=a_step(rate=0.2)),
        other("init"),
        other("order"),
        an_arm("b", [Member(0, teacher=Teacher("uniform"))]),
        an_arm("b", [Member(0, mask=Ref("a", 0))]),
        an_arm("b", [Member(0, start=Ref("a", 0))]),
    )
    for arm in others:
        planning.check(a_plan(one, arm))
    # A stream that the step does not draw from makes none, nor another name.
    assert words in refused(one, other("augmentation"))
    assert words in refused(one, other("dropout")) and words in refused(one, other("teacher"))
    assert words in refused(one, an_arm("b", [Member(0, of(copy=1))]))
    same = data.Circles(num_train=32)
    assert words in refused(one, an_arm("b", (0,), data="again"), again=same)
    padded = [dataclasses.replace(a, step=a_step(pad=1)) for a in (one, other("augmentation"))]
    planning.check(a_plan(*padded))


def test_two_models_that_are_one_by_way_of_their_start():
    """Students of a start that the teacher had are the teacher, if they see its order."""
    one, words = an_arm("a", (0,)), "are the same model"
    same = an_arm("b", [Member(0, start=Ref("a", 0, at="start"))])
    assert words in refused(one, same)
    # Seed 1, in the order of seed 0 and from its start.
    order = ("order", (0, "order"))
    assert words in refused(one, an_arm("b", [Member(1, (), (order,), Ref("a", 0, at="start"))]))
    planning.check(a_plan(one, an_arm("b", [Member(1, start=Ref("a", 0, at="start"))])))
    further = an_arm("c", [Member(0, start=Ref("b", 0, at="start"))], repeats=True)
    assert words in refused(one, dataclasses.replace(same, step=a_step(rate=0.2)),
                            dataclasses.replace(further, repeats=False))  # fmt: skip


def test_data_of_each_seed_make_models_of_their_own():
    step = Epochs(a_step().model, ADAM, 8)
    streams = (("init", (0, "init")), ("order", (0, "order")))
    members = [Member(seed, streams=streams) for seed in (0, 1)]
    arm = an_arm("a", members, data="numbers", step=step, evaluators=())
    planning.check(a_plan(arm, numbers=TABLE))
    assert "are the same model" in refused(dataclasses.replace(arm, data="circles"))


@dataclasses.dataclass(frozen=True)
class Own:
    """A measure that reads rows alone."""

    name: str = "own"
    metrics: tuple[str, ...] = ("test/own",)
    reference: str = "a"

    def __call__(self, view):
        return ()


def test_mistakes_that_would_show_after_training():
    within = Within("test/disagreement", disagreement, ("a",))
    stored = an_arm("a", evaluators=with_outputs())
    planning.check(a_plan(stored, Compare("pairs", ("a",), (within,))))
    assert "looks at arm 'a', which it does not read" in refused(
        stored, an_arm("b", (2, 3)), Compare("pairs", ("b",), (within,))
    )
    to = ToReference("test/to_a", disagreement, ("b",), reference="a")
    others = an_arm("b", (2, 3), evaluators=with_outputs())
    assert "looks at arm 'a', which" in refused(stored, others, Compare("pairs", ("b",), (to,)))
    elsewhere = dataclasses.replace(others, data="more")
    words = refused(
        stored, elsewhere, Compare("pairs", ("a", "b"), (to,)), more=data.Images("digits")
    )
    assert "arm 'b' has 360 inputs [8, 8, 1] of 10 classes in the split 'test', 'a' " in words
    # A split that no data have is named where it is read; a measure of another make has none.
    odd = dataclasses.replace(to, split="dev")
    planning.check(a_plan(stored, others, Compare("pairs", ("a", "b"), (odd,))))
    planning.check(a_plan(stored, others, Compare("pairs", ("a", "b"), (Own(),))))
    words = refused(an_arm("a"), Compare("pairs", ("a",), (within,)))
    assert "evaluator that test/disagreement reads in arm 'a', 'outputs'" in words
    again = Compare("again", ("a",), (within,))
    words = refused(stored, Compare("pairs", ("a",), (within,)), again)
    assert "arm 'a' has two metrics 'test/disagreement'" in words
    validated = SplitMetrics(32, 5, EACH, split="validation")
    assert "its data have no split 'validation'" in refused(an_arm("a", evaluators=[validated]))
    made = Derive("made", "a", as_is, (validated,))
    assert "arm 'made': its data have no split" in refused(an_arm("a"), made)


def test_words_that_mean_nothing():
    best = an_arm("a", best=Best("test/nll", "min"))  # pyright: ignore[reportArgumentType]
    assert "unknown direction of arm 'a' 'min'" in refused(best)
    typo = an_arm("a", [Member(0, streams=(("ordr", (0, "other")),))])
    assert "role of a stream of arm 'a' 'ordr'; did you mean 'order'?" in refused(typo)
    for name in ("", "..", "a/b", "a b"):
        assert f"'{name}' names a folder" in refused(an_arm(name))
        assert f"'{name}' names a folder" in refused(an_arm("a"), Compare(name, ("a",), ()))


def test_inputs_of_another_size():
    small = an_arm("small", data="small", step=a_step(model=nn.build("mlp", num_classes=10)))
    large = dataclasses.replace(small, arm="large", data="large")
    specs = {"small": data.Images("digits", image_size=4), "large": data.Images("digits")}
    starts = dataclasses.replace(small, arm="b", members=(Member(0, start=Ref("large", 0)),))
    assert "((8, 8, 1), MLP" in refused(large, starts, **specs)
    member = Member(0, teacher=Teacher("model", (Ref("large", 0),)))
    learns = dataclasses.replace(small, arm="b", members=(member,))
    assert "inputs (4, 4, 1), and its teacher 'large' has 10" in refused(large, learns, **specs)


def test_what_targets_do_not_have():
    surface = data.Surface("rastrigin")
    step = a_step(model=nn.build("mlp", num_classes=1, width=4))
    plain = an_arm("a", data="surface", step=step, evaluators=())
    planning.check(a_plan(plain, surface=surface))
    smooth = dataclasses.replace(plain, step=dataclasses.replace(step, label_smoothing=0.1))
    assert "its data have targets" in refused(smooth, surface=surface)
    taught = dataclasses.replace(plain, members=(Member(0, teacher=Teacher("uniform")),))
    assert "its data have targets" in refused(taught, surface=surface)
