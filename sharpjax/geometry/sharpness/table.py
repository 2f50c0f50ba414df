"""Every measure of sharpness of one model, in one call and one table."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax import loops, perturbation, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.eigenpairs.top import top_eigenpairs
from sharpjax.geometry.estimators.trace import trace
from sharpjax.geometry.loss import checks
from sharpjax.geometry.loss.composed import Composed, parts, weights
from sharpjax.geometry.loss.implicit import holds_implicit, multiplied_out
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.operators.hessian import hessian
from sharpjax.geometry.sharpness.average_case import average_sharpness
from sharpjax.geometry.sharpness.directional import directional_curvature
from sharpjax.geometry.sharpness.fisher_rao import fisher_rao
from sharpjax.geometry.sharpness.flatness import relative_flatness
from sharpjax.geometry.sharpness.information import information_sharpness
from sharpjax.geometry.sharpness.measures import (
    adaptive_sharpness,
    check_rho,
    sam_sharpness,
    worst_case_sharpness,
)
from sharpjax.geometry.status import Status, if_finite

Params = Any

_MOST_OUTPUTS = 1024  # of all examples: the size of information sharpness's eigenproblem
_NO_PARTS = "the loss has no parts; make it with geometry.composed"
_FLATNESS = ("relative_flatness", "relative_flatness_normalised")


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """One measure.

    Attributes:
        estimate: value, standard error, and cost in `unit`.
        status: `Status`, int32.
        name: as in `estimates()`.
        unit: of the cost: values of the loss, gradients, or products.
        note: a remark that the error does not convey, such as "a lower bound".
    """

    estimate: Estimate
    status: jax.Array
    name: str = dataclasses.field(metadata={"static": True})
    unit: str = dataclasses.field(metadata={"static": True})
    note: str = dataclasses.field(default="", metadata={"static": True})


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharpnessTable:
    """The sharpness of a model; `print` it.

    Attributes:
        rows: a `Row` for each measure.
        rho, adaptive_rho: the radii.
        left_out: pairs of a measure that does not apply and the reason.
        num_params, num_examples: numbers of parameters and examples.
    """

    rows: tuple[Row, ...]
    rho: jax.Array
    adaptive_rho: jax.Array
    left_out: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True})
    num_params: int = dataclasses.field(metadata={"static": True})
    num_examples: int = dataclasses.field(metadata={"static": True})

    @property
    def status(self) -> jax.Array:
        """The largest status of the rows. `geometry.check` thus raises if any row is not `OK`; the
        table shows which."""
        return functools.reduce(jnp.maximum, [row.status for row in self.rows])

    def __getitem__(self, name: str) -> Row:
        """The row of the measure with this name."""
        return {row.name: row for row in self.rows}[name]

    def estimates(self) -> dict[str, Estimate]:
        """All measures, by their names in the table."""
        return {row.name: row.estimate for row in self.rows}

    def summary(self) -> str:
        """The table as text."""
        if np.ndim(self.rows[0].status):
            raise UserError(
                "SharpnessTable.summary: this is a population; take one member, such as "
                "jax.tree.map(lambda x: x[0], table)."
            )
        lines = [
            f"sharpness of {self.num_params:,} parameters on {self.num_examples:,} examples, "
            f"rho={float(self.rho):g}, adaptive_rho={float(self.adaptive_rho):g}",
            f"  {'measure':<29}{'value':>12} {'error':>8}  {'status':<14} cost",
        ]
        lines += [f"  {_line(row)}" for row in self.rows]
        lines += [f"  {name:<29} left out: {why}" for name, why in self.left_out]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def measure_all(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    head: str | None = None,
    rho: ArrayLike = 0.05,
    adaptive_rho: ArrayLike = 0.5,
    max_products: int = 100,
    max_pairs: int = 50,
    num_steps: int = 20,
    microbatch_size: int | None = None,
) -> SharpnessTable:
    """All measures of a model's sharpness in one table, with its loss and its confidence.

    Use it for a first look and to compare models; `print` the result. Compare models at equal
    `loss` (`docs/sharpness.md`).

    >>> from sharpjax.geometry import composed
    >>> from sharpjax.losses import CrossEntropy
    >>> loss = composed(lambda params, batch: batch["x"] @ params["kernel"], CrossEntropy())
    >>> batch = {"x": jnp.eye(3), "label": jnp.array([0, 1, 2])}
    >>> params = {"kernel": jnp.eye(3)}
    >>> table = measure_all(loss, params, batch, key=jax.random.key(0), head="kernel")
    >>> print(f"{table.estimates()['trace'].value:.4f} {table.left_out}")  # sum of p (1 - p)
    0.5783 ()

    The table contains `loss`; `mean_p`, the mean of `exp(-l_n)` over examples, which for
    cross-entropy is the mean probability of the label; `weight_norm` and `gradient_norm`,
    Euclidean; `directional_curvature`; `lambda_1`, the largest eigenvalue of the Hessian, and
    `trace`; `average_sharpness` on the sphere of radius `rho`, `average_slope` (its `slope_part`),
    and `worst_case_sharpness` and `sam_sharpness` at that radius; the same on `|e / w| =
    adaptive_rho`: `adaptive_average_sharpness`, `adaptive_average_slope`, `adaptive_sharpness`;
    `fisher_rao`; `relative_flatness` and `relative_flatness_normalised`; `information_sharpness`.
    Each row comes from the function of that name, whose documentation defines it.

    A measure that does not apply is left out and listed with the reason: it needs the parts of the
    loss and the loss has none, or it needs a head and none is named, or (information sharpness) all
    examples together have more than 1024 outputs, the size of its eigenproblem.

    Cost: shown in the last column; rows from one computation each show the whole cost. With the
    defaults it is about 200 products, 44 gradients and 200 values at most; information sharpness
    adds one gradient per output of an example. The first call compiles each measure.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`. With the parts of `composed` all
            measures apply.
        key: for probes, draws and starts; use the same one for models that are compared.
        head: name of the kernel of the last layer, as in `relative_flatness`.
        rho: radius of the measures in the units of the weights.
        adaptive_rho: radius of the measures in proportion to the weights.
        max_products: largest number of products for the largest eigenvalue, and the same again for
            the trace; at least 4.
        max_pairs: largest number of pairs for each average.
        num_steps: of each worst case.

    Raises:
        UserError: an argument does not fit, such as a head that does not exist.
    """
    caller = "measure_all"
    check_rho(caller, rho)
    check_rho(f"{caller}: adaptive_rho", adaptive_rho)
    products = whole_number(caller, "max_products", max_products, least=4)
    whole_number(caller, "max_pairs", max_pairs)
    whole_number(caller, "num_steps", num_steps)
    if head is not None:
        tree.select(params, head)  # raises before anything is measured
    batch = checks.as_batch(caller, batch)
    keys = jax.random.split(check_key(caller, key), 6)
    given: tuple[Any, Any, Any] = loss, params, batch
    size: Any = {"microbatch_size": microbatch_size}

    composed, left_out = parts(loss), []
    slope = directional_curvature(*given, **size)
    found = slope.estimates()
    rows = _rows(slope, "values", {"loss": found["loss"]})
    if composed is None:
        left_out.append(("mean_p", _NO_PARTS))
    else:
        rows.append(_number("mean_p", _mean_p(composed, params, batch, microbatch_size), "values"))
    norm = tree.norm(tree.widen(jax.tree.map(jnp.asarray, params)))
    rows.append(_number("weight_norm", norm))
    rows += _rows(slope, "gradients", {"gradient_norm": found["gradient_norm"]})
    name = "directional_curvature"
    rows += _rows(slope, "products", {name: found[name]})

    operator = hessian(*given, **size)
    top = top_eigenpairs(operator, key=keys[0], max_products=products, vectors=False)
    rows += _rows(top, "products", {"lambda_1": top.estimates()["lambda_1"]})
    traced = trace(operator, key=keys[1], max_products=products)
    rows += _rows(traced, "products", {"trace": traced.estimates()["trace"]})

    for prefix, radius, scaling, draws in (
        ("", rho, perturbation.none(), keys[2]),
        ("adaptive_", adaptive_rho, perturbation.element(), keys[3]),
    ):
        how: Any = dict(key=draws, rho=radius, scaling=scaling, max_pairs=max_pairs, **size)
        noise = average_sharpness(*given, noise="sphere", **how)
        unknown, count = jnp.full_like(noise.slope_part, jnp.nan), 2 * noise.num_pairs
        average = Estimate(noise.value, noise.standard_error, count)
        spread = Estimate(noise.slope_part, unknown, count)
        names = f"{prefix}average_sharpness", f"{prefix}average_slope"
        rows += _rows(noise, "values", dict(zip(names, (average, spread), strict=True)))
    how = dict(num_steps=num_steps, **size)
    worst = worst_case_sharpness(*given, key=keys[4], rho=rho, **how)
    adaptive = adaptive_sharpness(*given, key=keys[5], rho=adaptive_rho, **how)
    for search in (worst, adaptive):
        rows += _rows(search, "gradients", search.estimates(), "a lower bound")
    step = sam_sharpness(*given, rho=rho, **size)
    rows += _rows(step, "gradients", step.estimates())

    for measure, names, unit, count, reason in _of_parts(composed, given, head, size):
        found = None
        if not reason:
            try:
                found = measure()
            except UserError as error:
                if names == _FLATNESS:  # a head was named
                    raise
                reason = str(error)
        if found is None:
            left_out += [(name, reason) for name in names]
            continue
        cost = jnp.full(jnp.shape(found.status), count, jnp.int32)
        estimates = {n: x._replace(num_evaluations=cost) for n, x in found.estimates().items()}
        rows += _rows(found, unit, estimates)
    return SharpnessTable(
        rows=tuple(rows),
        rho=jnp.asarray(rho, norm.dtype),
        adaptive_rho=jnp.asarray(adaptive_rho, norm.dtype),
        left_out=tuple(left_out),
        num_params=tree.size(params),
        num_examples=loops.count_examples(caller, batch) if jax.tree.leaves(batch) else 1,
    )


def _of_parts(
    composed: Composed | None, given: tuple[Any, Any, Any], head: str | None, size: Any
) -> Iterator[tuple[Callable[[], Any], tuple[str, ...], str, int, str]]:
    """The measures that need the parts of a loss. Each is given by its function, names, unit and
    number of the cost, and the reason why it does not apply, or ""."""
    reason = "" if composed else _NO_PARTS
    yield lambda: fisher_rao(*given, **size), ("fisher_rao",), "products", 1, reason
    no_head = reason or ("" if head else "no head was named; give head=, the name of the kernel")
    yield (
        lambda: relative_flatness(*given, head=str(head), **size),
        *(_FLATNESS, "values", 2, no_head),
    )
    count = _count_outputs(composed, *given[1:]) if composed else 0
    each = count // loops.count_examples("measure_all", given[2]) if count else 0
    if count > _MOST_OUTPUTS:
        reason = (
            f"it decomposes a matrix of {count:,} numbers square; call it by itself, on fewer "
            f"examples or with m="
        )
    yield (
        lambda: information_sharpness(*given),
        ("information_sharpness",),
        "gradients",
        each,
        reason,
    )


def _count_outputs(composed: Composed, params: Params, batch: Any) -> int:
    outputs = jax.eval_shape(composed.model_fn, params, batch)
    if holds_implicit(outputs):
        outputs = jax.eval_shape(multiplied_out(composed).model_fn, params, batch)
    return sum(x.size for x in jax.tree.leaves(outputs))


def _rows(result: Any, unit: str, estimates: Mapping[str, Estimate], note: str = "") -> list[Row]:
    return [Row(found, result.status, name, unit, note) for name, found in estimates.items()]


def _number(name: str, value: jax.Array, unit: str = "") -> Row:
    cost = jnp.full(value.shape, int(bool(unit)), jnp.int32)
    found = Estimate(value, jnp.zeros_like(value), cost)
    return Row(found, if_finite(jnp.isfinite(value)), name, unit)


def _line(row: Row) -> str:
    value, error, count = map(np.asarray, row.estimate)
    status = Status(int(row.status)).name.replace("_", " ").lower()
    spread = "unknown" if np.isnan(error) else f"{error:.1e}" if error else "0"
    one = row.unit[:-1] if count == 1 else row.unit
    cost = f"{int(count)} {one}" if count else ""
    note = f" ({row.note})" if row.note else ""
    return f"{row.name:<29}{value:12.5g} {spread:>8}  {status:<14} {cost}{note}".rstrip()


@functools.partial(jax.jit, static_argnums=3)
def _mean_p(composed, params, batch, microbatch_size) -> jax.Array:
    size = microbatch_size or loops.count_examples("measure_all", batch)
    chunks = loops.split_chunks("measure_all", batch, size)
    found = loops.map_over_chunks(_likelihoods, (composed, tree.widen(params)), chunks).ravel()
    weight = weights(composed, batch)
    if weight is None:
        return jnp.mean(found)
    weight = weight.astype(found.dtype)
    # Masked examples may have any loss, even NaN.
    return jnp.sum(weight * jnp.where(weight == 0, 0, found)) / jnp.sum(weight)


def _likelihoods(operands, batch):
    """`exp(-l_n)` of each example, as a batch of one."""
    composed, params = operands

    def of(one):
        one = jax.tree.map(lambda x: jnp.expand_dims(x, 0), one)
        return composed.outer_loss(tree.widen(composed.model_fn(params, one)), one)

    with jax.default_matmul_precision("highest"):
        return jnp.exp(-jax.vmap(of)(batch))
