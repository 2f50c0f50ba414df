"""Whole epochs as one program: the numbers of a plain loop, and what stops a seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import data as sets
from sharpjax import tree, workdir
from sharpjax.data import Examples
from sharpjax.driver import interrupt
from sharpjax.errors import RunFailed
from sharpjax.nn.svd import Decomposition
from sharpjax.nn.tokens import TokenMLP
from sharpjax.optim import OptimizerSpec
from sharpjax.train import epochs, planning, population
from sharpjax.train.epochs import Epochs
from sharpjax.train.plan import Member, Plan, Ref, Snapshots, Train, When
from sharpjax.train.results import Results, exact, of
from sharpjax.train.streams import stream
from tests import plans
from tests.plans import Nervous, files, rows

OPTIMIZER = OptimizerSpec("adamw", 1e-3, momentum=0.9, b2=0.98, weight_decay=0.01)
FAST = dataclasses.replace(OPTIMIZER, learning_rate=0.03)
TOKENS = jnp.zeros((1, 4), jnp.int32)


def a_model(decompose=None, dtype=jnp.float32):
    return TokenMLP(num_classes=9, width=24, features=12, decompose=decompose, dtype=dtype)


def an_epoch(optimizer=OPTIMIZER, batch_size=16, **changes):
    return Epochs(a_model(), optimizer, batch_size, **changes)


@dataclasses.dataclass(frozen=True)
class Modular(sets.Modular):
    """40 of the 49 pairs modulo 7: two whole batches of 16, and one of 8.

    `tested` on the same, a seed generalises soon. A label that is no class has no cross-entropy:
    those of `poisoned` are none.
    """

    operation: str = "+"
    modulus: int = 7
    train_fraction: float = 0.8
    tested: bool = False
    poisoned: int = -1

    def load(self, key=None):
        found = super().load(key)
        train, test = found.splits.train, found.splits.test
        if self.poisoned >= 0 and (key == stream(self.poisoned, "split")).all():
            train = train._replace(label=train.label + 100)
        return dataclasses.replace(found, splits=sets.Splits(train, train if self.tested else test))


def a_split(seed=0, fraction=0.8, **changes):
    spec = Modular(train_fraction=fraction, **changes)
    return sets.on_device(spec.load(jax.random.key(seed)))


def memory(seed=0):
    return a_split(seed, tested=True)


def advance(step, learner, data, num_epochs, key=0, lanes=False, **options):
    key = jax.random.key(key) if isinstance(key, int) else key
    return epochs.advance(step, learner, data, key, num_epochs=num_epochs, lanes=lanes, **options)


@jax.jit
def _draw(key):
    return a_model().init(key, TOKENS)["params"]


def start(step, data, seed=1):
    """Of float32 weights, whatever the model computes in."""
    return step.begin(_draw(jax.random.key(seed)), {})


def same(a, b):
    return tree.digest(a) == tree.digest(b)


# One epoch.


def test_a_plain_loop_finds_the_same(x64):
    """Batch by batch, each example once, the last batch as short as it comes."""
    model, data = a_model(dtype=jnp.float64), a_split()
    step = Epochs(model, OPTIMIZER, 16, "float64")
    learner = start(step, data)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), learner.params)
    transform = OPTIMIZER.build()
    learner = dataclasses.replace(learner, params=params, opt_state=transform.init(params))
    after, curves = advance(step, learner, data, 3)
    opt_state, key = transform.init(params), jax.random.key(0)

    @jax.jit
    def loss_fn(params, inputs, label):
        logits = model.apply({"params": params}, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return jnp.mean(losses), jnp.mean(jnp.argmax(logits, 1) == label)

    @jax.jit
    def update(params, opt_state, inputs, label):
        found, grads = jax.value_and_grad(loss_fn, has_aux=True)(params, inputs, label)
        updates, opt_state = transform.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, found

    for epoch in range(3):
        bits = np.asarray(jax.random.bits(jax.random.fold_in(key, epoch), (40,), jnp.uint32))
        order, losses, right = np.argsort(bits >> 6, stable=True), [], []
        for index in (order[:16], order[16:32], order[32:]):
            batch = data.train.input[index], data.train.label[index]
            params, opt_state, (loss, accuracy) = update(params, opt_state, *batch)
            losses.append(loss * len(index))
            right.append(accuracy * len(index))
        test_loss, test_accuracy = loss_fn(params, *data.test[:2])
        expected = (sum(losses) / 40, sum(right) / 40, test_loss, test_accuracy)
        found = [curve[epoch] for curve in curves]
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
    assert all(np.isnan(curve[3:]).all() for curve in curves)


def test_batches_hold_every_example_once(strict):
    step = an_epoch()
    index, here = step.batches(jax.random.key(0), jnp.int32(0), 40)
    assert index.shape == here.shape == (3, 16) and here.sum() == 40
    assert sorted(np.asarray(index)[np.asarray(here)].tolist()) == list(range(40))
    other, _ = step.batches(jax.random.key(0), jnp.int32(1), 40)
    assert not np.array_equal(index, other)
    whole, all_here = an_epoch(batch_size=20).batches(jax.random.key(0), jnp.int32(0), 40)
    assert whole.shape == (2, 20) and all_here.all()
    assert np.array_equal(np.ravel(whole), np.ravel(index)[:40])


@pytest.mark.parametrize("count", [1, 2, 1000, 20_000])
def test_orders_are_permutations_and_even(count, strict):
    shuffle = jax.jit(jax.vmap(lambda key: epochs._shuffled(key, count)))
    orders = np.asarray(shuffle(jax.random.split(jax.random.key(0), 200)))
    assert (np.sort(orders, axis=1) == np.arange(count)).all()
    if count > 2:
        assert len(np.unique(orders, axis=0)) == 200
        # Where the first number lands, in tenths: 20 each, chi squared of 9.
        place = np.argmax(orders == 0, axis=1) * 10 // count
        assert ((np.bincount(place, minlength=10) - 20) ** 2 / 20).sum() < 27.9  # p = .001


def test_equal_logits_are_not_right():
    """A model that says the same of all classes knows nothing."""
    step = dataclasses.replace(an_epoch(), model=_Fixed())
    logits = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, jnp.nan], [3.0, 4.0]])
    _, right = step._measure({}, logits, jnp.array([0, 1, 0, 1, 1], jnp.int32))
    assert right.tolist() == [False, False, True, False, True]


def test_float64_changes_the_loss_and_no_type():
    """Where every example is right by far, float32 rounds the loss, and its gradient, to 0."""
    data, single = memory(), an_epoch()
    double = dataclasses.replace(single, loss_dtype="float64")
    learner = start(single, data)
    a, one = advance(single, learner, data, 2)
    b, other = advance(double, learner, data, 2)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)
    np.testing.assert_allclose(one.test_loss[:2], other.test_loss[:2], rtol=1e-5)
    table = jnp.full((9, 9), -30.0).at[jnp.arange(9), jnp.arange(9)].set(0.0)
    for step, loss in ((single, 0), (double, 7.486e-13)):
        with jax.enable_x64(step.loss_dtype == "float64"):
            step = dataclasses.replace(step, model=_Fixed())
            found = step._measure({}, table, jnp.arange(9, dtype=jnp.int32))
        losses, right = map(np.asarray, found)
        # Of margins of 30 the loss is log(1 + 8 exp(-30)) = 7.5e-13.
        np.testing.assert_allclose(losses, loss, rtol=1e-2)
        assert right.all()


class _Fixed:
    """Its input is its output."""

    def apply(self, variables, inputs):
        return inputs


# Many epochs.


def test_segments_add_up_and_compile_once(compilations):
    step, data = an_epoch(), a_split()
    learner = start(step, data)
    whole, curves = advance(step, learner, data, 7)
    compilations.clear()
    part, first = advance(an_epoch(), learner, data, 3)
    part, second = advance(an_epoch(), part, a_split(), 4)
    assert not compilations
    assert same(part, whole)
    joined = [np.concatenate([a[:3], b[:4]]) for a, b in zip(first, second, strict=True)]
    assert all(np.array_equal(a, b[:7]) for a, b in zip(joined, curves, strict=True))
    with pytest.raises(ValueError, match="at most"):
        advance(step, learner, data, epochs.MOST_EPOCHS + 1)


# Training and test examples of the paper's tasks, and 41: 1/n rounds so that n (1/n) < 1 of some.
COUNTS = (4705, 6116, 7528, 4704, 3293, 1881, 2245, 2918, 3592, 2244, 1571, 897, 41)


@pytest.mark.parametrize("count", COUNTS)
def test_all_right_is_exactly_1_and_one_wrong_is_not(count):
    right = jnp.ones(count, bool)
    accuracy = jax.jit(epochs._accuracy, static_argnums=1)
    assert accuracy(right, count) == 1
    assert accuracy(right.at[3].set(False), count) < 1


def test_a_seed_stops_with_any_number_of_test_examples():
    """41 of them, where the quotient alone would be 0.99999994 for good."""
    data = memory()
    more = Examples(*(jnp.concatenate([x, x[:1]]) for x in data.test[:2]))
    data = data._replace(test=more)
    step = an_epoch(FAST)
    learner, _ = advance(step, start(step, data), data, 200)
    assert len(more.label) == 41 and learner.tally.best == 1 and learner.tally.epoch < 200


def test_a_seed_ends_at_its_first_full_test_accuracy():
    step, data = an_epoch(FAST), memory()
    learner, curves = advance(step, start(step, data), data, 200)
    last, tally = int(learner.tally.epoch), learner.tally
    assert 1 < last < 200 and tally.best == 1 and tally.best_epoch == last
    accuracy = np.asarray(curves.test_accuracy)
    assert accuracy[last - 1] == 1 and (accuracy[: last - 1] < 1).all()
    assert np.isnan(accuracy[last:]).all()
    again, nothing = advance(step, learner, data, 5)
    assert same(again, learner) and np.isnan(nothing.train_loss).all()


def test_one_that_is_to_see_all_epochs_goes_on():
    """With the same numbers as far as the other one goes, alone and in lanes."""
    step, data = an_epoch(FAST), memory()
    ended, short = advance(step, start(step, data), data, 200)
    last = int(ended.tally.epoch)
    further = dataclasses.replace(step, all_epochs=True)
    learner, curves = advance(further, start(step, data), data, last + 5)
    assert learner.tally.epoch == last + 5 and learner.tally.best_epoch == last
    assert np.array_equal(curves.test_accuracy[:last], short.test_accuracy[:last])
    assert np.isfinite(curves.train_loss[: last + 5]).all()
    lanes = tree.stack([(start(step, data), data, jax.random.key(0))])
    together, _ = advance(further, *lanes[:2], last + 5, key=lanes[2], lanes=True)
    assert together.tally.epoch.tolist() == [last + 5]


def test_what_is_remembered_of_an_unfinished_seed():
    """The first epoch of the best, not the last; of full training accuracy the first."""
    step, data = an_epoch(FAST), a_split(fraction=0.5)
    learner, curves = advance(step, start(step, data), data, 120)
    test, train = np.asarray(curves.test_accuracy)[:120], np.asarray(curves.train_accuracy)[:120]
    tally = learner.tally
    assert tally.epoch == 120 and tally.best == test.max() < 1
    assert tally.best_epoch == 1 + np.argmax(test)
    assert tally.fitted_epoch == 1 + np.argmax(train == 1) and train.max() == 1
    assert tuple(start(step, data).tally) == (0, -1, 0, 0)


def several(step, seeds, data_of=a_split):
    data = [data_of(seed) for seed in seeds]
    return [start(step, own, seed) for seed, own in zip(seeds, data, strict=True)], data


def test_lanes_are_the_seeds_one_by_one():
    step = an_epoch(FAST)
    learners, data = several(step, (0, 1, 2), memory)
    keys = [jax.random.key(seed) for seed in (0, 1, 2)]
    together, curves = advance(
        step, *map(tree.stack, (learners, data)), 40, key=jnp.stack(keys), lanes=True
    )
    ends = set()
    for i, (learner, own, key) in enumerate(zip(learners, data, keys, strict=True)):
        alone, one = advance(step, learner, own, 40, key=key)
        lane = tree.index(together, i)
        ends.add(int(alone.tally.epoch))
        for name in ("epoch", "best_epoch"):
            assert getattr(lane.tally, name) == getattr(alone.tally, name)
        np.testing.assert_allclose(curves.test_loss[i], one.test_loss, rtol=2e-3)
        for a, b in zip(jax.tree.leaves(lane.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert len(ends) > 1, "all ended together, so nothing was seen of waiting"


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_seed_that_blows_up_is_frozen_and_one_that_is_done_waits(mode):
    step = an_epoch()
    learners, data = several(step, (0, 1, 2))
    huge = jax.tree.map(lambda x: x * 1e30, learners[1].params)
    learners[1] = dataclasses.replace(learners[1], params=huge)
    # What is done is not looked at any more: not even its weights.
    done = learners[2].tally._replace(best=jnp.float32(1))
    learners[2] = dataclasses.replace(learners[2], params=huge, tally=done)
    layout = step.layout(mode, None, 3)
    loop = step.loop(tuple(map(Member, (0, 1, 2))), (), data, layout)
    states = population.gather(learners, layout)
    step_after, after, curves = loop.advance(0, 3, states, loop.record(5))
    ended = population.members(after, layout)
    assert step_after == 3
    assert [bool(x.alive) for x in ended] == [True, False, True]
    assert [int(x.stopped_at) for x in ended] == [-1, 0, -1]
    assert [int(x.tally.epoch) for x in ended] == [3, 0, 0]
    assert same(ended[1].params, huge) and same(ended[1].opt_state, learners[1].opt_state)
    assert np.isnan(curves.test_loss[1:]).all() and np.isfinite(curves.test_loss[0, :3]).all()


# An arm, with its files.


@dataclasses.dataclass(frozen=True)
class Norm:
    """The norm of all parameters, how often it was asked, and a draw."""

    when: When = When(epochs=(0, 4, 10))
    name: str = "norm"
    kind: str = "geometry"
    metrics: tuple[str, ...] = ("weights/norm", "norm/count", "norm/draw")

    def init(self, subject, data):
        return {"count": jnp.zeros((), jnp.int32)}

    def __call__(self, carry, subject, data, key):
        params, carry = subject.state.params, {"count": carry["count"] + 1}
        found = {"weights/norm": tree.norm(params), "norm/count": carry["count"],
                 "norm/draw": jax.random.uniform(key)}  # fmt: skip
        bias = params["head"]["bias"]
        estimates = {(n, ()): exact(x) for n, x in found.items()}
        estimates["weights/norm", of(layer="head/bias")] = exact(tree.norm(bias))
        return carry, Results(estimates, {"bias": np.asarray(bias)})


def an_arm(mode="loop", seeds=(3, 4), epochs=30, optimizer=FAST, measured=(0, 4, 10), **changes):
    model = a_model(Decomposition(0.5))
    arm = Train(
        arm="arm",
        members=tuple(map(Member, seeds)),
        data="numbers",
        step=Epochs(model, optimizer, 16),
        epochs=epochs,
        checkpoint_epochs=7,
        evaluators=(Norm(When(epochs=measured)),),
        rows=When(epochs=measured),
        population=mode,
    )
    return dataclasses.replace(arm, **changes)


def train(arm, folder, signals=None, say=lambda line: None, spec=Modular(), further=()):  # noqa: B008
    """What it returns; the folder is sealed if it came to the end."""
    plan = Plan({"numbers": spec}, (arm, *further))
    return plans.run(plan, folder, signals, say)[arm.arm]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(an_arm(), folder), folder


def test_rows_of_an_arm(whole):
    outcome, folder = whole
    table = rows(folder)
    assert {row["step"] for row in table} == {0, 4, 10, 30}
    value = {(r["seed"], r["step"], r["metric"], *r["of"].values()): r["value"] for r in table}
    with np.load(folder / "arrays" / "arm" / "30" / "curves.npz") as found:
        curves = dict(found)
    for seed in (3, 4):
        test, train = (curves[f"{seed}.{split}_accuracy"] for split in ("test", "train"))
        assert len(test) == len(train) == outcome["epochs"][str(seed)]
        assert value[seed, 4, "test/accuracy"] == test[3]
        assert value[seed, 30, "test/accuracy"] == test[-1]
        assert value[seed, 30, "train/accuracy"] == train[-1]
        assert value[seed, 10, "train/loss"] == curves[f"{seed}.train_loss"][9]
        assert value[seed, 30, "train/alive"] == 1
        assert [value[seed, e, "norm/count"] for e in (0, 4, 10, 30)] == [1, 2, 3, 4]
        assert 0 == value[seed, 0, "weights/norm", "head/bias"] < value[seed, 0, "weights/norm"]
        assert len({value[seed, e, "norm/draw"] for e in (0, 4, 10)}) == 3
    assert (0, "test/accuracy") not in {(r["step"], r["metric"]) for r in table}
    plan = Plan({"numbers": Modular()}, (an_arm(),))
    assert {r["metric"] for r in table} == set(planning.metrics(plan, "arm"))
    with np.load(folder / "arrays" / "arm" / "4" / "norm.npz") as arrays:
        assert arrays["3.bias"].shape == arrays["4.bias"].shape == (9,)
    assert workdir.verify(folder) == []


@pytest.mark.parametrize("checks", [0, 2, 5])
def test_a_run_that_was_stopped_ends_with_the_same_bits(whole, checks, tmp_path, monkeypatch):
    """Wherever it is stopped, and however long its segments are."""
    monkeypatch.setattr("sharpjax.driver.drive.SEGMENT_SECONDS", 0.003)
    lines = []
    with pytest.raises(interrupt.Interrupted):
        train(an_arm(), tmp_path / "run", Nervous(checks), say=lines.append)
    assert "stopped and saved" in lines[-1]
    outcome = train(an_arm(), tmp_path / "run", say=lines.append)
    assert outcome == whole[0]
    assert files(tmp_path / "run") == files(whole[1])


def test_a_run_that_was_killed_ends_with_the_same_bits(whole, tmp_path):
    """Between two checkpoints, after rows were written that the next process must drop."""

    def kill(line):
        if "epoch 10/30" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(an_arm(), tmp_path / "run", say=kill)
    assert train(an_arm(), tmp_path / "run") == whole[0]
    assert files(tmp_path / "run") == files(whole[1])


def test_lanes_on_two_devices_are_stopped_and_go_on_alike(whole, tmp_path):
    outcome = train(an_arm("vmap"), tmp_path / "whole")
    assert outcome["mesh"]["seed"] == 2 and outcome["population"] == "vmap"
    with pytest.raises(interrupt.Interrupted):
        train(an_arm("vmap"), tmp_path / "run", Nervous(4))
    assert train(an_arm("vmap"), tmp_path / "run") == outcome
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    # Rounding apart they are the seeds one by one.
    assert outcome["params_at_start"] == whole[0]["params_at_start"]
    early = [{(r["seed"], r["step"], r["metric"], str(r["of"])): r["value"]
              for r in rows(folder) if r["step"] <= 4}
             for folder in (tmp_path / "whole", whole[1])]  # fmt: skip
    assert early[0] == pytest.approx(early[1], rel=1e-3, abs=1e-4)


DONE = {"epochs": 3000, "seeds": (3, 4, 5), "checkpoint_epochs": 1000}


def test_done_seeds_end_an_arm_before_its_budget(tmp_path):
    outcome = train(an_arm(measured=(), **DONE), tmp_path / "run", spec=Modular(tested=True))
    assert max(outcome["epochs"].values()) < 500
    table = rows(tmp_path / "run")
    assert {row["step"] for row in table} == {3000}
    assert [r["value"] for r in table if r["metric"] == "test/accuracy"] == [1, 1, 1]


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_what_is_due_when_the_last_seed_ends_is_measured(mode, tmp_path):
    spec = Modular(tested=True)
    ends = train(an_arm(mode, measured=(), **DONE), tmp_path / "first", spec=spec)["epochs"]
    due = tuple(sorted(set(ends.values())))
    train(an_arm(mode, measured=due, **DONE), tmp_path / "run", spec=spec)
    found = {(r["seed"], r["step"]) for r in rows(tmp_path / "run", metric="test/accuracy")}
    expected = {(int(seed), step) for seed, end in ends.items() for step in due if step <= end}
    assert found == expected | {(int(seed), DONE["epochs"]) for seed in ends}


def test_snapshots_of_seeds_that_are_done_are_kept(tmp_path):
    """Theirs after the end is the last state, for who asks for it."""
    at = 2000
    arm = an_arm(measured=(), snapshots=Snapshots(When(epochs=(at,))), **DONE)
    step = dataclasses.replace(arm.step, batch_size=20)
    members = tuple(Member(seed, start=Ref("arm", seed, at=at)) for seed in (3, 4, 5))
    further = Train("more", members, "numbers", step, 1, 1)
    outcome = train(arm, tmp_path / "run", spec=Modular(tested=True), further=(further,))
    folder = tmp_path / "run" / "arrays" / "arm"
    for seed, epoch in outcome["epochs"].items():
        with np.load(folder / str(at) / f"state-{seed}.npz") as found:
            assert found["step"] == epoch < 500
    assert {r["step"] for r in rows(tmp_path / "run", arm="arm")} == {3000}


def test_a_run_whose_seeds_are_done_is_stopped_and_goes_on_alike(tmp_path):
    """At every third look at the clock, so that it is stopped between seeds that are done."""
    arm, spec, lines = an_arm(measured=(0, 10), **DONE), Modular(tested=True), []
    outcome = train(arm, tmp_path / "whole", spec=spec)
    again = None
    while again is None:
        try:
            again = train(arm, tmp_path / "run", Nervous(3), spec=spec, say=lines.append)
        except interrupt.Interrupted:
            assert "stopped and saved" in lines[-1]
    assert sum("going on from step" in line for line in lines) >= 2
    assert again == outcome
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_all_seeds_non_finite_is_an_error_and_one_is_not(tmp_path):
    outcome = train(an_arm(measured=(10,)), tmp_path / "one", spec=Modular(poisoned=4))
    assert outcome["stopped"] == {"4": 0} and outcome["epochs"]["3"] > 0
    table = rows(tmp_path / "one")
    own = {(row["metric"], row["value"]) for row in table if row["seed"] == 4}
    assert own == {("train/alive", 0)}
    assert ("train/alive", 1) in {(r["metric"], r["value"]) for r in table if r["seed"] == 3}
    wild = dataclasses.replace(FAST, learning_rate=1e30)
    with pytest.raises(RunFailed, match="every seed turned non-finite"):
        train(an_arm(optimizer=wild, measured=()), tmp_path / "run")


def test_data_that_seeds_share_are_the_same_numbers(tmp_path):
    """Every one of them sees the same set, in an order of its own."""
    model = plans.a_step().model
    step = dataclasses.replace(an_epoch(), model=model, batch_size=8)
    shared = plans.an_arm("epochs", step=step, evaluators=(), epochs=3)
    ran = plans.run(plans.a_plan(shared), tmp_path / "run")
    assert ran["epochs"]["epochs"] == {"0": 3, "1": 3}
    assert {r["seed"] for r in rows(tmp_path / "run", metric="test/loss")} == {0, 1}


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_an_arm_of_no_epochs_is_measured_as_drawn(mode, tmp_path):
    outcome = train(an_arm(mode, epochs=0, measured=()), tmp_path / "run")
    assert outcome["params_at_start"] == outcome["params_at_end"]
    found = {(r["metric"], r["step"]) for r in rows(tmp_path / "run")}
    assert ("norm/count", 0) in found and ("train/loss", 0) not in found
