"""Exact traces and diagonals against dense matrices, and what must not change a number."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, composed, diagonal, hessian, restricted, trace
from sharpjax.geometry.exact import gauss_newton as exact
from sharpjax.geometry.exact import matrix_form
from sharpjax.geometry.exact.cotangents import as_problem, restrict
from sharpjax.geometry.operators.blocks import Restricted
from sharpjax.geometry.operators.gauss_newton import empirical_fisher, fisher, gauss_newton
from tests.problems import awkward_net, flat
from tests.traces import TRACES, traced

# Outer losses, and models that act on each example.


def cross_entropy(outputs, batch):
    """Over all axes but the last: also of a sequence of logits."""
    log_p = jax.nn.log_softmax(outputs)
    picked = jnp.take_along_axis(log_p, jnp.expand_dims(batch["y"], -1), -1)
    return -jnp.mean(picked)


def squared(outputs, batch):
    return jnp.mean(jnp.square(outputs)) + 0 * jnp.sum(batch["x"])


def saddle(outputs, batch):
    """An outer loss that is convex in one output and concave in another."""
    first, *rest = jnp.moveaxis(outputs, -1, 0)
    return jnp.mean(jnp.cos(first * sum(rest)) + jnp.square(rest[0])) + 0 * jnp.sum(batch["x"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A Linen module in evaluation mode."""

    net: nn.Module = dataclasses.field(metadata={"static": True})
    variables: dict

    def __call__(self, params, batch):
        return self.net.apply({"params": params, **self.variables}, batch["x"])


class Mlp(nn.Module):
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in (6, 5):
            x = getattr(jnp if self.activation == "tanh" else nn, self.activation)(
                nn.Dense(width, param_dtype=x.dtype)(x)
            )
        return nn.Dense(3, param_dtype=x.dtype)(x)


class Tied(nn.Module):
    """The embedding is the head."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(4, 3, param_dtype=jnp.float64)
        x = jnp.tanh(nn.Dense(3, param_dtype=jnp.float64)(embed(tokens)))
        return embed.attend(x)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        wide = {"param_dtype": jnp.float64}
        y = nn.LayerNorm(**wide)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, **wide)(y)
        x = x + nn.Dense(4, **wide)(nn.gelu(nn.Dense(6, **wide)(x)))
        return nn.Dense(3, **wide)(x.mean(axis=1))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4, param_dtype=jnp.float64)(x)), None


class Stacked(nn.Module):
    """Three layers of which each leaf holds a stack."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


class Recurrent(nn.Module):
    """One weight at every step of time."""

    @nn.compact
    def __call__(self, x):
        cell = nn.RNN(nn.SimpleCell(3, param_dtype=jnp.float64))
        return nn.Dense(3, param_dtype=jnp.float64)(jnp.asarray(cell(x))[:, -1])


class Convolutions(nn.Module):
    """With groups, strides, a residual, max-pooling and frozen statistics."""

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), param_dtype=jnp.float64)
        x = nn.relu(conv(4, strides=2)(x))
        y = conv(4, feature_group_count=2, use_bias=False)(x)
        y = nn.BatchNorm(use_running_average=True, param_dtype=jnp.float64)(y)
        x = nn.max_pool(nn.relu(x + y), (2, 2), strides=(2, 2))
        x = nn.Conv(3, (2,), param_dtype=jnp.float64, padding="VALID")(x.reshape(len(x), -1, 4))
        return x.mean(axis=1)


def drawn(net, *shape, tokens=False, seed=0, labels=None):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.integers(0, 4, shape) if tokens else rng.normal(size=shape))
    like = jax.eval_shape(net.init, jax.random.key(seed), x)
    variables = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.6), like)
    stats = variables.get("batch_stats", {})
    variables["batch_stats"] = jax.tree.map(lambda s: jnp.square(s) + 0.1, stats)
    params = variables.pop("params")
    y = jnp.asarray(rng.integers(0, 3, labels or shape[0]))
    return Model(net, variables), params, {"x": x, "y": y}


