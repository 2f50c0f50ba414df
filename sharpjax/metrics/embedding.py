"""Plots many models as points in a plane, from their distances or their many coordinates.

`classical_mds` and `pca` have closed forms: the same input gives the same points, and they report
what share of the variation the points show. `tsne` has none: distances between its clusters mean
nothing, and another perplexity gives another picture.
"""

from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError, whole_number
from sharpjax.metrics import inputs

_ROUNDING = 1e-6  # rounding of float32 distances, relative to the largest
_TIE = 1e-8  # relative difference up to which two coordinates are equally far from 0


class Embedding(NamedTuple):
    """Points, and what they leave out; all NaN if the input is not finite.

    Attributes:
        points: [P, dim], of mean 0, with axes by decreasing spread. The sign of each axis makes the
            coordinate farthest from 0 positive (the first one if several are equally far). Axes of
            equal spread are determined only up to a rotation.
        share: [dim], each eigenvalue over the sum of all absolute values, 0 for a negative one; NaN
            if all points coincide.
        eigenvalues: all of them, largest first: sums of squares along the axes. Distances with
            negative eigenvalues do not fit into any Euclidean space.
        negative: the share of the negative eigenvalues in the sum of absolute values; 0 for `pca`.
    """

    points: np.ndarray
    share: np.ndarray
    eigenvalues: np.ndarray
    negative: float


