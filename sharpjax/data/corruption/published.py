"""CIFAR-10-C and CIFAR-100-C as their authors published them, if the user has the files."""

import pathlib

import numpy as np

from sharpjax.data.corruption.kinds import KINDS, SEVERITIES
from sharpjax.data.examples import Examples
from sharpjax.errors import UserError, unknown, whole_number

_NUM = 10_000  # images at each severity


def official(folder: str, kind: str, severity: int) -> Examples:
    """The 10,000 images of one kind at one severity, from `<folder>/<kind>.npy` and `labels.npy`.

    Rows 10,000 (s - 1) to 10,000 s are of severity s (hendrycks/robustness#21). Only these rows are
    read.

    Args:
        folder: of the unpacked archive, CIFAR-10-C or CIFAR-100-C.
        kind: one of `KINDS`; the usual fifteen leave out speckle_noise, gaussian_blur, spatter and
            saturate.
        severity: 1 to 5.

    Returns:
        Images uint8 [10000, 32, 32, 3] and labels int32, without mean and deviation.

    Raises:
        UserError: the kind or severity is unknown; a file is missing, or has wrong contents.
    """
    if kind not in KINDS:
        raise unknown("corruption", str(kind), KINDS)
    if whole_number("corruption.official", "severity", severity) > len(SEVERITIES):
        raise UserError(f"corruption.official: severity={severity}; give 1 to 5.")
    rows = slice(_NUM * (severity - 1), _NUM * severity)
    count = _NUM * len(SEVERITIES)
    image = _read(folder, f"{kind}.npy", (count, 32, 32, 3), rows)
    label = _read(folder, "labels.npy", (count,), rows)
    return Examples(image, label.astype(np.int32))


def _read(folder: str, name: str, shape: tuple[int, ...], rows: slice) -> np.ndarray:
    path = pathlib.Path(folder).expanduser() / name
    if not path.is_file():
        raise UserError(
            f"corruption.official: {path} is not there; give the folder of the unpacked archive "
            "(doi.org/10.5281/zenodo.2535967 for CIFAR-10-C, 3555552 for CIFAR-100-C)."
        )
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"corruption.official: {path} cannot be read: {error}.") from error
    if stored.shape != shape or not np.issubdtype(stored.dtype, np.integer):
        raise UserError(
            f"corruption.official: {path} holds {stored.dtype}{list(stored.shape)}, and should "
            f"hold integers {list(shape)}."
        )
    part = np.array(stored[rows])
    if part.min() < 0 or part.max() > 255:
        raise UserError(f"corruption.official: {path} holds numbers outside of 0 to 255.")
    return part.astype(np.uint8)
