"""A loss is what calling it gives now, whatever it reads; one that reads the same compiles nothing.

`loss` is `c mean(batch w^2) / 2` in every way, and c changes: it is also an outer loss, of outputs
in place of parameters.
"""

import dataclasses
import functools
import operator
import os
import pickle
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.geometry import (
    adaptive_sharpness,
    averaged,
    batch_sharpness,
    check_deterministic,
    composed,
    critical_sharpness,
    diagonal,
    directional_curvature,
    directional_sharpness,
    empirical_fisher,
    frobenius,
    gauss_newton,
    hessian,
    hvp,
    local_learning_coefficient,
    sam_sharpness,
    spectral_density,
    top_eigenpairs,
    trace,
    worst_case_sharpness,
)
from sharpjax.geometry.loss import reads
from sharpjax.losses import CrossEntropy

N = 4
PARAMS, BATCH = jnp.arange(1.0, N + 1), jnp.ones(N)
KEY = jax.random.key(0)

FACTOR: Any = 1.0
ARRAY = jnp.array(1.0)
NUMPY = np.array([1.0, 1.0])
TABLE: dict[str, Any] = {"loss": {"factor": 1.0}, "other": 0}
STATS = {"batch_stats": {"norm": {"scale": jnp.ones(N)}}}
ITEMS = [1.0, 2.0]
MODULE: Any = types.ModuleType("settings_of_a_test")
MODULE.factor = 1.0
sys.modules["settings_of_a_test"] = MODULE


def form(factor, w, batch):
    return jnp.mean(factor * batch * w**2) / 2


def global_scalar():
    def change():
        global FACTOR
        FACTOR = FACTOR + 1

    return lambda w, batch: form(FACTOR, w, batch), change


def global_array():
    def change():
        global ARRAY
        ARRAY = ARRAY + 1

    return lambda w, batch: form(ARRAY, w, batch), change


def content_of_numpy():
    def change():
        NUMPY[1] += 1  # in place

    return lambda w, batch: form(float(NUMPY[1]), w, batch), change


def dict_entry():
    def change():
        TABLE["loss"]["factor"] += 1

    return lambda w, batch: form(TABLE["loss"]["factor"], w, batch), change


def statistics():
    def change():
        STATS["batch_stats"]["norm"]["scale"] = STATS["batch_stats"]["norm"]["scale"] + 1

    return lambda w, batch: form(STATS["batch_stats"]["norm"]["scale"], w, batch), change


def closure_cell():
    factor = 1.0

    def loss(w, batch):
        return form(factor, w, batch)

    def change():
        nonlocal factor
        factor += 1

    return loss, change


class Named(dict):
    """Entries, and attributes beside them."""


def attribute_of_a_dict():
    named = Named()
    named.factor = 1.0

    def change():
        named.factor += 1

    return lambda w, batch: form(named.factor, w, batch), change


class Listed(list):
    factor = 1.0


def class_attribute_of_a_list():
    listed = Listed()

    def change():
        Listed.factor += 1

    return lambda w, batch: form(listed.factor, w, batch), change


def attribute_that_is_there_or_not():
    class Switch:
        pass

    def change():
        setattr(Switch, "higher" if hasattr(Switch, "high") else "high", True)

    def loss(w, batch):
        return form(1.0 + hasattr(Switch, "high") + hasattr(Switch, "higher"), w, batch)

    return loss, change


def default_argument():
    factors = [1.0]

    def loss(w, batch, factor=factors[0], *, other=0.0):
        return form(factor + other, w, batch)

    def change():
        factors[0] += 1
        loss.__defaults__ = (factors[0],)

    return loss, change


def keyword_default():
    factors = [1.0]

    def loss(w, batch, *, factor=factors[0]):
        return form(factor, w, batch)

    def change():
        factors[0] += 1
        loss.__kwdefaults__ = {"factor": factors[0]}

    return loss, change


class Trainer:
    factor = 1.0

    def __init__(self):
        self.temperature, self.table, self.steps = 1.0, {"factor": 1.0}, 0

    def by_attribute(self, w, batch):
        return form(self.temperature, w, batch)

    def by_table(self, w, batch):
        return form(self.table["factor"], w, batch)

    def by_helper(self, w, batch):
        return form(self.helper(), w, batch)

    def helper(self):
        return getattr(self, "temperature")  # noqa: B009

    def __call__(self, w, batch):
        return self.by_attribute(w, batch)

    def model(self, w, batch):
        return self.temperature * batch * w

    @property
    def warmer(self):
        return 2 * self.temperature


