"""Pruned weights through training: transforms, SAM, schedules; stages of plans that prune."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from sharpjax import nn, optim, tree
from sharpjax.compress import prune
from sharpjax.driver import checkpoint, interrupt
from sharpjax.errors import UserError
from sharpjax.losses import Objective
from sharpjax.optim import OptimizerSpec
from sharpjax.train import pruning
from sharpjax.train.plan import Derive, Member, Ref, Snapshots, Train, When, as_is
from tests.plans import Died, Failing, Nervous, a_plan, a_step, an_arm, files, run, with_outputs
from tests.test_objective import example_batch, initial, value_and_grad

MLP = nn.MLP(num_classes=5, width=6)


def masked_arrays(params, mask):
    """What lies where the mask is 0, as one vector."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return np.concatenate([np.asarray(w)[~np.asarray(m, bool)] for w, m in pairs])


def train(tx, loss, params, num_steps, batch):
    """Parameters and state after so many steps."""
    grad_fn = jax.value_and_grad(loss, has_aux=True)

    def step(carry, _):
        params, state = carry
        (value, _), grads = grad_fn(params, batch)
        updates, state = tx.update(grads, state, params, value=value, grad_fn=grad_fn, batch=batch)
        return (optax.apply_updates(params, updates), state), None

    def whole(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=num_steps)[0]

    return jax.jit(whole)(params)


# The transform that keeps a mask.

