"""The official registrations: each is still what its config asks, and reads back to the byte."""

import importlib

import pytest

from sharpjax.protocol.seals import registration
from sharpjax.runs import register, standing

FILES = sorted(standing.OFFICIAL.glob("*.json"))
there = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_first_ten_are_there():
    assert len(FILES) >= 10


@there
def test_its_config_asks_what_was_registered(path):
    file, _, form = path.stem.partition("-")
    config = importlib.import_module(f"configs.{file}").get_config(form).lock()
    official = registration.from_json(path.read_bytes(), path.name)
    held = register.held(official, config)
    assert held.refused == "" and held.missing_seeds == ()


@there
def test_it_is_written_as_it_was_read(path):
    official = registration.from_json(path.read_bytes(), path.name)
    assert registration.to_json(official).encode() == path.read_bytes()
    assert registration.seal(official) == official.seal
