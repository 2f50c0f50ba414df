"""Which data-free measure of a layer moves under which change that leaves the function.

A row of `MEASURES` is a function of one kernel [fan_in, units], and a word for each of `CHANGES`:
"yes" where it stays, "no" where it must move. Further measures are further rows.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import nn as sharp
from sharpjax.errors import UserError
from sharpjax.metrics import spectra

SAME = 1e-9  # relative, in float64
MOVED = 1e-2
FACTOR = 3.0
TAIL = 4  # eigenvalues


def tail_exponent(kernel, tail=TAIL):
    """alpha = 1 + k / sum ln(l_i / l_k) of the k largest eigenvalues (Clauset's estimate)."""
    values = jnp.square(spectra.singular_values(kernel))[:tail]
    return 1 + tail / jnp.sum(jnp.log(values / values[-1]))


def of_values(measure):
    return lambda kernel: measure(spectra.singular_values(kernel))


# Networks: parameters, outputs on a batch, and the change, of kernel `a/kernel` [7, 5].


def weights(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape)) / math.sqrt(shape[0])


def two_layers():
    return {
        "a": {"kernel": weights(7, 5), "bias": weights(5, seed=1)},
        "b": {"kernel": weights(5, 3, seed=2)},
    }


INPUTS = np.random.default_rng(3).normal(size=(12, 7))
UNITS = np.array([0.1, 0.5, 1.0, 4.0, 9.0])
ROTATION = np.linalg.qr(np.random.default_rng(4).normal(size=(5, 5)))[0]
PAIR = {"into": "a/*", "out": "b/kernel"}


def relu_net(params, activation=jax.nn.relu):
    return activation(INPUTS @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"]


def linear_net(params):
    return relu_net(params, lambda x: x)


class Normed(nn.Module):
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        kind = {"param_dtype": x.dtype}
        x = nn.Dense(5, use_bias=self.bias, name="a", **kind)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="norm", **kind)(x))
        return nn.Dense(3, name="b", **kind)(x)


def normed(bias=False):
    """Parameters and statistics as after training: none of them is what it started from."""
    params = Normed(bias).init(jax.random.key(0), INPUTS)["params"]
    rng = np.random.default_rng(5)
    params["norm"] = {"scale": jnp.asarray(UNITS), "bias": jnp.asarray(rng.normal(size=5))}
    if bias:
        params["a"]["bias"] = jnp.asarray(rng.normal(size=5))
    statistics = {
        "norm": {"mean": jnp.asarray(rng.normal(size=5)), "var": jnp.asarray(UNITS[::-1])}
    }
    return params, statistics


def normed_net(both, bias=False):
    return Normed(bias).apply({"params": both[0], "batch_stats": both[1]}, INPUTS)


def absorb(both, layer="a", norm="norm"):
    return sharp.absorb_norm(*both, layer=layer, norm=norm, epsilon=1e-3)


def before_norm(both):
    return sharp.scale_before_norm(*both, UNITS, into="a/kernel", norm="norm", epsilon=1e-3)


def of_pair(change, net=relu_net, **more):
    change = functools.partial(change, **PAIR, **more)
    return two_layers, net, change, lambda params: params["a"]["kernel"]


def of_normed(change):
    return normed, normed_net, change, lambda both: both[0]["a"]["kernel"]


