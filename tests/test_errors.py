"""How errors are said, and names that stand for what they name."""

import errno

import numpy as np
import pytest

from sharpjax import catalog, commandline, errors
from sharpjax.errors import UserError


@pytest.mark.parametrize("value", [1, np.int32(1)])
def test_whole_numbers(value):
    assert errors.whole_number("f", "k", value) == 1


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None])
def test_what_is_no_whole_number(value):
    with pytest.raises(UserError, match=r"f: k must be a whole number >= 1, got "):
        errors.whole_number("f", "k", value)


def test_nothing_is_near_to_nonsense():
    assert errors.nearest("zzz", ["cifar10"]) == ""


def test_every_name_in_the_catalog_is_there():
    for entry in catalog.DATA_SETS.values():
        assert callable(catalog.resolve(entry.loader))
    for table in (catalog.MODELS, catalog.OPTIMIZERS, catalog.SCALINGS):
        for reference in table.values():
            assert callable(catalog.resolve(reference)), reference
    for package in catalog.STUDIES.values():
        assert callable(catalog.resolve(f"{package}.plan:STUDY").plan)
    assert set(catalog.SMALLEST_IMAGE) <= set(catalog.MODELS)


def test_a_full_disk_is_one_line(capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/growing.jsonl")
    with pytest.raises(SystemExit) as left, commandline.one_line():
        raise full
    assert left.value.code == 1
    assert capsys.readouterr().err == (
        "error: No space left on device (runs/x/growing.jsonl); make room, and the same command "
        "goes on.\n"
    )
    with pytest.raises(FileNotFoundError), commandline.one_line():
        raise FileNotFoundError(errno.ENOENT, "a bug")