PROBLEMS = {
    "tanh": lambda: drawn(Mlp(), 7, 4),
    "relu": lambda: drawn(Mlp("relu"), 7, 4),
    "tied": lambda: drawn(Tied(), 5, 3, tokens=True, labels=(5, 3)),
    "attention": lambda: drawn(Attention(), 4, 3, 4),
    "stacked": lambda: drawn(Stacked(), 5, 4),
    "recurrent": lambda: drawn(Recurrent(), 4, 3, 2),
    "convolutions": lambda: drawn(Convolutions(), 3, 8, 8, 2),
}


def gauss_newton_truth(model, outer, params, batch):
    """`J' H J` of all examples at once, as a numpy matrix."""
    model = model if jax.tree.leaves(model) != [model] else Partial(model)
    return np.asarray(_gauss_newton_truth(outer, model, params, batch))


@functools.partial(jax.jit, static_argnums=0)
def _gauss_newton_truth(outer, model, params, batch):
    vector, unravel = ravel_pytree(params)
    outputs = model(params, batch)
    jacobian = jax.jacobian(lambda v: model(unravel(v), batch).reshape(-1))(vector)
    middle = jax.hessian(lambda o: outer(o.reshape(outputs.shape), batch))(outputs.reshape(-1))
    return jacobian.T @ middle @ jacobian


def hessian_truth(model, outer, params, batch):
    """The whole Hessian, as a numpy matrix."""
    model = model if jax.tree.leaves(model) != [model] else Partial(model)
    return np.asarray(_hessian_truth(outer, model, params, batch))


@functools.partial(jax.jit, static_argnums=0)
def _hessian_truth(outer, model, params, batch):
    vector, unravel = ravel_pytree(params)
    return jax.hessian(lambda v: outer(model(unravel(v), batch), batch))(vector)


exact_trace = functools.partial(trace, method="exact")
exact_diagonal = functools.partial(diagonal, method="exact")


def ways(kind, operator):
    if isinstance(operator, Restricted):
        operator = restrict(operator.operator, operator.where)
    return dict(exact.exact_part(kind, as_problem("test", operator))[1].ways)


def assert_equal(operator, truth, like):
    """Trace, trace of each leaf and diagonal, to rounding."""
    found, diagonal = exact_trace(operator), exact_diagonal(operator)
    scale = np.abs(truth).max()
    np.testing.assert_allclose(flat(diagonal.value), np.diag(truth), rtol=1e-11, atol=1e-13 * scale)
    np.testing.assert_allclose(found.value, np.trace(truth), rtol=1e-11, atol=1e-12 * scale)
    leaves = [leaf.value for leaf in found.by_leaf.values()]
    sums = [jnp.sum(x) for x in jax.tree.leaves(diagonal.value)]
    np.testing.assert_allclose(leaves, sums, rtol=1e-10, atol=1e-12 * scale)
    assert list(found.by_leaf) == tree.path_names(like)
    assert jax.tree.structure(diagonal.value) == jax.tree.structure(like)
    assert found.standard_error == found.remainder == diagonal.error == 0
    assert not any(leaf.standard_error for leaf in found.by_leaf.values())
    assert not flat(diagonal.standard_error).any()
    assert found.status == diagonal.status == Status.OK
    return ways("trace", operator), ways("diagonal", operator)


WAYS = {  # of the trace, and of the diagonal
    "tanh": ({"norms"}, {"norms"}),
    "tied": ({"gradients", "products", "gram"}, {"gradients", "products"}),
    "attention": ({"gradients", "gram", "products", "norms"}, {"gradients", "products", "norms"}),
    "stacked": ({"gradients"}, {"gradients"}),
    "recurrent": ({"gradients", "norms"}, {"gradients", "norms"}),
    "convolutions": ({"gradients", "gram", "products"}, {"gradients", "products"}),
}


