"""Divergences of a student's outputs from its teacher's, which distillation minimises.

Everywhere z are the student's outputs and t the teacher's, both [B, K]; p = softmax(t/T) and q =
softmax(z/T). Losses are summed over classes and averaged over examples (torch's 'batchmean'). Some
codes also average over classes: the loss is then K times smaller, and so is the teacher's share of
the total. Divergences with a temperature have a factor T^2, without which their slope would fall as
1/T^2. They are computed in at least float32. Nothing here stops a gradient in t; `losses.Teacher`
does. If the two shapes differ, as for a teacher of other classes or examples, or are not of rank 2,
they raise a UserError.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.losses.centring import centred
from sharpjax.losses.cross_entropy import cross_entropies

DIVERGENCES: Mapping[str, str] = {
    "kl": "T^2 KL(p || q), the usual one",
    "reverse-kl": "T^2 KL(q || p)",
    "jensen-shannon": "T^2 JS(p, q)",
    "logits": "half the squared distance of the outputs",
    "centred-logits": "the same, each less its mean over classes",
    "hard": "cross-entropy of the teacher's first choice",
    "standardised": "T^2 KL of outputs of mean 0 and deviation 1",
    "dist": "T^2 (1 - correlation), within examples and within classes",
}
"""The divergences that a teacher may have."""


def distillation(logits: jax.Array, targets: jax.Array, temperature: ArrayLike) -> jax.Array:
    """T^2/B sum_i KL(softmax(t_i/T) || softmax(z_i/T)), of outputs z and targets t [B, K].

    It is summed over classes and averaged over examples. The slope in z is
    T (softmax(z/T) - softmax(t/T))/B. The factor T^2 thus keeps the teacher's share about the same
    at every temperature (arXiv 1503.02531, section 2). As T goes to infinity the loss tends to
    1/(2BK) sum_i |z_i - t_i|^2, with z_i and t_i centred over classes.

    >>> z = jnp.array([[0.0, 0.0]])
    >>> value = distillation(z, jnp.log(jnp.array([[0.75, 0.25]])), 1.0)
    >>> print(f"{value:.5f}")  # log 2 less the entropy
    0.13081
    """
    logits, targets = _checked("losses.distillation", logits, targets)
    T = jnp.asarray(temperature, logits.dtype)
    log_p, log_q = (jax.nn.log_softmax(x / T) for x in (targets, logits))
    return T**2 * _kl(log_p, log_q) / len(logits)


def reverse_distillation(
    logits: jax.Array, targets: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """T^2/B sum_i KL(softmax(z_i/T) || softmax(t_i/T)): the mean under the student, not the
    teacher.

    It requires that the student puts no probability where the teacher has none, but lets it leave
    out some of what the teacher has (arXiv 2306.08543). The slope in z_i is T q (log q/p - KL)/B,
    with q the student's probabilities. It is infinite if a teacher's probability is 0. As T goes to
    infinity it has the same limit as `distillation`.

    >>> z = jnp.array([[0.0, 0.0]])
    >>> value = reverse_distillation(z, jnp.log(jnp.array([[0.75, 0.25]])), 1.0)
    >>> print(f"{value:.5f}")  # log(4/3)/2
    0.14384
    """
    logits, targets = _checked("losses.reverse_distillation", logits, targets)
    T = jnp.asarray(temperature, logits.dtype)
    log_p, log_q = (jax.nn.log_softmax(x / T) for x in (targets, logits))
    return T**2 * _kl(log_q, log_p) / len(logits)


def jensen_shannon_distillation(
    logits: jax.Array, targets: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """T^2/B sum_i (KL(p_i || m_i) + KL(q_i || m_i))/2, with m = (p + q)/2, in nats.

    It is symmetric, and at most T^2 log 2 (arXiv 2306.13649 has it with other weights). The slope
    in z_i is T q (log q/m - its mean under q)/(2B). As T goes to infinity it is a quarter of
    `distillation`, so the same teacher weight has less effect.

    >>> apart = jnp.array([[200.0, 0.0]])
    >>> print(jensen_shannon_distillation(apart, -apart, 1.0))  # log 2
    0.6931472
    """
    logits, targets = _checked("losses.jensen_shannon_distillation", logits, targets)
    T = jnp.asarray(temperature, logits.dtype)
    log_p, log_q = (jax.nn.log_softmax(x / T) for x in (targets, logits))
    # Both -inf: log m is too, and the slope of logaddexp would be NaN.
    none = jnp.isneginf(log_p) & jnp.isneginf(log_q)
    log_sum = jnp.logaddexp(*(jnp.where(none, 0, x) for x in (log_p, log_q)))
    log_m = jnp.where(none, -jnp.inf, log_sum - jnp.log(jnp.asarray(2, logits.dtype)))
    return T**2 * (_kl(log_p, log_m) + _kl(log_q, log_m)) / (2 * len(logits))


def logit_distillation(
    logits: jax.Array, targets: jax.Array, *, centred: bool = False
) -> jax.Array:
    """1/(2B) sum_i |z_i - t_i|^2 (arXiv 1312.6184); there is no temperature.

    The slope in z is (z - t)/B. A constant added to all outputs of an example changes no
    probability, but it does change this loss. With `centred`, z and t first have their means over
    classes subtracted, which removes this effect; divided by K, the loss is then the limit of
    `distillation` at high temperature.

    >>> z, t = jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])
    >>> print(logit_distillation(z, t), logit_distillation(z, t, centred=True))
    5.0 1.0
    """
    logits, targets = _checked("losses.logit_distillation", logits, targets)
    apart = logits - targets
    if centred:
        apart = apart - jnp.mean(apart, -1, keepdims=True)
    return jnp.sum(jnp.square(apart)) / (2 * len(logits))


def hard_distillation(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-1/B sum_i log softmax(z_i)[argmax t_i] (arXiv 2012.12877), at temperature 1.

    The first of equal outputs is chosen. NaN if a teacher's outputs are NaN.

    >>> print(hard_distillation(jnp.zeros((1, 4)), jnp.array([[0.0, 2.0, 1.0, 2.0]])))  # log 4
    1.3862944
    """
    logits, targets = _checked("losses.hard_distillation", logits, targets)
    # A label of -1 is not a class, and its loss is NaN.
    label = jnp.where(jnp.isnan(jnp.max(targets, -1)), -1, jnp.argmax(targets, -1))
    return jnp.mean(cross_entropies("losses.hard_distillation", logits, label))


