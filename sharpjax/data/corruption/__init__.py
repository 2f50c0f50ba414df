"""Corrupted images: nineteen kinds at five severities, seeded, in JAX; and the official files.

    image = corrupt(key, image, "fog", 3)                       # uint8 [B, H, W, C]
    test = corrupted(splits.test, "fog", 3, key=key)            # Examples
    test = official("CIFAR-10-C", "fog", 3)                     # if the user has the files

The kinds are those of ImageNet-C and CIFAR-10-C (arXiv 1903.12261), written from their formulas for
small images. This is our own synthetic implementation: never report results on it as CIFAR-10-C.
"""

from sharpjax.data.corruption.kinds import KINDS as KINDS
from sharpjax.data.corruption.kinds import SEVERITIES as SEVERITIES
from sharpjax.data.corruption.kinds import corrupt as corrupt
from sharpjax.data.corruption.kinds import corrupted as corrupted
from sharpjax.data.corruption.published import official as official