def method(name):
    def way():
        trainer = Trainer()

        def change():
            trainer.temperature += 1
            trainer.table["factor"] += 1

        return (getattr(trainer, name) if name else trainer), change

    return way


def property_of_a_global():
    trainer = Trainer()

    def change():
        trainer.temperature += 1

    return lambda w, batch: form(trainer.warmer, w, batch), change


@dataclasses.dataclass(eq=False)
class Field:
    factor: float = 1.0

    def __call__(self, w, batch):
        return form(self.factor, w, batch)


def dataclass_field():
    loss = Field()

    def change():
        loss.factor += 1

    return loss, change


class Slotted:
    __slots__ = ("factor",)

    def __init__(self):
        self.factor = 1.0

    def loss(self, w, batch):
        return form(self.factor, w, batch)


def slot():
    held = Slotted()

    def change():
        held.factor += 1

    return held.loss, change


def class_attribute():
    def change():
        Trainer.factor += 1

    return lambda w, batch: form(Trainer.factor, w, batch), change


def partial_arguments():
    held = [1.0]
    loss = functools.partial(lambda held, w, batch: form(held[0], w, batch), held)

    def change():
        held[0] += 1

    return loss, change


def nested_function():
    def loss(w, batch):
        def inner(x):
            return FACTOR * x

        return form(inner(1.0), w, batch)

    return loss, global_scalar()[1]


def function_behind():
    def change():
        MODULE.helper = functools.partial(jnp.multiply, MODULE.factor + 1)
        MODULE.factor += 1

    MODULE.helper = functools.partial(jnp.multiply, MODULE.factor)
    return lambda w, batch: form(MODULE.helper(1.0), w, batch), change


def module_attribute():
    def loss(w, batch):
        import settings_of_a_test  # pyright: ignore[reportMissingImports]

        return form(settings_of_a_test.factor, w, batch)

    def change():
        MODULE.factor += 1

    return loss, change


def list_element():
    def change():
        ITEMS[1] += 1

    return lambda w, batch: form(ITEMS[1], w, batch), change


def attribute_of_the_function():
    def loss(w, batch):
        return form(loss.factor, w, batch)

    loss.factor = 1.0

    def change():
        loss.factor += 1

    return loss, change


