"""The matrix between the Jacobians of one example, as a sum of signed squares.

Gauss-Newton and Fisher matrices are `mean_n J_n' M_n J_n`. Here `M_n = sum_c sign_c s_c s_c'`. So
the term of example n is `sum_c sign_c g_c g_c'`, where each `g_c = J_n' s_c` is one
back-propagation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss.composed import is_lowered, methods, weights
from sharpjax.geometry.loss.frozen import freeze
from sharpjax.geometry.loss.implicit import multiplied_out
from sharpjax.geometry.operators.algebra import Params
from sharpjax.geometry.operators.gauss_newton import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    require_parts,
)

Rule = Literal["curvature", "slope", "sampled", "value"]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """The parts of an operator that its exact trace needs.

    Attributes:
        model: callable pytree, `model(params, batch) -> outputs`.
        outer: callable pytree, `outer(outputs, batch) -> scalar`, or None.
        params, batch: their arguments.
        keys: a random key for each example, or None.
        weight: the weight of each example, [N], or None for equal weights.
        rule: "curvature": M is the Hessian of `outer`. "slope": M is the mean over rows of the
            squares of their gradients. "sampled": the same, with labels drawn with the keys.
            "value": the outputs are the losses, and M is 1.
        microbatch_size: examples per pass at most, or None.
    """

    model: Any
    outer: Any
    params: Params
    batch: Any
    keys: jax.Array | None
    weight: jax.Array | None
    rule: Rule = dataclasses.field(metadata={"static": True})
    microbatch_size: int | None = dataclasses.field(metadata={"static": True})


def as_problem(caller: str, operator: GaussNewton | Fisher | EmpiricalFisher) -> Problem:
    """The model and the matrix between its Jacobians, for an operator.

    Raises:
        UserError: names `caller`; the operator computes in bfloat16, or a layer of its model has no
            forward derivative.
    """
    loss, params, batch = operator.loss, operator.params, operator.batch
    if is_lowered(getattr(loss, "model_fn", loss)):
        raise UserError(
            f"{caller}: an operator with precision='bfloat16' has no exact trace or diagonal: its "
            f"products are some 1e-2 off, which no standard error of 0 may hide. Make it with "
            f"precision='highest'."
        )
    if operator.how.way in ("reverse", "difference"):
        raise UserError(
            f"{caller}: a trace or diagonal that is exact goes forwards through the model, and a "
            f"layer of it has a backward pass alone (jax.custom_vjp). Use the layer's reference "
            f"implementation in JAX, or a method with probes, such as 'hutchinson'."
        )
    count, size = loops.count_examples(caller, batch), operator.microbatch_size
    weight = weigh(loss, batch)
    if isinstance(operator, EmpiricalFisher):
        return Problem(loss, None, params, batch, None, weight, "value", size)
    loss, keys, rule = multiplied_out(loss), None, "curvature"
    if isinstance(operator, Fisher) and operator.key is not None:
        keys, rule = jax.random.split(operator.key, count), "sampled"
    elif isinstance(operator, Fisher) and operator.labels == "observed":
        rule = "slope"
    return Problem(loss.model_fn, loss.outer_loss, params, batch, keys, weight, rule, size)


def squares(problem: Problem, outputs: Any, one: Any, key: Any) -> tuple[jax.Array, Any]:
    """The signs and the vectors s_c for one example.

    For the curvature they come from the eigenvectors of the Hessian of `outer`. If `outer` has a
    method `square_root(outputs, batch)`, which returns vectors for a batch of one, no eigenproblem
    is solved, and there are fewer vectors if the rank is known to be lower.

    Args:
        problem: only `outer` and `rule` are read.
        outputs: the outputs of a batch of one.
        one: that batch.
        key: random key for drawn labels.

    Returns:
        Signs (c,), and a tree like the outputs with a new leading axis (c, ...).
    """
    if problem.rule == "value":
        return jnp.ones(1, outputs.dtype), jnp.ones_like(outputs)[None]
    likelihood = methods(problem.outer)
    if problem.rule == "sampled":
        one = jax.lax.stop_gradient(likelihood.sample(key, outputs, one))
    if problem.rule == "curvature" and hasattr(likelihood, "square_root"):
        columns = likelihood.square_root(outputs, one)
        leaf = jax.tree.leaves(columns)[0]
        return jnp.ones(len(leaf), leaf.dtype), columns
    slope = jax.grad(lambda outputs: problem.outer(outputs, one))
    if problem.rule != "curvature":
        columns = jax.tree.map(_of_rows, slope(outputs))
        leaf = jax.tree.leaves(columns)[0]
        return jnp.ones(len(leaf), leaf.dtype), columns
    matrix, unravel = _hessian(slope, outputs)
    values, vectors = jnp.linalg.eigh(matrix)
    rows = jnp.sqrt(jnp.abs(values)).reshape(-1, 1) * vectors.T
    return jnp.sign(values), jax.vmap(unravel)(rows)


def restrict(operator: Any, where: str | Sequence[str]) -> Any:
    """The block of some leaves of an operator of a loss, with the other leaves held fixed."""
    loss, params = freeze(operator.loss, operator.params, where)
    if isinstance(operator, GaussNewton | Fisher):
        loss = require_parts("restrict", loss)
    return dataclasses.replace(operator, loss=loss, params=params)


@jax.jit
def weigh(loss: Any, batch: Any) -> jax.Array | None:
    """`composed.weights`, compiled."""
    return weights(loss, batch)


def _of_rows(slope):
    """One vector for each of R rows, `sqrt(R)` times its slope. The gradient of a row alone is R
    times its slope, and the squares of these are averaged over the rows."""
    rows = len(slope)
    apart = rows**0.5 * jnp.eye(rows, dtype=slope.dtype)
    return apart.reshape(rows, rows, *(1,) * (slope.ndim - 1)) * jnp.expand_dims(slope, 0)


def _hessian(slope, outputs):
    leaves, treedef = jax.tree.flatten(outputs)
    dtype = jnp.result_type(*leaves) if len({x.dtype for x in leaves}) == 1 else jnp.float64
    ends = [0]
    for x in leaves:
        ends.append(ends[-1] + x.size)

    def unravel(flat):
        parts = [flat[a:b] for a, b in zip(ends, ends[1:], strict=False)]
        shaped = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(treedef, shaped)

    def ravel(tree):
        return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in jax.tree.leaves(tree)])

    _, along = jax.linearize(slope, outputs)
    rows = jax.vmap(lambda e: ravel(along(unravel(e))))(jnp.eye(ends[-1], dtype=dtype))
    return (rows + rows.T) / 2, unravel
