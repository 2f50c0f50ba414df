"""TFDS data sets as arrays, prepared first if needed, without TensorFlow."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from sharpjax import catalog
from sharpjax.data import builders, upstream
from sharpjax.data.examples import Examples, Splits
from sharpjax.errors import UserError

FORMAT = tfds.core.FileFormat.ARRAY_RECORD
BLOCK = 1_000  # records held in memory in addition to the arrays


def load(name: str, *, data_dir: str = "", manual_dir: str = "") -> Splits:
    """Read a data set in record order. If it has not been prepared yet, prepare it first.

    Preparation takes the upstream files from `manual_dir`, or else downloads them into
    `<data_dir>/downloads/<name>`. It checks them against the checksums that TFDS carries, and
    publishes `<data_dir>/<name>/<version>` as a whole, by a rename. An interrupted preparation is
    never read.

    The data are checked when they are read: array_record keeps a hash of every chunk, PNG a
    checksum of every image, and the counts, shapes and labels must match `catalog.DATA_SETS`. A
    flipped byte in a record is thus an error; one in the padding or in the names of the classes
    has no effect here.

    Args:
        name: a key of `builders.BUILDERS`.
        data_dir: folder of the prepared sets; "": `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        manual_dir: folder with the upstream files, in it or in its subfolder `<name>`.

    Returns:
        Images uint8 [N, H, W, C] and labels int32 [N], for training and testing.

    Raises:
        UserError: the set is not prepared and cannot be obtained; an upstream file is not the
            published one; `data_dir` cannot be written; the prepared data are damaged or in another
            format.
    """
    builder = catalog.lookup("TFDS data set", builders.BUILDERS, name)
    root = epath.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    folder = root / name / str(builder.VERSION)
    try:
        prepared = folder.exists()
    except (ImportError, OSError) as error:
        raise UserError(
            f"data set '{name}': cannot look into {root}: {upstream.reason(error)}; give another "
            "folder by --config.data.data_dir or TFDS_DATA_DIR (gs:// paths need the extra [gcp])."
        ) from error
    if not prepared:
        prepare(builder, root, manual_dir)
    return read(builder, root, catalog.DATA_SETS[name])


def prepare(builder: Any, root: epath.Path, manual_dir: str) -> None:
    """Write `<root>/<name>/<version>` completely, or not at all."""
    name, folder = builder.name, root / builder.name / str(builder.VERSION)
    folders = []
    if manual_dir:
        manual = epath.Path(manual_dir).expanduser()
        if not manual.is_dir():
            raise UserError(
                f"data set '{name}' is not prepared in {folder}, and --config.data.manual_dir="
                f"{manual_dir} is not a folder."
            )
        folders = [manual / name, manual]
    try:
        files = upstream.obtain(
            builder.UPSTREAM, folders=folders, download_dir=root / "downloads" / name
        )
        upstream.say(f"preparing {name} in {folder} (once; less than a minute)")
        _write(builder, root, files)
    except upstream.DownloadFailed as error:
        raise UserError(_nowhere(builder, folder, folders, error)) from error
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
        if folder.exists():  # another process was faster
            return
        raise UserError(
            f"data set '{name}' cannot be prepared in {root}: {upstream.reason(error)}; give a "
            "folder that can be written by --config.data.data_dir or TFDS_DATA_DIR."
        ) from error


def _write(builder: Any, root: epath.Path, files: dict[str, epath.Path]) -> None:
    tfds.disable_progress_bar()
    this = builder(data_dir=os.fspath(root), file_format=FORMAT)
    this.files = files
    # TFDS makes a folder for downloads even if there are none, and prints.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        this.download_and_prepare(
            download_dir=scratch,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )


def _nowhere(builder: Any, folder: epath.Path, folders: list[epath.Path], error: Exception) -> str:
    """An error message: what was looked for and where, and what the user can do."""
    looked = f"not in {' or '.join(map(str, folders))}" if folders else "no manual_dir is given"
    files = ", ".join(map(str, builder.UPSTREAM))
    return (
        f"data set '{builder.name}' is not to be had: it is not prepared in {folder}, and its "
        f"upstream files are not at hand ({looked}) and cannot be downloaded ({error}). Ways out: "
        "point --config.data.data_dir or TFDS_DATA_DIR at a folder where TFDS has prepared it as "
        f"array_record; or put {files} into a folder and give it as --config.data.manual_dir; or "
        "take --config.data.name=digits, which needs no download."
    )


def read(builder: Any, root: epath.Path, known: catalog.DataSet) -> Splits:
    """Read `<root>/<name>/<version>` into memory: 60,000 CIFAR images take about five seconds."""
    folder = root / builder.name / str(builder.VERSION)
    with _damage(folder):
        if not (folder / "dataset_info.json").exists():
            raise ValueError("dataset_info.json is missing")
        this = builder(data_dir=os.fspath(root))
        if FORMAT not in this.info.available_file_formats():
            raise UserError(
                f"the prepared data in {folder} are in the format {this.info.file_format.value}, "
                "which needs TensorFlow; name another folder by --config.data.data_dir or "
                "TFDS_DATA_DIR, to have array_record prepared there."
            )
        train = _read_split(this, "train", known.num_train, known)
        test = _read_split(this, "test", known.num_test, known)
    return Splits(train, test)


def _read_split(this: Any, split: str, num: int, known: catalog.DataSet) -> Examples:
    found = this.info.splits[split].num_examples
    if found != num:
        raise ValueError(f"its split '{split}' has {found:,} examples, which should be {num:,}")
    # Decoding is done here: TFDS would use OpenCV if it is installed, and warn if it is not.
    source = this.as_data_source(
        split, file_format=FORMAT, decoders={"image": tfds.decode.SkipDecoding()}
    )
    image, label = np.empty((num, *known.shape), np.uint8), np.empty(num, np.int32)
    for start in range(0, num, BLOCK):
        records = source.__getitems__(range(start, min(start + BLOCK, num)))
        for i, record in enumerate(records, start):
            image[i], label[i] = decode(record["image"], known.shape), record["label"]
    if label.min() < 0 or label.max() >= known.num_classes:
        raise ValueError(f"its split '{split}' has labels outside 0 to {known.num_classes - 1}")
    return Examples(image, label)


def decode(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The uint8 image [H, W, C] in PNG `data`, if it has that shape.

    >>> decode(builders.png(np.full((2, 3), 7, np.uint8)), (2, 3, 1))[..., 0].tolist()
    [[7, 7, 7], [7, 7, 7]]
    """
    image = np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))
    image = image if image.ndim == 3 else image[..., np.newaxis]
    if image.shape != shape or image.dtype != np.uint8:
        raise ValueError(f"an image is {image.dtype}{list(image.shape)}, not uint8{list(shape)}")
    return image


@contextlib.contextmanager
def _damage(folder: epath.Path) -> Iterator[None]:
    """Turns the many kinds of errors that readers raise into a UserError: `folder` is unusable.

    Errors that show a mismatch of libraries are raised as they are: damage caused none of these in
    thousands of trials, and preparing the set again would not help.
    """
    try:
        yield
    except (UserError, MemoryError, ImportError, NameError, AttributeError, TypeError):
        raise
    except Exception as error:
        raise UserError(
            f"the prepared data in {folder} cannot be read: {upstream.reason(error)}. If they "
            "are damaged, delete that folder, and the next run prepares it anew; or name another "
            "by --config.data.data_dir or TFDS_DATA_DIR."
        ) from error