INNER = {
    "adam, decay, momentum": optax.chain(
        optax.add_decayed_weights(0.1), optax.trace(0.9), optax.adam(0.01)
    ),
    "adamw": optax.adamw(0.01, weight_decay=0.5),
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", INNER)
def test_pruned_weights_are_exactly_zero_after_a_hundred_steps(name):
    """The loss knows no mask, and the weights that are pruned start elsewhere."""
    (params, _), batch = initial(MLP), example_batch()
    mask = prune.mask(params, 0.7, scope="trainable")
    tx = optax.with_extra_args_support(optax.chain(INNER[name], prune.keep_masked(mask)))
    for num_steps in (1, 100):
        end, state = train(tx, Objective(MLP), params, num_steps, batch)
        pruned = masked_arrays(end, mask)
        assert pruned.size == prune.sparsity(mask).total.pruned > 0
        assert np.all(pruned == 0.0) and not np.signbit(pruned).any()
    # Without it they move.
    free, _ = train(optax.with_extra_args_support(INNER[name]), Objective(MLP), params, 1, batch)
    assert np.all(np.isfinite(masked_arrays(free, mask))) and masked_arrays(free, mask).any()
    assert tree.digest(state[-1].mask) == tree.digest(mask)


def test_updates_of_kept_weights_are_not_touched():
    (params, _), batch = initial(MLP), example_batch()
    mask = prune.mask(params, 0.5)
    (_, _), grads = value_and_grad(Objective(MLP), params, batch)
    tx = prune.keep_masked(mask)
    updates, _ = tx.update(grads, tx.init(params), params)
    each = zip(*map(jax.tree.leaves, (updates, grads, params, mask)), strict=True)
    for u, g, w, m in each:
        np.testing.assert_array_equal(u, np.where(m, g, -w))


def test_updates_narrower_than_weights():
    """-w in bfloat16 is not -w."""
    params, mask = {"w": jnp.array([1.001, 2.003])}, {"w": jnp.array([False, True])}
    tx = prune.keep_masked(mask)
    updates, _ = tx.update({"w": jnp.ones(2, jnp.bfloat16)}, tx.init(params), params)
    moved: Any = optax.apply_updates(params, updates)
    assert moved["w"].dtype == jnp.float32 and moved["w"][0] == 0.0
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    updates, _ = tx.update(params, tx.init(narrow), narrow)
    moved = optax.apply_updates(narrow, updates)
    assert moved["w"].dtype == jnp.bfloat16 and moved["w"][0] == 0


def test_masks_of_other_forms_and_of_populations():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    tx = prune.keep_masked({"w": jnp.array([0.0, 1.0]), "b": True})
    state: Any = tx.init(params)
    assert state.mask["w"].shape == (3, 2) and state.mask["b"].tolist() == [True, True]
    many = tree.stack([params, tree.scale(2.0, params)])
    states = jax.vmap(tx.init)(many)
    updates, _ = jax.vmap(tx.update)(tree.zeros_like(many), states, many)
    moved: Any = optax.apply_updates(many, updates)
    assert np.all(moved["w"][..., 0] == 0)
    np.testing.assert_array_equal(moved["b"], many["b"])


def test_sam_of_a_masked_objective_moves_kept_weights_alone():
    """No pruned weight is perturbed: the ascent from afar is that from 0."""
    (params, _), batch = initial(MLP), example_batch()
    mask = prune.mask(params, 0.6)
    loss = Objective(MLP, mask=mask)
    seen = []

    def grad_fn(at, batch):
        seen.append(at)
        return value_and_grad(loss, at, batch)

    tx = optim.sam(optax.chain(optax.adamw(0.01), prune.keep_masked(mask)), rho=0.3)
    start = prune.apply_mask(params, mask)
    (value, _), grads = grad_fn(start, batch)
    tx.update(grads, tx.init(start), start, value=value, grad_fn=grad_fn, batch=batch)
    first, perturbed = seen
    assert not masked_arrays(perturbed, mask).any()
    moved = float(tree.norm(jax.tree.map(jnp.subtract, perturbed, first)))
    assert moved == pytest.approx(0.3, rel=1e-5)
    for inner in (optax.sgd(0.1, momentum=0.9), optax.adamw(0.01, weight_decay=0.5)):
        end, _ = train(optim.sam(inner, rho=0.3), loss, start, 20, batch)
        assert np.all(masked_arrays(end, mask) == 0.0)
        assert tree.digest(end) != tree.digest(start)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: prune.keep_masked({"w": True}).init(p), "keep_masked: mask .*'b' is missing"),
        (lambda p: prune.keep_masked({"w": jnp.ones(3), "b": True}).init(p), "mask of 'w' is"),
        (lambda p: prune.keep_masked(p).update(p, p), "keep_masked: update needs params"),
        (lambda p: prune.gradual(prune.one_shot(0.5)).update(p, p), "gradual: update needs params"),
        (lambda p: prune.gradual(0.5), "schedule=0.5; give a prune.Schedule"),  # pyright: ignore
        (lambda p: prune.gradual(prune.Schedule((1,), ())), "1 steps and 0 amounts"),
        (lambda p: prune.gradual(prune.Schedule((2, 1), (0.1, 0.2))), "do not increase"),
        (lambda p: prune.gradual(prune.Schedule((2,), (1.0,))), "an amount of the schedule=1.0"),
        (
            lambda p: prune.gradual(prune.one_shot(0.5), scope="all").init(p),
            "no leaf is named 'all'",
        ),
        (lambda p: prune.polynomial(0.9, 5, 5), "begin=5, end=5, every=1"),
        (lambda p: prune.polynomial(0.9, 0, 10, every=3), "every=3"),
        (lambda p: prune.polynomial(1.0, 0, 10), "final=1.0"),
        (lambda p: prune.polynomial(0.9, 0, 10, offset=2), "offset=2"),
        (lambda p: prune.polynomial(0.9, 0, 10, power=0), "power=0"),
        (lambda p: prune.periodic(0.9, -1, 10, 1), "begin must be a whole number >= 0"),
        (lambda p: prune.one_shot(1.0), "prune.one_shot: amount=1.0"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})


# Schedules.


def test_polynomials_of_both_conventions():
    """At the start, in the middle and at the end, by the formulas."""
    s_i, s_f, begin, end = 0.2, 0.9, 100, 300
    plain = prune.polynomial(s_f, begin, end, initial=s_i)
    late = prune.polynomial(s_f, begin, end, offset=1)
    assert len(plain.steps) == 201 and plain.steps == late.steps
    for t in (begin, 150, 200, 299, end):
        p = (t - begin) / (end - begin)
        assert plain.at(t) == pytest.approx(s_f + (s_i - s_f) * (1 - p) ** 3, rel=1e-14)
        p = min((t + 1 - begin) / (end - begin), 1)
        assert late.at(t) == pytest.approx(s_f * (1 - (1 - p) ** 3), rel=1e-14)
    assert (plain.at(begin), plain.at(end), late.at(end)) == (s_i, s_f, s_f)
    assert plain.at(200) == pytest.approx(0.9 - 0.7 / 8) and late.at(end - 1) == s_f
    assert late.at(begin) == pytest.approx(s_f * (1 - (199 / 200) ** 3))
    assert plain.at(begin - 1) == 0 and plain.at(10**9) == s_f
    few = prune.polynomial(s_f, begin, end, every=50)
    assert few.steps == (100, 150, 200, 250, 300) and few.at(149) == few.at(100) == 0
    assert few.amounts[2] == pytest.approx(s_f * 7 / 8)
    linear = prune.polynomial(0.8, 0, 4, power=1)
    np.testing.assert_allclose(linear.amounts, [0, 0.2, 0.4, 0.6, 0.8], atol=1e-15)


