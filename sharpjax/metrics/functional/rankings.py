"""How two models order the classes of each example.

These metrics use only the order, so logits and probabilities give the same result, unless distinct
probabilities are equal after rounding. All raise a `UserError` if an output is not finite, and are
NaN if there are no examples.
"""

import functools
from typing import Any

import jax
import numpy as np

from sharpjax.errors import UserError, whole_number
from sharpjax.metrics.functional.formula import Formula, of_pair, ratio
from sharpjax.metrics.functional.outputs import by_sorting, namespace

# Terms are whole numbers if possible, so that their sums are exact in any precision.


def _other_rank(f: Any, g: Any) -> tuple[Any, ...]:
    return (namespace(f.rank).sum(f.rank != g.rank, axis=-1),)


def _of_classes(means: tuple[Any, ...], num_classes: int) -> Any:
    return means[0] / num_classes


RANK_DISAGREEMENT = Formula(_other_rank, ("rank",), _of_classes)


def rank_disagreement(a: Any, b: Any, label: Any = None) -> float:
    """The share of classes, over all examples, with different ranks: 1/(N K) sum_ic [r_ic != s_ic].

    In [0, 1]; 1 - 1/K for random orders. Among equal outputs the first class ranks first. The
    papers that use this name publish no formula; this is our interpretation.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N], not read.

    Raises:
        UserError: the shapes do not match; an output is not finite.

    >>> import numpy as np
    >>> rank_disagreement(np.array([[3.0, 2.0, 1.0]]), np.array([[1.0, 2.0, 3.0]]))
    0.6666666666666666
    """
    return of_pair("rank_disagreement", RANK_DISAGREEMENT, a, b, label)


def _steps(f: Any, g: Any) -> tuple[Any, ...]:
    return (namespace(f.rank).sum(abs(f.rank - g.rank), axis=-1),)


