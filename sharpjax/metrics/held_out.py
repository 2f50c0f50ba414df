"""Refuses to measure a fit on the data it was fitted on, by comparing digests of rows."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError
from sharpjax.metrics import inputs


def digests(logits: jax.Array) -> np.ndarray:
    """A 64-bit hash of each row, from its bytes in float32."""
    rows = np.ascontiguousarray(np.asarray(logits, np.float32))
    found = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(found), np.uint64)


def check(caller: str, fit: object, kind: type, logits: jax.Array) -> None:
    """Refuses a fit of another module, and arrays that are not logits.

    Raises:
        UserError: names `caller`; also raised inside jit.
    """
    if not isinstance(fit, kind):
        module = caller.split(".")[0]
        raise UserError(
            f"{caller}: fit must be from {module}.fit, got a {type(fit).__name__} of "
            f"{type(fit).__module__}."
        )
    inputs.refuse_traced(caller, logits)
    shape = np.shape(logits)
    if len(shape) != 2:
        raise UserError(f"{caller}: logits is {list(shape)}; give [N, K].")
    inputs.on_host(caller, logits, jnp.zeros(shape[0], jnp.int32))


def check_classes(caller: str, logits: jax.Array, num_classes: int) -> None:
    """Raises a `UserError` unless `logits` are [N, num_classes]."""
    if np.ndim(logits) != 2 or np.shape(logits)[1] != num_classes:
        raise UserError(
            f"{caller}: logits is {list(np.shape(logits))}; give [N, {num_classes}], of as many "
            f"classes as it was fitted on."
        )


def refuse_seen(
    caller: str, what: str, rows: np.ndarray, logits: jax.Array, *, allow_overlap: bool
) -> None:
    """Refuses logits if more than 1 % of their rows have a digest in `rows`, the digests of the
    data of the fit.

    Raises:
        UserError: names `caller`, and `what` was fitted.
    """
    if allow_overlap:
        return
    shared = int(np.isin(digests(logits), rows).sum())
    if shared > 0.01 * len(logits):
        raise UserError(
            f"{caller}: {shared:,} of {len(logits):,} examples are examples that the {what} "
            "was fitted on; fit on validation data alone, or give allow_overlap=True."
        )
