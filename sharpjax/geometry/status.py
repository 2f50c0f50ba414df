"""How a computation ended. No error can be raised inside a trace, so each result has a status."""

import enum
import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import RunFailed

Function = TypeVar("Function", bound=Callable[..., Any])


class Status(enum.IntEnum):
    """The `status` of a result, an int32 array; under vmap, one for each lane."""

    OK = 0
    NOT_CONVERGED = 1
    NON_FINITE = 2
    BREAKDOWN = 3
    NOT_POSITIVE = 4
    ASSUMPTION_FAILED = 5


def if_finite(finite: jax.Array) -> jax.Array:
    """`OK` where `finite` is true, `NON_FINITE` elsewhere.

    >>> if_finite(jnp.array([True, False])).tolist()
    [0, 2]
    """
    return jnp.where(finite, jnp.int32(Status.OK), jnp.int32(Status.NON_FINITE))


def tells_unknown(fn: Function) -> Function:
    """Decorates a function that fills results with NaN for unknown numbers.

    Such a NaN is not an arithmetic error, so `jax_debug_nans` is off while the function runs.
    Inside the caller's own jit, `jax_debug_nans` still stops at it: avoid results with such
    numbers there, or leave the option off.

    >>> with jax.debug_nans(True):
    ...     print(tells_unknown(jax.jit(lambda: jnp.float32(jnp.nan)))())
    nan
    """

    @functools.wraps(fn)
    def told(*args, **kwargs):
        with jax.debug_nans(False):
            return fn(*args, **kwargs)

    return cast(Function, told)


class NotOk(RunFailed):
    """Raised by `check` for a result whose status is not `OK`."""


class HasStatus(Protocol):
    @property
    def status(self) -> jax.Array: ...


Result = TypeVar("Result", bound=HasStatus)

_MEANING = {
    Status.NOT_CONVERGED: "it did not converge in the work it was allowed; allow more, or ask for "
    "less accuracy",
    Status.NON_FINITE: "it met a number that is not finite (NaN or infinity); look at the loss and "
    "its gradient at these parameters",
    Status.BREAKDOWN: "it broke down: no direction was left to search in, or the one that was "
    "given does not descend by more than rounding, or the radius is below the resolution of the "
    "parameters",
    Status.NOT_POSITIVE: "the operator is not positive, or is singular in this precision, so that "
    "it has no log-determinant, and this method no solution, whatever the work; add damping, such "
    "as operator + 0.1, that lifts its smallest eigenvalue well above 0",
    Status.ASSUMPTION_FAILED: "the loss is not what it was taken for, such as a mean over "
    "examples; make the same call outside of jit and vmap, and the error says what is wrong",
}


def check(result: Result) -> Result:
    """Returns the result itself if its status is `OK`; call it outside of any trace.

    Raises:
        NotOk: a `RuntimeError`; the status of the result, or of one lane, is not `OK`.

    >>> from sharpjax.geometry import sam_sharpness
    >>> found = sam_sharpness(lambda w, _: w * w, jax.numpy.float32(1), None, rho=0.5)
    >>> check(found).value
    Array(1.25, dtype=float32)
    """
    statuses = np.asarray(result.status)
    bad = np.flatnonzero(statuses)
    if bad.size:
        first = Status(int(statuses.reshape(-1)[bad[0]]))
        lanes = f" in lanes {bad.tolist()}" if statuses.ndim else ""
        raise NotOk(f"{type(result).__name__}: {_MEANING[first]}{lanes}.")
    return result
