"""What was fitted on validation data is not measured on them: rows are known by their digests."""

import hashlib

import jax
import numpy as np

from sharpjax.errors import UserError


def digests(logits: jax.Array) -> np.ndarray:
    """A number for each row, of its bytes in float32."""
    rows = np.ascontiguousarray(np.asarray(logits, np.float32))
    found = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(found), np.uint64)


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
