"""Products with noise: what is certified is right, and no bound is below what can be seen of it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.geometry import Operator, Status, diagonal, frobenius, hessian, logdet, trace
from sharpjax.geometry import top_eigenpairs as top

SIZE, LEVELS = 120, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def _hash(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _draw(vector):
    """Numbers of mean 0 and variance 1 that are the same for the same vector."""
    place = jnp.arange(vector.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    bits = jax.lax.bitcast_convert_type(vector, jnp.uint32)
    seed = jnp.sum(_hash(bits ^ place), dtype=jnp.uint32)
    return 3**0.5 * (_hash(seed + place).astype(jnp.float32) * 2**-31 - 1)


def _anywhere(values, level, vector):
    """Noise of norm `level |A| |v|`, in all directions alike."""
    size = jnp.max(jnp.abs(values)) * jnp.linalg.norm(vector) / vector.size**0.5
    return values * vector + level * size * _draw(vector)


def _of_entries(values, level, vector):
    """Noise in each entry in proportion to it, as rounding has it."""
    return values * vector * (1 + level * _draw(vector))


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noisy(Operator):
    values: Any
    level: Any
    noise: Any = dataclasses.field(metadata={"static": True})

    @property
    def like(self):
        return self.values

    def linearize(self):
        return Partial(self.noise, self.values, self.level)


@functools.partial(jax.jit, static_argnames=("noise", "count", "options"))
def _solve(values, levels, noise, count, options):
    def one(level, key):
        return top(Noisy(values, level, noise), key=key, **dict(options))

    over_keys = jax.vmap(one, (None, 0))
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(over_keys, (0, None))(levels, keys)


def lanes(values, noise, levels=LEVELS, count=20, **options):
    """Results of shape (levels, starts)."""
    options = {"vectors": False, "max_products": 60} | options
    values, levels = jnp.asarray(values, jnp.float32), jnp.asarray(levels, jnp.float32)
    return jax.device_get(_solve(values, levels, noise, count, tuple(sorted(options.items()))))


def distances(found, values):
    return np.abs(np.expand_dims(found.values, -1) - np.asarray(values)).min(-1)


BULK = np.random.default_rng(0).uniform(-0.5, 0.5, SIZE)
SPECTRA = {
    "outliers": np.r_[4.0, 3.0, 2.5, 2.0, BULK[4:]],
    "pair": np.r_[1.0, 0.99, BULK[2:]],
    "decaying": 0.9 ** np.arange(SIZE),
}


@pytest.mark.parametrize("noise", [_anywhere, _of_entries], ids=lambda noise: noise.__name__)
@pytest.mark.parametrize(
    "options", [{"k": 3}, {"k": 3, "basis_size": 12}, {"basis_size": 0}], ids=str
)
def test_nothing_is_certified_far_from_an_eigenvalue(options, noise):
    """300 runs each, at noise of 1e-6 to 1e-2 of the operator."""
    outside = certified = 0
    for name, values in SPECTRA.items():
        found = lanes(values, noise, **options)
        off = distances(found, values)
        allowed = np.maximum(1e-3 * np.abs(found.values), 6e-6 * np.abs(values).max())
        assert not (found.converged & (off > allowed)).any(), name
        # What rounding alone does is certified: no bound is wider than it has to be.
        assert found.converged[:2].mean() > 0.75, name
        outside += (found.converged & (off > found.value_errors)).sum()
        certified += found.converged.sum()
    assert outside <= 0.01 * certified


def test_an_exhausted_space_of_one_cluster_is_known_to_the_noise():
    """All that there is to see has been seen, and still the noise is in it."""
    values = SPECTRA["outliers"][:40]
    for noise in (_anywhere, _of_entries):
        found = lanes(values, noise, (0.5,), 10, max_products=40, tol=1e-6)
        assert (found.num_products == 40).all()
        assert not found.converged.any() and (found.status == Status.NOT_CONVERGED).all()
        assert (distances(found, values) <= found.value_errors).all()


# A loss whose terms cancel.


def _cancelling(params, batch):
    """Large multiples of one square, of both signs, which differ in the order of sums alone."""
    one, other, factor = batch
    squares = jnp.mean((one @ params) ** 2) - jnp.mean((other @ params) ** 2)
    return jnp.mean(factor) * squares + jnp.sum(params[:4] ** 2 * jnp.arange(4, 0, -1)) / 2


@pytest.mark.parametrize("factor", [1e4, 1e5])
@pytest.mark.parametrize("options", [{}, {"basis_size": 0, "vectors": False}], ids=str)
def test_a_loss_with_cancellation_is_not_certified_beyond_its_noise(options, factor):
    rows = np.random.default_rng(0).normal(size=(64, SIZE)).astype(np.float32)
    batch = (jnp.asarray(rows), jnp.asarray(rows[::-1].copy()), jnp.full(64, factor))
    operator = hessian(_cancelling, jnp.ones(SIZE), batch)
    for seed in range(6):
        found = top(operator, key=jax.random.key(seed), tol=1e-2, **options)
        off = distances(found, np.r_[np.arange(5.0)])
        assert (off <= found.value_errors).all()
        assert (~found.converged | (off <= 1e-2 * np.abs(found.values))).all()


# Sums over the spectrum. Of 24 parameters the basis soon is the whole space: nothing is left to
# probe, and the noise of the products is all there is of an error.

FEW, RUNS = 24, 100
NARROW = np.random.default_rng(0).uniform(-0.02, 0.02, FEW - 1)
SUMS = np.stack([np.r_[1.0, NARROW], 0.7 ** np.arange(FEW), np.linspace(0.5, 1, FEW)])
SUMS = SUMS.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    "solve, spectra, truth",
    [
        (trace, SUMS, lambda x: x.sum(1)),
        (frobenius, SUMS, lambda x: np.sqrt(np.square(x).sum(1))),
        (diagonal, SUMS, lambda x: np.sqrt(np.square(x).sum(1))),
        (logdet, SUMS[2:], lambda x: np.log(x).sum(1)),
    ],
    ids=["trace", "frobenius", "diagonal", "logdet"],
)
def test_the_noise_of_products_is_in_the_standard_errors(solve, spectra, truth):
    """1.96 of them cover in .9 of runs, less three standard deviations of a mean of 100."""
    levels = jnp.asarray([0.0, 1e-2], jnp.float32)
    keys = jax.random.split(jax.random.key(1), RUNS)

    def one(values, level, key):
        found = solve(Noisy(values, level, _anywhere), key=key)
        if solve is diagonal:
            return jnp.linalg.norm(found.value - values), found.error, found.status == Status.OK
        return found.value, found.standard_error, found.status == Status.OK

    over_keys = jax.vmap(one, (None, None, 0))
    over_levels = jax.vmap(over_keys, (None, 0, None))
    runs = jax.jit(jax.vmap(over_levels, (0, None, None)))(
        jnp.asarray(spectra, jnp.float32), levels, keys
    )
    values, errors, good = jax.device_get(runs)
    right = 0 if solve is diagonal else truth(spectra)[:, None, None]
    covers = np.abs(values - right) <= 1.96 * errors
    assert good.mean() > 0.9
    assert covers.mean(2).min() > 0.9 - 3 * (0.9 * 0.1 / RUNS) ** 0.5, covers.mean(2)
