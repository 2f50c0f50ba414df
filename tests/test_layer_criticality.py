"""Layers replaced one by one: what is replaced, by what, what it does, and whether it matters."""

import math
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from sharpjax import geometry, nn, tree
from sharpjax.errors import UserError
from sharpjax.layerwise import criticality
from sharpjax.layerwise.criticality import Effect, Effects, Weights
from sharpjax.metrics import functional

KEY = jax.random.key(0)
CLASSES = 4
EYE = {"x": jnp.eye(CLASSES), "label": jnp.arange(CLASSES)}
VGG = nn.VGGNarrow(num_classes=3, width=2, blocks=(1, 1))
IMAGES = (8, 8, 3)


def softmaxed(params, variables, batch):
    return jax.nn.softmax(linear(params, variables, batch))


def linear(params, variables, batch):
    return batch["x"] @ params["w"].astype(batch["x"].dtype)


def two_ways(params, variables, batch):
    """The second way ends in zeros, so that its first layer is nothing to the outputs."""
    x = batch["x"]
    return x @ params["short"]["w"] + (x @ params["long"]["w"]) @ params["out"]["w"]


def irrelevant(key, num_examples=400):
    a, b, c = jax.random.split(key, 3)
    params = {
        "short": {"w": jax.random.normal(a, (5, 3))},
        "long": {"w": jax.random.normal(b, (5, 6))},
        "out": {"w": jnp.zeros((6, 3))},
    }
    x = jax.random.normal(c, (num_examples, 5))
    label = jnp.argmax(x @ params["short"]["w"], axis=1)
    return Weights(params), {"x": x, "label": label}


def normal_like(weights):
    return lambda key: Weights(tree.random_normal(key, weights.params))


def initial_of(model, shape, seed=0):
    return criticality.Initialiser(model, shape)(jax.random.key(seed))


# What is replaced.


def test_layers_are_those_of_geometry():
    trained = initial_of(nn.ResNetNarrow(num_classes=3, width=2), IMAGES)
    operator = geometry.hessian(lambda p, _: tree.vdot(p, p), trained.params, None)
    assert list(criticality.layers_of(trained.params)) == list(geometry.layers(operator))
    groups = {"stem": "Conv_0/*", "block": "BasicBlock_0/*"}
    own = geometry.layers(operator, groups)
    found = criticality.layers_of(trained.params, groups)
    assert list(found) == list(own)
    for name, layer in found.items():
        there = tree.path_names(trained.params)
        hits = jax.tree.leaves(tree.select(trained.params, own[name].where))
        assert layer.params == tuple(n for n, hit in zip(there, hits, strict=True) if hit)


def test_only_the_layer_is_replaced_and_nothing_is_changed():
    trained, _ = irrelevant(KEY)
    before = tree.digest(trained)
    source = tree.scale(2.0, trained.params)
    for layer in trained.params:
        found = criticality.replaced(trained.params, layer, source)
        for name in trained.params:
            expected = source if name == layer else trained.params
            assert found[name]["w"] is expected[name]["w"]
    assert tree.digest(trained) == before


def test_rewinding_to_the_trained_state_changes_nothing():
    trained, batch = irrelevant(KEY)
    for _, _, weights in criticality.variants(trained, trained):
        assert tree.digest(weights) == tree.digest(trained)
    effects = criticality.evaluate(two_ways, trained, criticality.variants(trained, trained), batch)
    nothing = Effect(effects.accuracy, effects.loss, 0.0, 0.0, 0.0, 0.0, 0, 0)
    assert set(effects.of.values()) == {nothing}


def test_trials_differ_and_keys_repeat():
    trained, _ = irrelevant(KEY)
    draw, layers = normal_like(trained), ("long", "short")

    def made(trials, key):
        found = criticality.variants(trained, draw, names=layers, trials=trials, key=key)
        return {(layer, trial): tree.digest(w) for layer, trial, w in found}

    three, two = made(3, KEY), made(2, KEY)
    assert list(three) == [(layer, t) for t in range(3) for layer in layers]
    assert len({*three.values()}) == 6
    assert two.items() < three.items()
    assert not {*made(3, jax.random.key(1)).values()} & {*three.values()}


