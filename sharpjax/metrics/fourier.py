"""Fourier measures of networks that learn arithmetic modulo p (arXiv 2301.05217, 2301.02679).

These are pure functions of the arrays of one model; `jax.vmap` maps them over a population.
Energies and masks are indexed by frequency, from 0 (the constant) to p // 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sharpjax.errors import UserError, whole_number


class Basis(NamedTuple):
    """The real Fourier basis of functions on 0 to p - 1.

    Attributes:
        rows: float64 [p, p], orthonormal: the constant, then cos and sin of each frequency. For
            even p the last row is cos(pi x) = (-1)^x alone, since its sine is 0 everywhere.
        frequency: int [p], the frequency of each row.
    """

    rows: np.ndarray
    frequency: np.ndarray


def basis(modulus: int) -> Basis:
    """The basis for p = `modulus`, on the host.

    Raises:
        UserError: `modulus` is not a positive integer.

    >>> basis(4).frequency.tolist(), basis(5).frequency.tolist()
    ([0, 1, 1, 2], [0, 1, 1, 2, 2])
    """
    p = whole_number("fourier.basis", "modulus", modulus)
    frequency = np.arange(1, p + 1) // 2
    sine = np.arange(p) % 2 == 0
    # Take the remainder first, so that angles are small.
    angle = np.outer(frequency, np.arange(p)) % p * (2 * np.pi / p)
    rows = np.where(sine[:, None] & (frequency > 0)[:, None], np.sin(angle), np.cos(angle))
    return Basis(rows / np.linalg.norm(rows, axis=1, keepdims=True), frequency)


def transform(values: jax.Array) -> jax.Array:
    """Coefficients in the basis along axis 0, [p, ...] to [p, ...]. Orthogonal: keeps norms."""
    rows = jnp.asarray(basis(len(values)).rows, values.dtype)
    return jnp.tensordot(rows, values, 1, precision="highest")


def energy(values: jax.Array) -> jax.Array:
    """Squared coefficients summed by frequency, [p, ...] to [p // 2 + 1, ...]; cost p^2 per column.

    Leave out the rows of an embedding table beyond the p numbers: `energy(table[:p])`.

    >>> wave = jnp.cos(2 * jnp.pi * 2 / 7 * jnp.arange(7))
    >>> [round(float(e), 3) for e in energy(wave)]  # 7 / 2, all at frequency 2
    [0.0, 0.0, 3.5, 0.0]
    """
    squares = jnp.square(transform(values))
    frequency = basis(len(values)).frequency
    return jax.ops.segment_sum(squares, frequency, num_segments=len(values) // 2 + 1)


def concentration(energies: jax.Array, num: int) -> jax.Array:
    """The share of the energy, without the constant, in the `num` frequencies of most energy.

    Args:
        energies: [p // 2 + 1], of all columns together.
        num: number of frequencies. Static.

    Raises:
        UserError: `num` is more than the number of frequencies above 0, or less than 1.

    >>> print(concentration(jnp.array([9.0, 1.0, 2.0, 1.0]), 1))
    0.5
    """
    num = whole_number("fourier.concentration", "num", num)
    waves = energies[1:]
    if num > waves.size:
        raise UserError(f"fourier.concentration: num={num}; there are {waves.size} frequencies.")
    return jnp.sum(jax.lax.top_k(waves, num)[0]) / jnp.sum(waves)


def inverse_participation_ratio(energies: jax.Array) -> jax.Array:
    """sum_k (E_k / sum E)^2 over axis 0, without the constant. It is 1 if one frequency has all the
    energy, and 1 / K if K frequencies share it equally (arXiv 2301.02679, with r = 2 and the sine
    and cosine of a frequency together).

    >>> inverse_participation_ratio(jnp.array([[5.0, 5.0], [1.0, 0.0], [1.0, 2.0]])).tolist()
    [0.5, 1.0]
    """
    waves = energies[1:]
    return jnp.sum(jnp.square(waves), axis=0) / jnp.square(jnp.sum(waves, axis=0))


def gini(energies: jax.Array) -> jax.Array:
    """The Gini coefficient of the energies of K frequencies over axis 0, without the constant. It
    is 0 if all have the same energy, and 1 - 1 / K if one has all of it.

    >>> gini(jnp.array([[5.0, 5.0], [1.0, 0.0], [1.0, 2.0]])).tolist()
    [0.0, 0.5]
    """
    waves = jnp.sort(energies[1:], axis=0)
    k = waves.shape[0]
    weight = (2 * jnp.arange(1, k + 1, dtype=waves.dtype) - (k + 1)) / k
    return jnp.tensordot(weight, waves, 1, precision="highest") / jnp.sum(waves, axis=0)


def key_frequencies(energies: jax.Array, share: float = 0.9) -> jax.Array:
    """The smallest set of frequencies that holds `share` of the energy without the constant.

    Args:
        energies: [p // 2 + 1], of all columns together.
        share: above 0 and at most 1.

    Returns:
        bool [p // 2 + 1]; the constant is never one of them.

    Raises:
        UserError: `share` is not in (0, 1].

    >>> key_frequencies(jnp.array([9.0, 0.5, 6.0, 3.0, 0.5])).tolist()
    [False, False, True, True, False]
    """
    if not 0 < share <= 1:
        raise UserError(f"fourier.key_frequencies: share={share}; give a number in (0, 1].")
    waves = energies[1:]
    order = jnp.argsort(-waves)
    before = jnp.cumsum(waves[order]) - waves[order]
    needed = before < share * jnp.sum(waves)
    return jnp.zeros(energies.shape, bool).at[1 + order].set(needed)


def explained_by_frequency(activations: jax.Array) -> jax.Array:
    """How much of a neuron's variation over all pairs (a, b) each frequency explains.

    Activations are expanded in products f(a) g(b) of basis functions, without the constant 1 x 1.
    The result for frequency k is the share of the squared coefficients with f and g in
    {1, cos_k, sin_k}. It is largest at the neuron's own frequency. Cost: 2 p^3 per neuron.

    Args:
        activations: [p, p, ...], with the axes of a and b first.

    Returns:
        [p // 2 + 1, ...]; 0 for frequency 0.
    """
    p = activations.shape[0]
    first = transform(activations)
    squares = jnp.square(jnp.moveaxis(transform(jnp.moveaxis(first, 1, 0)), 1, 0))
    squares = squares.at[0, 0].set(0)
    frequency = basis(p).frequency
    # Indicator of the rows of each frequency; the constant counts for every frequency.
    of = (np.arange(p // 2 + 1)[:, None] == frequency) | (frequency == 0)
    indicator = jnp.asarray(of, squares.dtype)
    explained = jnp.einsum("ki,ij...,kj->k...", indicator, squares, indicator, precision="highest")
    return explained / jnp.expand_dims(jnp.sum(squares, axis=(0, 1)), 0)


def restricted_loss(
    logits: jax.Array,
    answer: jax.Array,
    keep: jax.Array,
    *,
    modulus: int,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of logits reduced to their mean and to functions of the answer at some
    frequencies.

    For addition, the logits keep only their components along cos(w (a + b)) and sin(w (a + b)), and
    their mean over all pairs as a bias (arXiv 2301.05217). In general the logits are projected on
    functions of the answer. The projection is orthogonal if all answers are equally frequent, as
    for '+', '-', '/'.

    Args:
        logits: [N, K], of all equations of a table.
        answer: int [N], from 0 to p - 1: also the labels.
        keep: bool [p // 2 + 1], as returned by `key_frequencies`.
        modulus: p. Static.
        weight: [N], weights of the equations in the mean, such as 1 for the training set; None: all
            equal. The projection always uses all equations.

    Returns:
        a scalar. Cost: N K + 2 p^2 K.
    """
    part = _functions_of_answer(logits, answer, keep, modulus, mean=True)
    return _cross_entropy(part, answer, weight)


def excluded_loss(
    logits: jax.Array,
    answer: jax.Array,
    drop: jax.Array,
    *,
    modulus: int,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of the logits minus their functions of the answer at some frequencies.

    It shows how much of a network is memorisation. On training data it falls while the network
    memorises, and rises to log p and more as memorisation gives way to the frequencies (arXiv
    2301.05217). The mean of the logits stays. Arguments and cost are those of `restricted_loss`,
    with `drop` in place of `keep`.
    """
    part = _functions_of_answer(logits, answer, drop, modulus, mean=False)
    return _cross_entropy(logits - part, answer, weight)


def _functions_of_answer(logits, answer, frequencies, modulus, *, mean):
    rows, frequency = basis(modulus)
    rows = jnp.asarray(rows, logits.dtype)
    chosen = jnp.asarray(frequencies).at[0].set(mean)[frequency].astype(logits.dtype)
    count = jax.ops.segment_sum(jnp.ones_like(logits[:, 0]), answer, num_segments=modulus)
    total = jax.ops.segment_sum(logits, answer, num_segments=modulus)
    by_answer = total / jnp.expand_dims(jnp.maximum(count, 1), 1)
    coefficients = jnp.expand_dims(chosen, 1) * jnp.dot(rows, by_answer, precision="highest")
    return jnp.dot(rows.T, coefficients, precision="highest")[answer]


def _cross_entropy(logits, label, weight):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return jnp.mean(losses) if weight is None else jnp.sum(weight * losses) / jnp.sum(weight)
