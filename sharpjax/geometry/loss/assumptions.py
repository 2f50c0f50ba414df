"""What a number rests on and nobody can see from its type: checked, and refused where it fails.

Checks are made where an operator is constructed. A loss is what calling it gives now, so an
operator that is kept is checked again whenever it is used and its loss reads something else.

Outside of a trace a failed check raises. Inside the caller's own jit or vmap nothing can be raised:
an operator then carries whether its assumptions hold, its products are NaN where they do not, and
the status of every result is `ASSUMPTION_FAILED`.
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
    """Whether what was assumed holds, known only when the trace that it was found in runs.

    Attributes:
        holds: a boolean; under vmap one for each lane.
    """

    holds: jax.Array


@dataclasses.dataclass(frozen=True)
class Assuming:
    """An operator that was checked, with a field or property `loss`, a callable pytree.

    Attributes:
        checked: whether what was assumed holds, where only a trace knows.
        reads: what the loss read when it was checked (`closures.reads`); None where nothing is to
            be checked.
    """

    checked: Checked | None = dataclasses.field(default=None, kw_only=True)
    reads: frozenset[Any] | None = dataclasses.field(
        default=None, kw_only=True, repr=False, metadata={"static": True}
    )

    def check(self, caller: str) -> dict[str, Any]:
        """The checks of the constructor, in the name of a caller; the fields that they find.

        Raises:
            UserError: one fails.
        """
        raise NotImplementedError


def renewed(caller: str, operators: Nodes) -> Nodes:
    """The same operators, those whose loss reads something else than when it was checked checked
    again.

    Cost: .02 to .07 ms for each, where nothing changed.

    Args:
        caller: for errors.
        operators: a pytree that holds them anywhere.

    Raises:
        UserError: a check fails.
    """
    if not any(map(_is_stale, _assuming(operators))):
        return operators
    return jax.tree.map(
        functools.partial(_renewed, caller), operators, is_leaf=lambda x: isinstance(x, Assuming)
    )


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


@contextlib.contextmanager
def calling_parts(caller: str) -> Iterator[None]:
    """Round calls of the user's functions on some of the examples.

    Raises:
        UserError: names `caller`; they fail there, though they took the whole batch.
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
    """Renews operators, its arguments, and marks what it finds where any carries a `Checked`."""

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
    # A mean over batches holds the operator of one.
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
