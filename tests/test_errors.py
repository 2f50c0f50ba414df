"""How errors are said, and names that stand for what they name."""

import numpy as np
import pytest

from sharpjax import catalog, errors
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