def test_a_fresh_draw_is_of_the_initialiser():
    model = nn.MLP(num_classes=3, width=64, depth=1)
    trained = initial_of(model, (8, 8, 1))
    draw = criticality.Initialiser(model, (8, 8, 1))
    (found,) = criticality.variants(trained, draw, names=["Dense_0"], key=KEY)
    kernel = np.asarray(found.weights.params["Dense_0"]["kernel"])
    assert not np.any(found.weights.params["Dense_0"]["bias"])
    # Of 4,096 independent weights of variance 2 / 64: the variance is known to 1 / sqrt(2048).
    assert kernel.size == 4096 and abs(kernel.var() * 32 - 1) < 6 / math.sqrt(2048)
    other = criticality.replaced(trained.params, "Dense_0", found.weights.params)
    assert tree.digest(other) == tree.digest(found.weights.params)


# BatchNorm.


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (VGG, {"Conv_0": "BatchNorm_0", "Conv_1": "BatchNorm_1", "Dense_0": "BatchNorm_2"}),
        (
            nn.MobileNetNarrow(num_classes=3, width=2, blocks=(1,)),
            {
                "Conv_0": "BatchNorm_0",
                "Separable_0/Depthwise_0": "Separable_0/BatchNorm_0",
                "Separable_0/Conv_0": "Separable_0/BatchNorm_1",
            },
        ),
        (nn.MLP(num_classes=3, width=2), {}),
    ],
    ids=["vgg", "mobilenet", "mlp"],
)
def test_the_norm_of_a_layer_is_the_one_that_reads_it(model, expected):
    found = criticality.norms_of(model, jax.ShapeDtypeStruct((1, *IMAGES), jnp.float32))
    assert {layer: found[layer] for layer in expected} == expected
    assert expected or not found


class Block(flax.linen.Module):
    """Its sum is no layer's output, so the norm after it is nobody's."""

    @flax.linen.compact
    def __call__(self, x):
        return x + flax.linen.Dense(3)(x)


class AfterASum(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x, train=False):
        x = flax.linen.BatchNorm(use_running_average=not train)(flax.linen.Dense(3)(x))
        return flax.linen.BatchNorm(use_running_average=not train)(Block()(x))


def test_a_norm_after_a_sum_is_nobodys():
    assert criticality.norms_of(AfterASum(), jnp.zeros((1, 3))) == {"Dense_0": "BatchNorm_0"}


class TwoNorms(flax.linen.Module):
    """One norm for each of two domains, and a layer that both read."""

    @flax.linen.compact
    def __call__(self, x, train=False):
        x = flax.linen.Dense(3)(x)
        norms = [flax.linen.BatchNorm(use_running_average=not train) for _ in range(2)]
        return norms[0](x) + norms[1](x)


def test_a_layer_that_two_norms_read_is_refused():
    with pytest.raises(UserError, match="both 'BatchNorm_0' and 'BatchNorm_1' read 'Dense_0'"):
        criticality.norms_of(TwoNorms(), jnp.zeros((1, 3)))


def test_every_norm_that_is_found_can_move():
    """What `norms_of` names, `layers_of` takes: nothing that is asked for stays."""
    for make, shape in ((AfterASum(), (3,)), (VGG, IMAGES)):
        trained = initial_of(make, shape)
        norms = criticality.norms_of(make, jnp.zeros((1, *shape)))
        layers = criticality.layers_of(
            trained.params, variables=trained.variables, norms=norms, batch_norm="all"
        )
        for layer, norm in norms.items():
            assert {f"{norm}/{name}" for name in ("scale", "bias")} <= {*layers[layer].params}
            stats = {f"batch_stats/{norm}/{name}" for name in ("mean", "var")}
            assert {*layers[layer].variables} == stats


def test_the_norm_of_a_layer_of_factors():
    """Factors are leaves within the kernel of the layer that the norm reads."""
    params = {
        "Conv_0": {"kernel": {name: jnp.ones(2) for name in ("U", "s", "Vt")}},
        "BatchNorm_0": {"scale": jnp.ones(2)},
    }
    found = criticality.layers_of(params, norms={"Conv_0": "BatchNorm_0"}, batch_norm="parameters")
    assert "BatchNorm_0/scale" in found["Conv_0/kernel"].params and len(found) == 1


def test_a_norm_of_statistics_alone():
    """Without scale and bias it has no parameters: with 'parameters' there is nothing to move."""
    params = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
    options = {"norms": {"Dense_0": "BatchNorm_0"}, "variables": NORM.variables}
    found = criticality.layers_of(params, **options, batch_norm="parameters")
    assert found == {"Dense_0": criticality.Layer(("Dense_0/kernel",))}
    found = criticality.layers_of(params, **options, batch_norm="all")
    assert found["Dense_0"].variables == ("batch_stats/BatchNorm_0/var",)