def test_other_schedules():
    assert prune.one_shot(0.5, 3) == ((3,), (0.5,))
    assert prune.periodic(0.5, 2, 8, 3) == ((2, 5, 8), (0.5, 0.5, 0.5))
    amounts = prune.iterative(0.75, 0, 3, 1).amounts
    kept = 1 - np.array([0, *amounts])
    np.testing.assert_allclose(kept[1:] / kept[:-1], 0.25**0.25, rtol=1e-14)
    assert amounts[-1] == 0.75


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("regrow", [False, True])
def test_gradual_pruning_follows_its_schedule(layerwise, regrow):
    """Exact counts after every update, masks that `prune.mask` would make, nested."""
    (params, _), batch = initial(MLP), example_batch()
    schedule = prune.polynomial(0.9, 1, 5, every=2)
    inner = optax.adamw(0.02, weight_decay=0.1)
    tx = optax.with_extra_args_support(
        optax.chain(inner, prune.gradual(schedule, layerwise=layerwise, regrow=regrow))
    )
    grad = jax.grad(Objective(MLP), has_aux=True)
    state: Any = tx.init(params)
    before = jax.tree.map(lambda w: np.ones(w.shape, bool), params)

    @jax.jit
    def step(params, state):
        free, _ = inner.update(grads := grad(params, batch)[0], state[0], params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), optax.apply_updates(params, free), state

    for t in range(8):
        params, free, state = step(params, state)
        mask, amount = state[-1].mask, schedule.at(t)
        shares = prune.uniform(params, amount) if layerwise else amount
        wanted = prune.sparsity(prune.mask(params, shares))
        assert prune.sparsity(mask).total == wanted.total
        assert layerwise is False or prune.sparsity(mask).by_leaf == wanted.by_leaf
        if t in schedule.steps:
            floor = jax.tree.map(lambda w, m: jnp.where(m | regrow, w, 0), free, before)
            expected = prune.mask(floor, shares)
            for a, b in zip(jax.tree.leaves(mask), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            assert tree.digest(mask) == tree.digest(before)
        nested = zip(jax.tree.leaves(before), jax.tree.leaves(mask), strict=True)
        assert regrow or all(np.all(np.asarray(a) >= np.asarray(b)) for a, b in nested)
        pruned = masked_arrays(params, mask)
        assert np.all(pruned == 0.0)
        before = mask
    assert int(state[-1].count) == 8


def test_ties_while_training_are_those_of_mask():
    params = {"w": jnp.array([[1.0, -1.0, 1.0, 2.0, 1.0, 0.5]])}
    tx = prune.gradual(prune.one_shot(0.5))
    state: Any = tx.update(tree.zeros_like(params), tx.init(params), params)[1]
    np.testing.assert_array_equal(state.mask["w"], prune.mask(params, 0.5)["w"])


def test_counts_of_mixed_types_are_of_the_rounded_weights():
    """Updates below half a unit in the last place of bfloat16, 2^-8 at 1, leave ties."""
    params = {"w": jnp.ones((1, 4), jnp.bfloat16)}
    updates = {"w": jnp.array([[0.002, 0.0, 0.001, 0.0]], jnp.float32)}
    tx = prune.gradual(prune.one_shot(0.5))
    state: Any = tx.update(updates, tx.init(params), params)[1]
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(state.mask["w"], prune.mask(after, 0.5)["w"])
    assert state.mask["w"].tolist() == [[False, False, True, True]]


def test_gradual_pruning_goes_on_from_a_checkpoint(tmp_path):
    """Stopped between two masks: the same bits as without a stop. The next update reads the mask
    of the checkpoint, the one after it makes a new one by its count."""
    (params, _), batch = initial(MLP), example_batch()
    schedule = prune.polynomial(0.9, 1, 5, every=2)
    inner = optax.adamw(0.02, weight_decay=0.1)
    tx = optax.with_extra_args_support(optax.chain(inner, prune.gradual(schedule)))
    grad = jax.grad(Objective(MLP), has_aux=True)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grad(params, batch)[0], state, params)
        return optax.apply_updates(params, updates), state

    def steps(params, state, count=4):
        for _ in range(count):
            params, state = step(params, state)
        return params, state

    fresh = params, tx.init(params)
    half = steps(*fresh)
    folder = epath.Path(tmp_path / "checkpoints")
    with checkpoint.opened(folder, print) as checkpoints:
        checkpoints.save(4, half)
    with checkpoint.opened(folder, print) as checkpoints:
        found = checkpoints.restore(fresh)
    assert found is not None and found[0] == 4
    straight, resumed = steps(*fresh, count=8), steps(*found[1])
    assert jax.tree.structure(resumed) == jax.tree.structure(straight)
    assert tree.digest(resumed) == tree.digest(straight)
    masks: Any = half[1][-1].mask, straight[1][-1].mask
    shares = [prune.sparsity(mask).total for mask in masks]
    assert shares[0] == prune.sparsity(prune.mask(params, schedule.at(3))).total
    assert shares[1] == prune.sparsity(prune.mask(params, 0.9)).total != shares[0]
    assert int(straight[1][-1].count) == 8


