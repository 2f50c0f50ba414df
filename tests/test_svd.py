"""Factors of weights: what they approximate, their gradients, their cost, their constraints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.nn import factored, orthogonality, svd
from sharpjax.nn.svd import Decomposition
from sharpjax.nn.tokens import TokenMLP


def net(seed=0):
    """A tree with matrices of three shapes, a bias and a stack that is no matrix."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embed": {"embedding": (7, 5)},
        "hidden": {"kernel": (10, 6), "bias": (6,)},
        "head": {"kernel": (6, 6)},
        "stack": (2, 3, 4),
    }
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), shapes, is_leaf=is_shape)


merge = jax.jit(svd.merge)


@pytest.mark.parametrize(("fraction", "ranks"), [(1.0, (5, 6, 6)), (0.5, (2, 3, 3))])
def test_the_truncation_is_the_best_of_its_rank(fraction, ranks, x64, strict):
    params = net()
    factors = svd.decompose(params, fraction)
    merged = merge(factors)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    for (name, leaf), k in zip(
        (("embed", "embedding"), ("hidden", "kernel"), ("head", "kernel")), ranks, strict=True
    ):
        w, node = params[name][leaf], factors[name][leaf]
        assert {part: value.shape for part, value in node.items()} == {
            "U": (w.shape[0], k),
            "s": (k,),
            "Vt": (k, w.shape[1]),
        }
        s = np.linalg.svd(w, compute_uv=False)
        error = np.sum((w - merged[name][leaf]) ** 2)
        np.testing.assert_allclose(error, np.sum(s[k:] ** 2), rtol=1e-12, atol=1e-24)
        np.testing.assert_allclose(node["s"], s[:k], rtol=1e-12)
        np.testing.assert_allclose(node["U"].T @ node["U"], np.eye(k), atol=1e-13)
        np.testing.assert_allclose(node["Vt"] @ node["Vt"].T, np.eye(k), atol=1e-13)
    np.testing.assert_array_equal(factors["hidden"]["bias"], params["hidden"]["bias"])
    np.testing.assert_array_equal(factors["stack"], params["stack"])


def test_layers_choose():
    factors = svd.decompose(net(), 0.5, layers=("hidden/*", "embed/embedding"))
    assert svd.is_factors(factors["hidden"]["kernel"]) and svd.is_factors(
        factors["embed"]["embedding"]
    )
    assert factors["head"]["kernel"].shape == (6, 6) and factors["hidden"]["bias"].shape == (6,)


def test_a_population_is_decomposed_and_merged_lane_by_lane(x64):
    population = tree.stack([net(0), net(1)])
    halve = functools.partial(svd.decompose, rank_fraction=0.5, layers="head/*")
    factors = jax.jit(jax.vmap(halve))(population)
    alone = merge(halve(net(1)))
    merged = jax.tree.map(lambda leaf: np.asarray(leaf)[1], merge(factors))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), merged, alone)


@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
def test_gradients_are_those_of_the_product(shape, x64, strict):
    """gU = G V diag(s), gs = diag(U'GV), gV = G'U diag(s), at factors that are no SVD any more."""
    rng = np.random.default_rng(0)
    (m, n), k = shape, 4
    u, s, vt, g = (rng.normal(size=size) for size in ((m, k), k, (k, n), (m, n)))
    factors = {"kernel": {"U": jnp.asarray(u), "s": jnp.asarray(s), "Vt": jnp.asarray(vt)}}
    loss = svd.OnFactors(lambda params, batch: jnp.sum(batch * params["kernel"]))
    grads = jax.jit(jax.grad(loss))(factors, jnp.asarray(g))["kernel"]
    np.testing.assert_allclose(grads["U"], g @ vt.T * s, rtol=1e-12)
    np.testing.assert_allclose(grads["s"], np.diag(u.T @ g @ vt.T), rtol=1e-12)
    np.testing.assert_allclose(grads["Vt"], (g.T @ u * s).T, rtol=1e-12)

    # A small step of gradient descent on the factors, seen in W.
    step = {"kernel": jax.tree.map(lambda leaf: -np.asarray(leaf), grads)}
    change = jax.jit(lambda at, along: jax.jvp(svd.merge, (at,), (along,))[1])(factors, step)
    expected = g @ (vt.T * s**2) @ vt + (u * np.diag(u.T @ g @ vt.T)) @ vt + (u * s**2) @ (u.T @ g)
    np.testing.assert_allclose(change["kernel"], -expected, rtol=1e-12)


# Cost.


