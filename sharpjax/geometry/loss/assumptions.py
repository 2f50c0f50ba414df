"""Assumptions of a result that no type shows: they are checked, and refused if they fail.

Checks run when an operator is constructed. A loss may later read other values (globals, closures)
than it did then. So an operator that is kept is checked again when it is used, if its loss then
reads something else.

Outside of a trace a failed check raises. Inside the caller's own jit or vmap no error can be
raised. The operator then carries a flag that says whether its assumptions hold. If they fail, its
products are NaN, and the status of every result is `ASSUMPTION_FAILED`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss import closures
from sharpjax.geometry.status import Status

Solve = TypeVar("Solve", bound=Callable[..., Any])
Nodes = TypeVar("Nodes")


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Checked:
    """Whether the assumptions hold, if that is known only once a traced program runs.

    Attributes:
        holds: a boolean; under vmap one for each lane.
    """

    holds: jax.Array


@dataclasses.dataclass(frozen=True)
class Assuming:
    """An operator that was checked, with a field or property `loss`, a callable pytree.

    Attributes:
        checked: whether the assumptions hold, if that is traced; else None.
        reads: what the loss read when it was checked (`closures.reads`); None if there is nothing
            to check.
    """

    checked: Checked | None = dataclasses.field(default=None, kw_only=True)
    reads: frozenset[Any] | None = dataclasses.field(
        default=None, kw_only=True, repr=False, metadata={"static": True}
    )

    def check(self, caller: str) -> dict[str, Any]:
        """Runs the checks of the constructor; returns the fields of the operator that they set.

        Raises:
            UserError: a check fails; names `caller`.
        """
        raise NotImplementedError


def renewed(caller: str, operators: Nodes) -> Nodes:
    """The same operators; each is checked again if its loss reads something else than it did when
    it was last checked.

    Cost: .01 to .06 ms for each operator if nothing changed.

    Args:
        caller: name for error messages.
        operators: a pytree that holds operators anywhere.

    Raises:
        UserError: a check fails.
    """
    if not any(map(_is_stale, _assuming(operators))):
        return operators
    return jax.tree.map(
        functools.partial(_renewed, caller), operators, is_leaf=lambda x: isinstance(x, Assuming)
    )


def require(caller: str, holds: jax.Array, message: str) -> Checked | None:
    """None if the assumption holds; if `holds` is traced, a `Checked` that the operator or result
    must carry.

    Raises:
        UserError: `caller: message`; it does not hold.

    >>> require("hessian", jnp.array(True), "the loss is no mean over the examples.")
    """
    if loops.is_traced(holds):
        return Checked(holds)
    if not bool(holds):
        raise UserError(f"{caller}: {message}")
    return None


@contextlib.contextmanager
def calling_parts(caller: str) -> Iterator[None]:
    """A context for calls of the user's functions on some of the examples.

    Raises:
        UserError: names `caller`; a function fails on them, though it took the whole batch.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        first = next(iter(str(error).splitlines()), "").rstrip(".")
        raise UserError(
            f"{caller}: the loss takes the whole batch, but not some of its examples "
            f"({type(error).__name__}: {first}). Leaves of a batch are cut along axis 0. What is "
            f"of no single example, as the [N, N] matrix of a graph is, belongs in the loss; a "
            f"model in which examples see each other cannot be cut: take the whole batch at once, "
            f"and a trace by probes."
        ) from error


def both(first: Checked | None, second: Checked | None) -> Checked | None:
    """The assumption that both hold; None if neither is traced."""
    if first is None or second is None:
        return second if first is None else first
    return Checked(first.holds & second.holds)


def guard(product: Any, checked: Checked | None) -> Any:
    """A product (a `Partial`) whose values are NaN if the assumptions of its operator fail."""
    return product if checked is None else Partial(_guarded, product, checked)


def mark(result: Any, checked: Checked | None) -> Any:
    """The result; if the assumptions fail, its floats are NaN and its status says why."""
    if checked is None:
        return result
    failed = jnp.int32(Status.ASSUMPTION_FAILED)

    def leaf(path, x):
        if path and getattr(path[-1], "name", None) == "status":
            return jnp.where(checked.holds, x, failed)
        return jnp.where(checked.holds, x, jnp.nan) if _is_float(x) else x

    return jax.tree_util.tree_map_with_path(leaf, result)


def solver(solve: Solve) -> Solve:
    """Decorates a solver: operators among its arguments are renewed, and the result is marked if
    any argument carries a `Checked`."""

    @functools.wraps(solve)
    def marked(*args, **kwargs):
        args, kwargs = renewed(solve.__name__, (args, kwargs))
        result = solve(*args, **kwargs)
        nodes = jax.tree.leaves((args, kwargs), is_leaf=lambda node: isinstance(node, Checked))
        carried = [node for node in nodes if isinstance(node, Checked)]
        return mark(result, functools.reduce(both, carried)) if carried else result

    return cast(Solve, marked)


def _assuming(nodes) -> list[Any]:
    leaves = jax.tree.leaves(nodes, is_leaf=lambda node: isinstance(node, Assuming))
    return [node for node in leaves if isinstance(node, Assuming)]


def _is_stale(operator: Any) -> bool:
    return operator.reads is not None and not closures.reads(operator.loss) <= operator.reads


def _renewed(caller, node):
    if not isinstance(node, Assuming) or not _is_stale(node):
        return node
    # A mean over batches holds the operator of one batch.
    inner = {
        field.name: renewed(caller, value)
        for field in dataclasses.fields(cast(Any, node))
        if isinstance(value := getattr(node, field.name), Assuming)
    }
    node = dataclasses.replace(cast(Any, node), **inner)
    node = dataclasses.replace(node, **node.check(caller))
    return dataclasses.replace(node, reads=closures.reads(node.loss))


def _is_float(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _guarded(product, checked, vector):
    found = product(vector)
    return jax.tree.map(lambda x: jnp.where(checked.holds, x, jnp.nan), found)
