"""The Frobenius norm of an operator, with the standard error of the estimate."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Target, ask
from sharpjax.geometry.estimators import deflation, hutchinson
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_key, check_operator

Method = Literal["deflated", "hutchinson"]
Params = Any

_LEAST = 16


class Frobenius(NamedTuple):
    """An estimate of a Frobenius norm.

    Attributes:
        value: the estimate.
        standard_error: its standard deviation over the probes.
        num_evaluations: int32, products that it took.
        status: `Status`, int32.
    """

    value: jax.Array
    standard_error: jax.Array
    num_evaluations: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """The estimate, as `frobenius`."""
        return {"frobenius": Estimate(self.value, self.standard_error, self.num_evaluations)}


@solver
def frobenius(
    operator: Operator,
    *,
    key: jax.Array,
    method: Method = "deflated",
    relative_error: Target = None,
    absolute_error: Target = None,
    max_probes: int = 100,
    basis_size: int = 32,
) -> Frobenius:
    """The Frobenius norm of a symmetric operator, the root of its sum of squared eigenvalues.

    `|A|_F^2 = E |A z|^2` for normal `z`, and the variance of one probe is `2 tr A^4`: nearly all of
    it comes from the largest eigenvalues, which a small Krylov basis takes out: with `P = I - QQ'`,
    `|A|_F^2 = |Q'AQ|_F^2 + 2 |P A Q|_F^2 + |P A P|_F^2`, the first two exact. The error is that of
    a mean, from the spread of `|P A P z|^2`, and 16 probes at least are taken. It covers in .92 to
    .94 of runs where it is nominally .95, and in .87 to .91 with a basis, which may leave a part of
    one large eigenvalue.

    Noise e of the products makes `|A z + e|^2` too large by `|e|^2`, and the exact part wrong by
    some `|A| |e|`. Both are measured, from `y'A z = z'A y`, which noise breaks, and are in the
    error: in full, not subtracted, so that it is up to `sqrt(2 n)` times too large where nothing
    but noise is left, and n is smaller than the basis.

    Cost: one product per probe and per vector of the basis. Memory: five vectors with
    "hutchinson", with "deflated" nine more and the basis.

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes.
        method: "deflated": a Krylov basis as far as it pays, and probes. "hutchinson": probes.
        relative_error: stop where the standard error is at most this share of the estimate.
        absolute_error: or at most this. Without either, `max_probes` are used.
        max_probes: products at the most, of every kind. Where they do not reach the error that is
            asked for, `status` is `NOT_CONVERGED`.
        basis_size: vectors in the basis at the most.

    Raises:
        UserError: an argument does not fit.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(4.0) * w**2) / 2
    >>> found = frobenius(hessian(loss, jnp.ones(4), jnp.ones(8)), key=jax.random.key(0))
    >>> round(float(found.value) ** 2, 4)
    14.0
    """
    check_operator("frobenius", operator)
    accuracy = ask("frobenius", relative_error, absolute_error)
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    max_probes = whole_number("frobenius", "max_probes", max_probes, least=_LEAST)
    basis_size = whole_number("frobenius", "basis_size", basis_size)
    key = check_key("frobenius", key)
    state, steps = deflation.run(
        *(FrobeniusStatistic(), key, operator),
        accuracy=accuracy,
        max_products=max_probes,
        basis_size=basis_size if method == "deflated" else 0,
    )
    return _finish(accuracy.is_asked, state, steps)


@dataclasses.dataclass(frozen=True)
class FrobeniusStatistic:
    """`exact` squared, its variance and its bias; sums over probes, and the last of them.

    The sums are of `|Bz|^2`, of `|Bz|^4`, and of `(y'Bz - z'By)^2` for neighbours y and z: 0 but
    for the noise e of products, of mean `2 |e|^2`, and by `|e|^2` the first is too large.
    """

    least: int = _LEAST

    def draw(self, key: jax.Array, like: Params) -> Params:
        return tree.random_normal(key, like)

    def begin(self, like: Params) -> tuple[Any, Any]:
        zero = tree.vdot(like, like)
        return (zero, zero, zero), (zero, zero, zero, (like, like))

    def add(self, sums: Any, probe: Params, product: Params) -> Any:
        total, squares, asymmetry, (other, other_product) = sums
        square = tree.vdot(product, product)
        # 0 for the first, beside which there is no other yet.
        defect = tree.vdot(other, product) - tree.vdot(probe, other_product)
        last = (probe, product)
        return total + square, squares + jnp.square(square), asymmetry + jnp.square(defect), last

    def deflate(self, exact: Any, q: Params, b: Params, noise: jax.Array) -> Any:
        value, variance, bias = exact
        norm, overlap = tree.vdot(b, b), jnp.square(tree.vdot(q, b))
        # The value changes by 2 (q'b) q'e and, outside of q, by 4 b'e.
        slope = 16 * norm - 12 * overlap
        value = value + 2 * norm - overlap
        variance = variance + slope * noise + hutchinson.rounding(value)
        return value, variance, bias + 2 * noise

    def estimate(self, exact: Any, sums: Any, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        (value, variance, bias), (total, squares, asymmetry, _) = exact, sums
        number = count.astype(total.dtype)
        others = jnp.maximum(number - 1, 1)
        size = jnp.sqrt(value + total / number)
        spread = jnp.maximum(squares - jnp.square(total) / number, 0)
        bias = bias + asymmetry / (2 * others)
        error = jnp.sqrt(spread / (number * others) + variance + jnp.square(bias))
        return size, error / jnp.where(size > 0, 2 * size, 1)


@functools.partial(jax.jit, static_argnames="to_accuracy")
def _finish(to_accuracy, state: hutchinson.Probing, steps) -> Frobenius:
    statistic = FrobeniusStatistic()
    value, error = statistic.estimate(state.exact, state.sums, state.count)
    unit = units.known(state.unit)
    return Frobenius(
        value=value * unit,
        standard_error=error * unit,
        num_evaluations=state.count + steps,
        status=hutchinson.status(statistic, state, to_accuracy),
    )
