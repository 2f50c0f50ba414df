"""The accuracy requested of an estimate, and whether it was reached."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax.errors import UserError
from sharpjax.geometry.status import Status

Target = float | jax.Array | None


class Accuracy(NamedTuple):
    """Target standard errors, relative to the estimate and absolute; meeting one is enough.

    None means not requested; `fill` turns it into 0.
    """

    relative: Target
    absolute: Target

    @property
    def is_asked(self) -> bool:
        return self.relative is not None or self.absolute is not None

    def fill(self, zero: jax.Array) -> "Accuracy":
        """The targets as arrays with the dtype and sharding of `zero`; for use inside a trace."""

        def array(error):
            return zero + jnp.asarray(0.0 if error is None else error, zero.dtype)

        return Accuracy(array(self.relative), array(self.absolute))

    def allowed(self, size: jax.Array) -> jax.Array:
        """The standard error allowed for an estimate of this size."""
        assert self.relative is not None and self.absolute is not None
        return jnp.maximum(self.relative * size, self.absolute)


def ask(caller: str, relative_error: Target, absolute_error: Target) -> Accuracy:
    """The requested accuracy, after checking both arguments.

    Raises:
        UserError: an argument is not a number >= 0; names `caller` and the argument.
    """
    for name, error in (("relative_error", relative_error), ("absolute_error", absolute_error)):
        check_error(caller, name, error)
    return Accuracy(relative_error, absolute_error)


def number_of(value: Any) -> float:
    """One real number, as an int, a float or an array, as a float; NaN for anything else.

    >>> number_of(jnp.ones(())), number_of(None), number_of("1.0")
    (1.0, nan, nan)
    """
    is_number = isinstance(value, int | float) or hasattr(value, "dtype")
    try:
        return float(value) if is_number and jnp.ndim(value) == 0 else math.nan
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_error(caller: str, name: str, error: Any) -> None:
    """Refuses an error target that is neither a finite number >= 0 nor None.

    Traced values are not checked.

    Raises:
        UserError: names `caller` and the argument.
    """
    if error is None or isinstance(error, Tracer):
        return
    if not 0 <= number_of(error) < math.inf:
        raise UserError(f"{caller}: {name} must be a number >= 0 or None, got {error}.")


def how_it_ended(met: jax.Array, finite: jax.Array) -> jax.Array:
    """A `Status`, from whether the target was met and whether all numbers were finite.

    >>> how_it_ended(jnp.array([True, False, False]), jnp.array([True, True, False])).tolist()
    [0, 1, 2]
    """
    status = jnp.where(met, Status.OK, Status.NOT_CONVERGED)
    return jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