def changed(weights, other):
    names = tree.path_names(weights)
    pairs = zip(names, jax.tree.leaves(weights), jax.tree.leaves(other), strict=True)
    return {name for name, a, b in pairs if np.any(np.asarray(a) != np.asarray(b))}


@pytest.mark.parametrize("groups", [None, {"Conv_1": "Conv_1/*", "whole": ["Conv_0/*", "B*_0/*"]}])
@pytest.mark.parametrize("batch_norm", ["stay", "parameters", "all"])
def test_what_of_a_norm_goes_with_its_layer(batch_norm, groups):
    trained = initial_of(VGG, IMAGES)
    source = jax.tree.map(lambda x: x + 1, trained)
    norms = criticality.norms_of(VGG, jnp.zeros((1, *IMAGES)))
    layers = criticality.layers_of(
        trained.params, groups, variables=trained.variables, norms=norms, batch_norm=batch_norm
    )
    moved = {
        layer: changed(trained, weights)
        for layer, _, weights in criticality.variants(trained, source, layers)
    }
    kernel = {"params/Conv_1/bias", "params/Conv_1/kernel"} & {*tree.path_names(trained)}
    parameters = {"params/BatchNorm_1/bias", "params/BatchNorm_1/scale"}
    statistics = {f"variables/batch_stats/BatchNorm_1/{name}" for name in ("mean", "var")}
    expected = {"stay": kernel, "parameters": kernel | parameters}
    expected["all"] = expected["parameters"] | statistics
    assert moved["Conv_1"] == expected[batch_norm]
    assert "BatchNorm_1" not in moved or (groups is None and batch_norm == "stay")
    if groups is not None:  # its norm is in the group, whatever the option; its statistics are not
        found = {name.split("/")[-1] for name in moved["whole"]}
        assert {"scale", "kernel"} <= found
        assert ({"mean", "var"} <= found) == (batch_norm == "all")


def test_statistics_computed_anew(x64):
    """In one batch they are what training sees: both modes agree, after any replacement."""
    model = nn.VGGNarrow(num_classes=3, width=2, blocks=(1, 1), dtype=jnp.float64)
    trained, images = initial_of(model, IMAGES), jax.random.normal(KEY, (12, *IMAGES))
    draw = criticality.Initialiser(model, IMAGES)
    made = criticality.variants(trained, draw, names=["Conv_1"], key=KEY)
    (found,) = criticality.with_recomputed(made, model, {"image": images})
    variables = {"params": found.weights.params, **found.weights.variables}
    in_training, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    # Statistics are float32: relative errors of 1e-7 in each of three norms.
    at_test: Any = model.apply(variables, images)
    np.testing.assert_allclose(at_test, in_training, atol=1e-4)
    stale: Any = model.apply({"params": found.weights.params, **trained.variables}, images)
    assert np.max(np.abs(np.asarray(stale) - np.asarray(in_training))) > 1e-2
    # Several batches: the mean of theirs, for the first norm, which no other one precedes.
    halves = criticality.recomputed(model, trained, {"image": images}, batch_size=6)
    apart = [criticality.recomputed(model, trained, {"image": x}) for x in (images[:6], images[6:])]
    own, a, b = (w.variables["batch_stats"]["BatchNorm_0"]["var"] for w in (halves, *apart))
    np.testing.assert_allclose(own, (a + b) / 2, rtol=1e-6)


# What it does.


@pytest.mark.parametrize("kind", ["initial", "fresh", "zeros"])
def test_a_layer_before_zeros_is_robust_under_every_replacement(kind, x64, strict):
    trained, batch = irrelevant(KEY)
    draw = normal_like(trained)
    source = {"initial": draw(jax.random.key(5)), "fresh": draw, "zeros": "zeros"}[kind]
    trials = 3 if kind == "fresh" else 1
    made = criticality.variants(trained, source, trials=trials, key=KEY)
    effects = criticality.evaluate(two_ways, trained, made, batch, batch_size=64)
    assert effects.accuracy == 1.0 and effects.num_examples == 400
    for trial in range(trials):
        nothing = Effect(1.0, effects.loss, 0.0, 0.0, 0.0, 0.0, 0, 0)
        assert effects.of["long", trial] == nothing
    found = criticality.judge(effects, "long", threshold=0.02)
    assert (found.critical, found.word, found.drop) == (False, "robust", 0.0)
    assert found.num_trials == trials
    if kind == "zeros":  # all outputs are 0, so that the first class is the answer
        assert criticality.judge(effects, "short", threshold=0.02).word == "critical"


