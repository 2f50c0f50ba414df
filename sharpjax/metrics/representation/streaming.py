"""Unbiased CKA of features that arrive in batches (Nguyen et al., 2021, arXiv 2010.15327).

    totals = init(3)
    for batch in batches:
        totals = update(totals, [model(batch) for model in models])
    compute(totals)  # [3, 3]

HSIC is summed over batches, and the ratio is taken at the end. The mean of the CKA of each batch
would be a different number, and biased.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError, whole_number
from sharpjax.metrics.representation import hsic
from sharpjax.metrics.representation.alignment import ROUNDING, ratio
from sharpjax.metrics.representation.measure import centred, checked


class Totals(NamedTuple):
    """Sums over batches, each weighted by its number of examples.

    Attributes:
        products: [M, M], sums of unbiased HSIC.
        own: [M], sums of <K, K> / (N (N - 3)), the scale for judging rounding errors.
        num_examples: number of examples.
    """

    products: np.ndarray
    own: np.ndarray
    num_examples: int


def init(num_models: int = 2) -> Totals:
    """Empty totals, of no batches."""
    m = whole_number("metrics.representation.streaming.init", "num_models", num_models)
    return Totals(np.zeros((m, m)), np.zeros(m), 0)


def update(totals: Totals, features: Sequence[Any]) -> Totals:
    """The totals with a batch added. Batches may differ in size, and models in their features.

    Cost: that of `all_pairs` with "cka" on one batch.

    Args:
        totals: from `init` or `update`.
        features: for each model, [B, d_m] of the same B >= 4 examples.

    Raises:
        UserError: another number of models than in `init`; not matrices of the same examples; fewer
            than four examples.
    """
    if len(features) != len(totals.own):
        raise UserError(
            f"metrics.representation.streaming.update: features of {len(features)} models, and "
            f"init was of {len(totals.own)}."
        )
    arrays = checked("streaming.update", features, 4)
    n = len(arrays[0])
    kernels = [hsic.kernel(centred(x)) if np.isfinite(x).all() else None for x in arrays]
    products, own = np.full(totals.products.shape, np.nan), np.full(len(kernels), np.nan)
    for i, a in enumerate(kernels):
        for j, b in enumerate(kernels[: i + 1]):
            if a and b:
                products[i, j] = products[j, i] = hsic.unbiased(a, b)
        if a:
            own[i] = a.own / (n * (n - 3))
    return Totals(totals.products + n * products, totals.own + n * own, totals.num_examples + n)


def merge(a: Totals, b: Totals) -> Totals:
    """The totals of the batches of both."""
    return Totals(a.products + b.products, a.own + b.own, a.num_examples + b.num_examples)


def compute(totals: Totals) -> np.ndarray:
    """CKA of all pairs, [M, M]; for a single batch, the same as `all_pairs`.

    HSIC is unbiased in each batch, whatever its size. So the result does not depend on the batch
    size systematically, but small batches make it noisier. NaN if there were no batches, for a
    model with a feature that was not finite, and if the self-similarity is lost in rounding, as in
    `cka`.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    >>> found = compute(update(update(init(), [x, x + 1]), [x[:4], 2 * x[:4]]))
    >>> bool(abs(found[0, 1]) < 1)  # the second is twice as long in one batch, not in the other
    True
    """
    own = np.diag(totals.products)
    own = np.where(own > ROUNDING * totals.own, own, np.nan)
    return ratio(totals.products, own[:, None], own[None, :])