@pytest.mark.parametrize(
    "name, outer",
    [
        ("tanh", cross_entropy),
        pytest.param("tanh", squared, marks=pytest.mark.slow),
        ("tanh", saddle),
        ("tied", cross_entropy),
        ("attention", saddle),
        ("stacked", squared),
        pytest.param("recurrent", cross_entropy, marks=pytest.mark.slow),
        ("convolutions", cross_entropy),
    ],
)
def test_gauss_newton_equals_the_dense_one(x64, name, outer):
    model, params, batch = PROBLEMS[name]()
    truth = gauss_newton_truth(model, outer, params, batch)
    ways = assert_equal(gauss_newton(composed(model, outer), params, batch), truth, params)
    for taken, expected in zip(ways, WAYS[name], strict=True):
        assert set(taken.values()) <= expected and list(taken) == tree.path_names(params)


def heads(params, batch):
    """Every way into a product: transposed, reshaped, on the left, in groups, twice in one."""
    x = batch["x"]
    x = jnp.tanh(x @ params["turned"].T + params["flat"])
    x = jnp.tanh(jnp.einsum("ji,ni->nj", params["left"], x))
    grouped = jnp.einsum("gij,ngi->ngj", params["grouped"], x.reshape(len(x), 2, 2))
    low_rank = jax.checkpoint(lambda a, b: a @ b)(params["a"], params["b"])
    x = jax.jit(lambda x, w: x @ w)(jnp.tanh(grouped).reshape(len(x), 4), low_rank)
    return x + jnp.sin(params["gain"]) * (x @ params["wide"].reshape(3, 3)[::-1])


def test_every_way_into_a_product(x64, strict):
    rng = np.random.default_rng(0)
    shapes = {"turned": (4, 3), "flat": (1, 4), "left": (4, 4), "grouped": (2, 2, 2)}
    shapes |= {"a": (4, 2), "b": (2, 3), "wide": (9,), "gain": ()}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    batch = {"x": jnp.asarray(rng.normal(size=(5, 3))), "y": jnp.asarray(rng.integers(0, 3, 5))}
    truth = gauss_newton_truth(heads, cross_entropy, params, batch)
    operator = gauss_newton(composed(heads, cross_entropy), params, batch)
    ways, diagonal = assert_equal(operator, truth, params)
    assert ways.pop("gain") == "gradients" and "gradients" not in ways.values()
    assert {ways[n] for n in ("turned", "flat", "left", "grouped", "wide")} == {"norms"}
    assert diagonal["a"] == diagonal["b"] == "products"


@pytest.mark.parametrize(
    "options, shape, out",
    [
        ({"window_strides": (2, 1), "padding": "SAME"}, (3, 2, 4, 6), "NHWC"),
        (
            {
                "window_strides": (1, 2),
                "padding": ((1, 2), (0, -1)),
                "lhs_dilation": (2, 1),
                "rhs_dilation": (1, 2),
                "feature_group_count": 2,
            },
            (3, 2, 2, 6),
            "NCHW",
        ),
        (
            {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 4},
            (3, 3, 1, 4),
            "NHWC",
        ),
        (
            {"window_strides": (1, 1), "padding": "VALID", "batch_group_count": 2},
            (3, 3, 4, 6),
            "NHWC",
        ),
    ],
)
def test_convolutions_as_products(x64, options, shape, out):
    """The patches and the layouts against jax's own gradient of the kernel."""
    rng = np.random.default_rng(0)
    kernel, x = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=(2, 9, 8, 4)))

    def convolve(kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, dimension_numbers=("NHWC", "HWIO", out), **options
        )

    form = matrix_form.matrix_form(jax.make_jaxpr(convolve)(kernel).eqns[-1], 1)
    if "batch_group_count" in options:
        assert form is None
        return
    assert form is not None
    outputs, pull = jax.vjp(convolve, kernel)
    error = jnp.asarray(rng.normal(size=outputs.shape))
    gradient = jnp.einsum("bsk,bsf->bkf", form.inputs([x, kernel]), form.errors(error))
    assert gradient.shape == (form.sizes.products, form.sizes.rows, form.sizes.columns)
    np.testing.assert_allclose(form.weight(gradient), pull(error)[0], atol=1e-12)


