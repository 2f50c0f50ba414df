"""Information-geometric sharpness against dense matrices and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from sharpjax.errors import UserError
from sharpjax.geometry import (
    Status,
    composed,
    fisher,
    information_sharpness,
    relative_flatness,
)
from sharpjax.losses import CrossEntropy, SquaredError
from tests import nets


def primal(loss, params, batch):
    matrix = np.asarray(fisher(loss, params, batch).to_dense())
    g = ravel_pytree(jax.grad(loss)(params, batch))[0]
    return g @ np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ g


def confidences(net):
    p = jax.nn.softmax(net.model_fn(net.params, net.batch))
    p = jnp.take_along_axis(p, net.batch["label"][:, None], 1)
    return jnp.mean((1 - p) / p)


def test_the_dual_is_the_primal(x64):
    net = nets.mlp()  # 67 parameters, 24 directions
    loss = composed(net.model_fn, net.outer_loss)
    found = information_sharpness(loss, net.params, net.batch)
    assert found.status == Status.OK
    np.testing.assert_allclose(found.value, primal(loss, net.params, net.batch), rtol=1e-7)
    np.testing.assert_allclose(found.upper, confidences(net), rtol=1e-10)
    np.testing.assert_allclose(found.value, confidences(net), rtol=1e-7)
    truth = np.linalg.eigvalsh(fisher(loss, net.params, net.batch).to_dense())[::-1][:24]
    np.testing.assert_allclose(found.eigenvalues[0, :24], truth, atol=1e-12)


@pytest.mark.parametrize("outer", [CrossEntropy(), SquaredError()], ids=["ce", "mse"])
def test_fewer_parameters_than_directions(x64, outer):
    """A linear model of 3 features and 2 outputs, 6 parameters, 20 examples."""
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(20, 3)))}
    batch |= {"label": jnp.asarray(rng.integers(0, 2, 20)), "target": jnp.ones((20, 2))}
    loss = composed(lambda w, batch: batch["x"] @ w, outer)
    w = jnp.asarray(rng.normal(size=(3, 2)))
    found = information_sharpness(loss, w, batch)
    assert found.status == Status.OK and found.value < 0.9 * found.upper
    np.testing.assert_allclose(found.value, primal(loss, w, batch), rtol=1e-8)
    cut = information_sharpness(loss, w, batch, m=5)
    each = [
        information_sharpness(loss, w, jax.tree.map(lambda x, i=i: x[i : i + 5], batch)).value
        for i in range(0, 20, 5)
    ]
    np.testing.assert_allclose(cut.value, np.mean(each), rtol=1e-10)
    assert cut.parts.shape == (4, 5 if isinstance(outer, CrossEntropy) else 10)


def test_a_change_of_the_parameters_alters_nothing(x64):
    net = nets.mlp()

    def exponential(params, batch):
        signs = jax.tree.map(jnp.sign, net.params)
        return net.model_fn(jax.tree.map(lambda s, v: s * jnp.exp(v), signs, params), batch)

    logs = jax.tree.map(lambda x: jnp.log(jnp.abs(x)), net.params)
    one = information_sharpness(composed(net.model_fn, net.outer_loss), net.params, net.batch)
    other = information_sharpness(composed(exponential, net.outer_loss), logs, net.batch)
    np.testing.assert_allclose(other.value, one.value, rtol=1e-7)
    assert abs(other.eigenvalues[0, 0] / one.eigenvalues[0, 0] - 1) > 0.1


def test_examples_that_are_alike_leave_directions_out(x64):
    net = nets.mlp()
    loss = composed(net.model_fn, net.outer_loss)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), net.batch)
    twice["label"] = jnp.concatenate([net.batch["label"], (net.batch["label"] + 1) % 4])
    found = information_sharpness(loss, net.params, twice)
    assert found.status == Status.NOT_CONVERGED
    np.testing.assert_allclose(found.value, primal(loss, net.params, twice), rtol=1e-6)
    assert np.isnan(found.estimates()["information_sharpness"].standard_error)


def test_labels_that_the_model_gives_no_chance(x64):
    """`(1 - p) / p` of 1e20: an eigendecomposition of `diag(p) - p p'` would lose it."""
    batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    w = jnp.array([[0.0, 46.0, 1.0], [0.0, 1.0, 2.0]])
    loss = composed(lambda w, batch: batch["x"] @ w, CrossEntropy())
    p = jax.nn.softmax(w)
    truth = ((1 - p[0, 0]) / p[0, 0] + (1 - p[1, 1]) / p[1, 1]) / 2
    np.testing.assert_allclose(information_sharpness(loss, w, batch).upper, truth, rtol=1e-9)

    class Plain:
        canonical = True

        def __call__(self, logits, batch):
            return CrossEntropy()(logits, batch)

    found = information_sharpness(composed(loss.model_fn, Plain()), w, batch)
    assert found.status == Status.NON_FINITE and jnp.isnan(found.upper) and jnp.isnan(found.value)
    mild = information_sharpness(composed(loss.model_fn, Plain()), w / 20, batch)
    right = information_sharpness(loss, w / 20, batch)
    np.testing.assert_allclose(mild.value, right.value, rtol=1e-9)
    np.testing.assert_allclose(mild.upper, right.upper, rtol=1e-9)


def test_wrong_arguments():
    net = nets.mlp(dtype=np.float32)
    loss = composed(net.model_fn, net.outer_loss)
    assert information_sharpness(loss, net.params, net.batch).upper > 0
    with pytest.raises(UserError, match="do not divide 8 examples"):
        information_sharpness(loss, net.params, net.batch, m=3)
    many = {
        "image": jnp.zeros((10_000, 3), jnp.float32),
        "label": jnp.zeros(10_000, jnp.int32),
    }
    with pytest.raises(UserError, match="GiB; take chunks of fewer examples"):
        information_sharpness(loss, net.params, many)
    weighted = composed(
        net.model_fn, net.outer_loss, example_weight=lambda batch: jnp.ones(len(batch["label"]))
    )
    with pytest.raises(UserError, match="unweighted"):
        information_sharpness(weighted, net.params, net.batch)


def test_float32_where_float64_is_on(x64):
    net = nets.mlp()
    narrow = lambda t: jax.tree.map(  # noqa: E731
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, t
    )
    loss = composed(net.model_fn, net.outer_loss)
    found = information_sharpness(loss, narrow(net.params), narrow(net.batch))
    np.testing.assert_allclose(found.value, confidences(net), rtol=1e-3)


def test_labels_that_are_no_class_and_classes_without_a_chance():
    batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    loss = composed(lambda w, batch: batch["x"] @ w, CrossEntropy())
    w = jnp.array([[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 1.0, 0.0]])
    none = information_sharpness(loss, w, {**batch, "label": jnp.array([0, -1])})
    assert none.status == Status.NON_FINITE and jnp.isnan(none.value) and jnp.isnan(none.upper)
    # In float32, 1 / p of the last class is infinite.
    w = jnp.array([[0.0, 1.0, 2.0, -100.0], [1.0, 0.0, 1.0, -100.0]])
    p = jax.nn.softmax(w)
    truth = ((1 - p[0, 0]) / p[0, 0] + (1 - p[1, 1]) / p[1, 1]) / 2
    found = information_sharpness(loss, w, batch)
    np.testing.assert_allclose(found.upper, truth, rtol=1e-4)


def test_examples_that_lie_on_explicit_axes():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    loss = composed(lambda w, batch: batch["x"] @ w["head"], CrossEntropy())
    with jax.set_mesh(mesh):
        params = jax.device_put({"head": np.ones((2, 4), np.float32)}, jax.P())
        batch = {"x": np.eye(2, dtype=np.float32), "label": np.array([0, 1])}
        batch = jax.device_put(batch, jax.P("data"))
        for measure in (information_sharpness, functools.partial(relative_flatness, head="head")):
            with pytest.raises(UserError, match="sharded over Explicit axes.*reshard"):
                measure(loss, params, batch)
            assert measure(loss, params, jax.reshard(batch, jax.P())).status == Status.OK
