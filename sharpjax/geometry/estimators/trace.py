"""The trace of an operator with its standard error, in total and for each leaf."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Target, how_it_ended
from sharpjax.geometry.estimators import driver, hutchinson, xtrace
from sharpjax.geometry.estimators.hutchinson import by_leaf
from sharpjax.geometry.estimators.request import Found, check
from sharpjax.geometry.exact.contributions import Kind
from sharpjax.geometry.exact.remainder import LEAST_PROBES
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator

Method = Literal["deflated", "exact", "hutchinson", "xtrace"]
Params = Any

_LEAST = {"exact": LEAST_PROBES, "xtrace": 2 * xtrace.LEAST_COLUMNS}  # of products; else 4


class Trace(NamedTuple):
    """A trace and its standard error.

    Attributes:
        value: the trace.
        standard_error: its standard deviation over the probes; 0 where nothing was probed.
        remainder: the part of `value` that was probed; the rest is exact.
        by_leaf: name of each leaf to the trace of its diagonal block, from the same probes; empty
            with "xtrace". The errors of the leaves are bounds, at most a factor sqrt(2) too large;
            their squares add up to the square of the total error.
        num_products: int32, all products; with "exact" the number of back-propagations per example
            plus the probes.
        status: `Status`, int32.
    """

    value: jax.Array
    standard_error: jax.Array
    remainder: jax.Array
    by_leaf: dict[str, Estimate]
    num_products: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """The estimate, as `trace`."""
        return {"trace": Estimate(self.value, self.standard_error, self.num_products)}

    def block(self, where: str | Sequence[str]) -> Estimate:
        """The trace of the diagonal block of some leaves, such as `"Dense_0/*"`.

        It takes no further products.

        Args:
            where: one glob or several on the names of the leaves, as in `sharpjax.tree.select`.

        Raises:
            UserError: a glob matches no leaf, or the method gives no values by leaf.
        """
        if not self.by_leaf:
            raise UserError(
                "Trace.block: method='xtrace' gives no values by leaf; method='deflated' does."
            )
        chosen = tree.select({name: 0 for name in self.by_leaf}, where)
        leaves = [self.by_leaf[name] for name, is_chosen in chosen.items() if is_chosen]
        value = tree.total([jnp.asarray(leaf.value) for leaf in leaves])
        variance = tree.total([jnp.square(jnp.asarray(leaf.standard_error)) for leaf in leaves])
        return Estimate(value, jnp.sqrt(variance), self.num_products)


@solver
def trace(
    operator: Operator,
    *,
    key: jax.Array | None = None,
    method: Method = "deflated",
    relative_error: Target = None,
    absolute_error: Target = None,
    max_products: int | None = None,
    basis_size: int | None = None,
) -> Trace:
    """The trace of a symmetric operator with its standard error, in total and for each leaf.

    | method | take it for |
    |---|---|
    | "deflated", the default | any operator |
    | "exact" | losses that know their parts (`composed`): no error on piecewise linear nets |
    | "hutchinson", "xtrace" | comparison; spectra that decay fast from end to end |

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2) / 2
    >>> operator = hessian(loss, jnp.ones(10_000), jnp.ones(8))
    >>> found = trace(operator, key=jax.random.key(0), relative_error=0.01)
    >>> bool(abs(found.value - 10_000) < 3 * found.standard_error), int(found.num_products)
    (True, 4)

    * "hutchinson" is the mean of `z'Az` over N normal probes z. Its standard error, from the same
      products, is `sqrt(2 mean |A z|^2 / N)`.
    * "deflated" first removes the largest eigenvalues: the trace is exact on a small Krylov space,
      and probes estimate the rest. Four probes taken first decide how large the basis should be; it
      may be empty. On a dense net of 670,000 parameters 230 products gave 1 %; probes alone took
      840.
    * "exact" back-propagates single examples. It takes Gauss-Newton and Fisher matrices, Hessians
      of `composed` losses, and their multiples, sums, dampings and means over batches. For a
      Hessian it adds the contribution of the model's own curvature, by probes on one leaf at a
      time. No probe is needed if the model is affine in each of its leaves. For deep nets with
      curvature of their own, "deflated" is cheaper.
    * "xtrace" uses each column of a sketch as a probe of the complement of the others. It gives no
      values by leaf. Its standard error is the spread of the values from the columns, times a
      factor found in simulations.

    A standard error covers at its nominal rate, to a few percent, even if it decided when to stop.
    It includes the noise of the products. `docs/geometry.md` has formulas, rates and costs.

    Memory: three vectors with "hutchinson"; eleven vectors and the basis with "deflated";
    `max_products` vectors with "xtrace". On CPU, do not call this function inside your own jit if
    the loss convolves (`sharpjax.loops`).

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes. "exact" needs none if nothing has to be probed.
        method: as above.
        relative_error: stop when the standard error is at most this share of the trace.
        absolute_error: or when it is at most this. Without either, all `max_products` are used. A
            trace near zero never meets a relative error.
        max_products: limit on the products, including those for the basis; at least 4, or 32 with
            "xtrace"; default 100. If they do not reach the requested error, `status` is
            `NOT_CONVERGED`. With "exact" it limits the probes of one matrix. They are shared evenly
            by the leaves that need probes (or slices of leaves stacked by `scan`, or a
            regularizer), at least 16 for each; the default is 100 for each. In a sum or a mean over
            batches the limit holds for each term.
        basis_size: largest number of basis vectors of "deflated"; default 32.

    Raises:
        UserError: an argument does not fit or would be ignored; with "exact", the loss has no
            parts, its outer loss is not a mean over the examples, or probes are needed and there is
            no key.

    References: Hutchinson, 1990; arXiv 2010.09649 (deflation), 2109.10659 (its size), 2301.07825
    (XTrace).
    """
    request = check(
        *("trace", operator, key, method, get_args(Method)),
        *(relative_error, absolute_error, max_products, basis_size),
        least=_LEAST.get(method, 4),
    )
    if method == "xtrace":
        return _of_columns(request.accuracy.is_asked, xtrace.run(request))
    return driver.solve(request, TraceStatistic(), _finish)


@dataclasses.dataclass(frozen=True)
class TraceStatistic:
    """`exact` with its variance, and sums of `z_l'(Bz)_l` and `|(Bz)_l|^2`, all (num_leaves,).

    `B_l` are the rows of leaf l and `B_ll` is its diagonal block. Each term of the first sum has
    mean `tr B_ll` and variance `|B_ll|_F^2 + |B_l|_F^2`; each term of the second has mean
    `|B_l|_F^2`, and includes the noise of the products of probes.
    """

    kind: ClassVar[Kind] = "trace"
    least: int = 4

    def draw(self, key: jax.Array, like: Params) -> Params:
        return tree.random_normal(key, like)

    def begin(self, like: Params) -> tuple[Any, Any]:
        zeros = by_leaf(like, like)
        return (zeros, zeros), (zeros, zeros)

    def add(self, sums: Any, probe: Params, product: Params) -> Any:
        values, squares = sums
        return values + by_leaf(probe, product), squares + by_leaf(product, product)

    def deflate(self, exact: Any, q: Params, b: Params, noise: jax.Array) -> Any:
        value, variance = exact
        share = by_leaf(q, q)
        value = value + 2 * by_leaf(q, b) - tree.vdot(q, b) * share
        return value, variance + noise * share + hutchinson.rounding(value)

    def estimate(self, exact: Any, sums: Any, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, errors = self.leaves(exact, sums, count)
        return jnp.abs(jnp.sum(values)), jnp.sqrt(jnp.sum(jnp.square(errors)))

    def leaves(self, exact: Any, sums: Any, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The value and the error of each leaf."""
        (known, variance), (values, squares) = exact, sums
        number = count.astype(values.dtype)
        return known + values / number, jnp.sqrt(2 * squares / jnp.square(number) + variance)

    def read(self, treedef: Any, exact: Any, sums: Any, count: jax.Array) -> tuple[Any, Any, Any]:
        values, errors = self.leaves(exact, sums, count)
        remainder = jnp.sum(sums[0]) / count.astype(values.dtype)
        return treedef.unflatten(list(values)), treedef.unflatten(list(errors)), remainder


def _finish(found: Found, status: jax.Array) -> Trace:
    assert found.remainder is not None
    names, count = tree.path_names(found.value), found.num_products
    values, errors = map(_stack, (found.value, found.error))
    return Trace(
        value=jnp.sum(values),
        standard_error=units.norm(errors),
        remainder=found.remainder,
        by_leaf={n: Estimate(values[i], errors[i], count) for i, n in enumerate(names)},
        num_products=count,
        status=status,
    )


@functools.partial(jax.jit, static_argnums=0)
def _of_columns(is_asked, columns: xtrace.Columns) -> Trace:
    value, error, remainder = xtrace.estimate(columns)
    met = columns.done | (columns.whole & xtrace.is_reached(columns))
    met = met if is_asked else columns.finite
    return Trace(
        value=value,
        standard_error=error,
        remainder=remainder,
        by_leaf={},
        num_products=columns.num_products,
        status=how_it_ended(
            met & units.has_digits(columns.unit), columns.finite & jnp.isfinite(value + error)
        ),
    )


def _stack(scalars: Any) -> jax.Array:
    leaves = jax.tree.leaves(scalars)
    return jnp.stack([x.astype(jnp.result_type(*leaves)) for x in leaves])
