"""Labels of which a known share has been replaced, together with the true ones."""

import math
from fractions import Fraction

import numpy as np

from sharpjax.data.examples import Examples
from sharpjax.errors import UserError, unknown, whole_number

KINDS = ("other", "uniform")
MAX_SEED = 2**32 - 1  # of `RandomState`


def noisy(examples: Examples, *, share: float, num_classes: int, seed: int, kind: str) -> Examples:
    """The examples with exactly `share` N of their labels replaced, rounded (a half up).

    The choice of labels and the replacements depend only on N, K, seed, kind and the labels
    themselves. With the same seed, the labels that a smaller share replaces are also replaced by a
    larger one, with the same values.

    Args:
        examples: with labels int32 [N], 0 to K - 1.
        share: of the labels, read as the decimal number that is written. At 0 the examples are
            returned unchanged.
        num_classes: K, 2 or more.
        seed: of NumPy's `RandomState`, a frozen stream.
        kind: 'other': a replaced label becomes one of the K - 1 other classes, with equal
            probability ("symmetric" noise). Exactly `share` of the labels are then wrong, and
            `share` must be less than 1. 'uniform': it becomes any of the K classes with equal
            probability, so about (K - 1) / K of the replaced labels are wrong. At a share of 1 the
            labels carry no information. These are the "partially corrupted labels" of arXiv
            1611.03530, which flips a coin for each label instead of replacing an exact count.

    Returns:
        The examples, with `true_label` (at a share of 0 without).

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
    """Check the arguments of `noisy`.

    Raises:
        UserError: the share is out of range, or replaces no label; the kind is unknown; or
            `RandomState` does not take the seed.
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
    return math.floor(Fraction(str(share)) * num_labels + Fraction(1, 2))
