"""The log-determinant of a positive operator."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharpjax.errors import whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import check_error
from sharpjax.geometry.lanczos import krylov, recurrence
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_key, check_operator
from sharpjax.geometry.spectra import quadrature
from sharpjax.geometry.status import Status, tells_unknown

_MIN_PROBES = 4
_SLOWEST = 0.9  # largest assumed ratio of one difference to the one before


class LogDeterminant(NamedTuple):
    """An estimate of `log det A`.

    Attributes:
        value: the estimate; NaN if A is not positive, or is singular in this precision.
        standard_error: that of the probes.
        quadrature_error: an estimate of the error from using only m products per probe, from their
            own convergence. The standard error does not include it. With too few products the value
            is too large.
        smallest, smallest_residual: the smallest Ritz value, and how near to it an eigenvalue lies.
        num_products: int32, all products.
        status: `Status`, int32. `NOT_POSITIVE`: A is not positive, or is singular in this
            precision, since an eigenvalue lies below the noise of the products. `NOT_CONVERGED`: A
            may not be positive, judging by the smallest Ritz value less its residual; or the errors
            exceed the requested ones (without a request: `quadrature_error` exceeds twice
            `standard_error`).
    """

    value: jax.Array
    standard_error: jax.Array
    quadrature_error: jax.Array
    smallest: jax.Array
    smallest_residual: jax.Array
    num_products: jax.Array
    status: jax.Array

    @tells_unknown
    def estimates(self) -> dict[str, Estimate]:
        """`logdet`, and `logdet_quadrature_error`, whose own standard error is NaN (not known)."""
        count = self.num_products
        bias = Estimate(self.quadrature_error, jnp.full_like(self.quadrature_error, jnp.nan), count)
        return {
            "logdet": Estimate(self.value, self.standard_error, count),
            "logdet_quadrature_error": bias,
        }


@solver
def logdet(
    operator: Operator,
    *,
    key: jax.Array,
    num_steps: int = 64,
    relative_error: float | jax.Array | None = None,
    absolute_error: float | jax.Array | None = None,
    num_probes: int = 8,
) -> LogDeterminant:
    """The log-determinant of a positive operator, with its errors.

    Use it for Laplace approximations and marginal likelihoods, on a Gauss-Newton matrix or a
    Hessian at a minimum, with a damping added.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(1000.0) * w**2) / 2
    >>> operator = hessian(loss, jnp.ones(1000), jnp.ones(8)) + 10.0
    >>> found = logdet(operator, key=jax.random.key(0))
    >>> truth = jnp.sum(jnp.log(jnp.arange(1000.0) + 10))
    >>> bool(abs(found.value - truth) < 3 * found.standard_error), int(found.status)
    (True, 0)

    `log det A = tr log A` is computed by stochastic Lanczos quadrature, as in `spectral_density`.
    One probe has the variance `2 n / (n + 2)` times that of the logarithms of the eigenvalues,
    times n. So a factor on A adds `n log factor` and no error. Noise of the products spreads the
    Ritz values and thus enters the standard error; noise too small for this is added separately.

    The same run checks that A is positive. The smallest Ritz value less its residual must lie above
    the noise of the products (in float32 6e-6 of the largest eigenvalue); otherwise `status` is
    `NOT_CONVERGED`. If the Ritz value itself lies below the noise, the logarithms of the smallest
    eigenvalues are noise, the value is NaN, and `status` is `NOT_POSITIVE`. Then damping helps;
    more products do not.

    Args:
        operator: symmetric and positive.
        key: for the probes.
        num_steps: m, products for each probe, at least 4. The number needed grows as the root of
            the condition number; `quadrature_error` shows whether m was enough.
        relative_error: stop when the standard error is at most this share of the value.
        absolute_error: or when it is at most this. Without either, all `num_probes` are used. A
            value near zero never meets a relative error.
        num_probes: limit on the probes, at least 4.

    Raises:
        UserError: an argument does not fit.

    Cost: `num_steps` products for each probe. Memory: three vectors. On CPU, do not call this
    function inside your own jit if the loss convolves (`sharpjax.loops`).

    Reference: Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017.
    """
    check_operator("logdet", operator)
    num_steps = whole_number("logdet", "num_steps", num_steps, least=4)
    num_probes = whole_number("logdet", "num_probes", num_probes, least=_MIN_PROBES)
    check_error("logdet", "relative_error", relative_error)
    check_error("logdet", "absolute_error", absolute_error)
    key = check_key("logdet", key)
    has_target = relative_error is not None or absolute_error is not None
    targets = tuple(jnp.asarray(0.0 if e is None else e) for e in (relative_error, absolute_error))
    probed = quadrature.run(
        *(operator, key),
        num_steps=num_steps,
        num_probes=num_probes,
        criterion=_is_within if has_target else None,
        targets=targets,
    )
    return from_probes(has_target, probed, None, 0.0, targets)


@tells_unknown
@functools.partial(jax.jit, static_argnames="has_target")
def from_probes(
    has_target: bool,
    probed: quadrature.Probed,
    atoms: jax.Array | None,
    damping: jax.typing.ArrayLike,
    targets: tuple[jax.Array, jax.Array],
) -> LogDeterminant:
    """The log-determinant of `A + damping` from probes of A.

    Args:
        has_target: whether `targets` must be met.
        probed: probes in the complement of the vectors of `atoms`.
        atoms: the individually known eigenvalues; NaN marks an absent one.
        damping: the number added to A.
        targets: requested errors, relative and absolute.
    """
    damping = jnp.asarray(damping, probed.nodes.dtype)
    known = jnp.zeros_like(damping, shape=0) if atoms is None else atoms
    is_known = ~jnp.isnan(known)
    logs = jnp.sum(jnp.where(is_known, _log(jnp.where(is_known, known, 0) + damping), 0))
    mean, error = quadrature.mean_and_error(probed, _log(probed.nodes + damping))
    value, error = probed.dimension * mean + logs, probed.dimension * error
    error = jnp.maximum(error, quadrature.least_error(probed, _log(probed.nodes + damping), mean))

    smallest, residual = quadrature.lowest(probed)
    smallest = smallest + damping
    largest = jnp.max(jnp.where(probed.weights > 0, jnp.abs(probed.nodes), 0))
    largest = jnp.maximum(largest, jnp.max(jnp.where(is_known, jnp.abs(known), 0), initial=0))
    noise = 10 * krylov.noise(probed.nodes.dtype) * (largest + jnp.abs(damping))
    # Larger noise spreads the nodes. Noise below this ends a process and shows nowhere else.
    # Taken as a share of each node, since the square of a tiny number would underflow.
    share = jnp.square(noise / (probed.nodes + damping))
    spread = jnp.sqrt(quadrature.mean_and_error(probed, share)[0])
    count = probed.num_probes.astype(noise.dtype)
    error = jnp.hypot(error, spread * jnp.sqrt(probed.dimension / count))
    bias = probed.dimension * _bias(probed, damping)

    # A value no larger than the noise of the products may be zero or negative.
    negative = smallest <= noise
    sure = smallest - residual > noise
    asked = jnp.maximum(targets[0] * jnp.abs(value), targets[1]) if has_target else 2 * error
    met = sure & (bias <= jnp.maximum(asked, 1e-6 * jnp.abs(value)))
    met &= (error <= asked) if has_target else True
    status = jnp.where(met, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(negative, Status.NOT_POSITIVE, status)
    status = jnp.where(probed.finite, status, Status.NON_FINITE)
    good = probed.finite & ~negative
    return LogDeterminant(
        value=jnp.where(good, value, jnp.nan),
        standard_error=jnp.where(good, error, jnp.nan),
        quadrature_error=jnp.where(good, bias, jnp.nan),
        smallest=smallest,
        smallest_residual=residual,
        num_products=probed.num_products,
        status=status.astype(jnp.int32),
    )


def _log(x):
    return jnp.log(x)  # NaN below 0 is intended


def _bias(probed: quadrature.Probed, damping) -> jax.Array:
    """The remaining error, from the last two differences: Gauss quadrature converges
    geometrically."""
    steps = probed.nodes.shape[1]
    half, most = (_shorter_mean(probed, damping, n) for n in (steps // 2, 3 * steps // 4))
    whole, _ = quadrature.mean_and_error(probed, _log(probed.nodes + damping))
    before, now = jnp.abs(most - half), jnp.abs(whole - most)
    ratio = jnp.where(before > 0, now / jnp.where(before > 0, before, 1), 0)
    ratio = jnp.minimum(ratio, _SLOWEST)
    return now * ratio / (1 - ratio)


def _shorter_mean(probed: quadrature.Probed, damping, steps: int) -> jax.Array:
    """The mean from the first `steps` products of each probe."""

    def one(alpha, beta):
        part = recurrence.Recurrence(
            *(None, None, jnp.ones_like(probed.dimension), alpha[:steps], beta[:steps]),
            scale=probed.dimension,
            leak=probed.dimension,
            noise=probed.dimension,
            num_products=jnp.int32(steps),
            finite=probed.finite,
            invariant=~probed.finite,
        )
        nodes, vectors = krylov.ritz(part)
        return nodes, jnp.square(vectors[0])

    nodes, weights = jax.vmap(one)(probed.alpha, probed.beta)
    used = jnp.arange(len(nodes), dtype=jnp.int32) < probed.num_probes
    weights = jnp.where(jnp.expand_dims(used, 1), weights, 0)
    shorter = probed._replace(nodes=nodes, weights=weights)
    return quadrature.mean_and_error(shorter, _log(nodes + damping))[0]


def _is_within(probed: quadrature.Probed, targets) -> jax.Array:
    relative, absolute = (t.astype(probed.nodes.dtype) for t in targets)
    mean, error = quadrature.mean_and_error(probed, _log(probed.nodes))
    within = error <= jnp.maximum(relative * jnp.abs(mean), absolute / probed.dimension)
    return (probed.num_probes >= _MIN_PROBES) & within
