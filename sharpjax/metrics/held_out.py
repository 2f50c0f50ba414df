"""What was fitted on validation data is not measured on them: rows are known by their digests."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError
from sharpjax.metrics import inputs


def digests(logits: jax.Array) -> np.ndarray:
    """A number for each row, of its bytes in float32."""
    rows = np.ascontiguousarray(np.asarray(logits, np.float32))
    found = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(found), np.uint64)


def check(caller: str, fit: object, kind: type, logits: jax.Array) -> None:
    """Refuses what was fitted by another module, and what are no logits.

    Raises:
        UserError: names `caller`; inside of jit, too.
    """
    if not isinstance(fit, kind):
        module = caller.split(".")[0]
        raise UserError(
            f"{caller}: fit must be from {module}.fit, got a {type(fit).__name__} of "
            f"{type(fit).__module__}."
        )
    inputs.refuse_traced(caller, logits)
    shape = np.shape(logits)
    if len(shape) == 2 and shape[1] > 1:
        inputs.on_host(caller, logits, jnp.zeros(shape[0], jnp.int32))


def check_classes(caller: str, logits: jax.Array, num_classes: int) -> None:
    """Raises a `UserError` unless `logits` are [N, K] of the classes that a map was fitted on."""
    if np.ndim(logits) != 2 or np.shape(logits)[1] != num_classes:
        raise UserError(
            f"{caller}: logits is {list(np.shape(logits))}; give [N, {num_classes}], of as many "
            f"classes as it was fitted on."
        )


def refuse_seen(
    caller: str, what: str, rows: np.ndarray, logits: jax.Array, *, allow_overlap: bool
) -> None:
    """Refuses logits of which more than 1 % of the rows are among `rows`, digests of what was
    fitted on.

    Raises:
        UserError: names `caller` and `what` was fitted.
    """
    if allow_overlap:
        return
    shared = int(np.isin(digests(logits), rows).sum())
    if shared > 0.01 * len(logits):
        raise UserError(
            f"{caller}: {shared:,} of {len(logits):,} examples are examples that the {what} "
            "was fitted on; fit on validation data alone, or give allow_overlap=True."
        )
