"""The data-free metrics of each layer of one model, as a table and a figure."""

import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sharpjax import plots
from sharpjax.errors import UserError
from sharpjax.layerwise import data_free
from sharpjax.layerwise.data_free import SCALE_FREE, WEIGHTWATCHER, Metrics, Table
from sharpjax.runs.weights import weights

COLUMNS = (
    *("alpha", "D", "xmin", "num_pl_spikes", "alpha_weighted", "log_norm", "log_spectral_norm"),
    *("stable_rank", "entropy", "mp_softrank", "num_spikes"),
)
_OF_SAMPLES = ("p_value", "alpha_low", "alpha_high")
_OF_SHUFFLE = ("rand_distance", "ww_softrank")
_SUFFIXES = (".png", ".svg", ".pdf")
CONVENTIONS = {"scale-free": SCALE_FREE, "weightwatcher": WEIGHTWATCHER}


def layers(
    path: os.PathLike | str,
    *,
    arm: str = "",
    model: str = "",
    step: str = "",
    only: Sequence[str] = (),
    columns: Sequence[str] = (),
    convention: str = "scale-free",
    samples: int = 0,
    shuffle: bool = False,
    random_seed: int = 0,
    figure: str = "",
    trust_checkpoints: bool = False,
    say: Callable[[str], None] = print,
) -> Table:
    """Print a table with a row for each layer, as WeightWatcher does.

    If a layer has no numbers, a line below the table says why. Cost: that of `data_free.data_free`,
    some seconds for each shape of layer at the first call, which compiles.

    Args:
        path, arm, model, step, trust_checkpoints: which model, as in `weights.weights`.
        only: globs on the names of layers, such as 'Dense_*'; default: kernels and embeddings.
        columns: of `Metrics`, or 'all'; default: `COLUMNS`, and those of `samples` and `shuffle`.
        convention: 'scale-free' or 'weightwatcher'.
        samples: of the bootstrap of alpha, 20 or more: `p_value`, `alpha_low`, `alpha_high`.
        shuffle: whether each layer is compared with its own entries shuffled.
        random_seed: of the bootstrap and of the shuffling.
        figure: a new file (.png, .svg, .pdf): alpha of each layer and a histogram of each.

    Raises:
        UserError: as `weights.weights` and `data_free.data_free`; an unknown column or convention;
            the file of the figure exists or cannot be written.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"layers: convention='{convention}'; give {' or '.join(CONVENTIONS)}.")
    asked = tuple(Metrics._fields) if list(columns) == ["all"] else tuple(columns)
    shown = asked or COLUMNS + _OF_SAMPLES * bool(samples) + _OF_SHUFFLE * shuffle
    data_free.check_columns(shown)
    file = _new_file(figure) if figure else None
    needs_key = samples or shuffle or set(shown) & set(data_free.Randomised._fields)
    found = weights(path, arm=arm, model=model, step=step, trust_checkpoints=trust_checkpoints)
    chosen: Any = {"layers": list(only) or None, "convention": CONVENTIONS[convention]}
    key = jax.random.key(random_seed) if needs_key else None
    table = data_free.data_free(found.params, key=key, num_samples=samples, **chosen)
    say(f"{found.source}; {convention}" + (f"; {found.others}" if found.others else ""))
    say(data_free.as_text(table, shown))
    for name, status in zip(table.names, table.status, strict=True):
        if why := data_free.reason(int(status), CONVENTIONS[convention]):
            say(f"{name}: {why}")
    if file is not None:
        values = data_free.layer_eigenvalues(found.params, **chosen)
        file.write_bytes(_picture(table, values, file.suffix))
        say(f"{file}: {len(values)} layers")
    return table


def _new_file(name: str) -> pathlib.Path:
    """The file for a figure, checked before anything is computed."""
    file = pathlib.Path(os.path.expanduser(name))
    if file.suffix not in _SUFFIXES:
        raise UserError(f"--figure={name}: give a file that ends in {', '.join(_SUFFIXES)}.")
    if file.exists():
        raise UserError(f"--figure={name} is there; name a new file.")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"--figure={name}: there is no folder {file.parent} to write to.")
    return file


def _picture(table: Table, values: dict[str, np.ndarray], suffix: str) -> bytes:
    m = table.metrics
    laws = {
        name: plots.LayerLaw(
            values[name],
            *(float(c[i]) for c in (m.alpha, m.xmin, m.alpha_low, m.alpha_high, m.bulk_max)),
        )
        for i, name in enumerate(table.names)
        if name in values
    }
    data = io.BytesIO()
    plots.layer_spectra(laws).savefig(data, format=suffix[1:])
    return data.getvalue()
