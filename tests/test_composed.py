"""One loss object: its parts and weights, and what is refused of an outer loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import (
    Status,
    averaged,
    block_diagonal,
    composed,
    diagonal,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    restricted,
    trace,
)
from sharpjax.geometry.loss.composed import parts
from sharpjax.geometry.operators.algebra import linearize
from sharpjax.losses import Classification
from sharpjax.nn import MLP
from tests import nets
from tests.problems import columns, dense, flat


def matrix(operator):
    return columns(linearize(operator), operator.like)


def net(params, batch):
    return jax.nn.relu(batch["x"] @ params["w"]) @ params["v"]


def bent(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) @ params["v"]


def problem(dtype=jnp.float64):
    k = jax.random.split(jax.random.key(0), 4)
    draw = functools.partial(jax.random.normal, dtype=jnp.float32)
    params = {"w": draw(k[0], (5, 8)), "v": draw(k[1], (8, 3))}
    batch = {"x": draw(k[2], (24, 5))}
    batch["y"] = jax.random.randint(k[3], (24,), 0, 3, jnp.int32)
    params, batch["x"] = jax.tree.map(lambda x: x.astype(dtype), (params, batch["x"]))
    return params, batch


def each(outputs, batch):
    """The cross-entropy of each example."""
    log_p = jax.nn.log_softmax(outputs)
    return -jnp.take_along_axis(log_p, jnp.expand_dims(batch["y"], 1), 1)[:, 0]


CLASS_WEIGHTS = np.array([0.3, 3.0, 8.0], np.float32)


def class_weight(batch):
    return jnp.asarray(CLASS_WEIGHTS)[batch["y"]]


def kept(batch):
    return batch["y"] > 0


def mean(outputs, batch):
    return jnp.mean(each(outputs, batch))


def weighted(outputs, batch):
    return jnp.sum(class_weight(batch) * each(outputs, batch)) / jnp.sum(class_weight(batch))


def masked(outputs, batch):
    """No number for a batch of masked examples alone."""
    return jnp.sum(jnp.where(kept(batch), each(outputs, batch), 0)) / jnp.sum(kept(batch))


def summed(outputs, batch):
    return jnp.sum(each(outputs, batch))


def log_mean_exp(outputs, batch):
    return jax.nn.logsumexp(each(outputs, batch))


def contrastive(outputs, batch):
    return jnp.mean(jax.nn.logsumexp(outputs @ outputs.T, axis=1) - jnp.sum(outputs**2, axis=1))


def worst(outputs, batch):
    return jnp.max(each(outputs, batch))


def standardised(outputs, batch):
    spread = jnp.var(outputs, axis=0, keepdims=True) + 1e-3
    return jnp.mean(jnp.square(outputs - jnp.mean(outputs, axis=0, keepdims=True)) / spread)


def of_pairs(outputs, batch):
    return mean((outputs + jnp.roll(outputs, 1, axis=0)) / 2, batch)


WEIGHTED = composed(net, weighted, example_weight=class_weight)
MASKED = composed(net, masked, example_weight=kept)


# The check of an outer loss.


@pytest.mark.parametrize(
    "outer",
    [weighted, masked, log_mean_exp, contrastive, worst, standardised, of_pairs],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("make", [gauss_newton, fisher])
def test_a_loss_that_mixes_examples_is_refused(make, outer):
    params, batch = problem(jnp.float32)
    options = {"labels": "observed"} if make is fisher else {}
    with pytest.raises(UserError, match=f"^{make.__name__}: outer_loss is not the mean.*example_"):
        make(composed(net, outer), params, batch, **options)
    with pytest.raises(UserError, match="^trace: outer_loss is not the mean"):
        trace(hessian(composed(net, outer), params, batch), key=jax.random.key(0), method="exact")


def test_a_sum_is_refused_with_the_remedy(x64, key):
    """24 times the mean; the sum of 24 examples was taken for their mean."""
    params, batch = problem()
    truth = np.trace(dense(composed(net, summed), params, batch))
    assert truth == pytest.approx(132.71, abs=0.005)
    for make in (gauss_newton, functools.partial(fisher, labels="observed")):
        with pytest.raises(UserError, match=r"sum over the examples.*N \* operator"):
            make(composed(net, summed), params, batch)
    operator = 24 * hessian(composed(net, mean), params, batch)
    found = trace(operator, key=key, method="exact")
    np.testing.assert_allclose(found.value, truth, rtol=1e-6)
    assert found.status == Status.OK and found.standard_error == 0


@pytest.mark.parametrize(
    "weight, message",
    [
        (lambda b: class_weight(b) / jnp.sum(class_weight(b)), "the weight that it has alone"),
        (lambda b: -class_weight(b), "numbers >= 0"),
        (lambda b: class_weight(b) ** 2, "not the mean"),
        (lambda b: class_weight(b)[:-1], "one number for each of the 24 examples.*(23,)"),
    ],
)
def test_wrong_weights_are_refused(weight, message):
    with pytest.raises(UserError, match=message):
        gauss_newton(composed(net, weighted, example_weight=weight), *problem(jnp.float32))


def probabilities(params, batch):
    return jax.nn.softmax(net(params, batch))


def log_loss(outputs, batch):
    return -jnp.mean(jnp.log(jnp.take_along_axis(outputs, batch["y"][:, None], 1)))


def sum_log_loss(outputs, batch):
    return -jnp.sum(jnp.log(jnp.take_along_axis(outputs, batch["y"][:, None], 1)))


def test_where_random_outputs_give_no_number():
    """Then the outputs themselves are taken."""
    params, batch = problem(jnp.float32)
    gauss_newton(composed(probabilities, log_loss), params, batch)
    with pytest.raises(UserError, match="sum over the examples"):
        gauss_newton(composed(probabilities, sum_log_loss), params, batch)


def rare(batch):
    """Four of 1,000 examples count."""
    return batch["i"] % 250 == 249


def rarely(outputs, batch):
    return jnp.sum(jnp.where(rare(batch), outputs[:, 0] ** 2, 0)) / jnp.sum(rare(batch))


def test_the_examples_that_count_are_looked_at():
    batch = {"x": np.ones((1000, 2), np.float32), "i": np.arange(1000, dtype=np.int32)}
    loss = composed(lambda w, b: b["x"] @ w, rarely, example_weight=rare)
    gauss_newton(loss, jnp.ones((2, 1)), batch)

    def doubled(outputs, batch):
        return 2 * rarely(outputs, batch) - outputs[0, 0] ** 2 * rare(batch)[0]

    with pytest.raises(UserError, match="not the mean"):
        gauss_newton(
            composed(lambda w, b: b["x"] @ w, doubled, example_weight=rare), jnp.ones((2, 1)), batch
        )


def test_inside_a_trace_it_is_a_status(x64, key):
    params, batch = problem()

    def solve(params, batch):
        bad, good = (
            trace(hessian(composed(net, outer), params, batch), key=key, method="exact")
            for outer in (summed, mean)
        )
        vector = gauss_newton(composed(net, summed), params, batch).linearize()(params)
        return bad, good, vector

    for bad, good, vector in (
        jax.jit(solve)(params, batch),
        jax.vmap(solve)(*tree.stack([(params, batch)] * 2)),
    ):
        assert (bad.status == Status.ASSUMPTION_FAILED).all() and np.isnan(bad.value).all()
        assert (good.status == Status.OK).all() and np.isfinite(good.value).all()
        assert np.isnan(flat(vector)).all()


# Matrices of weighted means.


def test_a_weighted_hessian(x64, key):
    params, batch = problem()
    truth = dense(WEIGHTED, params, batch)
    assert np.trace(truth) == pytest.approx(4.769, abs=0.0005)
    for size in (None, 6):
        operator = hessian(WEIGHTED, params, batch, microbatch_size=size)
        found = trace(operator, key=key, method="exact")
        np.testing.assert_allclose(found.value, np.trace(truth), rtol=1e-5)
        entries = diagonal(operator, key=key, method="exact")
        np.testing.assert_allclose(flat(entries.value), np.diag(truth), atol=1e-6)
    np.testing.assert_allclose(matrix(gauss_newton(WEIGHTED, params, batch)), dense_part(), 1e-5)


def dense_part():
    params, batch = problem()
    outputs = net(params, batch)
    rows = jax.jacobian(lambda v: net(ravel_pytree(params)[1](v), batch))(ravel_pytree(params)[0])
    middle = jax.hessian(lambda o: weighted(o, batch))(outputs)
    return np.einsum("nkp,nkml,mlq->pq", rows, middle, rows)


@pytest.mark.parametrize("loss", [WEIGHTED, MASKED], ids=["weighted", "masked"])
@pytest.mark.parametrize("size", [None, 4])
def test_weighted_fisher_matrices(x64, loss, size):
    """`sum_n w_n g_n g_n' / sum_n w_n`, where no example of weight 0 counts."""
    params, batch = problem()
    weight = np.asarray(loss.example_weight(batch), np.float64)
    ones = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(24)]
    slopes = np.stack([flat(jax.grad(composed(net, mean))(params, one)) for one in ones])
    truth = (slopes.T * weight) @ slopes / weight.sum()
    for operator in (
        fisher(loss, params, batch, labels="observed", microbatch_size=size),
        empirical_fisher(loss, params, batch, microbatch_size=size),
    ):
        np.testing.assert_allclose(matrix(operator), truth, atol=1e-6)
        np.testing.assert_allclose(
            trace(operator, method="exact").value, np.trace(truth), rtol=1e-6
        )
        np.testing.assert_allclose(
            flat(diagonal(operator, method="exact").value), np.diag(truth), atol=1e-6
        )


@pytest.mark.parametrize("debug_nans", [False, True])
def test_masked_examples_without_a_number(x64, key, debug_nans):
    """A batch of one masked example is 0 / 0, which must not be multiplied by its weight."""
    params, batch = problem()
    truth = dense(MASKED, params, batch)
    with jax.debug_nans(debug_nans):
        gauss_newton(composed(probabilities, log_loss), params, batch)
        found = trace(hessian(MASKED, params, batch), key=key, method="exact")
    np.testing.assert_allclose(found.value, np.trace(truth), rtol=1e-6)


@pytest.mark.parametrize("options", [{"labels": "observed"}, {"key": jax.random.key(3)}])
def test_rows_count_one_by_one(x64, options):
    """The products and the exact trace of a model with several rows an example agree."""
    net = nets.attention()
    operator = fisher(composed(*net[:2]), net.params, net.batch, **options)
    np.testing.assert_allclose(
        trace(operator, method="exact").value, np.trace(matrix(operator)), rtol=1e-10
    )


def tokens(batch):
    return jnp.sum(batch["label"] > 0, axis=1)


def masked_tokens(logits, batch):
    label = batch["label"].reshape(-1)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.expand_dims(label, 1), 1)[:, 0]
    return jnp.sum(jnp.where(label > 0, loss, 0)) / jnp.sum(label > 0)


def test_masked_tokens(x64, key):
    net = nets.attention()
    loss = composed(net.model_fn, masked_tokens, example_weight=tokens)
    with pytest.raises(UserError, match="not the mean"):
        gauss_newton(composed(net.model_fn, masked_tokens), net.params, net.batch)
    operator = gauss_newton(loss, net.params, net.batch)
    np.testing.assert_allclose(
        trace(operator, method="exact").value, np.trace(matrix(operator)), rtol=1e-6
    )
    with pytest.raises(UserError, match="not known which rows count"):
        fisher(loss, net.params, net.batch, labels="observed")


# Regularisers.


def l2(params):
    return 1.5e-5 * tree.vdot(params, params)


def robust(params):
    return tree.total([jnp.sum(jnp.log1p(x**2)) for x in jax.tree.leaves(params)])


def orthogonal(params):
    gram = params["w"].T @ params["w"]
    return jnp.sum(jnp.square(gram - jnp.eye(len(gram)))) / 20


def groups(params):
    return jnp.sum(jnp.linalg.norm(params["w"], axis=0))


@pytest.mark.parametrize("model", [net, bent], ids=["relu", "tanh"])
@pytest.mark.parametrize(
    "regularizer, is_exact",
    [(l2, True), (robust, True), (orthogonal, False), (groups, False)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_regularizer(x64, key, model, regularizer, is_exact):
    params, batch = problem()
    loss = composed(model, mean, regularizer=regularizer)
    truth = dense(loss, params, batch)
    found = trace(hessian(loss, params, batch), key=key, method="exact", max_products=200)
    entries = diagonal(hessian(loss, params, batch), key=key, method="exact", max_products=200)
    assert found.status == entries.status == Status.OK
    assert (found.standard_error == 0) == (entries.error == 0) == (is_exact and model is net)
    rounding = 1e-10 * np.trace(truth)
    assert abs(found.value - np.trace(truth)) <= 5 * found.standard_error + rounding
    off = np.linalg.norm(flat(entries.value) - np.diag(truth))
    assert off <= 3 * entries.error + rounding

    def of_params(params, batch):
        return regularizer(params)

    part = dense(of_params, params, batch)
    plain = composed(model, mean)
    around = matrix(gauss_newton(plain, params, batch))
    np.testing.assert_allclose(matrix(gauss_newton(loss, params, batch)), around + part, atol=1e-12)
    if is_exact:
        operator = gauss_newton(loss, params, batch, where="w")
        found = trace(operator, key=key, method="exact")
        np.testing.assert_allclose(found.value, np.trace((around + part)[24:, 24:]), rtol=1e-10)
    observed = [matrix(fisher(loss, params, batch, labels="observed")) for loss in (loss, plain)]
    np.testing.assert_array_equal(*observed)
    np.testing.assert_allclose(
        matrix(empirical_fisher(loss, params, batch)), observed[0], atol=1e-12
    )


def test_the_trace_of_a_loss_with_weight_decay(x64, key):
    """A second copy of the loss, without it, gave 8.901 +- 0 and not 11.43."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(50, 1200)) / 7), "v": jnp.zeros((1200, 3))}
    batch = {"x": jnp.asarray(rng.normal(size=(24, 50))), "y": jnp.arange(24) % 3}
    with_decay, without = (
        trace(hessian(composed(net, mean, regularizer=r), params, batch), key=key, method="exact")
        for r in (l2, None)
    )
    size = tree.size(params)
    np.testing.assert_allclose(with_decay.value - without.value, 3e-5 * size, rtol=1e-9)
    assert with_decay.standard_error == 0 and with_decay.status == Status.OK


