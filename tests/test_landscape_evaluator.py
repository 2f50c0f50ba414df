"""The loss along a line through a model, as an evaluator stores it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import data, nn
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.train import state
from sharpjax.train.landscape import Landscape, profiles_of
from sharpjax.train.plan import Subject, When

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def splits():
    return data.on_device(data.Images("digits", num_train=64).load())


@pytest.fixture(scope="module")
def subject(splits):
    model = nn.build("mlp", num_classes=10, width=8)
    image = data.batch(splits.train, np.arange(2))["image"]
    found = jax.jit(model.init)(jax.random.key(0), image)
    return Subject(0, (), 0, model, state.fresh(found["params"], {}, (), ()), at=None)


def stored(evaluator, subject, splits, key=0):
    _, found = evaluator(evaluator.init(subject, splits), subject, splits, jax.random.key(key))
    assert not found.rows
    return found.arrays


def test_the_model_itself_is_in_the_middle(splits, subject):
    found = stored(Landscape(When(), 32, 5, 0.5), subject, splits)
    assert found["x"].tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    batch = data.batch(splits.train, jnp.arange(32))
    loss = float(Classification(subject.model, {})(subject.state.params, batch))
    # A mean of 32 losses, each a few roundings of logits of their size.
    assert abs(found["loss"][2] - loss) < 200 * EPS * max(loss, 1)
    assert np.ptp(found["loss"]) > 1e-3


def test_a_line_does_not_change_where_filters_are_scaled(splits, subject):
    """Directions are in units of filters: a net of the same function, one layer of twice the size
    and the next of half, has the same curve."""
    params = jax.tree.map(lambda x: x, subject.state.params)
    first, last = params["Dense_1"], params["head"]
    double = params | {
        "Dense_1": jax.tree.map(lambda x: 2 * x, first),
        "head": last | {"kernel": last["kernel"] / 2},
    }
    scaled = subject._replace(state=dataclasses.replace(subject.state, params=double))
    curves = [stored(Landscape(When(), 32, 5), one, splits)["loss"] for one in (subject, scaled)]
    # Factors of two are exact.
    np.testing.assert_allclose(*curves, rtol=200 * EPS)
    assert not np.allclose(curves[0], stored(Landscape(When(), 32, 5), subject, splits, 1)["loss"])


def test_curves_by_member():
    x, loss = np.arange(3.0), np.ones(3)
    found = profiles_of({"a": {"x": x, "loss": loss}, "b": {}})
    assert [*found] == ["a"] and found["a"][1] is loss


def test_an_even_number_of_points_is_refused():
    with pytest.raises(UserError, match="num_points=4; give an odd number"):
        Landscape(When(), num_points=4)
