"""Overlaps of eigenspaces that are known, and only where the spectra say what these are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.geometry import Eigenpairs, Status
from sharpjax.geometry.eigenpairs.overlap import subspace_overlap


def pairs(values, rows, error=1e-9, residual=1e-9, converged: Any = True, split=2):
    """A result with these vectors, as a tree of two leaves."""
    values = jnp.asarray(values, jnp.float64)
    rows, ones = jnp.asarray(rows, jnp.float64), jnp.ones_like(values)
    return Eigenpairs(
        values=values,
        vectors={"a": rows[:, :split], "b": jnp.expand_dims(rows[:, split:], 2)},
        residuals=residual * ones,
        value_errors=error * ones,
        vector_errors=error * ones,
        converged=jnp.broadcast_to(jnp.asarray(converged), values.shape),
        num_products=jnp.int32(7),
        status=jnp.int32(0),
    )


def turned(angle, i, j, n=6):
    """Unit vectors with i turned towards j."""
    rows = np.eye(n)
    rows[i] = np.cos(angle) * np.eye(n)[i] + np.sin(angle) * np.eye(n)[j]
    rows[j] = -np.sin(angle) * np.eye(n)[i] + np.cos(angle) * np.eye(n)[j]
    return rows


@pytest.mark.parametrize("status", [Status.NON_FINITE, Status.ASSUMPTION_FAILED])
def test_what_is_wrong_with_a_result_is_said(x64, strict, status):
    """That it did not converge would be a wrong reason."""
    values = [5.0, 4, 3, 1]
    sound = pairs(values, np.eye(6)[:4])
    bad = pairs(np.full(4, np.nan), np.eye(6)[:4], converged=False)
    bad = bad._replace(status=jnp.int32(status))
    assert subspace_overlap(bad, sound).status == subspace_overlap(sound, bad).status == status


def test_principal_angles_of_known_spaces(x64, strict):
    values = [5.0, 4, 3, 1]
    same = pairs(values, np.eye(6)[:4])
    found = subspace_overlap(same, same)
    assert found.rank == 3 and found.status == Status.OK and found.num_products == 14
    np.testing.assert_allclose(found.value, 1)
    np.testing.assert_allclose(found.cosines, 1)
    # A rotation within the space changes nothing.
    found = subspace_overlap(same, pairs(values, turned(0.7, 0, 2)[:4]))
    np.testing.assert_allclose(found.value, 1)
    # Out of the space: one angle of .3.
    found = subspace_overlap(same, pairs(values, turned(0.3, 1, 5)[:4]))
    np.testing.assert_allclose(found.cosines, [1, 1, np.cos(0.3)])
    np.testing.assert_allclose(found.value, (2 + np.cos(0.3) ** 2) / 3)
    # Altogether another one.
    other = pairs([5.0, 4], np.eye(6)[4:])
    found = subspace_overlap(pairs([5.0, 4], np.eye(6)[:2]), other)
    assert found.rank == 1 and found.value == 0 and found.cosines[0] == 0


@pytest.mark.parametrize(
    "values, rank",
    [
        ([5.0, 4, 3, 2.95], 2),  # the space of three would end between 3 and 2.95
        ([5.0, 4, 3.95, 3.9], 1),
        ([5.0, 4.95, 4.9, 4.85], 0),
        ([5.0, 4, 2, 1], 3),
        ([-5.0, -4, -2, -1], 3),  # which="SA"
        ([-5.0, 4, 3.95, -1], 3),  # which="LM"
        ([5.0, 4, -4.02, -1], 3),
        ([5.0, 3, 2, -2.05], 2),  # 2 and -2.05 may change places
        ([4.0, -4.02, 4.04, 4.06], 0),
    ],
)
def test_spaces_end_at_gaps_alone(x64, strict, values, rank):
    given = pairs(values, np.eye(6)[:4], error=0.03)
    clear = pairs([9.0, 7, 5, 3], np.eye(6)[:4], error=0.03)
    for found in (subspace_overlap(given, clear), subspace_overlap(clear, given)):
        assert found.rank == rank
        assert np.isnan(found.cosines[rank:]).all() and not np.isnan(found.cosines[:rank]).any()
        if rank == 0:
            assert np.isnan(found.value) and found.status == Status.NOT_CONVERGED
        else:
            np.testing.assert_allclose(found.value, 1)


def test_what_has_not_converged_ends_nothing(x64, strict):
    sure = pairs([9.0, 7, 5, 3], np.eye(6)[:4])
    for converged, rank in (
        ([True, True, True, False], 2),
        ([True, False, True, True], 0),
        ([False, True, True, True], 0),
    ):
        given = pairs([9.0, 7, 5, 3], np.eye(6)[:4], converged=converged)
        assert subspace_overlap(sure, given).rank == rank
    hurt = sure._replace(values=sure.values.at[2].set(jnp.nan))
    assert subspace_overlap(sure, hurt).rank == 1


def test_the_bound_holds_and_is_met(x64, strict):
    """Vectors of A turned out of its eigenspace: Rayleigh quotients and residuals as they are."""
    spectrum = np.array([9.0, 7, 5, 1, 0.5, 0])
    exact = pairs(spectrum[:4], np.eye(6)[:4], error=0, residual=0)
    other = turned(1.0, 1, 5)
    true = subspace_overlap(exact, pairs(spectrum[:4], other[:4], error=0, residual=0))
    for angle, into in ((0.05, 4), (0.02, 5), (-0.03, 5)):
        rows = turned(angle, 2, into)
        values = np.sum(spectrum * rows**2, axis=1)
        residuals = np.linalg.norm(rows * spectrum - rows * values[:, None], axis=1)
        given = pairs(values[:4], rows[:4])._replace(
            residuals=jnp.asarray(residuals[:4]), value_errors=jnp.asarray(residuals[:4])
        )
        with_itself = subspace_overlap(exact, given)
        assert with_itself.rank == 3
        assert 1 - with_itself.value <= with_itself.error < 0.1
        sine = np.abs(np.sin(angle))
        assert sine / np.sqrt(3) <= with_itself.error < 2 * sine  # |sin|_F / sqrt(k)
        found = subspace_overlap(given, pairs(spectrum[:4], other[:4], error=0, residual=0))
        assert np.abs(found.value - true.value) <= found.error


def test_lanes_and_estimates(x64):
    one = pairs([5.0, 4, 3, 1], np.eye(6)[:4])
    many = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    many = many._replace(values=many.values.at[1, 3].set(2.9999999999))
    found = jax.jit(jax.vmap(subspace_overlap, (0, None)))(many, one)
    assert found.rank.tolist() == [3, 2] and found.cosines.shape == (2, 3)
    named = found.estimates()
    np.testing.assert_allclose(named["overlap"].value, 1)
    np.testing.assert_allclose(named["overlap_rank"].value, [3, 2])
    assert (named["overlap"].num_evaluations == 14).all()
    assert (named["overlap"].standard_error == found.error).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: 3, "pairs_b must be a result of top_eigenpairs, got int"),
        (lambda p: p._replace(vectors=None), "pairs_b has no vectors; solve again with"),
        (lambda p: jax.tree.map(lambda x: x[None], p), "Several results: jax.vmap"),
        (lambda p: pairs([5.0], np.eye(6)[:1]), "k=2, to show that a gap follows"),
        (lambda p: pairs([5.0, 4], np.eye(6)[:2]), "pairs_a holds 3 values and pairs_b 2"),
        (lambda p: pairs([5.0, 4, 3], np.eye(6)[:3], split=3), "vectors of pairs_b must have"),
        (lambda p: p._replace(vectors={"a": p.vectors["a"]}), "'b' is missing"),
    ],
)
def test_what_cannot_be_compared(x64, change, message):
    given = pairs([5.0, 4, 3], np.eye(6)[:3])
    with pytest.raises(UserError, match=message):
        subspace_overlap(given, change(given))