@pytest.mark.parametrize("size", [1e-26, 1e20])
@pytest.mark.parametrize("regularizer", [None, orthogonal], ids=["none", "orthogonal"])
def test_losses_of_any_size(key, size, regularizer):
    """In float32, where squares of these numbers are none."""
    params, batch = problem(jnp.float32)

    def scaled(outputs, batch):
        return size * mean(outputs, batch)

    own = None if regularizer is None else lambda params: size * orthogonal(params)
    solve = functools.partial(trace, key=key, method="exact", relative_error=0.5, max_products=400)
    of = functools.partial(diagonal, key=key, method="exact", max_products=48)
    plain, tiny = (
        hessian(composed(bent, outer, regularizer=r), params, batch)
        for outer, r in ((mean, regularizer), (scaled, own))
    )
    for a, b in ((solve(plain), solve(tiny)), (of(plain), of(tiny))):
        assert a.status == b.status == Status.OK and a.num_products == b.num_products
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            if jnp.issubdtype(x.dtype, jnp.floating):
                np.testing.assert_allclose(y / size, x, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="sum over the examples"):
        gauss_newton(composed(bent, lambda o, b: size * summed(o, b)), params, batch)


def test_a_regularizer_inside_jit(x64, key):
    params, batch = problem()
    for regularizer in (l2, orthogonal):
        operator = hessian(composed(net, mean, regularizer=regularizer), params, batch)
        solve = functools.partial(trace, key=key, method="exact")
        np.testing.assert_allclose(jax.jit(solve)(operator).value, solve(operator).value, 1e-10)


