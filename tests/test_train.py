"""One step, many models, several devices: the same numbers whichever way they run."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from sharpjax import nn, tree
from sharpjax.data import Examples, Splits
from sharpjax.driver import interrupt, progress
from sharpjax.errors import UserError
from sharpjax.optim import OptimizerSpec
from sharpjax.train import planning, population, streams
from sharpjax.train.plan import Derive, Member, Ref, When
from sharpjax.train.results import Results, exact
from sharpjax.train.steps import Beside, Steps
from tests.plans import END, a_plan, an_arm, rows, run, values


class Normalized(linen.Module):
    """BatchNorm, whose statistics must be those of the whole batch wherever its examples lie."""

    @linen.compact
    def __call__(self, image, *, train=False):
        x = linen.Dense(6)(image.reshape(image.shape[0], -1))
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return linen.Dense(10)(linen.relu(x))


SHAPE = (8, 8, 1)
EXAMPLE = jnp.zeros((1, *SHAPE))
SEEDS = (0, 1, 2, 3)


def a_step(model="mlp", width=4, batch_size=16, rate=0.05, **changes):
    optimizer = OptimizerSpec("sgd", rate, momentum=0.9, weight_decay=5e-4, rho=0.05)
    return Steps(
        model=nn.build(model, num_classes=10, width=width),
        optimizer=dataclasses.replace(optimizer, **changes),
        batch_size=batch_size,
        pad=1,
    )


@pytest.fixture
def splits(key):
    image = jax.random.randint(key, (64, *SHAPE), 0, 256).astype(jnp.uint8)
    label = jax.random.randint(key, (64,), 0, 10)
    both = Examples(image, label, None, jnp.array([0.5]), jnp.array([0.25]))
    return Splits(both, both)


def a_layout(mode, num_seeds=4, devices=1, batch_size=16):
    layout = population.lay_out(mode, num_seeds=num_seeds, batch_size=batch_size)
    if devices == 1:
        mesh = jax.sharding.Mesh(layout.mesh.devices.reshape(-1)[:1].reshape(1, 1), population.AXES)
        layout = dataclasses.replace(layout, mesh=mesh)
    return layout


def initial(step, layout, seeds=SEEDS):
    each = [step.init(EXAMPLE, streams.stream(seed, "init")) for seed in seeds]
    return population.gather(each, layout)


def train(step, splits, layout, seeds=SEEDS, num_steps=4, states=None, start=0):
    """The models after so many steps, one by one."""
    members = tuple(map(Member, seeds))
    loop = step.loop(members, [Beside()] * len(seeds), [splits] * len(seeds), layout)
    states = initial(step, layout, seeds) if states is None else states
    return population.members(loop.advance(start, num_steps, states, ())[1], layout)


def assert_close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1e-3)


@pytest.mark.parametrize("m", [0, 8])
def test_lanes_are_the_seeds_in_turn(m, splits):
    step = a_step(m=m)
    lanes = train(step, splits, a_layout("vmap"))
    turns = train(step, splits, a_layout("loop"))
    for a, b in zip(lanes, turns, strict=True):
        assert_close(a.params, b.params)
        assert_close(a.opt_state, b.opt_state)
    assert float(tree.norm(tree.add_scaled(lanes[0].params, -1.0, lanes[1].params))) > 0.1


def test_a_seed_is_the_same_in_any_company(splits):
    step, layout = a_step(), a_layout("loop")
    together = train(step, splits, layout)
    alone = train(step, splits, layout, seeds=(2,))
    assert tree.digest(together[2].params) == tree.digest(alone[0].params)


@pytest.mark.parametrize(
    ("mode", "seeds", "shape"),
    [("vmap", 4, (4, 1)), ("vmap", 2, (2, 2)), ("vmap", 3, (1, 4)), ("loop", 3, (1, 4))],
)
def test_devices_are_shared_out_and_change_no_number(mode, seeds, shape, splits):
    assert jax.device_count() == 4
    layout = a_layout(mode, num_seeds=seeds, devices=4)
    assert tuple(layout.mesh.shape.values()) == shape
    step = dataclasses.replace(a_step(), model=Normalized())
    spread = train(step, splits, layout, SEEDS[:seeds], 2)
    one = train(step, splits, a_layout(mode, num_seeds=seeds), SEEDS[:seeds], 2)
    for a, b in zip(spread, one, strict=True):
        assert_close(a.params, b.params, 1e-4)
        assert_close(a.variables, b.variables, 1e-4)


def test_devices_that_divide_nothing_stay_idle():
    layout = a_layout("vmap", num_seeds=3, devices=4, batch_size=15)
    assert layout.mesh.size == 1 and layout.batch is None


def test_auto_runs_convolutions_in_turn_on_cpu():
    conv, mlp = a_step("small_conv", width=2), a_step(width=2)
    assert conv.layout("auto", EXAMPLE, 4).mode == "loop"
    assert mlp.layout("auto", EXAMPLE, 4).mode == "vmap"
    assert conv.layout("vmap", EXAMPLE, 4).mode == "vmap"


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_seed_that_blows_up_is_frozen_and_the_others_go_on(mode, splits):
    layout, step = a_layout(mode), a_step()
    states = population.members(initial(step, layout), layout)
    # Seed 1 starts at weights whose loss overflows.
    huge = tree.scale(1e30, states[1].params)
    states[1] = dataclasses.replace(states[1], params=huge)
    before = tree.digest((states[1].params, states[1].opt_state, states[1].variables))
    gathered = population.gather(states, layout)
    # Steps 5 to 7: those of one epoch of 10 batches.
    step = dataclasses.replace(step, batch_size=6)
    after = train(step, splits, layout, num_steps=3, states=gathered, start=5)
    assert [bool(one.alive) for one in after] == [True, False, True, True]
    assert population.alive(population.gather(after, layout), layout).tolist() == [1, 0, 1, 1]
    frozen = after[1]
    assert tree.digest((frozen.params, frozen.opt_state, frozen.variables)) == before
    assert [int(one.stopped_at) for one in after] == [-1, 5, -1, -1]
    assert [int(one.tally.steps) for one in after] == [3, 0, 3, 3]
    # The others are those that they are beside a sound one.
    plain = train(step, splits, layout, num_steps=3, start=5)
    for i in (0, 2, 3):
        assert_close(after[i].params, plain[i].params)


@dataclasses.dataclass(frozen=True)
class Heard:
    """Hears which models it is shown, and how often before."""

    told: list
    when: When = When(every_epochs=1)
    name: str = "heard"
    kind: str = "listening"
    metrics: tuple[str, ...] = ("heard/times",)

    def init(self, subject, data):
        assert subject.step == 0
        return jnp.zeros((), jnp.int32)

    def __call__(self, carry, subject, data, key):
        self.told.append((subject.seed, subject.step))
        return carry + 1, Results({("heard/times", ()): exact(carry + 1)})


def overflowing(subject, key):
    """Weights whose loss overflows, of seed 2."""
    factor = 1e30 if subject.seed == 2 else 1.0
    params = tree.scale(factor, subject.state.params)
    yield (), dataclasses.replace(subject.state, params=params)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_frozen_seed_is_not_measured(mode, tmp_path):
    told, seeds = [], (0, 1, 2)
    stages = (
        an_arm("drawn", seeds, epochs=0),
        Derive("huge", "drawn", overflowing, ()),
        an_arm(
            "sgd",
            [Member(seed, start=Ref("huge", seed)) for seed in seeds],
            evaluators=(Heard(told),),
            population=mode,
        ),
    )
    outcome = run(a_plan(*stages), tmp_path / "run")["sgd"]
    assert outcome["stopped"] == {"2": 0}
    assert outcome["params_at_start"]["2"] == outcome["params_at_end"]["2"]
    assert told == [(0, 4), (1, 4), (0, 8), (1, 8)]
    table = {(r["seed"], r["step"], r["metric"]): r["value"] for r in rows(tmp_path / "run")}
    assert [table[seed, 8, "train/alive"] for seed in seeds] == [1, 1, 0]
    assert (2, 8, "train/loss") not in table and (1, 8, "train/loss") in table
    assert [table[0, step, "heard/times"] for step in (4, 8)] == [1, 2]


def test_rows_of_training_are_means_since_the_last_reading(tmp_path):
    """Read every epoch or at the end alone: the same steps."""
    arms = {"often": When(every_epochs=1), "once": END}
    run(
        a_plan(*(an_arm(n, rows=x, evaluators=(), repeats=True) for n, x in arms.items())),
        tmp_path / "run",
    )
    for name in ("train/loss", "train/accuracy"):
        often, once = (values(tmp_path / "run", arm=arm, metric=name) for arm in arms)
        assert {step for _, step in often} == {4, 8} and {step for _, step in once} == {8}
        for seed in (0, 1):
            mean = (often[seed, 4] + often[seed, 8]) / 2
            assert once[seed, 8] == pytest.approx(mean, rel=1e-6)
        assert often[0, 4] != often[0, 8]


def test_an_arm_of_no_epochs_is_measured_as_drawn(tmp_path):
    ran = run(a_plan(an_arm("untrained", epochs=0)), tmp_path / "run")
    assert ran["untrained"]["params_at_start"] == ran["untrained"]["params_at_end"]
    assert {r["step"] for r in rows(tmp_path / "run")} == {0}
    found = {r["metric"] for r in rows(tmp_path / "run")}
    assert {"test/accuracy", "train/alive"} <= found and "train/loss" not in found


def test_what_is_measured_has_been_named(tmp_path):
    """`planning.metrics` knows every row before there is one."""
    model = nn.build("mlp", num_classes=2, width=4)
    step = dataclasses.replace(a_step(m=4), model=model, pad=0, batch_size=8)
    named = a_plan(an_arm("sam", step=step), an_arm("sgd"))
    run(named, tmp_path / "run")
    for arm in ("sam", "sgd"):
        found = {r["metric"] for r in rows(tmp_path / "run", arm=arm)}
        assert found == set(planning.metrics(named, arm))
    sam, sgd = (" ".join(planning.metrics(named, arm)) for arm in ("sam", "sgd"))
    assert "train/sam/" in sam and "train/sam/" not in sgd


def test_gather_is_the_inverse_of_members():
    for mode in ("vmap", "loop"):
        layout = a_layout(mode)
        states = initial(a_step(), layout)
        again = population.gather(population.members(states, layout), layout)
        assert tree.digest(again) == tree.digest(states)


def test_streams_differ_by_seed_and_name():
    keys = [
        jax.random.key_data(streams.stream(seed, name)).tolist()
        for seed in (0, 1, 2)
        for name in ("init", "order", "augmentation", "evaluate/test")
    ]
    assert len({tuple(k) for k in keys}) == len(keys)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_beyond_32_bits_are_refused(seed):
    """Their keys are those of 2^32 - 1 and of 0."""
    with pytest.raises(UserError, match=rf"streams.stream: seed={seed}; give a whole number from"):
        streams.stream(seed, "init")
    streams.stream(2**32 - 1, "init")


def test_a_signal_waits_for_the_step_and_ends_an_evaluation():
    with interrupt.handled() as signals:
        signals.check()
        with pytest.raises(interrupt.Interrupted) as stopped, signals.abortable():
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("the evaluation went on")
        assert stopped.value.code == 128 + signal.SIGTERM
    with interrupt.handled() as signals:
        signal.raise_signal(signal.SIGINT)  # in a step: nothing happens yet
        with pytest.raises(interrupt.Interrupted) as stopped:
            signals.check()
        assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_progress_counts_work_and_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = []
    watch = progress.Progress({"training": 100, "geometry": 3}, lines.append, period=10.0)
    watch.skip({"training": 20})
    with watch.timed("training", 40):
        now[0] += 20
    watch.report("sam  step 4/8")
    # 40 gradients are left at half a second each; of geometry nothing is known yet.
    assert lines == [
        "sam  step 4/8  60% of the training, over 20s left  (training 100%, "
        "evaluation 0%, geometry 0%, checkpoints 0%)"
    ]
    with watch.timed("geometry"):
        now[0] += 60
    watch.report("sam  step 5/8")
    assert "60% of the training, 2m20s left  (training 25%, evaluation 0%, geometry 75%" in lines[1]
    watch.report("too soon")
    assert len(lines) == 2
