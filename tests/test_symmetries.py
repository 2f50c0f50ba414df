"""Changes of weights that leave the function, and which measures they leave: both directions.

The matrix of the literature (Dinh et al., 2017; Petzka et al., 2021; Andriushchenko et al., 2023;
Liang et al., 2019; Jang et al., 2022), asserted: where it says no, the value must move.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry, perturbation, tree
from sharpjax.errors import UserError
from sharpjax.losses import CrossEntropy
from sharpjax.nn import folding, symmetries

TOLERANCE = 1e-6  # of searches and solves in float64
RHO = 0.05


def net(params, batch):
    x = jax.nn.relu(batch["x"] @ params["a"]["kernel"] + params["a"]["bias"])
    x = jax.nn.relu(x @ params["b"]["kernel"] + params["b"]["bias"])
    return x @ params["c"]["kernel"] + params["c"]["bias"]


LOSS = geometry.composed(net, CrossEntropy())


def problem():
    rng = np.random.default_rng(3)
    sizes = {"a": (4, 5), "b": (5, 6), "c": (6, 3)}
    params = {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape)) / 2,
            "bias": jnp.asarray(rng.normal(size=shape[1]) + 1),
        }
        for name, shape in sizes.items()
    }
    batch = {
        "x": jnp.asarray(rng.normal(size=(10, 4))),
        "label": jnp.asarray(rng.integers(0, 3, 10)),
    }
    return params, batch


NODES = np.exp(np.linspace(-1.5, 1.5, 6))
PRESERVING = {
    "nodes": functools.partial(symmetries.rescale_units, factors=NODES, into="b/*", out="c/kernel"),
    "layer": functools.partial(symmetries.rescale_units, factors=3.0, into="b/*", out="c/kernel"),
    "permutation": functools.partial(
        symmetries.permute_units, order=np.array([3, 0, 5, 1, 4, 2]), into="b/*", out="c/kernel"
    ),
    "shift": functools.partial(symmetries.shift_outputs, shift=2.0, bias="c/bias"),
}


def scaled_logits(params):
    return {**params, "c": jax.tree.map(lambda x: 2 * x, params["c"])}


def worst(scaling):
    def measure(params, batch, key):
        found = geometry.worst_case_sharpness(
            LOSS, params, batch, key=key, rho=RHO, scaling=scaling, num_steps=200
        )
        return found.value

    return measure


def trace(params, batch, key):
    return geometry.trace(geometry.hessian(LOSS, params, batch), key=key, method="exact").value


def scaled_trace(scaling):
    """What average-case sharpness is to second order."""

    def measure(params, batch, key):
        matrix = geometry.hessian(LOSS, params, batch).to_dense()
        scale = jax.tree.map(lambda t, w: t * jnp.ones_like(w), scaling(params), params)
        flat, _ = jax.flatten_util.ravel_pytree(scale)
        return flat**2 @ jnp.diag(matrix)

    return measure


def largest(params, batch, key):
    return geometry.top_eigenpairs(geometry.hessian(LOSS, params, batch), key=key, tol=1e-9).values[
        0
    ]


def flatness(name):
    def measure(params, batch, key):
        return getattr(geometry.relative_flatness(LOSS, params, batch, head="c/kernel"), name)

    return measure


def fisher_rao(params, batch, key):
    return geometry.fisher_rao(LOSS, params, batch).value


def information(params, batch, key):
    return geometry.information_sharpness(LOSS, params, batch).value


def loss(params, batch, key):
    return LOSS(params, batch)


# Unchanged under: nodes, layer, permutation, shift of the outputs; and under doubled outputs.
MATRIX = {
    "largest eigenvalue": (largest, "no no yes yes no"),
    "trace": (trace, "no no yes yes no"),
    "average, elements": (scaled_trace(perturbation.element()), "yes yes yes no no"),
    "worst case": (worst(perturbation.none()), "no no yes yes no"),
    "worst case, elements": (worst(perturbation.element()), "yes yes yes no no"),
    "worst case, layers": (worst(perturbation.layers()), "no yes yes no no"),
    "relative flatness": (flatness("value"), "no yes yes yes no"),
    "normalised": (flatness("normalised"), "yes yes yes yes no"),
    "Fisher-Rao": (fisher_rao, "yes yes yes yes no"),
    "information": (information, "yes yes yes yes no"),
    "loss": (loss, "yes yes yes yes no"),
}


@pytest.mark.parametrize("name", MATRIX)
def test_the_matrix(x64, key, name):
    measure, expected = MATRIX[name]
    params, batch = problem()
    found = geometry.check_invariance(
        {name: lambda p: measure(p, batch, key)},
        PRESERVING,
        params,
        lambda p: jax.nn.softmax(net(p, batch)),
        tolerance=TOLERANCE,
    )
    doubled = measure(scaled_logits(params), batch, key)
    same = [found.same[name, t] for t in PRESERVING]
    same.append(bool(abs(doubled / found.before[name] - 1) < TOLERANCE))
    words = ["yes" if s else "no" for s in same]
    assert " ".join(words) == expected, f"{found}\n{doubled}"
    assert max(found.off.values()) < 1e-12


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = nn.Conv(4, (3, 3), param_dtype=image.dtype)(image)
        x = nn.relu(nn.BatchNorm(use_running_average=True, param_dtype=image.dtype)(x))
        x = nn.relu(nn.Conv(5, (3, 3), param_dtype=image.dtype)(x))
        return nn.Dense(3, param_dtype=image.dtype)(x.mean((1, 2)))


def test_convolutions_and_batch_norm(x64, key):
    images = jax.random.normal(key, (2, 6, 6, 2))
    variables = ConvNet().init(key, images)
    stats = {"BatchNorm_0": {"mean": jnp.full(4, 0.3), "var": jnp.linspace(0.1, 2, 4)}}

    def outputs(both):
        return ConvNet().apply({"params": both[0], "batch_stats": both[1]}, images)

    factors = jnp.array([0.2, 3.0, 1.0, 10.0])
    units = jnp.array([0.1, 2.0, 3.0, 4.0, 5.0])
    transforms = {
        "before norm": lambda both: symmetries.scale_before_norm(
            *both, factors, into="Conv_0/*", norm="BatchNorm_0"
        ),
        "convolution": lambda both: (
            symmetries.rescale_units(both[0], units, into="Conv_1/*", out="Dense_0/kernel"),
            both[1],
        ),
        "channels": lambda both: (
            symmetries.permute_units(both[0], [2, 0, 1, 3], into="[CB]*_0/*", out="Conv_1/kernel"),
            jax.tree.map(lambda x: x[jnp.array([2, 0, 1, 3])], both[1]),
        ),
    }
    measures = {"norm": lambda both: tree.norm(both[0])}
    both = variables["params"], stats
    found = geometry.check_invariance(measures, transforms, both, outputs)
    assert max(found.off.values()) < 1e-12
    assert [found.same["norm", t] for t in transforms] == [False, False, True]
    with pytest.raises(UserError, match="smallest that serves here is 0.01"):
        symmetries.scale_before_norm(*both, 1e-4, into="Conv_0/*", norm="BatchNorm_0")
    with pytest.raises(UserError, match="a negative factor changes the sign"):
        symmetries.scale_before_norm(*both, -factors, into="Conv_0/*", norm="BatchNorm_0")
    with pytest.raises(UserError, match="factors must be above 0, got 0.0"):
        symmetries.scale_before_norm(*both, 0.0, into="Conv_0/*", norm="BatchNorm_0", epsilon=0.0)


def test_attention(x64, key):
    model = nn.MultiHeadDotProductAttention(num_heads=2, param_dtype=jnp.float64)
    x = jax.random.normal(key, (2, 5, 4))
    params = model.init(key, x)["params"]
    matrix = jax.random.normal(jax.random.key(1), (2, 2, 2)) + 2 * jnp.eye(2)
    for by in (matrix, matrix[0]):
        mix = functools.partial(symmetries.mix_heads, matrix=by, query="query/*", key="key/*")
        found = geometry.check_invariance(
            {"norm": tree.norm}, {"heads": mix}, params, lambda p: model.apply({"params": p}, x)
        )
        assert found.off["heads"] < 1e-12 and not found.same["norm", "heads"]


def test_what_is_refused(x64):
    params, batch = problem()
    outputs = functools.partial(net, batch=batch)
    check = functools.partial(
        geometry.check_invariance, {"norm": tree.norm}, params=params, outputs=outputs
    )
    with pytest.raises(UserError, match="'nothing' leaves the parameters as they are"):
        check({"nothing": lambda p: p})
    with pytest.raises(UserError, match="'doubled' moves the outputs by 1 of their size"):
        check({"doubled": scaled_logits})
    with pytest.raises(UserError, match="measure 'log' is nan"):
        geometry.check_invariance({"log": lambda p: jnp.log(-1.0)}, PRESERVING, params, outputs)
    with pytest.raises(UserError, match="rescale_units: 'b/bias' has shape .6,., and axis -1"):
        symmetries.rescale_units(params, NODES[:5], into="b/*", out="c/kernel")
    with pytest.raises(UserError, match="must be a permutation"):
        symmetries.permute_units(params, [0, 0, 1, 2, 3, 4], into="b/*", out="c/kernel")
    with pytest.raises(UserError, match="no leaf is named"):
        symmetries.shift_outputs(params, 1.0, bias="d/bias")


def test_leaves_keep_their_types(x64):
    params, _ = problem()
    params = jax.tree.map(jnp.float32, params)
    changed = [change(params) for change in PRESERVING.values()]
    query = {"q": jnp.ones((3, 1, 2), jnp.bfloat16), "k": jnp.ones((3, 1, 2), jnp.bfloat16)}
    mixed = symmetries.mix_heads(query, 2 * np.eye(2), query="q", key="k")
    for new, old in [*((new, params) for new in changed), (mixed, query)]:
        assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, old)


WHOLE = {"a": jnp.ones((3, 2), int), "b": jnp.ones((2, 3), int), "n": {"mean": jnp.ones(2, int)}}
WHOLE["n"]["var"] = jnp.ones(2, int)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: symmetries.rescale_units(p, 2.5, into="a", out="b"),
        lambda p: symmetries.rescale_units(p, 2, into="a", out="b"),
        lambda p: symmetries.scale_before_norm(p, p, 2.5, into="a", norm="n"),
        lambda p: symmetries.shift_outputs(p, 0.5, bias="a"),
        lambda p: symmetries.mix_units(p, 0.5 * np.eye(2), into="a", out="b"),
        lambda p: symmetries.mix_heads(p, 0.5 * np.eye(2), query="a", key="a"),
        lambda p: symmetries.pad_units(p, 1, into="a", out="b", incoming=0.5),
        lambda p: folding.absorb_norm({"a": {"kernel": p["a"]}}, p, layer="a", norm="n", epsilon=0),
        lambda p: folding.absorb_norm(
            {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}},
            p,
            layer="a",
            norm="n",
            epsilon=0,
        ),
    ],
)
def test_whole_numbers_are_not_changed(change):
    """They would be rounded; and statistics of whole numbers likewise."""
    with pytest.raises(UserError, match=r"'.*' is int\d+, which would round the change"):
        change(WHOLE)
    with pytest.raises(UserError, match=r"'.*' is int\d+, which would round the change"):
        change({**WHOLE, "b": jnp.ones((2, 3))})


def test_whole_numbers_in_another_order():
    found = symmetries.permute_units(WHOLE, [1, 0], into="a", out="b")
    found = symmetries.pad_units(found, 1, into="a", out="b")
    assert found["a"].dtype == found["b"].dtype == WHOLE["a"].dtype
    np.testing.assert_array_equal(found["a"], [[1, 1, 0]] * 3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, [1.0, -np.inf], 1j, "a", None])
def test_what_is_no_number(wrong):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3)), "n": {"mean": jnp.ones(2)}}
    params["n"]["var"] = jnp.ones(2)
    calls = [
        ("rescale_units", lambda: symmetries.rescale_units(params, wrong, into="a", out="b")),
        ("scale_before_norm", lambda: symmetries.scale_before_norm(
            params, params, wrong, into="a", norm="n"
        )),
        ("shift_outputs", lambda: symmetries.shift_outputs(params, wrong, bias="a")),
        ("pad_units", lambda: symmetries.pad_units(params, 1, into="a", out="b", incoming=wrong)),
    ]  # fmt: skip
    for name, call in calls:
        with pytest.raises(UserError, match=rf"^{name}: \w+ must be (finite|real|numbers)"):
            call()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: symmetries.rescale_units(p, 1e6, into="a", out="b"),
        lambda p: symmetries.rescale_units(p, 1e-6, into="a", out="b"),
        lambda p: symmetries.pad_units(p, 1, into="a", out="b", incoming=1e6),
        lambda p: symmetries.mix_units(p, 1e6 * np.eye(2), into="a", out="b"),
        lambda p: symmetries.scale_before_norm(p, p, 1e3, into="a", norm="n"),
    ],
)
def test_what_overflows(change):
    """Weights of float16, up to 65,504."""
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3)), "n": {"mean": jnp.ones(2)}}
    params["n"]["var"] = jnp.ones(2)
    with pytest.raises(UserError, match="would be beyond the range of float16"):
        change(jax.tree.map(jnp.float16, params))


@pytest.mark.parametrize("of", [float, np.float32])
def test_what_underflows(of):
    """The smallest float16 is 6e-8: 3e-4 times 4e-5 would be 0, and 2 divided by 4e-5 fits."""
    params = {"a": jnp.full((3, 2), 3e-4, jnp.float16), "b": jnp.full((2, 3), 2, jnp.float16)}
    rescale = functools.partial(symmetries.rescale_units, factors=of(4e-5))
    with pytest.raises(UserError, match="6 weights of into would become 0 in float16"):
        rescale(params, into="a", out="b")
    zeros = {**params, "a": jnp.zeros((3, 2), jnp.float16)}
    np.testing.assert_array_equal(rescale(zeros, into="a", out="b")["a"], 0)
    # A dead weight, 2^-24 beside 2^4, loses nothing that could be seen: eps^2 is 2^-20.
    dead = params["a"].at[0, 0].set(2.0**-24).at[1, 1].set(16)
    half = functools.partial(symmetries.rescale_units, factors=of(0.25), into="a", out="b")
    assert half({**params, "a": dead})["a"][0, 0] == 0
    stats = {"n": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    for norm in (0.0, 1e-8):  # a scale of 0 removes the layer, and loses nothing
        model = {"c": {"kernel": params["a"]}, "n": {"scale": jnp.full(2, norm)}}
        model["n"]["bias"] = jnp.zeros(2)
        absorb = functools.partial(folding.absorb_norm, layer="c", norm="n", epsilon=0.0)
        if norm:
            with pytest.raises(UserError, match="absorb_norm: 6 weights of layer would become 0"):
                absorb(model, stats)
        else:
            absorb(model, stats)


def test_a_complex_matrix():
    params = {"a": jnp.ones((3, 1, 2)), "b": jnp.ones((3, 2, 2))}
    matrix = np.diag([1j, 1.0])
    with pytest.raises(UserError, match="mix_units: the change is complex, and the leaves of into"):
        symmetries.mix_units(params, matrix, into="a", out="b")
    with pytest.raises(UserError, match="mix_heads: the change is complex, and the leaves of que"):
        symmetries.mix_heads(params, matrix, query="a", key="a")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda p: symmetries.rescale_units(p, 2.0, into="c/*", out="b"),
            "rescale_units: into: no",
        ),
        (lambda p: symmetries.rescale_units(p, 2.0, into="a", out="c"), "rescale_units: out: no"),
        (lambda p: symmetries.rescale_units(p, 2.0, into=[], out="b"), "rescale_units: into: an"),
        (lambda p: symmetries.rescale_units(p, 2.0, into=3, out="b"), "into must be a glob"),
        (lambda p: symmetries.permute_units(p, [0, 1], into="c", out="b"), "permute_units: into:"),
        (lambda p: symmetries.pad_units(p, 1, into="a", out="c"), "pad_units: out: no leaf"),
        (lambda p: symmetries.pad_units(p, 1, into="a", out="v"), "axis -2 must exist"),
        (lambda p: symmetries.pad_units(p, 2.5, into="a", out="b"), "pad_units: number must be a"),
        (lambda p: symmetries.mix_units(p, np.eye(2), into="c", out="b"), "mix_units: into: no"),
        (lambda p: symmetries.mix_heads(p, np.eye(2), query="a", key="c"), "mix_heads: key: no"),
        (lambda p: symmetries.shift_outputs(p, 1.0, bias="c"), "shift_outputs: bias: no leaf"),
        (
            lambda p: symmetries.scale_before_norm(p, p, 2.0, into="a", norm="n"),
            "scale_before_norm: norm: no leaf is named 'n/mean'",
        ),
        (
            lambda p: symmetries.scale_before_norm(p, p, 2.0, into="a", norm="n", epsilon="a"),
            "scale_before_norm: epsilon must be numbers",
        ),
    ],
)
def test_errors_name_the_function_and_its_argument(call, says):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3)), "v": jnp.ones(2)}
    with pytest.raises(UserError) as error:
        call(params)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            functools.partial(symmetries.rescale_units, factors=np.array([1.0, 0.0])),
            "must not be 0",
        ),
        (functools.partial(symmetries.rescale_units, factors=np.ones((2, 2))), "a list of them"),
        (functools.partial(symmetries.permute_units, order=np.array([1.0, 0.0])), "whole numbers"),
    ],
)
def test_wrong_factors_and_orders(change, says):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    with pytest.raises(UserError, match=says):
        change(params, into="a", out="b")


@pytest.mark.parametrize(
    ("matrix", "says"),
    [(np.zeros((2, 2)), "no inverse"), (np.ones((2, 3)), r"\(2, 3\)"), (2.0, "k, k")],
)
def test_wrong_matrices(matrix, says):
    heads = {"q": jnp.ones((3, 1, 2)), "k": jnp.ones((3, 1, 2))}
    with pytest.raises(UserError, match=says):
        symmetries.mix_heads(heads, matrix, query="q", key="k")


def test_matrices_that_are_singular_within_rounding():
    """Rank 3 of 6: rounding leaves pivots that are not 0, and a finite 'inverse'."""
    draws = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    low = (draws[0] @ draws[1].swapaxes(-1, -2)).astype(np.float32)
    assert np.isfinite(jnp.linalg.inv(low)).all((1, 2)).any()
    params = {"a": jnp.ones((3, 2, 6)), "b": jnp.ones((2, 6, 3))}
    for matrix in low:
        with pytest.raises(UserError, match="mix_units: the matrix has no inverse in float32"):
            symmetries.mix_units(params, matrix, into="a", out="b")
        heads = np.stack([np.eye(6, dtype=np.float32), matrix])
        with pytest.raises(UserError, match="mix_heads: the matrix has no inverse in float32"):
            symmetries.mix_heads(params, heads, query="a", key="a")
    # Of size 1e-6 and with condition number 1e4, but not singular.
    fine = 1e-6 * np.diag(np.array([1, 1, 1, 1, 1, 1e-4], np.float32))
    symmetries.mix_units(params, fine, into="a", out="b")


def test_factors_may_be_traced():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    rescale = functools.partial(symmetries.rescale_units, into="a", out="b")
    found = jax.jit(rescale)(params, jnp.array([2.0, 4.0]))
    np.testing.assert_array_equal(found["b"][:, 0], [0.5, 0.25])


def test_measures_and_parameters_of_other_kinds():
    params = {"w": jnp.arange(3.0), "on": True, "steps": 3}
    flip = {"flip": lambda p: {**p, "w": -p["w"]}}
    outputs = lambda p: p["w"] ** 2  # noqa: E731
    found = geometry.check_invariance({"sum": lambda p: p["w"].sum()}, flip, params, outputs)
    assert found.after["sum", "flip"] == -3
    with pytest.raises(UserError, match="'w' must return one number, got .* of shape"):
        geometry.check_invariance({"w": lambda p: p["w"]}, flip, params, outputs)
    with pytest.raises(UserError, match="structure"):
        drop = {"drop": lambda p: {"w": p["w"]}}
        geometry.check_invariance({}, drop, params, outputs)