def test_a_regularizer_without_a_key(x64):
    """None is needed where its Hessian is diagonal; inside jit the status tells."""
    params, batch = problem()
    for regularizer, status in ((l2, Status.OK), (orthogonal, Status.ASSUMPTION_FAILED)):
        loss = composed(net, mean, regularizer=regularizer)
        operator, truth = gauss_newton(loss, params, batch), dense(loss, params, batch)
        solve = functools.partial(trace, method="exact")
        inside = jax.jit(solve)(operator)
        assert inside.status == status
        if status == Status.OK:
            np.testing.assert_allclose([inside.value, solve(operator).value], np.trace(truth))
        else:
            with pytest.raises(UserError, match="^trace: .* is not diagonal. Give a key"):
                solve(operator)


# What is composed of them.


def test_means_multiples_sums_and_dampings(x64, key):
    params, batch = problem()
    truth = dense(WEIGHTED, params, batch)
    operator = averaged(functools.partial(hessian, WEIGHTED, params), batch, batch_size=7)
    whole = 2 * operator + 0.5
    solve = functools.partial(trace, key=key, method="exact")
    np.testing.assert_allclose(solve(operator).value, np.trace(truth), rtol=1e-5)
    np.testing.assert_allclose(solve(whole).value, 2 * np.trace(truth) + 32, rtol=1e-6)
    np.testing.assert_allclose(solve(block_diagonal(whole)).value, solve(whole).value, rtol=1e-12)
    block = solve(restricted(whole, "v"))
    np.testing.assert_allclose(block.value, 2 * np.trace(truth[:24, :24]) + 12, rtol=1e-6)
    entries = diagonal(whole - hessian(WEIGHTED, params, batch), key=key, method="exact")
    np.testing.assert_allclose(flat(entries.value), np.diag(truth) + 0.5, atol=1e-6)


