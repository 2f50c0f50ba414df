"""Whole epochs as one program: the numbers of a plain loop, and what stops a seed."""

import dataclasses
import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import tree, workdir
from sharpjax.data import modular
from sharpjax.errors import RunFailed
from sharpjax.nn.svd import Decomposition, merge
from sharpjax.nn.tokens import TokenMLP
from sharpjax.optim import OptimizerSpec
from sharpjax.train import condition, epoch_population, epochs, interrupt, rows, trajectory
from sharpjax.train.condition import Condition
from sharpjax.train.epochs import Epoch, Examples
from sharpjax.train.evaluators import Results
from sharpjax.train.progress import Progress
from sharpjax.train.trajectory import Trajectory

OPTIMIZER = OptimizerSpec("adamw", 1e-3, momentum=0.9, b2=0.98, weight_decay=0.01)
FAST = dataclasses.replace(OPTIMIZER, learning_rate=0.03)


def a_model(decompose=None, dtype=jnp.float32):
    return TokenMLP(num_classes=9, width=24, features=12, decompose=decompose, dtype=dtype)


def an_epoch(optimizer=OPTIMIZER, batch_size=16, **changes):
    return Epoch(a_model(), optimizer, batch_size, **changes)


def a_split(seed=0, fraction=0.8):
    """40 of the 49 pairs modulo 7: two whole batches of 16, and one of 8."""
    key = jax.random.key(seed)
    data = modular.load("+", modulus=7, train_fraction=fraction, key=key)
    return Examples(*map(jnp.asarray, (*data.train, *data.test)))


def memory(seed=0):
    """Tested on what it is trained on, so that it generalises soon."""
    data = a_split(seed)
    return data._replace(test_input=data.train_input, test_label=data.train_label)


def advance(step, learner, data, num_epochs, key=0, lanes=False, **options):
    key = jax.random.key(key) if isinstance(key, int) else key
    return epochs.advance(step, learner, data, key, num_epochs=num_epochs, lanes=lanes, **options)


_initial = jax.jit(epochs.initial, static_argnums=1)


def start(step, data, seed=1):
    return _initial(jax.random.key(seed), step, data.train_input)


def same(a, b):
    return tree.digest(a) == tree.digest(b)


@pytest.mark.parametrize("module", [epochs, rows, trajectory])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


# One epoch.


def test_a_plain_loop_finds_the_same(x64):
    """Batch by batch, each example once, the last batch as short as it comes."""
    model, data = a_model(dtype=jnp.float64), a_split()
    step = Epoch(model, OPTIMIZER, 16, "float64")
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
            batch = data.train_input[index], data.train_label[index]
            params, opt_state, (loss, accuracy) = update(params, opt_state, *batch)
            losses.append(loss * len(index))
            right.append(accuracy * len(index))
        test_loss, test_accuracy = loss_fn(params, data.test_input, data.test_label)
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
    more = (jnp.concatenate([x, x[:1]]) for x in (data.test_input, data.test_label))
    data = Examples(data.train_input, data.train_label, *more)
    step = an_epoch(FAST)
    learner, _ = advance(step, start(step, data), data, 200)
    assert len(data.test_label) == 41 and learner.best == 1 and learner.epoch < 200


def test_a_seed_ends_at_its_first_full_test_accuracy():
    step, data = an_epoch(FAST), memory()
    learner, curves = advance(step, start(step, data), data, 200)
    last = int(learner.epoch)
    assert 1 < last < 200 and learner.best == 1 and learner.best_epoch == last
    accuracy = np.asarray(curves.test_accuracy)
    assert accuracy[last - 1] == 1 and (accuracy[: last - 1] < 1).all()
    assert np.isnan(accuracy[last:]).all()
    again, nothing = advance(step, learner, data, 5)
    assert same(again, learner) and np.isnan(nothing.train_loss).all()