# Fisher matrices.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Categorical:
    """Cross-entropy that can draw labels, and knows a square root of its Hessian."""

    canonical = True

    def __call__(self, outputs, batch):
        return cross_entropy(outputs, batch)

    def sample(self, key, outputs, batch):
        return {**batch, "y": jax.random.categorical(key, outputs)}

    def square_root(self, outputs, _):
        """The factor of diag(p) - pp' (Tanabe and Sagae, 1992): one vector fewer than classes."""
        p = jax.nn.softmax(outputs[0])
        rest = jnp.flip(jnp.cumsum(jnp.flip(p)))  # of this class and all after it
        p, here, after = (jnp.expand_dims(x, 1) for x in (p[:-1], rest[:-1], rest[1:]))
        below = -jnp.sqrt(p / jnp.where(after > 0, here * after, 1)) * jax.nn.softmax(outputs)
        diagonal = jnp.sqrt(p * after / jnp.where(here > 0, here, 1))
        rows = jnp.triu(below, 1) + diagonal * jnp.eye(*below.shape)
        return jnp.expand_dims(rows, 1)


def scatter(slopes):
    return np.asarray(slopes.T @ slopes) / len(slopes)


def each(loss, params, batch):
    """The gradient of each example, as rows."""
    vector, unravel = ravel_pytree(params)
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    return jax.vmap(jax.grad(lambda v, b: loss(unravel(v), b)), (None, 0))(vector, ones)


def test_fisher_matrices_equal_the_dense_ones(x64, key):
    model, params, batch = PROBLEMS["tanh"]()
    outer = Categorical()

    def loss(params, batch):
        return outer(model(params, batch), batch)

    middle = gauss_newton_truth(model, outer, params, batch)
    assert_equal(fisher(composed(model, outer), params, batch), middle, params)
    observed = scatter(each(loss, params, batch))
    assert_equal(fisher(composed(model, outer), params, batch, labels="observed"), observed, params)
    assert_equal(empirical_fisher(loss, params, batch), observed, params)
    outputs: Any = model(params, batch)
    drawn_labels = jax.vmap(outer.sample)(
        jax.random.split(key, 7),
        outputs[:, None],
        {"y": batch["y"][:, None]},
    )
    sampled = scatter(each(loss, params, {**batch, "y": drawn_labels["y"][:, 0]}))
    assert_equal(fisher(composed(model, outer), params, batch, key=key), sampled, params)


def test_a_square_root_replaces_the_eigenproblem(x64):
    model, params, batch = PROBLEMS["tanh"]()
    plain = exact_trace(gauss_newton(composed(model, cross_entropy), params, batch))
    found = exact_trace(gauss_newton(composed(model, Categorical()), params, batch))
    np.testing.assert_allclose(found.value, plain.value, rtol=1e-12)
    assert plain.num_products == 3 and found.num_products == 2


# Blocks, chunks, and layouts.


def test_blocks_and_chunks(x64, monkeypatch):
    """Any cut gives the same: chunks that do not divide the examples, passes over the classes."""
    model, params, batch = PROBLEMS["tied"]()
    truth = gauss_newton_truth(model, cross_entropy, params, batch)
    mask = flat(
        jax.tree.map(lambda m, x: np.full(x.shape, m), tree.select(params, "*/kernel"), params)
    )
    block = truth[np.ix_(mask, mask)]
    operator = gauss_newton(composed(model, cross_entropy), params, batch)
    cut = restricted(operator, "*/kernel")
    assert_equal(cut, block, cut.like)
    cut = gauss_newton(composed(model, cross_entropy), params, batch, where="*/kernel")
    assert_equal(cut, block, cut.like)
    chunked = gauss_newton(composed(model, cross_entropy), params, batch, microbatch_size=1)
    assert_equal(chunked, truth, params)
    steps, iterate = [], exact.loops.iterate

    def counted(*args, max_steps):
        steps.append(max_steps)
        return iterate(*args, max_steps=max_steps)

    monkeypatch.setattr(exact, "_CPU_BYTES", 2600)
    monkeypatch.setattr(exact.loops, "iterate", counted)
    assert_equal(operator, truth, params)
    assert min(steps) > 5  # not one per example: several


