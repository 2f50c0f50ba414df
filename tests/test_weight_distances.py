"""Distance and angle of two models as points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.metrics import weights


def drawn(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {"w": scale * rng.normal(size=(5, 7)), "b": scale * rng.normal(size=3)}


def flat(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def test_they_are_those_of_the_flat_vectors():
    a, b = drawn(0), drawn(1)
    x, y = flat(a), flat(b)
    assert weights.distance(a, b) == pytest.approx(np.linalg.norm(x - y), rel=1e-14)
    cosine = x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    assert weights.cosine_similarity(a, b) == pytest.approx(cosine, rel=1e-12)
    assert weights.distance(a, a) == 0 and weights.cosine_similarity(a, a) == pytest.approx(1)
    opposite = jax.tree.map(np.negative, a)
    assert weights.cosine_similarity(a, opposite) == pytest.approx(-1)
    assert math.isnan(weights.cosine_similarity(a, jax.tree.map(np.zeros_like, a)))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_that_no_float_holds(scale):
    ones, others = (
        weights.distance(drawn(0, s), drawn(1, s)) / s for s in (1.0, scale)
    )  # fmt: skip
    assert ones == pytest.approx(others, rel=1e-12)
    one, other = (weights.cosine_similarity(drawn(0, s), drawn(1, s)) for s in (1.0, scale))
    assert one == pytest.approx(other, rel=1e-12)


def test_a_shorter_type_is_compared_by_its_values():
    a = jax.tree.map(jnp.float32, drawn(0))
    short = jax.tree.map(jnp.bfloat16, a)
    rounding = float(jnp.finfo(jnp.bfloat16).eps) / 2
    found = weights.distance(a, short)
    assert 0 < found <= rounding * np.linalg.norm(flat(a).astype(np.float64))


def test_what_is_refused():
    a = drawn(0)
    broken = a | {"b": np.full(3, np.nan)}
    for call, said in (
        (lambda: weights.distance(a, {"w": a["w"]}), "distance: b must have the tree structure of"),
        (lambda: weights.distance(a, a | {"b": np.ones(4)}), r"'b' is float64\[4\] where a has"),
        (lambda: weights.cosine_similarity(a, broken), "cosine_similarity: a leaf of b is not fin"),
        (lambda: weights.distance(a, a | {"b": np.arange(3)}), "every leaf of b must be an array"),
        (lambda: weights.distance({}, {}), "a holds no array at all"),
        (lambda: jax.jit(weights.distance)(a, a), "outside of jit"),
    ):
        with pytest.raises(UserError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
