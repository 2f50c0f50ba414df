"""The trace of an operator, with the standard error of the estimate, in all and by leaf."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Target, ask, how_it_ended
from sharpjax.geometry.estimators import deflation, hutchinson, xtrace
from sharpjax.geometry.estimators.decomposition import Found, Request, decompose
from sharpjax.geometry.estimators.hutchinson import by_leaf
from sharpjax.geometry.exact import remainder
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import mark, solver
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_key, check_operator
from sharpjax.geometry.status import tells_unknown

Method = Literal["deflated", "exact", "hutchinson", "xtrace"]
Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """An estimate of a trace.

    Attributes:
        value: the estimate.
        standard_error: its standard deviation over the probes; NaN with "xtrace".
        num_evaluations: int32, products that it took, of every kind; with "exact" also the
            back-propagations of each example.
        remainder: the part of `value` that was probed; the rest is exact.
        error_figure: what the method says of its own error; the standard error where there is one.
        by_leaf: the trace of the diagonal block of each leaf, by its name, from the same probes;
            empty with "xtrace". The errors are bounds, at most a factor sqrt(2) too
            large, whose squares add up to that of the whole.
        status: `Status`, int32.
        method: how it was done.
    """

    value: jax.Array
    standard_error: jax.Array
    num_evaluations: jax.Array
    remainder: jax.Array
    error_figure: jax.Array
    by_leaf: dict[str, Estimate]
    status: jax.Array
    method: str = dataclasses.field(metadata={"static": True})

    def estimates(self) -> dict[str, Estimate]:
        """The estimate, as `trace`."""
        return {"trace": Estimate(self.value, self.standard_error, self.num_evaluations)}

    def block(self, where: str | Sequence[str]) -> Estimate:
        """The trace of the diagonal block of some leaves, such as `"Dense_0/*"`: no more products.

        Args:
            where: glob or globs on the names of the leaves, as `sharpjax.tree.select` takes them.

        Raises:
            UserError: a glob matches no leaf, or the method gives no values by leaf.
        """
        if not self.by_leaf:
            raise UserError(
                f"Trace.block: method='{self.method}' gives no values by leaf; 'deflated' does."
            )
        chosen = tree.select({name: 0 for name in self.by_leaf}, where)
        leaves = [self.by_leaf[name] for name, is_chosen in chosen.items() if is_chosen]
        value = tree.total([jnp.asarray(leaf.value) for leaf in leaves])
        variance = tree.total([jnp.square(jnp.asarray(leaf.standard_error)) for leaf in leaves])
        return Estimate(value, jnp.sqrt(variance), self.num_evaluations)


@solver
def trace(
    operator: Operator,
    *,
    key: jax.Array,
    method: Method = "deflated",
    relative_error: Target = None,
    absolute_error: Target = None,
    max_probes: int = 100,
    basis_size: int = 32,
) -> Trace:
    """The trace of a symmetric operator: exact, or by random probes with their standard error.

    `tr A = E z'Az` for normal `z` (Hutchinson, 1990), and the variance of one probe is `2 |A|_F^2 =
    2 E |A z|^2`. So the standard error after N probes, `sqrt(2 mean |A z|^2 / N)`, comes from the
    very products at hand. Where it is nominally .95, it covers in .92 to .96 of runs, from four
    probes on and also where it is what stopped them; in .89 to .93, up to 16 probes or so, where
    one eigenvalue has nearly all of `|A|_F`. (The spread of N values covers in .83 at four probes:
    what stops early is what came out small.)

    Noise e of the products (rounding, terms that cancel) is part of `|A z|^2`. In the exact part of
    "deflated" it is measured, at no product, from `z'A q = q'A z`, which noise breaks, and is in
    the error as if it lay in the worst direction: up to `sqrt(2 n)` times too large where the basis
    is the whole space, and of no account where n is much larger.

    * "deflated": on a small Krylov space, basis Q, the trace is exact, and probes are of the rest,
      `P A P` with `P = I - QQ'`. Four probes taken first say how large the basis should be, none
      included. On a dense net (670,000 parameters) 230 products in place of 840 gave 1 %.
    * "exact": no probe where none is needed, for matrices of losses that know their parts
      (`composed`), and for their multiples, sums, dampings and means over batches. Gauss-Newton and
      Fisher matrices: exact (`exact_trace`). Hessians: the exact trace of the Gauss-Newton part,
      and what the model's own curvature adds, by probes on one leaf at a time (`remainder_trace`):
      none on piecewise linear nets that use no weight twice, at most three forward passes each
      elsewhere. For deep nets that bend, "deflated" is cheaper. A regulariser is exact where two
      products certify that its Hessian is diagonal, and probed where not. The standard error is
      that of what was probed, 0 where nothing was.
    * "hutchinson": probes alone.
    * "xtrace": all in a sketch, each column a probe of what the others leave. Right for a
      spectrum that decays fast all along; on networks, whose bulk is flat, it loses to
      "deflated". It has no standard error here; `error_figure` is its own. From 16 columns on that
      is .8 to .9 of the true error, where it stops, too.

    Memory: three vectors for "hutchinson"; eight more and a basis of up to 32 with "deflated";
    `max_probes` vectors for "xtrace". On CPU, do not call it inside your own jit if the
    loss convolves (`sharpjax.loops`).

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes; not used by "exact".
        method: as above.
        relative_error: stop where the standard error (the figure, with "xtrace") is
            at most this share of the estimate.
        absolute_error: or at most this. Without either, `max_probes` are used. A trace near zero
            never meets a relative error.
        max_probes: products at the most, those for a basis included; with "exact", probes of each
            leaf that must be probed, 16 or more. Where they do not reach the error that is asked
            for, `status` is `NOT_CONVERGED`.
        basis_size: vectors in the basis of "deflated" at the most.

    Raises:
        UserError: an argument does not fit; with "exact", the loss has no parts, or its outer loss
            is no mean over the examples.

    References: arXiv 2010.09649 (deflation), 2109.10659 (its size), 2301.07825 (XTrace).

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2) / 2
    >>> operator = hessian(loss, jnp.ones(10_000), jnp.ones(8))
    >>> found = trace(operator, key=jax.random.key(0), relative_error=0.01)
    >>> bool(abs(found.value - 10_000) < 3 * found.standard_error), int(found.num_evaluations)
    (True, 4)
    """
    check_operator("trace", operator)
    accuracy = ask("trace", relative_error, absolute_error)
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    least = remainder.LEAST_PROBES if method == "exact" else 4
    max_probes = whole_number("trace", "max_probes", max_probes, least=least)
    basis_size = whole_number("trace", "basis_size", basis_size)
    key = check_key("trace", key)
    names = tuple(tree.path_names(operator.like))
    if method == "exact":
        request = Request("trace", "trace", accuracy, max_probes, TraceStatistic(), _read)
        found = decompose(request, operator, key)
        result = _of_parts(names, accuracy.is_asked, accuracy, found._replace(checked=None))
        return mark(result, found.checked)
    if method == "xtrace":
        columns = xtrace.run(key, operator, accuracy=accuracy, max_products=max_probes)
        return _of_columns(accuracy.is_asked, columns)
    state, steps = deflation.run(
        *(TraceStatistic(), key, operator),
        accuracy=accuracy,
        max_products=max_probes,
        basis_size=basis_size if method == "deflated" else 0,
    )
    return _of_probes(method, names, accuracy.is_asked, state, steps)


@dataclasses.dataclass(frozen=True)
class TraceStatistic:
    """`exact` with its variance, and sums of `z_l'(Bz)_l` and `|(Bz)_l|^2`, all (num_leaves,).

    The first sum has mean `tr B_ll` and variance `|B_ll|_F^2 + |B_l|_F^2`, the second mean
    `|B_l|_F^2`, where `B_l` are the rows of leaf l and `B_ll` its diagonal block. The noise of
    products of probes is in the second.
    """

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


@tells_unknown
@functools.partial(jax.jit, static_argnames=("method", "names", "to_accuracy"))
def _of_probes(method, names, to_accuracy, state: hutchinson.Probing, steps) -> Trace:
    statistic = TraceStatistic()
    _, error = statistic.estimate(state.exact, state.sums, state.count)
    unit, count = units.known(state.unit), state.count + steps
    leaves = statistic.leaves(state.exact, state.sums, state.count)
    values, errors, error, exact = (x * unit for x in (*leaves, error, state.exact[0]))
    return Trace(
        value=jnp.sum(values),
        standard_error=error,
        num_evaluations=count,
        remainder=jnp.sum(values) - jnp.sum(exact),
        error_figure=error,
        by_leaf={n: Estimate(values[i], errors[i], count) for i, n in enumerate(names)},
        status=hutchinson.status(statistic, state, to_accuracy),
        method=method,
    )


@tells_unknown
@functools.partial(jax.jit, static_argnums=0)
def _of_columns(to_accuracy, state: xtrace.Columns) -> Trace:
    value, figure, remainder = xtrace.estimate(state)
    met = state.done | state.whole if to_accuracy else state.finite
    met &= units.has_digits(state.unit)
    return Trace(
        value=value,
        standard_error=jnp.full_like(figure, jnp.nan),
        num_evaluations=state.num_products,
        remainder=remainder,
        error_figure=figure,
        by_leaf={},
        status=how_it_ended(met, state.finite),
        method="xtrace",
    )


def _read(params, state: hutchinson.Probing):
    """The value and the error of each leaf, as trees."""
    both = TraceStatistic().leaves(state.exact, state.sums, state.count)
    values, errors = (units.known(state.unit) * x for x in both)
    treedef = jax.tree.structure(params)
    return treedef.unflatten(list(values)), treedef.unflatten(list(errors))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_parts(names, to_accuracy, accuracy, found: Found) -> Trace:
    value, errors, probed = (
        jnp.stack([x.astype(jnp.result_type(*leaves)) for x in leaves])
        for leaves in map(jax.tree.leaves, found[:3])
    )
    whole, error, count = jnp.sum(value), units.norm(errors), found.num_evaluations
    within = error <= accuracy.fill(0 * whole).allowed(jnp.abs(whole))
    met = (error == 0) | within | (not to_accuracy)
    return Trace(
        value=whole,
        standard_error=error,
        num_evaluations=count,
        remainder=jnp.sum(probed),
        error_figure=error,
        by_leaf={n: Estimate(value[i], errors[i], count) for i, n in enumerate(names)},
        status=how_it_ended(met, jnp.isfinite(whole + error)),
        method="exact",
    )
