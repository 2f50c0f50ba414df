"""p against no association of two quantities, for independent units: by permuting one of them.

Each function takes x, y and a seed, and returns p for a positive and for a negative association:
exact up to 8 units, by 9,999 random orders beyond (`protocol.shuffle`), save as it says itself.
"""

import numpy as np
from scipy import stats

from sharpjax.protocol.tests import shuffle

_EXACT_KENDALL = 170
_SHUFFLED_KENDALL = 100


def pearson(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Tails of Pearson's r."""
    return _shuffled(x - x.mean(), y - y.mean(), seed)


def spearman(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Tails of Spearman's rho, ties or not.

    >>> spearman(np.arange(4.0), np.arange(4.0), 0)[0] * 24
    1.0
    """
    # Twice the ranks, centred: whole numbers, so that equal sums are equal.
    return _shuffled(*(2 * stats.rankdata(v) - (v.size + 1) for v in (x, y)), seed)


def _shuffled(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    index, exact = shuffle.orders(x.size, seed)
    return shuffle.tails(y[index] @ x, float(y @ x), exact)


def kendall(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Tails of Kendall's tau.

    scipy counts orders exactly up to 170 units without ties. With ties they are shuffled up to 100
    units; beyond, tau is normal with the variance corrected for ties.

    >>> kendall(np.arange(4.0), np.arange(4.0), 0)[0] * 24
    1.0
    """
    size = x.size
    tied = min(np.unique(x).size, np.unique(y).size) < size
    if not tied or size > _SHUFFLED_KENDALL:
        method = "exact" if not tied and size <= _EXACT_KENDALL else "asymptotic"
        greater, less = (
            float(np.asarray(stats.kendalltau(x, y, method=method, alternative=side))[1])
            for side in ("greater", "less")
        )
        return greater, less
    ranks = stats.rankdata(y, method="dense").astype(np.int16)
    index, exact = shuffle.orders(size, seed)
    sign_x = np.sign(x[:, None] - x[None, :]).astype(np.int16)

    def concordance(shuffled: np.ndarray) -> np.ndarray:
        total = np.zeros(len(shuffled), np.int64)
        for first in range(size - 1):
            signs = np.sign(shuffled[:, first, None] - shuffled[:, first + 1 :])
            total += signs @ sign_x[first, first + 1 :]
        return total

    return shuffle.tails(concordance(ranks[index]), float(concordance(ranks[None])[0]), exact)
