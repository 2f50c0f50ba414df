"""Fourier measures and spectra of weights on arrays whose answers are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.data import modular
from sharpjax.errors import UserError
from sharpjax.metrics import fourier, spectra
from sharpjax.nn import quadratic

# One program each, not one for every operation.
energy = jax.jit(fourier.energy)
concentration = jax.jit(fourier.concentration, static_argnums=1)
participation = jax.jit(fourier.inverse_participation_ratio)
gini = jax.jit(fourier.gini)
key_frequencies = jax.jit(fourier.key_frequencies, static_argnums=1)
explained_by_frequency = jax.jit(fourier.explained_by_frequency)
effective_rank, stable_rank = jax.jit(spectra.effective_rank), jax.jit(spectra.stable_rank)


def wave(modulus, frequency, phase=0.0):
    return np.cos(2 * np.pi * frequency * np.arange(modulus) / modulus + phase)


def mask(modulus, *frequencies):
    return np.isin(np.arange(modulus // 2 + 1), frequencies)


# The basis.


@pytest.mark.parametrize("modulus", [1, 2, 3, 12, 13, 97])
def test_the_basis_is_orthonormal_for_odd_and_even_moduli(modulus):
    rows, frequency = fourier.basis(modulus)
    np.testing.assert_allclose(rows @ rows.T, np.eye(modulus), atol=1e-13)
    assert frequency.max() == modulus // 2
    for row, k in zip(rows, frequency, strict=True):  # a combination of cos_k and sin_k
        spectrum = np.abs(np.fft.rfft(row))
        assert spectrum.argmax() == k
        np.testing.assert_allclose(np.delete(spectrum, k), 0, atol=1e-12)


@pytest.mark.parametrize("modulus", [12, 13])
def test_energies_are_those_of_the_fast_fourier_transform(modulus, x64, strict):
    values = np.random.default_rng(0).normal(size=(modulus, 3))
    power = np.abs(np.fft.rfft(values, axis=0)) ** 2 / modulus
    power[1 : (modulus + 1) // 2] *= 2  # k and -k
    np.testing.assert_allclose(energy(values), power, rtol=1e-11)


# Where the energy is.


def test_a_circle_has_one_key_frequency(x64, strict):
    """An embedding whose every column is a wave of one frequency, however scaled and shifted."""
    modulus = 12
    rng = np.random.default_rng(0)
    phases, scales = rng.uniform(0, 6, size=(2, 8))
    columns = [c * wave(modulus, 5, phase) + 7 for c, phase in zip(scales, phases, strict=True)]
    each = energy(np.stack(columns, 1))
    whole = np.sum(each, 1)
    np.testing.assert_array_equal(key_frequencies(whole, 0.999), mask(modulus, 5))
    np.testing.assert_allclose(concentration(whole, 1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(participation(each), 1.0, rtol=1e-12)
    np.testing.assert_allclose(gini(whole), 1 - 1 / (modulus // 2), rtol=1e-12)


def test_measures_of_equal_and_unequal_energies(x64, strict):
    flat = np.ones(11)  # a constant and ten frequencies
    np.testing.assert_allclose(participation(flat), 1 / 10)
    np.testing.assert_allclose(concentration(flat, 3), 0.3)
    np.testing.assert_allclose(gini(flat), 0.0, atol=1e-15)
    assert np.sum(key_frequencies(flat, 0.45)) == 5
    energies = np.random.default_rng(0).exponential(size=11)
    waves = np.asarray(energies[1:])
    differences = np.abs(waves[:, None] - waves).mean() / (2 * waves.mean())
    np.testing.assert_allclose(gini(energies), differences, rtol=1e-12)
    keys = np.asarray(key_frequencies(energies, 0.8))
    held = waves[keys[1:]]
    assert held.sum() >= 0.8 * waves.sum() > held.sum() - held.min()
    assert not keys[0] and held.min() >= waves[~keys[1:]].max()


def test_a_delta_has_all_frequencies_alike(x64, strict):
    energies = energy(np.eye(13))
    np.testing.assert_allclose(participation(energies), 1 / 6, rtol=1e-12)


@pytest.mark.parametrize("modulus", [8, 7])
def test_neurons_of_one_frequency_are_explained_by_it(modulus, x64, strict):
    a, b = wave(modulus, 2), wave(modulus, 2, 0.7)
    pure = 3 + np.add.outer(2 * a, b) + np.multiply.outer(a, b)  # 1, f(a), g(b), f(a) g(b)
    mixed = np.multiply.outer(a, wave(modulus, 3, 0.3))  # two frequencies
    lone = np.add.outer(np.zeros(modulus), wave(modulus, 3))
    neurons = np.stack([pure, mixed, lone, pure + 2 * lone], -1)
    explained = explained_by_frequency(neurons)
    assert explained.shape == (modulus // 2 + 1, 4) and not np.any(explained[0])
    np.testing.assert_allclose(explained[2, :3], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(explained[3, :3], [0, 0, 1], atol=1e-12)
    weight = 4 * np.sum(lone**2)
    share = weight / (weight + np.sum((pure - pure.mean()) ** 2))
    np.testing.assert_allclose(explained[2:4, 3], [1 - share, share], rtol=1e-12)


# What the logits say of the answer.


def logits_of(operation, modulus, frequencies, size=3.0):
    """sum_w size cos(w (answer - q)), of all equations; and the answers."""
    answer = modular.table(operation, modulus=modulus).label
    numbers = np.arange(modulus)
    turns = np.multiply.outer(frequencies, np.subtract.outer(numbers, numbers))
    by_answer = size * np.cos(2 * np.pi * turns / modulus).sum(0)
    return by_answer[answer], answer


def cross_entropy(logits, label):
    logits = np.asarray(logits)
    normaliser = np.log(np.exp(logits).sum(1))
    return np.mean(normaliser - logits[np.arange(len(label)), label])


@functools.partial(jax.jit, static_argnames="modulus")
def both(logits, answer, keys, weight, *, modulus):
    arguments = {"modulus": modulus, "weight": weight}
    return (
        fourier.restricted_loss(logits, answer, keys, **arguments),
        fourier.excluded_loss(logits, answer, keys, **arguments),
    )


def restricted(logits, answer, keys, *, modulus, weight=None):
    return both(logits, answer, keys, weight, modulus=modulus)[0]


def excluded(logits, answer, keys, *, modulus, weight=None):
    return both(logits, answer, keys, weight, modulus=modulus)[1]


@pytest.mark.parametrize(("operation", "modulus"), [("/", 11), ("-", 12)])
def test_waves_of_the_answer_are_kept_whole_and_taken_away_whole(operation, modulus, x64, strict):
    logits, answer = logits_of(operation, modulus, [2, modulus // 2])
    keys = mask(modulus, 2, modulus // 2)
    loss = cross_entropy(logits, answer)
    assert loss < 1.0
    kept = restricted(logits, answer, keys, modulus=modulus)
    np.testing.assert_allclose(kept, loss, rtol=1e-12)
    gone = excluded(logits, answer, keys, modulus=modulus)
    np.testing.assert_allclose(gone, math.log(modulus), rtol=1e-12)

    one = mask(modulus, 2)
    only, _ = logits_of(operation, modulus, [2])
    np.testing.assert_allclose(
        restricted(logits, answer, one, modulus=modulus), cross_entropy(only, answer), rtol=1e-12
    )
    np.testing.assert_allclose(
        excluded(logits, answer, one, modulus=modulus),
        cross_entropy(logits - only, answer),
        rtol=1e-12,
    )


def test_the_bias_stays_and_memory_goes(x64, strict):
    """Mean logits survive both; what depends on the pair beyond its answer is not restricted's."""
    modulus = 11
    waves, answer = logits_of("+", modulus, [2])
    bias = np.random.default_rng(0).normal(size=modulus)
    pairs = modular.table("+", modulus=modulus).tokens
    memory = 5 * wave(modulus, 3)[pairs[:, :1]] * wave(modulus, 1)  # of a alone
    logits = waves + bias + memory
    keys = mask(modulus, 2)
    np.testing.assert_allclose(
        restricted(logits, answer, keys, modulus=modulus),
        cross_entropy(waves + bias, answer),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        excluded(logits, answer, keys, modulus=modulus),
        cross_entropy(bias + memory, answer),
        rtol=1e-12,
    )


