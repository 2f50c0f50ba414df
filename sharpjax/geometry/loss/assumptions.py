"""What a number rests on and nobody can see from its type: checked, and refused where it fails.

Outside of a trace a failed check raises. Inside the caller's own jit or vmap nothing can be raised:
an operator then carries whether its assumptions hold, its products are NaN where they do not, and
the status of every result is `ASSUMPTION_FAILED`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops
from sharpjax.errors import UserError
from sharpjax.geometry.status import Status

Solve = TypeVar("Solve", bound=Callable[..., Any])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Checked:
    """Whether what was assumed holds, known only when the trace that it was found in runs.

    Attributes:
        holds: a boolean; under vmap one for each lane.
    """

    holds: jax.Array


def require(caller: str, holds: jax.Array, message: str) -> Checked | None:
    """None where it holds; what an operator or a result must carry, where that is traced.

    Raises:
        UserError: `caller: message`, where it does not hold.

    >>> require("hessian", jnp.array(True), "the loss is no mean over the examples.")
    """
    if loops.is_traced(holds):
        return Checked(holds)
    if not bool(holds):
        raise UserError(f"{caller}: {message}")
    return None


def both(first: Checked | None, second: Checked | None) -> Checked | None:
    """What holds where both do."""
    if first is None or second is None:
        return second if first is None else first
    return Checked(first.holds & second.holds)


def guard(product: Any, checked: Checked | None) -> Any:
    """A product (a `Partial`) that is NaN where the assumptions of its operator fail."""
    return product if checked is None else Partial(_guarded, product, checked)


def mark(result: Any, checked: Checked | None) -> Any:
    """A result whose numbers are NaN, and whose status says why, where the assumptions fail."""
    if checked is None:
        return result
    failed = jnp.int32(Status.ASSUMPTION_FAILED)

    def leaf(path, x):
        if path and getattr(path[-1], "name", None) == "status":
            return jnp.where(checked.holds, x, failed)
        return jnp.where(checked.holds, x, jnp.nan) if _is_float(x) else x

    return jax.tree_util.tree_map_with_path(leaf, result)


def solver(solve: Solve) -> Solve:
    """Marks what a solver finds of operators, its arguments, of which any carries a `Checked`."""

    @functools.wraps(solve)
    def marked(*args, **kwargs):
        result = solve(*args, **kwargs)
        nodes = jax.tree.leaves((args, kwargs), is_leaf=lambda node: isinstance(node, Checked))
        carried = [node for node in nodes if isinstance(node, Checked)]
        return mark(result, functools.reduce(both, carried)) if carried else result

    return cast(Solve, marked)


def _is_float(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _guarded(product, checked, vector):
    found = product(vector)
    return jax.tree.map(lambda x: jnp.where(checked.holds, x, jnp.nan), found)