# What is done to the kernel: c W, W D (three times), W P, W Q, [W 0].
CHANGES = {
    "layer": of_pair(sharp.rescale_units, factors=FACTOR),
    "units": of_pair(sharp.rescale_units, factors=UNITS),
    "before norm": of_normed(before_norm),
    "absorption": of_normed(absorb),
    "permutation": of_pair(sharp.permute_units, order=[3, 0, 4, 1, 2]),
    "rotation": of_pair(sharp.mix_units, linear_net, matrix=ROTATION),
    "padding": of_pair(sharp.pad_units, number=3),
}
MEASURES = {
    "Frobenius norm": (lambda w: spectra.weight_norms(w)["total"], "no no no no yes yes yes"),
    "spectral norm": (of_values(jnp.max), "no no no no yes yes yes"),
    "nuclear norm": (of_values(jnp.sum), "no no no no yes yes yes"),
    "smallest singular value": (of_values(jnp.min), "no no no no yes yes no"),
    "stable rank": (of_values(spectra.stable_rank), "yes no no no yes yes yes"),
    "effective rank": (of_values(spectra.effective_rank), "yes no no no yes yes yes"),
    "alpha of a tail": (tail_exponent, "yes no no no yes yes yes"),
    "rank": (
        of_values(lambda s: jnp.sum(s > 1e-9 * jnp.max(s))),
        "yes yes yes yes yes yes yes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MEASURES)
def test_the_table(x64, name, change):
    start, outputs, transform, kernel = CHANGES[change]
    measure, said = MEASURES[name]
    params = start()
    found = sharp.apply_verified(transform, params, outputs)
    before, after = (float(measure(kernel(p))) for p in (params, found.params))
    stays = said.split()[list(CHANGES).index(change)] == "yes"
    apart = abs(after / before - 1)
    assert apart < SAME if stays else apart > MOVED
    assert found.off <= found.bound < 1e-13


def test_every_cell_is_said():
    assert all(len(said.split()) == len(CHANGES) for _, said in MEASURES.values())
    assert {w for _, said in MEASURES.values() for w in said.split()} == {"yes", "no"}


# The proofs, in numbers.


def test_a_factor_of_the_layer_multiplies_singular_values(x64):
    params = two_layers()
    changed = sharp.rescale_units(params, FACTOR, **PAIR)
    s, t, u, v = (spectra.singular_values(p[k]["kernel"])
                  for k in ("a", "b") for p in (params, changed))  # fmt: skip
    np.testing.assert_allclose(t, FACTOR * s, rtol=1e-12)
    np.testing.assert_allclose(v, u / FACTOR, rtol=1e-12)


@pytest.mark.parametrize("power", [0.5, 2.0, -1.0])
def test_units_can_be_given_any_spectrum(x64, power):
    """W = diag(s) becomes diag(s^p) by D = diag(s^(p - 1)), and alpha - 1 is divided by p."""
    s = jnp.array([5.0, 3.0, 2.0, 1.5, 1.0])
    params = {"a": {"kernel": jnp.diag(s), "bias": jnp.ones(5)}, "b": {"kernel": weights(5, 3)}}

    def outputs(p):
        return jax.nn.relu(INPUTS[:, :5] @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]

    change = functools.partial(sharp.rescale_units, factors=s ** (power - 1), **PAIR)
    changed = sharp.apply_verified(change, params, outputs).params["a"]["kernel"]
    values = spectra.singular_values(changed)
    np.testing.assert_allclose(values, np.sort(s**power)[::-1], rtol=1e-12)
    if power > 0:  # the order of the eigenvalues stays
        alphas = [float(tail_exponent(w, 5)) for w in (params["a"]["kernel"], changed)]
        assert alphas[1] - 1 == pytest.approx((alphas[0] - 1) / power, rel=1e-12)
        assert float(tail_exponent(7 * changed, 5)) == pytest.approx(alphas[1], rel=1e-12)


# New changes.


@pytest.mark.parametrize("bias", [False, True])
def test_absorption(x64, bias):
    """The norm does nothing any more; without it, and with its shift as bias, outputs are equal."""
    both, outputs = normed(bias), functools.partial(normed_net, bias=bias)
    found = sharp.apply_verified(absorb, both, outputs)
    params, statistics = found.params
    assert jax.tree.structure(params) == jax.tree.structure(both[0])
    shift = params["a"]["bias"] if bias else params["norm"]["bias"]
    np.testing.assert_array_equal(params["norm"]["bias"] if bias else 0.0, 0.0)
    np.testing.assert_array_equal(params["norm"]["scale"], 1.0)
    np.testing.assert_array_equal(statistics["norm"]["mean"], 0.0)
    plain = jax.nn.relu(INPUTS @ params["a"]["kernel"] + shift)
    plain = plain @ params["b"]["kernel"] + params["b"]["bias"]
    np.testing.assert_allclose(plain, outputs(both), rtol=1e-11, atol=1e-12)
    again = absorb((params, statistics))[0]
    np.testing.assert_allclose(again["a"]["kernel"], params["a"]["kernel"], rtol=1e-12)


def test_what_is_absorbed_does_not_depend_on_a_scale_before_norm(x64):
    both = normed()
    first, second = absorb(both), absorb(before_norm(both))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_the_wrong_epsilon_is_found(x64):
    wrong = functools.partial(
        lambda both: sharp.absorb_norm(*both, layer="a", norm="norm", epsilon=1e-5)
    )
    with pytest.raises(UserError, match=r"moved by 0\.00\d+ of the largest; rounding explains"):
        sharp.apply_verified(wrong, normed(), normed_net)


def test_a_residual_network(x64, key):
    """All its norms absorbed, and the channels of its stream in another order."""
    model = sharp.ResNetNarrow(num_classes=3, width=4, blocks=(1,), stem_stride=1)
    images = jax.random.normal(key, (2, 5, 5, 2), jnp.float32)
    variables = model.init(key, images)
    names = ["", "BasicBlock_0/"]
    rng = np.random.default_rng(0)

    def trained(x):
        return jnp.asarray(np.exp(rng.normal(size=x.shape) / 3), x.dtype)

    norms = jax.tree.map(trained, variables["batch_stats"])
    both = variables["params"], norms

    def fold(both):
        for block, number in ((names[0], 0), (names[1], 0), (names[1], 1)):
            layer, norm = f"{block}Conv_{number}", f"{block}BatchNorm_{number}"
            both = sharp.absorb_norm(*both, layer=layer, norm=norm, epsilon=1e-5)
        return both

    stream = {
        "into": [
            "Conv_0/*",
            "BatchNorm_0/*",
            "BasicBlock_0/Conv_1/*",
            "BasicBlock_0/BatchNorm_1/*",
        ],
        "out": ["BasicBlock_0/Conv_0/kernel", "head/kernel"],
    }

    def reorder(both):
        order = jnp.array([2, 0, 3, 1])
        params = sharp.permute_units(both[0], [2, 0, 3, 1], **stream)
        moved = {**both[1], "BatchNorm_0": jax.tree.map(lambda x: x[order], both[1]["BatchNorm_0"])}
        block = both[1]["BasicBlock_0"]
        inner = jax.tree.map(lambda x: x[order], block["BatchNorm_1"])
        return params, {**moved, "BasicBlock_0": {**block, "BatchNorm_1": inner}}

    def outputs(both):
        return model.apply({"params": both[0], "batch_stats": both[1]}, images)

    for change in (fold, reorder):
        found = sharp.apply_verified(change, both, outputs)
        assert 0 < found.bound < 1e-3 and found.params[0]["Conv_0"] is not both[0]["Conv_0"]
    half = {**stream, "out": stream["out"][:1]}
    with pytest.raises(UserError, match="the outputs moved by"):
        sharp.apply_verified(
            lambda both: (sharp.permute_units(both[0], [2, 0, 3, 1], **half), both[1]),
            both,
            outputs,
        )


def test_a_matrix_between_linear_layers(x64):
    matrix = np.random.default_rng(1).normal(size=(5, 5)) + 3 * np.eye(5)
    change = functools.partial(sharp.mix_units, matrix=matrix, **PAIR)
    params = sharp.apply_verified(change, two_layers(), linear_net).params
    np.testing.assert_allclose(
        params["a"]["kernel"] @ params["b"]["kernel"],
        two_layers()["a"]["kernel"] @ two_layers()["b"]["kernel"],
        rtol=1e-10,
    )
    with pytest.raises(UserError, match="apply_verified: the outputs moved by"):
        sharp.apply_verified(change, two_layers(), relu_net)
    for wrong, says in ((np.ones((2, 3)), "must be .units, units."), (np.zeros((5, 5)), "inverse")):
        with pytest.raises(UserError, match=says):
            sharp.mix_units(two_layers(), wrong, **PAIR)


def test_units_that_nothing_reads(x64):
    """Whatever goes into them: the function stays, and the norm of the layer does not."""
    change = functools.partial(sharp.pad_units, number=2, incoming=5.0, **PAIR)
    found = sharp.apply_verified(change, two_layers(), relu_net).params
    assert found["a"]["kernel"].shape == (7, 7) and found["b"]["kernel"].shape == (7, 3)
    grown = (
        spectra.weight_norms(found)["a/kernel"] ** 2
        - spectra.weight_norms(two_layers())["a/kernel"] ** 2
    )
    assert float(grown) == pytest.approx(2 * 7 * 25.0)
    with pytest.raises(UserError, match="pad_units: number must be a whole number >= 1"):
        sharp.pad_units(two_layers(), 0, **PAIR)


# The verifier.


def test_the_bound_follows_from_the_precision():
    """In float32 rounding stays below it, in float16 it is 8,192 times as large."""
    small = jax.tree.map(jnp.float32, two_layers())
    change = functools.partial(sharp.rescale_units, factors=UNITS, **PAIR)
    found = sharp.apply_verified(change, small, relu_net)
    assert found.bound == pytest.approx(16 * 2 * math.sqrt(7) * 2.0**-24)
    assert 0 < found.off < found.bound
    half = jax.tree.map(jnp.float16, two_layers())
    coarse = sharp.apply_verified(change, half, relu_net)
    assert coarse.bound == pytest.approx(2.0**13 * found.bound) and found.off < coarse.off
    with pytest.raises(UserError, match="rounding explains 1e-12"):
        sharp.apply_verified(change, small, relu_net, bound=1e-12)


MLP = sharp.MLP(num_classes=10, width=32, depth=2)
IMAGES = np.random.default_rng(6).normal(size=(4, 8, 8, 1)).astype(np.float32)


def trained(dtype):
    return jax.tree.map(lambda x: x.astype(dtype), MLP.init(jax.random.key(0), IMAGES)["params"])


def logits(params):
    own = {"params": {k: params[k] for k in ("Dense_0", "Dense_1", "head")}}
    return MLP.apply(own, jnp.asarray(IMAGES, params["head"]["kernel"].dtype))


def head_times(factor, params):
    return {**params, "head": jax.tree.map(lambda x: (factor * x).astype(x.dtype), params["head"])}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("factor", [0.0, 1.1, 1.5])
def test_nothing_is_verified_where_rounding_explains_a_tenth(dtype, factor):
    """16 * 3 * 8 u: 1.5 in bfloat16, 0.19 in float16."""
    change = functools.partial(head_times, factor)
    with pytest.raises(UserError, match=rf"{jnp.dtype(dtype)} may move .* 3 layers .* 64 inputs"):
        sharp.apply_verified(change, trained(dtype), logits)
    close = functools.partial(head_times, 1.0)
    assert sharp.apply_verified(close, trained(dtype), logits, bound=0.01).bound == 0.01
    with pytest.raises(UserError, match="the outputs moved by"):
        sharp.apply_verified(change, trained(dtype), logits, bound=0.01)


def test_only_what_is_read_is_rounded():
    """A coarse leaf, and a large one, that nothing reads; read by numpy, all leaves count."""
    params, change = trained(jnp.float32), functools.partial(head_times, 1.5)
    more = {**params, "unread": jnp.ones((10_000, 2), jnp.bfloat16)}
    with pytest.raises(UserError, match=r"moved by 0.5 of the largest; rounding explains 2.3e-05"):
        sharp.apply_verified(change, more, logits)
    bounds = [sharp.apply_verified(lambda p: p, p, logits).bound for p in (params, more)]
    assert bounds[0] == bounds[1] == 16 * 3 * 8 * 2.0**-24
    with pytest.raises(UserError, match="bfloat16 may move"):
        sharp.apply_verified(change, more, lambda p: np.asarray(logits(p)))
    with pytest.raises(UserError, match="outputs reads none of the parameters"):
        sharp.apply_verified(change, params, lambda p: logits(params))


def test_complex_outputs():
    """A change of their imaginary part alone."""
    params = {"w": jnp.array([[1.0 + 2j, 3.0]], jnp.complex64)}

    def outputs(p):
        return jnp.ones((2, 1)) @ p["w"]

    found = sharp.apply_verified(lambda p: p, params, outputs)
    assert found.off == 0 and found.bound == 16 * 2.0**-24
    with pytest.raises(UserError, match="moved by 1.3 of the largest"):
        sharp.apply_verified(lambda p: {"w": p["w"].conj()}, params, outputs)
    with pytest.raises(UserError, match="1 of 1 outputs became not finite"):
        sharp.apply_verified(lambda p: p * jnp.nan, 1.0, lambda p: jax.lax.complex(1.0, p)[None])


@pytest.mark.parametrize(
    ("params", "outputs", "bound", "says"),
    [
        ({}, lambda p: jnp.ones(2), None, "params holds no array"),
        (jnp.ones(2), lambda p: {"logits": p}, None, "one array of numbers, got a dict"),
        (jnp.ones(2), lambda p: None, None, "one array of numbers, got a NoneType"),
        (jnp.ones(2), lambda p: p, math.nan, "bound must be a number from 0 to below 1"),
        (jnp.ones(2), lambda p: p, 1.0, "bound must be a number from 0 to below 1"),
        (jnp.ones(2), lambda p: p, "a", "bound must be a number from 0 to below 1"),
    ],
)
def test_what_cannot_be_verified(params, outputs, bound, says):
    with pytest.raises(UserError, match=says) as error:
        sharp.apply_verified(lambda p: p, params, outputs, bound=bound)
    assert str(error.value).startswith("apply_verified: ") and "\n" not in str(error.value)


def test_whole_numbers_are_not_rounded():
    params = {"w": jnp.array([[1, 2]])}
    found = sharp.apply_verified(lambda p: {"w": p["w"] * 1}, params, lambda p: p["w"] * 3)
    assert found.off == found.bound == 0
    with pytest.raises(UserError, match="the outputs moved by 1 of"):
        sharp.apply_verified(lambda p: {"w": p["w"] * 2}, params, lambda p: p["w"] * 3)


def test_numbers_are_compared_outside_of_a_trace():
    with pytest.raises(UserError, match="outside of `jit`"):
        jax.jit(lambda p: sharp.apply_verified(lambda q: q, p, jnp.sum).params)(jnp.ones(2))


def test_what_is_refused(x64):
    params = two_layers()

    def bad(p):
        return {**p, "b": {"kernel": p["b"]["kernel"] * jnp.nan}}

    with pytest.raises(UserError, match="36 of 36 outputs became not finite"):
        sharp.apply_verified(bad, params, relu_net)
    with pytest.raises(UserError, match="are all 0"):
        sharp.apply_verified(lambda p: p, params, lambda p: 0 * relu_net(p))
    with pytest.raises(UserError, match=r"shape \(12, 3\) came to have shape \(12, 2\)"):
        fewer = {**params, "b": {"kernel": params["b"]["kernel"][:, :2]}}
        sharp.apply_verified(lambda p: fewer, params, relu_net)
    both = normed()
    for layer, norm, says in (
        ("c", "norm", "no leaf is named 'c/kernel'"),
        ("a", "other", "no leaf is named 'other/mean'"),
        ("b", "norm", "absorb_norm: 'b/kernel' has shape .5, 3., and axis -1 must have length 5"),
    ):
        with pytest.raises(UserError, match=says):
            absorb(both, layer, norm)
    bare = {"a": both[0]["a"], "b": both[0]["b"]}
    with pytest.raises(UserError, match="neither 'a' nor 'norm' has a bias"):
        absorb((bare, both[1]))
    for wrong in (-1.0, math.nan, "a"):
        with pytest.raises(UserError, match="absorb_norm: epsilon must be a number in"):
            sharp.absorb_norm(*both, layer="a", norm="norm", epsilon=wrong)  # pyright: ignore[reportArgumentType]
    for layer, says in (("c", "absorb_norm: layer: no leaf is named"), ("?", "layer and no glob")):
        with pytest.raises(UserError, match=says):
            absorb(both, layer)
    short = {"norm": {**both[1]["norm"], "var": jnp.ones(1)}}
    with pytest.raises(UserError, match="'norm/var' has shape .1,., and axis -1 must have"):
        absorb((both[0], short))
    flat = {"norm": {**both[1]["norm"], "var": jnp.zeros(5)}}
    with pytest.raises(UserError, match="a variance of 'norm' plus epsilon=0.0 is not above 0"):
        sharp.absorb_norm(both[0], flat, layer="a", norm="norm", epsilon=0.0)