@pytest.mark.parametrize("model", [net, bent], ids=["relu", "tanh"])
def test_leaves_of_two_types(x64, key, model):
    """float32 and float64 among the parameters of one loss."""
    params, batch = problem()
    params["v"] = params["v"].astype(jnp.float32)
    loss = composed(model, mean, regularizer=l2)
    truth = np.diag(dense(loss, *problem()))
    operator = hessian(loss, params, batch)
    found = trace(operator, key=key, method="exact")
    assert abs(found.value - truth.sum()) <= 5 * found.standard_error + 1e-5
    entries = diagonal(operator, key=key, method="exact")
    assert [x.dtype for x in jax.tree.leaves(entries.value)] == [jnp.float32, jnp.float64]
    assert np.linalg.norm(flat(entries.value) - truth) <= 3 * entries.error + 1e-5
    around = gauss_newton(composed(model, mean), params, batch)
    np.testing.assert_allclose(
        trace(around, method="exact").value, np.trace(matrix(around)), rtol=1e-5
    )


# Losses that have their parts.


class OfPlainFunctions:
    model_fn, outer_loss = staticmethod(net), staticmethod(mean)

    def __call__(self, params, batch):
        return self.outer_loss(self.model_fn(params, batch), batch)


class InAnotherWay(OfPlainFunctions):
    def __call__(self, params, batch):
        log_p = jax.nn.log_softmax(net(params, batch))
        return -jnp.mean(log_p[jnp.arange(len(batch["y"])), batch["y"]])


