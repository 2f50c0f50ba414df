"""The diagonal of an operator, each entry with the standard error of its estimate."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Target
from sharpjax.geometry.estimators import driver, hutchinson
from sharpjax.geometry.estimators.request import Found, check
from sharpjax.geometry.exact.contributions import Kind
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator

Method = Literal["deflated", "exact", "hutchinson"]
Params = Any

_LEAST = 16


class Diagonal(NamedTuple):
    """A diagonal and its standard errors.

    Attributes:
        value: tree like the operator's vectors, `A_ii`.
        standard_error: a tree like `value`, the standard deviation of each entry over the probes.
        norm: `|diag A|_2`, corrected for what the errors add to it on average.
        error: the root mean square of `|value - diag A|_2` over the probes.
        num_products: int32, all products; with "exact" the number of back-propagations per example
            plus the probes.
        status: `Status`, int32.
    """

    value: Params
    standard_error: Params
    norm: jax.Array
    error: jax.Array
    num_products: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """The norm, as `diagonal_norm`; its error is at most that of the whole diagonal."""
        return {"diagonal_norm": Estimate(self.norm, self.error, self.num_products)}


@solver
def diagonal(
    operator: Operator,
    *,
    key: jax.Array | None = None,
    method: Method = "deflated",
    relative_error: Target = None,
    absolute_error: Target = None,
    max_products: int | None = None,
    basis_size: int | None = None,
) -> Diagonal:
    """The diagonal of a symmetric operator, each entry with its standard error.

    | method | take it for |
    |---|---|
    | "deflated", the default | any operator |
    | "exact" | losses that know their parts (`composed`): no error on piecewise linear nets |
    | "hutchinson" | comparison |

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(4.0) * w**2) / 2
    >>> found = diagonal(hessian(loss, jnp.ones(4), jnp.ones(8)), key=jax.random.key(0))
    >>> found.value.round(4).tolist()
    [0.0, 1.0, 2.0, 3.0]

    "hutchinson" is the mean of `z (A z)`, entry by entry, over random signs z. The variance of one
    entry from one probe is the sum of the squares of the off-diagonal entries in its row.
    "deflated" and "exact" work as in `trace`. The errors come from the spread of the values. With
    16 probes, the error of a single entry covers a little less often than its nominal rate.

    Cost: one product for each probe and each vector of the basis. Memory: six vectors and the
    basis.

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes. "exact" needs none if nothing has to be probed.
        method: as above.
        relative_error: stop when `error` is at most this share of `norm`.
        absolute_error: or when it is at most this. Without either, all `max_products` are used.
        max_products, basis_size: as in `trace`; at least 16 products.

    Raises:
        UserError: an argument does not fit or would be ignored; with "exact" as in `trace`.

    Reference: Bekas, Kokiopoulou and Saad, 2007.
    """
    request = check(
        *("diagonal", operator, key, method, get_args(Method)),
        *(relative_error, absolute_error, max_products, basis_size),
        least=_LEAST,
    )
    return driver.solve(request, DiagonalStatistic(), _finish)


@dataclasses.dataclass(frozen=True)
class DiagonalStatistic:
    """`exact` with its variance, and sums of `z (Bz)` and of its square; trees like a vector."""

    kind: ClassVar[Kind] = "diagonal"
    least: int = _LEAST

    def draw(self, key: jax.Array, like: Params) -> Params:
        return tree.random_rademacher(key, like)

    def begin(self, like: Params) -> tuple[Any, Any]:
        return (like, like), (like, like)

    def add(self, sums: Any, probe: Params, product: Params) -> Any:
        values = jax.tree.map(jnp.multiply, probe, product)
        add = functools.partial(jax.tree.map, jnp.add)
        return add(sums[0], values), add(sums[1], jax.tree.map(jnp.square, values))

    def deflate(self, exact: Any, q: Params, b: Params, noise: jax.Array) -> Any:
        value, variance = exact
        overlap, squares = tree.vdot(q, b), jax.tree.map(jnp.square, q)
        value = jax.tree.map(
            lambda d, q, b, s: d + 2 * q * b - overlap.astype(d.dtype) * s, value, q, b, squares
        )
        variance = tree.add_scaled(variance, noise, squares)
        rounded = jax.tree.map(hutchinson.rounding, value)
        return value, jax.tree.map(jnp.add, variance, rounded)

    def estimate(self, exact: Any, sums: Any, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, variance = self.entries(exact, sums, count)
        total = tree.vdot(variance, jax.tree.map(jnp.ones_like, variance))
        return jnp.sqrt(jnp.maximum(tree.vdot(value, value) - total, 0)), jnp.sqrt(total)

    def entries(self, exact: Any, sums: Any, count: jax.Array) -> tuple[Params, Params]:
        """The value of each entry and its variance."""

        def value(d, s):
            return d + s / count.astype(s.dtype)

        def variance(known, s, square):
            number = count.astype(s.dtype)
            spread = jnp.maximum(square - jnp.square(s) / number, 0)
            return known + spread / (number * jnp.maximum(number - 1, 1))

        return jax.tree.map(value, exact[0], sums[0]), jax.tree.map(variance, exact[1], *sums)

    def read(self, treedef: Any, exact: Any, sums: Any, count: jax.Array) -> tuple[Any, Any, Any]:
        value, variance = self.entries(exact, sums, count)

        def error(v, x):
            # If all probes agree, as on a diagonal matrix, the roundings of their sum remain.
            return jnp.sqrt(v + count.astype(x.dtype) * hutchinson.rounding(x))

        return value, jax.tree.map(error, variance, value), None


def _finish(found: Found, status: jax.Array) -> Diagonal:
    whole, error = units.norm(found.value), units.norm(found.error)
    share = jnp.square(error / jnp.where(whole > 0, whole, 1))
    return Diagonal(
        value=found.value,
        standard_error=found.error,
        norm=whole * jnp.sqrt(jnp.maximum(1 - share, 0)),
        error=error,
        num_products=found.num_products,
        status=status,
    )
