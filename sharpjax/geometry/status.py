"""How a computation ended. Inside a trace nothing can be raised, so results carry it."""

import enum
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import RunFailed


class Status(enum.IntEnum):
    """The `status` of a result, an int32 array; under vmap one for each lane."""

    OK = 0
    NOT_CONVERGED = 1
    NON_FINITE = 2
    BREAKDOWN = 3
    NOT_POSITIVE = 4
    ASSUMPTION_FAILED = 5


def if_finite(finite: jax.Array) -> jax.Array:
    """`OK` where it holds, `NON_FINITE` elsewhere.

    >>> if_finite(jnp.array([True, False])).tolist()
    [0, 2]
    """
    return jnp.where(finite, jnp.int32(Status.OK), jnp.int32(Status.NON_FINITE))


class NotOk(RunFailed):
    """A result that `check` refused."""


class HasStatus(Protocol):
    @property
    def status(self) -> jax.Array: ...


Result = TypeVar("Result", bound=HasStatus)

_MEANING = {
    Status.NOT_CONVERGED: "it did not converge in the work it was allowed; allow more, or ask for "
    "less accuracy",
    Status.NON_FINITE: "it met a number that is not finite (NaN or infinity); look at the loss and "
    "its gradient at these parameters",
    Status.BREAKDOWN: "it broke down: no direction was left to search in",
    Status.NOT_POSITIVE: "the operator is not positive, so its log-determinant is not a number; "
    "add more damping than its smallest eigenvalue is negative",
    Status.ASSUMPTION_FAILED: "the loss is not what it was taken for, such as a mean over "
    "examples; make the same call outside of jit and vmap, and the error says what is wrong",
}


def check(result: Result) -> Result:
    """The result itself, if all went well: to be called outside of any trace.

    Raises:
        NotOk: a `RuntimeError`, where the status of the result, or of one lane, is not `OK`.

    >>> from sharpjax.geometry import sharpness
    >>> found = sharpness.sam_sharpness(lambda w, _: w * w, jax.numpy.float32(1), None, rho=0.5)
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