class WithMore(OfPlainFunctions):
    """What its call adds is in none of its parts."""

    def __call__(self, params, batch):
        return super().__call__(params, batch) + 1.5e-5 * tree.vdot(params, params)


def test_any_loss_with_these_attributes(x64, key):
    params, batch = problem()
    truth = np.trace(dense(composed(net, mean), params, batch))
    for loss in (OfPlainFunctions(), InAnotherWay(), Partial(OfPlainFunctions())):
        found = trace(hessian(loss, params, batch), key=key, method="exact")
        np.testing.assert_allclose(found.value, truth, rtol=1e-10)
    with pytest.raises(UserError, match="^trace: calling the loss does not give"):
        trace(hessian(WithMore(), params, batch), key=key, method="exact")


def test_a_classification(key):
    model = MLP(num_classes=3, width=8)
    batch = {"image": jax.random.normal(key, (8, 4, 4, 1)), "label": jnp.arange(8) % 3}
    params = model.init(key, batch["image"])["params"]
    loss = Classification(model)
    found = trace(hessian(loss, params, batch), key=key, method="exact")
    truth = np.trace(dense(loss, params, batch))
    np.testing.assert_allclose(found.value, truth, rtol=1e-4)
    assert parts(hessian(loss, params, batch, where="*/bias").loss) is not None
    assert found.standard_error == 0 and found.num_products == 2


def test_a_loss_without_parts_is_refused(key):
    params, batch = problem(jnp.float32)

    def loss(params, batch):
        return mean(net(params, batch), batch)

    for make in (gauss_newton, fisher):
        with pytest.raises(UserError, match=f"^{make.__name__}: .*composed.*got loss"):
            make(loss, params, batch)
    for solve in (trace, diagonal):
        with pytest.raises(UserError, match=f"^{solve.__name__}: .*composed.*got loss"):
            solve(hessian(loss, params, batch), key=key, method="exact")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3.0, mean), r"model_fn must be .*model_fn\(params, batch\) -> outputs; got float"),
        ((net, 3.0), r"outer_loss must be .*outer_loss\(outputs, batch\) -> scalar"),
        ((net, Partial(mean, "mean")), "of the outer_loss is a str"),
    ],
)
def test_what_is_no_function(arguments, message):
    with pytest.raises(UserError, match=f"^composed: .*{message}"):
        composed(*arguments)


def test_bfloat16_lowers_the_model_alone():
    params, batch = problem(jnp.float32)
    types = []

    def outer(outputs, batch):
        types.append((outputs.dtype, batch["x"].dtype))
        return mean(outputs, batch)

    gauss_newton(composed(net, outer), params, batch, precision="bfloat16")
    assert {x for pair in types for x in pair} == {np.dtype("float32")}


def test_an_outer_loss_whose_derivatives_lose_digits_is_refused_for_that(key):
    params, batch = jax.random.normal(key, (5, 3)), {"x": jnp.eye(5), "y": jnp.ones((5, 3))}

    def loss(scale):
        def outer_loss(outputs, batch):
            return scale * jnp.mean((outputs - batch["y"]) ** 2)

        return composed(lambda p, b: b["x"] @ p, outer_loss)

    with pytest.raises(UserError, match="^gauss_newton: .*digits are lost. Multiply"):
        gauss_newton(loss(1e-37), params, batch)
    gauss_newton(loss(1e-30), params, batch)
