"""The optimiser of a config: values checked without jax, schedules and steps in closed form."""

import dataclasses
import functools
import importlib
import math
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from sharpjax import catalog, loops, optim, perturbation, tree
from sharpjax.errors import UserError
from sharpjax.optim import OptimizerSpec, from_config, settings

ROOT = pathlib.Path(__file__).resolve().parent.parent


def config(**values):
    """The `optim` block of the main config, with some fields changed."""
    block = runpy.run_path(str(ROOT / "configs" / "sam_cifar.py"))["get_config"]().optim
    return ConfigDict(block.to_dict() | values)


def spec(**values):
    return from_config(config(**values), steps_per_epoch=10, total_steps=50, batch_size=128)


def loss(w, batch):
    return jnp.mean((batch @ w - 1.0) ** 2), None


def train(tx, w, batch, num_steps=3):
    """A few steps as a training loop takes them; gives the parameters after each, and the state."""
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    state, path = tx.init(w), []
    for _ in range(num_steps):
        (value, _), grads = grad_fn(w, batch)
        updates, state = tx.update(
            grads, state, w, value=value, grad_fn=grad_fn, batch=batch, chunk_grads=None
        )
        w = optax.apply_updates(w, updates)
        path.append(np.asarray(w))
    return path, state


def data(dtype=jnp.float64):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=3), dtype), jnp.asarray(rng.normal(size=(8, 3)), dtype)


# Values, without jax.


