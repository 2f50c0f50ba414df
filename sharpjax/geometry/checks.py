"""What is refused before anything is compiled: losses, batches, operators, keys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.algebra import Operator, is_narrow, widen

Params = Any


def check_problem(
    caller: str, loss: Any, params: Params, batch: Any, microbatch_size: int | None
) -> Any:
    """Refuses what does not fit, before anything is compiled; returns the loss as `as_loss` does.

    Raises:
        UserError: names `caller`, the leaf and the remedy.
    """
    loss = as_loss(caller, loss)
    tree.check_floating(caller, params)
    _check_batch(caller, batch, microbatch_size)
    _check_scalar(caller, loss, params, batch)
    return loss


def as_loss(caller: str, loss: Any) -> Any:
    """The loss as a callable pytree: bare functions are wrapped in `jax.tree_util.Partial`.

    Raises:
        UserError: names `caller`; the loss cannot be called, hashed, or traced.
    """
    if not callable(loss):
        raise UserError(
            f"{caller}: loss must be a function or a callable pytree, loss(params, batch) -> "
            f"scalar; got {type(loss).__name__}."
        )
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(loss)):
        try:
            hash(loss)
        except TypeError:
            raise UserError(
                f"{caller}: loss is a {type(loss).__name__} that can be neither hashed nor traced. "
                f"Register its class (`jax.tree_util.register_dataclass`), or put its arrays into "
                f"a `jax.tree_util.Partial` of a module-level function."
            ) from None
        return Partial(loss)
    for name, leaf in zip(tree.path_names(loss), jax.tree.leaves(loss), strict=True):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise UserError(
                f"{caller}: leaf '{name}' of the loss is a {type(leaf).__name__}, not an array. "
                f'Mark the field as static (`dataclasses.field(metadata={{"static": True}})`).'
            )
    return loss


def check_operator(caller: str, operator: Any) -> None:
    """Refuses what is not an `Operator`.

    Raises:
        UserError: names `caller` and how one is made.
    """
    if not isinstance(operator, Operator):
        raise UserError(
            f"{caller}: the first argument must be an operator, such as "
            f"hessian(loss, params, batch); got {type(operator).__name__}."
        )


def check_key(caller: str, key: Any) -> None:
    """Refuses what is not one random key.

    Raises:
        UserError: names `caller`.
    """
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape:
        shape = f" of shape {key.shape}" if typed else ""
        raise UserError(
            f"{caller}: key must be one random key, such as jax.random.key(0); got "
            f"{'keys' if typed else type(key).__name__}{shape}. Legacy keys: "
            f"jax.random.wrap_key_data; several keys: jax.vmap."
        )


def _check_batch(caller, batch, microbatch_size):
    if microbatch_size is None:
        if jax.tree.leaves(batch):
            loops.count_examples(caller, batch)
        return
    if isinstance(microbatch_size, bool) or not isinstance(microbatch_size, int | np.integer):
        raise UserError(
            f"{caller}: microbatch_size must be a whole number of examples or None, got "
            f"{microbatch_size!r}."
        )
    jax.eval_shape(lambda batch: loops.split_chunks(caller, batch, int(microbatch_size)), batch)


def _check_scalar(caller, loss, params, batch):
    try:
        # Of the jitted function: its trace is remembered, seconds saved at every call on a ResNet.
        out = _value.eval_shape(loss, params, batch)
    except (TypeError, ValueError) as error:
        if any(map(is_narrow, jax.tree.leaves(params))):
            error.add_note(f"{caller} calls the loss with parameters widened to float32.")
        raise
    leaves = jax.tree.leaves(out)
    if jax.tree.structure(out) == jax.tree.structure(0) and leaves[0].shape == ():
        if jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return
    given = ", ".join(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in leaves) or "nothing"
    raise UserError(
        f"{caller}: loss(params, batch) must return one floating scalar, the mean over the "
        f"examples; it returns {given} ({jax.tree.structure(out)}). Take the mean of values per "
        f"example, and drop auxiliary outputs."
    )


@jax.jit
def _value(loss, params, batch):
    return loss(widen(params), batch)
