"""The surfaces study: steps on all points, the authors' statistic, what is asked, a whole run."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import data, tree, workdir
from sharpjax.nn.mlp import MLP
from sharpjax.optim import OptimizerSpec
from sharpjax.protocol import claims
from sharpjax.runs import study
from sharpjax.studies.surfaces.measures import MeanSquaredError, Noise
from sharpjax.train import planning, population
from sharpjax.train.full_batch import FullBatch
from sharpjax.train.plan import Member, Subject, When
from sharpjax.train.steps import Beside
from tests.commands import launch, read_rows

SPEC = data.Surface("booth", num_train=16, num_test=8)
MODEL = MLP(1, width=4, depth=2)
STEP = FullBatch(
    MODEL, OptimizerSpec("adam", learning_rate=1e-2, momentum=0.9, b2=0.999), SPEC.num_train
)
MEMBERS = (Member(0), Member(1))


@pytest.fixture(scope="module")
def splits():
    return data.on_device(SPEC.load())


def config(form):
    return importlib.import_module("configs.surfaces").get_config(form).lock()


def trained(splits, mode, *segments):
    """The states of both members after some calls."""
    layout = STEP.layout(mode, jnp.zeros((1, 2)), len(MEMBERS))
    started = [STEP.init(jnp.zeros((1, 2)), m.stream("init")) for m in MEMBERS]
    states = population.gather(started, layout)
    loop = STEP.loop(MEMBERS, [Beside()] * 2, [splits] * 2, layout)
    step = 0
    for count in segments:
        assert loop.room(step) >= count
        step, states, _ = loop.advance(step, count, states, ())
    return population.members(states, layout)


def test_steps_are_those_of_adam_on_all_points(splits):
    batch, loss = data.as_batch(splits.train), MeanSquaredError(MODEL)
    params = STEP.init(jnp.zeros((1, 2)), MEMBERS[0].stream("init")).params
    adam = optax.adam(1e-2)
    state = adam.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: loss(p, batch) / 2)(params)
        updates, state = adam.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        params, state = step(params, state)
    for mode in ("loop", "vmap"):
        found = trained(splits, mode, 5)[0].params
        # Five steps of .01, whose directions are right to rounding.
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_how_steps_are_cut_into_calls_changes_no_bit(splits):
    for one, other in zip(
        trained(splits, "loop", 5), trained(splits, "loop", 1, 3, 1), strict=True
    ):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_full_batch_refuses():
    assert STEP.refuses(MEMBERS, SPEC) == ""
    fewer = data.Surface("booth", num_train=15, num_test=8)
    assert "batch of 16, and 15" in STEP.refuses(MEMBERS, fewer)


def test_the_authors_statistic_is_the_gradient_at_small_radii(splits):
    """What is of second order is a hundred times below the error of the draws."""
    state = STEP.init(jnp.zeros((1, 2)), jax.random.key(3))
    subject = Subject(0, (), 0, MODEL, state, lambda at: state)
    _, found = Noise(When(), num_draws=400)((), subject, splits, jax.random.key(4))
    mean = found.rows["authors/mean", (("rho", "0.0005"),)]
    slope = found.rows["authors/first_order", ()].value
    loss, batch = MeanSquaredError(MODEL), data.as_batch(splits.train)
    length = tree.norm(jax.grad(loss)(state.params, batch))
    np.testing.assert_allclose(
        slope, length * np.sqrt(2 / np.pi / tree.size(state.params)), rtol=1e-5
    )
    # Of |normal| numbers the deviation is .76 of the mean.
    np.testing.assert_allclose(mean.standard_error, 0.756 * slope / 20, rtol=0.3)
    assert np.abs(np.asarray(mean.value) - slope) < 5 * mean.standard_error


@pytest.mark.parametrize("form", ["", "cpu", "cpu_long", "quick", "smoke"])
def test_what_is_asked_can_be_answered(form):
    made = config(form)
    plan = study.plan_of(made)
    asked = study.hypotheses_of(made)
    one = len(made.seeds) == 1
    assert len(asked) == (3 if one else 10)
    assert all(h.id.endswith("-one-start") == one for h in asked)
    claims.check(
        asked,
        arms=planning.arms(plan),
        metrics={m for arm in planning.arms(plan) for m in planning.metrics(plan, arm)},
    )


def test_the_smoke_form_end_to_end(tmp_path):
    folder = tmp_path / "run"
    done = launch("--config=configs/surfaces.py:smoke", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert workdir.verify(folder) == []
    rows = read_rows(folder)
    plan = study.plan_of(config("smoke"))
    for arm in planning.arms(plan):
        own = [row for row in rows if row["arm"] == arm]
        assert {row["metric"] for row in own} == set(planning.metrics(plan, arm))
        assert {row["step"] for row in own} == {0, 1, 10, 12}
    last = [row for row in rows if row["step"] == 12 and row["seed"] == 200]
    means = [row for row in last if row["metric"] == "authors/mean"]
    assert {row["of"]["rho"] for row in means} == {"0.0005", "0.005", "0.05", "0.5"}
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"along_steps", "conventions", "sharpness_and_error"}