def test_the_only_layer_at_its_start_gives_chance(x64, strict):
    """Zeros at the start; trained to c I. By hand: p_i = e^c / (e^c + K - 1), else equal shares."""
    c = 3.0
    trained = Weights({"w": c * jnp.eye(CLASSES)})
    start = Weights({"w": jnp.zeros((CLASSES, CLASSES))})
    made = criticality.variants(trained, start)
    effects = criticality.evaluate(linear, trained, made, EYE)
    (found,) = effects.of.values()
    p = np.full(CLASSES, 1 / (math.exp(c) + CLASSES - 1))
    p[0] *= math.exp(c)
    u = np.full(CLASSES, 1 / CLASSES)
    m = (p + u) / 2
    jsd = (np.sum(p * np.log(p / m)) + np.sum(u * np.log(u / m))) / 2
    expected = (0.25, math.log(CLASSES), 0.75, np.linalg.norm(p - u), 0.75, jsd, 3, 0)
    assert found == pytest.approx(expected, rel=1e-12)
    assert effects.accuracy == 1.0 and effects.loss == pytest.approx(-math.log(p[0]), rel=1e-12)
    assert effects.mean("w") == pytest.approx(found)


@pytest.mark.parametrize("at_once", [1, 4])
def test_all_models_are_one_program_with_ragged_batches(at_once, x64, strict, compilations):
    trained, batch = irrelevant(KEY, num_examples=53)
    draw = normal_like(trained)

    def made():
        return criticality.variants(trained, draw, trials=2, key=KEY)

    size = 17 + at_once  # of no other test
    effects = criticality.evaluate(
        two_ways, trained, made(), batch, batch_size=size, at_once=at_once
    )
    forward = [name for name in compilations if "_forward" in name]
    assert len(forward) == (1 if at_once == 1 else 2)  # the trained one is alone
    whole = two_ways(trained.params, {}, batch)
    for layer, trial, weights in made():
        own, found = two_ways(weights.params, {}, batch), effects.of[layer, trial]
        label = batch["label"]
        assert found.accuracy == np.mean(np.argmax(own, 1) == label)
        assert found.accuracy_drop == pytest.approx(effects.accuracy - found.accuracy, abs=1e-12)
        assert found.disagreement == functional.disagreement(whole, own)
        assert found.jsd == pytest.approx(functional.jensen_shannon(whole, own), rel=1e-10)
        distance = functional.activation_distance(whole, own)
        assert found.activation_distance == pytest.approx(distance, rel=1e-10)
        loss = -np.mean(np.asarray(jax.nn.log_softmax(own))[np.arange(53), label])
        assert found.loss == pytest.approx(loss, rel=1e-12)
        assert found.lost - found.gained == round(53 * found.accuracy_drop)


def test_a_model_with_statistics():
    """Each variant is evaluated with its own."""
    trained = initial_of(VGG, IMAGES)
    norms = criticality.norms_of(VGG, jnp.zeros((1, *IMAGES)))
    layers = criticality.layers_of(
        trained.params, variables=trained.variables, norms=norms, batch_norm="all"
    )
    batch = {"image": jax.random.normal(KEY, (6, *IMAGES)), "label": jnp.arange(6) % 3}
    other = jax.tree.map(lambda x: x + 1, trained)
    made = list(criticality.variants(trained, other, layers, names=["Conv_0"]))
    effects = criticality.evaluate(VGG, trained, made, batch)
    (params, variables) = made[0].weights
    logits = VGG.apply({"params": params, **variables}, batch["image"])
    before = VGG.apply({"params": trained.params, **trained.variables}, batch["image"])
    expected = functional.activation_distance(before, logits)
    # Both in float32, in other programs.
    assert effects.of["Conv_0", 0].activation_distance == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_outputs_that_are_not_finite_are_not_measured():
    trained = Weights({"w": jnp.eye(CLASSES)})
    made = criticality.variants(trained, Weights({"w": jnp.full((CLASSES, CLASSES), jnp.nan)}))
    effects = criticality.evaluate(linear, trained, made, EYE)
    (found,) = effects.of.values()
    assert np.isnan(found[:6]).all() and (found.lost, found.gained) == (-1, -1)
    judged = criticality.judge(effects, "w", threshold=0.02)
    assert judged.word == "undefined" and not judged.critical and math.isnan(judged.drop)
    finite = Effect(0.5, 1.0, 0.4, 0.1, 0.1, 0.1, lost=4, gained=2)
    both = effects._replace(of={("w", 0): finite, ("w", 1): found})
    assert np.isnan(both.mean("w")[:6]).all() and both.mean("w")[6:] == (-1, -1)