def test_the_check_imports_no_jax():
    code = """
import sys
from types import SimpleNamespace
from sharpjax.optim import settings
block = SimpleNamespace(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=5e-4,
                        schedule="cosine", warmup_epochs=1.0, rho=0.05, scaling="none", eta=0.0,
                        m=0)
settings.check(block, batch_size=128, epochs=15)
heavy = {"jax", "optax", "numpy", "flax", "ml_collections"} & set(sys.modules)
assert not heavy, heavy
import sharpjax.optim
assert callable(sharpjax.optim.sam) and "jax" in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_table_of_contents():
    for name in optim.__all__:
        assert getattr(optim, name) is not None
    importlib.import_module("sharpjax.optim.sharpness_aware")
    assert callable(optim.sam) and optim.sam.__name__ == "sam"
    with pytest.raises(AttributeError, match="no attribute 'asam'"):
        _ = optim.asam


def test_fields_are_those_of_the_config():
    assert sorted(settings.FIELDS) == sorted(config().keys())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "sdg", "did you mean 'sgd'. Known: adam, adamax, adamw, sgd"),
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("scaling", "elements", "did you mean 'element'"),
        ("learning_rate", 0.0, "=0.0: give a number above 0"),
        ("learning_rate", math.nan, "=nan: give a number above 0"),
        ("learning_rate", math.inf, "=inf: give a number above 0"),
        ("learning_rate", "0.1", "='0.1': give a number above 0"),
        ("momentum", 1.0, r"=1.0: give a number in \[0, 1\)"),
        ("momentum", -0.1, r"=-0.1: give a number in \[0, 1\)"),
        ("weight_decay", -1e-4, "=-0.0001: give a number of 0 or more"),
        ("warmup_epochs", -1.0, "=-1.0: give"),
        ("warmup_epochs", 5.5, "=5.5 is longer than the training, 5 epochs"),
        ("rho", -0.05, r"=-0.05: give a number of 0 \(no SAM\) or more"),
        ("rho", math.nan, "=nan: give"),
        ("rho", True, "=True: give"),
        ("eta", -0.1, "=-0.1: give"),
        ("eta", 0.1, "=0.1 is for scaling 'element' .ASAM., .*config.optim.scaling is 'none'"),
        ("m", -1, "=-1: give an integer of 0 .the whole batch. or more"),
        ("m", 2.0, "=2.0: give an integer"),
        ("m", 48, "=48 does not divide the batch of 128 examples .config.train.batch_size."),
        ("m", 256, "=256 does not divide the batch of 128"),
        ("b2", 1.0, r"=1.0: give a number in \[0, 1\)"),
        ("eps", 0.0, "=0.0: give a number above 0"),
        ("norm", "l1", "='l1': give one of 'l2', 'linf', 'none'"),
        ("ascent_steps", 0, "=0: give an integer of 1 or more"),
        ("every", 2.0, "=2.0: give an integer of 1 or more"),
        ("reuse", 0.5, "=0.5 would be ignored: it needs every of 2 or more"),
        ("bias", "unit", "='unit' would be ignored: it needs scaling 'element'"),
        ("friendly_decay", 0.6, "=0.6 would be ignored: it needs friendly above 0"),
        ("b2", 0.98, "=0.98 is for adam, adamax and adamw, and config.optim.name is 'sgd'"),
    ],
)
def test_impossible_values_name_the_field(field, value, said):
    with pytest.raises(UserError, match=f"config.optim.{field}.*{said}"):
        spec(**{field: value})


@pytest.mark.parametrize(
    "values",
    [
        {"rho": 0.0},
        {"rho": 1, "scaling": "element", "eta": 0.01, "m": 64},
        {"scaling": "element", "m": 128},
        {"momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 5.0},
        {"name": "adamw", "schedule": "linear"},
        {"name": "adam", "b2": 0.98, "eps": 1e-7},
        {"b2": 0.999},  # the default, whoever names it
        {"learning_rate": np.float32(0.1)},
        {"scaling": "filter", "eta": 0.01, "bias": "frozen", "only": "w", "norm": "linf"},
        {"every": 5, "reuse": 0.7, "ascent_steps": 2},
        {
            "friendly": 1.0,
            "friendly_decay": 0.6,
            "gap_weight": 0.4,
            "rho_schedule": "learning_rate",
        },
    ],
)
def test_possible_values(values):
    settings.check(config(**values), batch_size=128)
    assert hash(spec(**values)) == hash(spec(**values)) and spec(**values) == spec(**values)


def test_an_unknown_name_in_a_spec():
    for field, bad in (("name", "sdg"), ("schedule", "cosin"), ("scaling", "elements")):
        values = {"name": "sgd", "learning_rate": 0.1, "rho": 0.1} | {field: bad}
        with pytest.raises(UserError, match=f"'{bad}'; did you mean"):
            OptimizerSpec(**values).build()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rho": -0.05}, "rho=-0.05; give a number of 0 or more"),
        ({"rho": math.nan}, "rho=nan"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"schedule": "cosine"}, "schedule='cosine' and total_steps=0; give the steps"),
        ({"schedule": "linear", "warmup_steps": 3}, "schedule='linear'"),
    ],
)
def test_wrong_values_in_a_spec(values, says):
    with pytest.raises(UserError, match=f"OptimizerSpec: {says}"):
        OptimizerSpec("sgd", 0.1, **values)


# From config to spec.


def test_from_config():
    got = spec(rho=0.5, scaling="element", eta=0.01, m=32, warmup_epochs=1.5)
    assert got == OptimizerSpec(
        name="sgd",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_steps=15,
        total_steps=50,
        rho=0.5,
        scaling="element",
        eta=0.01,
        m=32,
    )
    assert got.uses_sam
    assert spec(m=128) == spec(m=0)
    # A baseline arm of an m-SAM study takes plain steps.
    plain = spec(rho=0.0, m=32, scaling="element", eta=0.01)
    assert plain == spec(rho=0.0) and plain.m == 0 and not plain.uses_sam


# Schedules and steps.


@pytest.mark.parametrize("name", settings.SCHEDULES)
def test_schedules(name, x64):
    warmup, total = 4, 20
    values = OptimizerSpec("sgd", 0.5, schedule=name, warmup_steps=warmup, total_steps=total)
    rate = values.learning_rate_schedule()
    for step in range(total + 3):
        done = min(max((step - warmup) / (total - warmup), 0), 1)
        after = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}
        want = 0.5 * (step / warmup if step < warmup else after[name])
        assert float(rate(step)) == pytest.approx(want, abs=1e-7)
        assert float(rate(jnp.int32(step))) == pytest.approx(want, abs=1e-7)
    cold = dataclasses.replace(values, warmup_steps=0).learning_rate_schedule()
    assert float(cold(0)) == 0.5


def test_warmup_through_the_whole_training():
    for name in settings.SCHEDULES:
        rate = spec(schedule=name, warmup_epochs=5.0).learning_rate_schedule()
        assert [float(rate(t)) for t in (0, 25, 50)] == pytest.approx([0.0, 0.05, 0.1])


def test_sgd_couples_weight_decay_before_momentum(x64, strict):
    w, batch = data()
    values = OptimizerSpec(
        "sgd", 0.1, momentum=0.9, weight_decay=0.3, schedule="linear", total_steps=4
    )
    path, _ = train(values.build(), w, batch)
    rate = values.learning_rate_schedule()  # in float32; the schedules have their own test
    want, velocity = np.asarray(w), np.zeros(3)
    for step, got in enumerate(path):
        g = 2 * np.asarray(batch).T @ (np.asarray(batch) @ want - 1) / 8
        velocity = 0.9 * velocity + g + 0.3 * want
        want = want - float(rate(jnp.int32(step))) * velocity
        np.testing.assert_allclose(got, want, rtol=1e-12)
    plain = dataclasses.replace(values, momentum=0.0, weight_decay=0.0, schedule="constant")
    np.testing.assert_array_equal(
        train(plain.build(), w, batch)[0], train(with_extra(optax.sgd(0.1)), w, batch)[0]
    )


@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_adam_and_adamax_couple_weight_decay(name, x64):
    """Against the formulas of arXiv 1412.6980, of the gradient with the decay in it."""
    w, batch = data()
    values = OptimizerSpec(name, 0.01, momentum=0.8, weight_decay=0.3, b2=0.9, eps=1e-3)
    path, _ = train(values.build(), w, batch)
    x, want, m, v = np.asarray(batch), np.asarray(w), np.zeros(3), np.zeros(3)
    for step, got in enumerate(path, 1):
        g = 2 * x.T @ (x @ want - 1) / 8 + 0.3 * want
        m = 0.8 * m + 0.2 * g
        if name == "adam":
            v = 0.9 * v + 0.1 * g**2
            scale = np.sqrt(v / (1 - 0.9**step)) + 1e-3
        else:
            scale = v = np.maximum(0.9 * v, np.abs(g) + 1e-3)
        want = want - 0.01 * m / (1 - 0.8**step) / scale
        np.testing.assert_allclose(got, want, rtol=1e-6)  # optax corrects the bias in float32
    as_is, _ = train(
        dataclasses.replace(values, weight_decay=0.0, b2=0.999, eps=1e-8).build(), w, batch
    )
    make = getattr(optax, name)
    np.testing.assert_array_equal(as_is, train(with_extra(make(0.01, b1=0.8)), w, batch)[0])


def test_a_config_need_not_name_the_options_of_adam():
    assert not set(settings.OPTIONAL) & set(settings.FIELDS)
    assert spec(name="adam") == spec(name="adam", b2=0.999, eps=1e-8)
    got = spec(name="adamax", b2=0.98, eps=1e-7)
    assert (got.name, got.b2, got.eps) == ("adamax", 0.98, 1e-7)


def with_extra(tx):
    return optax.with_extra_args_support(tx)


def test_adamw_decouples_weight_decay(x64):
    w, batch = data()
    values = OptimizerSpec("adamw", 0.01, momentum=0.8, weight_decay=0.3)
    path, _ = train(values.build(), w, batch)
    want, _ = train(with_extra(optax.adamw(0.01, b1=0.8, weight_decay=0.3)), w, batch)
    np.testing.assert_array_equal(path, want)
    free, _ = train(dataclasses.replace(values, weight_decay=0.0).build(), w, batch, num_steps=1)
    np.testing.assert_allclose(free[0] - path[0], 0.01 * 0.3 * w, rtol=1e-9)


def test_every_name_of_the_catalog_can_be_built():
    w, batch = data(jnp.float32)
    # A further one may need a branch of its own, and its own line on weight decay.
    assert set(catalog.OPTIMIZERS) == {"sgd", "adam", "adamax", "adamw"}
    for name in catalog.OPTIMIZERS:
        for scaling in catalog.SCALINGS:
            path, _ = train(spec(name=name, scaling=scaling).build(), w, batch, num_steps=2)
            assert np.isfinite(path).all() and np.any(path[1] != np.asarray(w))


def test_without_sam_there_is_one_gradient():
    def second_pass(*_):
        raise AssertionError("a second gradient")

    w, _ = data(jnp.float32)
    tx = spec(rho=0.0, warmup_epochs=0.0).build()
    updates, _ = tx.update(
        w, tx.init(w), w, value=1.0, grad_fn=second_pass, batch=None, chunk_grads=None
    )
    np.testing.assert_allclose(updates, -0.1 * (1 + 5e-4) * w, rtol=1e-6)


@pytest.mark.parametrize("m", [0, 4])
def test_with_sam_it_is_sam_round_the_base(m, x64):
    w, batch = data()
    values = OptimizerSpec(
        "sgd", 0.1, momentum=0.9, weight_decay=0.3, rho=0.2, scaling="element", eta=0.01, m=m
    )
    rate = optax.constant_schedule(0.1)
    decayed = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(rate, momentum=0.9))
    rule = perturbation.element(eta=0.01)
    want = optim.sam(decayed, rho=0.2, scaling=rule, m=m or None)
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    (value, _), grads, chunks = optim.sam_value_and_grad(loss, m=m or 8)(w, batch)
    given = {"value": value, "grad_fn": grad_fn, "batch": batch}
    given["chunk_grads"] = chunks if m else None
    got = [tx.update(grads, tx.init(w), w, **given) for tx in (values.build(), want)]
    assert tree.digest(got[0]) == tree.digest(got[1])
    # Weight decay is in the descent and not in the ascent.
    free = dataclasses.replace(values, weight_decay=0.0).build()
    updates, state = free.update(grads, free.init(w), w, **given)
    np.testing.assert_allclose(got[0][0] - updates, -0.1 * 0.3 * w, rtol=1e-10)
    assert state.statistics == got[0][1].statistics


@dataclasses.dataclass(frozen=True)
class Step:
    """A step for `loops.iterate` that holds its optimiser by value."""

    optimizer: OptimizerSpec

    def __call__(self, carry, batch):
        TRACES.append(self)
        w, state = carry
        grad_fn = jax.value_and_grad(loss, has_aux=True)
        (value, _), grads = grad_fn(w, batch)
        updates, state = self.optimizer.build().update(
            grads, state, w, value=value, grad_fn=grad_fn, batch=batch
        )
        return optax.apply_updates(w, updates), state


TRACES = []


def test_an_equal_spec_compiles_nothing_again():
    w, batch = data(jnp.float32)

    def run():
        values = spec(rho=0.1, warmup_epochs=0.0)
        start = w, values.build().init(w)
        (end, state), _ = loops.iterate(Step(values), start, batch, max_steps=5)
        assert state.count == 5
        return end

    first, traced = run(), len(TRACES)
    np.testing.assert_array_equal(run(), first)
    assert len(TRACES) == traced > 0
    path, _ = train(spec(rho=0.1, warmup_epochs=0.0).build(), w, batch, num_steps=5)
    np.testing.assert_allclose(first, path[-1], rtol=1e-5)


def test_the_methods_of_the_family_from_a_config(x64):
    """Each option reaches `sam`, and a radius that follows the learning rate is `coupled_rho`."""
    w, batch = data()
    rate = optax.linear_schedule(0.1, 0.0, 4)
    coupled = optim.coupled_rho(rate, rho_max=0.2, lr_max=0.1)
    many = {"every": 2, "reuse": 0.7, "norm": "l2", "ascent_steps": 2, "gap_weight": 0.4}
    of_sam = {("steps" if name == "ascent_steps" else name): x for name, x in many.items()}
    values = OptimizerSpec(
        "sgd", 0.1, schedule="linear", total_steps=4, rho=0.2, scaling="filter", eta=0.01,
        bias="unit", rho_schedule="learning_rate", friendly=0.8, friendly_decay=0.6, **many,
    )  # fmt: skip
    want = optim.sam(
        optax.sgd(rate),
        rho=coupled,
        scaling=perturbation.filters(0.01, bias="unit"),
        ascent=optim.friendly(0.8, 0.6),
        **of_sam,
    )
    got, _ = train(values.build(), w, batch, num_steps=3)
    np.testing.assert_allclose(got, train(want, w, batch, num_steps=3)[0], rtol=1e-12)
    assert values.gradients == 2 and spec(rho=0.1, ascent_steps=3).gradients == 4
    # Without SAM they are dropped, as its other values are.
    assert spec(rho=0.0, every=2, gap_weight=0.4) == spec(rho=0.0)


# Hyperparameters as leaves.

SPECS = {
    "sgd": {"momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "warmup_steps": 2},
    "constant": {},
    "linear": {"schedule": "linear", "weight_decay": 0.01},
    "adamw": {"name": "adamw", "momentum": 0.9, "weight_decay": 0.01, "warmup_steps": 1},
    "adam": {"name": "adam", "momentum": 0.9, "weight_decay": 0.01, "schedule": "cosine"},
    "sam": {"momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "rho": 0.05},
    "asam": {"momentum": 0.9, "rho": 0.5, "scaling": "element", "eta": 0.01, "warmup_steps": 2},
    "m-sam": {"momentum": 0.9, "weight_decay": 5e-4, "rho": 0.05, "m": 2},
    "gsam": {"rho": 0.05, "gap_weight": 0.4, "rho_schedule": "learning_rate", "schedule": "linear"},
    "looksam": {"rho": 0.05, "every": 3, "reuse": 0.7, "scaling": "filter", "bias": "unit"},
    "fsam": {"rho": 0.05, "friendly": 1.0, "only": "w", "norm": "linf", "ascent_steps": 2},
}


def spec_of(name, **values):
    return OptimizerSpec(
        **{"name": "sgd", "learning_rate": 0.1, "total_steps": 6} | SPECS[name] | values
    )


def net(params, batch):
    """A loss whose gradients are products, sums and multiples by a constant."""
    hidden = jnp.maximum(batch @ params["w"] + params["b"], 0)
    return jnp.mean((hidden - 1.0) ** 2) + 0.37 * jnp.mean(params["w"] ** 3), None


def net_step(tx, m, params, state, batch):
    grad_fn, chunk_grads = jax.value_and_grad(net, has_aux=True), None
    if m:
        (value, _), grads, chunk_grads = optim.sam_value_and_grad(net, m=m)(params, batch)
    else:
        (value, _), grads = grad_fn(params, batch)
    updates, state = tx.update(
        grads, state, params, value=value, grad_fn=grad_fn, batch=batch, chunk_grads=chunk_grads
    )
    return tree.add_scaled(params, 1.0, updates), state, updates


def assert_leaves_are_values(name, compiled):
    values = spec_of(name)

    def static(params, state, batch):
        return net_step(values.build(), values.m, params, state, batch)

    def leaves(numbers, params, state, batch):
        tx = values.structure().build(numbers)
        return net_step(tx, values.m, params, state, batch)

    if compiled:
        static, leaves = jax.jit(static), jax.jit(leaves)
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    # Most of the units are dead: their gradients are zeros of either sign.
    params = {"w": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32), "b": -jnp.arange(4.0) * 5}
    state = values.structure().build().init(params)
    assert tree.digest(state) == tree.digest(values.build().init(params))
    one = two = (params, state)
    for _ in range(5):
        one, two = static(*one[:2], batch), leaves(values.hyperparameters(), *two[:2], batch)
        assert tree.digest(one) == tree.digest(two)
    assert tree.digest(one[0]) != tree.digest(params)


@pytest.mark.parametrize("name", SPECS)
def test_leaves_are_the_values_bit_by_bit(name):
    assert_leaves_are_values(name, compiled=False)


@pytest.mark.usual_flags
@pytest.mark.parametrize("name", SPECS)
def test_compiled_leaves_are_the_values_bit_by_bit(name):
    assert_leaves_are_values(name, compiled=True)


def test_arms_that_differ_in_hyperparameters_compile_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def update(structure, numbers, grads):
        traces.append(structure)
        tx = structure.build(numbers)
        return tx.update(grads, tx.init(grads), grads)[0]

    arms = [spec_of("sgd"), spec_of("sgd", learning_rate=0.5, weight_decay=0.1)]
    assert arms[0] != arms[1] and arms[0].structure() == arms[1].structure()
    grads = jnp.ones(3)
    for arm in arms:
        update(arm.structure(), arm.hyperparameters(), grads)
    assert len(traces) == 1
    # In lanes too, each with its own.
    lanes = tree.stack([arm.hyperparameters() for arm in arms])
    states = [arm.build().init(grads) for arm in arms]
    later = dataclasses.replace(arms[0], warmup_steps=0).structure()
    together = jax.vmap(lambda v: later.build(v).update(grads, states[0], grads)[0])(lanes)
    rates = np.array([[0.1 * (1 + 5e-4)], [0.5 * (1 + 0.1)]])
    np.testing.assert_allclose(together, -rates * np.ones(3), rtol=1e-6)


def test_what_is_left_out_is_structure():
    plain = spec_of("constant")
    assert spec_of("constant", weight_decay=0.1).structure() != plain.structure()
    assert spec_of("constant", rho=0.1).structure() != plain.structure()
    assert spec_of("sam", rho=0.1).structure() == spec_of("sam", rho=0.5).structure()
    structure = spec_of("sam").structure()
    assert structure.structure() == structure and hash(structure) is not None
    assert structure.uses_sam and not plain.structure().uses_sam
    leaves = spec_of("sam").hyperparameters()
    assert [float(x) for x in leaves] == pytest.approx([0.1, 5e-4, 0.05])
    assert {x.dtype for x in leaves} == {jnp.dtype("float32")}


def test_a_structure_alone_takes_no_step():
    w = jnp.ones(3)
    for name in ("sgd", "sam"):
        tx = spec_of(name).structure().build()
        with pytest.raises(UserError, match="without its learning rate; give values"):
            tx.update(w, tx.init(w), w, value=1.0, grad_fn=None, batch=None)
