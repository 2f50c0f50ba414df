"""One step, many seeds, several devices: the same numbers whichever way they run."""

import dataclasses
import doctest
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from sharpjax import nn, tree
from sharpjax.estimate import Estimate
from sharpjax.optim import OptimizerSpec
from sharpjax.train import interrupt, loop, population, progress, streams
from sharpjax.train.evaluators import Data, Results
from sharpjax.train.step import Own, SeedStep, Shared


class Normalized(linen.Module):
    """BatchNorm, whose statistics must be those of the whole batch wherever its examples lie."""

    @linen.compact
    def __call__(self, image, *, train=False):
        x = linen.Dense(6)(image.reshape(image.shape[0], -1))
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return linen.Dense(10)(linen.relu(x))


SHAPE = (8, 8, 1)
SEEDS = (0, 1, 2, 3)


def a_step(model="mlp", width=4, batch_size=16, rate=0.05, **changes):
    optimizer = OptimizerSpec("sgd", rate, momentum=0.9, weight_decay=5e-4, rho=0.05)
    return SeedStep(
        model=nn.build(model, num_classes=10, width=width),
        optimizer=dataclasses.replace(optimizer, **changes),
        batch_size=batch_size,
        pad=1,
    )


@pytest.fixture
def shared(key):
    image = jax.random.randint(key, (64, *SHAPE), 0, 256).astype(jnp.uint8)
    label = jax.random.randint(key, (64,), 0, 10)
    return Shared(image, label, jnp.array([0.5]), jnp.array([0.25]))


def a_layout(mode, num_seeds=4, devices=1, batch_size=16):
    model = nn.build("mlp", num_classes=10)
    layout = population.choose_layout(
        mode, model, SHAPE, num_seeds=num_seeds, batch_size=batch_size
    )
    if devices == 1:
        mesh = jax.sharding.Mesh(layout.mesh.devices.reshape(-1)[:1].reshape(1, 1), population.AXES)
        layout = dataclasses.replace(layout, mesh=mesh)
    return layout


def own(seed):
    return Own(jax.random.permutation(streams.stream(seed, "order"), 64), jax.random.key(seed))


def train(step, shared, layout, seeds=SEEDS, num_steps=4):
    states = population.initial(seeds, step, SHAPE, layout)
    orders = population.gather([own(seed) for seed in seeds], layout)
    where = {"start": 0, "offset": 0, "num_steps": num_steps, "layout": layout}
    return population.advance(step, states, shared, orders, **where)


def assert_close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1e-3)


@pytest.mark.parametrize("module", [progress, streams])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("m", [0, 8])
def test_lanes_are_the_seeds_in_turn(m, shared):
    step = a_step(m=m)
    lanes = population.members(train(step, shared, a_layout("vmap")), a_layout("vmap"))
    turns = population.members(train(step, shared, a_layout("loop")), a_layout("loop"))
    for a, b in zip(lanes, turns, strict=True):
        assert_close(a.params, b.params)
        assert_close(a.opt_state, b.opt_state)
    assert float(tree.norm(tree.add_scaled(lanes[0].params, -1.0, lanes[1].params))) > 0.1


def test_a_seed_is_the_same_in_any_company(shared):
    step, layout = a_step(), a_layout("loop")
    together = train(step, shared, layout)
    alone = train(step, shared, layout, seeds=(2,))
    assert tree.digest(together[2].params) == tree.digest(alone[0].params)


@pytest.mark.parametrize(
    ("mode", "seeds", "shape"),
    [("vmap", 4, (4, 1)), ("vmap", 2, (2, 2)), ("vmap", 3, (1, 4)), ("loop", 3, (1, 4))],
)
def test_devices_are_shared_out_and_change_no_number(mode, seeds, shape, shared):
    assert jax.device_count() == 4
    layout = a_layout(mode, num_seeds=seeds, devices=4)
    assert tuple(layout.mesh.shape.values()) == shape
    step = dataclasses.replace(a_step(), model=Normalized())
    spread = train(
        dataclasses.replace(step, placement=layout.batch), shared, layout, SEEDS[:seeds], 2
    )
    single = a_layout(mode, num_seeds=seeds)
    one = train(step, shared, single, SEEDS[:seeds], 2)
    for a, b in zip(
        population.members(spread, layout), population.members(one, single), strict=True
    ):
        assert_close(a.params, b.params, 1e-4)
        assert_close(a.variables, b.variables, 1e-4)


