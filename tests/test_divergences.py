"""Divergences of distillation: each by hand, its slope in closed form, its limits and its edges."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from scipy import special
from scipy.spatial.distance import jensenshannon

from sharpjax import losses
from sharpjax.errors import UserError
from sharpjax.losses import Objective, Teacher, divergences

B, K = 6, 5
WITH_TEMPERATURE = tuple(divergences._OF_TEMPERATURE)
SOFT = sorted({*divergences.DIVERGENCES} - {"hard"})
RNG = np.random.default_rng(0)
Z, TARGETS = RNG.normal(size=(2, B, K)) * 2


def by_hand(kind, z, t, T):
    """In numpy and scipy."""
    q, p = special.softmax(z / T, 1), special.softmax(t / T, 1)
    match kind:
        case "kl":
            return T**2 * special.rel_entr(p, q).sum() / len(z)
        case "reverse-kl":
            return T**2 * special.rel_entr(q, p).sum() / len(z)
        case "jensen-shannon":
            return T**2 * np.mean(jensenshannon(p, q, axis=1) ** 2)
        case "logits":
            return ((z - t) ** 2).sum() / 2 / len(z)
        case "centred-logits":
            return z.shape[1] * np.var(z - t, axis=1).sum() / 2 / len(z)
        case "hard":
            return -np.log(special.softmax(z, 1)[np.arange(len(z)), t.argmax(1)]).mean()
        case "standardised":
            z, t = ((x - x.mean(1)[:, None]) / x.std(1, ddof=1)[:, None] for x in (z, t))
            return by_hand("kl", z, t, T)
        case "dist":
            rows, columns = (
                [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(*pair, strict=True)]
                for pair in ((q, p), (q.T, p.T))
            )
            return T**2 * (np.mean(rows) + np.mean(columns))


@pytest.mark.parametrize("kind", divergences.DIVERGENCES)
def test_each_is_what_it_says(kind, x64, strict):
    z, t = jnp.asarray(Z), jnp.asarray(TARGETS)
    value = divergences.divergence(kind, z, t, 2.0)
    np.testing.assert_allclose(value, by_hand(kind, Z, TARGETS, 2.0), rtol=1e-12)
    other = divergences.divergence(kind, z, t, 3.0)
    assert (other != value) == (kind in WITH_TEMPERATURE)
    # Nothing but 'logits' sees what is added to all outputs of an example.
    moved = divergences.divergence(kind, z + jnp.arange(1.0, B + 1)[:, None], t, 2.0)
    assert (abs(moved - value) > 1e-3) == (kind == "logits")


def test_slopes_in_closed_form(x64, strict):
    z, t, T = jnp.asarray(Z), jnp.asarray(TARGETS), 2.0
    q, p = special.softmax(Z / T, 1), special.softmax(TARGETS / T, 1)
    m, K_1 = (p + q) / 2, {"axis": 1, "keepdims": True}

    def of_entropy(log, factor):
        return factor * T * q * (log - np.sum(q * log, **K_1)) / B

    first = np.eye(K)[TARGETS.argmax(1)]
    apart = Z - TARGETS
    wanted = {
        "kl": T * (q - p) / B,
        "reverse-kl": of_entropy(np.log(q / p), 1),
        "jensen-shannon": of_entropy(np.log(q / m), 1 / 2),
        "logits": apart / B,
        "centred-logits": (apart - apart.mean(**K_1)) / B,
        "hard": (special.softmax(Z, 1) - first) / B,
    }
    for kind, slope in wanted.items():
        found = jax.grad(divergences.divergence, argnums=1)(kind, z, t, T)
        np.testing.assert_allclose(found, slope, atol=1e-14)


def test_cross_entropy_has_the_slope_of_the_divergence(x64, strict):
    z, t, T = jnp.asarray(Z), jnp.asarray(TARGETS), 3.0

    def entropy(z):
        return T**2 * jnp.mean(optax.softmax_cross_entropy(z / T, jax.nn.softmax(t / T)))

    value, slope = jax.value_and_grad(entropy)(z)
    found = jax.grad(losses.distillation)(z, t, T)
    np.testing.assert_allclose(found, slope, atol=1e-14)
    assert value > losses.distillation(z, t, T)


@pytest.mark.parametrize(
    ("kind", "share"), [("kl", 1), ("reverse-kl", 1), ("jensen-shannon", 1 / 4)]
)
def test_high_temperatures_compare_centred_outputs(kind, share, x64):
    z, t = jnp.asarray(Z), jnp.asarray(TARGETS)
    limit = share * losses.logit_distillation(z, t, centred=True) / K
    errors = [abs(divergences.divergence(kind, z, t, T) / limit - 1) for T in (1e3, 2e3)]
    # Of the order of 1/T or better; rounding is far below 1e-8.
    assert errors[0] < np.abs(np.array([Z, TARGETS])).max() / 1e3
    assert errors[1] < 0.6 * errors[0] + 1e-8


@pytest.mark.parametrize("kind", ["kl", "reverse-kl", "jensen-shannon"])
def test_high_temperatures_in_float32(kind, x64):
    """The error is of the order of T eps, not T^2 eps, which is 0.1 here.

    The two log-softmaxes and the terms have some ten operations on numbers of the order of 1, so d
    = log p - log q has an error of C eps, C = 16. As KL is sum_k p_k d_k^2 / 2 nearly, its error is
    at most C eps sqrt(2 KL), by Cauchy-Schwarz. The slope T p d / B has an error of T C eps / B.
    """
    T, error = 1000.0, 16 * np.finfo(np.float32).eps
    z, t = (jnp.asarray(x, jnp.float32) for x in (Z, TARGETS))
    fn = jax.value_and_grad(divergences.divergence, argnums=1)
    value, slope = fn(kind, z, t, T)
    want, exact = fn(kind, z.astype(float), t.astype(float), T)
    assert value.dtype == jnp.float32
    assert abs(value - want) < T * error * (2 * want) ** 0.5
    np.testing.assert_allclose(slope, exact, rtol=0, atol=T * error / B)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("kind", divergences.DIVERGENCES)
def test_16_bit_outputs_are_compared_in_float32(kind, dtype):
    """The same numbers; in float16 T^2 overflows, and so do squares of outputs."""
    z, t = (jnp.asarray(200 * x, dtype) for x in (Z, TARGETS))
    wide = divergences.divergence(kind, z.astype(jnp.float32), t.astype(jnp.float32), 300.0)
    found = divergences.divergence(kind, z, t, 300.0)
    assert found == wide > 0 and found.dtype == jnp.float32


@pytest.mark.parametrize("kind", SOFT)
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_slope(kind, x64):
    z = jnp.asarray(Z)
    value, slope = jax.value_and_grad(divergences.divergence, argnums=1)(kind, z, z, 2.0)
    other = jax.grad(divergences.divergence, argnums=1)(kind, z, jnp.asarray(TARGETS), 2.0)
    assert abs(value) < 1e-14 and np.max(np.abs(slope)) < 1e-13 * np.max(np.abs(other)) + 1e-15
    apart = divergences.divergence(kind, z, jnp.asarray(TARGETS), 2.0)
    assert apart > 1e-3


class Linear(linen.Module):
    num_classes: int = K

    @linen.compact
    def __call__(self, image, *, train=False):
        return linen.Dense(self.num_classes, param_dtype=jnp.float64)(image.reshape(B, -1))


def a_batch():
    rng = np.random.default_rng(1)
    image, label = rng.normal(size=(B, 2, 2, 1)), rng.integers(0, K, B)
    return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


@pytest.mark.parametrize("kind", divergences.DIVERGENCES)
def test_a_teacher_of_any_divergence_gets_no_gradient(kind, x64):
    batch, model = a_batch(), Linear()
    params, taught = (model.init(jax.random.key(i), batch["image"])["params"] for i in (0, 1))
    teacher = Teacher(
        kind="model", weight=0.5, temperature=2.0, model=model, params=taught, divergence=kind
    )

    def loss(teacher, params):
        return Objective(model, teacher=teacher)(params, batch)[0]

    value, (of_teacher, own) = jax.value_and_grad(loss, argnums=(0, 1))(teacher, params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_teacher.params))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    z = model.apply({"params": params}, batch["image"])
    t = model.apply({"params": taught}, batch["image"])
    labels = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, batch["label"]))
    want = by_hand(kind, np.asarray(z), np.asarray(t), 2.0) / 2 + labels / 2
    np.testing.assert_allclose(value, want, rtol=1e-12)


def test_a_constant_teacher_is_optax_smoothing(x64, strict):
    z, label, weight = jnp.asarray(Z), jnp.arange(B) % K, 0.3
    teacher = Teacher(kind="constant", weight=weight, temperature=1.0)

    def taught(z):
        hard = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, label))
        return weight * teacher(z, {}) + (1 - weight) * hard

    def smoothed(z):
        soft = optax.smooth_labels(jax.nn.one_hot(label, K, dtype=z.dtype), weight)
        return jnp.mean(optax.softmax_cross_entropy(z, soft))

    (value, slope), (want, expected) = (jax.value_and_grad(f)(z) for f in (taught, smoothed))
    np.testing.assert_allclose(value, want - weight * math.log(K), rtol=1e-13)
    np.testing.assert_allclose(slope, expected, atol=1e-15)


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_noise_teaches_all_classes_alike(kind, x64):
    teacher = Teacher(kind=kind, weight=1.0, temperature=1.0, key=jax.random.key(5))
    p = special.softmax(np.asarray(teacher.logits({}, jnp.zeros((4000, K)))), 1)
    error = p.std(0, ddof=1) / math.sqrt(len(p))
    assert np.all(np.abs(p.mean(0) - 1 / K) < 5 * error)


# Outputs that are probabilities.


def test_probabilities_pass_a_second_softmax(x64):
    batch, z = a_batch(), jnp.asarray(Z)
    how = {"kind": "constant", "weight": 1.0, "temperature": 3.0}
    prior = jnp.asarray([0.9, 0.025, 0.025, 0.025, 0.025])
    found = Teacher(**how, prior=prior, inputs="probabilities")(z, batch)
    once = np.broadcast_to(prior, (B, K))
    want = by_hand("kl", special.softmax(Z, 1), once, 3.0)
    np.testing.assert_allclose(found, want, rtol=1e-12)
    assert found < Teacher(**how, prior=prior)(z, batch)


# Edges.


def test_classes_that_a_teacher_excludes(x64):
    z, t = jnp.zeros((1, 3)), jnp.array([[0.0, -jnp.inf, 0.0]])
    assert losses.reverse_distillation(z, t, 1.0) == jnp.inf
    value, slope = jax.value_and_grad(losses.jensen_shannon_distillation)(z, t, 1.0)
    want = jensenshannon([1 / 3] * 3, [1 / 2, 0, 1 / 2]) ** 2
    np.testing.assert_allclose(value, want, rtol=1e-13)
    assert np.all(np.isfinite(slope)) and slope[0, 1] > 0 > slope[0, 0]


@pytest.mark.parametrize("kind", ["kl", "jensen-shannon"])
def test_a_class_that_both_exclude_is_as_if_it_were_not_there(kind, x64):
    z, t = jnp.array([[0.5, -jnp.inf, 0.0]]), jnp.array([[0.0, -jnp.inf, 2.0]])
    own = jax.value_and_grad(lambda z, t: divergences.divergence(kind, z, t, 2.0))
    (value, slope), (want, at) = own(z, t), own(z[:, ::2], t[:, ::2])
    np.testing.assert_allclose(value, want, rtol=1e-13)
    np.testing.assert_allclose(slope[:, ::2], at, rtol=1e-13)
    assert slope[0, 1] == 0


def test_outputs_that_do_not_vary(x64):
    """Their scale and their correlations are not there: no loss of it, and no slope that is NaN."""
    for constant in (0.0, 0.1, 1e8 / 3):
        z, t = jnp.full((B, K), constant), jnp.asarray(TARGETS)
        value, slope = jax.value_and_grad(losses.standardised_distillation)(z, t, 2.0)
        want = by_hand("standardised", Z, TARGETS, 2.0)
        assert 0 < value != want and not np.any(slope)
        value, slope = jax.value_and_grad(losses.dist_distillation)(z, t, 2.0)
        np.testing.assert_allclose(value, 2.0**2 * 2, rtol=1e-14)
        assert not np.any(slope)
    one = losses.dist_distillation(jnp.asarray(Z[:1]), jnp.asarray(Z[:1]), 1.0)
    np.testing.assert_allclose(one, 1.0, rtol=1e-14)


@pytest.mark.parametrize("kind", divergences.DIVERGENCES)
def test_a_teacher_that_is_nan_is_not_hidden(kind):
    t = jnp.asarray(TARGETS, jnp.float32).at[2, 1].set(jnp.nan)
    assert jnp.isnan(divergences.divergence(kind, jnp.asarray(Z, jnp.float32), t, 2.0))


def test_the_usual_divergence_is_the_one_of_before():
    """The default, to the bit."""
    z, t = (jnp.asarray(x, jnp.float32) for x in (Z, TARGETS))
    teacher = Teacher(kind="constant", weight=1.0, temperature=2.0, prior=jax.nn.softmax(t[0]))
    rows = jnp.broadcast_to(jnp.log(teacher.prior), (B, K))
    assert teacher(z, {}) == losses.distillation(z, rows, 2.0)
    assert (teacher.divergence, teacher.inputs) == ("kl", "logits")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"divergence": "reverse_kl"}, "unknown divergence .* did you mean 'reverse-kl'"),
        ({"inputs": "probability"}, "unknown inputs .* did you mean 'probabilities'"),
    ],
)
def test_what_is_unknown_is_refused(fields, said):
    make = functools.partial(Teacher, kind="uniform", weight=0.5, temperature=1.0)
    with pytest.raises(UserError, match=said):
        make(**fields)
    with pytest.raises(UserError, match=said):
        losses.check_teacher("uniform", weight=0.5, temperature=1.0, **fields)


@pytest.mark.parametrize("kind", divergences.DIVERGENCES)
@pytest.mark.parametrize("shape", [(5,), (2, 4, 5)])
def test_outputs_without_one_row_for_each_example_are_refused(kind, shape):
    """They would be divided by the length of the wrong axis."""
    with pytest.raises(UserError, match=r"the outputs are \[.*give \[B, K\]"):
        divergences.divergence(kind, jnp.zeros(shape), jnp.zeros(shape), 2.0)


@pytest.mark.parametrize("kind", divergences.DIVERGENCES)
@pytest.mark.parametrize("shape", [(4, 7), (3, 10), (1, 10), (4, 1)])
def test_outputs_of_other_classes_or_examples_are_refused(kind, shape):
    """Also those that would be broadcast, or whose first choices are classes here too."""
    z, t = jnp.zeros((4, 10)), jnp.zeros(shape)
    with pytest.raises(UserError, match=r"outputs are \[4, 10\] and the teacher's \["):
        divergences.divergence(kind, z, t, 2.0)
