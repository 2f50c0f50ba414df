"""A Hessian and the Gauss-Newton matrix of the same loss, as the control variate of the first."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import loops
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.algebra import widen
from sharpjax.geometry.bending import Model
from sharpjax.geometry.blocks import Restricted, freeze
from sharpjax.geometry.checks import check_key
from sharpjax.geometry.cotangents import Problem, as_problem
from sharpjax.geometry.exact import is_explicit
from sharpjax.geometry.operators import Hessian

# Rounds after which a remainder that was zero in all of them counts as zero, and those that the
# spread of the values needs before it may stop anything.
CERTIFYING = 2
LEAST_PROBES = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Setup:
    """What is probed: the two parts of a loss, and where."""

    parts: Model
    params: Any
    batch: Any
    microbatch_size: int | None = dataclasses.field(metadata={"static": True})


def prepare(caller: str, operator: Any, control: Any, key: Any, max_probes: Any) -> Setup:
    """The two parts of the loss of `operator`, which `control` must share.

    Raises:
        UserError: names `caller`; they do not belong together, or an argument does not fit.
    """
    whole_number(caller, "max_probes", max_probes, least=LEAST_PROBES)
    check_key(caller, key)
    loss, params, batch, size = _hessian_parts(caller, operator)
    problem = as_problem(caller, control)
    if problem.rule != "curvature":
        raise UserError(
            f"{caller}: control must be the Gauss-Newton matrix of the same loss, made by "
            f"gauss_newton; got {type(control).__name__}."
        )
    _refuse_another(caller, loss, params, batch, problem)
    return Setup(Model(problem.model, problem.outer), params, batch, size)


def _hessian_parts(caller, operator):
    if isinstance(operator, Restricted):
        loss, params, batch, size = _hessian_parts(caller, operator.operator)
        loss, params = freeze(loss, params, operator.where)
        return loss, params, batch, size
    if not isinstance(operator, Hessian):
        raise UserError(
            f"{caller}: control is for Hessians, made by hessian(loss, params, batch); got "
            f"{type(operator).__name__}."
        )
    return operator.loss, operator.params, operator.batch, operator.microbatch_size


def _refuse_another(caller, loss, params, batch, problem: Problem):
    abstract = loops.inside_jit() or loops.is_traced((loss, params, batch, problem))
    for name, ours, theirs in (("params", params, problem.params), ("batch", batch, problem.batch)):
        same = jax.tree.structure(ours) == jax.tree.structure(theirs)
        pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=False))
        same = same and all(jnp.shape(a) == jnp.shape(b) for a, b in pairs)
        same = same and (abstract or bool(_all_equal(pairs)))
        if not same:
            raise UserError(
                f"{caller}: control has another {name} than the operator. Make both from the same."
            )
    if abstract:
        return
    # Two examples tell as much as all, and cost nothing; Explicit axes cannot be cut like this.
    few = batch if is_explicit() else jax.tree.map(lambda x: x[:2], batch)
    whole, parts = _values(loss, params, few, problem.model, problem.outer)
    if abs(whole - parts) > 1e-3 * max(abs(whole), abs(parts)):
        raise UserError(
            f"{caller}: control must be made of the two parts of the loss, "
            f"loss(params, batch) = outer_loss(model_fn(params, batch), batch); on two "
            f"examples the loss is {whole:.6g}, of the parts it is {parts:.6g}."
        )


def _all_equal(pairs):
    different = [(a, b) for a, b in pairs if a is not b]
    return not different or _equal(different)


@jax.jit
def _equal(pairs):
    return jnp.all(jnp.stack([jnp.all((a == b) | (a != a) & (b != b)) for a, b in pairs]))


@jax.jit
def _values(loss, params, batch, model, outer):
    params = widen(params)
    return loss(params, batch), outer(widen(model(params, batch)), batch)


def check_targets(caller: str, relative_error: Any, absolute_error: Any) -> list[Any]:
    """The two errors, 0 for None.

    Raises:
        UserError: names `caller`; an error is no number, or negative.
    """
    for name, error in (("relative_error", relative_error), ("absolute_error", absolute_error)):
        if error is None or loops.is_traced(error):
            continue
        if jnp.ndim(error) != 0 or not 0 <= error < math.inf:
            raise UserError(f"{caller}: {name} must be a number >= 0 or None, got {error}.")
    return [0.0 if error is None else error for error in (relative_error, absolute_error)]
