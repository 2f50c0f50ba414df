"""Arrays in `.npz` files that need not be trusted."""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from etils import epath

from sharpjax.errors import UserError, printable
from sharpjax.workdir.files import open_regular

if TYPE_CHECKING:
    import numpy as np

# Limits of one file: the bytes of its unpacked arrays, and their number.
MAX_ARRAY_BYTES = 2**31
MAX_ARRAYS = 1_000

# Encrypted entries raise a RuntimeError, unknown compressions a NotImplementedError.
_BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError)


def npz(arrays: "Mapping[str, np.ndarray]") -> bytes:
    """An `.npz` file; the same arrays give the same bytes.

    Raises:
        ValueError: an array is of a type that the file cannot hold (Python objects, bfloat16).
    """
    from numpy.lib import format as npy

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for key in sorted(arrays):
            if arrays[key].dtype.kind == "V":  # it would be read back as bare bytes
                raise ValueError(f"array '{key}' is {arrays[key].dtype}; give it as float32")
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, arrays[key], allow_pickle=False)
    return data.getvalue()


def load_arrays(path: epath.Path, *, slashes: bool = False) -> "dict[str, np.ndarray]":
    """The arrays of an `.npz` file.

    Args:
        slashes: whether names may have slashes, as those of parameters do.

    Raises:
        UserError: as `check_arrays`.
    """
    import numpy as np

    check_arrays(path, slashes=slashes)
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, *_BROKEN) as error:
        raise UserError(f"{path} is damaged: {printable(str(error))[:200]}.") from None


def check_arrays(path: epath.Path, *, slashes: bool = False) -> None:
    """Check an `.npz` file without unpacking it: only numbers, as many as its headers say.

    Raises:
        UserError: it is not such a file; an array holds Python objects (numpy would unpickle them)
            or other things than numbers; there are more than `MAX_ARRAYS` arrays, or they would
            take more than `MAX_ARRAY_BYTES`; a name comes twice, or is not that of an array; a size
            differs from the array's header.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ARRAYS:
                raise UserError(f"{path} holds more than {MAX_ARRAYS:,} arrays, the most it may.")
            if sum(entry.file_size for entry in entries) > MAX_ARRAY_BYTES:
                raise UserError(
                    f"{path} would unpack to more than {MAX_ARRAY_BYTES:,} bytes, the most it may."
                )
            if len({entry.filename for entry in entries}) < len(entries):
                raise UserError(f"{path} names an array twice.")
            for entry in entries:
                _check_array(path, archive, entry, slashes)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except _BROKEN as error:
        raise UserError(f"{path} is no .npz file: {printable(str(error))[:200]}.") from None


def _check_array(
    path: epath.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, slashes: bool
) -> None:
    from numpy.lib import format as npy

    name = printable(entry.filename)
    if not entry.filename.endswith(".npy") or ("/" in entry.filename and not slashes):
        raise UserError(f"{path} holds '{name}', which is no array.")
    with archive.open(entry) as file:
        try:
            version = npy.read_magic(file)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, _, dtype = read(file)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path}: '{name}' has no header of an array: {printable(str(error))[:200]}."
            ) from None
        header = file.tell()
    if dtype.kind not in "biufc":
        raise UserError(f"{path}: '{name}' holds {printable(str(dtype))}, not numbers.")
    if any(n < 0 for n in shape) or header + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise UserError(f"{path}: '{name}' is not as long as its header says.")
