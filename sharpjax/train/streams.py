"""Named streams of randomness: each is a key from a seed and a name.

Every random decision of a run has a name (`init`, `order`, `augmentation`, `evaluate/geometry`).
Two arms with the same seed share each stream, so they can be compared pair by pair.
"""

import zlib

import jax


def stream(seed: int, name: str) -> jax.Array:
    """The key of the stream `name` of `seed`.

    >>> bool((stream(0, "init") == stream(0, "init")) & (stream(0, "init") != stream(0, "order")))
    True
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
