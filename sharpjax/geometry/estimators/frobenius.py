"""The Frobenius norm of an operator, with the standard error of the estimate."""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Target
from sharpjax.geometry.estimators import driver, hutchinson
from sharpjax.geometry.estimators.request import Found, check
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator

Method = Literal["deflated", "hutchinson"]
Params = Any

_LEAST = 16


class Frobenius(NamedTuple):
    """A Frobenius norm and its standard error.

    Attributes:
        value: the norm.
        standard_error: its standard deviation over the probes.
        num_products: int32, all products.
        status: `Status`, int32.
    """

    value: jax.Array
    standard_error: jax.Array
    num_products: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """The estimate, as `frobenius`."""
        return {"frobenius": Estimate(self.value, self.standard_error, self.num_products)}


@solver
def frobenius(
    operator: Operator,
    *,
    key: jax.Array,
    method: Method = "deflated",
    relative_error: Target = None,
    absolute_error: Target = None,
    max_products: int | None = None,
    basis_size: int | None = None,
) -> Frobenius:
    """The Frobenius norm of a symmetric operator: the root of the sum of squared eigenvalues.

    "deflated" first removes the largest eigenvalues, as in `trace`; use this method. "hutchinson"
    uses probes alone.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(4.0) * w**2) / 2
    >>> found = frobenius(hessian(loss, jnp.ones(4), jnp.ones(8)), key=jax.random.key(0))
    >>> round(float(found.value) ** 2, 4)
    14.0

    `|A|_F^2` is the mean of `|A z|^2` over normal probes z. The error comes from the spread of the
    values, and at least 16 probes are taken. At a nominal rate of .95 the error covers in .92 to
    .94 of runs; with a basis, which may leave a part of one large eigenvalue, in .87 to .91.

    Cost: one product for each probe and each vector of the basis. Memory: five vectors with
    "hutchinson"; nine more and the basis with "deflated".

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes.
        method: as above.
        relative_error: stop when the standard error is at most this share of the norm.
        absolute_error: or when it is at most this. Without either, all `max_products` are used.
        max_products: limit on the products, at least 16; default 100. If they do not reach the
            requested error, `status` is `NOT_CONVERGED`.
        basis_size: largest number of basis vectors of "deflated"; default 32.

    Raises:
        UserError: an argument does not fit or would be ignored.
    """
    request = check(
        *("frobenius", operator, key, method, get_args(Method)),
        *(relative_error, absolute_error, max_products, basis_size),
        least=_LEAST,
    )
    return driver.solve(request, FrobeniusStatistic(), _finish)


@dataclasses.dataclass(frozen=True)
class FrobeniusStatistic:
    """The exact part of `|A|_F^2` with its variance and bias; sums over probes; the last probe.

    The sums are of `|Bz|^2`, of `|Bz|^4`, and of `(y'Bz - z'By)^2` for consecutive probes y and z.
    Without noise in the products the last would be 0; with noise e its mean is `2 |e|^2`. This
    noise makes `|Bz|^2` too large by `|e|^2`.
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
        # 0 for the first probe, which has no predecessor.
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

    def read(self, treedef: Any, exact: Any, sums: Any, count: jax.Array) -> tuple[Any, Any, Any]:
        return *self.estimate(exact, sums, count), None


def _finish(found: Found, status: jax.Array) -> Frobenius:
    return Frobenius(found.value, found.error, found.num_products, status)