def test_what_is_remembered_of_an_unfinished_seed():
    """The first epoch of the best, not the last; of full training accuracy the first."""
    step, data = an_epoch(FAST), a_split(fraction=0.5)
    learner, curves = advance(step, start(step, data), data, 120)
    test, train = np.asarray(curves.test_accuracy)[:120], np.asarray(curves.train_accuracy)[:120]
    assert learner.epoch == 120 and learner.best == test.max() < 1
    assert learner.best_epoch == 1 + np.argmax(test)
    assert learner.fitted_epoch == 1 + np.argmax(train == 1) and train.max() == 1
    fresh = start(step, data)
    assert (fresh.best, fresh.best_epoch, fresh.fitted_epoch) == (-1, 0, 0)


def population(step, seeds, data_of=a_split):
    data = [data_of(seed) for seed in seeds]
    learners = [start(step, own, seed) for seed, own in zip(seeds, data, strict=True)]
    return learners, data, [jax.random.key(seed) for seed in seeds]


def test_lanes_are_the_seeds_one_by_one():
    step = an_epoch(FAST)
    learners, data, keys = population(step, (0, 1, 2), memory)
    together, curves = advance(
        step, *map(tree.stack, (learners, data)), 40, key=jnp.stack(keys), lanes=True
    )
    ends = set()
    for i, (learner, own, key) in enumerate(zip(learners, data, keys, strict=True)):
        alone, one = advance(step, learner, own, 40, key=key)
        lane = tree.index(together, i)
        ends.add(int(alone.epoch))
        assert lane.epoch == alone.epoch and lane.best_epoch == alone.best_epoch
        np.testing.assert_allclose(curves.test_loss[i], one.test_loss, rtol=2e-3)
        for a, b in zip(jax.tree.leaves(lane.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert len(ends) > 1, "all ended together, so nothing was seen of waiting"


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_seed_that_blows_up_is_frozen_and_one_that_is_done_waits(mode):
    step = an_epoch()
    learners, data, keys = population(step, (0, 1, 2))
    huge = jax.tree.map(lambda x: x * 1e30, learners[1].params)
    learners[1] = dataclasses.replace(learners[1], params=huge)
    # What is done is not looked at any more: not even its weights.
    learners[2] = dataclasses.replace(learners[2], params=huge, best=jnp.float32(1))
    layout = epoch_population.choose_layout(mode, num_seeds=3)
    gathered = [tree.stack(x) if mode == "vmap" else tuple(x) for x in (learners, data, keys)]
    after, curves = epoch_population.advance(step, *gathered, num_epochs=3, layout=layout)
    ended = [tree.index(after, i) for i in range(3)] if mode == "vmap" else after
    assert [bool(x.alive) for x in ended] == [True, False, True]
    assert [int(x.epoch) for x in ended] == [3, 0, 0]
    assert same(ended[1].params, huge) and same(ended[1].opt_state, learners[1].opt_state)
    assert np.isnan(curves.test_loss[1:]).all() and np.isfinite(curves.test_loss[0, :3]).all()


# A condition, with its files.


@dataclasses.dataclass(frozen=True)
class Norm:
    """Stands for `Trajectory`: the norm of all parameters, and how often it was asked."""

    def init(self, params, data):
        return {"count": jnp.zeros((), jnp.int32)}

    def __call__(self, carry, params, data, key):
        carry = {"count": carry["count"] + 1}
        found = {"weights/norm": tree.norm(params), "norm/count": carry["count"],
                 "norm/draw": jax.random.uniform(key)}  # fmt: skip
        bias = params["head"]["bias"]
        layers = {("weights/norm", "head/bias"): rows.exact(tree.norm(bias))}
        return carry, Results({n: rows.exact(x) for n, x in found.items()}, {"bias": bias}, layers)


def a_condition(mode="loop", seeds=(3, 4), budget=30, optimizer=FAST, **changes):
    model = a_model(Decomposition(0.5))
    return dataclasses.replace(
        Condition(
            study="grokking",
            name="arm",
            seeds=seeds,
            step=Epoch(model, optimizer, 16),
            budget=budget,
            checkpoint_epochs=7,
            measured=(0, 4, 10),
            trajectory=Norm(),
            layout=epoch_population.choose_layout(mode, num_seeds=len(seeds)),
        ),
        **changes,
    )


class Nervous(interrupt.Interrupt):
    """Asked to stop at its n-th check, or at the n-th work that may be dropped."""

    def __init__(self, checks=None):
        super().__init__()
        self._left = checks

    def check(self):
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise interrupt.Interrupted(2)


def train(one, folder, signals=None, data_of=a_split, say=lambda line: None):
    """What it returns; the folder is sealed if it came to the end."""
    with workdir.open_run(folder, config={"study": "grokking", "arms": {}}, overrides={}) as run:
        outcome = condition.train(
            one,
            [data_of(seed) for seed in one.seeds],
            run,
            interrupt=signals or Nervous(),
            progress=Progress({}, say),
            say=say,
        )
        run.seal({})
    return outcome


def files(folder):
    """Rows and arrays, to the bit."""
    found = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.glob("arrays/**/*.npz"))}
    return found | {"rows": (folder / "results.jsonl").read_bytes()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(a_condition(), folder), folder


def test_rows_of_a_condition(whole):
    outcome, folder = whole
    table = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {row["step"] for row in table} == {0, 4, 10, 30}
    value = {(r["seed"], r["step"], r["metric"], *r["of"].values()): r["value"] for r in table}
    for seed in (3, 4):
        with np.load(folder / "arrays" / "arm" / "30" / f"curves-{seed}.npz") as curves:
            test, train = curves["test_accuracy"], curves["train_accuracy"]
        assert len(test) == outcome["epochs"][str(seed)] == value[seed, 30, "grok/epochs"]
        best = int(np.argmax(test))
        assert value[seed, 30, "grok/epoch_of_best_test_accuracy"] == best + 1
        assert value[seed, 30, "grok/best_test_accuracy"] == test[best]
        assert value[seed, 30, "grok/reached_full_test_accuracy"] == (test[best] == 1)
        fitted = value[seed, 30, "grok/epoch_of_full_train_accuracy"]
        assert fitted == 1 + np.argmax(train == 1) if (train == 1).any() else fitted is None
        assert value[seed, 4, "test/accuracy"] == test[3]
        assert value[seed, 30, "test/accuracy"] == test[-1]
        assert value[seed, 30, "train/alive"] == 1
        sizes = (9 * 4 + 4 + 4 * 12, 48 * 12 + 12 + 12 * 24, 24 * 4 + 4 + 4 * 9, 24 + 9)
        assert value[seed, 30, "model/num_params"] == sum(sizes)
        assert [value[seed, e, "norm/count"] for e in (0, 4, 10, 30)] == [1, 2, 3, 4]
        assert 0 == value[seed, 0, "weights/norm", "head/bias"] < value[seed, 0, "weights/norm"]
        assert len({value[seed, e, "norm/draw"] for e in (0, 4, 10)}) == 3
    assert (0, "test/accuracy") not in {(r["step"], r["metric"]) for r in table}
    with np.load(folder / "arrays" / "arm" / "4" / "spectra.npz") as arrays:
        assert arrays["3.bias"].shape == arrays["4.bias"].shape == (9,)
    assert workdir.verify(folder) == []


@pytest.mark.parametrize("checks", [0, 2, 5])
def test_a_run_that_was_stopped_ends_with_the_same_bits(whole, checks, tmp_path, monkeypatch):
    """Wherever it is stopped, and however long its segments are."""
    monkeypatch.setattr("sharpjax.train.driver.SEGMENT_SECONDS", 0.003)
    lines = []
    with pytest.raises(interrupt.Interrupted):
        train(a_condition(), tmp_path / "run", Nervous(checks), say=lines.append)
    assert "stopped and saved" in lines[-1]
    outcome = train(a_condition(), tmp_path / "run", say=lines.append)
    assert outcome == whole[0]
    assert files(tmp_path / "run") == files(whole[1])


def test_a_run_that_was_killed_ends_with_the_same_bits(whole, tmp_path):
    """Between two checkpoints, after rows were written that the next process must drop."""

    def kill(line):
        if "epoch 10/30" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(a_condition(), tmp_path / "run", say=kill)
    assert train(a_condition(), tmp_path / "run") == whole[0]
    assert files(tmp_path / "run") == files(whole[1])


def test_lanes_on_two_devices_are_stopped_and_go_on_alike(whole, tmp_path):
    one = a_condition("vmap")
    assert one.layout.mesh.shape["seed"] == 2
    outcome = train(one, tmp_path / "whole")
    with pytest.raises(interrupt.Interrupted):
        train(one, tmp_path / "run", Nervous(4))
    assert train(one, tmp_path / "run") == outcome
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    # Rounding apart they are the seeds one by one.
    assert outcome["params_at_start"].keys() == whole[0]["params_at_start"].keys()
    tables = [[json.loads(x) for x in (folder / "results.jsonl").read_text().splitlines()]
              for folder in (tmp_path / "whole", whole[1])]  # fmt: skip
    early = [{(r["seed"], r["step"], r["metric"]): r["value"] for r in table if r["step"] <= 4}
             for table in tables]  # fmt: skip
    assert early[0] == pytest.approx(early[1], rel=1e-3, abs=1e-4)


def test_done_seeds_end_a_condition_before_its_budget(tmp_path):
    one = a_condition(budget=3000, measured=(), seeds=(3, 4, 5), checkpoint_epochs=1000)
    outcome = train(one, tmp_path / "run", data_of=memory)
    assert max(outcome["epochs"].values()) < 500
    table = [json.loads(x) for x in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert {row["step"] for row in table} == {3000}
    reached = [r["value"] for r in table if r["metric"] == "grok/reached_full_test_accuracy"]
    assert reached == [1, 1, 1]


def test_a_run_whose_seeds_are_done_is_stopped_and_goes_on_alike(tmp_path):
    """At every third look at the clock, so that it is stopped between seeds that are done."""
    one = a_condition(budget=3000, measured=(0, 10), seeds=(3, 4, 5), checkpoint_epochs=1000)
    lines = []
    outcome = train(one, tmp_path / "whole", data_of=memory)
    again = None
    while again is None:
        try:
            again = train(one, tmp_path / "run", Nervous(3), data_of=memory, say=lines.append)
        except interrupt.Interrupted:
            assert "stopped and saved" in lines[-1]
    assert sum("going on from step" in line for line in lines) >= 2
    assert again == outcome
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_all_seeds_non_finite_is_an_error_and_one_is_not(tmp_path):
    def poisoned(seed):  # a label that is no class has no cross-entropy
        data = a_split(seed)
        return data._replace(train_label=data.train_label + (100 if seed == 4 else 0))

    outcome = train(a_condition(measured=(10,)), tmp_path / "one", data_of=poisoned)
    assert outcome["stopped"] == {"4": 0} and outcome["epochs"]["3"] > 0
    table = [json.loads(x) for x in (tmp_path / "one" / "results.jsonl").read_text().splitlines()]
    own = {(row["metric"], row["value"]) for row in table if row["seed"] == 4}
    assert own == {("train/alive", 0)}
    assert ("train/alive", 1) in {(r["metric"], r["value"]) for r in table if r["seed"] == 3}
    wild = dataclasses.replace(FAST, learning_rate=1e30)
    with pytest.raises(RunFailed, match="every seed turned non-finite"):
        train(a_condition(optimizer=wild, measured=()), tmp_path / "run")


# What is measured along the way.


def a_trajectory(model):
    return Trajectory(
        model,
        in_factors=True,
        num_examples=24,
        modulus=7,
        num_frequencies=1,
        tol=1e-4,
        max_products=80,
        trace_error=0.3,
        max_probes=8,
        adaptive_rho=0.1,
        adaptive_steps=2,
    )


@pytest.mark.parametrize("rank", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_curvature_is_that_of_the_coordinates(key, rank):
    """In W and in (U, s, V), against the whole Hessian; the second search starts from the first."""
    dense = TokenMLP(num_classes=9, width=6, features=4)
    model = dense.clone(decompose=rank and Decomposition(rank))
    measure, data = a_trajectory(model), a_split()
    params = jax.jit(model.init)(key, data.train_input)["params"]
    carry, found = measure(measure.init(params, data), params, data, key)
    again = measure(carry, params, data, key)[1]
    tokens, label = data.train_input[:24], data.train_label[:24]
    coordinates = {"train[:24]": (dense, merge(params))}
    if rank:
        coordinates["train[:24]/factors"] = (model, params)
    for where, (net, point) in coordinates.items():
        flat, undo = jax.flatten_util.ravel_pytree(point)

        def loss(w, net=net, undo=undo):
            logits = net.apply({"params": undo(w)}, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        hessian = np.asarray(jax.jit(jax.hessian(loss))(flat), np.float64)
        top = np.linalg.eigvalsh(hessian)[-1]
        for one in (found, again):
            assert one.estimates[f"{where}/hessian/lambda_1"].value == pytest.approx(top, rel=1e-3)
        trace = found.estimates[f"{where}/hessian/trace"]
        assert abs(trace.value - np.trace(hessian)) < 4 * trace.standard_error + 1e-3 * top
        products = f"{where}/hessian/num_products"
        assert again.estimates[products].value < found.estimates[products].value
        assert found.estimates[f"{where}/adaptive_sharpness"].value > 0
    measured = {name.split("]/")[1] for name in found.estimates if name.startswith("train[")}
    assert any(name.startswith("factors/") for name in measured) == bool(rank)


def test_what_weights_tell():
    model, data = a_model(Decomposition(0.5)), a_split()
    params = start(an_epoch(), data).params
    factors = jax.jit(model.init)(jax.random.key(1), data.train_input)["params"]
    for point, rank in ((params, 24), (factors, 12)):
        whole, by_layer, values = trajectory._weights(point, 7, 1)
        layers = {name: row["hidden/kernel"] for name, row in by_layer.items()
                  if "hidden/kernel" in row}  # fmt: skip
        assert 1 < layers["weights/stable_rank"] < layers["weights/effective_rank"] <= rank
        assert values["hidden/kernel"].shape == (rank,)
        assert ("weights/orthogonality_error" in layers) == (rank == 12)
        assert whole["weights/norm"] == pytest.approx(float(tree.norm(merge(point))), rel=1e-5)
        assert whole["weights/parameter_norm"] == tree.norm(point)
    assert layers["weights/orthogonality_error"] < 1e-5


def test_fourier_of_a_circle_and_norms_of_a_dense_model():
    model, data = a_model(), a_split()
    params = model.init(jax.random.key(0), data.train_input)["params"]
    angle = 2 * np.pi * 2 / 7 * np.arange(9)
    table = np.stack([np.cos(angle), np.sin(angle), *np.zeros((4, 9))], axis=1)
    params["embed"]["embedding"] = jnp.asarray(table, jnp.float32)
    whole, by_layer, values = trajectory._weights(params, 7, 1)
    assert by_layer["weights/fourier/concentration"]["embed/embedding"] == pytest.approx(1)
    assert by_layer["weights/fourier/gini"]["embed/embedding"] == pytest.approx(1 - 1 / 3)
    assert whole["weights/norm"] == pytest.approx(whole["weights/parameter_norm"])
    assert "weights/orthogonality_error" not in by_layer
    assert set(values) == {"embed/embedding", "hidden/kernel", "head/kernel"}
    none = trajectory._weights(params, 0, 1)[1]
    assert not any(name.startswith("weights/fourier") for name in none)


def test_epochs_measured():
    assert trajectory.epochs_measured(10_000, 1) == (0, 1, 10, 100, 1000)
    assert trajectory.epochs_measured(10, 0) == ()
    spaced = trajectory.epochs_measured(40_000, 4)
    assert spaced[:6] == (0, 1, 2, 3, 6, 10) and spaced[-1] == 31623 and len(set(spaced)) == 20
