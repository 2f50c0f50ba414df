"""Models of token sequences: their counts, their formulas in numpy, and what they refuse."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry, tree
from sharpjax.data import modular
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.nn import quadratic, svd
from sharpjax.nn.quadratic import QuadraticMLP
from sharpjax.nn.svd import Decomposition
from sharpjax.nn.tokens import TokenMLP
from sharpjax.nn.transformer import Transformer


def count(model, length=4):
    sequence = jax.ShapeDtypeStruct((1, length), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), sequence)
    assert list(variables) == ["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    return tree.size(variables)


@pytest.mark.parametrize(
    ("modulus", "counts"),
    [
        (97, [91_107, 127_419, 63_595, 31_683, 15_955]),
        (67, [83_397, 109_569, 54_685, 27_441, 13_621]),
    ],
)
def test_the_counts_of_the_decomposed_learning_paper(modulus, counts):
    model = TokenMLP(modulus + 2)
    fractions = (1.0, 0.5, 0.25, 0.125)
    decomposed = [count(model.clone(decompose=Decomposition(f))) for f in fractions]
    assert [count(model), *decomposed] == counts


def test_other_counts():
    assert count(Transformer(114), length=3) == 226_816  # Nanda's: p = 113 and '='
    assert count(QuadraticMLP(97, width=500)) == 3 * 97 * 500
    one = Decomposition(0.25, layers="hidden/kernel")
    assert count(TokenMLP(99, decompose=one)) == 91_107 - 512 * 128 + 32 * (512 + 1 + 128)
    attention = Decomposition(0.5, layers=("query/*", "out/kernel"))
    change = 2 * (128 * 128 - 64 * (128 + 1 + 128))
    assert count(Transformer(114, decompose=attention), length=3) == 226_816 - change


def test_models_are_equal_by_value():
    make = functools.partial(TokenMLP, 99, decompose=Decomposition(0.5, layers=["head/*"]))
    assert make() == make() and hash(make()) == hash(make())
    assert make() != TokenMLP(99)


def test_the_initial_distribution_is_the_papers(key):
    params = TokenMLP(99).init(key, jnp.zeros((1, 4), jnp.int32))["params"]
    scales = {
        "embed/embedding": 1.0,
        "hidden/kernel": math.sqrt(2 / 512),
        "head/kernel": math.sqrt(2 / 128),
    }
    for name, leaf in zip(tree.path_names(params), jax.tree.leaves(params), strict=True):
        if name.endswith("bias"):
            assert not leaf.any()
            continue
        draws = np.ravel(leaf) / scales[name]
        assert abs(draws.mean()) < 5 / math.sqrt(draws.size)
        assert abs(draws.var() - 1) < 5 * math.sqrt(2 / draws.size)
        assert abs(draws).max() > 3  # truncation would end at 2.3 standard deviations


@pytest.mark.parametrize("decompose", [None, Decomposition(0.5)])
@pytest.mark.parametrize("kind", [TokenMLP, QuadraticMLP, Transformer])
def test_parameters_and_logits_are_float32_whatever_the_type_between(kind, decompose):
    model = kind(9, width=8, decompose=decompose, dtype=jnp.bfloat16)
    run = functools.partial(model.init_with_output, mutable=["params", "intermediates"])
    logits, variables = jax.eval_shape(
        run, jax.random.key(0), jax.ShapeDtypeStruct((5, 4), jnp.int32)
    )
    assert logits.shape == (5, 9) and logits.dtype == jnp.float32
    types = {leaf.dtype for leaf in jax.tree.leaves(variables["params"])}
    assert types == {jnp.dtype("float32")}
    assert variables["intermediates"]["units"][0].dtype == jnp.bfloat16


MODELS = {
    "mlp": TokenMLP(9, width=6, features=5, dtype=jnp.float64),
    "quadratic": QuadraticMLP(9, width=12, dtype=jnp.float64),
    "transformer": Transformer(9, width=8, num_heads=2, dtype=jnp.float64),
}


def sentences(batch):
    """Tokens of some equations modulo 7."""
    pairs = np.random.default_rng(0).integers(7, size=(batch, 2))
    return jnp.asarray(np.insert(pairs, [1, 2], [7, 8], axis=1), jnp.int32)


def problem(name, batch):
    """A model, its parameters in float64, all of them random, and tokens."""
    model, sequence = MODELS[name], sentences(batch)
    shapes = jax.eval_shape(model.init, jax.random.key(0), sequence)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    return model, params, sequence


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model, params, sequence):
    return model.apply({"params": params}, sequence)


decompose = jax.jit(svd.decompose, static_argnums=1, static_argnames="layers")
merge = jax.jit(svd.merge)


def token_mlp(p, t):
    x = p["embed"]["embedding"][t].reshape(len(t), -1)
    h = np.maximum(x @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    return h @ p["head"]["kernel"] + p["head"]["bias"], h


def quadratic_mlp(p, t):
    z = p["left"]["embedding"][t[:, 0]] + p["right"]["embedding"][t[:, 2]]
    return z**2 @ p["head"]["kernel"], z**2


def causal_transformer(p, t, num_heads=2):
    """Every position, with the mask; logits and hidden units of the last."""
    length = t.shape[1]
    x = p["embed"]["embedding"][t] + p["position"]["embedding"]
    q, k, v = (x @ p[name]["kernel"] for name in ("query", "key", "value"))
    outs = []
    for rows in np.split(np.arange(x.shape[-1]), num_heads):
        scores = np.einsum("bqd,bkd->bqk", q[..., rows], k[..., rows]) / math.sqrt(len(rows))
        scores = np.where(np.tril(np.ones((length, length))), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        outs.append(weights @ v[..., rows])
    x = x + np.concatenate(outs, -1) @ p["out"]["kernel"]
    h = np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0)
    x = x + h @ p["down"]["kernel"] + p["down"]["bias"]
    return (x @ p["head"]["kernel"])[:, -1], h[:, -1]


FORMULAS = {"mlp": token_mlp, "quadratic": quadratic_mlp, "transformer": causal_transformer}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [4, 40])  # fewer examples than tokens, and more
def test_models_compute_their_formulas(name, batch, x64, strict):
    model, params, sequence = problem(name, batch)
    apply = jax.jit(functools.partial(model.apply, mutable="intermediates"))
    logits, sown = apply({"params": params}, sequence)
    expected, hidden = FORMULAS[name](jax.tree.map(np.asarray, params), np.asarray(sequence))
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)
    (units,) = sown["intermediates"]["units"]
    np.testing.assert_allclose(units, hidden, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "batch", "fraction"),
    [
        ("mlp", 4, 0.4),
        ("mlp", 40, 0.4),
        ("mlp", 40, 1.0),
        ("quadratic", 40, 0.4),
        ("transformer", 40, 0.4),
        ("transformer", 40, 1.0),
    ],
)
def test_decomposed_models_are_the_dense_ones_of_the_merged_weights(
    name, batch, fraction, x64, strict
):
    model, params, sequence = problem(name, batch)
    factors = decompose(params, fraction)
    logits = evaluate(model.clone(decompose=Decomposition(fraction)), factors, sequence)
    dense = evaluate(model, merge(factors), sequence)
    np.testing.assert_allclose(logits, dense, rtol=1e-11, atol=1e-11)
    same = np.allclose(logits, evaluate(model, params, sequence), atol=1e-6)
    assert same == (fraction == 1.0)


@pytest.mark.parametrize(
    ("name", "rank_fraction", "layers"),
    [
        ("mlp", 0.4, ("*",)),
        ("mlp", 1.0, ("head/*",)),
        ("quadratic", 0.4, ("*",)),
        ("transformer", 0.4, ("value/*", "position/*")),
    ],
)
def test_a_decomposed_model_starts_as_the_dense_model_of_the_same_key(
    name, rank_fraction, layers, key
):
    model, sequence = MODELS[name].clone(dtype=jnp.float32), sentences(1)
    decomposed = model.clone(decompose=Decomposition(rank_fraction, layers))
    params = jax.jit(model.init)(key, sequence)["params"]
    factors = jax.jit(decomposed.init)(key, sequence)["params"]
    expected = decompose(params, rank_fraction, layers=layers)
    assert jax.tree.structure(factors) == jax.tree.structure(expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), factors, expected
    )


def test_a_population_is_its_members(key):
    model = TokenMLP(9, width=6, features=5, decompose=Decomposition(0.4))
    sequence = sentences(40)

    def run(key):
        return model.init_with_output(key, sequence)

    keys = jax.random.split(key, 3)
    population = jax.jit(jax.vmap(run))(keys)
    alone = jax.jit(run)(keys[2])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        tree.index(population, 2),
        alone,
    )


@pytest.mark.parametrize("batch", [4, 40])
@pytest.mark.parametrize("factored", [None, Decomposition(0.4)])
def test_a_token_beyond_the_table_is_not_a_number(batch, factored, key):
    model = TokenMLP(9, width=6, features=5, decompose=factored)
    sequence = sentences(batch).at[1, 2].set(9)
    logits = jax.jit(model.init_with_output)(key, sequence)[0]
    finite = np.isfinite(logits).all(1)
    assert not finite[1] and finite.sum() == batch - 1


def test_curvature_in_the_weights_and_in_their_factors(x64):
    """d2/dt2 of the dense loss along the change of W that a change of (U, s, V) makes, and more:
    the second derivative of the product itself, against the gradient."""
    model, params, sequence = problem("mlp", 40)
    batch = {"image": sequence, "label": jnp.sum(sequence[:, ::2], 1) % 7}
    factors = decompose(params, 0.4)
    v = tree.random_normal(jax.random.key(1), factors)
    dense = Classification(model)

    @jax.jit
    def in_weights(factors, v):
        weights, change = jax.jvp(svd.merge, (factors,), (v,))
        slope, curved = jax.jvp(lambda w: jax.grad(dense)(w, batch), (weights,), (change,))
        _, bend = jax.jvp(lambda f: jax.jvp(svd.merge, (f,), (v,))[1], (factors,), (v,))
        return tree.vdot(change, curved), tree.vdot(slope, bend)

    of_loss, of_product = in_weights(factors, v)
    assert abs(of_product) > 1e-3 * abs(of_loss)
    for loss in (Classification(model.clone(decompose=Decomposition(0.4))), svd.OnFactors(dense)):
        product = geometry.hvp(loss, factors, batch, v)
        np.testing.assert_allclose(tree.vdot(v, product), of_loss + of_product, rtol=1e-9)


# The quadratic network.


def accuracy(modulus, params):
    table = modular.table("+", modulus=modulus)
    params = jax.tree.map(np.asarray, params)
    logits, _ = quadratic_mlp(params, table.tokens)
    return float(np.mean(np.argmax(logits, 1) == table.label)), logits, table.label


@pytest.mark.parametrize(("modulus", "width"), [(13, 256), (97, 500), (12, 256)])
def test_random_phases_add_without_a_mistake(modulus, width, key):
    assert accuracy(modulus, quadratic.addition(modulus, width, key=key))[0] == 1.0


def test_too_few_neurons_make_some_mistakes_and_the_wrong_sign_only_mistakes(key):
    assert 0.9 < accuracy(13, quadratic.addition(13, 48, key=key))[0] < 1.0
    params = quadratic.addition(97)
    mirrored = np.roll(params["head"]["kernel"][:, ::-1], 1, axis=1)  # q -> -q
    right, _, _ = accuracy(97, {**params, "head": {"kernel": mirrored}})
    assert right == pytest.approx(1 / 97)  # where a + b = -(a + b)


@pytest.mark.parametrize(("modulus", "width"), [(3, 6), (5, 24), (97, 0)])
def test_the_exact_solution_is_exact(modulus, width, strict):
    params = quadratic.addition(modulus, width)
    width = width or 3 * (modulus - 1)
    right, logits, answer = accuracy(modulus, params)
    copies = width / (3 * (modulus - 1))
    expected = 1.5 * copies * (modulus * np.eye(modulus)[answer] - 1)
    np.testing.assert_allclose(logits, expected, atol=2e-6 * expected.max())
    assert right == 1.0


# Dropout.


@pytest.mark.parametrize(
    ("model", "layers"),
    [(TokenMLP(9, width=8, features=4), 1), (Transformer(9, width=8), 3), (QuadraticMLP(9), 1)],
)
def test_dropout_is_in_training_alone(model, layers, key):
    sequence = jnp.asarray(np.random.default_rng(0).integers(0, 9, (5, 4)), jnp.int32)
    dropping = model.clone(dropout=0.5)
    params = model.init(key, sequence)["params"]
    assert tree.digest(dropping.init(key, sequence)["params"]) == tree.digest(params)
    np.testing.assert_array_equal(
        dropping.apply({"params": params}, sequence), model.apply({"params": params}, sequence)
    )

    def train(net, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return net.apply({"params": params}, sequence, train=True, rngs=rngs)

    for net, count in ((model, 0), (dropping, layers)):
        text = str(jax.make_jaxpr(train, static_argnums=0)(net, 0))
        assert text.count("name=_bernoulli") == count
    np.testing.assert_array_equal(train(dropping, 1), train(dropping, 1))
    assert jnp.max(jnp.abs(train(dropping, 1) - train(dropping, 2))) > 1e-3


# Refusals.


@pytest.mark.parametrize(
    ("model", "sequence", "message"),
    [
        (TokenMLP(9), np.zeros((2, 4), np.float32), "tokens are float32[2, 4]; give integers"),
        (TokenMLP(9), np.zeros((2, 8, 8, 1), np.int32), "give integers [B, L]"),
        (Transformer(9), np.zeros(4, np.int32), "nn.Transformer: tokens are int32[4]"),
        (QuadraticMLP(9), np.zeros((2, 2), np.int32), "sequences of 2 tokens; give 3 or more"),
        (Transformer(9, width=10, num_heads=4), np.zeros((1, 4), np.int32), "4 heads do not"),
        (
            TokenMLP(9, decompose=Decomposition(0.5, layers="hiden/*")),
            np.zeros((1, 4), np.int32),
            "no leaf is named 'hiden/*' (nearest: 'hidden/kernel'",
        ),
        (
            TokenMLP(9, decompose=Decomposition(0.1)),
            np.zeros((1, 4), np.int32),
            "rank_fraction=0.1 leaves rank 0 of embed/embedding, which is 9 x 128; give 0.1111",
        ),
        (
            Transformer(114, decompose=Decomposition(0.125)),
            np.zeros((1, 3), np.int32),
            "rank 0 of position/embedding, which is 3 x 128",
        ),
    ],
)
def test_bad_input_is_one_line(model, sequence, message):
    with pytest.raises(UserError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), sequence)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("modulus", "width"), [(12, 0), (13, 35), (2, 0)])
def test_sizes_without_an_exact_solution_are_refused(modulus, width):
    with pytest.raises(UserError, match="odd modulus|whole number >= 3"):
        quadratic.addition(modulus, width)