def awkward(params, batch):
    (kernel, bias), (head, _) = params["layers"]
    hidden = jnp.tanh(batch["x"] @ kernel + jnp.expand_dims(bias, 0))
    return params["gain"] * (hidden @ head) + jnp.expand_dims(params["shift"]["a/b"], 0)


def to_target(outputs, batch):
    return jnp.mean(jnp.sum(jnp.square(outputs - batch["y"]), axis=1))


def test_awkward_trees(x64, strict):
    params, batch = awkward_net()
    truth = gauss_newton_truth(awkward, to_target, params, batch)
    ways, _ = assert_equal(gauss_newton(composed(awkward, to_target), params, batch), truth, params)
    assert ways["unused"] == ways["empty"] == "unused" and ways["gain"] == "gradients"


def test_narrow_parameters():
    """They are widened before the model sees them: the same numbers as in float32."""
    params, batch = awkward_net(dtype=np.float32)  # pyright: ignore[reportArgumentType]
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    found, expected = (
        exact_diagonal(gauss_newton(composed(awkward, to_target), p, batch)).value
        for p in (narrow, wide)
    )
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(flat(found), flat(expected))


def half(params, batch):
    """A model that computes in bfloat16."""
    return (batch["x"].astype(jnp.bfloat16) @ params.astype(jnp.bfloat16)).astype(jnp.float32)


def test_a_model_that_computes_in_bfloat16():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 4)), "float32")
    found = exact_diagonal(gauss_newton(composed(half, squared), jnp.ones((4, 3)), {"x": x}))
    assert found.value.dtype == jnp.float32
    expected = 2 / 3 * np.mean(np.square(x), axis=0)
    np.testing.assert_allclose(found.value, np.tile(expected[:, None], 3), rtol=2e-2)


@pytest.mark.parametrize("where", [None, "w"])
def test_operators_in_bfloat16_have_none(key, where):
    """Their products are 1e-2 off, and a standard error of 0 would hide it."""
    loss = composed(narrow_net, squared)
    problem = loss, {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, {"x": jnp.ones((6, 4))}
    operators = [
        make(*problem, where=where, precision="bfloat16")
        for make in (gauss_newton, empirical_fisher, hessian)
    ]
    for operator in operators:
        for solve in (trace, diagonal):
            with pytest.raises(UserError, match=f"^{solve.__name__}: .*precision='highest'"):
                solve(operator, key=key, method="exact")


def narrow_net(params, batch):
    return batch["x"] @ params["w"] + params["b"]


# How it is called.


def counted(params, batch):
    traced("model")
    return jnp.tanh(batch["x"] @ params["w"]) @ params["v"]


def problem(i, size=6):
    rng = np.random.default_rng(i)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 2))}
    params = jax.tree.map(lambda x: jnp.asarray(x, "float32"), params)
    x = jnp.asarray(rng.normal(size=(size, 3)), "float32")
    return params, {"x": x, "y": jnp.asarray(rng.integers(0, 2, size))}


def test_new_numbers_compile_nothing():
    def solve(i):
        operator = gauss_newton(composed(counted, cross_entropy), *problem(i))
        return exact_trace(operator).value, exact_diagonal(operator).value

    solve(0)
    traced = TRACES["model"]
    solve(1)
    assert TRACES["model"] == traced > 0