def _of_most(means: tuple[Any, ...], num_classes: int) -> Any:
    return means[0] / (num_classes**2 // 2)


FOOTRULE = Formula(_steps, ("rank",), _of_most)


def footrule(a: Any, b: Any, label: Any = None) -> float:
    """Spearman's footrule divided by its maximum, 1/N sum_i sum_c |r_ic - s_ic| / floor(K^2 / 2),
    in [0, 1] (Diaconis and Graham, 1977).

    It is 1 for reversed orders. Among equal outputs the first class ranks first.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N], not read.

    Raises:
        UserError: the shapes do not match; an output is not finite.

    >>> import numpy as np
    >>> footrule(np.array([[3.0, 2.0, 1.0]]), np.array([[2.0, 3.0, 1.0]]))
    0.5
    """
    return of_pair("footrule", FOOTRULE, a, b, label)


def _discordant(f: Any, g: Any) -> tuple[Any, ...]:
    """(1 - tau_b) / 2. Pairs of classes come from a row and the row rolled by 1 to K - 1 places.
    Each pair appears twice. Memory is N K, not N K^2."""
    xp, (z, w) = namespace(f.values), (f.values, g.values)
    num_classes = z.shape[-1]

    def add(turn: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        s, t = (xp.sign(x - xp.roll(x, turn, axis=-1)) for x in (z, w))
        products = (s * t, s * s, t * t)
        return tuple(x + xp.sum(y, axis=-1) for x, y in zip(sums, products, strict=True))

    sums = (xp.zeros_like(z[..., 0]),) * 3
    if xp is np:
        for turn in range(1, num_classes):
            sums = add(turn, sums)
    else:
        sums = jax.lax.fori_loop(1, num_classes, add, sums)
    both, only_f, only_g = sums
    return ((1 - ratio(both, xp.sqrt(only_f * only_g))) / 2,)


KENDALL_DISTANCE = Formula(_discordant, ("values",))


def kendall_distance(a: Any, b: Any, label: Any = None) -> float:
    """The mean of (1 - tau_b) / 2, in [0, 1]. Without ties, this is the share of pairs of classes
    that the two models order differently (Kendall, 1938).

    tau_b = sum s t / sqrt(sum s^2 sum t^2), with s and t the signs of the differences of each pair
    of classes. NaN if one of the models gives an example equal outputs for all classes.

    Cost: N K^2 comparisons in N K memory.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N], not read.

    Raises:
        UserError: the shapes do not match; an output is not finite.

    >>> import numpy as np
    >>> round(kendall_distance(np.array([[3.0, 2.0, 1.0]]), np.array([[2.0, 3.0, 1.0]])), 6)
    0.333333
    """
    return of_pair("kendall_distance", KENDALL_DISTANCE, a, b, label)


def _correlation(f: Any, g: Any) -> tuple[Any, ...]:
    xp, (r, s) = namespace(f.average_rank), (f.average_rank, g.average_rank)
    middle = (r.shape[-1] + 1) / 2
    r, s = r - middle, s - middle
    norm = xp.sqrt(xp.sum(r * r, axis=-1) * xp.sum(s * s, axis=-1))
    return (ratio(xp.sum(r * s, axis=-1), norm),)


SPEARMAN = Formula(_correlation, ("average_rank",))


def spearman(a: Any, b: Any, label: Any = None) -> float:
    """The mean over examples of Spearman's rho, the correlation of the ranks of the classes, in
    [-1, 1].

    Equal outputs share the mean of their ranks, as in `scipy.stats.spearmanr`. NaN if one of the
    models gives an example equal outputs for all classes.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N], not read.

    Raises:
        UserError: the shapes do not match; an output is not finite.

    >>> import numpy as np
    >>> spearman(np.array([[3.0, 2.0, 1.0]]), np.array([[2.0, 3.0, 1.0]]))
    0.5
    """
    return of_pair("spearman", SPEARMAN, a, b, label)


@functools.cache
def top_k(k: int) -> Formula:
    """The formula of `top_k_agreement`."""
    k = whole_number("functional.top_k_agreement", "k", k)

    def shared(f: Any, g: Any) -> tuple[Any, ...]:
        return (namespace(f.rank).sum((f.rank < k) & (g.rank < k), axis=-1),)

    def of_k(means: tuple[Any, ...], num_classes: int) -> Any:
        return means[0] / k

    return Formula(shared, ("rank",), of_k, least_classes=k)


def top_k_agreement(a: Any, b: Any, label: Any = None, *, k: int = 5) -> float:
    """The mean share of the k largest classes that two models have in common,
    1/N sum_i |top_k(a_i) and top_k(b_i)| / k, in [0, 1]; k / K on average for random orders.

    Among equal outputs the first class ranks first. With k = 1 it is 1 - `disagreement`.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N], not read.
        k: from 1 to K.

    Raises:
        UserError: the shapes do not match; an output is not finite; `k` is not from 1 to K.

    >>> import numpy as np
    >>> top_k_agreement(np.array([[3.0, 2.0, 1.0]]), np.array([[3.0, 1.0, 2.0]]), k=2)
    0.5
    """
    return of_pair("top_k_agreement", top_k(k), a, b, label)


@functools.cache
def rank_biased(persistence: float) -> Formula:
    """The formula of `rank_biased_overlap`."""
    if not 0 < persistence < 1:
        raise UserError(
            f"functional.rank_biased_overlap: persistence={persistence}; give a number in (0, 1)."
        )

    def overlap(f: Any, g: Any) -> tuple[Any, ...]:
        xp, num_classes = namespace(f.rank), f.values.shape[-1]
        depth = np.arange(1, num_classes + 1)
        weight = (1 - persistence) * persistence ** (depth - 1) / depth
        weight[-1] += persistence**num_classes / num_classes
        # A class counts in the overlaps of all depths that include the worse of its two ranks.
        worse = xp.maximum(f.rank, g.rank)
        if by_sorting(worse):
            table = xp.asarray(np.cumsum(weight[::-1])[::-1], dtype=f.values.dtype)
            return (xp.sum(table[worse], axis=-1),)
        weight = xp.asarray(weight, dtype=f.values.dtype)
        within = worse[..., None] < xp.asarray(depth, dtype=worse.dtype)
        return (xp.sum(xp.where(within, weight, 0), axis=(-2, -1)),)

    return Formula(overlap, ("rank", "values"))


def rank_biased_overlap(a: Any, b: Any, label: Any = None, *, persistence: float = 0.9) -> float:
    """The mean rank-biased overlap of the two orders of classes (Webber, Moffat and Zobel, 2010).

    (1 - p) sum_{d=1}^{K} p^(d-1) A_d + p^K, with A_d the share of the first d classes that both
    models have in common. It is the mean agreement at the depth reached by a reader who continues
    with probability p at each class. In [0, 1]; 1 for equal orders. Among equal outputs the first
    class ranks first.

    Args:
        a, b: [N, K] logits of the same examples, or any values in the same order.
        label: [N], not read.
        persistence: p, in (0, 1); the smaller it is, the more the first classes count.

    Raises:
        UserError: the shapes do not match; an output is not finite; `persistence` is not in (0, 1).

    >>> import numpy as np
    >>> rank_biased_overlap(np.array([[2.0, 1.0]]), np.array([[1.0, 2.0]]), persistence=0.5)
    0.5
    """
    return of_pair("rank_biased_overlap", rank_biased(persistence), a, b, label)
