"""How much two models' predictions tell apart, in nats.

All take logits: probabilities in their place are refused, unless `probs=True` says that they are
meant. All refuse outputs that are not finite, and are NaN of no examples.
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
    # With d = (q - p)/(p + q), in float32 too: p and m of size 1 that differ by 1e-3 would leave
    # 1e-6 of the logarithm of p/m, of which rounding is a tenth.
    m = p + q
    d = (q - p) / xp.where(m > 0, m, 1)
    less = xp.where(d < 1, xp.log1p(xp.where(d < 1, -d, 0)), 0)
    more = xp.where(d > -1, xp.log1p(xp.where(d > -1, d, 0)), 0)
    return (xp.sum(m * ((1 - d) * less + (1 + d) * more), axis=-1) / 4,)


JSD = Formula(_to_the_middle, ("probabilities",))


def jensen_shannon(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean Jensen-Shannon divergence of the predictions, in nats, in [0, log 2].

    JSD = 1/N sum_i (KL(p_i || m_i) + KL(q_i || m_i)) / 2, m = (p + q) / 2, of p = softmax(a) and
    q = softmax(b). Over log 2 it is in bits. Its root is a metric, of each example; SciPy's
    `jensenshannon` gives that root.

    Args:
        a, b: [N, K] logits of the same examples; probabilities where `probs`.
        label: [N], not read.

    Raises:
        UserError: the arrays do not fit each other; `a` or `b` are probabilities, or are none with
            `probs`.

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
    """The mean KL(p || q) = 1/N sum_ic p_ic log(p_ic / q_ic) of p = softmax(a), q = softmax(b).

    The forward one if `a` is the teacher and `b` the student. From log-softmaxes, so that it is
    finite of logits; infinite of probabilities where q is 0 and p is not.

    Args:
        a, b: [N, K] logits of the same examples; probabilities where `probs`.
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
        a, b: [N, K] logits of the same examples; probabilities where `probs`.
        label: [N], not read.

    Raises:
        UserError: as `jensen_shannon`.

    >>> import numpy as np
    >>> round(kl_reverse(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 3)
    48.807
    """
    return of_pair("kl_reverse", KL_REVERSE, a, b, label, probs=probs)


def jeffreys(a: Any, b: Any, label: Any = None, *, probs: bool = False) -> float:
    """The mean of KL(p || q) + KL(q || p), the sum of both, which is symmetric.

    Args:
        a, b: [N, K] logits of the same examples; probabilities where `probs`.
        label: [N], not read.

    Raises:
        UserError: as `jensen_shannon`.

    >>> import numpy as np
    >>> round(jeffreys(np.array([[99.0, 0.0]]), np.array([[0.0, 0.0]])), 6)
    49.5
    """
    return of_pair("jeffreys", JEFFREYS, a, b, label, probs=probs)
