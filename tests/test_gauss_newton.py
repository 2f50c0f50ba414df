"""Gauss-Newton and Fisher matrices against dense ones that are written down by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import composed, hessian, trace
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.blocks import masked, restricted
from sharpjax.geometry.operators.gauss_newton import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    empirical_fisher,
    fisher,
    gauss_newton,
)
from sharpjax.losses import Classification, CrossEntropy, SquaredError
from tests import nets
from tests.problems import awkward_loss, awkward_net, columns, dense, flat
from tests.traces import TRACES, traced


def matrix(operator):
    return columns(algebra.linearize(operator), operator.like)


# The mathematics.


@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("whole", [True, False])
def test_cross_entropy_equals_the_dense_matrices(x64, strict, name, whole):
    """`G = mean_n J_n'(diag p - p p')J_n = mean_n sum_c p_c g_nc g_nc'`, both by hand."""
    net = nets.NETS[name]()
    size = None if whole else len(net.batch["label"]) // 3
    rows, logits = nets.jacobian(net)
    p = nets.softmax(logits)
    curvature = np.expand_dims(p, 2) * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]
    truth = np.einsum("ncp,ncd,ndq->pq", rows, curvature, rows) / len(rows)
    slopes = np.einsum("nkp,nck->ncp", rows, p[:, None, :] - np.eye(p.shape[1]))
    expected = np.einsum("nc,ncp,ncq->pq", p, slopes, slopes) / len(rows)
    np.testing.assert_allclose(truth, expected, atol=1e-12)

    found = matrix(gauss_newton(*with_parts(net), microbatch_size=size))
    np.testing.assert_allclose(found, truth, atol=1e-12)
    np.testing.assert_allclose(
        matrix(fisher(*with_parts(net), microbatch_size=size)), truth, atol=1e-12
    )

    labels = np.asarray(net.batch["label"]).reshape(-1)
    seen = slopes[np.arange(len(rows)), labels]
    observed = fisher(*with_parts(net), labels="observed", microbatch_size=size)
    np.testing.assert_allclose(matrix(observed), seen.T @ seen / len(rows), atol=1e-12)


@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("whole", [True, False])
def test_the_empirical_fisher_matrix_is_of_single_gradients(x64, strict, name, whole):
    net = nets.NETS[name]()
    count = len(net.batch["label"])
    size = None if whole else count // 3
    singles = [jax.tree.map(lambda x, i=i: x[i : i + 1], net.batch) for i in range(count)]
    gradient = jax.jit(jax.grad(net.loss))
    slopes = np.stack([flat(gradient(net.params, single)) for single in singles])
    found = matrix(empirical_fisher(*single_loss(net), microbatch_size=size))
    np.testing.assert_allclose(found, slopes.T @ slopes / count, atol=1e-12)


def plain_loss(model_fn, outer_loss, params, batch):
    return outer_loss(model_fn(params, batch), batch)


def single_loss(net):
    """The arguments of `empirical_fisher` and `hessian`, of a loss without parts."""
    return Partial(plain_loss, net.model_fn, net.outer_loss), net.params, net.batch


def with_parts(net):
    """The arguments of `gauss_newton` and `fisher`."""
    return composed(net.model_fn, net.outer_loss), net.params, net.batch


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_labels_drawn_from_the_model(x64, strict, key, microbatch_size):
    """Given the labels, the matrix is the empirical one; over keys it averages to the exact one."""
    net = nets.mlp()
    keys = jax.random.split(key, len(net.batch["label"]))
    logits = jax.jit(net.model_fn)(net.params, net.batch)
    drawn = [jax.random.categorical(k, logits[i : i + 1])[0] for i, k in enumerate(keys)]
    batch = {**net.batch, "label": jnp.stack(drawn).astype(jnp.int32)}
    truth = matrix(fisher(*with_parts(net._replace(batch=batch)), labels="observed"))
    found = matrix(fisher(*with_parts(net), key=key, microbatch_size=microbatch_size))
    np.testing.assert_allclose(found, truth, atol=1e-13)
    assert np.linalg.matrix_rank(found) <= 8


def test_drawn_labels_average_to_the_exact_matrix(x64, strict, key):
    for net in (nets.mlp(), nets.mlp(outer_loss=SquaredError()), nets.attention()):
        v = tree.random_normal(key, net.params)

        def curvature(key, net=net, v=v):
            return tree.vdot(v, fisher(*with_parts(net), key=key).linearize()(v))

        values = np.asarray(jax.jit(jax.vmap(curvature))(jax.random.split(key, 2000)))
        exact = tree.vdot(v, apply(algebra.linearize(fisher(*with_parts(net))), v))
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - exact) < 4 * error < 0.3 * exact


def test_a_bowl_under_a_linear_model_is_its_own_gauss_newton_matrix(x64, strict):
    net = nets.mlp(outer_loss=SquaredError())
    rows, _ = nets.jacobian(net)
    truth = np.einsum("ncp,ncq->pq", rows, rows) / len(rows)
    np.testing.assert_allclose(matrix(gauss_newton(*with_parts(net))), truth, atol=1e-13)
    np.testing.assert_allclose(matrix(fisher(*with_parts(net))), truth, atol=1e-13)
    line = net._replace(params=net.params[-1:], batch={**net.batch, "image": jnp.ones((8, 5))})
    np.testing.assert_allclose(
        matrix(gauss_newton(*with_parts(line))), matrix(hessian(line.loss, *line[2:])), atol=1e-13
    )


def two_outputs(params, batch):
    (kernel, bias), (head, _) = params["layers"]
    hidden = jnp.tanh(batch["x"] @ kernel + jnp.expand_dims(bias, 0))
    out = params["gain"] * (hidden @ head) + jnp.expand_dims(params["shift"]["a/b"], 0)
    return {"out": out, "sum": jnp.sum(hidden, axis=1)}


def coupled(outputs, batch):
    """Not convex, and it couples the outputs of one example."""
    out, total = outputs["out"], outputs["sum"]
    each = jnp.sum(jnp.sin(out - batch["y"]), axis=1) * total + total**4
    return jnp.mean(each)


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_outputs_may_be_a_tree_and_parameters_of_any_layout(x64, strict, microbatch_size):
    params, batch = awkward_net()
    flat_params, unravel = ravel_pytree(params)
    rows, unstack = ravel_pytree(two_outputs(params, batch))

    def outputs(v):
        return ravel_pytree(two_outputs(unravel(v), batch))[0]

    jacobian = np.asarray(jax.jit(jax.jacobian(outputs))(flat_params))
    outer = np.asarray(jax.jit(jax.hessian(lambda z: coupled(unstack(z), batch)))(rows))
    arguments = (composed(two_outputs, coupled), params, batch)
    found = matrix(gauss_newton(*arguments, microbatch_size=microbatch_size))
    np.testing.assert_allclose(found, jacobian.T @ outer @ jacobian, atol=1e-13)
    slope = 12 * np.asarray(jax.grad(lambda z: coupled(unstack(z), batch))(rows))
    singles = [slope[:36].reshape(12, 3), slope[36:].reshape(12, 1)]
    parts = [jacobian[:36].reshape(12, 3, -1), jacobian[36:].reshape(12, 1, -1)]
    terms = [np.einsum("nk,nkp->np", s, j) for s, j in zip(singles, parts, strict=True)]
    g = terms[0] + terms[1]
    found = matrix(fisher(*arguments, labels="observed", microbatch_size=microbatch_size))
    np.testing.assert_allclose(found, g.T @ g / 12, atol=1e-13)


# Compositions.


def test_blocks_and_compositions(x64, strict):
    params, batch = awkward_net()
    arguments = (composed(two_outputs, coupled), params, batch)
    full = gauss_newton(*arguments)
    whole = matrix(full)
    chosen = flat(
        jax.tree.map(
            lambda m, x: np.full(x.shape, m), tree.select(params, ("layers/*", "gain")), params
        )
    ).astype(bool)
    block = whole[np.ix_(chosen, chosen)]
    for operator in (
        gauss_newton(*arguments, where=("layers/*", "gain")),
        gauss_newton(*arguments, where=("layers/*", "gain"), microbatch_size=4),
        restricted(full, ("layers/*", "gain")),
    ):
        np.testing.assert_allclose(matrix(operator), block, atol=1e-13)
    second = hessian(awkward_loss, params, batch)
    found = matrix(restricted(2 * (second - full) + 0.5, ("layers/*", "gain")))
    truth = 2 * (dense(awkward_loss, params, batch) - whole) + 0.5 * np.eye(len(whole))
    np.testing.assert_allclose(found, truth[np.ix_(chosen, chosen)], atol=1e-13)
    keep = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape) % 2, params)
    p = np.diag(flat(keep))
    np.testing.assert_allclose(matrix(masked(full, keep)), p @ whole @ p, atol=1e-13)
    observed = fisher(*arguments, labels="observed", where="gain")
    # Dictionaries are sorted, so the only number of 'gain' comes first.
    truth = matrix(fisher(*arguments, labels="observed"))[:1, :1]
    np.testing.assert_allclose(matrix(observed), truth, rtol=1e-12)


def test_a_population(x64, strict, key):
    members = [nets.mlp(seed) for seed in range(3)]
    v = tree.random_normal(key, members[0].params)
    keys = jax.random.split(key, 3)

    def products(params, key):
        net = members[0]._replace(params=params)
        operators = (
            gauss_newton(*with_parts(net), microbatch_size=4),
            fisher(*with_parts(net), key=key),
            empirical_fisher(*single_loss(net)),
        )
        return [operator.linearize()(v) for operator in operators]

    together = jax.jit(jax.vmap(products))(tree.stack([m.params for m in members]), keys)
    for i, member in enumerate(members):
        alone = jax.jit(products)(member.params, keys[i])
        np.testing.assert_allclose(flat(tree.index(together, i)), flat(alone), rtol=1e-12)


def counted_outputs(scale, params, batch):
    traced("model")
    return scale * nets.mlp_outputs(params, batch)


@jax.jit
def apply(product, vector):
    return product(vector)


def test_new_numbers_compile_nothing():
    def solve(seed):
        net = nets.mlp(seed, dtype=np.float32)
        model_fn = Partial(counted_outputs, jnp.float32(1 + seed))
        net = net._replace(model_fn=model_fn)
        operators = [
            gauss_newton(*with_parts(net)),
            fisher(*with_parts(net), key=jax.random.key(seed), microbatch_size=4),
            fisher(*with_parts(net), labels="observed"),
            empirical_fisher(*single_loss(net)),
        ]
        return [float(tree.norm(apply(algebra.linearize(o), net.params))) for o in operators]

    first = solve(0)
    before = TRACES["model"]
    assert before > 0
    others = solve(1)
    assert TRACES["model"] == before
    assert all(a != b for a, b in zip(first, others, strict=True))
    assert solve(0) == first


def flops(fn, *args):
    analysis = jax.jit(fn).lower(*args).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def test_a_product_costs_less_than_four_thirds_of_a_gradient():
    rng = np.random.default_rng(0)
    params = [
        (jnp.asarray(rng.normal(size=(a, b)) / 16, jnp.float32), jnp.zeros(b))
        for a, b in ((256, 256), (256, 256), (256, 10))
    ]
    batch = {"image": jnp.ones((128, 256)), "label": jnp.zeros(128, jnp.int32)}
    net = nets.Net(Partial(nets.mlp_outputs), CrossEntropy(), params, batch)
    gradient = flops(jax.grad(net.loss), params, batch)
    operators = [
        gauss_newton(*with_parts(net)),
        fisher(*with_parts(net), labels="observed"),
        empirical_fisher(*single_loss(net)),
    ]
    for operator in operators:
        product = algebra.linearize(operator)
        assert flops(lambda p, v: p(v), product, params) < 1.35 * gradient
    chunked = algebra.linearize(gauss_newton(*with_parts(net), microbatch_size=128))
    assert flops(lambda p, v: p(v), chunked, params) < 1.7 * gradient


def test_matrix_products_run_at_highest_precision():
    net = nets.mlp(dtype=np.float32)
    for operator in (
        gauss_newton(*with_parts(net)),
        gauss_newton(*with_parts(net), microbatch_size=4),
    ):
        text = str(jax.make_jaxpr(lambda o, v: o.linearize()(v))(operator, net.params))
        highest = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
        assert text.count("dot_general[") == text.count(highest) > 5


def test_narrow_parameters_and_outputs_are_widened():
    net = nets.mlp(dtype=np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), net.params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    v = tree.random_normal(jax.random.key(0), wide)
    expected = apply(algebra.linearize(gauss_newton(*with_parts(net._replace(params=wide)))), v)
    found = apply(algebra.linearize(gauss_newton(*with_parts(net._replace(params=narrow)))), v)
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-5, atol=1e-6)


def test_a_classification_loss_has_both_parts(x64):
    net = nets.conv_net()
    loss = Classification(net.model_fn.model, net.model_fn.variables)
    operator = gauss_newton(loss, net.params, net.batch)
    assert jax.tree.structure(operator) == jax.tree.structure(gauss_newton(*with_parts(net)))
    together = loss.outer_loss(loss.model_fn(net.params, net.batch), net.batch)
    np.testing.assert_allclose(loss(net.params, net.batch), together, rtol=1e-14)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_parameters_and_data(kind, key):
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(getattr(jax.sharding.AxisType, kind),) * 2
    )
    params = {"w": jnp.arange(32.0).reshape(8, 4) / 32, "b": jnp.ones(4)}
    batch = {"image": jnp.arange(96.0).reshape(12, 8) / 96, "label": jnp.arange(12) % 4}

    def model_fn(p, batch):
        z = jnp.sum(jnp.expand_dims(batch["image"], 2) * jnp.expand_dims(p["w"], 0), axis=1)
        return jnp.tanh(z + jnp.expand_dims(p["b"], 0))

    def makes(params, batch):
        net = nets.Net(Partial(model_fn), SquaredError(), params, batch)
        return [
            gauss_newton(*with_parts(net)),
            fisher(*with_parts(net), key=key),
            empirical_fisher(*single_loss(net)),
        ]

    batch = {"image": batch["image"], "target": jnp.ones((12, 4))}
    v = tree.random_normal(key, params)
    expected = [algebra.linearize(o)(v) for o in makes(params, batch)]
    with jax.set_mesh(mesh):
        lies = {"w": jax.NamedSharding(mesh, jax.P("model")), "b": jax.NamedSharding(mesh, jax.P())}
        moved, w = jax.device_put(v, lies), jax.device_put(params, lies)
        data = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
        for operator, other in zip(makes(w, data), expected, strict=True):
            found = apply(algebra.linearize(operator), moved)
            assert found["w"].sharding.spec[0] == "model"
            np.testing.assert_allclose(flat(found), flat(other), rtol=1e-5, atol=1e-6)


def _mean_of_squares(outputs, batch):
    return jnp.mean(jnp.square(outputs - batch["y"]))


def _sum_of_squares(outputs, batch):
    return jnp.sum(jnp.square(outputs - batch["y"]))


def _masked_mean(outputs, batch):
    mask = batch["y"][:, 0] > 0
    return jnp.sum(jnp.where(mask, jnp.sum(outputs**2, axis=1), 0)) / jnp.sum(mask)


def _of_named_sharding(outputs, batch):
    lies = jax.sharding.reshard(outputs, jax.P("data", None))
    return jnp.mean(jnp.square(lies - batch["y"]))


def _rows(w, batch):
    return batch["x"] @ w


def _centred(w, batch):
    outputs = batch["x"] @ w
    return outputs - jnp.mean(outputs, axis=0, keepdims=True)


def test_what_is_assumed_is_checked_under_explicit_axes(key):
    """Of examples that lie on several devices; but for outer losses that name where they lie."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, y = (
        jax.random.normal(k, (16, n)) for k, n in zip(jax.random.split(key), (5, 3), strict=False)
    )
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.ones((5, 3)), jax.P())
        batch = jax.device_put({"x": x, "y": y}, jax.P("data"))
        for outer, says in ((_sum_of_squares, "is a sum"), (_masked_mean, "is not the mean")):
            with pytest.raises(UserError, match=f"outer_loss {says}"):
                gauss_newton(composed(_rows, outer), w, batch)
        weighted = composed(_rows, _masked_mean, example_weight=lambda b: b["y"][:, 0] > 0)
        gauss_newton(weighted, w, batch)
        gauss_newton(composed(_rows, _of_named_sharding), w, batch)
        trace(gauss_newton(composed(_rows, _mean_of_squares), w, batch), method="exact")
        with pytest.raises(UserError, match="the outputs of one example depend on the others"):
            trace(gauss_newton(composed(_centred, _mean_of_squares), w, batch), method="exact")