def classical_mds(distances: Any, dim: int = 2) -> Embedding:
    """Points whose Euclidean distances are close to the given ones (Torgerson, 1952).

    The coordinates are sqrt(lambda_k) v_k, with the eigenpairs of B = -1/2 J D^2 J, J = I - 1/P.
    From distances of points in a plane this recovers the points up to a rotation and a reflection.
    Other distances need more dimensions (see `share`), or fit into no Euclidean space (see
    `negative`). The square root of the Jensen-Shannon divergence has no negative eigenvalues; the
    activation distance and disagreement may have some.

    Cost: the eigenvalues and eigenvectors of a P x P matrix.

    Args:
        distances: [P, P], symmetric, not negative, 0 or NaN on the diagonal.
        dim: dimension of the points, at most P.

    Raises:
        UserError: `distances` are not such a matrix; `dim` is less than 1 or more than P; inside a
            trace.

    >>> found = classical_mds([[0.0, 3.0, 5.0], [3.0, 0.0, 4.0], [5.0, 4.0, 0.0]])
    >>> round(float(np.linalg.norm(found.points[2] - found.points[0])), 12), found.negative
    (5.0, 0.0)
    """
    d = _distances(distances)
    size = _dim("classical_mds", dim, len(d), "points")
    if not np.isfinite(d).all():
        return _nothing(len(d), size, len(d))
    largest = d.max() or 1.0
    squares = np.square(d / largest)
    centre = squares - squares.mean(axis=0)
    values, vectors = np.linalg.eigh(-(centre - centre.mean(axis=1, keepdims=True)) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    zero = np.abs(values) <= 8 * len(d) * np.finfo(np.float64).eps * np.abs(values).max()
    values = np.where(zero, 0.0, values)
    points = vectors[:, :size] * np.sqrt(np.maximum(values[:size], 0.0))
    return _embedding(points, values, largest)


def pca(outputs: Any, dim: int = 2) -> Embedding:
    """The principal components of P points: `classical_mds` of their Euclidean distances.

    Give probabilities, `scipy.special.softmax(logits, axis=-1)`, rather than logits. Logits grow
    all through training, and their first axis is often only time.

    Cost: 2 P D min(P, D) multiplications for P points of D numbers, in float64.

    Args:
        outputs: [P, ...], such as [epochs, N, K]; axes after the first are flattened.
        dim: dimension of the points, at most min(P, D).

    Raises:
        UserError: fewer than two points; `dim` is less than 1 or more than min(P, D); inside a
            trace.

    >>> found = pca([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [9.0, 12.0]])
    >>> found.points[:, 0].round(6).tolist(), found.share.round(6).tolist()
    ([7.5, 2.5, -2.5, -7.5], [1.0, 0.0])
    """
    x = _flat("pca", outputs)
    size = _dim("pca", dim, min(x.shape), f"points of {x.shape[1]} numbers")
    if not np.isfinite(x).all():
        return _nothing(len(x), size, min(x.shape))
    largest = np.abs(x).max() or 1.0
    x = x / largest
    x -= x.mean(axis=0)
    if x.shape[0] < x.shape[1]:  # a P x P matrix with the same left factor
        x = np.asarray(np.linalg.qr(x.T, mode="r")).T
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    values = np.where(values <= 8 * max(x.shape) * np.finfo(np.float64).eps, 0.0, values)
    return _embedding(left[:, :size] * values[:size], np.square(values), largest)


def tsne(outputs: Any, dim: int = 2, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Points of t-SNE, [P, dim], by scikit-learn; NaN if the input is not finite.

    It starts at the principal components, so `seed` matters little; the perplexity matters a lot.

    Cost: P^2 for each of 1,000 steps.

    Args:
        outputs: [P, ...], flattened as in `pca`.
        dim: dimension of the points, at most min(P, D).
        perplexity: effective number of neighbours, in (0, P).
        seed: scikit-learn's `random_state`.

    Raises:
        UserError: scikit-learn is not installed; fewer than two points; `dim` or `perplexity` is
            out of range; inside a trace.
    """
    x = _flat("tsne", outputs)
    size = _dim("tsne", dim, min(x.shape), f"points of {x.shape[1]} numbers")
    if not 0 < perplexity < len(x):
        raise UserError(
            f"metrics.embedding.tsne: perplexity={perplexity!r} of {len(x)} points; give more than "
            f"0 and less than {len(x)}."
        )
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError(
            "metrics.embedding.tsne: needs scikit-learn: `pip install scikit-learn`; classical_mds "
            "and pca do without."
        ) from None
    if not np.isfinite(x).all():
        return np.full((len(x), size), np.nan)
    fit = TSNE(size, perplexity=perplexity, random_state=seed, init="pca", method="exact")
    return np.asarray(fit.fit_transform(x), np.float64)


def _embedding(points: np.ndarray, values: np.ndarray, unit: float) -> Embedding:
    """The result for points and eigenvalues given in `unit`, which avoids under- and overflow."""
    total = np.abs(values).sum()
    share = values[: points.shape[1]] / total if total > 0 else np.full(points.shape[1], np.nan)
    negative = float(abs(values[values < 0].sum()) / total) if total > 0 else 0.0
    far = np.abs(points)
    places = (far >= (1 - _TIE) * far.max(axis=0)).argmax(axis=0)
    signs = np.where(points[places, np.arange(points.shape[1])] < 0, -1.0, 1.0)
    points = points * signs * unit
    return Embedding(points, np.maximum(share, 0.0), values * unit * unit, negative)


def _nothing(number: int, dim: int, count: int) -> Embedding:
    nan = float("nan")
    return Embedding(np.full((number, dim), nan), np.full(dim, nan), np.full(count, nan), nan)


def _dim(caller: str, dim: int, most: int, of: str) -> int:
    size = whole_number(f"metrics.embedding.{caller}", "dim", dim)
    if size > most:
        raise UserError(f"metrics.embedding.{caller}: dim={dim}, and {of} have {most} at most.")
    return size


def _flat(caller: str, outputs: Any) -> np.ndarray:
    inputs.refuse_traced(f"metrics.embedding.{caller}", outputs)
    x = np.asarray(outputs, np.float64)
    if x.ndim < 2 or len(x) < 2 or not x.size:
        raise UserError(
            f"metrics.embedding.{caller}: outputs is {list(x.shape)}; give [P, ...] of two points "
            "or more, as [epochs, N, K]."
        )
    return x.reshape(len(x), -1)


def _distances(distances: Any) -> np.ndarray:
    inputs.refuse_traced("metrics.embedding.classical_mds", distances)
    d = np.array(distances, np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) < 2:
        raise UserError(
            f"metrics.embedding.classical_mds: distances is {list(d.shape)}; give [P, P] of two "
            "points or more."
        )
    diagonal = np.diag(d).copy()
    np.fill_diagonal(d, 0.0)
    if not np.isfinite(d).all():
        return d
    near = _ROUNDING * max(np.abs(d).max(), np.finfo(np.float64).tiny)
    if d.min() < 0 or np.abs(d - d.T).max() > near or np.any(np.abs(diagonal) > near):
        raise UserError(
            "metrics.embedding.classical_mds: these are no distances: symmetric, none negative, 0 "
            "on the diagonal. Of a similarity s that is 1 of equals give sqrt(2 - 2 s)."
        )
    return (d + d.T) / 2
