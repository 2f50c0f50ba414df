"""A loss that is not finite where its curvature is: said in every status, and in every product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.geometry import Status
from sharpjax.geometry.loss import finite
from sharpjax.geometry.sharpness import directional, measures
from sharpjax.losses import Classification
from sharpjax.nn import MLP
from tests.problems import flat

KEY = jax.random.key(0)
MODEL = MLP(num_classes=4, width=8)


def problem():
    """A net, eight examples, and of one the label is none."""
    image = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    params = MODEL.init(KEY, image)["params"]
    return params, {"image": image, "label": jnp.array([0, 1, 2, -100, 0, 1, 2, 3])}


def logarithm(params, batch):
    """Finite derivatives, and an infinite value: log 0 of a constant."""
    return jnp.sum(batch["w"] * params**2) / 2 + jnp.log(jnp.mean(batch["zero"]))


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_every_status_says_so(microbatch_size):
    params, batch = problem()
    loss, options = Classification(MODEL), {"microbatch_size": microbatch_size}
    operator = geometry.hessian(loss, params, batch, **options)
    found = {
        "pairs": geometry.top_eigenpairs(operator, key=KEY),
        "trace": geometry.trace(operator, key=KEY, max_products=4),
        "norm": geometry.frobenius(operator, key=KEY, max_products=16),
        "sam": measures.sam_sharpness(loss, params, batch, rho=0.1, **options),
        "along": directional.directional_curvature(loss, params, batch, **options),
        "worst": measures.worst_case_sharpness(
            loss, params, batch, key=KEY, rho=0.1, num_steps=2, **options
        ),
    }
    assert {name: int(x.status) for name, x in found.items()} == {
        name: int(Status.NON_FINITE) for name in found
    }


def affine(params, batch):
    return batch["x"] @ params["w"] + params["b"]


def labelled(outputs, batch):
    """Cross-entropy whose value alone is NaN where a label is none."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["label"][:, None], 1)[:, 0]
    rows = jax.nn.logsumexp(outputs, axis=1) + 0 * jax.lax.stop_gradient(chosen)
    return jnp.mean(rows)


@pytest.mark.parametrize("microbatch_size", [None, 2])
@pytest.mark.parametrize("kind", ["gauss_newton", "fisher", "empirical_fisher"])
def test_matrices_of_outputs_say_so(kind, microbatch_size):
    x = jax.random.normal(KEY, (8, 3))
    batch = {"x": x, "label": jnp.array([0, 1, 2, 9, 0, 1, 2, 3])}
    params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}
    loss = geometry.composed(affine, labelled)
    options = {"labels": "observed"} if kind == "fisher" else {}
    good = batch | {"label": jnp.arange(8) % 4}
    for data, status in ((good, Status.OK), (batch, Status.NON_FINITE)):
        make = getattr(geometry, kind)
        operator = make(loss, params, data, microbatch_size=microbatch_size, **options)
        for method in ("hutchinson", "exact"):
            assert geometry.trace(operator, key=KEY, method=method).status == status


def test_a_value_alone_poisons_products():
    """The derivatives of this loss are all finite."""
    w = jnp.ones(5)
    batch = {"w": jnp.arange(1.0, 6.0).reshape(5), "zero": jnp.zeros(5)}
    assert np.isfinite(jax.hessian(logarithm)(w, batch)).all()
    for product in (
        geometry.hessian(logarithm, w, batch).linearize()(w),
        geometry.hvp(logarithm, w, batch, w),
    ):
        assert np.isnan(product).any()
    good = batch | {"zero": jnp.ones(5)}
    product = geometry.hessian(logarithm, w, good).linearize()(w)
    np.testing.assert_array_equal(product, batch["w"])


def test_the_smallest_leaf_carries_it():
    tree = {"a": jnp.ones((3, 2)), "b": jnp.zeros((0, 4)), "c": jnp.ones(2), "d": None}
    poisoned = finite.poison(tree, jnp.array(jnp.nan))
    assert np.isnan(poisoned["c"]).all() and np.isfinite(flat({"a": poisoned["a"]})).all()
    kept = finite.poison(tree, jnp.array(2.0))
    jax.tree.map(np.testing.assert_array_equal, kept, tree)
