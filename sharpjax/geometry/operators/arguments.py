"""Arguments that solvers share: an operator, a key, a number."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax.errors import UserError
from sharpjax.geometry.accuracy import number_of
from sharpjax.geometry.operators.algebra import REGISTER, Operator, check_class


def check_operator(caller: str, operator: Any) -> None:
    """Refuses anything that is not an `Operator` registered with jax as a pytree.

    Raises:
        UserError: names `caller` and says how to make an operator.
    """
    kind = type(operator).__name__
    if not isinstance(operator, Operator):
        raise UserError(
            f"{caller}: the first argument must be an operator, such as hessian(loss, params, "
            f"batch); got {kind}. A product of your own: operator(matvec, like=params), or a "
            f"subclass of geometry.Operator."
        )
    if jax.tree_util.all_leaves([operator]):
        raise UserError(
            f"{caller}: the class of the operator, {kind}, is not registered, so it cannot be "
            f"compiled. {REGISTER}"
        )
    check_class(caller, operator)


def check_key(caller: str, key: Any) -> jax.Array:
    """One random key; a legacy key (`jax.random.PRNGKey`) is turned into a typed one.

    Raises:
        UserError: names `caller`; `key` is not a random key, or is several keys.

    >>> check_key("trace", jax.random.PRNGKey(0)) == jax.random.key(0)
    Array(True, dtype=bool)
    """
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and hasattr(key, "dtype") and key.dtype == jnp.uint32:
        one = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
        if key.shape[-1:] == one:
            typed, key = True, jax.random.wrap_key_data(jnp.asarray(key))
    if not typed or key.shape:
        shape = f" of shape {key.shape}" if typed else ""
        raise UserError(
            f"{caller}: key must be one random key, such as jax.random.key(0); got "
            f"{'keys' if typed else type(key).__name__}{shape}. Several keys: jax.vmap."
        )
    return key


def check_number(caller: str, name: str, value: Any, *, or_zero: bool = False) -> None:
    """Refuses anything but one finite number above 0. A traced value is not checked.

    Args:
        or_zero: also allow 0.

    Raises:
        UserError: names `caller` and the argument.
    """
    if isinstance(value, Tracer):
        return
    number = number_of(value)
    if not (0 < number < math.inf or (or_zero and number == 0)):
        least = ">= 0" if or_zero else "> 0"
        raise UserError(f"{caller}: {name} must be one finite number {least}, got {value!r}.")
