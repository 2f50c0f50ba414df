"""Labels of which a known share has been replaced, beside the true ones."""

import math
from fractions import Fraction

import numpy as np

from sharpjax.data.examples import Examples
from sharpjax.errors import UserError, unknown, whole_number

KINDS = ("other", "uniform")
MAX_SEED = 2**32 - 1  # of `RandomState`


def noisy(examples: Examples, *, share: float, num_classes: int, seed: int, kind: str) -> Examples:
    """The examples with exactly `share` N of their labels replaced, rounded (a half up).

    Which ones, and by what, is a function of N, K, seed and kind alone: with the same seed, the
    labels that a smaller share replaces are among those of a larger one, and are replaced by the
    same.

    Args:
        examples: with labels int32 [N], 0 to K - 1.
        share: of the labels, as the decimal number it is written as; at 0 the examples come back
            as they are.
        num_classes: K, 2 or more.
        seed: of NumPy's `RandomState`, a stream that is frozen.
        kind: 'other': a replaced label is another class, each of the K - 1 alike ("symmetric"
            noise); `share` of the labels are wrong, and it is less than 1. 'uniform': it is any of
            the K classes alike, so that about (K - 1) / K of the replaced ones are wrong, and at a
            share of 1 the labels say nothing: "partially corrupted labels" (arXiv 1611.03530,
            there with each label's own coin in place of an exact count).

    Returns:
        The examples, with `true_label`.

    Raises:
        UserError: as `check` does.

    >>> true = Examples(np.zeros((10, 1), np.float32), np.zeros(10, np.int32))
    >>> wrong = noisy(true, share=0.3, num_classes=10, seed=0, kind="other")
    >>> int((wrong.label != wrong.true_label).sum())
    3
    """
    true = examples.label
    check(share, seed, kind, num_labels=len(true))
    if share == 0:
        return examples
    random = np.random.RandomState(seed)
    replaced = random.permutation(len(true))[: _count(share, len(true))]
    shift = random.randint(0 if kind == "uniform" else 1, num_classes, len(true), dtype=np.int32)
    label = true.copy()
    label[replaced] = (true[replaced] + shift[replaced]) % num_classes
    return examples._replace(label=label, true_label=true)


def check(share: float, seed: int, kind: str, *, num_labels: int) -> None:
    """Refuse what `noisy` cannot do.

    Raises:
        UserError: a share that is out of range, or replaces no label; an unknown kind; a seed that
            `RandomState` does not take.
    """
    if kind not in KINDS:
        raise unknown("noise_kind", kind, KINDS)
    if not 0 <= share <= 1 or (share == 1 and kind == "other"):
        raise UserError(
            f"label_noise={share}: give a number that is at least 0 and less than 1; 1 is for "
            "noise_kind='uniform'."
        )
    if share and not _count(share, num_labels):
        raise UserError(
            f"label_noise={share} of {num_labels} labels replaces none; give a larger share, or 0."
        )
    if whole_number("label_noise", "noise_seed", seed, least=0) > MAX_SEED:
        raise UserError(f"noise_seed={seed}: give a whole number up to {MAX_SEED}.")


def _count(share: float, num_labels: int) -> int:
    return math.floor(Fraction(repr(float(share))) * num_labels + Fraction(1, 2))
