"""Corruption by name and severity."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax.data.corruption import blur, digital, noise, weather
from sharpjax.data.examples import Examples
from sharpjax.errors import UserError, unknown, whole_number

SEVERITIES = (1, 2, 3, 4, 5)

_KINDS: Mapping[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "spatter": weather.spatter,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "saturate": digital.saturate,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
KINDS = tuple(_KINDS)
"""The names of the corruptions, the same as those of the official files."""


def corrupt(key: jax.Array, image: jax.Array, kind: str, severity: int | jax.Array) -> jax.Array:
    """Images with a corruption, each with its own noise.

    A kind compiles to one program for all severities. Lengths are proportional to the image size
    above 32 pixels. The mean distortion (root mean square of the change) grows with the severity.
    Values are rounded to grey levels (in the official files they were truncated).

    Args:
        key: of the noise, which is the same at every severity, so that severities can be compared.
        image: uint8 [B, H, W, C], C = 1 or 3.
        kind: one of `KINDS`.
        severity: 1 to 5; may be traced.

    Returns:
        uint8 [B, H, W, C].

    Raises:
        UserError: an unknown kind, a severity out of range, an array of another shape or dtype; or
            'saturate' for grey images, which have no colour.

    >>> image = jnp.full((1, 4, 4, 3), 100, jnp.uint8)
    >>> corrupt(jax.random.key(0), image, "brightness", 1)[0, 0, 0].tolist()  # + .05 of 255
    [113, 113, 113]
    """
    if kind not in _KINDS:
        raise unknown("corruption", str(kind), KINDS)
    if image.ndim != 4 or image.dtype != jnp.uint8 or image.shape[-1] not in (1, 3):
        raise UserError(
            f"corruption.corrupt: image is {image.dtype}{list(image.shape)}; give uint8 "
            "[B, H, W, C] of 1 or 3 channels, before normalisation."
        )
    if kind == "saturate" and image.shape[-1] == 1:
        raise UserError("corruption.corrupt: 'saturate' is of colours, and these images are grey.")
    if not isinstance(severity, Tracer):
        if whole_number("corruption.corrupt", "severity", severity) > len(SEVERITIES):
            raise UserError(f"corruption.corrupt: severity={severity}; give 1 to 5.")
        severity = jnp.array(severity, np.int32)
    return _corrupt(key, jnp.asarray(image), severity, kind)


@functools.partial(jax.jit, static_argnames="kind")
def _corrupt(key: jax.Array, image: jax.Array, severity: jax.Array, kind: str) -> jax.Array:
    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        found = _KINDS[kind](key, image.astype(jnp.float32) / 255, severity - 1)
        return jnp.round(jnp.clip(found, 0, 1) * 255).astype(jnp.uint8)

    return jax.vmap(one)(jax.random.split(key, image.shape[0]), image)


def corrupted(
    examples: Examples, kind: str, severity: int, *, key: jax.Array, block: int = 500
) -> Examples:
    """A split with corrupted images, in host memory; labels and normalisation are unchanged.

    Args:
        examples: with uint8 images.
        kind, severity: as in `corrupt`.
        key: image i has noise from (key, i // block, i % block).
        block: number of images on the device at a time.

    Raises:
        UserError: as in `corrupt`; or `block` is not a positive whole number.
    """
    block = whole_number("corruption.corrupted", "block", block)
    image = np.asarray(examples.input)
    parts = []
    for start in range(0, len(image), block):
        part = image[start : start + block]
        # The last block is padded to the length of the others, so that there is one program.
        whole = np.concatenate([part, np.zeros((block - len(part), *part.shape[1:]), part.dtype)])
        of_block = jax.random.fold_in(key, start // block)
        found = np.asarray(corrupt(of_block, jnp.asarray(whole), kind, severity))
        parts.append(found[: len(part)])
    return examples._replace(input=np.concatenate(parts) if parts else image)