def test_lanes_are_pruned_as_each_alone():
    """Two models, one of them two updates ahead, so that a mask is due for one and not the other.

    Weights are 0.1 apart in size, Adam moves one by no more than 3.2 of its rate a step
    ((1 - b1) / sqrt(1 - b2)) and decay by less than that: no rounding changes their order. Rounded
    are, in each of 6 steps, the sum of weight and update and, some 10 times, the update."""
    rng, rate, shape = np.random.default_rng(0), 2.0**-10, (6, 5)
    inner = optax.adamw(rate, weight_decay=0.1)
    tx = optax.chain(inner, prune.gradual(prune.Schedule((1, 2, 4), (0.2, 0.5, 0.8))))

    def drawn():
        sizes = 0.1 * (1 + rng.permutation(30)).reshape(shape)
        kernel = sizes * rng.choice([-1, 1], shape)
        return {"bias": jnp.ones(5), "kernel": jnp.asarray(kernel, jnp.float32)}

    def gradient(t):
        own = np.random.default_rng(t)
        return {"bias": jnp.ones(5), "kernel": jnp.asarray(own.normal(size=shape), jnp.float32)}

    def step(grads, params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def alone(params, state, times):
        for t in times:
            params, state = jax.jit(step)(gradient(t), params, state)
        return params, state

    first, second = ((params, tx.init(params)) for params in (drawn(), drawn()))
    second = alone(*second, (6, 7))
    together = tree.stack([first, second])
    seen = []
    for t in range(6):
        together = jax.jit(jax.vmap(step, in_axes=(None, 0, 0)))(gradient(t), *together)
        seen.append(np.asarray(together[1][-1].mask["kernel"]).sum((1, 2)).tolist())
    # 30 weights less 20, 50 and 80 % at the steps 1, 2 and 4.
    assert seen == [[30, 15], [24, 15], [15, 6], [15, 6], [6, 6], [6, 6]]
    lanes = [alone(*one, range(6)) for one in (first, second)]
    bound = 6 * np.finfo(np.float32).eps * (3 + 10 * 3.2 * rate)
    for i, (params, state) in enumerate(lanes):
        params_together, state_together = tree.index(together, i)
        own, of_lane = state[-1], state_together[-1]
        assert tree.digest(own) == tree.digest(of_lane) and int(own.count) == 6 + 2 * i
        for a, b in zip(*map(jax.tree.leaves, (params, params_together)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)
    assert np.any(
        np.asarray(together[1][-1].mask["kernel"])[0] != together[1][-1].mask["kernel"][1]
    )


# Stages of a plan.


def with_sam(**changes):
    spec = OptimizerSpec("adam", 0.05, momentum=0.9, weight_decay=0.01, rho=0.1)
    return a_step(optimizer=spec, **changes)


def on_disk(ran, *ref, **fields):
    return ran.library.state(Ref(*ref, **fields))


def test_a_transform_makes_the_models_of_its_amounts(tmp_path):
    made = pruning.Prune((0, 50, 12.5))
    drawn = pruning.Prune((50,), method="random", layers="uniform", scope="trainable")
    erk = pruning.Prune((50,), layers="erk", masks=True)
    plan = a_plan(
        an_arm("a"),
        Derive("pruned", "a", made, with_outputs(), outputs=made.outputs),
        Derive("drawn", "a", drawn, (), outputs=drawn.outputs),
        Derive("erk", "a", erk, (), outputs=erk.outputs),
        *(Derive(f"{arm}-read", arm, as_is, ()) for arm in ("pruned", "drawn", "erk")),
    )
    ran = run(plan, tmp_path / "run")
    assert [dict(own)["pruned"] for own in made.outputs] == [0, 50, "12.5"]
    assert made.of(100 * (1 - 0.8**2)) == (("pruned", 36),)
    for seed in (0, 1):
        params = on_disk(ran, "a", seed).params
        for percent in made.percent:
            found = on_disk(ran, "pruned", seed, made.of(percent)).params
            expected = prune.apply_mask(params, prune.mask(params, percent / 100))
            assert tree.digest(found) == tree.digest(expected)
        by_layer = on_disk(ran, "drawn", seed, drawn.of(50)).params
        for w in jax.tree.leaves(by_layer):
            # Biases that were never moved may be 0 on their own.
            assert np.count_nonzero(np.asarray(w) == 0) >= prune.num_pruned(0.5, w.size)
        mask = prune.mask(params, prune.erk(params, 0.5))
        ones = on_disk(ran, "erk", seed, erk.of(50)).params
        assert tree.digest(ones) == tree.digest(jax.tree.map(lambda m: m.astype("float32"), mask))
    one, other = (on_disk(ran, "drawn", s, drawn.of(50)).params for s in (0, 1))
    assert any(
        np.any((np.asarray(a) == 0) != (np.asarray(b) == 0))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_a_transform_of_all_variables():
    """Kernels alone, then the statistics too; nothing but that state is needed."""

    @dataclasses.dataclass(frozen=True)
    class State:
        params: Any
        variables: Any

    @dataclasses.dataclass(frozen=True)
    class Subject:
        state: Any

    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)}
    stats = {"batch_stats": {"mean": jnp.asarray(rng.normal(size=5), jnp.float32)}}
    subject: Any = Subject(State(params, stats))
    for scope in ("kernels", "trainable", "variables"):
        ((own, made),) = pruning.Prune((60,), scope=scope)(subject, jax.random.key(0))
        zeros = [int(np.sum(np.asarray(x) == 0)) for x in (made.params["kernel"],
                 made.variables["batch_stats"]["mean"])]  # fmt: skip
        assert own == (("pruned", 60),)
        if scope == "variables":
            assert sum(zeros) == 15 and all(zeros)
        else:
            assert zeros == [12, 0]


def fine_tuned():
    """Pruned after training, then trained on with SAM, Adam and decay, masks all the way."""
    made = pruning.Prune((60, 90))
    members = [
        Member(s, streams=(("order", (s, "more")),), start=Ref("a", s),
               mask=Ref("pruned", s, made.of(90)))
        for s in (0, 1)
    ]  # fmt: skip
    return a_plan(
        an_arm("a", step=with_sam()),
        Derive("pruned", "a", made, with_outputs(), outputs=made.outputs),
        an_arm("tuned", members, step=with_sam(), evaluators=with_outputs(), epochs=3),
        Derive("after", "tuned", as_is, with_outputs()),
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return run(fine_tuned(), folder), files(folder)


def test_fine_tuning_keeps_zeros_through_sam_checkpoints_and_resuming(tuned, tmp_path):
    whole, _ = tuned
    own = pruning.Prune((90,)).of(90)
    for seed in (0, 1):
        base, pruned, end = (
            on_disk(whole, *ref).params
            for ref in (("a", seed), ("pruned", seed, own), ("tuned", seed))
        )
        mask = prune.mask(base, 0.9)
        assert tree.digest(pruned) == tree.digest(prune.apply_mask(base, mask))
        zeros = masked_arrays(end, mask)
        assert zeros.size == prune.num_pruned(0.9, sum(
            w.size for w in jax.tree.leaves(base) if w.ndim > 1))  # fmt: skip
        assert np.all(zeros == 0.0)
        start = on_disk(whole, "tuned", seed, at="start").params
        assert tree.digest(start) == tree.digest(pruned)
        assert tree.digest(end) != tree.digest(start)
    # Stopped wherever it looks, and gone on from its checkpoints: the same bits.
    ran, stopped = None, 0
    while ran is None:
        try:
            ran = run(fine_tuned(), tmp_path / "run", Nervous(1 + stopped % 3))
        except interrupt.Interrupted:
            stopped += 1
    assert stopped >= 4
    assert (ran, files(tmp_path / "run")) == tuned


def test_a_run_that_dies_between_masks_and_training(tuned, tmp_path):
    places = set()

    class Dies(Failing):
        def fails(self, *place):
            new = "tuned" in str(place) and str(place) not in places
            places.add(str(place))
            return new

    ran = None
    while ran is None:
        try:
            ran = run(fine_tuned(), tmp_path / "run", wrap=Dies)
        except Died:
            pass
    assert len(places) > 3
    assert (ran, files(tmp_path / "run")) == tuned


@pytest.mark.parametrize("rewind", ["start", 4, None])
def test_rounds_of_pruning_and_rewinding(rewind, tmp_path):
    """20 % of what is left, three times: nested masks, each round from the state that was said."""
    first = an_arm("a", snapshots=Snapshots(When(epochs=(1,), end=False)))
    percent = [100 * (1 - 0.8**i) for i in (1, 2, 3)]
    stages = pruning.rounds(first, percent, pruning.Prune((0,)), rewind)
    assert [stage.arm for stage in stages if isinstance(stage, Train)] == [
        f"a-round-{i}" for i in (1, 2, 3)
    ]
    last = Derive("last", "a-round-3", as_is, ())  # so that its state is kept
    ran = run(a_plan(first, *stages, last), tmp_path / "run")
    for seed in (0, 1):
        before, mask = "a", None
        for i, amount in enumerate(percent, 1):
            own = pruning.Prune((amount,)).of(amount)
            ones = on_disk(ran, f"a-masks-{i}", seed, own).params
            found = jax.tree.map(lambda x: np.asarray(x) == 1, ones)
            wanted = prune.mask(on_disk(ran, before, seed).params, amount / 100)
            assert tree.digest(found) == tree.digest(wanted)
            if mask is not None:
                pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(found), strict=True)
                assert all(np.all(a >= b) for a, b in pairs)
            # Biases start at 0 and are not pruned, which a mask read off the weights would think.
            assert np.all(found["head"]["bias"])
            at = (before, seed) if rewind is None else ("a", seed, (), rewind)
            start = on_disk(ran, f"a-round-{i}", seed, at="start").params
            expected = prune.apply_mask(on_disk(ran, *at).params, found)
            assert tree.digest(start) == tree.digest(expected)
            end = on_disk(ran, f"a-round-{i}", seed).params
            assert np.all(masked_arrays(end, found) == 0.0)
            assert np.all(np.asarray(end["head"]["bias"]) != 0)
            before, mask = f"a-round-{i}", found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pruning.Prune((100,)), "less than 100, which prunes everything"),
        (lambda: pruning.Prune((math.nan,)), "percent="),
        (lambda: pruning.Prune((50,), scope="all"), "unknown scope"),  # pyright: ignore
        (lambda: pruning.Prune((50,), method="saliency"), "unknown method"),  # pyright: ignore
        (lambda: pruning.Prune((50,), layers="rek"), "did you mean 'erk'"),  # pyright: ignore
        (lambda: pruning.Prune((50,), scope="variables", masks=True), "has no mask of the weights"),
        (
            lambda: pruning.rounds(an_arm("a"), (50, 20), pruning.Prune((0,))),
            "give amounts that rise",
        ),
        (
            lambda: pruning.rounds(an_arm("a"), (20, 50), pruning.Prune((0,), method="random")),
            "pruned weights come back",
        ),
    ],
)
def test_what_a_transform_refuses(make, words):
    with pytest.raises(UserError, match=words):
        make()