def standardised_distillation(
    logits: jax.Array, targets: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """`distillation` of standardised outputs: their mean over classes is subtracted, and they are
    divided by their standard deviation over classes. A student keeps its own scale (arXiv
    2403.01549).

    The variance is divided by K - 1, as for `torch.std` in the authors' code. Equal outputs become
    0, with a slope of 0.

    >>> z = jnp.array([[1.0, 2.0, 4.0]])
    >>> print(abs(standardised_distillation(5 * z + 3, z, 2.0)) < 1e-6)
    True
    """
    logits, targets = _checked("losses.standardised_distillation", logits, targets)
    return distillation(_standardised(logits), _standardised(targets), temperature)


def dist_distillation(logits: jax.Array, targets: jax.Array, temperature: ArrayLike) -> jax.Array:
    """T^2 (1/B sum_i (1 - r(q_i, p_i)) + 1/K sum_k (1 - r(q_:k, p_:k))), with r Pearson's
    correlation: over the classes of an example, and over the examples of a class (DIST, arXiv
    2205.10536, with beta = gamma = 1).

    The second part is a property of the batch, not of its examples: it depends on how they are
    batched. If one of the two does not vary, r is 0, with a slope of 0. For a single example the
    second part is therefore 1.

    >>> z = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    >>> print(f"{dist_distillation(z, -z, 1.0):.4f}")
    4.0000
    """
    logits, targets = _checked("losses.dist_distillation", logits, targets)
    T = jnp.asarray(temperature, logits.dtype)
    q, p = (jax.nn.softmax(x / T) for x in (logits, targets))
    return T**2 * sum(jnp.mean(1 - _correlation(q, p, axis)) for axis in (1, 0))


def divergence(
    kind: str, logits: jax.Array, targets: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """The divergence with this name in `DIVERGENCES`. "logits", "centred-logits" and "hard" do not
    use the temperature.

    >>> z = jnp.array([[1.0, 3.0]])
    >>> print(divergence("centred-logits", z, jnp.zeros((1, 2)), 4.0))
    1.0
    """
    match kind:
        case "logits" | "centred-logits":
            return logit_distillation(logits, targets, centred=kind == "centred-logits")
        case "hard":
            return hard_distillation(logits, targets)
    return _OF_TEMPERATURE[kind](logits, targets, temperature)


_OF_TEMPERATURE: Mapping[str, Callable[..., Any]] = {
    "kl": distillation,
    "reverse-kl": reverse_distillation,
    "jensen-shannon": jensen_shannon_distillation,
    "standardised": standardised_distillation,
    "dist": dist_distillation,
}


def _checked(caller: str, logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both, in at least float32."""
    if logits.shape != targets.shape:
        raise UserError(
            f"{caller}: the student's outputs are {list(logits.shape)} and the teacher's "
            f"{list(targets.shape)}; give both of the same examples and classes."
        )
    if logits.ndim != 2:
        raise UserError(
            f"{caller}: the outputs are {list(logits.shape)}; give [B, K], a row for each example "
            "or token, as of `logits.reshape(-1, logits.shape[-1])`."
        )
    return tree.widen((logits, targets))


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """The sum of KL(p || q) over all rows.

    It sums p d - p + q with d = log p - log q, which differs from p d by numbers of sum 0. These
    terms are at least 0, and of the order of d^2 for p near q. Terms p d would be of the order of d
    and cancel, with an error of eps, which T^2 multiplies.
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    d = jnp.where(p == 0, 0, log_p - log_q)  # 0 log 0 = 0; NaN stays
    near = jnp.abs(d) < 1
    small = jnp.where(near, d, 0)
    terms = jnp.where(near & (p > 0), p * (small + jnp.expm1(-small)), p * d - p + q)
    return jnp.sum(terms)


def _standardised(outputs: jax.Array) -> jax.Array:
    apart, squared, varies = centred(outputs, 1)
    deviation = jnp.sqrt(jnp.where(varies, squared, 1) / (outputs.shape[1] - 1))
    return jnp.where(varies, apart / deviation, 0)


def _correlation(x: jax.Array, y: jax.Array, axis: int) -> jax.Array:
    (x, xx, x_varies), (y, yy, y_varies) = (centred(one, axis) for one in (x, y))
    varies = x_varies & y_varies
    lengths = jnp.sqrt(jnp.where(varies, xx, 1)) * jnp.sqrt(jnp.where(varies, yy, 1))
    return jnp.squeeze(jnp.where(varies, jnp.sum(x * y, axis, keepdims=True) / lengths, 0), axis)
