"""The diagonal of an operator, each entry with the standard error of its estimate."""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Target, ask, how_it_ended
from sharpjax.geometry.estimators import deflation, hutchinson
from sharpjax.geometry.estimators.decomposition import Found, Request, decompose
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import mark, solver
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_key, check_operator

Method = Literal["deflated", "exact", "hutchinson"]
Params = Any

_LEAST = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal:
    """An estimate of a diagonal.

    Attributes:
        value: tree like the operator's vectors, `A_ii`.
        standard_error: such a tree; the standard deviation of each entry over the probes.
        norm: `|diag A|_2`, freed of what the errors add to it in the mean.
        error: the root mean square of `|value - diag A|_2`, over the probes.
        num_evaluations: int32, products that it took; with "exact" also the back-propagations of
            each example.
        status: `Status`, int32.
        method: how it was done.
    """

    value: Params
    standard_error: Params
    norm: jax.Array
    error: jax.Array
    num_evaluations: jax.Array
    status: jax.Array
    method: str = dataclasses.field(metadata={"static": True})

    def estimates(self) -> dict[str, Estimate]:
        """The norm, as `diagonal_norm`; its error is at most that of the whole diagonal."""
        return {"diagonal_norm": Estimate(self.norm, self.error, self.num_evaluations)}


@solver
def diagonal(
    operator: Operator,
    *,
    key: jax.Array,
    method: Method = "deflated",
    relative_error: Target = None,
    absolute_error: Target = None,
    max_probes: int = 100,
    basis_size: int = 32,
) -> Diagonal:
    """The diagonal of a symmetric operator, by random probes (Bekas, Kokiopoulou and Saad, 2007).

    `A_ii = E z_i (A z)_i` for signs `z`, and the variance of one probe is `sum_(j != i) A_ij^2`. A
    part of the operator that is known on a small basis Q is exact, and probes are of the rest `P A
    P`, `P = I - QQ'`, as in `trace`. The errors are those of a mean, from the spread of the values,
    and of the noise of products, as there: 16 probes at least are taken, and one entry by itself is
    covered a little less often than nominal by then.

    Cost: one product per probe and per vector of the basis. Memory: six vectors and the basis.

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes; not used by "exact".
        method: "exact": no probe where none is needed, of losses that know their parts, as in
            `trace`: Gauss-Newton and Fisher matrices (`exact_diagonal`); Hessians of piecewise
            linear nets, where all errors are 0, and of others by probes on one leaf at a time.
            "deflated": a Krylov basis as far as it pays, and probes. "hutchinson": probes alone.
        relative_error: stop where `error` is at most this share of `norm`.
        absolute_error: or at most this. Without either, `max_probes` are used.
        max_probes: products at the most, of every kind; with "exact", probes of each leaf that must
            be probed. Where they do not reach the error that is asked for, `status` is
            `NOT_CONVERGED`.
        basis_size: vectors in the basis at the most.

    Raises:
        UserError: an argument does not fit; with "exact" as in `trace`.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(4.0) * w**2) / 2
    >>> found = diagonal(hessian(loss, jnp.ones(4), jnp.ones(8)), key=jax.random.key(0))
    >>> found.value.round(4).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    check_operator("diagonal", operator)
    accuracy = ask("diagonal", relative_error, absolute_error)
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    max_probes = whole_number("diagonal", "max_probes", max_probes, least=_LEAST)
    basis_size = whole_number("diagonal", "basis_size", basis_size)
    key = check_key("diagonal", key)
    if method == "exact":
        request = Request("diagonal", "diagonal", accuracy, max_probes, DiagonalStatistic(), _read)
        found = decompose(request, operator, key)
        result = _of_parts(accuracy.is_asked, accuracy, found._replace(checked=None))
        return mark(result, found.checked)
    state, steps = deflation.run(
        *(DiagonalStatistic(), key, operator),
        accuracy=accuracy,
        max_products=max_probes,
        basis_size=basis_size if method == "deflated" else 0,
    )
    return _finish(method, accuracy.is_asked, state, steps)


@dataclasses.dataclass(frozen=True)
class DiagonalStatistic:
    """`exact` with its variance, and sums of `z (Bz)` and its square: trees like a vector."""

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
        total = sum_of_entries(variance)
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


def sum_of_entries(a: Params) -> jax.Array:
    """The sum of all entries of all leaves, in float32 at least."""
    return tree.vdot(a, jax.tree.map(jnp.ones_like, a))


@functools.partial(jax.jit, static_argnames=("method", "to_accuracy"))
def _finish(method, to_accuracy, state: hutchinson.Probing, steps) -> Diagonal:
    statistic = DiagonalStatistic()
    value, variance = statistic.entries(state.exact, state.sums, state.count)
    norm, error = statistic.estimate(state.exact, state.sums, state.count)
    # Where all probes agree, as on a matrix that is diagonal, their sum is rounded as often.
    count = state.count.astype(norm.dtype)
    variance = jax.tree.map(
        lambda v, x: v + count.astype(x.dtype) * hutchinson.rounding(x), variance, value
    )
    error = jnp.sqrt(jnp.square(error) + count * hutchinson.rounding(norm))
    unit = units.known(state.unit)
    return Diagonal(
        value=tree.scale(unit, value),
        standard_error=tree.scale(unit, jax.tree.map(jnp.sqrt, variance)),
        norm=norm * unit,
        error=error * unit,
        num_evaluations=state.count + steps,
        status=hutchinson.status(statistic, state, to_accuracy),
        method=method,
    )


def _read(params, state: hutchinson.Probing):
    """The value and the error of each entry."""
    value, variance = DiagonalStatistic().entries(state.exact, state.sums, state.count)
    unit = units.known(state.unit)
    return tree.scale(unit, value), tree.scale(unit, jax.tree.map(jnp.sqrt, variance))


@functools.partial(jax.jit, static_argnums=0)
def _of_parts(to_accuracy, accuracy, found: Found) -> Diagonal:
    whole, error = units.norm(found.value), units.norm(found.error)
    share = jnp.square(error / jnp.where(whole > 0, whole, 1))
    norm = whole * jnp.sqrt(jnp.maximum(1 - share, 0))
    within = error <= accuracy.fill(0 * norm).allowed(norm)
    met = (error == 0) | within | (not to_accuracy)
    return Diagonal(
        value=found.value,
        standard_error=found.error,
        norm=norm,
        error=error,
        num_evaluations=found.num_evaluations,
        status=how_it_ended(met, jnp.isfinite(whole + error)),
        method="exact",
    )
