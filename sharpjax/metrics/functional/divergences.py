"""Divergences between the predictions of two models, in nats.

All take logits, and raise a `UserError` for probabilities unless `probs=True`. All raise a
`UserError` if an output is not finite, and are NaN if there are no examples.
"""

from typing import Any

import numpy as np
from scipy import special

from sharpjax.metrics.functional.formula import Formula, of_pair
from sharpjax.metrics.functional.outputs import namespace


def _to_the_middle(f: Any, g: Any) -> tuple[Any, ...]:
    p, q = f.probabilities, g.probabilities
    xp = namespace(p)
    if xp is np:
        m = (p + q) / 2
        return ((special.rel_entr(p, m) + special.rel_entr(q, m)).sum(axis=-1) / 2,)
    # The form in d = (q - p)/(p + q) is accurate also in float32. If p and m are of size 1 and
    # differ by 1e-3, terms in log(p/m) cancel down to 1e-6, and a tenth of that would be rounding.
    m = p + q
    d = (q - p) / xp.where(m > 0, m, 1)
    less = xp.where(d < 1, xp.log1p(xp.where(d < 1, -d, 0)), 0)
    more = xp.where(d > -1, xp.log1p(xp.where(d > -1, d, 0)), 0)
    return (xp.sum(m * ((1 - d) * less + (1 + d) * more), axis=-1) / 4,)


JSD = Formula(_to_the_middle, ("probabilities",))


def jensen_shannon(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean Jensen-Shannon divergence of the predictions, in nats, in [0, log 2].

    JSD = 1/N sum_i (KL(p_i || m_i) + KL(q_i || m_i)) / 2, with m = (p + q) / 2, p = softmax(a) and
    q = softmax(b). Divide by log 2 to get bits. For each example, the square root is a metric;
    SciPy's `jensenshannon` returns that root.

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.

    Raises:
        UserError: the shapes do not match; an output is not finite; probabilities without `probs`,
            or logits with it.

    >>> import numpy as np
    >>> sure, unsure = np.array([[99.0, 0.0]]), np.array([[0.0, 99.0]])
    >>> round(float(jensen_shannon(sure, unsure) / np.log(2)), 6)
    1.0
    """
    return of_pair("jensen_shannon", JSD, a, b, label, probs=probs)


def _forward(f: Any, g: Any) -> tuple[Any, ...]:
    return (_relative_entropy(f.probabilities, f.log_probabilities, g.log_probabilities),)


def _reverse(f: Any, g: Any) -> tuple[Any, ...]:
    return _forward(g, f)


def _both(f: Any, g: Any) -> tuple[Any, ...]:
    return (_forward(f, g)[0] + _forward(g, f)[0],)


def _relative_entropy(p: Any, log_p: Any, log_q: Any) -> Any:
    xp = namespace(p)
    there = p > 0  # 0 log 0 = 0
    return xp.sum(p * (xp.where(there, log_p, 0) - xp.where(there, log_q, 0)), axis=-1)


_LOGS = ("probabilities", "log_probabilities")
KL = Formula(_forward, _LOGS, symmetric=False)
KL_REVERSE = Formula(_reverse, _LOGS, symmetric=False)
JEFFREYS = Formula(_both, _LOGS)


def kl(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean KL(p || q) = 1/N sum_ic p_ic log(p_ic / q_ic), p = softmax(a), q = softmax(b).

    It is the forward KL if `a` is the teacher and `b` the student. It is computed from
    log-softmaxes, so it is finite for logits. For probabilities it is infinite if q is 0 where p is
    not.

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.

    Raises:
        UserError: as `jensen_shannon`.

    >>> import numpy as np
    >>> round(float(kl(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])) / np.log(2)), 6)
    1.0
    """
    return of_pair("kl", KL, a, b, label, probs=probs)


def kl_reverse(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean KL(q || p): `kl` with `a` and `b` exchanged.

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.

    Raises:
        UserError: as `jensen_shannon`.

    >>> import numpy as np
    >>> round(kl_reverse(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 3)
    48.807
    """
    return of_pair("kl_reverse", KL_REVERSE, a, b, label, probs=probs)


def jeffreys(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean of KL(p || q) + KL(q || p), which is symmetric.

    Args:
        a, b: [N, K] logits of the same examples; probabilities if `probs`.
        label: [N], not read.

    Raises:
        UserError: as `jensen_shannon`.

    >>> import numpy as np
    >>> round(jeffreys(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 6)
    49.5
    """
    return of_pair("jeffreys", JEFFREYS, a, b, label, probs=probs)
