"""Adjusted p-values of a family of tests."""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from sharpjax.errors import UserError, unknown
from sharpjax.protocol.claims import Correction


def adjust(p: Sequence[float] | np.ndarray, method: Correction) -> np.ndarray:
    """Adjusted p-values, in the given order; reject a test if its adjusted p is at most alpha.

    With the m p-values sorted, p_(1) the smallest:

        none   p
        holm   max over j <= i of (m - j + 1) p_(j)     family-wise error, any dependence
        bh     min over j >= i of m p_(j) / j           false discovery rate, independence
        by     as bh, times 1 + 1/2 + ... + 1/m         false discovery rate, any dependence

    Each is at most 1 (Holm 1979; Benjamini and Hochberg 1995; Benjamini and Yekutieli 2001). NaN (a
    test that was not run) is left out of the family and stays NaN. To count it as a member, give 1
    instead.

    Raises:
        UserError: an unknown method, or a p outside [0, 1].

    >>> adjust([0.01, 0.02, 0.03, 0.2], "bh").tolist()
    [0.04, 0.04, 0.04, 0.2]
    >>> adjust([0.02, float("nan"), 0.01], "holm").tolist()
    [0.02, nan, 0.02]
    """
    if method not in get_args(Correction):
        raise unknown("correction", str(method), get_args(Correction))
    p = np.asarray(p, np.float64).reshape(-1)
    given = ~np.isnan(p)
    family = p[given]
    if ((family < 0) | (family > 1)).any():
        bad = family[(family < 0) | (family > 1)][0]
        raise UserError(f"adjust: p={bad:g}; p-values lie between 0 and 1.")
    adjusted = p.copy()
    if method != "none" and family.size:
        order = np.argsort(family, kind="stable")
        ordered, m, place = family[order], family.size, np.arange(1, family.size + 1)
        if method == "holm":
            steps = np.maximum.accumulate((m - place + 1) * ordered)
        else:
            factor = float((1 / place).sum()) if method == "by" else 1.0
            steps = np.maximum(ordered * m / place * factor, ordered)  # never below p (rounding)
            steps = np.minimum.accumulate(steps[::-1])[::-1]
        adjusted[np.flatnonzero(given)[order]] = np.minimum(steps, 1.0)
    return adjusted


def levels(alpha: float, members: int, correction: Correction) -> tuple[float, float]:
    """What p must not exceed: if no other member rejects, and if all reject with this same p.

    >>> levels(0.05, 2, "none"), levels(0.05, 2, "bh")
    ((0.05, 0.05), (0.025, 0.05))
    """
    harmonic = sum(1 / i for i in range(1, members + 1))
    return {
        "none": (alpha, alpha),
        "holm": (alpha / members, alpha / members),
        "bh": (alpha / members, alpha),
        "by": (alpha / members / harmonic, alpha / harmonic),
    }[correction]
