"""What weights tell: norms, ranks, and Fourier measures of tables of embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import tree
from sharpjax.nn.svd import Decomposition, merge
from sharpjax.nn.tokens import TokenMLP
from sharpjax.train import state, weights
from sharpjax.train.plan import Subject, When

TOKENS = jnp.zeros((1, 4), jnp.int32)


def a_model(decompose=None):
    return TokenMLP(num_classes=9, width=24, features=12, decompose=decompose)


def drawn(model):
    return jax.jit(model.init)(jax.random.key(1), TOKENS)["params"]


def test_what_weights_tell():
    params, factors = drawn(a_model()), drawn(a_model(Decomposition(0.5)))
    for point, rank in ((params, 24), (factors, 12)):
        whole, by_layer, values = weights._weights(point, 7, 1)
        layers = {name: row["hidden/kernel"] for name, row in by_layer.items()
                  if "hidden/kernel" in row}  # fmt: skip
        assert 1 < layers["weights/stable_rank"] < layers["weights/effective_rank"] <= rank
        assert values["hidden/kernel"].shape == (rank,)
        assert ("weights/orthogonality_error" in layers) == (rank == 12)
        assert whole["weights/norm"] == pytest.approx(float(tree.norm(merge(point))), rel=1e-5)
        assert whole["weights/parameter_norm"] == tree.norm(point)
    assert layers["weights/orthogonality_error"] < 1e-5


def test_fourier_of_a_circle_and_norms_of_a_dense_model():
    params = drawn(a_model())
    angle = 2 * np.pi * 2 / 7 * np.arange(9)
    table = np.stack([np.cos(angle), np.sin(angle), *np.zeros((4, 9))], axis=1)
    params["embed"]["embedding"] = jnp.asarray(table, jnp.float32)
    whole, by_layer, values = weights._weights(params, 7, 1)
    assert by_layer["weights/fourier/concentration"]["embed/embedding"] == pytest.approx(1)
    assert by_layer["weights/fourier/gini"]["embed/embedding"] == pytest.approx(1 - 1 / 3)
    assert whole["weights/norm"] == pytest.approx(whole["weights/parameter_norm"])
    assert "weights/orthogonality_error" not in by_layer
    assert set(values) == {"embed/embedding", "hidden/kernel", "head/kernel"}
    none = weights._weights(params, 0, 1)[1]
    assert not any(name.startswith("weights/fourier") for name in none)


@pytest.mark.parametrize("modulus", [0, 7])
def test_rows_are_of_layers_and_have_been_named(modulus):
    measure, model = weights.WeightMeasures(When(), modulus), a_model(Decomposition(0.5))
    subject = Subject(0, (), 0, model, state.fresh(drawn(model), {}, (), ()), at=None)
    carry, found = measure((), subject, None, jax.random.key(0))
    assert carry == () and {metric for metric, _ in found.rows} == set(measure.metrics)
    whole = {metric for metric, of in found.rows if not of}
    assert whole == {"weights/norm", "weights/parameter_norm"}
    layer = ("weights/stable_rank", (("layer", "hidden/kernel"),))
    assert layer in found.rows and found.arrays["hidden.kernel"].shape == (12,)
