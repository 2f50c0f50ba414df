"""Named streams of randomness: each is a key from a seed and a name.

Every random decision of a run has a name (`init`, `order`, `augmentation`, `evaluate/geometry`).
Two arms with the same seed share each stream, so they can be compared pair by pair. An evaluator's
key also depends on the step of the model, so models at the same step share its draws.
"""

import zlib

import jax

from sharpjax.errors import UserError


def stream(seed: int, name: str) -> jax.Array:
    """The key of the stream `name` of `seed`.

    Raises:
        UserError: the seed is negative or has more than 32 bits; its key would be that of another.

    >>> bool((stream(0, "init") == stream(0, "init")) & (stream(0, "init") != stream(0, "order")))
    True
    """
    if not 0 <= seed < 2**32:
        raise UserError(
            f"train.streams.stream: seed={seed}; give a whole number from 0 to {2**32 - 1}; "
            f"any other has the streams of a seed in this range."
        )
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