def multiplications(fn, *args):
    """Of all matrix products in a program, read off its jaxpr."""
    total = 0

    def visit(jaxpr):
        nonlocal total
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                inner = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
                total += int(eqn.outvars[0].aval.size * inner)
            for value in eqn.params.values():
                if hasattr(value, "jaxpr"):
                    visit(value.jaxpr)

    visit(jax.make_jaxpr(fn)(*args).jaxpr)
    return total


def weight(m, n, k):
    shapes = {"U": (m, k), "s": (k,), "Vt": (k, n)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def tokens(rows, length=4):
    return jax.ShapeDtypeStruct((rows, length), jnp.int32)


@pytest.mark.parametrize("rows", [1, 40, 100, 400, 5000])
@pytest.mark.parametrize(("m", "n", "k"), [(60, 20, 3), (60, 20, 20), (20, 60, 15), (40, 40, 10)])
def test_a_linear_layer_takes_the_cheaper_form(rows, m, n, k):
    x = jax.ShapeDtypeStruct((rows, m), jnp.float32)
    formed, in_turn = m * k * n + rows * m * n, rows * k * (m + n)
    assert factored.should_form(rows, m, n, k) == (formed <= in_turn)
    assert multiplications(factored.linear, x, weight(m, n, k)) == min(formed, in_turn)


def test_both_forms_of_a_layer_are_chosen():
    chosen = [factored.should_form(rows, 60, 20, 18) for rows in (40, 400)]
    assert chosen == [False, True]


@pytest.mark.parametrize(("rows", "cost"), [(1, 4 * 3 * 20), (8, 30 * 3 * 20)])
def test_a_lookup_takes_the_cheaper_form(rows, cost):
    assert multiplications(factored.lookup, tokens(rows), weight(30, 20, 3)) == cost


@pytest.mark.parametrize(
    ("rows", "k", "cost"),
    [
        (20, 4, 20 * 4 * (60 + 20)),  # fewer rows than tokens: as any linear layer
        (30, None, 30 * 60 * 20),
        (31, None, 30 * 60 * 20),  # the table, which is smaller
        (100, 4, 30 * 60 * 4 + 100 * 4 * 20),  # the table times U, then V
        (100, 20, 60 * 20 * 20 + 30 * 60 * 20),  # the table times W, formed
    ],
)
def test_a_layer_of_looked_up_rows_takes_the_cheapest_form(rows, k, cost):
    table = jax.ShapeDtypeStruct((30, 15), jnp.float32)
    kernel = weight(60, 20, k) if k else jax.ShapeDtypeStruct((60, 20), jnp.float32)
    assert multiplications(factored.linear_of_lookup, tokens(rows), table, kernel) == cost


def test_the_cost_of_the_token_mlp():
    """Forward, and three times as much with the gradient, at batch 512 modulo 97."""

    def cost(model):
        params = jax.eval_shape(model.init, jax.random.key(0), tokens(1))["params"]

        def loss(params, batch):
            return jnp.sum(model.apply({"params": params}, batch))

        forward = multiplications(loss, params, tokens(512))
        assert multiplications(jax.grad(loss), params, tokens(512)) == 3 * forward
        return forward

    dense = 99 * 512 * 128 + 512 * 128 * 99
    assert cost(TokenMLP(99)) == dense
    decomposed = 99 * 12 * 128 + (99 * 512 * 16 + 512 * 16 * 128) + 512 * 12 * (128 + 99)
    assert cost(TokenMLP(99, decompose=Decomposition(0.125))) == decomposed < 0.27 * dense


# Constraints.


def factors_of(k=3, scale=1.0):
    factors = svd.decompose(net(), k / 5, layers="embed/*")
    return jax.tree.map(lambda leaf: jnp.asarray(scale * np.asarray(leaf)), factors)


def test_the_penalty_is_its_formula(x64, strict):
    assert orthogonality.penalty(factors_of()) < 1e-28
    # (4 - 1)^2 k / k^2 for each of U and V.
    np.testing.assert_allclose(orthogonality.penalty(factors_of(scale=2.0)), 2 * 9 / 3, rtol=1e-12)
    loss = orthogonality.Penalised(lambda params, batch: jnp.sum(params["stack"]) + batch, 0.5)
    factors = factors_of(scale=2.0)
    expected = 3.0 + 1.0 + jnp.sum(factors["stack"])
    np.testing.assert_allclose(loss(factors, jnp.float64(1.0)), expected, rtol=1e-12)


@functools.partial(jax.jit, static_argnums=2, static_argnames=("orthonormal", "nonnegative"))
def descend(factors, grads, rate, **options):
    optimizer = optax.chain(optax.sgd(rate), orthogonality.constrain(**options))
    updates, _ = optimizer.update(grads, optimizer.init(factors), factors)
    return optax.apply_updates(factors, updates)


@pytest.mark.parametrize("rate", [1e-3, 10.0])
def test_retraction_keeps_columns_orthonormal(rate, x64, strict):
    factors = factors_of()
    grads = tree.random_normal(jax.random.key(0), factors)
    new = descend(factors, grads, rate, orthonormal=True)
    node = new["embed"]["embedding"]
    for columns in (node["U"], node["Vt"].T):
        np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-13)
    plain = jax.tree.map(lambda leaf, grad: leaf - rate * np.asarray(grad), factors, grads)
    plain["embed"]["embedding"] = {**node, "s": plain["embed"]["embedding"]["s"]}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), new, plain)