def test_devices_that_divide_nothing_stay_idle():
    layout = a_layout("vmap", num_seeds=3, devices=4, batch_size=15)
    assert layout.mesh.size == 1 and layout.batch is None


def test_auto_runs_convolutions_in_turn_on_cpu():
    sizes = {"num_seeds": 4, "batch_size": 16}
    conv = nn.build("small_conv", num_classes=10, width=2)
    assert population.choose_layout("auto", conv, SHAPE, **sizes).mode == "loop"
    mlp = nn.build("mlp", num_classes=10, width=2)
    assert population.choose_layout("auto", mlp, SHAPE, **sizes).mode == "vmap"
    assert population.choose_layout("vmap", conv, SHAPE, **sizes).mode == "vmap"


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_seed_that_blows_up_is_frozen_and_the_others_go_on(mode, shared):
    layout, step = a_layout(mode), a_step()
    states = population.members(population.initial(SEEDS, step, SHAPE, layout), layout)
    # Seed 1 starts at weights whose loss overflows.
    huge = tree.scale(1e30, states[1].params)
    states[1] = dataclasses.replace(states[1], params=huge)
    before = tree.digest((states[1].params, states[1].opt_state, states[1].variables))
    orders = population.gather([own(seed) for seed in SEEDS], layout)
    after = population.advance(
        step,
        population.gather(states, layout),
        shared,
        orders,
        start=5,
        offset=0,
        num_steps=3,
        layout=layout,
    )
    assert population.alive(after, layout).tolist() == [True, False, True, True]
    members = population.members(after, layout)
    frozen = members[1]
    assert tree.digest((frozen.params, frozen.opt_state, frozen.variables)) == before
    assert [int(s.stopped_at) for s in members] == [-1, 5, -1, -1]
    assert [int(s.num_steps) for s in members] == [3, 0, 3, 3]
    plain = population.members(train(step, shared, layout), layout)
    assert bool(jnp.isfinite(members[0].loss_sum)) and len(plain) == 4


def test_a_frozen_seed_is_not_measured(shared, tmp_path):
    layout, step = a_layout("vmap"), a_step()
    states = population.members(train(step, shared, layout), layout)
    states[2] = dataclasses.replace(states[2], alive=jnp.zeros((), bool))
    measured = []

    @dataclasses.dataclass(frozen=True)
    class Count:
        name = kind = "evaluation"
        every_epochs = 1

        def init(self, state):
            return ()

        def __call__(self, carry, state, split, key):
            measured.append(float(state.loss_sum))
            return carry, Results({"test/accuracy": Estimate(1.0, 0.0, 1)}, {})

    arm = loop.Arm("study", "sgd", SEEDS, step, 1, 4, 1, layout, (Count(),))
    saved = loop.Saved(
        population.gather(states, layout), {"evaluation": [()] * 4}, jnp.zeros((), bool)
    )
    watch = progress.Progress({}, print)
    settled, rows = loop._evaluate(arm, Data(shared, shared), None, 4, saved, watch)
    assert measured == [float(states[i].loss_sum) for i in (0, 1, 3)]
    by_metric = {(row["seed"], row["metric"]): row["value"] for row in rows}
    assert [by_metric[seed, "train/alive"] for seed in SEEDS] == [1, 1, 0, 1]
    assert (2, "train/loss") not in by_metric and (3, "train/loss") in by_metric
    assert bool(settled.settled) and not np.asarray(settled.population.num_steps).any()


def test_gather_is_the_inverse_of_members(shared):
    for mode in ("vmap", "loop"):
        layout = a_layout(mode)
        states = population.initial(SEEDS, a_step(), SHAPE, layout)
        again = population.gather(population.members(states, layout), layout)
        assert tree.digest(again) == tree.digest(states)


def test_streams_differ_by_seed_and_name():
    keys = [
        jax.random.key_data(streams.stream(seed, name)).tolist()
        for seed in (0, 1, 2)
        for name in ("init", "order", "augmentation", "evaluate/test")
    ]
    assert len({tuple(k) for k in keys}) == len(keys)


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