def test_weights_choose_the_equations_of_the_mean(x64, strict):
    logits, answer = logits_of("+", 11, [2, 3])
    logits = logits + np.random.default_rng(0).normal(size=logits.shape)
    train = np.random.default_rng(1).random(121) < 0.5
    keys, weight = mask(11, 2), train.astype(float)
    lanes = jax.vmap(functools.partial(both, modulus=11), in_axes=(None, None, None, 0))
    of_each = lanes(logits, answer, keys, jnp.eye(121))[1]
    together = excluded(logits, answer, keys, modulus=11, weight=weight)
    np.testing.assert_allclose(together, np.mean(of_each[train]), rtol=1e-12)
    np.testing.assert_allclose(
        excluded(logits, answer, keys, modulus=11), np.mean(of_each), rtol=1e-12
    )


def test_the_solved_network_is_all_waves():
    """Of the exact weights every logit is one of the answer, and all frequencies have a share."""
    params = quadratic.addition(13)
    each = energy(params["left"]["embedding"])
    np.testing.assert_allclose(participation(each), 1.0, rtol=1e-5)
    assert np.bincount(np.argmax(each, 0)).tolist() == [0, 6, 6, 6, 6, 6, 6]
    tokens, answer = modular.table("+", modulus=13)
    model = quadratic.QuadraticMLP(13, width=36)
    logits = jax.jit(model.apply)({"params": params}, jnp.asarray(tokens))
    everything = np.ones(7, bool)
    np.testing.assert_allclose(
        excluded(logits, answer, everything, modulus=13), math.log(13), rtol=1e-5
    )
    np.testing.assert_allclose(restricted(logits, answer, everything, modulus=13), 0.0, atol=1e-5)