def test_retraction_is_the_projected_step_to_first_order(x64, strict):
    """Along what keeps U'U = I: all of a step Z outside of U, and a rotation inside."""
    factors = factors_of()
    u = np.asarray(factors["embed"]["embedding"]["U"])
    grads = tree.random_normal(jax.random.key(0), factors)
    z = -np.asarray(grads["embed"]["embedding"]["U"])
    inside = u.T @ z
    skew = np.tril(inside, -1) - np.tril(inside, -1).T  # the derivative of QR's Q
    tangent = u @ skew + (z - u @ inside)
    step = 1e-6
    new = descend(factors, grads, step, orthonormal=True)["embed"]["embedding"]["U"]
    np.testing.assert_allclose((new - u) / step, tangent, atol=1e-4)


def test_clipping_holds_s_and_lets_it_go_again(x64, strict):
    factors = factors_of()
    down = tree.zeros_like(factors)
    down["embed"]["embedding"]["s"] = jnp.asarray([1e3, 0.0, 0.5])
    new = descend(factors, down, 1.0, nonnegative=True)
    s, old = (tree_["embed"]["embedding"]["s"] for tree_ in (new, factors))
    np.testing.assert_allclose(s, [0.0, old[1], old[2] - 0.5], rtol=1e-12)
    up = jax.tree.map(lambda leaf: -1e-3 * np.asarray(leaf), down)
    again = descend(new, up, 1.0, nonnegative=True)
    np.testing.assert_allclose(again["embed"]["embedding"]["s"][0], 1.0, rtol=1e-12)
    np.testing.assert_array_equal(
        new["embed"]["embedding"]["U"], factors["embed"]["embedding"]["U"]
    )


# Refusals.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Decomposition(0.0), "rank_fraction=0.0; give a number above 0 and at most 1"),
        (lambda: Decomposition(1.5), "at most 1"),
        (lambda: Decomposition(float("nan")), "above 0"),
        (lambda: svd.decompose(net(), 0.1), "leaves rank 0 of embed/embedding, which is 7 x 5"),
        (lambda: svd.decompose(net(), 0.5, layers="stack"), "selects no matrix"),
        (lambda: svd.decompose(net(), 0.5, layers="heed/*"), "no leaf is named 'heed/*'"),
        (lambda: svd.decompose(factors_of(), 0.5), "holds factors already"),
        (lambda: orthogonality.penalty(net()), "params holds no factors"),
        (lambda: orthogonality.constrain(orthonormal=True).init(net()), "no factors"),
        (
            lambda: orthogonality.constrain().update(factors_of(), optax.EmptyState()),
            "needs params",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_short_floats_and_an_empty_matrix():
    kernel = jnp.outer(jnp.arange(1.0, 5), jnp.array([1.0, 2.0, 4.0, 8.0]))
    factors = svd.decompose({"kernel": kernel.astype(jnp.bfloat16)}, 0.25)["kernel"]
    assert {part.dtype for part in factors.values()} == {jnp.dtype(jnp.bfloat16)}
    done = np.asarray(factors["U"], np.float32) * np.float32(factors["s"])
    # Three factors, each rounded to 8 binary places: less than 4 roundings.
    np.testing.assert_allclose(done @ np.float32(factors["Vt"]), kernel, rtol=4 * 2.0**-8)
    with pytest.raises(UserError, match=r"which is 0 x 3; leave it out of layers"):
        svd.decompose({"kernel": jnp.zeros((0, 3))}, 0.5)


def test_a_rank_fraction_is_the_decimal_number_it_is_written_as():
    assert 0.29 * 100 < 29
    assert Decomposition(0.29).rank(100, 200) == 29
    assert float(np.float32(0.29)) * 100 < 29
    assert Decomposition(np.float32(0.29)).rank(100, 200) == 29  # pyright: ignore
    assert [Decomposition(f).rank(99, 128) for f in (1.0, 0.5, 0.25, 0.125)] == [99, 49, 24, 12]