def behind_wrappers():
    def wrapper(fn):
        @functools.wraps(fn)
        def wrapped(*args):
            return fn(*args)

        return wrapped

    return wrapper(lambda w, batch: form(FACTOR, w, batch)), global_scalar()[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """A callable pytree, whose code reads a global."""

    shift: jax.Array

    def __call__(self, w, batch):
        return form(FACTOR + self.shift, w, batch)


def callable_pytree():
    return Tree(jnp.array(0.5)), global_scalar()[1]


def static_function_of_a_pytree():
    def fn(shift, w, batch):
        return form(TABLE["loss"]["factor"] + shift, w, batch)

    return jax.tree_util.Partial(fn, jnp.array(0.5)), dict_entry()[1]


def unreadable():
    """Held by an object that cannot be looked into: here, an iterator of C."""
    held: Any = iter(range(1, 1000))

    def loss(w, batch):
        return form(1 + held.__length_hint__(), w, batch)

    return loss, lambda: next(held)


def large_array():
    held = np.ones(2**18)  # 2 MiB

    def loss(w, batch):
        return form(float(held[7]), w, batch)

    def change():
        held[7] += 1

    return loss, change


class Settings:
    """Of a class, what `Trainer` has in its objects."""

    factor = 1.0
    table = {"factor": 1.0}  # noqa: RUF012

    @classmethod
    def warmer(cls):
        return 2 * cls.factor


class Inherited(Settings):
    pass


class Meta(type):
    scale = 1.0

    @property
    def warmer(cls):
        return 2 * cls.factor  # pyright: ignore[reportAttributeAccessIssue]


class WithMeta(metaclass=Meta):
    factor = 1.0


class Computed:
    factor = 1.0

    def __init__(self, name):
        self.name = name

    def loss(self, w, batch):
        return form(getattr(self, self.name), w, batch)


@dataclasses.dataclass(eq=False)
class ComputedField:
    name: str = "factor"

    def __call__(self, w, batch):
        return form(getattr(self, self.name), w, batch)


NAME = "factor"
fetch, factor_getter, warmer_caller = (
    getattr,
    operator.attrgetter("factor"),
    operator.methodcaller("warmer"),
)


def scaled_by_a_global(x):
    return FACTOR * x


def any_attribute(of, read):
    """`read(of)` gives the attribute `factor`, which its code does not name."""

    def way():
        def change():
            of.factor += 1

        return lambda w, batch: form(read(of), w, batch), change

    way.__qualname__ = f"any_attribute {of.__name__} {read.__name__}"
    return way


def by_getattr(of):
    return getattr(of, "factor")  # noqa: B009


def by_a_computed_name(of):
    return getattr(of, NAME)


def by_a_name_in_two_parts(of):
    return getattr(of, "fac" + NAME[3:])


def by_vars(of):
    return vars(of)[NAME]


def by_dict(of):
    return of.__dict__[NAME]


def by_attrgetter(of):
    return operator.attrgetter(NAME)(of)


def by_an_attrgetter_made_before(of):
    return factor_getter(of)


def by_another_name_of_getattr(of):
    return fetch(of, NAME)


def by_a_partial_getattr(of):
    return functools.partial(fetch, of)(NAME)


def by_getattribute(of):
    kind = type if isinstance(of, type) else object
    return kind.__getattribute__(of, NAME)


def by_a_method_with_a_name(of):
    return operator.methodcaller("warmer")(of)


def by_a_methodcaller_made_before(of):
    return warmer_caller(of)


def by_a_property_of_the_metaclass(of):
    return of.warmer


def class_attribute_of_an_object():
    def change():
        Computed.factor += 1

    return Computed("factor").loss, change


def new_attribute_of_a_dataclass():
    loss = ComputedField("other")
    loss.other = 1.0  # pyright: ignore[reportAttributeAccessIssue]

    def change():
        loss.other += 1  # pyright: ignore[reportAttributeAccessIssue]

    return loss, change


def attribute_of_a_metaclass():
    def change():
        Meta.scale += 1

    return lambda w, batch: form(getattr(WithMeta, "sca" + "le"), w, batch), change


def base_of_a_class():
    def change():
        Settings.factor += 1

    return lambda w, batch: form(getattr(Inherited, NAME), w, batch), change


def table_of_a_class():
    def change():
        Settings.table["factor"] += 1

    return lambda w, batch: form(vars(Settings)["table"]["factor"], w, batch), change


def module_in_a_module():
    inner: Any = types.ModuleType("inner_settings_of_a_test")
    inner.factor, MODULE.inner = 1.0, inner

    def change():
        inner.factor += 1

    return lambda w, batch: form(operator.attrgetter("inner.factor")(MODULE), w, batch), change


def attribute_of_a_function_by_name():
    def loss(w, batch):
        return form(getattr(loss, NAME), w, batch)

    loss.factor = 1.0

    def change():
        loss.factor += 1

    return loss, change


def function_by_name():
    MODULE.scaled = scaled_by_a_global

    def loss(w, batch):
        return form(getattr(MODULE, "scaled")(1.0), w, batch)  # noqa: B009

    return loss, global_scalar()[1]


COMPUTED_NAMES = [
    *(
        any_attribute(of, read)
        for of in (Settings, MODULE)
        for read in (
            *(by_getattr, by_a_computed_name, by_a_name_in_two_parts, by_vars, by_dict),
            *(by_attrgetter, by_an_attrgetter_made_before, by_another_name_of_getattr),
            *(by_a_partial_getattr, by_getattribute),
        )
    ),
    *(
        any_attribute(Settings, read)
        for read in (by_a_method_with_a_name, by_a_methodcaller_made_before)
    ),
    any_attribute(WithMeta, by_a_property_of_the_metaclass),
    *(class_attribute_of_an_object, new_attribute_of_a_dataclass, attribute_of_a_metaclass),
    *(base_of_a_class, table_of_a_class, module_in_a_module, attribute_of_a_function_by_name),
    function_by_name,
]

WAYS = [
    *(global_scalar, global_array, content_of_numpy, dict_entry, statistics, closure_cell),
    *(default_argument, keyword_default, method("by_attribute"), method("by_table")),
    *(method("by_helper"), method(""), property_of_a_global, dataclass_field, slot),
    *(class_attribute, partial_arguments, nested_function, function_behind, module_attribute),
    *(list_element, attribute_of_the_function, behind_wrappers, callable_pytree),
    *(static_function_of_a_pytree, unreadable, large_array),
    *(attribute_of_a_dict, class_attribute_of_a_list, attribute_that_is_there_or_not),
    *COMPUTED_NAMES,
]


def factor_of(loss):
    """What calling it says now, with no part in what is tested."""
    return float(loss(jnp.ones(N), jnp.ones(N)) * 2)


def model_fn(w, batch):
    return batch * w


def rows(w, batch):
    return jnp.expand_dims(batch, 1) * w


def product(loss):
    return hessian(loss, PARAMS, BATCH).linearize()(jnp.ones(N))[0] * N


def rise(loss):
    found = sam_sharpness(loss, PARAMS, BATCH, rho=1.0)
    after = jnp.sum((PARAMS + PARAMS / jnp.linalg.norm(PARAMS)) ** 2)
    return found.value * 2 * N / (after - jnp.sum(PARAMS**2))


def outer(loss):
    return gauss_newton(composed(model_fn, loss), PARAMS, BATCH).linearize()(jnp.ones(N))[0] * N


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__qualname__)
def test_a_loss_is_what_calling_it_gives_now(way):
    loss, change = way()
    seen = []
    for _ in range(3):
        truth = factor_of(loss)
        for measure in (product, rise, outer):
            np.testing.assert_allclose(measure(loss), truth, rtol=1e-5)
        check_deterministic(loss, PARAMS, BATCH)
        seen.append(truth)
        change()
    assert len(set(seen)) == 3


