"""Meshes with Explicit axes, where the types of arrays say how they are sharded.

On such axes, code that selects examples of a batch, or sums over them, must name the sharding of
its results. That is a task for the author of a model; here it is left to the compiler.
"""

from collections.abc import Callable
from typing import Any

import jax

from sharpjax.errors import UserError


def is_explicit() -> bool:
    """Whether the mesh in use has Explicit axes."""
    return jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def refuse_sharded(caller: str, batch: Any, remedy: str) -> None:
    """Refuses examples that are sharded over Explicit axes, if only some of them are to be used.

    Raises:
        UserError: names `caller` and the remedy.
    """
    if is_explicit() and any(any(jax.typeof(x).sharding.spec[:1]) for x in jax.tree.leaves(batch)):
        raise UserError(
            f"{caller}: the examples are sharded over Explicit axes of a mesh, of which no part "
            f"can be taken here; {remedy}"
        )


def on_auto_axes(fn: Callable[..., Any], *args: Any, lies: Any = None) -> Any:
    """`fn(*args)`, inside of a jit, with Auto axes in place of Explicit ones.

    Neither `fn` nor what it calls may name shardings: Auto axes have none.

    Args:
        fn: a function of arrays and pytrees.
        *args: its arguments.
        lies: the shardings of its results; default: replicated on every device.

    >>> on_auto_axes(lambda x: x + 1, 1)
    2
    """
    if not is_explicit():
        return fn(*args)
    lies = jax.P() if lies is None else lies
    return jax.sharding.auto_axes(fn, out_sharding=lies)(*args)