def test_lanes_and_jit():
    members = [problem(i) for i in range(3)]
    together = tree.stack(members)

    def solve(params, batch):
        operator = gauss_newton(composed(counted, cross_entropy), params, batch)
        return exact_trace(operator), exact_diagonal(operator)

    traces, diagonals = jax.vmap(solve)(*together)
    inside, _ = jax.jit(solve)(*members[1])
    np.testing.assert_allclose(inside.value, traces.value[1], rtol=1e-5)
    for i, member in enumerate(members):
        alone, entries = solve(*member)
        np.testing.assert_allclose(traces.value[i], alone.value, rtol=1e-5)
        np.testing.assert_allclose(
            flat(tree.index(diagonals.value, i)), flat(entries.value), rtol=1e-4
        )
        assert traces.num_products[i] == diagonals.num_products[i] == 2


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_examples(kind):
    params, batch = problem(0, size=8)
    operator = gauss_newton(composed(counted, cross_entropy), params, batch)
    expected = exact_trace(operator), exact_diagonal(operator)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
        operator = gauss_newton(composed(counted, cross_entropy), params, batch)
        found = exact_trace(operator), exact_diagonal(operator)
    np.testing.assert_allclose(found[0].value, expected[0].value, rtol=1e-5)
    np.testing.assert_allclose(flat(found[1].value), flat(expected[1].value), rtol=1e-4)


def not_finite(params, batch):
    return jnp.log(batch["x"]) @ params


def test_a_model_that_is_not_finite():
    operator = gauss_newton(
        composed(not_finite, squared), jnp.ones((3, 2)), {"x": jnp.zeros((4, 3))}
    )
    assert exact_trace(operator).status == Status.NON_FINITE
    assert exact_diagonal(operator).status == Status.NON_FINITE


def test_without_any_weight_there_is_no_number():
    """The loss is 0 / 0, and so are its products."""

    def outer(outputs, batch):
        return jnp.sum(batch["m"] * jnp.sum(outputs**2, axis=1)) / jnp.sum(batch["m"])

    params, batch = problem(0)
    batch["m"] = jnp.zeros(len(batch["x"]))
    loss = composed(lambda w, b: b["x"] @ w, outer, example_weight=lambda b: b["m"])
    operator = gauss_newton(loss, params["w"], batch)
    assert exact_trace(operator).status == Status.NON_FINITE
    assert exact_diagonal(operator).status == Status.NON_FINITE


def normalised(params, batch):
    """As BatchNorm in training mode."""
    x = batch["x"] @ params
    return (x - x.mean(axis=0, keepdims=True)) / (x.std(axis=0, keepdims=True) + 1e-3)


def test_examples_that_see_each_other_are_refused():
    params, batch = problem(0)
    operator = gauss_newton(composed(normalised, squared), params["w"], batch)
    with pytest.raises(UserError, match="^trace: the outputs of one example depend on"):
        exact_trace(operator)
    with pytest.raises(UserError, match="^diagonal: the outputs of one example depend on"):
        exact_diagonal(operator)


def normalised_net(params, batch):
    w, v, c = params
    return normalised(w, batch) @ v + c


def test_they_are_where_the_outputs_hardly_show_it():
    """With a head of zeros they are all alike, with a large bias nearly; and two neighbours that
    are one example have no other batch statistics together than alone."""
    rng = np.random.default_rng(0)
    x, w, v = (jnp.asarray(rng.normal(size=size)) for size in ((8, 5), (5, 6), (6, 3)))
    twins = x.at[1].set(x[0])
    nets = ((x, 0 * v, jnp.zeros(3)), (x, v, jnp.full(3, 200.0)), (twins, v, jnp.zeros(3)))
    for x, v, c in nets:
        operator = gauss_newton(composed(normalised_net, squared), (w, v, c), {"x": x})
        with pytest.raises(UserError, match="^trace: the outputs of one example depend on"):
            exact_trace(operator)


def slightly_centred(params, batch):
    outputs = jnp.tanh(batch["x"] @ params)
    return outputs - 0.04 * outputs.mean(axis=0)


def test_they_are_where_they_see_each_other_a_little():
    params, batch = problem(0)
    operator = gauss_newton(composed(slightly_centred, squared), params["w"], batch)
    with pytest.raises(UserError, match="^trace: the outputs of one example depend on"):
        exact_trace(operator)