# What a user can get wrong.


def plain(outputs, batch):
    return jnp.mean(jnp.square(outputs))


class Unregistered:
    """A likelihood that is no pytree."""

    canonical = True

    def __call__(self, outputs, batch):
        return plain(outputs, batch)

    def sample(self, key, outputs, batch):
        return batch


def given(**changes) -> dict[str, Any]:
    net = nets.mlp(dtype=np.float32)._asdict() | changes
    loss = composed(net.pop("model_fn"), net.pop("outer_loss"))
    return {"loss": loss} | net


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_fn": lambda p, b: None}, "a row for each of the 8 examples.*returns nothing"),
        ({"model_fn": lambda p, b: (p[0][0],)}, r"returns '0' float32\[3,4\]"),
        ({"model_fn": lambda p, b: p[0][1][0]}, r"returns float32\[\]"),
        ({"model_fn": lambda p, b: b["label"]}, r"returns int32\[8\]"),
        ({"model_fn": lambda p, b: nets.mlp_outputs(p, b) + 1j}, r"returns complex64\[8,4\]"),
        ({"outer_loss": lambda o, b: o}, r"one floating scalar.*returns float32\[8,4\]"),
        ({"outer_loss": lambda o, b: jnp.sum(b["image"])}, "does not depend on params"),
        ({"params": {"w": jnp.arange(3)}}, "'w' is int32"),
        ({"params": {}}, "holds no array"),
        ({"params": [jnp.ones((0, 3))]}, "are empty"),
        ({"batch": {"image": jnp.ones((8, 3)), "label": jnp.ones(7)}}, "'label' has shape"),
        ({"microbatch_size": 3}, "chunks of 3 do not divide 8"),
    ],
)
@pytest.mark.parametrize("make", [gauss_newton, fisher])
def test_wrong_arguments(make, changes, message):
    with pytest.raises(UserError, match=f"^{make.__name__}: .*{message}"):
        make(**given(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": "drawn"}, "unknown labels 'drawn'"),
        ({"outer_loss": plain}, "canonical = True.*plain does not.*give a key.*sample"),
        ({"outer_loss": plain, "key": jax.random.key(0)}, "plain has no method sample"),
        ({"labels": "observed", "key": jax.random.key(0)}, "draws nothing; leave the key out"),
        ({"key": 0}, "one random key"),
        ({"precision": "float8"}, "unknown precision 'float8'.*bfloat16"),
    ],
)
def test_a_likelihood_that_lacks_what_is_asked(changes, message):
    with pytest.raises(UserError, match=message):
        fisher(**given(**changes))


def test_a_likelihood_need_not_be_a_pytree():
    net = given(outer_loss=Unregistered())
    for operator in (fisher(**net), fisher(**net, key=jax.random.key(0))):
        assert isinstance(operator, Fisher)
        jax.eval_shape(apply, algebra.linearize(operator), net["params"])
    assert isinstance(gauss_newton(**net), GaussNewton)


def test_the_empirical_fisher_matrix_needs_examples():
    with pytest.raises(UserError, match="^empirical_fisher: batch holds no array"):
        empirical_fisher(lambda w, _: jnp.sum(w**2), jnp.ones(3), None)
    operator = empirical_fisher(lambda w, b: jnp.mean(b @ w), jnp.ones(3), jnp.ones((2, 3)))
    assert isinstance(operator, EmpiricalFisher)