MEASURES = {
    "hvp": lambda loss: hvp(loss, PARAMS, BATCH, jnp.ones(N))[0] * N,
    "top_eigenpairs": lambda loss: (
        top_eigenpairs(hessian(loss, PARAMS, BATCH), key=KEY, k=1).values[0] * N
    ),
    "trace": lambda loss: trace(hessian(loss, PARAMS, BATCH), key=KEY, max_products=32).value,
    "diagonal": lambda loss: (
        diagonal(hessian(loss, PARAMS, BATCH), key=KEY, max_products=16).value[0] * N
    ),
    "exact trace": lambda loss: (
        trace(gauss_newton(composed(rows, loss), PARAMS, BATCH), key=KEY, method="exact").value
    ),
    "frobenius": lambda loss: (
        frobenius(hessian(loss, PARAMS, BATCH), key=KEY, max_products=16).value * N**0.5
    ),
    "density": lambda loss: (
        spectral_density(hessian(loss, PARAMS, BATCH), key=KEY, num_steps=4, num_probes=1)
        .estimates()["trace"]
        .value
    ),
    "microbatches": lambda loss: hvp(loss, PARAMS[:1], BATCH, jnp.ones(1), microbatch_size=2)[0],
    "bfloat16": lambda loss: (
        hessian(loss, PARAMS, BATCH, precision="bfloat16").linearize()(jnp.ones(N))[0] * N
    ),
    "averaged": lambda loss: averaged(
        functools.partial(hessian, loss, PARAMS[:1]), [BATCH, BATCH]
    ).linearize()(jnp.ones(1))[0],
    "empirical_fisher": lambda loss: (
        empirical_fisher(loss, jnp.ones(1), BATCH).linearize()(jnp.ones(1))[0] ** 0.5
    ),
    "worst case": lambda loss: (
        worst_case_sharpness(loss, jnp.zeros(N), BATCH, key=KEY, rho=1.0, num_steps=3).value * 2 * N
    ),
    "adaptive": lambda loss: (
        adaptive_sharpness(loss, PARAMS[:1], BATCH, key=KEY, rho=1.0, num_steps=3).value / 1.5
    ),
    "directional": lambda loss: directional_curvature(loss, PARAMS, BATCH).value * N,
    "update": lambda loss: directional_sharpness(loss, PARAMS, BATCH, -PARAMS).slope / -7.5,
    "critical": lambda loss: critical_sharpness(loss, PARAMS, BATCH, -PARAMS).loss / 3.75,
    "mini-batches": lambda loss: (
        batch_sharpness(loss, PARAMS[:1], BATCH, batch_size=2, key=KEY, max_batches=2).value
    ),
    "learning coefficient": lambda loss: (
        local_learning_coefficient(
            *(loss, PARAMS, BATCH),
            key=KEY,
            step_size=0.1,
            localization=1.0,
            num_steps=2,
            burn_in=0,
        ).loss
        / 3.75
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_every_function_sees_what_changed(name):
    trainer = Trainer()
    for factor in (1.0, 2.0, 1.0):
        trainer.temperature = factor
        np.testing.assert_allclose(MEASURES[name](trainer.by_attribute), factor, rtol=0.02)


def test_a_model_is_what_it_reads_now():
    trainer, squares = Trainer(), functools.partial(form, 1.0)
    for factor in (1.0, 2.0, 1.0):
        trainer.temperature = factor
        operator = gauss_newton(composed(trainer.model, squares), PARAMS, BATCH)
        np.testing.assert_allclose(operator.linearize()(jnp.ones(N)) * N, factor**2, rtol=1e-5)


def test_an_operator_is_of_what_its_loss_reads_when_it_is_asked():
    trainer = Trainer()
    operator = hessian(trainer.by_attribute, PARAMS, BATCH)
    for factor in (1.0, 2.0, 3.0, 2.0):
        trainer.temperature = factor
        found = top_eigenpairs(operator, key=KEY, k=1)
        np.testing.assert_allclose(found.values[0], factor / N, rtol=1e-5)
        assert int(found.status) == 0


def test_a_scaling_is_what_it_reads_now():
    """With units of c on a quadratic form, the worst case rises as c^2."""
    units = {"size": 1.0}

    def scaling(params):
        return jax.tree.map(lambda x: jnp.full_like(x, units["size"]), params)

    for size in (1.0, 2.0, 1.0):
        units["size"] = size
        found = worst_case_sharpness(
            functools.partial(form, 1.0), jnp.zeros(N), BATCH, key=KEY, rho=1.0, scaling=scaling
        )
        np.testing.assert_allclose(found.value, size**2 / (2 * N), rtol=1e-3)


class Counted:
    """Reads one attribute, and writes two others."""

    def __init__(self):
        self.factor, self.calls, self.log, self.step = 1.0, 0, [], jnp.array(0)

    def loss(self, w, batch):
        self.calls += 1
        self.log.append(w.shape)
        return form(self.factor, w, batch)


def small(w, batch):
    return form(FACTOR * 1.5, w, batch)


@pytest.mark.parametrize("way", [*WAYS, lambda: (small, None), lambda: (Counted().loss, None)])
def test_what_reads_the_same_compiles_nothing(way, compilations):
    loss, _ = way()

    def measure():
        return jax.block_until_ready([m(loss) for m in (product, rise, outer)])

    first = measure()
    measure()
    compilations.clear()
    np.testing.assert_array_equal(measure(), first)
    assert compilations == []


def test_what_the_code_does_not_name_may_change(compilations):
    trainer = Trainer()
    product(trainer.by_attribute)
    compilations.clear()
    trainer.steps, trainer.table = 1, {}
    product(trainer.by_attribute)
    assert compilations == []


def test_back_to_what_was_read_before_compiles_nothing(compilations):
    trainer = Trainer()
    for factor in (1.0, 2.0):
        trainer.temperature = factor
        product(trainer.by_attribute)
    compilations.clear()
    for factor in (1.0, 2.0):
        trainer.temperature = factor
        np.testing.assert_allclose(product(trainer.by_attribute), factor, rtol=1e-5)
    assert compilations == []


def test_a_loss_that_writes_what_it_reads_is_told_apart_by_its_trace():
    counted = Counted()
    for factor in (1.0, 2.0):
        counted.factor = factor
        np.testing.assert_allclose(product(counted.loss), factor, rtol=1e-5)


def test_code_under_a_computed_name_counts_by_identity():
    def loss(w, batch):
        return form(getattr(MODULE, "_".join(("made", "up")))(1.0), w, batch)

    seen = []
    for factor in (1.0, 2.0):
        made_up = MODULE.made_up = lambda x, factor=factor: factor * x
        np.testing.assert_allclose(product(loss), factor, rtol=1e-5)
        seen.append(reads.look(loss).tokens)
    assert seen[0] != seen[1]
    made_up.__defaults__ = (3.0,)
    assert reads.look(loss).tokens == seen[1]


@pytest.mark.parametrize("kind", ["long", "deep"])
def test_what_is_too_long_or_too_deep_to_look_at_is_told_apart_by_a_trace(kind):
    module: Any = types.ModuleType("large_settings_of_a_test")
    module.factor, module.table = 1.0, list(range(1_000_000)) if kind == "long" else []
    for _ in range(0 if kind == "long" else 5000):
        module.table = [module.table]

    def loss(w, batch):
        return form(getattr(module, NAME), w, batch)

    found = reads.look(loss)
    assert found.is_opaque and len(found.tokens) < 2 * reads.MOST_ITEMS
    for module.factor in (1.0, 2.0):
        np.testing.assert_allclose(product(loss), module.factor, rtol=1e-5)


def test_of_installed_packages_names_that_the_code_holds_count_alone(monkeypatch):
    module: Any = types.ModuleType("installed_settings_of_a_test")
    module.__file__ = "/usr/lib/python3/site-packages/installed_settings_of_a_test.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.factor = module.other = 1.0

    def loss(w, batch):
        return form(getattr(module, "factor"), w, batch)  # noqa: B009

    before = reads.look(loss).tokens
    module.other = 2.0
    assert reads.look(loss).tokens == before
    module.factor = 2.0
    assert reads.look(loss).tokens != before


def test_arrays_are_not_kept_alive():
    held = types.SimpleNamespace(array=jnp.ones(3))
    seen = reads.look(lambda w, _: jnp.sum(held.array * w)).tokens
    before = len(jax.live_arrays())
    held.array = None
    assert len(jax.live_arrays()) == before - 1
    assert seen


def test_what_an_inner_jit_has_frozen_stays_as_calling_it_gives():
    held = [1.0]
    loss = jax.jit(lambda w, batch: form(held[0], w, batch))
    for held[0] in (1.0, 2.0):
        check_deterministic(loss, PARAMS, BATCH)
        np.testing.assert_allclose(factor_of(loss), 1.0, rtol=1e-6)


def test_a_compiled_value_that_differs_is_refused(monkeypatch):
    """The environment is read through the standard library, which counts as constant."""

    def loss(w, batch):
        return form(float(os.environ["FACTOR_OF_A_TEST"]), w, batch)

    monkeypatch.setenv("FACTOR_OF_A_TEST", "1")
    check_deterministic(loss, PARAMS, BATCH)
    monkeypatch.setenv("FACTOR_OF_A_TEST", "2")
    with pytest.raises(UserError, match=r"is 7\.5 when it is called and 3\.75 compiled"):
        check_deterministic(loss, PARAMS, BATCH)


def test_declared_weights_that_read_what_cannot_be_looked_into():
    """They are no part of the value of the loss, so its trace does not tell of them."""
    held: Any = iter(range(3))

    def weighted(outputs, batch):
        weight = 1 + 3.0 * (batch == 1)
        return jnp.sum(weight * outputs**2) / jnp.sum(weight)

    loss = composed(
        model_fn, weighted, example_weight=lambda b: 1.0 + (b == 1) * held.__length_hint__()
    )

    def cut():
        return hessian(loss, jnp.ones(1), jnp.arange(1.0, 5.0), microbatch_size=2)

    cut()
    next(held)
    with pytest.raises(UserError, match="not the weighted mean that its example_weight says"):
        cut()


def test_losses_of_two_classes_with_equal_fields():
    """Registered by jax, they have equal structures: their operators must not."""

    class Sum:
        shift: jax.Array

        def __call__(self, w, batch):
            return jnp.sum((w - self.shift) ** 2)

    class Fourth:
        shift: jax.Array

        def __call__(self, w, batch):
            return jnp.sum((w - self.shift) ** 4)

    losses = [
        jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))(jnp.zeros(()))
        for cls in (Sum, Fourth)
    ]
    first, second = (jax.tree.structure(hessian(loss, jnp.ones(2), None)) for loss in losses)
    assert first != second


def test_operators_that_were_pickled(key):
    composed_loss = composed(_linear, CrossEntropy())
    batch = {"x": jnp.eye(3), "label": jnp.array([0, 1, 1])}
    operator = gauss_newton(composed_loss, jnp.ones((3, 2)), batch)
    found = pickle.loads(pickle.dumps(operator))
    vector = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(found @ vector, operator @ vector, rtol=1e-6)


def _linear(params, batch):
    return batch["x"] @ params
