"""Blocks and other units against dense matrices, what they cost, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import perturbation, tree
from sharpjax.errors import UserError
from sharpjax.geometry import composed, hessian, top_eigenpairs
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.blocks import (
    BlockDiagonal,
    block_diagonal,
    layers,
    masked,
    restricted,
)
from sharpjax.geometry.operators.gauss_newton import gauss_newton
from sharpjax.geometry.operators.scaling import congruence, preconditioned
from sharpjax.losses import CrossEntropy
from tests.problems import Diagonal, awkward_loss, awkward_net, columns, dense, flat


def matrix(operator):
    return columns(algebra.linearize(operator), operator.like)


def owners(params, groups):
    """The number of the group of each parameter, -1 for none."""
    found = jax.tree.map(lambda x: np.full(x.shape, -1), params)
    for i, where in enumerate(groups):
        hits = tree.select(params, where)
        found = jax.tree.map(lambda m, x, i=i: np.full(x.shape, i) if m else x, hits, found)
    return flat(found)


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_layers_and_block_diagonals_equal_the_dense_blocks(x64, strict, microbatch_size):
    params, batch = awkward_net()
    truth = dense(awkward_loss, params, batch)
    full = hessian(awkward_loss, params, batch, microbatch_size=microbatch_size)
    found = layers(full)
    assert list(found) == ["empty", "gain", "layers/0", "layers/1", "shift/a", "unused"]
    place = owners(params, [block.where for block in found.values()])
    assert (place >= 0).all()
    for i, block in enumerate(found.values()):
        if tree.size(block.like):
            expected = truth[np.ix_(place == i, place == i)]
            np.testing.assert_allclose(matrix(block), expected, atol=1e-13)
    same = np.expand_dims(place, 0) == np.expand_dims(place, 1)
    np.testing.assert_allclose(matrix(block_diagonal(full)), truth * same, atol=1e-13)


def test_groups_by_name(x64, strict):
    params, batch = awkward_net()
    full = hessian(awkward_loss, params, batch)
    groups = {"net": ["layers/*", "gain"], "rest": ("unused", "empty", "shift/*")}
    operator = block_diagonal(full, groups)
    assert isinstance(operator, BlockDiagonal) and list(layers(full, groups)) == ["net", "rest"]
    place = owners(params, groups.values())
    same = np.expand_dims(place, 0) == np.expand_dims(place, 1)
    truth = dense(awkward_loss, params, batch) * same
    np.testing.assert_allclose(matrix(operator), truth, atol=1e-13)
    each = matrix(block_diagonal(full, tree.path_names(params)))
    place = owners(params, tree.path_names(params))
    np.testing.assert_allclose(
        each, truth * (np.expand_dims(place, 0) == np.expand_dims(place, 1)), atol=1e-13
    )


def test_restrictions_compose(x64, strict, key):
    """A block of a block, of a block-diagonal operator, and eigenvalues of it."""
    params, batch = awkward_net()
    full = hessian(awkward_loss, params, batch)
    inner = restricted(restricted(full, ("layers/*", "gain")), "layers/0/*")
    place = owners(params, ["layers/0/*"])
    truth = dense(awkward_loss, params, batch)[np.ix_(place == 0, place == 0)]
    np.testing.assert_allclose(matrix(inner), truth, atol=1e-13)
    again = restricted(block_diagonal(full), "layers/0/*")
    np.testing.assert_allclose(matrix(again), truth, atol=1e-13)
    largest = top_eigenpairs(inner, key=key, tol=1e-9).values[0]
    np.testing.assert_allclose(largest, np.linalg.eigvalsh(truth)[-1], rtol=1e-8)


def deep_outputs(params, batch):
    x = batch["image"]
    for kernel in params["body"]:
        x = jnp.tanh(x @ kernel)
    return x @ params["head"]


def deep_loss(params, batch):
    return CrossEntropy()(deep_outputs(params, batch), batch)


DEEP = {"body": [jnp.ones((64, 64)) / 64] * 6, "head": jnp.ones((64, 2))}
DATA = {"image": jnp.ones((128, 64)), "label": jnp.zeros(128, jnp.int32)}


def flops(operator):
    product = algebra.linearize(operator)
    lowered = jax.jit(lambda p, v: p(v)).lower(product, tree.zeros_like(operator.like))
    analysis = lowered.compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


@pytest.mark.parametrize("microbatch_size", [None, 64])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_a_block_computes_only_what_depends_on_it(kind, microbatch_size):
    options = {"microbatch_size": microbatch_size}

    def make(where=None):
        if kind == "hessian":
            return hessian(deep_loss, DEEP, DATA, where=where, **options)
        return gauss_newton(
            composed(deep_outputs, CrossEntropy()), DEEP, DATA, where=where, **options
        )

    full = make()
    for where in ("head", "body/5"):
        cut = flops(restricted(full, where))
        assert cut <= 1.02 * flops(make(where)) < 0.4 * flops(full)
    assert flops(block_diagonal(full, ["body/*", "head"])) < 1.4 * flops(full)


def test_a_mask_leaves_the_smaller_matrix(x64, strict):
    params, batch = awkward_net()
    keep = jax.tree.map(lambda x: x > -0.2, params)
    chosen = flat(keep).astype(bool)
    truth = dense(awkward_loss, params, batch) * np.outer(chosen, chosen)
    full = hessian(awkward_loss, params, batch)
    np.testing.assert_allclose(matrix(masked(full, keep)), truth, atol=1e-13)
    numbers = jax.tree.map(lambda m: m.astype(jnp.float32), keep)
    np.testing.assert_allclose(matrix(masked(full, numbers)), truth, atol=1e-13)


def test_what_is_held_fixed_may_be_infinite():
    operator = masked(Diagonal(jnp.array([2.0, jnp.inf])), jnp.array([True, False]))
    assert algebra.linearize(operator)(jnp.ones(2)).tolist() == [2, 0]


# Other units.


def test_a_congruence_equals_the_dense_one(x64, strict):
    params, batch = awkward_net()
    truth = dense(awkward_loss, params, batch)
    full = hessian(awkward_loss, params, batch)
    t = np.diag(np.abs(flat(params)) + 0.1)
    found = congruence(full, perturbation.element(eta=0.1))
    np.testing.assert_allclose(matrix(found), t @ truth @ t, atol=1e-13)
    # One number for each leaf, or for each column of a kernel.
    scale = jax.tree.map(lambda x: jnp.asarray(x.size, x.dtype), params)
    scale["layers"][0] = (jnp.arange(1.0, 5.0), scale["layers"][0][1])
    each = jax.tree.map(lambda s, x: jnp.broadcast_to(s, x.shape), scale, params)
    t = np.diag(flat(each))
    np.testing.assert_allclose(matrix(congruence(full, scale)), t @ truth @ t, atol=1e-12)
    inner = congruence(
        hessian(awkward_loss, params, batch, where="layers/*"), perturbation.element()
    )
    place = owners(params, ["layers/*"]) == 0
    t = np.diag(np.abs(flat(params))[place])
    expected = t @ truth[np.ix_(place, place)] @ t
    np.testing.assert_allclose(matrix(inner), expected, atol=1e-13)


def relu_loss(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["in"])
    return jnp.mean(jnp.square(hidden @ params["out"] - batch["y"]))


def test_adaptive_curvature_does_not_see_rescalings(x64, strict, key):
    """Multiplying one layer by c and the next by 1 / c changes nothing but the plain Hessian."""
    keys = jax.random.split(key, 4)
    shapes = {"in": (3, 6), "out": (6, 2)}
    params = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=False)}
    batch = {"x": jax.random.normal(keys[2], (9, 3)), "y": jax.random.normal(keys[3], (9, 2))}
    other = {"in": 3 * params["in"], "out": params["out"] / 3}
    spectra = []
    for p in (params, other):
        full = hessian(relu_loss, p, batch)
        both = (matrix(congruence(full, perturbation.element())), matrix(full))
        spectra.append([np.linalg.eigvalsh(m) for m in both])
    np.testing.assert_allclose(spectra[0][0], spectra[1][0], rtol=1e-9, atol=1e-9)
    assert abs(spectra[0][1][-1] / spectra[1][1][-1] - 1) > 0.5


def test_preconditioned_has_the_eigenvalues_of_the_quotient(x64, strict):
    params, batch = awkward_net()
    p = jax.tree.map(lambda x: jnp.abs(x) + 0.1, params)
    found = matrix(preconditioned(hessian(awkward_loss, params, batch), p))
    full, t = dense(awkward_loss, params, batch), np.diag(1 / np.sqrt(flat(p)))
    np.testing.assert_allclose(found, t @ full @ t, atol=1e-12)
    left = np.linalg.eigvals(np.diag(1 / flat(p)) @ full)
    np.testing.assert_allclose(np.sort(left.real), np.linalg.eigvalsh(found), atol=1e-7)


# What a user can get wrong.

FULL = {"a": jnp.ones(3), "b": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda o: layers(FULL), "^layers: the first argument must be an operator"),
        (lambda o: layers(o, ["c"]), "no leaf is named 'c'"),
        (lambda o: layers(o, ["b/*", "*/bias"]), "'b/bias' is in the groups 'b/.' and './bias'"),
        (lambda o: block_diagonal(o, ["b/*"]), "^block_diagonal: no group has the leaf 'a'"),
        (lambda o: masked(o, {"a": jnp.ones(3)}), "^masked: mask .*'b/bias' is missing"),
        (lambda o: masked(o, {**FULL, "a": jnp.ones(2)}), r"'a' is float32\[2\] where"),
        (lambda o: congruence(o, {"a": jnp.ones(3)}), "^congruence: scale .*'b/bias' is missing"),
        (
            lambda o: congruence(o, {**FULL, "a": jnp.ones(2)}),
            r"'a' of scale has shape \(2,\), which does not broadcast against \(3,\)",
        ),
        (lambda o: congruence(o, {**FULL, "a": jnp.ones((3, 3))}), r"shape \(3, 3\)"),
        (lambda o: congruence(o, {**FULL, "a": jnp.arange(3)}), "'a' is int32"),
        (
            lambda o: preconditioned(o, {"a": jnp.ones(3)}),
            "^preconditioned: preconditioner .*is missing",
        ),
        (
            lambda o: preconditioned(o, {**FULL, "a": jnp.array([1.0, -1, 0])}),
            "^preconditioned: 'a' of preconditioner must be above 0 throughout; 2 of 3 fail",
        ),
        (lambda o: preconditioned(o, {**FULL, "a": jnp.array(jnp.nan)}), "throughout; 1 of 1 fail"),
        (
            lambda o: congruence(o, {**FULL, "a": jnp.array([1.0, jnp.nan, 3])}),
            "^congruence: 'a' of scale may hold no NaN; 1 of 3 fail",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(UserError, match=message):
        call(algebra.Scaled(Diagonal(FULL), 1.0))


def test_preconditioners_may_be_infinite_or_traced():
    """Of an infinite one nothing is left; in a trace, one that is not traced is refused as well."""

    @jax.jit
    def apply(p):
        return preconditioned(Diagonal(jnp.ones(2)), p) @ jnp.ones(2)

    np.testing.assert_array_equal(apply(jnp.array([jnp.inf, 4])), [0, 0.25])
    bad = -jnp.ones(2)
    with pytest.raises(UserError, match="2 of 2 fail"):
        jax.jit(lambda: apply.__wrapped__(bad))()


def test_a_rule_needs_the_parameters():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), FULL)
    with pytest.raises(UserError, match="needs the values of the parameters"):
        congruence(Diagonal(shapes), perturbation.element())
