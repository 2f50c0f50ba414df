"""Points of a plane: of distances, of many coordinates, and what they leave out."""

import sys

import numpy as np
import pytest
from scipy import linalg
from scipy.spatial.distance import pdist, squareform

from sharpjax.errors import UserError
from sharpjax.metrics import embedding
from sharpjax.metrics.embedding import classical_mds, pca


def gaussians(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("scale", [1e-180, 1.0, 1e120])
def test_distances_of_a_plane_give_its_points_up_to_a_rotation(scale):
    points = gaussians(20, 2) * [3.0, 1.0]
    points -= points.mean(axis=0)
    found = classical_mds(scale * squareform(pdist(points)))
    turn, _ = linalg.orthogonal_procrustes(found.points / scale, points)
    np.testing.assert_allclose(found.points / scale @ turn, points, atol=1e-12)
    np.testing.assert_allclose(found.share.sum(), 1, rtol=1e-12)
    assert found.negative == 0 and (found.eigenvalues[2:] == 0).all()


def test_what_no_euclidean_space_has_is_reported():
    """Four points, a middle and three at 1 from it that are 2 apart: eigenvalues of B by hand.

    B has the symmetric part on the mean (once) and 2 on the two contrasts of the three ends; for
    u = (3, -1, -1, -1) / sqrt 12, -u'D^2u / 2 = -(2 * 3 * 3 * (-1) + 6 * 4) / 24 = -1/4.
    """
    star = np.full((4, 4), 2.0)
    star[0], star[:, 0] = 1.0, 1.0
    np.fill_diagonal(star, np.nan)
    found = classical_mds(star)
    np.testing.assert_allclose(found.eigenvalues, [2, 2, 0, -0.25], atol=1e-12)
    np.testing.assert_allclose(found.negative, 0.25 / 4.25, rtol=1e-12)
    np.testing.assert_allclose(found.share, 2 / 4.25, rtol=1e-12)


@pytest.mark.parametrize("shape", [(9, 4, 3), (30, 5)])
def test_pca_is_numpys_svd_and_mds_of_euclidean_distances(shape):
    outputs = gaussians(*shape) * np.linspace(0.2, 3, shape[-1])
    found = pca(outputs, 3)
    x = outputs.reshape(len(outputs), -1)
    left, values, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left * values)[:, :3], atol=1e-11)
    np.testing.assert_allclose(found.share, (values**2 / np.sum(values**2))[:3], rtol=1e-11)
    np.testing.assert_allclose(found.eigenvalues, values**2, atol=1e-11)
    same = classical_mds(squareform(pdist(x)), 3)
    np.testing.assert_allclose(same.points, found.points, atol=1e-9)
    np.testing.assert_allclose(same.share, found.share, rtol=1e-10)


def test_signs_do_not_depend_on_those_of_the_input():
    outputs = gaussians(12, 5)
    found = pca(outputs)
    np.testing.assert_allclose(pca(3 - outputs).points, found.points, atol=1e-12)
    assert (found.points.max(axis=0) >= -found.points.min(axis=0)).all()
    # Of two points as far from 0 the first is positive.
    for ends in ([[0.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]):
        np.testing.assert_allclose(pca(ends, 1).points[:, 0], [1, -1], rtol=1e-12)


def test_points_that_are_one_and_what_is_not_finite():
    for found in (pca(np.full((5, 3), 0.1)), classical_mds(np.zeros((5, 5)))):
        assert np.isnan(found.share).all() and np.abs(found.points).max() < 1e-12
        assert found.negative == 0
    outputs = gaussians(6, 3)
    far = squareform(pdist(outputs))
    outputs[1, 1] = far[2, 3] = np.nan
    for found in (pca(outputs), classical_mds(far)):
        assert np.isnan(found.points).all() and np.isnan(found.share).all()
    assert np.isnan(embedding.tsne(outputs, perplexity=2)).all()


def test_tsne_keeps_clusters_apart_and_repeats_itself():
    outputs = np.concatenate([gaussians(10, 4, 3), 30 + gaussians(10, 4, 3, seed=1)])
    one, other = (embedding.tsne(outputs, perplexity=5) for _ in range(2))
    assert one.shape == (20, 2) and (one == other).all()
    apart = np.linalg.norm(one[:, None] - one, axis=-1) + np.diag([np.inf] * 20)
    assert (apart.argmin(axis=1) // 10 == np.arange(20) // 10).all()


def test_tsne_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match="embedding.tsne: needs scikit-learn: `pip install"):
        embedding.tsne(gaussians(5, 3), perplexity=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: classical_mds(x), r"classical_mds: distances is \[4, 3\]"),
        (lambda x: classical_mds(x @ x.T), "no distances.*sqrt"),
        (lambda x: classical_mds(np.ones((4, 4))), "no distances.*0 on the diagonal"),
        (lambda x: classical_mds(np.triu(np.ones((4, 4)), 1)), "no distances: symmetric"),
        (lambda x: classical_mds(np.zeros((4, 4)), 5), "dim=5, and points have 4 at most"),
        (lambda x: pca(x[0]), r"pca: outputs is \[3\]; give \[P, \.\.\.\]"),
        (lambda x: pca(x[:1]), r"pca: outputs is \[1, 3\]"),
        (lambda x: pca(x, 4), "dim=4, and points of 3 numbers have 3 at most"),
        (lambda x: pca(x, 0), "dim must be a whole number"),
        (lambda x: embedding.tsne(x), "perplexity=30.0 of 4 points; give more than 0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(UserError, match=message) as error:
        call(gaussians(4, 3))
    assert "\n" not in str(error.value)