def test_a_population_is_measured_lane_by_lane(x64):
    tables = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 5)))
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 144, 14)))
    answer = jnp.asarray(modular.table("+", modulus=12).label)

    def measure(table, logits):
        keys = fourier.key_frequencies(jnp.sum(fourier.energy(table), 1), 0.5)
        return (
            keys,
            fourier.restricted_loss(logits, answer, keys, modulus=12),
            fourier.excluded_loss(logits, answer, keys, modulus=12),
            spectra.weight_norms({"a": table}),
            spectra.spectra({"a": table}),
        )

    lanes = jax.jit(jax.vmap(measure))(tables, logits)
    alone = jax.jit(measure)(tables[1], logits[1])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-11)
    jax.tree.map(lambda lane, one: close(lane[1], one), lanes, alone)


# Spectra.


def test_ranks_of_known_spectra(x64, strict):
    s = np.array([2.0, 2.0, 2.0, 0.0])
    np.testing.assert_allclose(effective_rank(s), 3.0, rtol=1e-12)
    np.testing.assert_allclose(stable_rank(s), 3.0, rtol=1e-12)
    s = np.array([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    np.testing.assert_allclose(effective_rank(s), math.exp(entropy), rtol=1e-12)
    np.testing.assert_allclose(stable_rank(s), 10 / 9, rtol=1e-12)
    np.testing.assert_allclose(effective_rank(7 * s), effective_rank(s))


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_factors_are_measured_as_their_product(shape, x64, strict):
    """Factors that are no SVD: not orthogonal, and of both signs."""
    rng = np.random.default_rng(0)
    factors = {"U": rng.normal(size=(shape[0], 3)), "s": np.array([1.0, -2.0, 0.5])}
    factors["Vt"] = rng.normal(size=(3, shape[1]))
    product = factors["U"] * factors["s"] @ factors["Vt"]
    expected = np.linalg.svd(product, compute_uv=False)
    tree = {"hidden": {"kernel": factors, "bias": np.ones(4)}, "head": product}
    norms, found = jax.jit(lambda tree: (spectra.weight_norms(tree), spectra.spectra(tree)))(tree)
    frobenius = np.linalg.norm(product)
    assert set(found) == {"hidden/kernel", "head"} and set(norms) == {
        "hidden/kernel",
        "hidden/bias",
        "head",
        "total",
    }
    np.testing.assert_allclose(found["hidden/kernel"], expected[:3], rtol=1e-12)
    np.testing.assert_allclose(found["head"][:3], expected[:3], rtol=1e-12)
    np.testing.assert_allclose(norms["hidden/kernel"], frobenius, rtol=1e-12)
    np.testing.assert_allclose(norms["hidden/bias"], 2.0)
    np.testing.assert_allclose(norms["total"], np.sqrt(2 * frobenius**2 + 4), rtol=1e-12)


def test_orthogonality_error_counts_both_sides(x64, strict):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))
    error = jax.jit(spectra.orthogonality_error)
    factors = {"U": q, "s": np.ones(3), "Vt": q.T}
    assert error(factors) < 1e-14
    factors["Vt"] = np.diag([2.0, 1.0, 1.0]) @ q.T  # one eigenvalue of 4 - 1
    np.testing.assert_allclose(error(factors), 3 / math.sqrt(6), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fourier.basis(0), "modulus must be a whole number >= 1"),
        (lambda: fourier.concentration(jnp.ones(4), 4), "num=4; there are 3 frequencies"),
        (lambda: fourier.concentration(jnp.ones(4), 0), "num must be a whole number"),
        (lambda: fourier.key_frequencies(jnp.ones(4), 0.0), "share=0.0; give a number in (0, 1]"),
        (lambda: spectra.spectra({"bias": jnp.ones(3)}), "params holds no matrix"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)
