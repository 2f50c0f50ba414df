"""Random losses: those in which examples see each other are refused, and no other one is.

Nothing here was written for a case that was once wrong: forms, strengths, sizes and types are
drawn.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.geometry import averaged, composed, empirical_fisher, fisher, gauss_newton, hessian
from tests.metamorphic import at_once

DRAWS = 5
PARTS = {4: 2, 9: 3, 40: 8, 150: 30}  # examples of a batch, and of a part of it


# The loss of single examples, [N], from outputs [N, K].


def squared(outputs, batch):
    return jnp.mean(jnp.square(outputs - batch["target"]), axis=1)


def cross_entropy(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["label"][:, None], 1)[:, 0]


def robust(outputs, batch):
    return jnp.mean(jnp.log(jnp.cosh(outputs - batch["target"])), axis=1)


EACH = (squared, cross_entropy, robust)


# What becomes of them: `how(each, outputs, batch, strength)`, with N random numbers.


def total(each, outputs, batch, strength):
    return jnp.sum(each)


def power_of_mean(each, outputs, batch, strength):
    return jnp.mean(each) ** (1 + strength)


def log_of_mean(each, outputs, batch, strength):
    return jnp.log(strength + jnp.mean(each))


def soft_maximum(each, outputs, batch, strength):
    return jax.nn.logsumexp(4 * strength * each) / (4 * strength) - np.log(len(each))


def largest_half(each, outputs, batch, strength):
    return jnp.mean(jnp.sort(each)[len(each) // 2 :])


def spread(each, outputs, batch, strength):
    return jnp.mean(each) + strength * jnp.std(each)


def weighted_by_loss(each, outputs, batch, strength):
    return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(4 * strength * each)) * each)


def weighted(each, outputs, batch, strength):
    weight = jnp.exp(strength * batch["number"])
    return jnp.sum(weight * each) / jnp.sum(weight)


def masked(each, outputs, batch, strength):
    """About half are hidden."""
    mask = batch["number"] > 0
    return jnp.sum(jnp.where(mask, each, 0)) / jnp.sum(mask)


def repelled(each, outputs, batch, strength):
    return jnp.mean(each) + strength * jnp.mean(jnp.square(jnp.mean(outputs, axis=0)))


def neighbours(each, outputs, batch, strength):
    return jnp.mean(each) + strength * jnp.mean(jnp.square(outputs[1:] - outputs[:-1]))


def coupled(each, outputs, batch, strength):
    """A random form of rank one in the examples."""
    return jnp.mean(each) + strength * jnp.sum(jnp.square(batch["number"] @ outputs)) / len(each)


def negatives(each, outputs, batch, strength):
    scores = outputs @ batch["target"].T
    return strength * jnp.mean(each) - jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores)))


MIXING = (
    *(total, power_of_mean, log_of_mean, soft_maximum, largest_half, spread, weighted_by_loss),
    *(weighted, masked, repelled, neighbours, coupled, negatives),
)


def mean(each, outputs, batch, strength):
    return jnp.mean(each)


def multiple(each, outputs, batch, strength):
    return 1e3 ** (2 * strength - 1) * jnp.mean(each)


def mean_of_curved(each, outputs, batch, strength):
    return jnp.mean(jnp.exp(-strength * each))


def mean_by_scan(each, outputs, batch, strength):
    def add(carry, value):
        return carry + value, None

    return jax.lax.scan(add, jnp.zeros((), each.dtype), each)[0] / len(each)


def mean_of_penalised(each, outputs, batch, strength):
    return jnp.mean(each + strength * jnp.sum(outputs**4, axis=1))


SOUND = (mean, multiple, mean_of_curved, mean_by_scan, mean_of_penalised)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer:
    """An outer loss whose strength is traced: all draws of one form are one compilation."""

    strength: Any
    each: Any = dataclasses.field(metadata={"static": True})
    how: Any = dataclasses.field(metadata={"static": True})
    canonical = True

    def __call__(self, outputs, batch):
        return self.how(self.each(outputs, batch), outputs, batch, self.strength)


def model(params, batch):
    return batch["x"] @ params


def draw(how, seed):
    """A form with a loss of single examples, a size, and a type, `DRAWS` times."""
    rng = np.random.default_rng((seed, *how.__name__.encode()))
    dtype = (np.float32, np.float64)[rng.integers(2)]
    count, each = int(rng.choice(list(PARTS))), EACH[rng.integers(len(EACH))]
    for _ in range(DRAWS):
        number = rng.normal(size=count)
        number[:2] = -1, 1
        batch = {
            "x": jnp.asarray(rng.normal(size=(count, 2)), dtype),
            "target": jnp.asarray(rng.normal(size=(count, 3)), dtype),
            "label": jnp.asarray(rng.integers(0, 3, count)),
            "number": jnp.asarray(number, dtype),
        }
        outer = Outer(jnp.asarray(rng.uniform(0.2, 1), dtype), each, how)
        yield outer, jnp.asarray(rng.normal(size=(2, 3)), dtype), batch


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("how", MIXING, ids=lambda how: how.__name__)
def test_mixing_losses_are_refused(x64, how, seed):
    make = (gauss_newton, fisher)[seed % 2]
    for outer, params, batch in draw(how, seed):
        with pytest.raises(UserError, match=r"outer_loss is (not|a sum)"):
            make(composed(model, outer), params, batch)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", SOUND, ids=lambda how: how.__name__)
def test_means_are_not(x64, how, seed):
    for outer, params, batch in draw(how, seed):
        gauss_newton(composed(model, outer), params, batch)


def cut(outer, params, batch):
    """The loss in microbatches, in batches, and in single examples."""
    loss, size = composed(model, outer), PARTS[len(batch["x"])]
    yield lambda: hessian(loss, params, batch, microbatch_size=size)
    yield lambda: averaged(functools.partial(hessian, loss, params), batch, batch_size=size)
    yield lambda: empirical_fisher(loss, params, batch)


@pytest.mark.parametrize("how", MIXING, ids=lambda how: how.__name__)
def test_mixing_losses_are_not_cut(x64, how):
    """Or their parts happen to count alike, or hold nothing that counts."""
    refused = 0
    for outer, params, batch in draw(how, 5):
        for make in cut(outer, params, batch):
            try:
                found = at_once(make())
            except UserError as error:
                assert "the loss is not the mean of its parts" in str(error)
                refused += 1
                continue
            whole = at_once(hessian(composed(model, outer), params, batch))
            assert np.isnan(found).any() or np.allclose(found, whole, rtol=0, atol=1e-3)
    assert refused >= 2 * DRAWS  # of three times as many


@pytest.mark.parametrize("number", [[0, 1] * 4 + [0], [0, 1, 1, 0, 1, 1, 1, 0, 1]])
def test_masks_that_pairs_do_not_show(x64, number):
    """Of two examples that lie apart, both are hidden, or none is."""
    outer, params, batch = next(draw(masked, 1008))
    batch = jax.tree.map(lambda x: x[:9], batch)
    batch["number"] = jnp.asarray(number, batch["x"].dtype)
    for make in cut(outer, params, batch):
        with pytest.raises(UserError, match="the loss is not the mean of its parts"):
            make()


@pytest.mark.parametrize("seed", [1013, 1023])
def test_curved_functions_of_the_mean_are_not_cut(x64, seed):
    """Where the parts of a group are a few per cent apart, a curve shows the square of that."""
    for outer, params, batch in draw(log_of_mean, seed):
        with pytest.raises(UserError, match="the loss is not the mean of its parts"):
            next(cut(outer, params, batch))()


@pytest.mark.parametrize("how", SOUND, ids=lambda how: how.__name__)
def test_means_are_cut(x64, how):
    for outer, params, batch in draw(how, 5):
        for make in cut(outer, params, batch):
            make()


@pytest.mark.parametrize("bad", [-2.0, np.nan])
def test_a_weight_below_zero_is_found_wherever_it_is(x64, bad):
    """Also among the examples that are not looked at further."""
    outer, params, batch = next(draw(mean, 3))
    count = 300
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * count)[:count], batch)
    for place in range(0, count, 7):
        batch["weight"] = jnp.ones(count, batch["x"].dtype).at[place].set(bad)
        loss = composed(model, ByNumber(outer.each), example_weight=_weight)
        with pytest.raises(UserError, match="must return numbers >= 0"):
            gauss_newton(loss, params, batch)


def test_a_mean_in_bfloat16_is_a_mean(x64):
    """And what mixes examples in it is refused all the same."""

    def low(outer):
        def loss(outputs, batch):
            return outer(outputs.astype(jnp.bfloat16), batch).astype(jnp.float32)

        return composed(model, loss)

    drawn = [next(draw(how, seed)) for seed in range(8) for how in (mean, soft_maximum)]
    for (outer, params, batch), (mixing, *other) in zip(drawn[::2], drawn[1::2], strict=True):
        gauss_newton(low(outer), params, batch)
        with pytest.raises(UserError, match="outer_loss is not"):
            gauss_newton(low(mixing), *other)


def test_the_remedy_of_a_sum_gives_its_matrix(x64):
    """Of one that is divided by a constant, too: even where that is the number of examples."""
    outer, params, batch = next(draw(mean, 3))
    count, mean_loss = len(batch["x"]), composed(model, outer)
    for divisor in (1.0, 7.0, float(count)):
        loss = composed(model, lambda o, b, c=divisor: jnp.sum(outer.each(o, b)) / c)
        with pytest.raises(UserError, match=r"is a sum .*\(N / c\) \* operator of a sum that is"):
            gauss_newton(loss, params, batch)
        remedy = (count / divisor) * gauss_newton(mean_loss, params, batch)
        v = jnp.ones_like(params)
        right = jax.jvp(lambda p, loss=loss: jax.grad(loss)(p, batch), (params,), (v,))[1]
        # The model is linear, so that the Hessian is the Gauss-Newton matrix.
        np.testing.assert_allclose(remedy.linearize()(v), right, rtol=1e-4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByNumber:
    """Each example has the weight that lies in its batch."""

    each: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, outputs, batch):
        total = jnp.sum(batch["weight"])
        return jnp.sum(batch["weight"] * self.each(outputs, batch)) / total


@pytest.mark.parametrize("each", EACH, ids=lambda each: each.__name__)
def test_weights_are_those_declared(x64, each):
    """With them declared the loss passes; with any other ones, or none, it does not."""
    rng = np.random.default_rng(7)
    for _, params, batch in draw(weighted, 11):
        weight = rng.integers(0, 4, len(batch["x"])) * rng.lognormal(size=len(batch["x"]))
        weight[:3] = 0, 1, 2
        batch["weight"] = jnp.asarray(weight, batch["x"].dtype)
        outer = ByNumber(each)
        gauss_newton(composed(model, outer, example_weight=_weight), params, batch)
        for declared in (None, _square):
            with pytest.raises(UserError, match="outer_loss is not"):
                gauss_newton(composed(model, outer, example_weight=declared), params, batch)


def _weight(batch):
    return batch["weight"]


def _square(batch):
    return batch["weight"] ** 2