# Whether it matters.


def seen(num_examples, *pairs):
    """Effects of a layer that lost and gained so many examples in each trial."""
    n = num_examples
    of = {
        ("a", t): Effect(0.5, 1.0, (b - c) / n, 0.1, 0.1, 0.1, b, c)
        for t, (b, c) in enumerate(pairs)
    }
    return Effects(0.9, 0.5, n, of)


def test_without_a_threshold_it_is_mcnemars():
    for b, c in ((30, 10), (10, 30), (7, 7)):
        found = criticality.judge(seen(1000, (b, c)), "a", threshold=1e-12)
        z = (b - c) / math.sqrt(b + c)
        assert found.p_critical == pytest.approx(stats.norm.sf(z), rel=1e-6)
        assert found.p_robust == pytest.approx(stats.norm.cdf(z), rel=1e-6)


@pytest.mark.parametrize(("b", "c", "n"), [(30, 10, 1000), (3, 0, 50), (0, 0, 200), (5, 40, 100)])
def test_the_interval_is_that_of_the_likelihood(b, c, n):
    """The ends are 1.96 deviations away, as the likeliest share under each has it."""
    found = criticality.judge(seen(n, (b, c)), "a", threshold=0.02)
    assert found.low < (b - c) / n < found.high

    def z(drop):
        def negative(q):
            terms = ((b, q + drop), (c, q), (n - b - c, 1 - 2 * q - drop))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

        bounds = max(0.0, -drop), (1 - drop) / 2
        options = {"xatol": 1e-13}
        best: Any = optimize.minimize_scalar(
            negative, None, bounds, method="bounded", options=options
        )
        q = best.x
        return ((b - c) / n - drop) / math.sqrt((2 * q + drop * (1 - drop)) / n)

    # A maximum is found to the root of rounding, some 1e-8 in q.
    assert z(found.low) == pytest.approx(1.959964, abs=1e-3)
    assert z(found.high) == pytest.approx(-1.959964, abs=1e-3)


