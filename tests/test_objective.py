"""What a training step minimises: the bits of what it was, masks, dropout, targets, SAM."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import nn, optim, perturbation, tree
from sharpjax.errors import UserError
from sharpjax.losses import Objective, SquaredError
from sharpjax.losses.cross_entropy import cross_entropies
from sharpjax.nn.resnet import ResNet

module = importlib.import_module("sharpjax.losses.objective")
MLP = nn.MLP(num_classes=5, width=6)


def example_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 6, 6, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 5, size), jnp.int32),
    }


def initial(model, seed=0):
    variables = dict(jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 6, 6, 1))))
    return variables.pop("params"), variables


@functools.partial(jax.jit, static_argnames="m")
def value_and_grad(loss, params, batch, m=None):
    if m is None:
        return jax.value_and_grad(loss, has_aux=True)(params, batch)
    return optim.sam_value_and_grad(loss, m=m)(params, batch)[:2]


@functools.partial(jax.jit, static_argnums=0)
def step(tx, loss, params, state, batch):
    """A SAM step, as training takes it."""
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    (value, _), grads = grad_fn(params, batch)
    updates, state = tx.update(grads, state, params, value=value, grad_fn=grad_fn, batch=batch)
    return optax.apply_updates(params, updates), state


# What it was.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Before:
    """The loss of training before it could have more parts: kept as it stood."""

    model: nn.MLP = dataclasses.field(metadata={"static": True})
    variables: dict = dataclasses.field(default_factory=dict)
    label_smoothing: float = dataclasses.field(default=0.0, metadata={"static": True})

    def __call__(self, params, batch):
        logits, updated = self.model.apply(
            {"params": params, **self.variables},
            batch["image"],
            train=True,
            mutable=list(self.variables),
        )
        label = batch["label"]
        logits = logits if logits.dtype.itemsize >= 4 else logits.astype(jnp.float32)
        value = jnp.mean(cross_entropies("losses.Objective", logits, label))
        if self.label_smoothing:
            uniform = -jnp.mean(jax.nn.log_softmax(logits))
            value = (1 - self.label_smoothing) * value + self.label_smoothing * uniform
        correct = jnp.argmax(logits, axis=-1).astype(label.dtype) == label
        accuracy = jnp.mean(correct, dtype=logits.dtype)
        return value, {"variables": updated, "accuracy": accuracy}


@pytest.mark.parametrize("model", [MLP, ResNet(num_classes=5, width=2, blocks=(1,))])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_its_new_parts_it_is_the_program_it_was(model, smoothing):
    """The same text before XLA compiles it, so the same bits on any processor."""
    (params, variables), batch = initial(model), example_batch()
    loss = Objective(model, variables, smoothing), Before(model, variables, smoothing)

    def program(loss):
        grad = jax.value_and_grad(lambda p, v, b: dataclasses.replace(loss, variables=v)(p, b),
                                  has_aux=True)  # fmt: skip
        return jax.jit(grad).lower(params, variables, batch).as_text()

    assert program(loss[0]) == program(loss[1])
    assert len(jax.tree.leaves(loss[0])) == len(jax.tree.leaves(variables))


def test_labels_of_one_byte_do_not_wrap_in_the_accuracy():
    """Class 261 is 5 in one byte."""
    model = nn.MLP(num_classes=300, depth=0)
    params = {"head": {"kernel": jnp.zeros((36, 300)), "bias": jnp.zeros(300).at[261].set(1.0)}}
    batch = example_batch(2) | {"label": jnp.array([5, 6], jnp.uint8)}
    assert Objective(model)(params, batch)[1]["accuracy"] == 0


def test_all_parts_but_model_and_smoothing_are_leaves():
    params, _ = initial(MLP)
    full = Objective(
        MLP, {}, 0.1, mask=jax.tree.map(jnp.ones_like, params), dropout_key=jax.random.key(0)
    )
    assert len(jax.tree.leaves(full)) == len(jax.tree.leaves(params)) + 1
    again = dataclasses.replace(full, dropout_key=jax.random.key(1))
    assert jax.tree.structure(full) == jax.tree.structure(again)


# Masks.


def pruned(params, seed=0):
    """A mask with about a half of each kernel, all of the biases."""
    keys = iter(jax.random.split(jax.random.key(seed), 10))
    return jax.tree.map(
        lambda w: jax.random.bernoulli(next(keys), 0.5, w.shape) if w.ndim > 1 else True, params
    )


def zeros_where_pruned(params, mask):
    return all(
        not np.any(np.where(np.broadcast_to(m, w.shape), 0, w))
        for m, w in zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True)
    )


def test_a_mask_is_the_model_at_the_product():
    (params, _), batch = initial(MLP), example_batch()
    mask = pruned(params)
    product = jax.tree.map(lambda w, m: w * m, params, mask)
    value, aux = Objective(MLP, mask=mask)(params, batch)
    assert value == Objective(MLP)(product, batch)[0]
    grads = jax.grad(Objective(MLP, mask=mask), has_aux=True)(params, batch)[0]
    free = jax.grad(Objective(MLP), has_aux=True)(product, batch)[0]
    want = jax.tree.map(lambda g, m: g * m, free, mask)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    numbers = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), mask)
    assert Objective(MLP, mask=numbers)(params, batch)[0] == value
    all_kept = jax.tree.map(lambda w: True, params)
    assert Objective(MLP, mask=all_kept)(params, batch)[0] == Objective(MLP)(params, batch)[0]
    # Whatever a pruned weight is, also no number.
    lost = jax.tree.map(lambda w, m: jnp.where(m, w, jnp.nan), params, mask)
    assert Objective(MLP, mask=mask)(lost, batch)[0] == value


@pytest.mark.parametrize("scaling", [perturbation.none(), perturbation.element(eta=0.1)])
@pytest.mark.parametrize(
    "base", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.01, weight_decay=0.1)]
)
def test_pruned_weights_stay_zero_through_sam(base, scaling):
    (params, _), batch = initial(MLP), example_batch()
    mask = pruned(params)
    params = start = module.masked(params, mask)
    tx = optim.sam(base, rho=0.5, scaling=scaling)
    state, loss = tx.init(params), Objective(MLP, mask=mask)
    for _ in range(3):
        params, state = step(tx, loss, params, state, batch)
    assert zeros_where_pruned(params, mask)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True):
        assert np.any(a != b)


def test_pruned_weights_are_not_perturbed():
    """The step is that of a loss of the kept weights alone, wherever the others lie."""
    (params, _), batch = initial(MLP), example_batch()
    mask = pruned(params)
    far = jax.tree.map(lambda w, m: jnp.where(m, w, 100.0), params, mask)
    tx = optim.sam(optax.sgd(0.1), rho=0.5)
    ends = []
    for start in (params, far):
        end, state = step(tx, Objective(MLP, mask=mask), start, tx.init(start), batch)
        ends.append(module.masked(end, mask))
        # And the others stay where they are, to the bit.
        away = jax.tree.map(lambda a, b: a - b, end, start)
        assert zeros_where_pruned(away, mask)
    assert tree.digest(ends[0]) == tree.digest(ends[1])


def test_a_mask_that_does_not_fit_is_refused():
    (params, _), batch = initial(MLP), example_batch()
    mask = jax.tree.map(lambda w: True, params)
    del mask["head"]["bias"]
    with pytest.raises(UserError, match="losses.Objective: mask .*'head/bias' is missing"):
        Objective(MLP, mask=mask)(params, batch)
    mask["head"]["bias"] = jnp.ones(3)
    with pytest.raises(UserError, match=r"mask of 'head/bias' is \[3\] and the weights \[5\]"):
        Objective(MLP, mask=mask)(params, batch)
    mask["head"]["bias"] = jnp.ones((5, 5))
    with pytest.raises(UserError, match=r"mask of 'head/bias' is \[5, 5\]"):
        Objective(MLP, mask=mask)(params, batch)


# Dropout.

DROPPING = MLP.clone(dropout=0.5)


def test_dropout_needs_a_key_and_follows_it():
    (params, _), batch = initial(DROPPING), example_batch()
    with pytest.raises(UserError, match="losses.Objective: MLP draws random numbers.*dropout_key"):
        Objective(DROPPING)(params, batch)
    losses = [Objective(DROPPING, dropout_key=jax.random.key(s)) for s in (1, 1, 2)]
    values = [value_and_grad(loss, params, batch)[0][0] for loss in losses]
    assert values[0] == values[1] != values[2]
    # A model without it does not read the key.
    given = Objective(MLP, dropout_key=jax.random.key(1))
    assert given(params, batch)[0] == Objective(MLP)(params, batch)[0]


def test_the_last_layer_is_trained_on_kept_units_alone():
    """By hand, from the very units that the key keeps: a linear model of them."""
    model = nn.MLP(num_classes=5, width=6, depth=1, dropout=0.5)
    (params, _), batch = initial(model), example_batch()
    key = jax.random.key(3)
    _, state = model.apply(
        {"params": params}, batch["image"], train=True, rngs={"dropout": key},
        capture_intermediates=True, mutable=["intermediates"],
    )  # fmt: skip
    units = np.asarray(state["intermediates"]["Dropout_0"]["__call__"][0])
    assert 0.2 < np.mean(units == 0) < 0.95
    (_, _), grads = value_and_grad(Objective(model, dropout_key=key), params, batch)
    logits = units @ params["head"]["kernel"] + params["head"]["bias"]
    residual = (jax.nn.softmax(logits) - np.eye(5)[batch["label"]]) / 8
    np.testing.assert_allclose(grads["head"]["kernel"], units.T @ residual, atol=1e-6)


def test_both_gradients_of_sam_see_the_same_net():
    (params, _), batch = initial(DROPPING), example_batch()
    loss = Objective(DROPPING, dropout_key=jax.random.key(3))
    # At radius 0 the second gradient is the first.
    tx = optim.sam(optax.sgd(0.1), rho=0.0)
    seen = step(tx, loss, params, tx.init(params), batch)[1].statistics
    np.testing.assert_allclose(seen.perturbed_loss, seen.loss, rtol=1e-6)
    np.testing.assert_allclose(seen.cosine, 1.0, rtol=1e-6)
    other = Objective(DROPPING, dropout_key=jax.random.key(4))
    assert abs(other(params, batch)[0] - seen.loss) > 1e-2
    # Elsewhere it is the gradient of the same net at w + e.
    tx = optim.sam(optax.sgd(0.1), rho=0.05)
    end, _ = step(tx, loss, params, tx.init(params), batch)
    g = value_and_grad(loss, params, batch)[1]
    moved = tree.add_scaled(params, 0.05 / tree.norm(g), g)
    want = tree.add_scaled(params, -0.1, value_and_grad(loss, moved, batch)[1])
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_of_m_sam_have_the_same_masks():
    (params, _), half = initial(DROPPING), example_batch(4)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), half)
    loss = Objective(DROPPING, dropout_key=jax.random.key(3))
    (value, _), grads = value_and_grad(loss, params, twice, m=4)
    (alone, _), expected = value_and_grad(loss, params, half)
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# Targets.


def test_targets_get_half_the_squared_error():
    (params, _), batch = initial(MLP), example_batch()
    target = jax.random.normal(jax.random.key(1), (8, 5))
    batch = {"image": batch["image"], "target": target}
    value, aux = Objective(MLP)(params, batch)
    outputs = MLP.apply({"params": params}, batch["image"])
    assert value == SquaredError()(outputs, batch)
    np.testing.assert_allclose(value, np.square(outputs - target).sum() / 16, rtol=1e-6)
    assert np.isnan(aux["accuracy"]) and aux["accuracy"].shape == ()


def test_targets_that_do_not_fit_are_refused():
    (params, _), batch = initial(MLP), example_batch()
    batch = {"image": batch["image"], "target": jnp.zeros(8)}
    with pytest.raises(UserError, match=r"targets are \[8\] and outputs \[8, 5\]"):
        Objective(MLP)(params, batch)
    with pytest.raises(UserError, match="are for labels, and the batch has targets"):
        Objective(MLP, {}, 0.1)(params, batch)