def test_words_are_wrong_as_rarely_as_they_say():
    """A drop of just the threshold is called neither in more than 5 per cent, up to 5 deviations of
    2,000 samples and what the normal approximation is off."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(500, (0.06, 0.04, 0.9), size=2000)[:, :2]
    share: dict[str, float] = dict.fromkeys(("critical", "robust", "undecided"), 0.0)
    for (b, c), times in zip(*np.unique(counts, axis=0, return_counts=True), strict=True):
        found = criticality.judge(seen(500, (int(b), int(c))), "a", threshold=0.02)
        share[found.word] += times / 2000
    for word in ("critical", "robust"):
        assert 0.02 < share[word] < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 2000)


def test_trials_widen_what_is_known():
    one = criticality.judge(seen(1000, (60, 10)), "a", threshold=0.02)
    alike = criticality.judge(seen(1000, *[(60, 10)] * 5), "a", threshold=0.02)
    assert alike[:7] == one[:7] and alike.num_trials == 5
    spread = criticality.judge(seen(1000, (20, 10), (100, 10), (60, 10)), "a", threshold=0.02)
    assert spread.drop == one.drop and spread.critical and spread.word == "undecided"
    assert spread.low < one.low and spread.high > one.high
    # Of endless examples only the trials are left: Student's t of their drops.
    pairs = [(2 * 10**10, 0), (10 * 10**10, 0), (6 * 10**10, 0)]
    found = criticality.judge(seen(10**12, *pairs), "a", threshold=0.02)
    t: Any = stats.ttest_1samp([0.02, 0.1, 0.06], 0.02, alternative="greater")
    assert found.p_critical == pytest.approx(t.pvalue, rel=1e-6)


def test_the_drop_at_the_threshold_is_critical():
    assert criticality.judge(seen(1000, (20, 0)), "a", threshold=0.02).critical
    assert not criticality.judge(seen(1000, (19, 0)), "a", threshold=0.02).critical


def test_how_many_examples_it_takes():
    """Where no answer changes, z^2 is N D / (1 - D)."""
    words = [criticality.judge(seen(n, (0, 0)), "a", threshold=0.02).word for n in (132, 133)]
    assert words == ["undecided", "robust"]


# What is refused.

ONE = Weights({"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones((2, 2))}})
OTHER = Weights({"a": {"w": jnp.ones(3)}, "b": {"w": jnp.ones((2, 2))}})
NORM = Weights(
    {"Conv_0": {"kernel": jnp.ones(2)}, "BatchNorm_0": {"scale": jnp.ones(2)}},
    {"batch_stats": {"BatchNorm_0": {"var": jnp.ones(2)}}},
)


untyped: Any = criticality  # for arguments of wrong types
FOUR = Weights({"w": jnp.eye(CLASSES)})
OF_VGG = {"image": jnp.ones((2, *IMAGES)), "label": jnp.zeros(2, int)}


def norm_layers(**options):
    own = {"variables": NORM.variables, "norms": {"Conv_0": "BatchNorm_0"}, "batch_norm": "all"}
    return criticality.layers_of(NORM.params, **{**own, **options})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: criticality.layers_of({}), "layers_of: params holds no array"),
        (lambda: criticality.layers_of(ONE.params, {"c": ()}), "layer 'c' has no parameters"),
        (lambda: criticality.layers_of({"a": jnp.ones(0)}), "layer 'a' has no parameters"),
        (lambda: criticality.layers_of(ONE.params, {}), "groups is empty"),
        (lambda: criticality.layers_of(ONE.params, ["c/*"]), "no leaf is named 'c/"),
        (lambda: criticality.layers_of(ONE.params, ["a/*", "*"]), "is in the groups"),
        (lambda: norm_layers(batch_norm="both"), "unknown batch_norm"),
        (lambda: norm_layers(norms={}), "norms is empty; give norms=criticality.norms_of"),
        (
            lambda: norm_layers(variables=None),
            "replaces the statistics of 'BatchNorm_0', and variables has none; give variables=",
        ),
        (lambda: norm_layers(variables={"batch_stats": {}}), "and variables has none"),
        (
            lambda: norm_layers(norms={"Conv_0": "BatchNorm_9"}),
            "unknown norm of 'Conv_0' in norms .*layers_of.*'BatchNorm_9'; did you mean 'BatchN",
        ),
        (
            lambda: norm_layers(norms={"Conv_0": "BN_9"}, batch_norm="parameters", variables=None),
            "unknown norm of 'Conv_0' in norms",
        ),
        (
            lambda: norm_layers(norms={"Conv_9": "BatchNorm_0"}),
            "unknown layer in norms .*'Conv_9'; did you mean 'Conv_0'",
        ),
        (
            lambda: norm_layers(groups={"a": "Conv_0/*", "b": "B*"}),
            "'BatchNorm_0/scale' goes with 'a', whose norm it is, and is in 'b'",
        ),
        (lambda: criticality.replaced(ONE.params, "aa", ONE.params), "unknown layer .*mean 'a'"),
        (
            lambda: criticality.replaced(ONE.params, "b", OTHER.params),
            r"replaced: source must have the shapes.*'a/w' is float32\[3\]",
        ),
        (lambda: criticality.replaced(ONE.params, "a", {}), "source must have the tree structure"),
        (lambda: criticality.variants(ONE, OTHER), r"source.params must have the shapes"),
        (lambda: criticality.variants(ONE, ONE, names=["c"]), "unknown layer"),
        (lambda: criticality.variants(ONE, ONE, names=[]), "no layers; name one or more of a, b"),
        (lambda: criticality.variants(ONE, ONE, names="a"), r"give several: \['a'\]"),
        (lambda: criticality.variants(ONE, ONE, trials=0), "trials must be a whole number >= 1"),
        (lambda: criticality.variants(ONE, ONE, trials=2), "trials=2, but nothing is drawn"),
        (lambda: criticality.variants(ONE, lambda key: ONE), "is drawn; give key="),
        (lambda: criticality.variants(ONE, "ones"), "source is 'ones'; give Weights"),  # pyright: ignore
        (lambda: criticality.variants(ONE, {}), "source is a dict; give Weights"),  # pyright: ignore
        (
            lambda: list(criticality.variants(ONE, lambda key: {}, key=KEY)),  # pyright: ignore
            "gives a dict; give Weights",
        ),
        (
            lambda: list(criticality.variants(ONE, lambda key: OTHER, key=KEY)),
            "source.params must have the shapes",
        ),
        (lambda: criticality.variants(ONE, ONE, norm_layers()), "'Conv_0' has 'Conv_0/kernel', wh"),
        (
            lambda: criticality.variants(NORM, Weights(NORM.params), norm_layers()),
            "source.variables must have the tree structure of those of weights",
        ),
        (
            lambda: criticality.variants(NORM, "zeros", norm_layers()),
            "zeros would be the variances of the norm of 'Conv_0'",
        ),
        (
            lambda: criticality.recomputed(nn.MLP(num_classes=2), ONE, {"image": jnp.ones((2, 2))}),
            "MLP has no statistics of BatchNorm",
        ),
        (lambda: criticality.evaluate(linear, ONE, [], {"x": jnp.ones(2)}), "with 'label'"),
        (
            lambda: criticality.evaluate(linear, Weights({"w": jnp.eye(4)}), [], EYE),
            "there are no variants",
        ),
        (
            lambda: criticality.evaluate(
                linear, Weights({"w": jnp.eye(4)}), [], EYE | {"label": jnp.arange(4) + 1}
            ),
            "from 0 to 3",
        ),
        (
            lambda: criticality.evaluate(
                softmaxed,
                (one := Weights({"w": jnp.eye(4)})),
                criticality.variants(one, "zeros"),
                EYE,
            ),
            "evaluate: the model gives probabilities",
        ),
        (
            lambda: criticality.evaluate(linear, Weights({"w": jnp.ones((4, 1))}), [], EYE),
            r"the model gives \[4, 1\]",
        ),
        (
            lambda: criticality.judge(seen(9, (1, 1)), "b", threshold=0.02),
            "judge: effects has no layer 'b'. It has a",
        ),
        (lambda: criticality.judge(seen(9, (1, 1)), "a", threshold=2.0), "between 0 and 1"),
        (lambda: untyped.judge(seen(9, (1, 1)), "a", threshold="a"), "judge: threshold='a'; g"),
        (lambda: untyped.judge(seen(9, (1, 1)), "a", threshold=np.full(2, 0.1)), "threshold="),
        (lambda: untyped.judge({}, "a", threshold=0.1), "judge: effects is a dict"),
        (lambda: seen(9, (1, 1)).mean("aa"), "Effects.mean: effects has no layer 'aa'; did you me"),
        (
            lambda: criticality.layers_of(ONE.params, {"a": "Foo/*"}),
            "layers_of: groups, 'a': no le",
        ),
        (lambda: untyped.layers_of(ONE.params, {"a": 3}), "groups has an int for 'a'"),
        (lambda: untyped.layers_of(ONE.params, {"a": ["a/*", 3]}), "groups has a list for 'a'"),
        (lambda: untyped.layers_of(ONE.params, [3]), "groups has an int for '3'"),
        (lambda: untyped.layers_of(ONE.params, 3), "layers_of: groups is an int"),
        (
            lambda: untyped.replaced(ONE.params, "a", ONE.params, 3),
            "replaced: groups is an int",
        ),
        (lambda: untyped.replaced(ONE.params, ["a"], ONE.params), "unknown layer .*replaced"),
        (lambda: criticality.variants(ONE.params, ONE), "variants: weights is a dict; give critic"),
        (lambda: untyped.variants(ONE, ONE, ["a"]), "layers is a list; give the dict that"),
        (
            lambda: untyped.variants(ONE, ONE, {"a": "a/*"}),
            "layers is a dict; give the dict that",
        ),
        (lambda: criticality.variants(ONE, ONE, names="head"), "variants: names is 'head'"),
        (lambda: untyped.variants(ONE, ONE, names=3), "variants: names is 3"),
        (lambda: untyped.variants(ONE, ONE, names=[["a"]]), "unknown layer .*variants"),
        (lambda: criticality.variants(Weights({}), ONE), "variants: params holds no array"),
        (lambda: untyped.Initialiser("mlp", (2,)), "Initialiser: model is str; give a Flax"),
        (lambda: untyped.Initialiser(nn.MLP, (2,)), "Initialiser: model is MLP; give a Flax"),
        (lambda: untyped.Initialiser(VGG, 4), "Initialiser: input_shape is 4; give a tuple"),
        (lambda: untyped.Initialiser(VGG, (8, 8.5, 3)), "Initialiser: each number of input_sh"),
        (lambda: criticality.Initialiser(VGG, IMAGES, "image"), "input_dtype is 'image'"),
        (lambda: untyped.Initialiser(VGG, IMAGES)(0), "Initialiser: key must be one random"),
        (
            lambda: criticality.Initialiser(VGG, (8,))(KEY),
            r"Initialiser: VGGNarrow does not take input_shape \[8\]",
        ),
        (lambda: untyped.norms_of(linear, jnp.ones(2)), "norms_of: model is function"),
        (
            lambda: criticality.norms_of(VGG, jnp.ones((1, 8))),
            r"norms_of: VGGNarrow does not take example \[1, 8\]",
        ),
        (lambda: untyped.recomputed(VGG, {}, OF_VGG), "recomputed: weights is a dict"),
        (lambda: untyped.recomputed("vgg", NORM, OF_VGG), "recomputed: model is str"),
        (
            lambda: criticality.recomputed(VGG, initial_of(VGG, IMAGES), {"x": jnp.ones(2)}),
            r"recomputed: VGGNarrow reads 'image', and batch has \['x'\]",
        ),
        (
            lambda: criticality.recomputed(
                VGG, initial_of(VGG, IMAGES), {"image": jnp.ones((2, 8, 8, 1))}
            ),
            r"recomputed: VGGNarrow does not take image \[2, 8, 8, 1\]",
        ),
        (
            lambda: untyped.recomputed(VGG, initial_of(VGG, IMAGES), OF_VGG, batch_size=0.5),
            "recomputed: batch_size must be a whole number",
        ),
        (
            lambda: list(untyped.with_recomputed([NORM], VGG, OF_VGG)),
            "with_recomputed: variants has a Weights",
        ),
        (lambda: untyped.evaluate(linear, {}, [], EYE), "evaluate: trained is a dict"),
        (lambda: untyped.evaluate("vgg", ONE, [], EYE), "evaluate: model is a str"),
        (
            lambda: criticality.evaluate(VGG, initial_of(VGG, IMAGES), [], EYE),
            r"evaluate: VGGNarrow reads 'image', and batch has \['label', 'x'\]",
        ),
        (
            lambda: criticality.evaluate(
                VGG, initial_of(VGG, IMAGES), [], OF_VGG | {"image": jnp.ones((2, 4, 4, 1))}
            ),
            r"evaluate: VGGNarrow does not take image \[2, 4, 4, 1\]",
        ),
        (
            lambda: criticality.evaluate(VGG, Weights(initial_of(VGG, IMAGES).params), [], OF_VGG),
            "evaluate: VGGNarrow reads a collection that is not in variables",
        ),
        (lambda: untyped.evaluate(linear, FOUR, 3, EYE), "evaluate: variants is an int"),
        (lambda: untyped.evaluate(linear, FOUR, [FOUR], EYE), "variants has a Weights; give"),
        (
            lambda: criticality.evaluate(linear, FOUR, [criticality.Variant("a", 0, ONE)], EYE),
            "evaluate: the parameters of variant 'a' must have the tree structure of trained",
        ),
        (
            lambda: untyped.evaluate(lambda *_: EYE, FOUR, [], EYE),
            "evaluate: the model gives a dict; give one of classes",
        ),
        (
            lambda: criticality.evaluate(lambda p, v, b: p["w"] * 1j, FOUR, [], EYE),
            "evaluate: the model gives complex64; give real",
        ),
        (
            lambda: criticality.judge(seen(9, (1, 1)), "a", threshold=0.1, confidence=0.05),
            "confidence=0.05; give a number between 0.5 and 1",
        ),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_dropout_draws_statistics_of_its_own():
    model = nn.VGGNarrow(num_classes=3, width=2, blocks=(1,), dropout=0.5)
    with pytest.raises(UserError, match="VGGNarrow draws random numbers in training"):
        batch = {"image": jnp.ones((2, *IMAGES))}
        criticality.recomputed(model, initial_of(model, IMAGES), batch)
